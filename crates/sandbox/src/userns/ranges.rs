//! The ranges of subordinate ids that `/etc/subuid` and `/etc/subgid` grant a user (subuid(5)).
//!
//! Read [`of_user`] first.

use std::fs;
use std::path::Path;

/// Consecutive ids of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SubordinateRange {
    pub(super) first: u32,
    pub(super) count: u32,
}

/// What `file` grants the user, who may stand there by number or by name.
pub(super) fn of_user(file: &Path, uid: u32) -> Vec<SubordinateRange> {
    let Ok(granted) = fs::read_to_string(file) else { return Vec::new() };
    let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
    // Users of a directory service are not in the file; the session says their name.
    let name = name_of(&users, uid).map(str::to_owned).or_else(|| std::env::var("USER").ok());
    parse(&granted, uid, name.as_deref())
}

fn name_of(users: &str, uid: u32) -> Option<&str> {
    users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then_some(name)
    })
}

fn parse(granted: &str, uid: u32, name: Option<&str>) -> Vec<SubordinateRange> {
    let own = |who: &str| who.parse() == Ok(uid) || Some(who) == name;
    let range = |line: &str| {
        let mut fields = line.trim().split(':');
        let who = fields.next()?;
        let (first, count) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        (own(who) && count > 0).then_some(SubordinateRange { first, count })
    };
    let mut total = 0_u32;
    let mut fits = |range: &SubordinateRange| {
        let sum = total.checked_add(range.count).filter(|_| range.first.checked_add(range.count).is_some());
        total = sum.unwrap_or(total);
        sum.is_some()
    };
    granted.lines().filter_map(range).take(super::MAX_RANGES).filter(|range| fits(range)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(granted: &str, expected: &[(u32, u32)]) {
        let found: Vec<_> =
            parse(granted, 1000, Some("ann")).iter().map(|range| (range.first, range.count)).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn ranges_are_by_name_or_number() {
        check("ann:100000:65536\nbob:165536:65536\n", &[(100_000, 65_536)]);
        check("1000:5:6\nann:100:7\n", &[(5, 6), (100, 7)]);
        check("bob:1:2\n# ann:1:2\nann:x:2\nann:1\nann:9:0\n", &[]);
        check("ann:4294967295:2\nann:1:4294967295\nann:1:2", &[(1, 2)]);
    }

    #[test]
    fn names_are_those_of_the_users_file() {
        let users = "root:x:0:0::/root:/bin/sh\nann:x:1000:1000::/:\n";
        assert_eq!(name_of(users, 1000), Some("ann"));
        assert_eq!(name_of(users, 7), None);
    }
}
