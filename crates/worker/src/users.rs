//! Users and groups as the image's own `/etc/passwd` and `/etc/group` name them.
//! Owns the parsing and the lookup rules of docker's `USER` and `--chown`. Must not know processes or files
//! other than the two tables. Read [`UserTable`] first.

use std::path::Path;

use crate::base::Look;

/// Bytes read of `/etc/passwd` and of `/etc/group`: both come from an image.
const TABLE_LIMIT: u64 = 16 << 20;

/// Supplementary groups passed to the kernel (`NGROUPS_MAX`).
const GROUP_LIMIT: usize = 65536;

/// A name that the image does not know.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UserError {
    /// No such user in the image.
    #[error("unable to find user `{0}`: no matching entries in passwd file")]
    UnknownUser(String),
    /// No such group in the image.
    #[error("unable to find group `{0}`: no matching entries in group file")]
    UnknownGroup(String),
}

/// Who a process runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Supplementary groups, ascending, the primary one among them: a process that gives up its primary group
    /// must not escape what files deny to that group.
    pub groups: Vec<u32>,
    /// Home directory, `/` when the image names none.
    pub home: String,
}

/// The two tables of one root file system.
#[derive(Debug, Default)]
pub(crate) struct UserTable {
    users: Vec<User>,
    groups: Vec<Group>,
}

#[derive(Debug)]
struct User {
    name: String,
    uid: u32,
    gid: u32,
    home: String,
}

#[derive(Debug)]
struct Group {
    name: String,
    gid: u32,
    members: Vec<String>,
}

impl UserTable {
    /// Reads the tables of a root; a table that is absent or unreadable is empty.
    pub(crate) fn read(root: &(impl Look + ?Sized)) -> Self {
        let text = |path| {
            let bytes = root.read_file(Path::new(path), TABLE_LIMIT).unwrap_or_default();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        Self::parse(&text("etc/passwd"), &text("etc/group"))
    }

    /// Parses the tables; lines that are not entries are skipped, as every libc does.
    pub(crate) fn parse(passwd: &str, group: &str) -> Self {
        let users = passwd.lines().filter_map(|line| {
            let fields: Vec<&str> = line.trim().split(':').collect();
            let (name, uid, gid) = (fields.first()?, fields.get(2)?, fields.get(3)?);
            let home = fields.get(5).copied().unwrap_or_default();
            Some(User {
                name: (*name).to_owned(),
                uid: uid.parse().ok()?,
                gid: gid.parse().ok()?,
                home: home.to_owned(),
            })
        });
        let groups = group.lines().filter_map(|line| {
            let fields: Vec<&str> = line.trim().split(':').collect();
            let (name, gid) = (fields.first()?, fields.get(2)?);
            let members =
                fields.get(3).copied().unwrap_or_default().split(',').filter(|name| !name.is_empty());
            Some(Group {
                name: (*name).to_owned(),
                gid: gid.parse().ok()?,
                members: members.map(str::to_owned).collect(),
            })
        });
        Self { users: users.collect(), groups: groups.collect() }
    }

    /// Resolves docker's `USER` value: `user`, `user:group`, names or numbers, or nothing (root).
    pub(crate) fn identity(&self, spec: &str) -> Result<Identity, UserError> {
        let (user_part, group_part) = match spec.split_once(':') {
            Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
            None => (spec, None),
        };
        let user_part = if user_part.is_empty() { "0" } else { user_part };
        let entry = self.user(user_part);
        let uid = match (entry, user_part.parse::<u32>()) {
            (Some(user), _) => user.uid,
            (None, Ok(uid)) => uid,
            (None, Err(_)) => return Err(UserError::UnknownUser(user_part.to_owned())),
        };
        let home = entry.map(|user| user.home.clone()).filter(|home| !home.is_empty()).unwrap_or("/".into());
        if let Some(group) = group_part {
            let gid = self.gid(group)?;
            return Ok(Identity { uid, gid, groups: vec![gid], home });
        }
        let gid = entry.map_or(0, |user| user.gid);
        let mut groups: Vec<u32> = match entry {
            Some(user) => {
                self.groups.iter().filter(|group| group.members.contains(&user.name)).map(|g| g.gid).collect()
            }
            None => Vec::new(),
        };
        groups.push(gid);
        groups.sort_unstable();
        groups.dedup();
        groups.truncate(GROUP_LIMIT);
        Ok(Identity { uid, gid, groups, home })
    }

    /// The ids of a user by name: its own and its primary group's. BuildKit gives what is to belong to a user that
    /// the image does not know to root, and images are made to build that way.
    pub(crate) fn owner(&self, name: &str) -> (u32, u32) {
        self.user(name)
            .map_or_else(|| name.parse().map_or((0, 0), |uid| (uid, uid)), |user| (user.uid, user.gid))
    }

    /// The id of a group by name or number.
    pub(crate) fn gid(&self, group: &str) -> Result<u32, UserError> {
        if let Some(entry) = self.groups.iter().find(|entry| entry.name == group) {
            return Ok(entry.gid);
        }
        group.parse().map_err(|_| UserError::UnknownGroup(group.to_owned()))
    }

    /// By name first, then by number: `USER 1000` runs as the user that has this number, with its groups.
    fn user(&self, spec: &str) -> Option<&User> {
        self.users.iter().find(|user| user.name == spec).or_else(|| {
            let uid = spec.parse::<u32>().ok()?;
            self.users.iter().find(|user| user.uid == uid)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/sh\nbroken\napp:x:1000:1001::/home/app:/bin/sh\nnohome:x:7:7::\n";
    const GROUP: &str = "root:x:0:\napp:x:1001:\nwheel:x:10:root,app\naudio:x:5:app\n";

    #[track_caller]
    fn check(spec: &str, expected: Result<(u32, u32, &[u32], &str), UserError>) {
        let identity = UserTable::parse(PASSWD, GROUP).identity(spec);
        let expected = expected.map(|(uid, gid, groups, home)| Identity {
            uid,
            gid,
            groups: groups.to_vec(),
            home: home.to_owned(),
        });
        assert_eq!(identity, expected);
    }

    #[test]
    fn identities() {
        check("", Ok((0, 0, &[0, 10], "/root")));
        check("app", Ok((1000, 1001, &[5, 10, 1001], "/home/app")));
        check("1000", Ok((1000, 1001, &[5, 10, 1001], "/home/app")));
        check("app:wheel", Ok((1000, 10, &[10], "/home/app")));
        check("app:77", Ok((1000, 77, &[77], "/home/app")));
        check("4242", Ok((4242, 0, &[0], "/")));
        check("4242:app", Ok((4242, 1001, &[1001], "/")));
        check("nohome", Ok((7, 7, &[7], "/")));
        check("ghost", Err(UserError::UnknownUser("ghost".into())));
        check("app:ghost", Err(UserError::UnknownGroup("ghost".into())));
        check("-1", Err(UserError::UnknownUser("-1".into())));
    }

    #[test]
    fn files_of_an_unknown_owner_are_roots() {
        let table = UserTable::parse(PASSWD, GROUP);
        assert_eq!(table.owner("app"), (1000, 1001));
        assert_eq!(table.owner("1000"), (1000, 1001));
        assert_eq!(table.owner("ghost"), (0, 0));
    }

    #[test]
    fn an_image_without_tables_knows_only_numbers() {
        let table = UserTable::default();
        assert_eq!(table.identity("").map(|identity| identity.uid), Ok(0));
        assert!(table.identity("root").is_err());
        assert_eq!(table.owner("12"), (12, 12));
    }
}
