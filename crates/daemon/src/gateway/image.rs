//! Front ends that are images: the image's program runs in a sandbox, and is served the gateway over its standard input
//! and output.
//!
//! What it is given: the build's options, its session's id, the worker, in its environment as BuildKit has it; the graph
//! of its own image in a file. What it may do: what the client's own front end may, in the same build, with ids and
//! containers of its own, and for as long as it runs.
//! Owns that life. Must not know what a front end asks for: that is the gateway's. Start with [`run`].

mod stdio;

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use bollard_buildkit_proto::moby::buildkit::v1::frontend::llb_bridge_server::LlbBridgeServer;
use bollard_buildkit_proto::pb;
use futures::{StreamExt as _, stream};
use serde_json::json;
use stave_engine::PullPolicy;
use stave_llb::SourceOp;
use stave_llb::builder::{About, GraphBuilder};
use stave_oci::{ImageConfig, Platform, Reference};
use stave_store::Snapshot;
use stave_worker::{Bind, ExecError, RunSpec, Running, StepNetwork};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;

use super::containers::Containers;
use super::{Asked, Gateway};
use crate::build::Build;
use crate::failure::Failure;
use crate::outcome::Outcome;
use crate::state::Shared;
use crate::workers;

/// Front end images that may stand behind each other.
const MAX_DEPTH: usize = 8;
/// The longest message of a front end: graphs are long.
const MAX_MESSAGE: usize = 128 << 20;
/// Calls of one front end at a time.
const MAX_STREAMS: u32 = 256;
/// Bytes of all options together: the kernel bounds an environment.
const MAX_OPTIONS: usize = 1 << 20;
/// The longest variable: what the kernel takes.
const MAX_VARIABLE: usize = 128 << 10;
/// The program of an image that names none.
const PROGRAM: &str = "/run";
/// Where a front end finds the graph of its own image.
const METADATA: &str = "/run/config/buildkit/metadata";
/// What the graph's file is called there.
const METADATA_FILE: &str = "frontend.bin";
/// What BuildKit's own products say of themselves; front ends show it in errors.
const PRODUCT: &str = "stave";

const NO_NETWORK: &str = "moby.buildkit.frontend.network.none";
const CAPABILITIES: &str = "moby.buildkit.frontend.caps";
const INPUTS: &str = "moby.buildkit.frontend.inputs";

/// A front end image that is being served.
#[derive(Debug)]
pub(crate) struct Served {
    pub(super) build: Arc<Build>,
    pub(super) inputs: HashMap<String, pb::Definition>,
    pub(super) containers: Arc<Containers>,
    /// Front end images that stand between it and the client, itself among them.
    pub(super) depth: usize,
    returned: Mutex<Option<oneshot::Sender<Result<Outcome, Failure>>>>,
}

impl Served {
    /// Takes what it came to; only the first one counts.
    pub(super) fn finish(&self, outcome: Result<Outcome, Failure>) -> Result<(), Failure> {
        let sender = self.returned.lock().unwrap_or_else(PoisonError::into_inner).take();
        let sender = sender.ok_or_else(|| Failure::Value("gateway result is already set".to_owned()))?;
        // Nobody waits any more: the build is over.
        sender.send(outcome).map_err(|_| Failure::Cancelled)
    }
}

/// The image of a front end, ready to run.
struct Program {
    snapshot: Snapshot,
    config: ImageConfig,
    /// The graph of the image, as front ends read it.
    definition: Vec<u8>,
}

