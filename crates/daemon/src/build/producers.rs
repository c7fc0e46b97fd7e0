//! Which front end made a graph that a client hands in again: statements tell it.
//!
//! Owns the results of all builds that run, by the vertex they come from. One tenant's are never found for another.
//! Start with [`Producers`].

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bollard_buildkit_proto::pb;
use stave_engine::attest::Asked;
use stave_oci::Digest;
use stave_worker::Namespace;

use super::Target;
use crate::frontend::graph_of;

/// The results of all builds.
#[derive(Debug, Default)]
pub(crate) struct Producers(Mutex<HashMap<Digest, Vec<Produced>>>);

/// A result, and whose it is.
type Produced = (Namespace, Weak<Target>);

impl Producers {
    /// Takes up a result. It is forgotten with its build.
    pub(super) fn add(&self, owner: &Namespace, target: &Arc<Target>) {
        let Some(output) = target.definition.outputs().first() else { return };
        if target.origin.asked.frontend.is_empty() {
            return;
        }
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, targets| {
            targets.retain(|(_, target)| target.strong_count() > 0);
            !targets.is_empty()
        });
        all.entry(output.vertex.clone()).or_default().push((owner.clone(), Arc::downgrade(target)));
    }

    /// Results that are still there.
    pub(super) fn count(&self) -> usize {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.values().flatten().filter(|(_, target)| target.strong_count() > 0).count()
    }

    /// What was asked of whoever made each of these graphs, where that is known.
    pub(super) fn of(
        &self,
        owner: &Namespace,
        inputs: &HashMap<String, pb::Definition>,
    ) -> BTreeMap<String, Asked> {
        let mut found = BTreeMap::new();
        for (name, graph) in inputs {
            let Ok(graph) = graph_of(graph) else { continue };
            let Some(output) = graph.outputs().first() else { continue };
            let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let targets = all.get(&output.vertex).into_iter().flatten();
            let own = targets.filter(|(theirs, _)| theirs == owner);
            if let Some(target) = own.filter_map(|(_, target)| target.upgrade()).next() {
                found.insert(name.clone(), target.origin.asked.clone());
            }
        }
        found
    }
}
