//! Where groups lie in the hierarchies, and the removal of those whose makers died.
//!
//! A group's name says which process made it and when that started: `stave-<pid>-<start>-<n>`. One whose maker is gone
//! is removed by the next that makes a group beside it; a group with processes cannot be removed, so a mistake about
//! another pid namespace costs nothing. Read [`CgroupParent`] first.

use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Mutex, OnceLock, PoisonError};

use serde::{Deserialize, Serialize};

use super::controller::Controller;
use super::delegated::{default_v2, delegated, own_v2};
use super::{MOUNT, in_words, remove_empty};

/// The group of ours that holds the others on v2, and what the names of all begin with.
pub(super) const OURS: &str = "stave";
/// Where the unified hierarchy is mounted beside those of v1.
const BESIDE_V1: &str = "unified";
/// Leftovers looked at in one directory.
const SWEEP_LIMIT: usize = 10_000;

/// In which group new ones are made.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum CgroupParent {
    /// v1: this process's own; v2: one of ours below the root, or this process's own where that is all one may change.
    #[default]
    Default,
    /// The one of this name, as docker's `--cgroup-parent`: a path below the mount, or a systemd slice. Created when
    /// missing, and left.
    Named(String),
    /// Another one of ours.
    Within(CgroupPlace),
}

/// The directories of a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupPlace(Vec<(Controller, PathBuf)>);

impl CgroupPlace {
    pub(super) fn new(groups: &[(Controller, PathBuf)]) -> Self {
        Self(groups.to_vec())
    }
}

impl CgroupParent {
    /// Whether a group is made for `controller` though nothing is limited there.
    pub(super) fn wants(&self, controller: Controller, unified: bool) -> bool {
        match self {
            Self::Default => false,
            Self::Named(_) => controller != Controller::Cpuset,
            // For what is used and killed by itself; the other limits hold for all in the parent. Where it has one
            // directory for all of them, that is the way into it.
            Self::Within(CgroupPlace(groups)) => {
                controller == Controller::Memory
                    && if unified { !groups.is_empty() } else { self.group(controller).is_some() }
            }
        }
    }

    /// The parent's own directory for a controller.
    pub(super) fn group(&self, controller: Controller) -> Option<&Path> {
        let Self::Within(CgroupPlace(groups)) = self else { return None };
        groups.iter().find(|(known, _)| *known == controller).map(|(_, group)| group.as_path())
    }
}

/// The directory below which a group of `controller` is made on v1.
pub(super) fn base_v1(controller: Controller, parent: &CgroupParent) -> Result<PathBuf, String> {
    let mount = Path::new(MOUNT).join(controller.name());
    match parent {
        CgroupParent::Named(name) => made(mount.join(relative(name)?)),
        CgroupParent::Within(_) if parent.group(controller).is_some() => {
            Ok(parent.group(controller).unwrap_or(&mount).to_owned())
        }
        // Below this process's own group, whose limits hold as well; in a container its path may lead nowhere.
        CgroupParent::Default | CgroupParent::Within(_) => {
            let own = own_group(controller.name()).map(|own| mount.join(own.trim_start_matches('/')));
            Ok(own.filter(|own| own.is_dir()).unwrap_or(mount))
        }
    }
}

/// The directory below which a group is made on v2.
pub(super) fn base_v2(parent: &CgroupParent) -> Result<PathBuf, String> {
    match parent {
        CgroupParent::Named(name) => made(Path::new(MOUNT).join(relative(name)?)),
        CgroupParent::Within(CgroupPlace(groups)) => match groups.first() {
            Some((_, group)) => Ok(group.clone()),
            None => made(default_v2()?),
        },
        CgroupParent::Default => made(default_v2()?),
    }
}

/// The directory below which a group of the unified hierarchy is made on a host that has those of v1 as well.
pub(super) fn base_beside_v1() -> PathBuf {
    let mount = Path::new(MOUNT).join(BESIDE_V1);
    let own = own_group("").map(|own| mount.join(own.trim_start_matches('/')));
    own.filter(|own| own.is_dir()).unwrap_or(mount)
}

