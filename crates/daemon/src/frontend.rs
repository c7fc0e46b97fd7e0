//! The front end `dockerfile.v0`: a client's options and directories become graphs to solve.
//!
//! Owns the options' names and what they mean to the planner, and where the Dockerfile comes from. Must not know how
//! a Dockerfile is read. Start with [`dockerfile`].

mod attributes;
mod definition;
mod subrequest;

use std::collections::HashMap;

use bollard_buildkit_proto::pb;
use serde_json::json;
use stave_engine::{BuildError, EngineEvent};
use stave_frontend_dockerfile::PlanRequest;
use stave_oci::Platform;

pub(crate) use attributes::Attributes;
pub(crate) use definition::graph_of;

use crate::build::{Build, Outcome};
use crate::failure::Failure;
use crate::progress::WarningSource;

/// Runs the front end.
pub(crate) async fn dockerfile(
    build: &Build,
    options: &HashMap<String, String>,
    inputs: &HashMap<String, pb::Definition>,
) -> Result<Outcome, Failure> {
    let attributes = Attributes::read(options, inputs)?;
    let loaded = definition::load(build, &attributes).await?;
    if let (Some(question), Some(request)) = (&attributes.subrequest, attributes.requests.first()) {
        let request = PlanRequest { dockerignore: loaded.ignored, ..request.clone() };
        return subrequest::answer(build, question, &loaded.source, &request, attributes.pull).await;
    }
    let about = WarningSource { source: loaded.source.clone(), vertex: loaded.vertex };
    let named = definition::named(build, &attributes).await?;
    for name in &attributes.imports {
        // A cache that cannot be read stops no build; that it was not read is shown.
        let step = build.journal.begin(format!("importing cache manifest from {name}"));
        step.end(Err::<(), _>("not supported yet: importing a cache")).ok();
    }
    let mut outcome = Outcome::default();
    for (at, request) in attributes.requests.iter().enumerate() {
        // One platform's warnings are the others', too.
        let parts = build.parts((at == 0).then(|| about.clone()));
        let request = PlanRequest {
            context: loaded.context.clone(),
            dockerignore: loaded.ignored.clone(),
            named_contexts: named.clone(),
            ..request.clone()
        };
        let lowered = parts.lower(&loaded.source, &request, attributes.pull).await;
        if let Err(BuildError::Dockerfile(found)) = &lowered {
            let observer = build.journal.observer(Some(about.clone()));
            for warning in found.iter().filter(|found| !found.is_error()) {
                observer.send(EngineEvent::Warning(warning.clone()));
            }
        }
        let lowered = lowered.map_err(|error| Failure::of_dockerfile(error, &loaded.source))?;
        if lowered.is_epoch_elsewhere {
            let what = "SOURCE_DATE_EPOCH that names a context or a stage, in a client's build";
            return Err(Failure::Unsupported(what.to_owned()));
        }
        let target = build.add(lowered.definition, lowered.resolved, lowered.epoch)?;
        let id = request.multi_platform.then(|| request.platform().to_string());
        let key = match &id {
            Some(id) => format!("containerimage.config/{id}"),
            None => "containerimage.config".to_owned(),
        };
        outcome.metadata.insert(key, lowered.config.to_bytes());
        outcome.targets.push((id, target));
    }
    let list = outcome.targets.iter().map(|(id, _)| {
        let platform = outcome_platform(&outcome, id.as_deref());
        let id = id.clone().unwrap_or_else(|| platform.to_string());
        json!({ "ID": id, "Platform": wire_platform(&platform) })
    });
    let list = json!({ "Platforms": list.collect::<Vec<_>>() });
    outcome.metadata.insert("refs.platforms".to_owned(), list.to_string().into_bytes());
    Ok(outcome)
}

fn outcome_platform(outcome: &Outcome, id: Option<&str>) -> Platform {
    let config = outcome.config(id).ok().flatten();
    config.map_or_else(Platform::host, |config| outcome.platform(id, &config))
}

fn wire_platform(platform: &Platform) -> serde_json::Value {
    let mut value = json!({ "architecture": platform.architecture, "os": platform.os });
    if let Some(variant) = &platform.variant {
        value["variant"] = json!(variant);
    }
    value
}
