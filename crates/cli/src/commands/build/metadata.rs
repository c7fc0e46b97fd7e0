//! What `--metadata-file` holds: the keys of buildx.
//!
//! Owns which of them there are. Start with [`metadata`].

use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Map, Value};
use stave_engine::{BuildOutcome, EngineEvent, Observer};
use stave_frontend_dockerfile::{Diagnostic, Source};

use crate::progress::Warning;

/// The variable by which buildx's users say how much of the provenance they want here.
pub(super) const DETAIL_VARIABLE: &str = "BUILDX_METADATA_PROVENANCE";
/// The variable by which they ask for the warnings, too.
pub(super) const WARNINGS_VARIABLE: &str = "BUILDX_METADATA_WARNINGS";
/// What stands before a build's id in its reference: a builder and its node, as docker calls its own.
const BUILDER: &str = "default/default";
/// The start of every type of provenance.
const PROVENANCE: &str = "https://slsa.dev/provenance/";

/// How much of the provenance, where the build has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Detail {
    None,
    /// Without steps and sources.
    Min,
    Max,
}

impl Detail {
    /// What the variable says; `min` if it says nothing that is known.
    pub(super) fn of(text: Option<&str>) -> Self {
        match text {
            Some("max") => Self::Max,
            Some("disabled" | "0" | "false") => Self::None,
            _ => Self::Min,
        }
    }
}

/// What the checks of a build found, for those who ask for it here.
#[derive(Debug, Clone, Default)]
pub(super) struct Warnings(Arc<Mutex<Vec<Diagnostic>>>);

impl Warnings {
    /// Notes warnings, and passes every event on.
    pub(super) fn observer(&self, next: Observer) -> Observer {
        let noted = Arc::clone(&self.0);
        Observer::new(move |event| {
            if let EngineEvent::Warning(found) = &event {
                noted.lock().unwrap_or_else(PoisonError::into_inner).push(found.clone());
            }
            next.send(event);
        })
    }

    /// `buildx.build.warnings`, if there are any.
    pub(super) fn entry(&self, source: &Source) -> Option<(String, Value)> {
        let noted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let all: Vec<Warning> = noted.iter().map(|found| Warning::new(found, source)).collect();
        let value = serde_json::to_value(all).ok().filter(|value| *value != Value::Array(Vec::new()));
        value.map(|value| ("buildx.build.warnings".to_owned(), value))
    }
}

/// The keys and values of a build.
pub(super) fn metadata(outcome: &BuildOutcome, detail: Detail) -> Map<String, Value> {
    let mut found = Map::new();
    if let Some(build) = &outcome.build {
        found.insert("buildx.build.ref".to_owned(), Value::String(format!("{BUILDER}/{build}")));
    }
    // The main result's keys last: those of further stages must not hide them.
    for exported in outcome.exports.iter().rev() {
        found.extend(exported.metadata());
    }
    for image in outcome.images.iter().filter(|_| detail != Detail::None) {
        let provenance = image.attestations.iter().find(|one| one.predicate_type.starts_with(PROVENANCE));
        let predicate = provenance.and_then(|one| serde_json::from_slice(&one.predicate).ok());
        let Some(predicate) = predicate else { continue };
        let key = match outcome.images.as_slice() {
            [_] => "buildx.build.provenance".to_owned(),
            _ => format!("buildx.build.provenance/{}", image.platform),
        };
        found.insert(key, if detail == Detail::Max { predicate } else { shortened(predicate) });
    }
    found
}

/// A predicate of either version without its steps and sources.
fn shortened(mut predicate: Value) -> Value {
    let mut drop_at = |path: &str, key: &str| {
        if let Some(Value::Object(found)) = predicate.pointer_mut(path) {
            found.remove(key);
        }
    };
    drop_at("", "buildConfig");
    drop_at("/metadata", "https://mobyproject.org/buildkit@v1#metadata");
    drop_at("/buildDefinition/internalParameters", "buildConfig");
    drop_at("/runDetails/metadata/buildkit_metadata", "source");
    predicate
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn steps_and_sources_are_left_out_unless_asked_for() {
        assert_eq!(
            [None, Some("max"), Some("false"), Some("min")].map(Detail::of),
            [Detail::Min, Detail::Max, Detail::None, Detail::Min]
        );
        let v1 = json!({
            "buildDefinition": {"internalParameters": {"buildConfig": {}, "builderPlatform": "p"}},
            "runDetails": {"metadata": {"buildkit_metadata": {"source": {}, "vcs": {"revision": "r"}}}},
        });
        let expected = json!({
            "buildDefinition": {"internalParameters": {"builderPlatform": "p"}},
            "runDetails": {"metadata": {"buildkit_metadata": {"vcs": {"revision": "r"}}}},
        });
        assert_eq!(shortened(v1), expected);
        let v02 = json!({
            "buildConfig": {}, "metadata": {"https://mobyproject.org/buildkit@v1#metadata": {}, "reproducible": true},
        });
        assert_eq!(shortened(v02), json!({"metadata": {"reproducible": true}}));
    }
}
