//! Runs a command in sandboxes again and again and prints how long it takes, and what is left afterwards:
//! `spawn ROOTFS COUNT COMMAND…`.
//!
//! Variables: `STAVE_SPAWN_AT_ONCE` runs that many at a time, `STAVE_SPAWN_HOST` uses the host's network, `STAVE_SPAWN_BRIDGE` a bridge,
//! `STAVE_SPAWN_LIMIT` a control group, `STAVE_SPAWN_SYNC` an overlay that is not volatile, `STAVE_SPAWN_UID` and
//! `STAVE_SPAWN_GID` another user; `STAVE_SPAWN_SCRATCH` is the directory for layers.

use std::fs;
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use stave_sandbox::{CgroupLimits, Launcher, Network, OverlayRoot, Process, RootFs, SandboxSpec, Stdio};

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn main() -> Result<(), Failure> {
    stave_sandbox::launcher_entry();
    let tier = stave_sandbox::enter()?;
    let mut arguments = std::env::args().skip(1);
    let (Some(rootfs), Some(count)) = (arguments.next(), arguments.next()) else {
        return Err("usage: spawn ROOTFS COUNT COMMAND…".into());
    };
    let (count, args): (u32, Vec<String>) = (count.parse()?, arguments.collect());
    let scratch =
        PathBuf::from(std::env::var("STAVE_SPAWN_SCRATCH").unwrap_or("/var/tmp/stave-spawn".into()));
    let at_once: u32 = variable("STAVE_SPAWN_AT_ONCE").unwrap_or(1).max(1);
    let started = Instant::now();
    let launcher = Launcher::start()?;
    println!("tier: {}", tier.name());
    println!("launcher: {:?}", started.elapsed());
    if std::env::var_os("STAVE_SPAWN_BRIDGE").is_some() {
        let started = Instant::now();
        let bridge = launcher.bridge()?;
        println!("bridge: {:?}", started.elapsed());
        drop(bridge.take()?);
        println!("first namespace: {:?}", started.elapsed());
    }
    // The first makes what all share.
    let first = start(&launcher, &layer(&rootfs, &scratch, &args, 0)?)?;
    print!("{}", first.output);
    let before = held();
    let (next, times) = (AtomicU32::new(1), Mutex::new((Vec::new(), Vec::new())));
    let begun = Instant::now();
    let work = || -> Result<(), Failure> {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number > count {
                return Ok(());
            }
            let one = start(&launcher, &layer(&rootfs, &scratch, &args, number)?)?;
            let mut times = times.lock().map_err(|_| "a thread panicked")?;
            times.0.push(one.start);
            times.1.push(one.total);
        }
    };
    std::thread::scope(|scope| -> Result<(), Failure> {
        let workers: Vec<_> = (0..at_once).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().map_err(|_| "a thread panicked")?)
    })?;
    let elapsed = begun.elapsed();
    let after = held();
    fs::remove_dir_all(&scratch)?;
    let (mut starts, mut totals) = times.into_inner().map_err(|_| "a thread panicked")?;
    report("start", &mut starts);
    report("total", &mut totals);
    println!("rate: {:.1}/s", f64::from(count) / elapsed.as_secs_f64());
    for ((name, before), (_, after)) in before.into_iter().zip(after) {
        println!("left {name}: {}", i64::try_from(after)? - i64::try_from(before)?);
    }
    Ok(())
}

fn variable(name: &str) -> Option<u32> {
    std::env::var(name).ok().and_then(|value| value.parse().ok())
}

/// One sandbox, from the call to its end.
struct Ended {
    output: String,
    start: Duration,
    total: Duration,
}

