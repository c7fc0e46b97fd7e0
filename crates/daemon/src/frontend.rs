//! The front end `dockerfile.v0`: a client's options and directories become graphs to solve.
//!
//! Owns the options' names and what they mean to the planner, and where the Dockerfile comes from. Must not know how
//! a Dockerfile is read. Start with [`dockerfile`].

mod attributes;
mod definition;
mod subrequest;

use std::collections::{BTreeMap, HashMap};

use bollard_buildkit_proto::pb;
use serde_json::json;
use stave_engine::attest::{Asked, FRONTEND};
use stave_engine::{BuildError, EngineEvent, Lowering, Parts, Unlowered};
use stave_frontend_dockerfile::input::{ContextSource, NamedContext};
use stave_frontend_dockerfile::{PlanRequest, Source};
use stave_oci::Platform;

pub(crate) use attributes::Attributes;
pub(crate) use definition::graph_of;

use crate::build::{Build, Origin};
use crate::failure::Failure;
use crate::outcome::Outcome;
use crate::progress::WarningSource;

/// What the front end came to.
#[derive(Debug)]
pub(crate) enum Made {
    Outcome(Outcome),
    /// The Dockerfile is for another front end: an image.
    Forward {
        source: String,
        /// What the Dockerfile says of it: its name, and perhaps more words.
        line: String,
        /// The Dockerfile.
        dockerfile: Box<Source>,
    },
}

/// The front end image that the build or its Dockerfile asks for, if the one inside does not stand for it. One that was
/// forwarded to does not forward again.
fn another(options: &HashMap<String, String>, source: &Source) -> Option<(String, String)> {
    if options.contains_key("cmdline") {
        return None;
    }
    let asked = options.get("build-arg:BUILDKIT_SYNTAX").filter(|line| !line.is_empty()).cloned();
    let line = asked.or_else(|| stave_engine::syntax_line(source))?;
    let image = line.split_whitespace().next()?.to_owned();
    (!stave_engine::is_built_in_frontend(&image)).then_some((image, line))
}

/// Runs the front end.
pub(crate) async fn dockerfile(
    build: &Build,
    options: &HashMap<String, String>,
    inputs: &HashMap<String, pb::Definition>,
) -> Result<Made, Failure> {
    let attributes = Attributes::read(options, inputs)?;
    let loaded = Box::pin(definition::load(build, &attributes)).await?;
    build.has_read(&loaded.source);
    if let Some((source, line)) = another(options, &loaded.source) {
        return Ok(Made::Forward { source, line, dockerfile: Box::new(loaded.source) });
    }
    if let (Some(question), Some(request)) = (&attributes.subrequest, attributes.requests.first()) {
        let request = PlanRequest { dockerignore: loaded.ignored, ..request.clone() };
        let answered = subrequest::answer(build, question, &loaded.source, &request, attributes.pull).await;
        return answered.map(Made::Outcome);
    }
    let about = WarningSource { source: loaded.source.clone(), vertex: loaded.vertex.clone() };
    let named = definition::named(build, &attributes).await?;
    build.show_unreadable();
    let mut asked = asked(options, &attributes, &loaded);
    asked.inputs = build.made_from(inputs);
    let mut outcome = Outcome::default();
    for (at, request) in attributes.requests.iter().enumerate() {
        // One platform's warnings are the others', too.
        let parts = build.parts((at == 0).then(|| about.clone()));
        bring_layouts(build, request, &named).await?;
        let parts = parts.with_layouts(build.layouts.directories());
        let request = PlanRequest {
            context: loaded.context.clone(),
            dockerignore: loaded.ignored.clone(),
            named_contexts: named.clone(),
            ..request.clone()
        };
        let request = dated(build, &loaded.source, request).await?;
        let planned = Box::pin(parts.planned(&loaded.source, &request, attributes.pull)).await;
        let lowered = Box::pin(with_outputs(build, &parts, planned, &loaded.source)).await?;
        if let Err(BuildError::Dockerfile(found)) = &lowered {
            let observer = build.journal.observer(Some(about.clone()));
            for warning in found.iter().filter(|found| !found.is_error()) {
                observer.send(EngineEvent::Warning(warning.clone()));
            }
        }
        let lowered = lowered.map_err(|error| Failure::of_dockerfile(error, &loaded.source))?;
        let (materials, layers) = (Some(lowered.materials), lowered.layers);
        let origin = Origin { asked: asked.clone(), materials, layers, scanned: lowered.scanned };
        let target = build.add_made(lowered.definition, lowered.resolved, lowered.epoch, origin)?;
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
    Ok(Made::Outcome(outcome))
}

/// A plan as a graph, once the commands that it asks for have run (`ENV NAME=$(…)`, own syntax). Errors of the Dockerfile
/// are the inner ones: their warnings are shown beside them.
async fn with_outputs(
    build: &Build,
    parts: &Parts<'_>,
    planned: Result<Unlowered, BuildError>,
    source: &Source,
) -> Result<Result<Lowering, BuildError>, Failure> {
    let mut planned = match planned {
        Ok(planned) => planned,
        Err(error) => return Ok(Err(error)),
    };
    loop {
        let commands = match parts.commands(&planned) {
            Ok(commands) if commands.is_empty() => return Ok(parts.lower(planned)),
            Ok(commands) => commands,
            Err(error) => return Ok(Err(error)),
        };
        for command in commands {
            let target = build.add(command.definition.clone(), planned.resolved().clone(), None)?;
            let snapshot = build.solve(&target).await?;
            let told = parts.tell(&mut planned, command, &snapshot).await;
            told.map_err(|error| Failure::of_dockerfile(error, source))?;
        }
    }
}

/// Brings the images that named contexts take from layouts of the client.
async fn bring_layouts(
    build: &Build,
    request: &PlanRequest,
    named: &BTreeMap<String, NamedContext>,
) -> Result<(), Failure> {
    for context in named.values() {
        if let NamedContext::OciLayout { store, digest } = context {
            for platform in [request.platform(), &request.build_platform] {
                build.layouts.bring(store, digest, platform).await?;
            }
        }
    }
    Ok(())
}

/// What statements say that this front end was asked.
fn asked(options: &HashMap<String, String>, attributes: &Attributes, loaded: &definition::Loaded) -> Asked {
    let mut asked = crate::wanted::asked(FRONTEND, options);
    if loaded.is_dockerfile_local {
        asked.locals.insert(attributes.dockerfile_name.clone());
    }
    match &loaded.context {
        // Its ignore file was asked for.
        ContextSource::Local => drop(asked.locals.insert(definition::CONTEXT.to_owned())),
        // Who reads a Dockerfile there reads the source, whether or not its steps do.
        _ => asked.sources = loaded.sources.clone(),
    }
    asked
}

/// The request with the time that its `SOURCE_DATE_EPOCH` names, if it names a source.
async fn dated(build: &Build, source: &Source, request: PlanRequest) -> Result<PlanRequest, Failure> {
    let Some(wanted) = stave_engine::epoch_source(source, &request) else { return Ok(request) };
    let wanted = build.allowed(&wanted)?;
    let target = build.add(wanted.clone(), BTreeMap::new(), None)?;
    let snapshot = build.solve(&target).await?;
    let time = build.engine().source_time(&wanted, &snapshot).await;
    Ok(request.with_epoch(time.map_err(|error| Failure::of_dockerfile(error, source))?))
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
    if let Some(version) = &platform.os_version {
        value["os.version"] = json!(version);
    }
    if !platform.os_features.is_empty() {
        value["os.features"] = json!(platform.os_features);
    }
    value
}
