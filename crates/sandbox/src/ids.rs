//! Which user and group ids this process's user namespace has: the maps of `/proc/self`.
//!
//! Must not know who wrote the maps. Read [`IdMap`] first.

use std::sync::LazyLock;

/// Largest id range the kernel knows: every id but the one that means "none".
const ALL_IDS: u32 = u32::MAX;

/// One line of a map: ids inside, ids of the namespace of the reader, how many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Range {
    inside: u32,
    outside: u32,
    count: u32,
}

/// The ids that exist in a user namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdMap {
    uids: Vec<Range>,
    gids: Vec<Range>,
    groups_settable: bool,
}

impl IdMap {
    /// That of this process, read once: a user namespace is entered before the first use or never.
    #[must_use]
    pub fn current() -> &'static Self {
        static CURRENT: LazyLock<IdMap> = LazyLock::new(|| {
            let read = |name: &str| std::fs::read_to_string(format!("/proc/self/{name}")).unwrap_or_default();
            IdMap::parse(&read("uid_map"), &read("gid_map"), &read("setgroups"))
        });
        &CURRENT
    }

    fn parse(uids: &str, gids: &str, setgroups: &str) -> Self {
        Self { uids: ranges(uids), gids: ranges(gids), groups_settable: setgroups.trim() != "deny" }
    }

    /// Whether every id of the machine is here under its own number, as outside of all user namespaces.
    #[must_use]
    pub fn is_initial(&self) -> bool {
        // A kernel without user namespaces has no maps.
        let all = Range { inside: 0, outside: 0, count: ALL_IDS };
        [&self.uids, &self.gids].iter().all(|ranges| ranges.is_empty() || ranges.as_slice() == [all])
    }

    /// Whether there is but one user: every file is that user's and no other can be had.
    #[must_use]
    pub fn is_single(&self) -> bool {
        [&self.uids, &self.gids].iter().any(|ranges| matches!(ranges.as_slice(), [Range { count: 1, .. }]))
    }

    /// Whether a file can belong to this user.
    #[must_use]
    pub fn has_uid(&self, uid: u32) -> bool {
        has(&self.uids, uid)
    }

    /// Whether a file can belong to this group.
    #[must_use]
    pub fn has_gid(&self, gid: u32) -> bool {
        has(&self.gids, gid)
    }

    /// The number in here of a group that has this one outside; `None` if it has none.
    #[must_use]
    pub fn gid_inside(&self, outside: u32) -> Option<u32> {
        if self.gids.is_empty() {
            return Some(outside);
        }
        self.gids.iter().find_map(|range| {
            let offset = outside.checked_sub(range.outside).filter(|offset| *offset < range.count)?;
            Some(range.inside + offset)
        })
    }

    /// How many users there are.
    #[must_use]
    pub fn uid_count(&self) -> u64 {
        self.uids.iter().map(|range| u64::from(range.count)).sum()
    }

    /// Whether supplementary groups may be changed here (user_namespaces(7), `/proc/PID/setgroups`).
    pub(crate) fn has_settable_groups(&self) -> bool {
        self.groups_settable
    }
}

fn has(ranges: &[Range], id: u32) -> bool {
    ranges.is_empty()
        || ranges.iter().any(|range| id.checked_sub(range.inside).is_some_and(|offset| offset < range.count))
}

fn ranges(map: &str) -> Vec<Range> {
    let line = |line: &str| {
        let mut numbers = line.split_whitespace().map(str::parse);
        let mut next = || numbers.next()?.ok();
        Some(Range { inside: next()?, outside: next()?, count: next()? })
    };
    map.lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_maps_say_which_ids_exist() {
        let all = "         0          0 4294967295\n";
        let host = IdMap::parse(all, all, "allow\n");
        assert!(host.is_initial() && !host.is_single() && host.has_settable_groups());
        assert!(host.has_uid(0) && host.has_gid(4_000_000_000));
        let subordinate = "0 1000 1\n1 100000 65536\n";
        let user = IdMap::parse(subordinate, subordinate, "allow\n");
        assert!(!user.is_initial() && !user.is_single());
        assert!(user.has_uid(65_536) && !user.has_uid(65_537));
        assert_eq!(user.uid_count(), 65_537);
        assert_eq!([1000, 100_002, 0].map(|gid| user.gid_inside(gid)), [Some(0), Some(3), None]);
        assert_eq!(host.gid_inside(7), Some(7));
        let single = IdMap::parse("0 1000 1\n", "0 1000 1\n", "deny\n");
        assert!(single.is_single() && !single.has_settable_groups());
        assert!(single.has_uid(0) && !single.has_uid(1));
        let none = IdMap::parse("", "", "");
        assert!(none.is_initial() && none.has_uid(7));
    }
}