fn layer(rootfs: &str, scratch: &Path, args: &[String], number: u32) -> Result<SandboxSpec, Failure> {
    let layer = scratch.join(number.to_string());
    let (upper, work) = (layer.join("upper"), layer.join("work"));
    fs::create_dir_all(&upper)?;
    fs::create_dir_all(&work)?;
    let root = OverlayRoot {
        lower: vec![rootfs.into()],
        upper,
        work,
        volatile: std::env::var_os("STAVE_SPAWN_SYNC").is_none(),
        stubs: Some(scratch.join("stubs")),
    };
    let mut spec = SandboxSpec::new(RootFs::Overlay(root), Process::new(args.to_vec()));
    (spec.process.uid, spec.process.gid) =
        (variable("STAVE_SPAWN_UID").unwrap_or(0), variable("STAVE_SPAWN_GID").unwrap_or(0));
    let asked = |name: &str| std::env::var_os(name).is_some();
    spec.network = match (asked("STAVE_SPAWN_HOST"), asked("STAVE_SPAWN_BRIDGE")) {
        (true, _) => Network::Host,
        (false, true) => Network::Bridge,
        (false, false) => Network::None,
    };
    if std::env::var_os("STAVE_SPAWN_LIMIT").is_some() {
        spec.cgroup =
            Some(CgroupLimits { memory: Some(1 << 30), pids: Some(1000), ..CgroupLimits::default() });
    }
    Ok(spec)
}

fn start(launcher: &Launcher, spec: &SandboxSpec) -> Result<Ended, Failure> {
    let (mut reader, writer) = std::io::pipe()?;
    let null = OwnedFd::from(fs::File::open("/dev/null")?);
    let stdio = Stdio { stdin: null, stdout: writer.try_clone()?.into(), stderr: writer.into() };
    let begin = Instant::now();
    let mut sandbox = launcher.spawn(spec, stdio)?;
    let start = begin.elapsed();
    let mut output = String::new();
    reader.read_to_string(&mut output)?;
    let exit = sandbox.wait()?;
    let total = begin.elapsed();
    if !exit.status.success() {
        return Err(format!("{exit:?}\n{output}").into());
    }
    Ok(Ended { output, start, total })
}

/// What sandboxes could leave behind: mounts and descriptors of this process, namespaces that processes of this machine
/// are in, control groups of this process, processes below it.
fn held() -> [(&'static str, usize); 5] {
    let lines = |path: &str| fs::read_to_string(path).unwrap_or_default().lines().count();
    let entries = |path: &str| fs::read_dir(path).map_or(0, Iterator::count);
    let below = descendants(std::process::id());
    let mut namespaces = std::collections::BTreeSet::new();
    for process in below.iter().chain([&std::process::id()]) {
        let all = fs::read_dir(format!("/proc/{process}/ns")).into_iter().flatten().flatten();
        namespaces.extend(all.filter_map(|one| fs::read_link(one.path()).ok()));
    }
    [
        ("mounts", lines("/proc/self/mountinfo")),
        ("descriptors", entries("/proc/self/fd")),
        ("namespaces", namespaces.len()),
        ("control groups", groups(Path::new("/sys/fs/cgroup"))),
        ("processes", below.len()),
    ]
}

fn descendants(process: u32) -> Vec<u32> {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    let children = tasks.flat_map(|task| {
        let text = fs::read_to_string(task.path().join("children")).unwrap_or_default();
        text.split_whitespace().filter_map(|number| number.parse().ok()).collect::<Vec<u32>>()
    });
    children.flat_map(|child| [vec![child], descendants(child)].concat()).collect()
}

/// Groups that name this process.
fn groups(below: &Path) -> usize {
    let own = format!("stave-{}-", std::process::id());
    let directories = fs::read_dir(below).into_iter().flatten().flatten();
    let directories = directories.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    directories
        .map(|entry| {
            usize::from(entry.file_name().to_string_lossy().starts_with(&own)) + groups(&entry.path())
        })
        .sum()
}

fn report(name: &str, times: &mut [Duration]) {
    times.sort();
    if let (Some(least), Some(most)) = (times.first(), times.last()) {
        println!("{name}: min {least:?} median {:?} max {most:?}", times[times.len() / 2]);
    }
}
