//! The controllers and what is written for a limit, in the words of each version. Pure.
//!
//! Read [`Controller::settings`] first.

use serde::{Deserialize, Serialize};

use super::CgroupLimits;

/// A controller we set limits of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) enum Controller {
    Memory,
    Cpu,
    Cpuset,
    Pids,
}

impl Controller {
    pub(crate) const ALL: [Self; 4] = [Self::Memory, Self::Cpu, Self::Cpuset, Self::Pids];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Cpu => "cpu",
            Self::Cpuset => "cpuset",
            Self::Pids => "pids",
        }
    }

    /// The files to write for the limits, in order, and what; none without a limit.
    pub(crate) fn settings(self, limits: &CgroupLimits, unified: bool) -> Vec<(&'static str, String)> {
        match (self, unified) {
            (Self::Memory, true) => memory_v2(limits),
            (Self::Memory, false) => memory_v1(limits),
            (Self::Cpu, true) => cpu_v2(limits),
            (Self::Cpu, false) => cpu_v1(limits),
            (Self::Cpuset, _) => {
                let cpus = limits.cpuset_cpus.iter().map(|cpus| ("cpuset.cpus", cpus.clone()));
                cpus.chain(limits.cpuset_mems.iter().map(|mems| ("cpuset.mems", mems.clone()))).collect()
            }
            (Self::Pids, _) => limits.pids.iter().map(|pids| ("pids.max", pids.to_string())).collect(),
        }
    }
}

fn memory_v2(limits: &CgroupLimits) -> Vec<(&'static str, String)> {
    let mut settings = Vec::new();
    if let Some(memory) = limits.memory {
        settings.push(("memory.max", memory.to_string()));
        if let Some(both) = limits.memory_swap {
            let swap =
                if both == u64::MAX { "max".to_owned() } else { both.saturating_sub(memory).to_string() };
            settings.push(("memory.swap.max", swap));
        }
    }
    settings
}

fn memory_v1(limits: &CgroupLimits) -> Vec<(&'static str, String)> {
    let mut settings = Vec::new();
    if let Some(memory) = limits.memory {
        settings.push(("memory.limit_in_bytes", memory.to_string()));
        // Kernels without swap accounting lack the file; what is unlimited is not written.
        if let Some(both) = limits.memory_swap.filter(|both| *both != u64::MAX) {
            settings.push(("memory.memsw.limit_in_bytes", both.to_string()));
        }
    }
    settings
}

fn cpu_v2(limits: &CgroupLimits) -> Vec<(&'static str, String)> {
    let quota = limits.cpu.map(|cpu| ("cpu.max", format!("{} {}", cpu.quota_us, cpu.period_us)));
    // The scales' ends meet: 2 to 262144 and 1 to 10000.
    let weight =
        limits.cpu_shares.map(|shares| 1 + (shares.clamp(2, 262_144) - 2).saturating_mul(9999) / 262_142);
    quota.into_iter().chain(weight.map(|weight| ("cpu.weight", weight.to_string()))).collect()
}

fn cpu_v1(limits: &CgroupLimits) -> Vec<(&'static str, String)> {
    let mut settings = Vec::new();
    if let Some(cpu) = limits.cpu {
        settings.push(("cpu.cfs_period_us", cpu.period_us.to_string()));
        settings.push(("cpu.cfs_quota_us", cpu.quota_us.to_string()));
    }
    settings.extend(limits.cpu_shares.map(|shares| ("cpu.shares", shares.to_string())));
    settings
}

#[cfg(test)]
mod tests {
    use super::super::CpuQuota;
    use super::*;

    #[track_caller]
    fn check(limits: &CgroupLimits, unified: bool, expected: &[(&str, &str)]) {
        let found: Vec<_> =
            Controller::ALL.iter().flat_map(|controller| controller.settings(limits, unified)).collect();
        let found: Vec<(&str, &str)> = found.iter().map(|(file, value)| (*file, value.as_str())).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn settings_are_those_of_the_hierarchy() {
        let limits = CgroupLimits {
            memory: Some(7),
            memory_swap: Some(9),
            cpu: Some(CpuQuota { quota_us: 50_000, period_us: 100_000 }),
            cpu_shares: Some(1024),
            cpuset_cpus: Some("0-1".to_owned()),
            cpuset_mems: None,
            pids: Some(5),
        };
        check(
            &limits,
            true,
            &[
                ("memory.max", "7"),
                ("memory.swap.max", "2"),
                ("cpu.max", "50000 100000"),
                ("cpu.weight", "39"),
                ("cpuset.cpus", "0-1"),
                ("pids.max", "5"),
            ],
        );
        check(
            &limits,
            false,
            &[
                ("memory.limit_in_bytes", "7"),
                ("memory.memsw.limit_in_bytes", "9"),
                ("cpu.cfs_period_us", "100000"),
                ("cpu.cfs_quota_us", "50000"),
                ("cpu.shares", "1024"),
                ("cpuset.cpus", "0-1"),
                ("pids.max", "5"),
            ],
        );
        check(&CgroupLimits::default(), true, &[]);
        let unlimited =
            CgroupLimits { memory_swap: Some(u64::MAX), memory: Some(7), ..CgroupLimits::default() };
        check(&unlimited, true, &[("memory.max", "7"), ("memory.swap.max", "max")]);
        check(&unlimited, false, &[("memory.limit_in_bytes", "7")]);
    }
}
