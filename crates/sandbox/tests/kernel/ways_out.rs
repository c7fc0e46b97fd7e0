//! Known ways out of a container that take a program: each is tried inside a sandbox, whatever kind of sandbox it is.
//!
//! Every attempt aims at something that is there: another's process where one is in sight, a file that exists. What a
//! kind of sandbox cannot refuse is told as done, and its test names it.

use std::ffi::CString;
use std::fs;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};

use stave_sandbox::SandboxSpec;

/// The variable with the name of a socket outside.
const SOCKET: &str = "ESCAPE_SOCKET";

/// Files whose writing changes the machine.
const MACHINE: [&str; 7] = [
    "/proc/sys/kernel/core_pattern",
    "/proc/sys/kernel/modprobe",
    "/proc/sys/fs/binfmt_misc/register",
    "/proc/sysrq-trigger",
    "/sys/kernel/uevent_helper",
    "/sys/kernel/mm/transparent_hugepage/enabled",
    "/sys/power/state",
];

/// What is mounted by who wants to see more: kind and options.
const MOUNTS: [(&str, &str); 6] =
    [("tmpfs", ""), ("proc", ""), ("sysfs", ""), ("cgroup", "memory"), ("cgroup2", ""), ("devtmpfs", "")];

/// A socket of the host's without a file, which the sandbox is told of.
pub(crate) fn listen(spec: &mut SandboxSpec) -> UnixListener {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let name = format!("stave-way-out-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let address = SocketAddr::from_abstract_name(&name).expect("an address");
    spec.process.env.push(format!("{SOCKET}={name}"));
    UnixListener::bind_addr(&address).expect("listens")
}

/// The lines of what succeeded.
#[track_caller]
pub(crate) fn done(printed: &str) -> Vec<&str> {
    let lines: Vec<&str> = printed.lines().collect();
    assert!(lines.len() > 50 && lines.last() == Some(&"end: refused"), "{printed}");
    lines.into_iter().filter_map(|line| line.strip_suffix(": DONE")).collect()
}

/// Tries all.
pub(crate) fn run() {
    machine();
    devices();
    mounts();
    namespaces();
    processes();
    kernel();
    files();
    tell("end", false);
}

fn tell(what: &str, done: bool) {
    println!("{what}: {}", if done { "DONE" } else { "refused" });
}

/// Makes a call; whether it succeeded.
fn call(number: libc::c_long, arguments: [usize; 5]) -> bool {
    let [a, b, c, d, e] = arguments;
    // SAFETY: every pointer among the arguments is null or one of a live value of the caller.
    unsafe { libc::syscall(number, a, b, c, d, e) >= 0 }
}

fn opens(path: &str, write: bool) -> bool {
    fs::OpenOptions::new().read(!write).write(write).open(path).is_ok()
}

fn text(text: &str) -> CString {
    CString::new(text).expect("no NUL")
}

fn machine() {
    for path in MACHINE {
        tell(&format!("write {path}"), opens(path, true));
    }
    for path in ["/proc/kcore", "/proc/keys", "/proc/timer_list"] {
        use std::io::Read as _;
        let mut byte = [0; 1];
        let read = fs::File::open(path).and_then(|mut file| file.read(&mut byte));
        tell(&format!("read {path}"), read.is_ok_and(|length| length > 0));
    }
    for (controller, file) in [
        ("memory", "release_agent"),
        ("devices", "devices.allow"),
        ("", "cgroup.procs"),
        ("", "release_agent"),
    ] {
        tell(
            &format!("write {file} of {controller:?}"),
            opens(&format!("/sys/fs/cgroup/{controller}/{file}"), true),
        );
    }
    tell("overwrite the program of this process", opens("/proc/self/exe", true));
    tell("overwrite the first process's program", opens("/proc/1/exe", true));
    tell("another's memory", std::process::id() != 1 && opens("/proc/1/mem", true));
}

fn devices() {
    let nodes = [
        ("memory", libc::S_IFCHR, 1, 1),
        ("kernel log", libc::S_IFCHR, 1, 11),
        ("disk", libc::S_IFBLK, 254, 0),
    ];
    for (name, kind, major, minor) in nodes {
        let path = format!("/node-{minor}-{major}");
        // SAFETY: a C string that lives.
        let made =
            unsafe { libc::mknod(text(&path).as_ptr(), kind | 0o600, libc::makedev(major, minor)) } == 0;
        tell(&format!("use a node of the {name}"), made && opens(&path, false));
        let _none = fs::remove_file(&path);
    }
}

fn mounts() {
    fs::create_dir_all("/way").expect("a directory");
    let at = text("/way");
    for (kind, options) in MOUNTS {
        let (kind, options) = (text(kind), text(options));
        let [source, options] = [&kind, &options].map(|text| text.as_ptr() as usize);
        let done = call(libc::SYS_mount, [source, at.as_ptr() as usize, source, 0, options]);
        tell(&format!("mount {kind:?}"), done);
    }
    let flags = [("bind", libc::MS_BIND), ("share", libc::MS_SHARED | libc::MS_REC)];
    for (name, flags) in flags {
        let root = text("/");
        let done =
            call(libc::SYS_mount, [root.as_ptr() as usize, at.as_ptr() as usize, 0, flags as usize, 0]);
        tell(&format!("{name} a mount"), done);
    }
    for path in ["/proc", "/proc/sys", "/sys", "/"] {
        let (place, flags) = (text(path), libc::MS_REMOUNT | libc::MS_BIND);
        let done = call(libc::SYS_mount, [0, place.as_ptr() as usize, 0, flags as usize, 0]);
        tell(&format!("mount {path} anew, writable"), done);
        tell(
            &format!("unmount {path}"),
            call(libc::SYS_umount2, [place.as_ptr() as usize, libc::MNT_DETACH as usize, 0, 0, 0]),
        );
    }
    tell(
        "a tree of mounts",
        call(libc::SYS_open_tree, [libc::AT_FDCWD as usize, text("/").as_ptr() as usize, 1, 0, 0]),
    );
    tell("a new kind of mount", call(libc::SYS_fsopen, [text("proc").as_ptr() as usize, 0, 0, 0, 0]));
    tell("another root", call(libc::SYS_pivot_root, [at.as_ptr() as usize, at.as_ptr() as usize, 0, 0, 0]));
}

fn namespaces() {
    let kinds = [
        ("user", libc::CLONE_NEWUSER),
        ("mount", libc::CLONE_NEWNS),
        ("network", libc::CLONE_NEWNET),
        ("pid", libc::CLONE_NEWPID),
        ("cgroup", libc::CLONE_NEWCGROUP),
    ];
    for (name, kind) in kinds {
        tell(&format!("a {name} namespace"), call(libc::SYS_unshare, [kind as usize, 0, 0, 0, 0]));
        // SAFETY: without a stack of its own the child goes on with a copy of this one, and ends at once.
        let child = unsafe { libc::syscall(libc::SYS_clone, kind | libc::SIGCHLD, 0, 0, 0, 0) };
        if child == 0 {
            // SAFETY: ends this process.
            unsafe { libc::_exit(0) }
        }
        tell(&format!("a process in a {name} namespace"), child > 0);
        for whose in ["self", "1"] {
            let entered =
                fs::File::open(format!("/proc/{whose}/ns/{}", if name == "mount" { "mnt" } else { name }))
                    .is_ok_and(|file| call(libc::SYS_setns, [file.as_raw_fd() as usize, 0, 0, 0, 0]));
            tell(&format!("enter the {name} namespace of {whose}"), entered);
        }
    }
    tell("clone3", call(libc::SYS_clone3, [0, 0, 0, 0, 0]));
}

/// The processes in sight that are not this one: its parent, and the first.
fn processes() {
    // SAFETY: asks for a number.
    let (own, parent) = unsafe { (libc::getpid(), libc::getppid()) };
    for (name, process) in [("the parent", parent), ("the first process", 1)] {
        if process == own || process == 0 {
            // Out of sight: it has no number here.
            tell(&format!("see {name}"), false);
            continue;
        }
        let process = process as usize;
        tell(
            &format!("trace {name}"),
            call(libc::SYS_ptrace, [libc::PTRACE_SEIZE as usize, process, 0, 0, 0]),
        );
        let mut byte = 0_u8;
        let here = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
        let there = libc::iovec { iov_base: SOCKET.as_ptr().cast_mut().cast(), iov_len: 1 };
        // SAFETY: one live byte is written to, if anything.
        let read =
            unsafe { libc::process_vm_readv(process as i32, &raw const here, 1, &raw const there, 1, 0) };
        let reached = read >= 0 || std::io::Error::last_os_error().raw_os_error() == Some(libc::EFAULT);
        tell(&format!("read the memory of {name}"), reached);
        tell(&format!("compare with {name}"), call(libc::SYS_kcmp, [own as usize, process, 0, 0, 0]));
        // SAFETY: the descriptor is new.
        let handle = unsafe { libc::syscall(libc::SYS_pidfd_open, process, 0) };
        let taken = handle >= 0 && {
            // SAFETY: nobody else has it.
            let handle = unsafe { OwnedFd::from_raw_fd(handle as i32) };
            call(libc::SYS_pidfd_getfd, [handle.as_raw_fd() as usize, 0, 0, 0, 0])
        };
        tell(&format!("take a descriptor of {name}"), taken);
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        let limits = &raw mut limit as usize;
        let resource = libc::RLIMIT_CORE as usize;
        tell(&format!("limits of {name}"), call(libc::SYS_prlimit64, [process, resource, 0, limits, 0]));
        tell(&format!("signals to {name}"), call(libc::SYS_kill, [process, 0, 0, 0, 0]));
    }
    let name = std::env::var(SOCKET).expect("the name of a socket");
    let address = SocketAddr::from_abstract_name(name).expect("an address");
    tell("an abstract socket of the host", UnixStream::connect_addr(&address).is_ok());
}

fn kernel() {
    let name = text("way");
    let name = name.as_ptr() as usize;
    tell("join the session keyring", call(libc::SYS_keyctl, [0, usize::MAX - 3, 0, 0, 0]));
    tell(
        "add a key",
        call(libc::SYS_add_key, [text("user").as_ptr() as usize, name, name, 1, usize::MAX - 3]),
    );
    let mut parameters = [0_u8; 256];
    let parameters = parameters.as_mut_ptr() as usize;
    tell("a ring of system calls", call(libc::SYS_io_uring_setup, [4, parameters, 0, 0, 0]));
    tell("a program for the kernel", call(libc::SYS_bpf, [0, parameters, 64, 0, 0]));
    tell("an event counter", call(libc::SYS_perf_event_open, [parameters, 0, usize::MAX, usize::MAX, 0]));
    tell("faults handled here", call(libc::SYS_userfaultfd, [0, 0, 0, 0, 0]));
    tell("a module", call(libc::SYS_finit_module, [0, name, 0, 0, 0]));
    tell("the ports of devices", call(libc::SYS_iopl, [3, 0, 0, 0, 0]));
    tell("the host's name", call(libc::SYS_sethostname, [name, 3, 0, 0, 0]));
    tell("the kernel's log", call(libc::SYS_syslog, [3, parameters, 256, 0, 0]));
    tell("swap", call(libc::SYS_swapon, [name, 0, 0, 0, 0]));
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the structure is live and of the type the call fills.
    let read = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } == 0;
    limit.rlim_max = limit.rlim_max.saturating_add(1_000_000);
    // SAFETY: the structure is live; the call only reads it.
    let raised = read && unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } == 0;
    tell("raise a hard limit", raised && limit.rlim_max != libc::RLIM_INFINITY);
    // Version 3 of the header, and every capability there is.
    let header = [0x2008_0522_u32, 0];
    let all = [u32::MAX; 6];
    tell(
        "every capability",
        call(libc::SYS_capset, [header.as_ptr() as usize, all.as_ptr() as usize, 0, 0, 0]),
    );
}

