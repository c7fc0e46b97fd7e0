//! What this machine lets this process do, found out by trying or by reading; for reports, not for decisions.
//!
//! Must not change anything that stays. Read [`upper_refusal`] and [`has_whole_proc`] first.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::capability::{Capability, CapabilitySet};
use crate::mount::OverlayLayers;
use crate::overlay::mount_overlay_at;
use crate::sys;

/// Why the kernel does not mount a writable overlay whose upper directory lies in `scratch`, an existing empty
/// directory in the caller's private mount namespace; `None` when it does. Leaves directories in `scratch`.
///
/// # Errors
/// When the directories for the trial cannot be made.
pub fn upper_refusal(scratch: &Path) -> io::Result<Option<io::Error>> {
    let place = |name: &str| -> io::Result<PathBuf> {
        let path = scratch.join(name);
        fs::create_dir(&path)?;
        Ok(path)
    };
    let (lower, upper, work, at) = (place("lower")?, place("upper")?, place("work")?, place("at")?);
    let layers = OverlayLayers { lower: vec![lower], upper: Some((upper, work)), volatile: true };
    match mount_overlay_at(&layers, true, &at) {
        Ok(()) => {
            rustix::mount::unmount(&at, rustix::mount::UnmountFlags::DETACH)?;
            Ok(None)
        }
        Err(error) => Ok(Some(error)),
    }
}

/// Whether sandboxes get a `/proc` of their own. The kernel refuses a user namespace one where parts of the present
/// one are hidden by mounts, as containers have it.
#[must_use]
pub fn has_whole_proc() -> bool {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    !crate::overlay::in_user_namespace() || !hides_parts_of_proc(&mounts)
}

/// Directories of `/proc` that are empty and made to be mounted on: mounts there hide nothing.
const MOUNT_POINTS: [&str; 2] = ["/proc/sys/fs/binfmt_misc", "/proc/fs/nfsd"];

fn hides_parts_of_proc(mounts: &str) -> bool {
    mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .any(|at| at.starts_with("/proc/") && !MOUNT_POINTS.contains(&at))
}

/// The capabilities a process in a sandbox is given by default here.
#[must_use]
pub fn granted_capabilities() -> Vec<&'static str> {
    let held = sys::permitted_capabilities().unwrap_or(CapabilitySet::EMPTY);
    let given = CapabilitySet::DOCKER_DEFAULT.intersection(held);
    Capability::ALL.iter().filter(|capability| given.contains(**capability)).map(|one| one.name()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_in_proc_hide_parts_of_it() {
        let plain =
            "22 28 0:21 / /proc rw - proc proc rw\n23 22 0:5 / /proc/sys/fs/binfmt_misc rw - autofs x rw\n";
        assert!(!hides_parts_of_proc(plain));
        assert!(hides_parts_of_proc(&format!("{plain}30 22 0:9 / /proc/acpi ro - tmpfs tmpfs ro\n")));
        assert!(!hides_parts_of_proc("30 22 0:9 / /process ro - tmpfs tmpfs ro\n"));
    }

    #[test]
    fn a_directory_that_cannot_be_an_upper_says_why() {
        let missing = upper_refusal(Path::new("/proc/nothing"));
        assert!(missing.is_err());
    }
}
