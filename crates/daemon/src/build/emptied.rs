//! Cache mounts of steps that ignore the cache: such a step finds them empty, as buildkitd's do, once a build.
//!
//! Owns which directories these are. Must not know how a step gets them. Start with [`Emptied::for_graph`].

use std::collections::BTreeSet;

use stave_llb::{Definition, Mount, Op};
use stave_store::{Store, StoreError};
use stave_worker::{Namespace, is_cache_mount_id};
use tokio::sync::Mutex;

use crate::failure::Failure;

/// Hexadecimal digits of the digest of what a mount begins with.
const DIGITS: usize = 64;

/// What one build has emptied. A step that runs again does not find its own mount empty. Held while something is
/// emptied: a second graph of the build that wants the same must not begin before it is.
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
        let wanted = wanted(definition);
        if wanted.is_empty() {
            return Ok(());
        }
        let mut emptied = self.0.lock().await;
        let fresh: Vec<Wanted> = wanted.into_iter().filter(|mount| !emptied.contains(mount)).collect();
        if fresh.is_empty() {
            return Ok(());
        }
        let (store, namespace) = (store.clone(), namespace.clone());
        let removing = tokio::task::spawn_blocking(move || {
            store.remove_cache_mounts(|key| fresh.iter().any(|mount| mount.is(&namespace, key)))?;
            Ok::<_, StoreError>(fresh)
        });
        emptied.extend(removing.await.map_err(|_| Failure::Cancelled)??);
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
    use stave_llb::builder::{About, ExecSpec, GraphBuilder, MountSpec};
    use stave_llb::{ExecOp, Sharing, VertexMetadata};
    use stave_oci::Platform;

    use super::*;

    /// A graph with one step for each: the id of its cache mount, and whether it ignores the cache.
    fn graph(steps: &[(&str, bool)]) -> Definition {
        let mut graph = GraphBuilder::default();
        let mut last = None;
        for (id, ignore_cache) in steps {
            let root = Mount::Bind {
                target: "/".into(),
                input: None,
                selector: String::new(),
                readonly: false,
                output: None,
                content_cache: stave_llb::ContentCache::Default,
            };
            let cache = Mount::Cache {
                target: "/c".into(),
                input: None,
                selector: String::new(),
                readonly: false,
                id: (*id).to_owned(),
                sharing: Sharing::Shared,
            };
            let op = ExecOp { args: vec!["true".into()], cwd: "/".into(), ..ExecOp::default() };
            let metadata = VertexMetadata { ignore_cache: *ignore_cache, ..VertexMetadata::default() };
            let mounts = vec![
                MountSpec { mount: root, source: last, no_output: false },
                MountSpec { mount: cache, source: None, no_output: false },
            ];
            let about = About { metadata, ..About::named(*id) };
            last = Some(graph.exec(ExecSpec { op, mounts, platform: Platform::host(), about }));
        }
        graph.finish(last)
    }

    /// Puts a file into a cache mount that a step has used.
    fn fill(store: &Store, namespace: &Namespace, id: &str) {
        let mount = store.mutable_dir(&namespace.key(id), stave_store::Sharing::Shared).expect("a mount");
        let mount = mount.initialised().expect("is used");
        std::fs::write(mount.path().join("kept"), "x").expect("written");
    }

    fn is_filled(store: &Store, namespace: &Namespace, id: &str) -> bool {
        let mount = store.existing_mutable_dir(&namespace.key(id)).expect("is read");
        mount.is_some_and(|mount| mount.path().join("kept").exists())
    }

    #[tokio::test]
    async fn a_build_empties_what_its_steps_shall_find_empty_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::open(folder.path()).expect("a store");
        let (own, other) = (Namespace::Own("a".into()), Namespace::Own("b".into()));
        for (namespace, id) in [(&own, "go"), (&own, "go:build"), (&own, "npm"), (&other, "go")] {
            fill(&store, namespace, id);
        }
        let emptied = Emptied::default();
        let steps = graph(&[("go", true), ("npm", false)]);
        emptied.for_graph(&steps, (&store, &own)).await.expect("empties");
        assert!(!is_filled(&store, &own, "go"));
        for (namespace, id) in [(&own, "go:build"), (&own, "npm"), (&other, "go")] {
            assert!(is_filled(&store, namespace, id), "{id}");
        }
        // What a step of this build put there stays for the next one.
        fill(&store, &own, "go");
        emptied.for_graph(&steps, (&store, &own)).await.expect("nothing is left to do");
        assert!(is_filled(&store, &own, "go"));
        let another = Emptied::default();
        another.for_graph(&steps, (&store, &own)).await.expect("empties");
        assert!(!is_filled(&store, &own, "go"), "for another build it is to be empty again");
    }

    #[test]
    fn a_second_graph_waits_until_a_mount_is_emptied() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::open(folder.path()).expect("a store");
        fill(&store, &Namespace::Shared, "go");
        let (emptied, steps) = (Emptied::default(), graph(&[("go", true)]));
        let whose = (&store, &Namespace::Shared);
        let runtime = tokio::runtime::Builder::new_current_thread().max_blocking_threads(1).build();
        runtime.expect("a runtime").block_on(async {
            // The one thread that could remove it is busy.
            let (release, released) = std::sync::mpsc::channel();
            let busy = tokio::task::spawn_blocking(move || released.recv());
            let first = emptied.for_graph(&steps, whose);
            let second = emptied.for_graph(&steps, whose);
            futures::pin_mut!(first, second);
            assert!(futures::poll!(&mut first).is_pending());
            assert!(futures::poll!(&mut second).is_pending());
            assert!(is_filled(&store, &Namespace::Shared, "go"));
            release.send(()).expect("is heard");
            let (first, second) = futures::join!(first, second);
            first.and(second).expect("empties");
            busy.await.expect("ends").expect("was released");
        });
        assert!(!is_filled(&store, &Namespace::Shared, "go"));
    }

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
