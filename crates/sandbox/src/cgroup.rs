//! Control groups: a group per sandbox with limits, and what it used, on v1, v2 and hybrid hosts.
//!
//! A group is created only when limits are asked for: it costs a directory in each hierarchy, and the devices need
//! none (see `child`). Must not know sandboxes. Read [`CgroupGuard`] first.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal};
use serde::{Deserialize, Serialize};

/// Where hosts mount control groups.
const MOUNT: &str = "/sys/fs/cgroup";
/// The group of ours that holds the sandboxes' on v2.
const OURS: &str = "stave";
/// How often a removal is tried: the last processes of a group leave it a moment after they were reaped.
const REMOVE_ATTEMPTS: u32 = 100;
/// Pause between two attempts.
const REMOVE_PAUSE: Duration = Duration::from_millis(1);

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
        let unified = |path: &Path| {
            rustix::fs::statfs(path).is_ok_and(|stat| stat.f_type as u64 == libc::CGROUP2_SUPER_MAGIC as u64)
        };
        let mount = Path::new(MOUNT);
        if unified(mount) {
            Self::V2
        } else if unified(&mount.join("unified")) {
            Self::Hybrid
        } else if Controller::ALL.iter().any(|controller| mount.join(controller.name()).is_dir()) {
            Self::V1
        } else {
            Self::Absent
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Controller {
    Memory,
    Cpu,
    Pids,
}

impl Controller {
    const ALL: [Self; 3] = [Self::Memory, Self::Cpu, Self::Pids];

    const fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Cpu => "cpu",
            Self::Pids => "pids",
        }
    }

    /// The files to write for a limit, and what; none without a limit.
    fn settings(self, limits: &CgroupLimits, unified: bool) -> Vec<(&'static str, String)> {
        let settings = match (self, unified) {
            (Self::Memory, true) => limits.memory.map(|bytes| vec![("memory.max", bytes.to_string())]),
            (Self::Memory, false) => {
                limits.memory.map(|bytes| vec![("memory.limit_in_bytes", bytes.to_string())])
            }
            (Self::Cpu, true) => {
                limits.cpu.map(|cpu| vec![("cpu.max", format!("{} {}", cpu.quota_us, cpu.period_us))])
            }
            (Self::Cpu, false) => limits.cpu.map(|cpu| {
                vec![
                    ("cpu.cfs_period_us", cpu.period_us.to_string()),
                    ("cpu.cfs_quota_us", cpu.quota_us.to_string()),
                ]
            }),
            (Self::Pids, _) => limits.pids.map(|pids| vec![("pids.max", pids.to_string())]),
        };
        settings.unwrap_or_default()
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
    /// One directory on v2, one for each controller on v1.
    groups: Vec<PathBuf>,
    controllers: Vec<Controller>,
    unified: bool,
    unlimited: Vec<Unlimited>,
}

impl CgroupGuard {
    /// Creates a group and sets the limits. What the host does not allow is left out and recorded in
    /// [`unlimited`](Self::unlimited). Without any limit nothing is created.
    #[must_use]
    pub fn create(limits: &CgroupLimits) -> Self {
        let hierarchy = CgroupHierarchy::detect();
        let unified = hierarchy == CgroupHierarchy::V2;
        let mut guard = Self { groups: Vec::new(), controllers: Vec::new(), unified, unlimited: Vec::new() };
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name = format!("{OURS}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        for controller in Controller::ALL {
            let settings = controller.settings(limits, unified);
            if settings.is_empty() {
                continue;
            }
            let limited = match hierarchy {
                CgroupHierarchy::Absent => Err("no control groups are mounted".to_owned()),
                CgroupHierarchy::V2 => guard.limit_unified(controller, &name, &settings),
                CgroupHierarchy::V1 | CgroupHierarchy::Hybrid => guard.limit_v1(controller, &name, &settings),
            };
            match limited {
                Ok(()) => guard.controllers.push(controller),
                Err(reason) => guard.unlimited.push(Unlimited { controller: controller.name(), reason }),
            }
        }
        guard
    }

    fn limit_v1(
        &mut self,
        controller: Controller,
        name: &str,
        settings: &[(&str, String)],
    ) -> Result<(), String> {
        let mount = Path::new(MOUNT).join(controller.name());
        // Below this process's own group, whose limits hold as well; in a container its path may lead nowhere.
        let own = own_group(controller.name()).map(|own| mount.join(own.trim_start_matches('/')));
        let group = own.filter(|own| own.is_dir()).unwrap_or(mount).join(name);
        fs::create_dir(&group).map_err(|error| in_words("create", &group, &error))?;
        self.groups.push(group.clone());
        apply(&group, settings)
    }

    /// On v2 a group with processes cannot hand controllers to groups below it, so ours lies below the root.
    fn limit_unified(
        &mut self,
        controller: Controller,
        name: &str,
        settings: &[(&str, String)],
    ) -> Result<(), String> {
        let (root, ours) = (Path::new(MOUNT), Path::new(MOUNT).join(OURS));
        if !ours.is_dir() {
            fs::create_dir(&ours).map_err(|error| in_words("create", &ours, &error))?;
        }
        for parent in [root, &ours] {
            let file = parent.join("cgroup.subtree_control");
            let enable = format!("+{}", controller.name());
            fs::write(&file, enable).map_err(|error| in_words("enable the controller in", &file, &error))?;
        }
        let group = ours.join(name);
        if self.groups.is_empty() {
            fs::create_dir(&group).map_err(|error| in_words("create", &group, &error))?;
            self.groups.push(group.clone());
        }
        apply(&group, settings)
    }

