//! How sandboxes end: by themselves, by signals, with their owner, with the launcher.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::process::{Command, ExitCode, Stdio};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use stave_sandbox::{CgroupLimits, ExitStatus, TerminalSize, WaitError};

use crate::Test;
use crate::fixture::{Place, read, run, start};

pub(crate) const TESTS: &[Test] = &[
    ("life::exit_codes", exit_codes),
    ("life::signals_reach_the_process", signals_reach_the_process),
    ("life::waiting_without_blocking", waiting_without_blocking),
    ("life::kill_takes_everything", kill_takes_everything),
    ("life::dropping_takes_everything", dropping_takes_everything),
    ("life::the_end_of_the_caller_takes_everything", the_end_of_the_caller_takes_everything),
    ("life::the_end_of_the_launcher_takes_everything", the_end_of_the_launcher_takes_everything),
    (
        "life::a_program_whose_file_is_gone_still_starts_sandboxes",
        a_program_whose_file_is_gone_still_starts_sandboxes,
    ),
    ("life::many_at_once", many_at_once),
    ("life::terminal", terminal),
    ("life::usage_is_counted", usage_is_counted),
    ("life::memory_limit", memory_limit),
];

/// How long the kernel may take to end a process that was killed.
const PATIENCE: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };

fn exit_codes() {
    let place = Place::new();
    assert_eq!(run(&place.script("exit 0")).exit.status, ExitStatus::Exited(0));
    assert_eq!(run(&place.script("exit 3")).exit.status, ExitStatus::Exited(3));
    assert_eq!(
        run(&place.script("(busybox kill -9 $(busybox sh -c 'echo $PPID')); exit 255")).exit.status.code(),
        255
    );
}

fn signals_reach_the_process() {
    let place = Place::new();
    let (mut sandbox, mut stdout, _stderr) =
        start(&place.script("trap 'exit 7' TERM; echo ready; while :; do busybox sleep 0.01; done"))
            .expect("a sandbox");
    let mut ready = [0; 6];
    stdout.read_exact(&mut ready).expect("a line");
    sandbox.signal(libc::SIGTERM).expect("a signal");
    assert_eq!(sandbox.wait().expect("an end").status, ExitStatus::Exited(7));
    sandbox.signal(libc::SIGTERM).expect("no error after the end");
    assert!(sandbox.signal(4711).is_err() || sandbox.try_wait().expect("an end").is_some());
}

fn waiting_without_blocking() {
    let place = Place::new();
    let (mut sandbox, _stdout, _stderr) = start(&place.script("busybox sleep 1000")).expect("a sandbox");
    assert_eq!(sandbox.try_wait().expect("an answer"), None);
    sandbox.kill().expect("a signal");
    assert_eq!(poll(&mut [PollFd::new(&sandbox, PollFlags::IN)], Some(&PATIENCE)), Ok(1));
    let exit = sandbox.try_wait().expect("an answer").expect("an end");
    assert_eq!((exit.status, exit.status.code()), (ExitStatus::Signaled(9), 137));
}

/// A handle of the one process on this machine whose arguments hold `marker`.
#[track_caller]
pub(crate) fn find(marker: &str) -> OwnedFd {
    // A shell says that it is ready just before it becomes the process that is looked for.
    let begin = std::time::Instant::now();
    let mut found = processes(marker);
    while found.is_empty() && begin.elapsed().as_secs() < 20 {
        std::thread::yield_now();
        found = processes(marker);
    }
    assert_eq!(found.len(), 1, "{found:?}");
    pidfd_open(found[0], PidfdFlags::empty()).expect("a handle")
}

fn processes(marker: &str) -> Vec<Pid> {
    let found = fs::read_dir("/proc").expect("processes").filter_map(|entry| {
        let entry = entry.ok()?;
        let pid = Pid::from_raw(entry.file_name().to_str()?.parse().ok()?)?;
        let arguments = fs::read(entry.path().join("cmdline")).ok()?;
        let named = arguments.split(|byte| *byte == 0).any(|argument| argument == marker.as_bytes());
        (named && arguments.starts_with(b"busybox\0sleep")).then_some(pid)
    });
    found.collect()
}

#[track_caller]
pub(crate) fn assert_ends(process: &OwnedFd) {
    assert_eq!(
        poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&PATIENCE)),
        Ok(1),
        "the process lives on"
    );
}

