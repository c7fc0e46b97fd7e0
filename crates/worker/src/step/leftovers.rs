//! Which failed steps can still be entered: the latest, by whose they are.
//!
//! Owns their number: a worker that lives long must not keep a word of every step that ever failed. What one tenant's
//! step left is never found for another, though their vertices be the same: the files may not be. Must not know how a
//! file system is kept. Start with [`Leftovers`].

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use stave_oci::Digest;

use super::failed::FailedStep;
use crate::namespace::Namespace;

/// Failed steps that are remembered: whoever wants to enter one does so soon.
pub(crate) const MAX_LEFTOVERS: usize = 64;

/// The steps that failed last, the oldest first.
#[derive(Debug, Default)]
pub(crate) struct Leftovers(Mutex<VecDeque<(Namespace, FailedStep)>>);

impl Leftovers {
    /// Takes up a step; the oldest gives way.
    pub(crate) fn keep(&self, owner: Namespace, step: FailedStep) {
        let mut steps = self.lock();
        // A vertex that failed again is asked for as it failed last.
        steps.retain(|(theirs, known)| *theirs != owner || known.vertex != step.vertex);
        if steps.len() >= MAX_LEFTOVERS {
            steps.pop_front();
        }
        steps.push_back((owner, step));
    }

    /// What a vertex left when it last failed for this owner.
    pub(crate) fn of(&self, owner: &Namespace, vertex: &Digest) -> Option<FailedStep> {
        let steps = self.lock();
        let mut own = steps.iter().filter(|(theirs, step)| theirs == owner && step.vertex == *vertex);
        own.next_back().map(|(_, step)| step.clone())
    }

    pub(crate) fn count(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<(Namespace, FailedStep)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use stave_llb::ExecOp;
    use stave_store::Snapshot;

    use super::*;

    fn step(vertex: &str, argument: &str) -> FailedStep {
        FailedStep {
            vertex: Digest::sha256(vertex.as_bytes()),
            op: ExecOp { args: vec![argument.to_owned()], ..ExecOp::default() },
            inputs: Vec::new(),
            root: Snapshot::scratch(),
            mounts: std::collections::BTreeMap::new(),
            network: crate::session::StepNetwork::Host,
        }
    }

    #[test]
    fn the_last_failure_of_the_same_owner_is_found() {
        let (steps, own) = (Leftovers::default(), Namespace::Own("a".into()));
        steps.keep(Namespace::Shared, step("v", "first"));
        steps.keep(Namespace::Shared, step("v", "second"));
        steps.keep(own.clone(), step("w", "own"));
        let found = |owner: &Namespace, vertex: &str| {
            let found = steps.of(owner, &Digest::sha256(vertex.as_bytes()));
            found.map(|step| step.op.args.concat())
        };
        assert_eq!(found(&Namespace::Shared, "v").as_deref(), Some("second"));
        assert_eq!(found(&own, "w").as_deref(), Some("own"));
        assert_eq!(found(&own, "v"), None, "another's files are nobody else's");
        assert_eq!(found(&Namespace::Shared, "w"), None);
        assert_eq!(steps.count(), 2);
    }

    #[test]
    fn they_are_bounded() {
        let steps = Leftovers::default();
        for number in 0..MAX_LEFTOVERS * 3 {
            steps.keep(Namespace::Shared, step(&number.to_string(), ""));
        }
        assert_eq!(steps.count(), MAX_LEFTOVERS);
        let first = Digest::sha256(b"0");
        assert_eq!(steps.of(&Namespace::Shared, &first), None);
    }
}
