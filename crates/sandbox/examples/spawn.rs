//! Runs a command in sandboxes again and again and prints how long it takes: `spawn ROOTFS COUNT COMMAND…`.
//!
//! Variables: `STAVE_SPAWN_HOST` uses the host's network, `STAVE_SPAWN_LIMIT` a control group,
//! `STAVE_SPAWN_SYNC` an overlay that is not volatile, `STAVE_SPAWN_UID` and `STAVE_SPAWN_GID` another user; `STAVE_SPAWN_SCRATCH` is the directory for layers.

use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use stave_sandbox::{CgroupLimits, Launcher, Network, OverlayRoot, Process, RootFs, SandboxSpec, Stdio};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    stave_sandbox::launcher_entry();
    let tier = stave_sandbox::enter()?;
    let mut arguments = std::env::args().skip(1);
    let (Some(rootfs), Some(count)) = (arguments.next(), arguments.next()) else {
        return Err("usage: spawn ROOTFS COUNT COMMAND…".into());
    };
    let (count, args): (u32, Vec<String>) = (count.parse()?, arguments.collect());
    let scratch =
        PathBuf::from(std::env::var("STAVE_SPAWN_SCRATCH").unwrap_or("/var/tmp/stave-spawn".into()));
    let started = Instant::now();
    let launcher = Launcher::start()?;
    println!("tier: {}", tier.name());
    println!("launcher: {:?}", started.elapsed());
    let (mut starts, mut totals) = (Vec::new(), Vec::new());
    for round in 0..count {
        let layer = scratch.join(round.to_string());
        let (upper, work) = (layer.join("upper"), layer.join("work"));
        std::fs::create_dir_all(&upper)?;
        std::fs::create_dir_all(&work)?;
        let stubs = Some(scratch.join("stubs"));
        let root = OverlayRoot {
            lower: vec![rootfs.clone().into()],
            upper,
            work,
            volatile: std::env::var_os("STAVE_SPAWN_SYNC").is_none(),
            stubs,
        };
        let mut spec = SandboxSpec::new(RootFs::Overlay(root), Process::new(args.clone()));
        let id = |name: &str| std::env::var(name).ok().and_then(|id| id.parse().ok()).unwrap_or(0);
        (spec.process.uid, spec.process.gid) = (id("STAVE_SPAWN_UID"), id("STAVE_SPAWN_GID"));
        spec.network =
            if std::env::var_os("STAVE_SPAWN_HOST").is_some() { Network::Host } else { Network::None };
        if std::env::var_os("STAVE_SPAWN_LIMIT").is_some() {
            spec.cgroup =
                Some(CgroupLimits { memory: Some(1 << 30), pids: Some(1000), ..CgroupLimits::default() });
        }
        let (mut reader, writer) = std::io::pipe()?;
        let null = OwnedFd::from(std::fs::File::open("/dev/null")?);
        let stdio = Stdio { stdin: null, stdout: writer.try_clone()?.into(), stderr: writer.into() };
        let begin = Instant::now();
        let mut sandbox = launcher.spawn(&spec, stdio)?;
        starts.push(begin.elapsed());
        let mut output = String::new();
        reader.read_to_string(&mut output)?;
        let exit = sandbox.wait()?;
        totals.push(begin.elapsed());
        if round == 0 {
            print!("{output}");
            println!("{exit:?}");
        }
    }
    std::fs::remove_dir_all(&scratch)?;
    report("start", &mut starts);
    report("total", &mut totals);
    Ok(())
}

fn report(name: &str, times: &mut [Duration]) {
    times.sort();
    if let (Some(least), Some(most)) = (times.first(), times.last()) {
        println!("{name}: min {least:?} median {:?} max {most:?}", times[times.len() / 2]);
    }
}
