//! What a process used: its peak of memory, CPU time, whether the kernel killed it for want of memory.
//!
//! Owns the sampling while it runs and the judgement at its end. Must not know steps. Read [`of`] first.

use std::convert::Infallible;
use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use stave_sandbox::{Exit, Meter, Sandbox};

use super::ProcessUsage;
use crate::recent::Recent;

/// Time between two looks at what a process holds. The first comes after it: most steps are over by then.
const SAMPLE: Duration = Duration::from_millis(200);

/// More bytes than the kernel's counters take.
const VMSTAT_SIZE: usize = 16 << 10;

/// The exit code of a process that a shell saw killed.
const KILLED: i32 = 137;

/// Looks now and then at what the processes hold together.
pub(super) struct Sampler {
    meter: Option<Meter>,
    held: Arc<AtomicU64>,
    peak: u64,
}

impl Sampler {
    pub(super) fn new(meter: Option<Meter>, held: Arc<AtomicU64>) -> Self {
        Self { meter, held, peak: 0 }
    }

    /// Looks until dropped.
    pub(super) async fn run(&mut self) -> Infallible {
        let Some(meter) = self.meter else { return std::future::pending().await };
        loop {
            tokio::time::sleep(SAMPLE).await;
            let now = tokio::task::spawn_blocking(move || meter.memory()).await.unwrap_or(0);
            self.held.store(now, Ordering::Relaxed);
            self.peak = self.peak.max(now);
        }
    }

    /// The most seen.
    pub(super) fn peak(&self) -> u64 {
        self.peak
    }
}

/// [`machine_oom_kills`] for what is about to begin.
pub(super) fn oom_kills_before() -> Option<u64> {
    static BEFORE: Recent<Option<u64>> = Recent::new();
    BEFORE.or_ask(machine_oom_kills)
}

/// What an ended sandbox used; `kills` is [`oom_kills_before`] it began.
pub(super) fn of(sandbox: &Sandbox, exit: Exit, sampled: u64, kills: Option<u64>) -> ProcessUsage {
    let group = sandbox.cgroup().map(|group| (group.usage(), group.unlimited()));
    let (limited_memory, in_group) =
        group.map_or((None, false), |(usage, _)| (usage.peak_memory, usage.oom_killed));
    // Without a group of its own the machine's count says that somebody was killed, and the code that it was this one.
    let on_machine =
        exit.status.code() == KILLED && kills.is_some_and(|kills| machine_oom_kills() > Some(kills));
    let unlimited = group.map(|(_, unlimited)| unlimited).unwrap_or_default().iter();
    ProcessUsage {
        memory: exit.usage.max_rss.max(sampled),
        limited_memory,
        cpu_time: exit.usage.user_time + exit.usage.system_time,
        oom_killed: in_group || on_machine,
        unlimited: unlimited.map(|one| format!("{}: {}", one.controller, one.reason)).collect(),
    }
}

/// How many processes of this machine were killed for want of memory since it started.
pub(super) fn machine_oom_kills() -> Option<u64> {
    oom_kills(&counters(std::fs::File::open("/proc/vmstat").ok()?).ok()?)
}

/// The kernel's counters. It gives a page at most with each read, and gathers all anew for it: so the buffer is large.
fn counters(mut from: impl Read) -> io::Result<String> {
    let (mut text, mut length) = (vec![0; VMSTAT_SIZE], 0);
    while length < text.len() {
        match from.read(&mut text[length..])? {
            0 => break,
            more => length += more,
        }
    }
    Ok(String::from_utf8_lossy(&text[..length]).into_owned())
}

fn oom_kills(vmstat: &str) -> Option<u64> {
    vmstat.lines().find_map(|line| line.strip_prefix("oom_kill "))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_counts_its_kills() {
        assert_eq!(oom_kills("pgfault 1\noom_kill 12\n"), Some(12));
        assert_eq!(oom_kills("oom_kill_other 12\n"), None);
    }

    #[test]
    fn counters_that_come_in_pieces_are_whole() {
        let pieces = "pgfault 1\noom_".as_bytes().chain("kill 1".as_bytes()).chain("2\n".as_bytes());
        assert_eq!(oom_kills(&counters(pieces).expect("text")), Some(12));
        assert_eq!(counters(io::repeat(b'x')).expect("text").len(), VMSTAT_SIZE);
    }
}
