//! Which part of the second version's hierarchy may be changed, and its controllers: one hierarchy for all of them,
//! where a service manager hands groups to users, and where a group with processes has no controllers for those below.
//!
//! Must not know limits. Read [`default_v2`] and [`enable`] first.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::controller::Controller;
use super::place::{self, CgroupParent, OURS};
use super::{CgroupHierarchy, MOUNT, Unlimited, in_words};

/// The group within a delegated one where its processes go: on v2 a group with processes hands nothing down.
const ASIDE: &str = "stave-host";
/// What systemd marks a group with that it leaves to the unit in it, for this user to read (from version 251).
const MARK: &str = "user.delegate";
/// Generations that a descendant is followed up.
const MAX_GENERATIONS: usize = 1000;
/// How often a group is looked at in which one process ends while another is asked about.
const LOOKS: u32 = 3;
/// How often the processes of a group are moved, since more may start meanwhile.
const ASIDE_ATTEMPTS: u32 = 100;

/// One of ours below the root, or else this process's own, which a service manager may have delegated.
pub(super) fn default_v2() -> Result<PathBuf, String> {
    let mount = Path::new(MOUNT);
    let ours = mount.join(OURS);
    if may_change(&ours) || !ours.exists() && may_change(mount) {
        return Ok(ours);
    }
    let own = own_v2().filter(|own| is_handed_over(own)).map(delegated);
    own.filter(|own| may_change(own)).ok_or_else(|| undelegated(is_read_only(mount)))
}

/// Why no groups can be made.
fn undelegated(is_read_only: bool) -> String {
    match is_read_only {
        // As containers have it, where no service manager could help.
        true => format!("`{MOUNT}` is mounted read-only"),
        false => "no control group is delegated to this user: `systemd-run --user --scope -p Delegate=yes stave …` has one".to_owned(),
    }
}

fn is_read_only(mount: &Path) -> bool {
    rustix::fs::statvfs(mount).is_ok_and(|found| found.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY))
}

/// This process's own group on v2.
pub(super) fn own_v2() -> Option<PathBuf> {
    place::own_group("").map(|own| Path::new(MOUNT).join(own.trim_start_matches('/')))
}

/// The group that was delegated to a process in `own`, which may have moved aside.
pub(super) fn delegated(own: PathBuf) -> PathBuf {
    match own.parent() {
        Some(parent) if own.ends_with(ASIDE) => parent.to_owned(),
        _ => own,
    }
}

/// Whether a process in `own` is of this group. Another `stave` there may have moved it aside a moment ago.
fn is_of(own: PathBuf, group: &Path) -> bool {
    delegated(own) == group
}

/// Whether the group of a process in `own` is its to divide. That it may be changed is not enough: a user may change
/// each unit of their service manager, but it changes those that it did not delegate as well, and others run in them.
fn is_handed_over(own: &Path) -> bool {
    let group = delegated(own.to_owned());
    // It was taken before, or there is nobody outside it to ask.
    own.ends_with(ASIDE) || group == Path::new(MOUNT) || is_marked(&group) || is_alone_in(&group)
}

fn is_marked(group: &Path) -> bool {
    let mut value = [0; 8];
    rustix::fs::getxattr(group, MARK, &mut value[..]).is_ok_and(|length| value[..length] == *b"1")
}

/// Whether nothing is in a group but this process and what it started.
fn is_alone_in(group: &Path) -> bool {
    let own = std::process::id();
    let are_ours = |text: &str| {
        text.lines().all(|process| process.parse().is_ok_and(|id| descends(id, own, place::parent)))
    };
    (0..LOOKS).any(|_| fs::read_to_string(group.join("cgroup.procs")).is_ok_and(|text| are_ours(&text)))
}

/// Whether a process is `from`, or one that it started, or one of theirs.
fn descends(process: u32, from: u32, parent: impl Fn(u32) -> Option<u32>) -> bool {
    std::iter::successors(Some(process), |id| parent(*id)).take(MAX_GENERATIONS).any(|id| id == from)
}

/// Whether groups can be made in this one and processes moved there.
fn may_change(group: &Path) -> bool {
    [group, &group.join("cgroup.procs")]
        .iter()
        .all(|path| rustix::fs::access(*path, rustix::fs::Access::WRITE_OK).is_ok())
}

