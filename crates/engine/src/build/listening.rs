//! What the solver says of a build, passed on and counted; where in the Dockerfile a vertex comes from. Start with
//! [`listen`].

use std::sync::Arc;

use stave_llb::{Definition, Op, Vertex};
use stave_oci::Digest;
use stave_solver::{SolveError, SolveEvent};

use super::BuildError;
use crate::event::{EngineEvent, Observer};
use crate::explain::{Explainer, SecretWatch};
use crate::request::StepCount;

/// Passes the solver's events on and counts the Dockerfile's steps.
pub(super) async fn listen(
    mut receiver: stave_solver::EventReceiver,
    definition: Arc<Definition>,
    observer: Observer,
    explainer: Option<Explainer>,
    secrets: Option<SecretWatch>,
) -> StepCount {
    let mut count = StepCount::default();
    while let Some(event) = receiver.recv().await {
        let is_step = definition.vertex(event.vertex()).is_some_and(is_instruction);
        match &event {
            SolveEvent::Cached { .. } if is_step => {
                count.total += 1;
                count.cached += 1;
            }
            SolveEvent::Completed { .. } if is_step => count.total += 1,
            _ => {}
        }
        let missed = match &event {
            SolveEvent::Missed { vertex, miss } => Some((vertex.clone(), Arc::clone(miss))),
            SolveEvent::Cached { vertex, .. } => {
                if let Some(secrets) = &secrets {
                    secrets.compare(vertex, &observer);
                }
                None
            }
            _ => None,
        };
        if let (Some((vertex, _)), Some(secrets)) = (&missed, &secrets) {
            secrets.note(vertex);
        }
        observer.send(EngineEvent::Solve(event));
        if let (Some((vertex, miss)), Some(explainer)) = (missed, &explainer) {
            let (explainer, of) = (explainer.clone(), vertex.clone());
            let explained = match Explainer::plainly(&miss) {
                Some(reason) => Ok(reason),
                // Beside the step, which runs already; what it writes meanwhile waits in the channel.
                None => tokio::task::spawn_blocking(move || explainer.explain(&of, &miss)).await,
            };
            if let Ok(reason) = explained {
                observer.send(EngineEvent::Miss { vertex, reason: Arc::new(reason) });
            }
        }
    }
    count
}

/// The failure with its place in the Dockerfile.
pub(super) fn located(error: SolveError, definition: &Definition) -> BuildError {
    let lines = match &error {
        SolveError::Vertex { vertex, .. } => lines_of(definition, vertex),
        _ => None,
    };
    BuildError::Solve { error, lines }
}

/// First and last line of the Dockerfile that a vertex comes from, counted from 1.
pub(crate) fn lines_of(definition: &Definition, vertex: &Digest) -> Option<(usize, usize)> {
    let ranges = definition.source_location(vertex).iter().flat_map(|location| &location.ranges);
    let (first, last) = ranges
        .fold((i32::MAX, 0), |(first, last), range| (first.min(range.start.line), last.max(range.end.line)));
    if first <= last {
        return Some((usize::try_from(first).ok()?, usize::try_from(last).ok()?));
    }
    // What an ADD fetches has no place of its own: the ADD has.
    let mut users = definition.vertices().iter();
    let user = users.find(|user| user.inputs.iter().any(|edge| edge.vertex == *vertex))?;
    lines_of(definition, &user.digest)
}

/// Whether a vertex is a step that its Dockerfile names, other than a base image.
fn is_instruction(vertex: &Vertex) -> bool {
    !matches!(vertex.op, Op::Source(_)) && vertex.name().is_none_or(|name| !name.starts_with("[internal]"))
}
