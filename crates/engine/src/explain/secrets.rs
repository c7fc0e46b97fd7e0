//! Warns of a hit whose secret is another than when the step ran: its result may be stale, since a secret's value
//! is in no key. Owns the comparison of fingerprints with the record of the run. Start with [`SecretWatch`].

use std::collections::BTreeMap;

use stave_llb::Definition;
use stave_oci::Digest;
use stave_store::Store;
use stave_worker::Session;
use stave_worker::keyed::{fingerprint, secrets_of};

use crate::event::{EngineEvent, Observer};
use crate::record::{History, Recorder};

/// Builds searched for the run of a step.
const MAX_BUILDS: usize = 50;

/// The secrets of one build's steps.
#[derive(Debug)]
pub(crate) struct SecretWatch {
    history: History,
    recorder: Recorder,
    /// Fingerprints by id, of each vertex that may see secrets.
    steps: BTreeMap<Digest, BTreeMap<String, String>>,
}

impl SecretWatch {
    /// Nothing when no step of the graph sees a secret that was given.
    pub(crate) fn new(
        store: &Store,
        recorder: Recorder,
        definition: &Definition,
        session: &Session,
    ) -> Option<Self> {
        if session.secrets.is_empty() {
            return None;
        }
        let mut known: BTreeMap<String, String> = BTreeMap::new();
        for (id, secret) in &session.secrets {
            match fingerprint(store, secret) {
                Ok(found) => drop(found.map(|found| known.insert(id.clone(), found))),
                Err(error) => {
                    tracing::warn!(%error, "secrets are not compared");
                    return None;
                }
            }
        }
        let mut steps = BTreeMap::new();
        for vertex in definition.vertices() {
            let ids = secrets_of(vertex).into_iter();
            let seen: BTreeMap<String, String> =
                ids.filter_map(|id| known.get(&id).cloned().map(|print| (id, print))).collect();
            if !seen.is_empty() {
                steps.insert(vertex.digest.clone(), seen);
            }
        }
        (!steps.is_empty()).then(|| Self {
            history: History::of(store).within(&session.namespace),
            recorder,
            steps,
        })
    }

    /// A step runs with these secrets.
    pub(crate) fn note(&self, vertex: &Digest) {
        if let Some(seen) = self.steps.get(vertex) {
            self.recorder.saw_secrets(vertex, seen.clone());
        }
    }

    /// A step was found: were its secrets these?
    pub(crate) fn compare(&self, vertex: &Digest, observer: &Observer) {
        let Some(seen) = self.steps.get(vertex) else { return };
        let run = self.history.records().take(MAX_BUILDS).find_map(|record| {
            record
                .steps
                .into_iter()
                .find(|step| step.vertex.as_ref() == Some(vertex) && !step.secrets.is_empty())
        });
        let Some(run) = run else { return };
        for (id, now) in seen {
            if run.secrets.get(id).is_some_and(|then| then != now) {
                let text = format!(
                    "WARNING: secret `{id}` changed since this step ran; its result is the earlier one \
                     (--no-cache-filter runs it again)"
                );
                observer.send(EngineEvent::Note { vertex: vertex.clone(), text });
            }
        }
    }
}