/// The controllers of which this process can set no limits, each with the reason.
#[must_use]
pub fn missing_controllers() -> Vec<Unlimited> {
    let hierarchy = CgroupHierarchy::detect();
    let reason = |controller: Controller| match hierarchy {
        CgroupHierarchy::Absent => Some("no control groups are mounted".to_owned()),
        CgroupHierarchy::V2 => match default_v2() {
            Err(reason) => Some(reason),
            Ok(base) => {
                // The root hands down to ours what is wanted, when it is wanted.
                let mount = Path::new(MOUNT);
                let base = if base == mount.join(OURS) && may_change(mount) { mount } else { &base };
                let known = fs::read_to_string(base.join("cgroup.controllers")).unwrap_or_default();
                (!lists(&known, controller)).then(|| format!("`{}` is not handed it", base.display()))
            }
        },
        CgroupHierarchy::V1 | CgroupHierarchy::Hybrid => {
            match place::base_v1(controller, &CgroupParent::Default) {
                Ok(base) if may_change(&base) => None,
                Ok(base) => Some(format!("`{}` is not this user's to change", base.display())),
                Err(reason) => Some(reason),
            }
        }
    };
    let all = Controller::ALL.into_iter();
    all.filter_map(|one| reason(one).map(|reason| Unlimited { controller: one.name(), reason })).collect()
}

fn lists(controllers: &str, wanted: Controller) -> bool {
    controllers.split_whitespace().any(|name| name == wanted.name())
}

/// Lets the groups below `base` have a controller: every group above has to hand it down.
pub(super) fn enable(base: &Path, controller: Controller) -> Result<(), String> {
    let mut chain: Vec<&Path> = base.ancestors().take_while(|path| path.starts_with(MOUNT)).collect();
    chain.reverse();
    for group in chain {
        let file = group.join("cgroup.subtree_control");
        if lists(&fs::read_to_string(&file).unwrap_or_default(), controller) {
            continue;
        }
        hand_down(group, controller).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                format!("`{}` does not hand it down", group.display())
            }
            _ => in_words("enable the controller in", &file, &error),
        })?;
    }
    Ok(())
}

/// Has a group hand a controller down. One that this process itself is in does so only once nothing runs in it.
fn hand_down(group: &Path, controller: Controller) -> io::Result<()> {
    let mut attempts = 0;
    loop {
        let written = match is_occupied(group) {
            true => Err(io::ErrorKind::ResourceBusy.into()),
            false => fs::write(group.join("cgroup.subtree_control"), format!("+{}", controller.name())),
        };
        match written {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && attempts < ASIDE_ATTEMPTS => {
                if !own_v2().is_some_and(|own| is_handed_over(&own) && is_of(own, group)) {
                    return Err(error);
                }
                move_aside(group)?;
                attempts += 1;
            }
            other => return other,
        }
    }
}

/// Whether a group other than the machine's root has processes. The kernel lets it hand down what is counted by thread
/// (`cpu`, `cpuset`, `pids`) even so, but from then on takes it for a tree of threads, whose groups no process can enter.
fn is_occupied(group: &Path) -> bool {
    let has_processes = || fs::read_to_string(group.join("cgroup.procs")).is_ok_and(|text| !text.is_empty());
    group.join("cgroup.type").exists() && has_processes()
}

