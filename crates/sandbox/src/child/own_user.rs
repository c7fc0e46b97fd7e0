//! Another user than root where there is no other: a user namespace in which the one user has that number.
//!
//! Read [`enter`] first.

use std::fs;
use std::io;

use rustix::thread::UnshareFlags;

use crate::channel::{AtStep as _, Failure};
use crate::error::SetupStep;
use crate::ids::IdMap;
use crate::spec::Process;
use crate::sys;

/// Lets `process` have the ids it is to have. All files of the one user are then that user's. Needs `/proc` and what
/// capabilities remain; those of the namespace outside are gone afterwards.
pub(super) fn enter(process: &Process) -> Result<(), Failure> {
    let ids = IdMap::current();
    if !ids.is_single() || ids.has_uid(process.uid) && ids.has_gid(process.gid) {
        return Ok(());
    }
    let enter = || -> io::Result<()> {
        sys::unshare(UnshareFlags::NEWUSER)?;
        fs::write("/proc/self/uid_map", format!("{} 0 1", process.uid))?;
        fs::write("/proc/self/setgroups", "deny")?;
        fs::write("/proc/self/gid_map", format!("{} 0 1", process.gid))
    };
    enter().with(SetupStep::User, format!("{}:{}", process.uid, process.gid))
}
