//! One `Solve`: the whole life of a build, top to bottom. Start with [`solve`].

use std::sync::Arc;
use std::time::Instant;

use bollard_buildkit_proto::moby::buildkit::v1::{Exporter, SolveRequest, SolveResponse};
use serde_json::json;
use stave_llb::policy::SourcePolicies;

use crate::audit::short;
use crate::build::{Beginning, RunningBuild};
use crate::export::export_all;
use crate::failure::Failure;
use crate::gateway::verified::Verifier;
use crate::gateway::{Asked, run};
use crate::history::Recording;
use crate::outcome::{Outcome, own_options};
use crate::policy::of_messages;
use crate::session::{ClientSession, exporters};
use crate::state::Shared;
use crate::tenants::{Caller, Gate};
use crate::wanted::Wanted;

/// The option that dates a build.
const EPOCH: &str = "build-arg:SOURCE_DATE_EPOCH";

/// Builds what a client asks for. Dropping the future stops all of it.
pub(super) async fn solve(
    shared: &Arc<Shared>,
    caller: &Caller,
    request: SolveRequest,
) -> Result<SolveResponse, Failure> {
    let begin = Instant::now();
    let _answering = shared.builds.answering();
    let solved = Box::pin(solve_for(shared, caller, &request)).await;
    let result = outcome_name(&solved);
    // Clients ask for empty builds to find out what there is: those are no builds of anybody.
    if !request.internal {
        shared.metrics.built(caller.identity.as_str(), result, begin.elapsed());
        let exporters: Vec<_> = exporters(&request).into_iter().map(|exporter| exporter.r#type).collect();
        let more = json!({
            "ref": short(&request.r#ref),
            "frontend": short(&request.frontend),
            "exporters": exporters,
            "entitlements": request.entitlements,
            "seconds": begin.elapsed().as_secs_f64(),
        });
        let told = solved.as_ref().map(drop).map_err(taken_down);
        shared.audit.write(caller, "build", told, more);
    }
    solved
}

fn outcome_name(solved: &Result<SolveResponse, Failure>) -> &'static str {
    match solved {
        Ok(_) => "succeeded",
        Err(Failure::Cancelled) => "cancelled",
        Err(_) => "failed",
    }
}

/// Why a build failed, without what its steps are called: that may hold anything.
fn taken_down(failure: &Failure) -> String {
    match failure {
        Failure::Build { vertex, .. } => match vertex {
            Some(vertex) => format!("step {vertex}"),
            None => "a part of the build".to_owned(),
        },
        Failure::Client(status) => format!("{:?}", status.code()),
        other => short(&other.to_string()),
    }
}

async fn solve_for(
    shared: &Arc<Shared>,
    caller: &Caller,
    request: &SolveRequest,
) -> Result<SolveResponse, Failure> {
    let session = shared.sessions.of(caller, &request.session).await?;
    allowed(caller, &exporters(request))?;
    let quota = shared.settings.now().tenancy.quota(caller);
    let mut confinement = shared.confinement(&request.entitlements)?;
    confinement.build_limits.memory = quota.memory.or(confinement.build_limits.memory);
    let mut recording = shared.history.begin(&caller.namespace, request);
    let beginning = Beginning {
        registry: shared.registry(),
        id: request.r#ref.clone(),
        session,
        inputs: request.frontend_inputs.clone(),
        wanted: Wanted::read(request)?,
        environment: shared.settings.now().worker.environment.clone(),
        confinement,
        policy: SourcePolicies::new(of_messages(request.source_policy.iter().cloned().collect())?)?,
        verifier: match request.source_policy_session.as_str() {
            "" => None,
            id => Some(Verifier::new(shared.sessions.of(caller, id).await?)),
        },
        gate: Gate::new(caller.clone(), quota, Arc::clone(&shared.slots)),
        recorder: recording.as_ref().map(Recording::recorder),
    };
    let mut running = shared.builds.begin(beginning)?;
    if let Some(recording) = &mut recording {
        recording.run(&running.build.journal);
    }
    let cancel = running.build.cancel.clone();
    let solved = tokio::select! {
        solved = build(shared, &mut running, request) => solved,
        () = cancel.cancelled() => Err(Failure::Cancelled),
    };
    let solved = running.build.settle(solved).await;
    shared.traces.build(&running.build, &solved);
    let (said, made) = (running.build.said(), running.build.made());
    drop(running);
    if let Some(mut recording) = recording {
        recording.attach(said);
        recording.made(made);
        recording.end(&solved).await;
    }
    shared.collect();
    solved
}

async fn build(
    shared: &Arc<Shared>,
    running: &mut RunningBuild<'_>,
    request: &SolveRequest,
) -> Result<SolveResponse, Failure> {
    let mut exporters = exporters(request);
    if running.build.verifier.is_some() && running.build.wanted.attest.sbom.is_some() {
        // The scanner's image is none of the graph's sources.
        let text = "a bill of materials under source policies that the session decides";
        return Err(Failure::Unsupported(text.to_owned()));
    }
    // Options that cannot be honoured are said before the work begins.
    for exporter in &exporters {
        crate::export::target(&own_options(exporter, true))?;
    }
    let outcome = Box::pin(outcome(shared, running, request)).await?;
    let session = Arc::clone(&running.build.session);
    if request.enable_session_exporter {
        let chosen = chosen(&outcome, &session).await?;
        allowed(running.build.gate.owner(), &chosen)?;
        exporters.extend(dated(chosen, request));
    }
    let exporter_response =
        Box::pin(export_all(&running.build, &outcome, &exporters, &request.frontend_attrs)).await?;
    if request.enable_session_exporter {
        let finished = exporters::finish(&session, exporter_response.clone()).await;
        finished.map_err(|status| Failure::Client(Box::new(status)))?;
    }
    Ok(SolveResponse { exporter_response })
}

/// The exporters that the client chooses now that it can look at the results.
async fn chosen(outcome: &Outcome, session: &ClientSession) -> Result<Vec<Exporter>, Failure> {
    let refs = outcome.targets.iter().map(|(_, target)| target.id.clone()).collect();
    let found = exporters::find(session, outcome.metadata.clone(), refs).await;
    found.map_err(|status| Failure::Client(Box::new(status)))
}

/// What the front end came to: the client's own, or one of ours.
async fn outcome(
    shared: &Arc<Shared>,
    running: &mut RunningBuild<'_>,
    request: &SolveRequest,
) -> Result<Outcome, Failure> {
    if request.frontend.is_empty() && request.definition.is_none() {
        return (&mut running.returned).await.unwrap_or(Err(Failure::Cancelled));
    }
    let asked = Asked {
        frontend: &request.frontend,
        options: &request.frontend_attrs,
        definition: request.definition.as_ref(),
        inputs: &request.frontend_inputs,
        policies: None,
        depth: 0,
    };
    run(shared, &running.build, asked).await
}

/// The exporters asked for; the date that a build is given is theirs, too, unless they have their own.
fn exporters(request: &SolveRequest) -> Vec<Exporter> {
    dated(named_exporters(request), request)
}

fn dated(mut exporters: Vec<Exporter>, request: &SolveRequest) -> Vec<Exporter> {
    let epoch = request.frontend_attrs.get(EPOCH).filter(|value| value.parse::<i64>().is_ok());
    if let Some(epoch) = epoch {
        for exporter in &mut exporters {
            exporter.attrs.entry("source-date-epoch".to_owned()).or_insert_with(|| epoch.clone());
        }
    }
    exporters
}

fn named_exporters(request: &SolveRequest) -> Vec<Exporter> {
    match request.exporters.as_slice() {
        [] if request.exporter_deprecated.is_empty() => Vec::new(),
        [] => vec![Exporter {
            r#type: request.exporter_deprecated.clone(),
            attrs: request.exporter_attrs_deprecated.clone(),
        }],
        exporters => exporters.to_vec(),
    }
}

/// The store's names are everybody's: a tenant that gave one would give others its image for theirs.
fn allowed(caller: &Caller, exporters: &[Exporter]) -> Result<(), Failure> {
    let is_yes = |text: &String| !matches!(text.as_str(), "" | "0" | "f" | "F" | "false" | "FALSE" | "False");
    let stores =
        |exporter: &Exporter| exporter.r#type == "image" && exporter.attrs.get("store").is_some_and(is_yes);
    match !caller.is_trusted() && exporters.iter().any(stores) {
        true => {
            let who = caller.identity.to_string();
            Err(Failure::NotAllowed { who, what: "keeping an image under a name in the daemon's store" })
        }
        false => Ok(()),
    }
}
