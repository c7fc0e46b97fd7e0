//! Content that a cache's keys are made of, digested while the build goes on: at its end nobody waits for it.
//!
//! Owns which results that is and how much of it happens at once. Must not know what keys are. Start with [`Ahead`].

use std::collections::HashMap;
use std::sync::Arc;

use stave_llb::Definition;
use stave_oci::Digest;
use stave_remotecache::key::{ContentPath, OpKeys};
use stave_store::Snapshot;
use stave_worker::{LocalWorker, Ref};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// Parts of one output of a vertex.
type Parts = (u32, Vec<ContentPath>);

/// What is to be digested as soon as it is there. The worker remembers the digests.
pub(super) struct Ahead {
    worker: Arc<LocalWorker>,
    wanted: HashMap<Digest, Vec<Parts>>,
    permits: Arc<Semaphore>,
}

impl Ahead {
    /// With as many at once as there are permits: few while steps run.
    pub(super) fn of(worker: &Arc<LocalWorker>, definition: &Definition, permits: &Arc<Semaphore>) -> Self {
        Self { worker: Arc::clone(worker), wanted: wanted(definition), permits: Arc::clone(permits) }
    }

    /// A vertex has come to these outputs.
    pub(super) fn made(&self, vertex: &Digest, outputs: &[Snapshot], background: &mut JoinSet<()>) {
        for (output, paths) in self.wanted.get(vertex).into_iter().flatten() {
            let Some(snapshot) = outputs.get(*output as usize).cloned() else { continue };
            let (worker, permits, paths) =
                (Arc::clone(&self.worker), Arc::clone(&self.permits), paths.clone());
            background.spawn(async move {
                let _permit = permits.acquire().await;
                // What fails here is tried again at the end, and told then.
                if let Err(error) = worker.travelling_digest(&Ref::Snapshot(snapshot), &paths).await {
                    tracing::debug!(error = &error as &dyn std::error::Error, "content is digested later");
                }
            });
        }
    }
}

/// What later vertices read of earlier ones, by these.
fn wanted(definition: &Definition) -> HashMap<Digest, Vec<Parts>> {
    let mut wanted: HashMap<Digest, Vec<Parts>> = HashMap::new();
    for vertex in definition.vertices() {
        let Some(keys) = OpKeys::of(vertex, &[]) else { continue };
        for (edge, input) in vertex.inputs.iter().zip(keys.inputs) {
            let Some(paths) = input.content else { continue };
            let of_vertex = wanted.entry(edge.vertex.clone()).or_default();
            if !of_vertex.contains(&(edge.output, paths.clone())) {
                of_vertex.push((edge.output, paths));
            }
        }
    }
    wanted
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use stave_llb::builder::{About, FileSpec, FileStep, GraphBuilder};
    use stave_llb::{CopyAction, FileActionKind, SourceOp};
    use stave_oci::Platform;

    use super::*;

    #[test]
    fn what_copies_read_is_wanted_of_what_they_read_it_from() {
        let mut graph = GraphBuilder::default();
        let mut source = |name: &str| {
            let op = SourceOp::new(format!("docker-image://a.invalid/{name}:1"), BTreeMap::new());
            graph.source(op, &Platform::host(), About::default())
        };
        let (base, from) = (source("base"), source("from"));
        let mut copy = |base, path: &str| {
            let copy = CopyAction { src: path.to_owned(), dest: "/".to_owned(), ..CopyAction::default() };
            let step = FileStep { kind: FileActionKind::Copy(copy), source: Some(from) };
            graph.file(FileSpec { base: Some(base), actions: vec![step], about: About::default() })
        };
        let first = copy(base, "/a");
        let second = copy(first, "/b");
        let last = copy(second, "/a");
        let definition = graph.finish(Some(last));
        let wanted = wanted(&definition);
        let image = |name: &str| {
            let is = |vertex: &&stave_llb::Vertex| matches!(&vertex.op, stave_llb::Op::Source(op) if op.raw.contains(name));
            definition.vertices().iter().find(is).expect("is there").digest.clone()
        };
        let read: Vec<String> = wanted[&image("/from")]
            .iter()
            .flat_map(|(_, paths)| paths.iter().map(|one| one.path.clone()))
            .collect();
        assert_eq!(read, ["/a", "/b"], "each once");
        assert!(!wanted.contains_key(&image("/base")), "nobody reads what a step only lies on");
    }
}
