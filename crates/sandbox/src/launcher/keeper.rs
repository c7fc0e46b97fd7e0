//! The process above a sandbox that has no pid namespace: nothing that began inside outlives it.
//!
//! Whatever the sandbox's processes start, in whatever session, becomes a child of this one when its own parent ends
//! (it is their subreaper, prctl(2)). When the first process has ended, or the launcher has, it kills its children
//! until there are none. Must not know how sandboxes are set up. Read [`keep`] first.

use std::fs;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};

use rustix::event::{PollFd, PollFlags};
use rustix::process::{Pid, Signal, WaitOptions};

use crate::channel::{AtStep as _, Failure, Reply, reply};
use crate::error::SetupStep;
use crate::sandbox::encode_exit;
use crate::sys::{self, Cloned};

/// Starts the first process by `child` (which never returns), watches it, and ends this process with it.
pub(super) fn keep(control: OwnedFd, report: OwnedFd, child: impl FnOnce(&OwnedFd)) -> ! {
    if let Err(failure) = start(&control, report, child) {
        let _unread = reply(&control, &Reply::Failed(failure), &[]);
    }
    sys::exit_now(0)
}

fn start(control: &OwnedFd, report: OwnedFd, child: impl FnOnce(&OwnedFd)) -> Result<(), Failure> {
    let step = SetupStep::Clone;
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).at(step)?;
    let above = rustix::process::getppid().ok_or(rustix::io::Errno::SRCH).at(step)?;
    let launcher = rustix::process::pidfd_open(above, rustix::process::PidfdFlags::empty()).at(step)?;
    let first = match sys::fork().at(step)? {
        Cloned::Child => {
            drop((report, launcher));
            child(control);
            sys::exit_now(1)
        }
        Cloned::Parent(first) => first,
    };
    let _unread = reply(control, &Reply::Cloned { ahead: false }, &[first.as_fd()]);
    // SAFETY: this process neither uses nor drops any other descriptor: it ends by `_exit`, in this function.
    let _kept = unsafe { sys::close_all_but(&[report.as_raw_fd(), launcher.as_raw_fd(), first.as_raw_fd()]) };
    watch(&first, &launcher);
    let exit = sys::reap_killed(first.as_fd());
    sweep();
    if let Ok(exit) = exit {
        // Nobody reads it when the caller has dropped the sandbox: that is its right.
        let _unread = rustix::io::write(&report, &encode_exit(exit));
    }
    sys::exit_now(0)
}

/// Waits for the end of the first process; if that of the launcher comes before, it is brought about.
fn watch(first: &OwnedFd, launcher: &OwnedFd) {
    loop {
        let mut polled = [PollFd::new(first, PollFlags::IN), PollFd::new(launcher, PollFlags::IN)];
        match rustix::event::poll(&mut polled, None) {
            Err(rustix::io::Errno::INTR) => {}
            Ok(_) if polled[0].revents().is_empty() => {
                // A process that has just ended needs no killing.
                let _gone = sys::send_signal(first.as_fd(), libc::SIGKILL);
                return;
            }
            _ => return,
        }
    }
}

/// Kills and reaps children until there are none. Their numbers cannot mean anybody else: they are reaped here only.
fn sweep() {
    loop {
        for child in children() {
            let _gone = rustix::process::kill_process(child, Signal::KILL);
        }
        // Whoever a killed process leaves behind is a child by the time it is reaped.
        match rustix::process::wait(WaitOptions::empty()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => return,
        }
    }
}

/// The children of this process.
fn children() -> Vec<Pid> {
    let own = std::process::id();
    let Ok(all) = fs::read_dir("/proc") else { return Vec::new() };
    let number = |entry: std::io::Result<fs::DirEntry>| entry.ok()?.file_name().to_str()?.parse::<i32>().ok();
    let is_child = |process: &i32| {
        let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
        parent(&stat) == Some(own)
    };
    all.filter_map(number).filter(is_child).filter_map(Pid::from_raw).collect()
}

/// The parent in `/proc/PID/stat`: the second field after the name, which may hold anything.
fn parent(stat: &str) -> Option<u32> {
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parent_is_found_behind_any_name() {
        assert_eq!(parent("12 (sh) S 7 12 12 0"), Some(7));
        assert_eq!(parent("12 (a) R 9 (b) S 7 12"), Some(7));
        assert_eq!(parent("12 (sh"), None);
    }

    #[test]
    fn children_are_found() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().expect("a child");
        let number = Pid::from_child(&child);
        assert!(children().contains(&number));
        child.kill().expect("killed");
        child.wait().expect("reaped");
        assert!(!children().contains(&number));
    }
}