/// A script whose background process ignores signals and has `marker` among its arguments.
fn stubborn(marker: &str) -> String {
    format!(
        "trap '' TERM INT HUP; busybox setsid busybox sleep {marker} & busybox sleep 0.1; echo ready; wait"
    )
}

fn kill_takes_everything() {
    let place = Place::new();
    let (mut sandbox, mut stdout, _stderr) = start(&place.script(&stubborn("7000001"))).expect("a sandbox");
    stdout.read_exact(&mut [0; 6]).expect("a line");
    let process = find("7000001");
    sandbox.kill().expect("a signal");
    assert_eq!(sandbox.wait().expect("an end").status, ExitStatus::Signaled(9));
    assert_ends(&process);
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mounts");
    assert!(!mounts.contains(&place.path("").display().to_string()), "{mounts}");
}

fn dropping_takes_everything() {
    let place = Place::new();
    let (sandbox, mut stdout, _stderr) = start(&place.script(&stubborn("7000002"))).expect("a sandbox");
    stdout.read_exact(&mut [0; 6]).expect("a line");
    let process = find("7000002");
    drop(sandbox);
    assert_ends(&process);
}

/// The program as a caller: starts a sandbox, says so, and waits to be killed.
pub(crate) fn be_a_caller(marker: &str) -> ExitCode {
    stave_sandbox::enter_private_mounts().expect("private mounts");
    let place = Place::new();
    let (mut sandbox, mut stdout, _stderr) = start(&place.script(&stubborn(marker))).expect("a sandbox");
    stdout.read_exact(&mut [0; 6]).expect("a line");
    println!("{}", place.path("").display());
    std::io::stdout().flush().expect("a reader");
    let _end = sandbox.wait();
    ExitCode::FAILURE
}

fn the_end_of_the_caller_takes_everything() {
    let program = std::env::current_exe().expect("this program");
    let mut caller =
        Command::new(program).args(["caller", "7000003"]).stdout(Stdio::piped()).spawn().expect("a caller");
    let mut place = String::new();
    let mut stdout = std::io::BufReader::new(caller.stdout.take().expect("its output"));
    std::io::BufRead::read_line(&mut stdout, &mut place).expect("a line");
    let process = find("7000003");
    caller.kill().expect("a signal");
    caller.wait().expect("an end");
    assert_ends(&process);
    fs::remove_dir_all(place.trim()).expect("nothing is mounted there any more");
}

fn the_end_of_the_launcher_takes_everything() {
    let place = Place::new();
    let launcher = stave_sandbox::Launcher::new();
    let stdio = || {
        let (output, inside) = std::io::pipe().expect("a pipe");
        let null = || OwnedFd::from(fs::File::open("/dev/null").expect("/dev/null"));
        (output, stave_sandbox::Stdio { stdin: null(), stdout: inside.into(), stderr: null() })
    };
    let (mut output, streams) = stdio();
    let known = launchers();
    let mut sandbox = launcher.spawn(&place.script(&stubborn("7000004")), streams).expect("a sandbox");
    output.read_exact(&mut [0; 6]).expect("a line");
    let process = find("7000004");
    let new: Vec<Pid> = launchers().into_iter().filter(|pid| !known.contains(pid)).collect();
    // Tests beside this one may start theirs at the same moment: its own is an ancestor of the process found.
    let own = new
        .into_iter()
        .find(|pid| children(*pid).iter().any(|child| !children(*child).is_empty()))
        .expect("it");
    let handle = pidfd_open(own, PidfdFlags::empty()).expect("a handle");
    kill_process(own, Signal::KILL).expect("a signal");
    assert_ends(&process);
    assert_ends(&handle);
    assert!(matches!(sandbox.wait(), Err(WaitError::LauncherGone)));
    drop(sandbox);
    fs::remove_dir_all(place.path("work"))
        .and_then(|()| fs::create_dir(place.path("work")))
        .expect("a clean work");
    let (output, streams) = stdio();
    let mut next = launcher.spawn(&place.script("echo again"), streams).expect("a sandbox of a new launcher");
    assert_eq!(read(OwnedFd::from(output).into()), "again\n");
    assert!(next.wait().expect("an end").status.success());
}