fn made(group: PathBuf) -> Result<PathBuf, String> {
    match group.is_dir() {
        true => Ok(group),
        false => {
            fs::create_dir_all(&group).map_err(|error| in_words("create", &group, &error)).map(|()| group)
        }
    }
}

/// A parent's name as a path below a mount. `a-b.slice` is systemd's name for `a.slice/a-b.slice`.
fn relative(name: &str) -> Result<PathBuf, String> {
    let path = name.trim_matches('/');
    if path.is_empty() || path.split('/').any(|part| matches!(part, "" | "." | "..")) || path.contains('\0') {
        return Err(format!("invalid cgroup parent `{name}`"));
    }
    let Some(slice) = path.strip_suffix(".slice").filter(|slice| !slice.contains('/')) else {
        return Ok(PathBuf::from(path));
    };
    let ends = slice.match_indices('-').map(|(end, _)| end).chain([slice.len()]);
    Ok(ends.map(|end| format!("{}.slice", &slice[..end])).collect())
}

/// The name of this process's `number`th group.
pub(super) fn own_name(number: u64) -> String {
    static OWN: OnceLock<u64> = OnceLock::new();
    let pid = std::process::id();
    let start = OWN.get_or_init(|| started(pid).unwrap_or(0));
    format!("{OURS}-{pid}-{start}-{number}")
}

/// Removes what dead processes left beside, once for each directory of this process.
pub(super) fn sweep_once(base: &Path) {
    static SWEPT: Mutex<Option<HashSet<PathBuf>>> = Mutex::new(None);
    let mut swept = SWEPT.lock().unwrap_or_else(PoisonError::into_inner);
    if swept.get_or_insert_default().insert(base.to_owned()) {
        sweep(base);
    }
}

fn sweep(base: &Path) {
    let Ok(entries) = fs::read_dir(base) else { return };
    for entry in entries.take(SWEEP_LIMIT).flatten() {
        let name = entry.file_name();
        let Some((pid, start)) = name.to_str().and_then(maker) else { continue };
        if started(pid) == Some(start) {
            continue;
        }
        let group = entry.path();
        // The groups of steps lie within that of their build.
        if let Err(error) = remove_empty(&group) {
            tracing::debug!(group = %group.display(), %error, "a control group of a dead process stays");
        }
    }
}

/// Groups of dead processes in which nothing runs any more, in every hierarchy where ours are made.
#[must_use]
pub fn abandoned_cgroups() -> Vec<PathBuf> {
    let v1 =
        Controller::ALL.iter().filter_map(|controller| base_v1(*controller, &CgroupParent::Default).ok());
    let unified = [Some(Path::new(MOUNT).join(OURS)), own_v2().map(delegated), Some(base_beside_v1())];
    let bases: BTreeSet<PathBuf> = v1.chain(unified.into_iter().flatten()).collect();
    bases.iter().flat_map(|base| abandoned_in(base)).collect()
}

fn abandoned_in(base: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(base).into_iter().flatten().take(SWEEP_LIMIT).flatten();
    let is_abandoned = |group: &PathBuf| {
        let maker = group.file_name().and_then(|name| name.to_str()).and_then(maker);
        // Made in another pid namespace, it may have processes that are not seen here.
        let is_empty = fs::read_to_string(group.join("cgroup.procs")).is_ok_and(|text| text.is_empty());
        maker.is_some_and(|(pid, start)| started(pid) != Some(start)) && is_empty
    };
    entries.map(|entry| entry.path()).filter(is_abandoned).collect()
}

/// Removes what [`abandoned_cgroups`] tells of; returns how many are gone.
pub fn sweep_cgroups() -> usize {
    let left = abandoned_cgroups();
    let bases: BTreeSet<&Path> = left.iter().filter_map(|group| group.parent()).collect();
    bases.into_iter().for_each(sweep);
    left.iter().filter(|group| !group.exists()).count()
}

/// Who made a group of this name.
pub(super) fn maker(name: &str) -> Option<(u32, u64)> {
    let mut parts = name.strip_prefix(OURS)?.strip_prefix('-')?.split('-');
    let found = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    let _number: u64 = parts.next()?.parse().ok()?;
    parts.next().is_none().then_some(found)
}

