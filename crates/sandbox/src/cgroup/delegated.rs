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
/// How often the processes of a group are moved, since more may start meanwhile.
const ASIDE_ATTEMPTS: u32 = 100;

/// One of ours below the root, or else this process's own, which a service manager may have delegated.
pub(super) fn default_v2() -> Result<PathBuf, String> {
    let mount = Path::new(MOUNT);
    let ours = mount.join(OURS);
    if may_change(&ours) || !ours.exists() && may_change(mount) {
        return Ok(ours);
    }
    own_v2().map(delegated).filter(|own| may_change(own)).ok_or_else(|| {
        "no control group is delegated to this user: `systemd-run --user --scope -p Delegate=yes stave …` has one"
            .to_owned()
    })
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
        match fs::write(group.join("cgroup.subtree_control"), format!("+{}", controller.name())) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && attempts < ASIDE_ATTEMPTS => {
                if !own_v2().is_some_and(|own| is_of(own, group)) {
                    return Err(error);
                }
                move_aside(group)?;
                attempts += 1;
            }
            other => return other,
        }
    }
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
