//! Control groups that belong to an ordinary user, as a service manager would delegate them.
//!
//! Owns making and removing them, with either version of control groups. Must not know tests. Read [`Delegation::to`] first.

use std::fs;
use std::io;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};

/// Where control groups are mounted.
const MOUNT: &str = "/sys/fs/cgroup";
/// What steps are limited by.
const CONTROLLERS: [&str; 4] = ["memory", "cpu", "cpuset", "pids"];

/// The groups, one for each hierarchy; removed on drop.
pub(super) struct Delegation(Vec<PathBuf>);

impl Delegation {
    /// Makes the groups of a user. The error says why there can be none here.
    pub(super) fn to(name: &str, owner: u32) -> Result<Self, String> {
        if Path::new(MOUNT).join("cgroup.controllers").exists() {
            return Err(
                "not made on the second version, where groups of one's own are those of `stave`".to_owned()
            );
        }
        let mut made = Self(Vec::new());
        for controller in CONTROLLERS {
            let group = Path::new(MOUNT).join(controller).join(name);
            made.add(group.clone(), owner).map_err(|error| format!("{}: {error}", group.display()))?;
        }
        Ok(made)
    }

    fn add(&mut self, group: PathBuf, owner: u32) -> io::Result<()> {
        if !group.is_dir() {
            fs::create_dir(&group)?;
        }
        self.0.push(group.clone());
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if let Ok(above) = fs::read_to_string(group.with_file_name(file)) {
                fs::write(group.join(file), above.trim())?;
            }
        }
        for path in [group.clone(), group.join("cgroup.procs"), group.join("tasks")] {
            chown(path, Some(owner), Some(owner))?;
        }
        Ok(())
    }

    /// The files that a process writes its number to.
    pub(super) fn entrances(&self) -> impl Iterator<Item = PathBuf> {
        self.0.iter().map(|group| group.join("cgroup.procs"))
    }
}

impl Drop for Delegation {
    fn drop(&mut self) {
        for group in &self.0 {
            // What a killed test left in it keeps it, and is the next one's.
            let _kept = remove(group);
        }
    }
}

/// Removes a group with those below it.
fn remove(group: &Path) -> io::Result<()> {
    for entry in fs::read_dir(group)?.flatten() {
        if entry.file_type()?.is_dir() {
            remove(&entry.path())?;
        }
    }
    fs::remove_dir(group)
}