    /// Limits that do not hold, with the reason.
    #[must_use]
    pub fn unlimited(&self) -> &[Unlimited] {
        &self.unlimited
    }

    /// What the group used until now.
    #[must_use]
    pub fn usage(&self) -> CgroupUsage {
        let hierarchy = if self.unified { PathBuf::from(MOUNT) } else { Path::new(MOUNT).join("memory") };
        let limited = self.controllers.contains(&Controller::Memory);
        let Some(group) = self.groups.iter().find(|group| limited && group.starts_with(&hierarchy)) else {
            return CgroupUsage::default();
        };
        let (peak, events) = if self.unified {
            ("memory.peak", "memory.events")
        } else {
            ("memory.max_usage_in_bytes", "memory.oom_control")
        };
        CgroupUsage {
            peak_memory: fs::read_to_string(group.join(peak)).ok().and_then(|text| text.trim().parse().ok()),
            oom_killed: fs::read_to_string(group.join(events)).is_ok_and(|text| oom_kills(&text) > 0),
        }
    }

    /// Files by which a process enters the group.
    pub(crate) fn procs_files(&self) -> Vec<PathBuf> {
        self.groups.iter().map(|group| group.join("cgroup.procs")).collect()
    }

    /// Controllers with a hierarchy of their own.
    pub(crate) fn v1_controllers(&self) -> Vec<String> {
        let own = self.controllers.iter().filter(|_| !self.unified);
        own.map(|controller| controller.name().to_owned()).collect()
    }
}

impl Drop for CgroupGuard {
    fn drop(&mut self) {
        for group in &self.groups {
            if let Err(error) = remove(group) {
                tracing::warn!(group = %group.display(), %error, "cannot remove a control group");
            }
        }
    }
}

fn apply(group: &Path, settings: &[(&str, String)]) -> Result<(), String> {
    settings.iter().try_for_each(|(name, value)| {
        let file = group.join(name);
        fs::write(&file, value).map_err(|error| in_words("write", &file, &error))
    })
}

fn in_words(action: &str, path: &Path, error: &io::Error) -> String {
    format!("cannot {action} `{}`: {error}", path.display())
}

/// This process's group in the hierarchy of a v1 controller.
fn own_group(controller: &str) -> Option<String> {
    group_of(&fs::read_to_string("/proc/self/cgroup").ok()?, controller)
}

/// The path of a controller's line in `/proc/<pid>/cgroup`: `4:cpu,cpuacct:/path`.
fn group_of(text: &str, controller: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        controllers.split(',').any(|name| name == controller).then(|| path.to_owned())
    })
}

/// How many processes were killed, from `memory.events` or `memory.oom_control`.
fn oom_kills(text: &str) -> u64 {
    let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
    count.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
}

/// Kills what is left in a group and removes it.
fn remove(group: &Path) -> io::Result<()> {
    let mut attempts = 0;
    loop {
        match fs::remove_dir(group) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && attempts < REMOVE_ATTEMPTS => {
                if attempts == 0 {
                    kill_all(group);
                }
                attempts += 1;
                std::thread::sleep(REMOVE_PAUSE);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => return other,
        }
    }
}

fn kill_all(group: &Path) {
    if fs::write(group.join("cgroup.kill"), "1").is_ok() {
        return;
    }
    let processes = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    for pid in processes.lines().filter_map(|line| Pid::from_raw(line.parse().ok()?)) {
        // A process that is gone already is what is wanted.
        let _gone = rustix::process::kill_process(pid, Signal::KILL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, controller: &str, expected: Option<&str>) {
        assert_eq!(group_of(text, controller).as_deref(), expected);
    }

    #[test]
    fn own_groups_are_found_by_controller() {
        let text = "9:name=systemd:/a\n4:cpu,cpuacct:/b:c\n3:cpuset:/\n0::/user\n";
        check(text, "cpu", Some("/b:c"));
        check(text, "cpuset", Some("/"));
        check(text, "memory", None);
        check("nonsense", "cpu", None);
    }

    #[test]
    fn kills_are_counted_in_both_formats() {
        assert_eq!(oom_kills("low 0\nhigh 0\noom 4\noom_kill 3\noom_group_kill 0\n"), 3);
        assert_eq!(oom_kills("oom_kill_disable 0\nunder_oom 0\noom_kill 1\n"), 1);
        assert_eq!(oom_kills(""), 0);
    }

    #[test]
    fn settings_are_those_of_the_hierarchy() {
        let cpu = CpuQuota { quota_us: 50_000, period_us: 100_000 };
        let limits = CgroupLimits { memory: Some(7), cpu: Some(cpu), pids: None };
        assert_eq!(Controller::Cpu.settings(&limits, true), [("cpu.max", "50000 100000".to_owned())]);
        assert_eq!(Controller::Cpu.settings(&limits, false).len(), 2);
        assert_eq!(Controller::Memory.settings(&limits, false), [("memory.limit_in_bytes", "7".to_owned())]);
        assert_eq!(Controller::Pids.settings(&limits, true), []);
    }
}
