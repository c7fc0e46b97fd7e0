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
        let mut made = Self(Vec::new());
        let mount = Path::new(MOUNT);
        if mount.join("cgroup.controllers").exists() {
            // One hierarchy for all, whose root has to hand them down.
            let wanted = CONTROLLERS.map(|controller| format!("+{controller}")).join(" ");
            fs::write(mount.join("cgroup.subtree_control"), wanted)
                .map_err(|error| format!("{MOUNT}: {error}"))?;
            let group = mount.join(name);
            made.add(group.clone(), owner).map_err(|error| format!("{}: {error}", group.display()))?;
            return Ok(made);
        }
        for controller in CONTROLLERS {
            let group = mount.join(controller).join(name);
            made.add(group.clone(), owner).map_err(|error| format!("{}: {error}", group.display()))?;
        }
        Ok(made)
    }

    fn add(&mut self, group: PathBuf, owner: u32) -> io::Result<()> {
        if !group.is_dir() {
            fs::create_dir(&group)?;
        }
        self.0.push(group.clone());
        // What a group of the first version lacks before it takes processes; in the second an empty list inherits.
        for file in ["cpuset.cpus", "cpuset.mems"].into_iter().filter(|file| is_first_versions(&group, file))
        {
            if let Ok(above) = fs::read_to_string(group.with_file_name(file)) {
                fs::write(group.join(file), above.trim())?;
            }
        }
        for file in ["", "cgroup.procs", "tasks", "cgroup.threads", "cgroup.subtree_control"] {
            match chown(group.join(file), Some(owner), Some(owner)) {
                // Of the other version.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                other => other?,
            }
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

fn is_first_versions(group: &Path, file: &str) -> bool {
    group.join(file).exists() && !group.join("cgroup.controllers").exists()
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