/// When a process started, in ticks since boot; a pid may be another process's by now.
fn started(pid: u32) -> Option<u64> {
    stat_of(pid, 22)
}

/// The process that started another, or has taken it over.
pub(super) fn parent(pid: u32) -> Option<u32> {
    stat_of(pid, 4)
}

/// A number of `/proc/<pid>/stat`, by its place as proc(5) counts.
fn stat_of<T: FromStr>(pid: u32, field: usize) -> Option<T> {
    // The name in parentheses, field 2, may hold anything.
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(field.checked_sub(3)?)?.parse().ok()
}

/// This process's group in the hierarchy of a v1 controller.
pub(super) fn own_group(controller: &str) -> Option<String> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_of_dead_processes_are_told_from_those_of_living_ones() {
        let base = tempfile::tempdir().expect("a directory");
        let group = |name: &str, processes: &str| {
            fs::create_dir(base.path().join(name)).expect("a directory");
            fs::write(base.path().join(name).join("cgroup.procs"), processes).expect("a file");
        };
        let pid = std::process::id();
        group(&own_name(1), "");
        group(&format!("{OURS}-{pid}-1-1"), "");
        group(&format!("{OURS}-{pid}-1-2"), "77\n");
        group("another", "");
        assert_eq!(abandoned_in(base.path()), [base.path().join(format!("{OURS}-{pid}-1-1"))]);
        assert_eq!(abandoned_in(&base.path().join("nowhere")), Vec::<PathBuf>::new());
    }

    #[track_caller]
    fn check_group(text: &str, controller: &str, expected: Option<&str>) {
        assert_eq!(group_of(text, controller).as_deref(), expected);
    }

    #[test]
    fn own_groups_are_found_by_controller() {
        let text = "9:name=systemd:/a\n4:cpu,cpuacct:/b:c\n3:cpuset:/\n0::/user\n";
        check_group(text, "cpu", Some("/b:c"));
        check_group(text, "cpuset", Some("/"));
        check_group(text, "memory", None);
        check_group("nonsense", "cpu", None);
    }

    #[test]
    fn a_group_of_a_build_is_entered_whatever_is_limited() {
        let within = |controller| CgroupParent::Within(CgroupPlace(vec![(controller, PathBuf::from("/g"))]));
        let nowhere = CgroupParent::Within(CgroupPlace(Vec::new()));
        for (parent, unified, expected) in [
            (within(Controller::Memory), false, true),
            (within(Controller::Memory), true, true),
            // Each has a directory of its own, and this one is entered itself.
            (within(Controller::Pids), false, false),
            (within(Controller::Pids), true, true),
            (nowhere, true, false),
            (CgroupParent::Default, true, false),
        ] {
            assert_eq!(parent.wants(Controller::Memory, unified), expected, "{parent:?} {unified}");
            assert!(!parent.wants(Controller::Cpuset, unified));
        }
    }

    #[track_caller]
    fn check_parent(name: &str, expected: Option<&str>) {
        assert_eq!(relative(name).ok().as_deref(), expected.map(Path::new));
    }

    #[test]
    fn parents_are_paths_or_slices() {
        check_parent("/builds", Some("builds"));
        check_parent("a/b", Some("a/b"));
        check_parent("user-1000-x.slice", Some("user.slice/user-1000.slice/user-1000-x.slice"));
        check_parent("system.slice", Some("system.slice"));
        for wrong in ["", "/", "../a", "a/../b", "a//b", "a/./b"] {
            check_parent(wrong, None);
        }
    }

    #[test]
    fn the_maker_is_in_the_name() {
        assert_eq!(maker("stave-12-345-6"), Some((12, 345)));
        let own = own_name(7);
        assert_eq!(maker(&own), Some((std::process::id(), started(std::process::id()).expect("a start"))));
        for wrong in ["stave", "stave-1-2", "stave-1-2-3-4", "stave-x-2-3", "other-1-2-3"] {
            assert_eq!(maker(wrong), None, "{wrong}");
        }
    }
}