/// Moves the processes of a group to one of its own for them.
fn move_aside(group: &Path) -> io::Result<()> {
    let aside = group.join(ASIDE);
    match fs::create_dir(&aside) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    // One of another pid namespace is told as 0, which would be this process.
    for process in fs::read_to_string(group.join("cgroup.procs"))?.lines().filter(|process| *process != "0") {
        match fs::write(aside.join("cgroup.procs"), process) {
            // It ended meanwhile.
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
            other => other?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_moved_aside_is_in_the_group_above() {
        assert_eq!(delegated("/g/a.scope/stave-host".into()), Path::new("/g/a.scope"));
        assert_eq!(delegated("/g/a.scope".into()), Path::new("/g/a.scope"));
        assert_eq!(place::maker(ASIDE), None);
    }

    #[test]
    fn who_was_moved_aside_by_another_is_still_of_the_group() {
        let check = |own: &str, expected| assert_eq!(is_of(own.into(), Path::new("/g")), expected, "{own}");
        check("/g", true);
        check("/g/stave-host", true);
        check("/g/a.scope", false);
        check("/g/a.scope/stave-host", false);
        check("/", false);
    }

    #[test]
    fn a_group_in_which_others_run_is_not_taken_unless_it_is_marked() {
        let unit = tempfile::tempdir().expect("a directory");
        let own = std::process::id();
        let holds = |processes: &str| {
            fs::write(unit.path().join("cgroup.procs"), processes).expect("a file");
            is_handed_over(unit.path())
        };
        assert!(holds(&format!("{own}\n")));
        let mut child = std::process::Command::new("sleep").arg("60").spawn().expect("starts");
        assert!(holds(&format!("{}\n{own}\n", child.id())));
        child.kill().and_then(|()| child.wait()).expect("ends");
        // A shell that this was started from, and one of another pid namespace.
        let shell = place::parent(own).expect("a parent");
        assert!(!holds(&format!("{shell}\n{own}\n")));
        assert!(!holds(&format!("0\n{own}\n")));
        let mark = |value: &[u8]| {
            rustix::fs::setxattr(unit.path(), MARK, value, rustix::fs::XattrFlags::empty()).is_ok()
        };
        // Not every temporary directory takes attributes.
        if mark(b"0") {
            assert!(!holds(&format!("{shell}\n")));
            assert!(mark(b"1") && holds(&format!("{shell}\n")));
        }
        assert!(is_handed_over(&unit.path().join(ASIDE)), "what is in it was moved there before");
        assert!(is_handed_over(Path::new(MOUNT)));
    }

    #[test]
    fn descendants_are_followed_up_to_the_first_process() {
        let parent = |id: u32| match id {
            0 => None,
            // These two cannot be, but nothing may hang for it.
            9 => Some(8),
            8 => Some(9),
            id => Some(id / 2),
        };
        for (process, expected) in [(5, true), (10, true), (21, true), (2, false), (0, false), (9, false)] {
            assert_eq!(descends(process, 5, parent), expected, "{process}");
        }
    }

    #[test]
    fn root_of_a_container_is_not_told_of_service_managers() {
        assert_eq!(undelegated(true), "`/sys/fs/cgroup` is mounted read-only");
        assert!(undelegated(false).contains("systemd-run --user"));
        assert!(!is_read_only(Path::new("/proc/self")) && !is_read_only(Path::new("/nowhere")));
    }

    #[test]
    fn a_group_with_processes_hands_nothing_down() {
        let group = tempfile::tempdir().expect("a directory");
        let write = |name: &str, text: &str| fs::write(group.path().join(name), text).expect("a file");
        let handed_down = || fs::read_to_string(group.path().join("cgroup.subtree_control")).ok();
        write("cgroup.type", "domain\n");
        write("cgroup.procs", "77\n");
        for controller in Controller::ALL {
            let error = hand_down(group.path(), controller).expect_err("somebody else's");
            assert_eq!((error.kind(), handed_down()), (io::ErrorKind::ResourceBusy, None));
        }
        write("cgroup.procs", "");
        hand_down(group.path(), Controller::Pids).expect("nobody is in it");
        assert_eq!(handed_down().as_deref(), Some("+pids"));
        // The root, which has no type, does in any case.
        write("cgroup.procs", "77\n");
        fs::remove_file(group.path().join("cgroup.type")).expect("a file");
        hand_down(group.path(), Controller::Cpu).expect("the root");
        assert_eq!(handed_down().as_deref(), Some("+cpu"));
    }

    #[test]
    fn processes_of_a_group_go_to_one_within() {
        let group = tempfile::tempdir().expect("a directory");
        let write = |name: &str, text: &str| fs::write(group.path().join(name), text).expect("a file");
        write("cgroup.procs", "0\n77\n");
        move_aside(group.path()).expect("moves");
        let moved = || fs::read_to_string(group.path().join("stave-host/cgroup.procs")).expect("a file");
        assert_eq!(moved(), "77");
        // Again: the group is there by now.
        write("cgroup.procs", "78\n");
        move_aside(group.path()).expect("moves");
        assert_eq!(moved(), "78");
    }
}