/// Runs the front end of an image to its end.
pub(super) async fn run(
    shared: &Arc<Shared>,
    build: &Arc<Build>,
    source: &str,
    asked: Asked<'_>,
) -> Result<Outcome, Failure> {
    if asked.depth >= MAX_DEPTH {
        return Err(Failure::Value(format!("more than {MAX_DEPTH} front end images behind each other")));
    }
    if source.is_empty() {
        return Err(Failure::Value("no source specified for gateway".to_owned()));
    }
    let program = program(build, source).await?;
    if let Some(missing) = missing_capability(&program.config, &asked) {
        return Err(Failure::FrontendCapability(missing));
    }
    let (sender, mut returned) = oneshot::channel();
    let served = Arc::new(Served {
        build: Arc::clone(build),
        inputs: asked.inputs.clone(),
        containers: Arc::default(),
        depth: asked.depth + 1,
        returned: Mutex::new(Some(sender)),
    });
    let env = environment(shared, build, &program.config, asked.options)?;
    let scratch = build.engine().store().scratch_dir()?;
    std::fs::write(scratch.path().join(METADATA_FILE), &program.definition)
        .map_err(|error| Failure::Value(format!("cannot write the metadata of a front end: {error}")))?;
    let spec = spec(build, program, env, scratch.path());
    let (stdio, connection, errors) = stdio::open()
        .map_err(|error| Failure::Value(format!("cannot open the pipes of a front end: {error}")))?;
    let over = build.cancel.child_token();
    let end = over.clone().drop_guard();
    let started = build.engine().start_process(spec, stdio).await;
    let running = started.map_err(|error| {
        Failure::Value(format!("failed to run the front end {source}: {}", crate::failure::one_line(&error)))
    })?;
    // The calls of a front end end with it.
    let gateway = Gateway { shared: Arc::clone(shared), served: Some(Arc::clone(&served)) };
    let serving = tokio::spawn(serve(gateway, connection, over.clone()));
    let said = tokio::spawn(stdio::last_words(errors));
    let ended = wait(running, &over).await;
    drop(end);
    let said = said.await.unwrap_or_default();
    if let Err(error) = serving.await {
        tracing::warn!(%error, "serving a front end failed");
    }
    drop((served, scratch));
    // What it returned counts, an error before its exit code, and that before a result.
    match (returned.try_recv(), ended) {
        (Ok(Err(failure)), _) => Err(failure),
        (_, Err(Failure::Cancelled)) => Err(Failure::Cancelled),
        (_, Err(failure)) => {
            let words = if said.is_empty() { failure.to_string() } else { format!("{failure}: {said}") };
            Err(Failure::Value(format!("frontend {source}: {words}")))
        }
        (Ok(Ok(outcome)), Ok(())) => Ok(outcome),
        (Err(_), Ok(())) => Err(Failure::Value("no result for incomplete build".to_owned())),
    }
}

async fn wait(mut running: Running, over: &CancellationToken) -> Result<(), Failure> {
    let status = running.wait(over).await;
    // The sandbox goes now: its pipes close.
    tokio::task::spawn_blocking(move || drop(running)).await.ok();
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(Failure::Value(format!("exit code: {}", status.code()))),
        Err(ExecError::Cancelled) => Err(Failure::Cancelled),
        Err(error) => Err(Failure::Value(crate::failure::one_line(&error))),
    }
}

/// Serves the gateway over one connection, until either side is done with it.
async fn serve(gateway: Gateway, connection: stdio::Connection, over: CancellationToken) {
    let service = LlbBridgeServer::new(gateway)
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    let connections = stream::iter([Ok::<_, std::io::Error>(connection)]).chain(stream::pending());
    let mut server = Server::builder().max_concurrent_streams(MAX_STREAMS);
    let serving = server.add_service(service).serve_with_incoming(connections);
    tokio::select! {
        served = serving => {
            if let Err(error) = served {
                tracing::debug!(%error, "a front end's connection broke");
            }
        }
        () = over.cancelled() => {}
    }
}

/// Brings the image.
async fn program(build: &Build, source: &str) -> Result<Program, Failure> {
    let invalid =
        |error: stave_oci::ReferenceError| Failure::Value(format!("failed to parse `{source}`: {error}"));
    let reference: Reference = source.parse().map_err(invalid)?;
    let reference = super::sources::allowed_image(build, &reference)?;
    let platform = Platform::host();
    let (digest, config) = build.parts(None).resolve(&reference, &platform, PullPolicy::Missing).await?;
    let config = serde_json::from_slice(&config)
        .map_err(|error| Failure::Value(format!("failed to parse image config of {source}: {error}")))?;
    let mut graph = GraphBuilder::default();
    let pinned = reference.pinned(digest);
    let op = SourceOp::new(format!("docker-image://{}", pinned.canonical()), Default::default());
    let image = graph.source(op, &platform, About::default());
    let definition = graph.finish(Some(image));
    let target = build.add(definition, Default::default(), None)?;
    let snapshot = build.solve(&target).await?;
    Ok(Program { snapshot, config, definition: target.definition.to_wire() })
}

