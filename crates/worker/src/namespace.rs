//! Whose things a build may find again: directories that outlive it, images that were pulled before, cache records.
//!
//! One tenant's input must never become another's output unless the content is equal. What is not found by content is
//! therefore found by a key with the tenant in it; what is found by content (layers, blobs) is shared. Must not know
//! how tenants are told apart. Start with [`Namespace`].

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash as _, Hasher as _};
use std::sync::Arc;

/// In front of a tenant's keys.
const MARK: &str = "tenant ";
/// In front of the key of what was fetched of a repository.
pub(crate) const REPOSITORY: &str = "git repository ";
/// In front of the key of what is known of a download.
pub(crate) const DOWNLOAD: &str = "download ";
/// In front of the key of a client's directory.
pub const CLIENT_DIRECTORY: &str = "client-directory:";
/// Between the tenant and the key.
const SEPARATOR: &str = ": ";

/// Whether a cache mount may have this id. Its directory is kept beside those that this machine itself reads, some of
/// which say what is to be executed: a step must not write to them.
#[must_use]
pub fn is_cache_mount_id(id: &str) -> bool {
    ![MARK, REPOSITORY, DOWNLOAD, CLIENT_DIRECTORY].iter().any(|reserved| id.starts_with(reserved))
}

/// Whose things a build may find again.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Namespace {
    /// Those of everybody who has no namespace. What is made here is trusted by all.
    #[default]
    Shared,
    /// Those of one tenant, by a name of letters and digits; and, of cache records, the shared ones.
    Own(Arc<str>),
}

impl Namespace {
    /// What a directory is kept under that `key` names.
    #[must_use]
    pub fn key(&self, key: &str) -> String {
        match self {
            Self::Shared => key.to_owned(),
            Self::Own(name) => format!("{MARK}{name}{SEPARATOR}{key}"),
        }
    }

    /// Whether images may be found by their names, and without asking the registry for its leave.
    pub fn finds_local_images(&self) -> bool {
        *self == Self::Shared
    }

    /// The namespace of what [`Self::key`] made, and the key.
    #[must_use]
    pub fn of_key(key: &str) -> (Self, &str) {
        let parts = key.strip_prefix(MARK).and_then(|rest| rest.split_once(SEPARATOR));
        match parts {
            Some((name, key)) => (Self::Own(name.into()), key),
            None => (Self::Shared, key),
        }
    }

    /// A number that all builds of a tenant have, and no other; `own` for those that share with nobody.
    pub(crate) fn group(&self, own: usize) -> usize {
        match self {
            Self::Shared => own,
            Self::Own(name) => {
                let mut hasher = DefaultHasher::new();
                name.hash(&mut hasher);
                // Where a number is short, half of the hash tells tenants apart as well as addresses do.
                hasher.finish() as usize
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_mount_is_none_of_the_directories_that_are_read() {
        for id in ["/deps", "go-mod", "git", "downloads", ""] {
            assert!(is_cache_mount_id(id), "{id}");
        }
        let reserved = [
            "git repository https://host/a",
            "download https://host/a k",
            "client-directory:context::",
            "tenant a: x",
        ];
        for id in reserved {
            assert!(!is_cache_mount_id(id), "{id}");
        }
    }

    #[test]
    fn keys_tell_whose_they_are() {
        let own = Namespace::Own("a1".into());
        assert_eq!(own.key("go: mod"), "tenant a1: go: mod");
        assert_eq!(Namespace::of_key("tenant a1: go: mod"), (own.clone(), "go: mod"));
        assert_eq!(Namespace::of_key("go: mod"), (Namespace::Shared, "go: mod"));
        assert_eq!(own.group(1), own.group(2));
        assert_ne!(own.group(1), Namespace::Own("a2".into()).group(1));
        assert_eq!(Namespace::Shared.group(1), 1);
    }
}
