//! What this program does inside a sandbox: tries things a shell cannot, and prints what came of it.

use std::fs;
use std::io;
use std::process::ExitCode;

/// Calls tried, with the arguments that matter, and whether the profile refuses them.
const CALLS: &[(&str, libc::c_long, [usize; 2])] = &[
    ("mount", libc::SYS_mount, [0, 0]),
    ("umount2", libc::SYS_umount2, [0, 0]),
    ("move_mount", libc::SYS_move_mount, [0, 0]),
    ("fsopen", libc::SYS_fsopen, [0, 0]),
    ("unshare", libc::SYS_unshare, [libc::CLONE_NEWUSER as usize, 0]),
    ("setns", libc::SYS_setns, [usize::MAX, 0]),
    ("keyctl", libc::SYS_keyctl, [0, 0]),
    ("add_key", libc::SYS_add_key, [0, 0]),
    ("bpf", libc::SYS_bpf, [0, 0]),
    ("perf_event_open", libc::SYS_perf_event_open, [0, 0]),
    ("userfaultfd", libc::SYS_userfaultfd, [0, 0]),
    ("io_uring_setup", libc::SYS_io_uring_setup, [1, 0]),
    ("init_module", libc::SYS_init_module, [0, 0]),
    ("kexec_load", libc::SYS_kexec_load, [0, 0]),
    ("open_by_handle_at", libc::SYS_open_by_handle_at, [0, 0]),
    ("reboot", libc::SYS_reboot, [0, 0]),
    ("settimeofday", libc::SYS_settimeofday, [0, 0]),
    ("clone(CLONE_NEWNS)", libc::SYS_clone, [libc::CLONE_NEWNS as usize, 0]),
    ("clone3", libc::SYS_clone3, [0, 0]),
    ("socket(AF_VSOCK)", libc::SYS_socket, [40, 1]),
    ("socket(AF_ALG)", libc::SYS_socket, [38, 5]),
    ("socket(AF_UNIX)", libc::SYS_socket, [1, 1]),
    ("personality(query)", libc::SYS_personality, [0xffff_ffff, 0]),
    ("personality(no randomness)", libc::SYS_personality, [0x4_0000, 0]),
    ("getpid", libc::SYS_getpid, [0, 0]),
    ("a call of the future", 9999, [0, 0]),
];

pub(crate) fn run(what: &str) -> ExitCode {
    match what {
        "serve" => crate::network::serve(),
        addresses if addresses.starts_with("fetch ") => crate::network::fetch(&addresses["fetch ".len()..]),
        "calls" => {
            for (name, number, [first, second]) in CALLS {
                // SAFETY: the arguments are null or invalid for every call that would follow a pointer.
                let result = unsafe { libc::syscall(*number, *first, *second, 0, 0, 0, 0) };
                let errno = if result < 0 { io::Error::last_os_error().raw_os_error() } else { None };
                println!("{name}: {}", errno.map_or("allowed", word));
            }
        }
        "descriptors" => {
            let mut open: Vec<String> = (0..1024)
                .filter_map(|fd| {
                    Some(format!("{fd} {}", fs::read_link(format!("/proc/self/fd/{fd}")).ok()?.display()))
                })
                .collect();
            open.sort();
            println!(
                "{}",
                open.iter()
                    .map(|line| line.split(['[', ' ']).next().unwrap_or(""))
                    .collect::<Vec<_>>()
                    .join(" ")
            );
        }
        "exe" => {
            // SAFETY: the structure is filled by the call, and zero is valid for it.
            let mut found: libc::statvfs = unsafe { std::mem::zeroed() };
            // SAFETY: a C string and a live structure.
            let result = unsafe { libc::statvfs(c"/proc/self/exe".as_ptr(), &raw mut found) };
            println!(
                "{}",
                if result == 0 && found.f_flag & libc::ST_RDONLY != 0 { "read-only" } else { "writable" }
            );
        }
        "memory" => {
            let mut blocks = Vec::new();
            for _ in 0..256 {
                blocks.push(std::hint::black_box(vec![1_u8; 1 << 20]));
            }
            println!("{}", blocks.len());
        }
        "hold" => {
            std::hint::black_box(vec![1_u8; 40 << 20]);
            let block = std::hint::black_box(vec![1_u8; 40 << 20]);
            std::thread::sleep(std::time::Duration::from_secs(60));
            drop(block);
        }
        "escapes" => crate::ways_out::run(),
        "every-call" => every_call(),
        "copies" => copies(),
        "abstract-socket" => {
            use std::os::linux::net::SocketAddrExt as _;
            use std::os::unix::net::{SocketAddr, UnixStream};
            let address = SocketAddr::from_abstract_name("stave-escape-test").expect("an address");
            println!("{}", if UnixStream::connect_addr(&address).is_ok() { "connected" } else { "refused" });
        }
        other => {
            eprintln!("unknown probe {other}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

/// Copies a tiny file and a large one as programs do, to their ends, each time as if there were no end.
fn copies() {
    use rustix::fs::{copy_file_range, sendfile};
    fs::write("/tiny", "abc").expect("a file");
    fs::File::create("/large").and_then(|file| file.set_len(3 << 20)).expect("a file");
    let mut copied = Vec::new();
    for name in ["/tiny", "/large"] {
        let open = || (fs::File::open(name).expect("a source"), fs::File::create("/copy").expect("a file"));
        let (source, copy) = open();
        while let Ok(more @ 1..) = copy_file_range(&source, None, &copy, None, i64::MAX as usize) {
            copied.push(more);
        }
        let (source, copy) = open();
        while let Ok(more @ 1..) = sendfile(&copy, &source, None, i64::MAX as usize) {
            copied.push(more);
        }
    }
    println!("{copied:?}");
}

fn word(errno: i32) -> &'static str {
    match errno {
        libc::EPERM => "refused",
        libc::ENOSYS => "missing",
        _ => "allowed",
    }
}

/// The last number tried: what comes after it is younger than any profile.
const LAST_CALL: libc::c_long = 470;
/// `sync`, which takes as long as the machine's disks do.
const SLOW_CALL: libc::c_long = libc::SYS_sync;

/// Makes every call with arguments that mean nothing, each in a process of its own, and prints what came of it.
fn every_call() {
    for number in (0..=LAST_CALL).filter(|number| *number != SLOW_CALL) {
        // SAFETY: this program has one thread.
        let child = unsafe { libc::fork() };
        if child == 0 {
            attempt(number);
        }
        let mut status = 0;
        // SAFETY: fills a live integer.
        unsafe { libc::waitpid(child, &raw mut status, 0) };
        let word = match libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status)) {
            Some(code) if code == libc::EPERM || code == libc::ENOSYS => word(code),
            // Killed, or gone by its own call: it was let through.
            _ => "allowed",
        };
        println!("{number} {word}");
    }
}

/// Makes one call and ends with its error number.
fn attempt(number: libc::c_long) -> ! {
    let soon = libc::itimerval {
        it_interval: libc::timeval { tv_sec: 0, tv_usec: 0 },
        it_value: libc::timeval { tv_sec: 0, tv_usec: 50_000 },
    };
    // SAFETY: the structure lives; every argument of the call is an invalid pointer, descriptor or number.
    unsafe {
        libc::setitimer(libc::ITIMER_REAL, &raw const soon, std::ptr::null_mut());
        let result = libc::syscall(number, -1_isize, -1_isize, -1_isize, -1_isize, -1_isize, -1_isize);
        let code = if result < 0 { io::Error::last_os_error().raw_os_error().unwrap_or(0) } else { 0 };
        libc::_exit(code);
    }
}