/// The first thing that is wanted of a front end and that it does not say it can.
fn missing_capability(config: &ImageConfig, asked: &Asked<'_>) -> Option<String> {
    let names = |text: Option<&String>| {
        let entries = text.map(String::as_str).unwrap_or_default().split(',');
        let names = entries.map(|entry| entry.split('+').next().unwrap_or_default().to_owned());
        names.filter(|name| !name.is_empty()).collect::<BTreeSet<_>>()
    };
    let able = names(config.config.labels.get(CAPABILITIES));
    let mut wanted = names(asked.options.get("frontend.caps"));
    if !asked.inputs.is_empty() {
        wanted.insert(INPUTS.to_owned());
    }
    wanted.into_iter().find(|name| !able.contains(name))
}

/// What a front end finds in its environment.
fn environment(
    shared: &Shared,
    build: &Build,
    config: &ImageConfig,
    options: &HashMap<String, String>,
) -> Result<Vec<String>, Failure> {
    let size: usize = options.iter().map(|(key, value)| key.len() + value.len()).sum();
    if size > MAX_OPTIONS {
        return Err(Failure::Value(format!("more than {MAX_OPTIONS} bytes of options for a front end")));
    }
    let worker = workers::record(shared);
    let platforms = worker.platforms.iter().map(|platform| {
        let mut value = json!({ "architecture": platform.architecture, "os": platform.os });
        if !platform.variant.is_empty() {
            value["variant"] = json!(platform.variant);
        }
        value
    });
    let platforms: Vec<_> = platforms.collect();
    let workers = json!([{ "id": worker.id, "labels": worker.labels, "platforms": platforms }]);
    let mut sorted: Vec<_> = options.iter().collect();
    sorted.sort();
    let options = sorted.iter().enumerate();
    let options = options.map(|(at, (key, value))| format!("BUILDKIT_FRONTEND_OPT_{at}={key}={value}"));
    let mut env = config.config.env.clone();
    env.extend(options);
    env.extend([
        format!("BUILDKIT_SESSION_ID={}", build.session.id()),
        format!("BUILDKIT_WORKERS={workers}"),
        format!("BUILDKIT_EXPORTEDPRODUCT={PRODUCT}"),
    ]);
    match env.iter().any(|entry| entry.len() >= MAX_VARIABLE) {
        true => Err(Failure::Value(format!("an option for a front end is longer than {MAX_VARIABLE} bytes"))),
        false => Ok(env),
    }
}

fn spec(build: &Build, program: Program, env: Vec<String>, metadata: &std::path::Path) -> RunSpec {
    let Program { snapshot, config, .. } = program;
    let container = config.config;
    let is_true = |text: &String| matches!(text.as_str(), "1" | "t" | "T" | "true" | "TRUE" | "True");
    let network = match container.labels.get(NO_NETWORK).is_some_and(is_true) {
        true => StepNetwork::None,
        false => build.confinement.network,
    };
    let bind = Bind { source: metadata.to_owned(), target: METADATA.into(), readonly: true };
    RunSpec {
        snapshot,
        platform: Platform::host(),
        args: container.entrypoint.unwrap_or_else(|| vec![PROGRAM.to_owned()]),
        env,
        cwd: container.working_dir,
        user: String::new(),
        hostname: "buildkitsandbox".to_owned(),
        binds: vec![bind],
        readonly_root: false,
        network,
        extra_hosts: Vec::new(),
        rlimits: Vec::new(),
        shm_size: None,
        sysctls: Vec::new(),
        limits: Default::default(),
        cgroup_parent: Default::default(),
        terminal: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(label: Option<&str>, wanted: Option<&str>, has_inputs: bool, expected: Option<&str>) {
        let mut config = ImageConfig::default();
        config.config.labels.extend(label.map(|label| (CAPABILITIES.to_owned(), label.to_owned())));
        let options = wanted.map(|caps| ("frontend.caps".to_owned(), caps.to_owned())).into_iter().collect();
        let inputs = has_inputs.then(|| ("i".to_owned(), pb::Definition::default())).into_iter().collect();
        let asked = Asked {
            frontend: "gateway.v0",
            options: &options,
            definition: None,
            inputs: &inputs,
            policies: None,
            depth: 0,
        };
        assert_eq!(missing_capability(&config, &asked).as_deref(), expected);
    }

    #[test]
    fn a_front_end_must_say_that_it_can_what_is_wanted() {
        check(None, None, false, None);
        check(None, None, true, Some(INPUTS));
        check(Some("moby.buildkit.frontend.inputs+x,a"), Some("a+forward"), true, None);
        check(Some("a"), Some("a,b"), false, Some("b"));
    }
}
