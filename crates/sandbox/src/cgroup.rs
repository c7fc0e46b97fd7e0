//! Control groups: a group per sandbox with limits, and what it used, on v1, v2 and hybrid hosts.
//!
//! A group is created only when limits are asked for: joining one costs some ten milliseconds (the kernel waits for all
//! processors to notice), and neither the devices (see `child`) nor the measuring of memory (see `meter`) need one.
//! Must not know sandboxes. Read [`CgroupGuard`] first; [`controller`] says what is written where, [`place`] where
//! groups lie and how those of dead processes are found, [`delegated`] which groups are an ordinary user's.

mod controller;
mod delegated;
mod freezer;
mod left;
mod place;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal};
use serde::{Deserialize, Serialize};

use controller::Controller;
pub use delegated::missing_controllers;
pub(crate) use freezer::FreezerGroup;
pub use freezer::{Freezer, Held};
pub use left::memory_left;
pub use place::{CgroupParent, CgroupPlace, abandoned_cgroups, sweep_cgroups};

/// Where hosts mount control groups.
const MOUNT: &str = "/sys/fs/cgroup";
/// How often a removal is tried: the last processes of a group leave it a moment after they were reaped.
const REMOVE_ATTEMPTS: u32 = 100;
/// Pause between two attempts.
const REMOVE_PAUSE: Duration = Duration::from_millis(1);
/// How deep groups within a group are looked for, and how many in one: a step with every right may make its own.
const NESTED_LIMITS: (usize, usize) = (32, 10_000);

/// Limits of a group; an absent one is not set.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CgroupLimits {
    /// Memory in bytes.
    pub memory: Option<u64>,
    /// Memory and swap together, in bytes; `u64::MAX` is as much swap as there is.
    pub memory_swap: Option<u64>,
    /// CPU time.
    pub cpu: Option<CpuQuota>,
    /// Share of the CPUs while others want them too, docker's scale: 1024 is one share, 2 to 262144.
    pub cpu_shares: Option<u64>,
    /// Which CPUs, as the kernel lists them: `0-2,7`.
    pub cpuset_cpus: Option<String>,
    /// Which memory nodes.
    pub cpuset_mems: Option<String>,
    /// Number of processes and threads.
    pub pids: Option<u64>,
}

impl CgroupLimits {
    /// Whether nothing is limited.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
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

/// A limit that could not be applied, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unlimited {
    /// The controller: `memory`, `cpu`, `cpuset` or `pids`.
    pub controller: &'static str,
    /// Why, in words.
    pub reason: String,
}

/// What a group used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CgroupUsage {
    /// Largest amount of memory at any time, page cache included, in bytes, where the kernel keeps it.
    pub peak_memory: Option<u64>,
    /// Whether the kernel killed a process for want of memory.
    pub oom_killed: bool,
}

/// A control group; dropped, its processes are killed and it is removed.
#[derive(Debug)]
pub struct CgroupGuard {
    /// Ours, to be removed: one directory on v2, one for each controller on v1.
    own: Vec<(Controller, PathBuf)>,
    /// Groups of the parent that a sandbox enters because it has none of its own there (v1 only).
    entered: Vec<PathBuf>,
    unified: bool,
    unlimited: Vec<Unlimited>,
}