fn files() {
    // CVE-2019-5736 and CVE-2024-21626: descriptors or a working directory that lead outside.
    // SAFETY: asks whether a number is that of an open descriptor.
    let leaked = (3..1024).filter(|fd| unsafe { libc::fcntl(*fd, libc::F_GETFD) } >= 0).count();
    tell("a descriptor that was left open", leaked > 0);
    tell("a working directory outside", std::env::current_dir().is_ok_and(|cwd| !cwd.starts_with("/")));
    let mut handle = [0_u32; 32];
    (handle[0], handle[2]) = (8, 2);
    let (root, handle) = (libc::AT_FDCWD as usize, handle.as_mut_ptr() as usize);
    tell("open a file by its handle (shocker)", call(libc::SYS_open_by_handle_at, [root, handle, 0, 0, 0]));
    // A root below that is left by a directory that was opened above it.
    let above = fs::File::open("/").expect("the root");
    let deeper = text("/way");
    // That a sandbox's root may change it further is docker's default, and no way out by itself.
    let _changed = call(libc::SYS_chroot, [deeper.as_ptr() as usize, 0, 0, 0, 0]);
    // SAFETY: a live descriptor.
    let _went = unsafe { libc::fchdir(above.as_raw_fd()) };
    let up = "../".repeat(20);
    tell("a root above a root", fs::metadata(format!("{up}var/lib/dpkg/status")).is_ok());
    tell("the host's root through the first process", fs::metadata("/proc/1/root/var/lib/dpkg").is_ok());
}