/// The program as a caller that an upgrade has removed: the launcher can only be a copy of what runs.
pub(crate) fn be_a_deleted_caller(word: &str) -> ExitCode {
    fs::remove_file(std::env::current_exe().expect("this program")).expect("its file");
    stave_sandbox::enter_private_mounts().expect("private mounts");
    print!("{}", Place::new().output(&format!("echo {word}")));
    ExitCode::SUCCESS
}

fn a_program_whose_file_is_gone_still_starts_sandboxes() {
    let place = Place::new();
    let copy = place.path("copy");
    fs::copy(std::env::current_exe().expect("this program"), &copy).expect("a copy");
    let output = Command::new(&copy).args(["deleted", "works"]).output().expect("a caller");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "works\n", "{output:?}");
    assert!(!copy.exists());
}

/// Launchers this process started.
fn launchers() -> Vec<Pid> {
    let tasks = fs::read_dir("/proc/self/task").expect("threads");
    tasks.flat_map(|task| listed(&task.expect("a thread").path().join("children"))).collect()
}

fn children(pid: Pid) -> Vec<Pid> {
    let pid = pid.as_raw_nonzero();
    listed(format!("/proc/{pid}/task/{pid}/children").as_ref())
}

fn listed(file: &std::path::Path) -> Vec<Pid> {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.split_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)).collect()
}

fn many_at_once() {
    std::thread::scope(|scope| {
        for thread in 0..8 {
            scope.spawn(move || {
                let place = Place::new();
                for round in 0..4 {
                    let word = format!("{thread}-{round}");
                    assert_eq!(place.output(&format!("echo {word}")), format!("{word}\n"));
                }
            });
        }
    });
}

fn terminal() {
    let place = Place::new();
    let mut spec = place.script(
        "[ -t 0 ] && [ -t 1 ] && [ -t 2 ] && busybox tty && busybox stty size && echo > /dev/tty && [ -c /dev/console ] \
         && read answer && busybox stty size && echo \"got $answer\"",
    );
    spec.process.terminal = Some(TerminalSize { rows: 33, columns: 77 });
    let (mut sandbox, _stdout, _stderr) = start(&spec).expect("a sandbox");
    let mut terminal =
        fs::File::from(sandbox.terminal().expect("a terminal").try_clone_to_owned().expect("a copy"));
    let mut shown = Vec::new();
    let mut buffer = [0; 256];
    while !String::from_utf8_lossy(&shown).contains("33 77\r\n\r\n") {
        let length = terminal
            .read(&mut buffer)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&shown)));
        shown.extend_from_slice(&buffer[..length]);
    }
    sandbox.resize(TerminalSize { rows: 12, columns: 34 }).expect("a new size");
    terminal.write_all(b"yes\n").expect("input");
    // Reading fails once the last process has let go of the terminal.
    while let Ok(length @ 1..) = terminal.read(&mut buffer) {
        shown.extend_from_slice(&buffer[..length]);
    }
    assert_eq!(String::from_utf8_lossy(&shown), "/dev/pts/0\r\n33 77\r\n\r\nyes\r\n12 34\r\ngot yes\r\n");
    assert!(sandbox.wait().expect("an end").status.success());
}

fn usage_is_counted() {
    let place = Place::new();
    let usage = run(&place.script("i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done")).exit.usage;
    assert!(usage.user_time + usage.system_time > std::time::Duration::from_millis(5), "{usage:?}");
    assert!(usage.max_rss > 100 << 10, "{usage:?}");
}

fn memory_limit() {
    let place = Place::new();
    let mut spec = place.probe("memory");
    spec.cgroup = Some(CgroupLimits { memory: Some(64 << 20), pids: Some(100), ..CgroupLimits::default() });
    let (mut sandbox, _stdout, _stderr) = start(&spec).expect("a sandbox");
    let exit = sandbox.wait().expect("an end");
    let cgroup = sandbox.cgroup().expect("a group");
    if !cgroup.unlimited().is_empty() {
        eprintln!("not checked: {:?}", cgroup.unlimited());
        return;
    }
    assert_eq!(exit.status, ExitStatus::Signaled(9));
    let usage = cgroup.usage();
    assert!(usage.oom_killed && usage.peak_memory.is_some_and(|peak| peak > 32 << 20), "{usage:?}");
    let group = format!("stave-{}-", std::process::id());
    drop(sandbox);
    let left =
        Command::new("find").args(["/sys/fs/cgroup", "-name", &format!("{group}*")]).output().expect("find");
    assert_eq!(String::from_utf8_lossy(&left.stdout), "");
}