impl CgroupGuard {
    /// Creates a group within `parent` and sets the limits. What the host does not allow is left out and recorded in
    /// [`unlimited`](Self::unlimited). Without limits and parent nothing is created.
    #[must_use]
    pub fn create(limits: &CgroupLimits, parent: &CgroupParent) -> Self {
        let hierarchy = CgroupHierarchy::detect();
        let unified = hierarchy == CgroupHierarchy::V2;
        let mut guard = Self { own: Vec::new(), entered: Vec::new(), unified, unlimited: Vec::new() };
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name = place::own_name(NEXT.fetch_add(1, Ordering::Relaxed));
        for controller in Controller::ALL {
            let settings = controller.settings(limits, unified);
            if settings.is_empty() && !parent.wants(controller, unified) {
                if let Some(group) = parent.group(controller).filter(|_| !unified) {
                    guard.entered.push(group.to_owned());
                }
                continue;
            }
            let made = match hierarchy {
                CgroupHierarchy::Absent => Err("no control groups are mounted".to_owned()),
                CgroupHierarchy::V2 => guard.make_unified(controller, parent, &name),
                CgroupHierarchy::V1 | CgroupHierarchy::Hybrid => guard.make_v1(controller, parent, &name),
            };
            let limited = made.and_then(|group| apply(&group, &settings));
            if let Err(reason) = limited
                && !settings.is_empty()
            {
                guard.unlimited.push(Unlimited { controller: controller.name(), reason });
            }
        }
        guard
    }

    /// For a sandbox: no group when none is needed.
    pub(crate) fn for_sandbox(limits: Option<&CgroupLimits>, parent: &CgroupParent) -> Option<Self> {
        let none = CgroupLimits::default();
        match limits {
            None if *parent == CgroupParent::Default => None,
            limits => Some(Self::create(limits.unwrap_or(&none), parent)),
        }
    }

    fn make_v1(
        &mut self,
        controller: Controller,
        parent: &CgroupParent,
        name: &str,
    ) -> Result<PathBuf, String> {
        let base = place::base_v1(controller, parent)?;
        place::sweep_once(&base);
        let group = base.join(name);
        create(&group)?;
        self.own.push((controller, group.clone()));
        if controller == Controller::Cpuset {
            // A group without processors and memory nodes takes no process.
            for file in ["cpuset.cpus", "cpuset.mems"] {
                let inherited = fs::read_to_string(base.join(file)).unwrap_or_default();
                write(&group.join(file), inherited.trim())?;
            }
        }
        Ok(group)
    }

    /// On v2 a group with processes cannot hand controllers to groups below it, so ours lies beside them.
    fn make_unified(
        &mut self,
        controller: Controller,
        parent: &CgroupParent,
        name: &str,
    ) -> Result<PathBuf, String> {
        let base = place::base_v2(parent)?;
        place::sweep_once(&base);
        let group = base.join(name);
        if self.own.is_empty() {
            create(&group)?;
        }
        // Also without this controller it is entered, for those of the groups above.
        self.own.push((controller, group.clone()));
        delegated::enable(&base, controller)?;
        Ok(group)
    }

    /// Where groups within this one are made.
    #[must_use]
    pub fn place(&self) -> CgroupPlace {
        CgroupPlace::new(&self.own)
    }

    /// Limits that do not hold, with the reason.
    #[must_use]
    pub fn unlimited(&self) -> &[Unlimited] {
        &self.unlimited
    }

    /// What the group used until now.
    #[must_use]
    pub fn usage(&self) -> CgroupUsage {
        let memory = self.own.iter().find(|(controller, _)| *controller == Controller::Memory);
        let Some((_, group)) = memory else { return CgroupUsage::default() };
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
        let mut groups: Vec<&PathBuf> =
            self.own.iter().map(|(_, group)| group).chain(&self.entered).collect();
        groups.dedup();
        groups.into_iter().map(|group| group.join("cgroup.procs")).collect()
    }

    /// Controllers with a hierarchy of their own.
    pub(crate) fn v1_controllers(&self) -> Vec<String> {
        let own = self.own.iter().filter(|_| !self.unified);
        own.map(|(controller, _)| controller.name().to_owned()).collect()
    }
}

impl Drop for CgroupGuard {
    fn drop(&mut self) {
        for (_, group) in &self.own {
            if let Err(error) = remove(group) {
                tracing::warn!(group = %group.display(), %error, "cannot remove a control group");
            }
        }
    }
}

fn apply(group: &Path, settings: &[(&str, String)]) -> Result<(), String> {
    settings.iter().try_for_each(|(name, value)| write(&group.join(name), value))
}

