//! Holding a sandbox still: its processes stop between two calls of the kernel and go on later.
//!
//! Only the unified hierarchy is used, alone or beside those of v1: what is frozen there can still be killed, which a
//! frozen group of v1 cannot. A sandbox is cloned into its group, since joining one later costs some ten
//! milliseconds. Must not know why anybody holds one still. Read [`Freezer::hold`] first.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};

use super::{CgroupGuard, CgroupHierarchy, CgroupParent, place, remove};

/// A group for one sandbox; dropped, what is left in it is killed and it is removed.
#[derive(Debug)]
pub(crate) struct FreezerGroup {
    group: PathBuf,
    own: bool,
}

impl FreezerGroup {
    /// The group of a sandbox: its limits' if there is one in the unified hierarchy, or a new one. `None` where there
    /// is no such hierarchy, or none may be made in it.
    pub(crate) fn for_sandbox(limits: Option<&CgroupGuard>, parent: &CgroupParent) -> Option<Self> {
        let hierarchy = CgroupHierarchy::detect();
        let limited = limits.filter(|_| hierarchy == CgroupHierarchy::V2);
        if let Some((_, group)) = limited.and_then(|limits| limits.own.first()) {
            return Some(Self { group: group.clone(), own: false });
        }
        let base = match hierarchy {
            CgroupHierarchy::V2 => place::base_v2(parent).ok()?,
            CgroupHierarchy::Hybrid => place::base_beside_v1(),
            CgroupHierarchy::V1 | CgroupHierarchy::Absent => return None,
        };
        place::sweep_once(&base);
        static NEXT: AtomicU64 = AtomicU64::new(1 << 32);
        let group = base.join(place::own_name(NEXT.fetch_add(1, Ordering::Relaxed)));
        std::fs::create_dir(&group).ok()?;
        let made = Self { group, own: true };
        // Kernels before 5.2 cannot.
        made.group.join("cgroup.freeze").exists().then_some(made)
    }

    /// The group a sandbox has to be cloned into.
    pub(crate) fn entrance(&self) -> Option<&Path> {
        self.own.then_some(self.group.as_path())
    }

    /// Who holds still what is in it.
    pub(crate) fn freezer(&self) -> Freezer {
        Freezer { group: self.group.clone() }
    }
}

impl Drop for FreezerGroup {
    fn drop(&mut self) {
        if self.own
            && let Err(error) = remove(&self.group)
        {
            tracing::warn!(group = %self.group.display(), %error, "cannot remove a control group");
        }
    }
}

/// Holds the processes of a sandbox still. One at a time does.
#[derive(Debug, Clone)]
pub struct Freezer {
    group: PathBuf,
}

/// Processes that are held still until this is dropped.
#[derive(Debug)]
pub struct Held<'a> {
    freezer: &'a Freezer,
    still: bool,
}

impl Held<'_> {
    /// Whether all of them stand; else some are still within a call of the kernel.
    #[must_use]
    pub fn is_still(&self) -> bool {
        self.still
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        // The group is gone when the sandbox has ended meanwhile.
        drop(std::fs::write(self.freezer.group.join("cgroup.freeze"), "0"));
    }
}

impl Freezer {
    /// Stops every process and waits, at most so long, until none is within a call of the kernel.
    ///
    /// # Errors
    /// When the group is gone, or cannot be written.
    pub fn hold(&self, at_most: Duration) -> io::Result<Held<'_>> {
        let since = Instant::now();
        std::fs::write(self.group.join("cgroup.freeze"), "1")?;
        let mut held = Held { freezer: self, still: false };
        let events = File::open(self.group.join("cgroup.events"))?;
        loop {
            let mut text = [0; 256];
            let length = events.read_at(&mut text, 0)?;
            if is_frozen(&text[..length]) {
                held.still = true;
                return Ok(held);
            }
            let Some(left) = at_most.checked_sub(since.elapsed()) else { return Ok(held) };
            // A change of the file is an exceptional condition.
            let mut polled = [PollFd::new(&events, PollFlags::PRI)];
            match rustix::event::poll(&mut polled, Timespec::try_from(left).ok().as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Kills every process, held still or not.
    ///
    /// # Errors
    /// When the group is gone, or the kernel older than 5.14.
    pub fn kill(&self) -> io::Result<()> {
        std::fs::write(self.group.join("cgroup.kill"), "1")
    }
}

/// Whether there are processes, and all stand: an empty group is frozen at once, and holds nobody.
fn is_frozen(events: &[u8]) -> bool {
    let says = |wanted: &[u8]| events.split(|byte| *byte == b'\n').any(|line| line == wanted);
    says(b"frozen 1") && says(b"populated 1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_says_when_all_stand() {
        assert!(is_frozen(b"populated 1\nfrozen 1\n"));
        assert!(!is_frozen(b"populated 1\nfrozen 0\n"));
        assert!(!is_frozen(b"populated 0\nfrozen 1\n"));
        assert!(!is_frozen(b""));
    }
}
