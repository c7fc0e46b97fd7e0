//! Cache mounts of steps that ignore the cache: such a step finds them empty, as buildkitd's do, once a build.
//!
//! Owns which directories these are. Must not know how a step gets them. Start with [`Emptied::for_graph`].

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use stave_llb::{Definition, Mount, Op};
use stave_store::Store;
use stave_worker::{Namespace, is_cache_mount_id};

use crate::failure::Failure;

/// Hexadecimal digits of the digest of what a mount begins with.
const DIGITS: usize = 64;

/// What one build has emptied. A step that runs again does not find its own mount empty.
#[derive(Debug, Default)]
pub(super) struct Emptied(Mutex<BTreeSet<Wanted>>);

/// A cache mount.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Wanted {
    id: String,
    /// Whether it begins with files: then each such beginning has a directory of its own.
    is_seeded: bool,
}

impl Wanted {
    /// Whether a directory's key is this mount's.
    fn is(&self, namespace: &Namespace, key: &str) -> bool {
        let rest = key.strip_prefix(namespace.key(&self.id).as_str());
        match (rest, self.is_seeded) {
            (Some(""), false) => true,
            // The digest of what it begins with.
            (Some(rest), true) => rest.strip_prefix(':').is_some_and(|digest| {
                digest.len() == DIGITS && digest.bytes().all(|byte| byte.is_ascii_hexdigit())
            }),
            _ => false,
        }
    }
}

impl Emptied {
    /// Empties what steps of this graph shall find empty and this build has not emptied before. Those in use stay.
    pub(super) async fn for_graph(
        &self,
        definition: &Definition,
        (store, namespace): (&Store, &Namespace),
    ) -> Result<(), Failure> {
        let fresh: Vec<Wanted> = {
            let mut emptied = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            wanted(definition).into_iter().filter(|mount| emptied.insert(mount.clone())).collect()
        };
        if fresh.is_empty() {
            return Ok(());
        }
        let (store, namespace) = (store.clone(), namespace.clone());
        let removing = tokio::task::spawn_blocking(move || {
            store.remove_cache_mounts(|key| fresh.iter().any(|mount| mount.is(&namespace, key)))
        });
        removing.await.map_err(|_| Failure::Cancelled)??;
        Ok(())
    }
}

/// The cache mounts of steps that ignore the cache.
fn wanted(definition: &Definition) -> BTreeSet<Wanted> {
    let mut wanted = BTreeSet::new();
    for vertex in definition.vertices().iter().filter(|vertex| vertex.metadata.ignore_cache) {
        let Op::Exec(op) = &vertex.op else { continue };
        for mount in &op.mounts {
            if let Mount::Cache { id, input, .. } = mount
                && is_cache_mount_id(id)
            {
                wanted.insert(Wanted { id: id.clone(), is_seeded: input.is_some() });
            }
        }
    }
    wanted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(id: &str, is_seeded: bool, key: &str, expected: bool) {
        let wanted = Wanted { id: id.to_owned(), is_seeded };
        let own = Namespace::Own("a".into());
        assert_eq!(wanted.is(&Namespace::Shared, key), expected, "{key}");
        assert_eq!(wanted.is(&own, &own.key(key)), expected, "{key} of a tenant");
        assert!(!wanted.is(&own, key), "{key} of all");
    }

    #[test]
    fn only_the_mount_itself_is_emptied() {
        check("/go", false, "/go", true);
        check("/go", false, "/go:abc", false);
        check("/go", false, "/golang", false);
        check("/go", true, &format!("/go:{}", "6f".repeat(32)), true);
        check("/go", true, "/go:build", false);
        check("/go", true, "/go", false);
        check("/go", true, "/go:mod/x", false);
    }
}