fn write(file: &Path, value: &str) -> Result<(), String> {
    fs::write(file, value).map_err(|error| in_words("write", file, &error))
}

fn create(group: &Path) -> Result<(), String> {
    fs::create_dir(group).map_err(|error| in_words("create", group, &error))
}

fn in_words(action: &str, path: &Path, error: &io::Error) -> String {
    format!("cannot {action} `{}`: {error}", path.display())
}

/// How many processes were killed, from `memory.events` or `memory.oom_control`.
fn oom_kills(text: &str) -> u64 {
    let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
    count.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
}

/// Kills what is left in a group and removes it, with the groups in it.
fn remove(group: &Path) -> io::Result<()> {
    let mut attempts = 0;
    loop {
        match remove_empty(group) {
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

/// Removes a group without processes, and before it those in it: whatever ran there may have made some.
fn remove_empty(group: &Path) -> io::Result<()> {
    fn remove(group: &Path, depth: usize) -> io::Result<()> {
        match fs::remove_dir(group) {
            Err(error) if is_in_use(&error) && depth > 0 => {
                // What stays is found again by the removal of the group around it.
                groups_in(group).iter().for_each(|inner| drop(remove(inner, depth - 1)));
                fs::remove_dir(group)
            }
            other => other,
        }
    }
    remove(group, NESTED_LIMITS.0)
}

/// The kernel does not tell a group with processes from one with groups; other file systems do.
fn is_in_use(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ResourceBusy | io::ErrorKind::DirectoryNotEmpty)
}

fn groups_in(group: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(group).into_iter().flatten().flatten();
    let groups = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    groups.map(|entry| entry.path()).take(NESTED_LIMITS.1).collect()
}

fn kill_all(group: &Path) {
    // Of the second version, this reaches the groups within as well.
    if fs::write(group.join("cgroup.kill"), "1").is_ok() {
        return;
    }
    let mut groups = vec![(group.to_owned(), NESTED_LIMITS.0)];
    while let Some((group, depth)) = groups.pop() {
        let processes = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
        for pid in processes.lines().filter_map(|line| Pid::from_raw(line.parse().ok()?)) {
            // A process that is gone already is what is wanted.
            let _gone = rustix::process::kill_process(pid, Signal::KILL);
        }
        if depth > 0 {
            groups.extend(groups_in(&group).into_iter().map(|inner| (inner, depth - 1)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kills_are_counted_in_both_formats() {
        assert_eq!(oom_kills("low 0\nhigh 0\noom 4\noom_kill 3\noom_group_kill 0\n"), 3);
        assert_eq!(oom_kills("oom_kill_disable 0\nunder_oom 0\noom_kill 1\n"), 1);
        assert_eq!(oom_kills(""), 0);
    }

    #[test]
    fn groups_within_a_group_go_before_it() {
        let base = tempfile::tempdir().expect("a directory");
        let group = base.path().join("group");
        for inner in ["a/b/c", "d"] {
            fs::create_dir_all(group.join(inner)).expect("a directory");
        }
        remove(&group).expect("removed");
        assert!(!group.exists());
        remove(&group).expect("nothing to do");
        // What is in use stays, and what it lies in.
        fs::create_dir_all(group.join("a/b")).expect("a directory");
        fs::create_dir(group.join("d")).expect("a directory");
        fs::write(group.join("a/in-use"), "").expect("a file");
        remove_empty(&group).expect_err("in use");
        assert!(group.join("a").exists() && !group.join("a/b").exists() && !group.join("d").exists());
    }

    #[test]
    fn without_limits_and_parent_there_is_no_group() {
        let none = CgroupGuard::create(&CgroupLimits::default(), &CgroupParent::Default);
        assert_eq!((none.procs_files(), none.usage()), (Vec::new(), CgroupUsage::default()));
        assert!(CgroupGuard::for_sandbox(None, &CgroupParent::Default).is_none());
    }
}
