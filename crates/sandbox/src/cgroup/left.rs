//! How much memory the groups of this process leave it: a container, a service or a job of a cluster has often less than
//! its machine.
//!
//! Must not know limits that are set here. Read [`memory_left`] first.

use std::fs;
use std::path::{Path, PathBuf};

use super::delegated::own_v2;
use super::{CgroupHierarchy, MOUNT, place};

/// Where one version keeps what a group may take and takes, and which lines of its statistics count files' pages.
struct Files {
    limit: &'static str,
    used: &'static str,
    of_files: [&'static str; 2],
}

const V2: Files =
    Files { limit: "memory.max", used: "memory.current", of_files: ["active_file", "inactive_file"] };
const V1: Files = Files {
    limit: "memory.limit_in_bytes",
    used: "memory.usage_in_bytes",
    of_files: ["total_active_file", "total_inactive_file"],
};

/// Bytes of memory that can be had within the limits of this process's group and of those above it; files' pages are
/// taken back when there is need. `None` where nothing is limited.
#[must_use]
pub fn memory_left() -> Option<u64> {
    let mount = Path::new(MOUNT);
    match CgroupHierarchy::detect() {
        CgroupHierarchy::V2 => least(own_v2(), mount, &V2),
        CgroupHierarchy::V1 | CgroupHierarchy::Hybrid => {
            let mount = mount.join("memory");
            let own = place::own_group("memory").map(|own| mount.join(own.trim_start_matches('/')));
            least(own, &mount, &V1)
        }
        CgroupHierarchy::Absent => None,
    }
}

/// The least that `own` and the groups above it leave, up to `mount`. In a container its path may lead nowhere.
fn least(own: Option<PathBuf>, mount: &Path, files: &Files) -> Option<u64> {
    let own = own.filter(|own| own.is_dir()).unwrap_or_else(|| mount.to_owned());
    let groups = own.ancestors().take_while(|group| group.starts_with(mount));
    groups.filter_map(|group| left(group, files)).min()
}

fn left(group: &Path, files: &Files) -> Option<u64> {
    let read = |name: &str| fs::read_to_string(group.join(name)).ok();
    // No limit is the word `max`, or a number beyond every memory.
    let limit: u64 = read(files.limit)?.trim().parse().ok()?;
    let used: u64 = read(files.used)?.trim().parse().ok()?;
    let of_files = of_files(&read("memory.stat").unwrap_or_default(), files);
    Some(limit.saturating_sub(used.saturating_sub(of_files)))
}

fn of_files(statistics: &str, files: &Files) -> u64 {
    let fields = statistics.lines().filter_map(|line| line.split_once(' '));
    let counted = fields.filter(|(name, _)| files.of_files.contains(name));
    counted.filter_map(|(_, bytes)| bytes.trim().parse::<u64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_group_with_the_least_counts() {
        let mount = tempfile::tempdir().expect("a directory");
        let group = |name: &str, limit: &str, used: &str, statistics: &str| {
            let group = mount.path().join(name);
            fs::create_dir_all(&group).expect("a directory");
            for (file, text) in [(V2.limit, limit), (V2.used, used), ("memory.stat", statistics)] {
                fs::write(group.join(file), text).expect("a file");
            }
            group
        };
        let own = group("a/b", "max\n", "500\n", "");
        let of = |own: &Path| least(Some(own.to_owned()), mount.path(), &V2);
        assert_eq!(of(&own), None, "the root has no such files");
        group("a", "1000\n", "900\n", "anon 600\nactive_file 200\ninactive_file 100\nfile_mapped 50\n");
        assert_eq!(of(&own), Some(400));
        group("a/b", "700\n", "500\n", "");
        assert_eq!(of(&own), Some(200));
        group("a/b", "700\n", "900\n", "");
        assert_eq!(of(&own), Some(0));
        group("", "5000\n", "900\n", "");
        assert_eq!(of(&mount.path().join("of/another/namespace")), Some(4100));
    }
}
