//! One `Solve`: the whole life of a build, top to bottom. Start with [`solve`].

use bollard_buildkit_proto::moby::buildkit::v1::{Exporter, SolveRequest, SolveResponse};

use crate::build::{Beginning, Outcome, RunningBuild};
use crate::export::export_all;
use crate::failure::Failure;
use crate::gateway::{Asked, run};
use crate::state::Shared;

/// Builds what a client asks for. Dropping the future stops all of it.
pub(super) async fn solve(shared: &Shared, request: SolveRequest) -> Result<SolveResponse, Failure> {
    check(&request)?;
    let session = shared.sessions.get(&request.session).await?;
    let beginning = Beginning {
        id: request.r#ref.clone(),
        session,
        inputs: request.frontend_inputs.clone(),
        confinement: shared.confinement(&request.entitlements)?,
    };
    let mut running = shared.builds.begin(beginning)?;
    let cancel = running.build.cancel.clone();
    let solved = tokio::select! {
        solved = build(&mut running, &request) => solved,
        () = cancel.cancelled() => Err(Failure::Cancelled),
    };
    let solved = running.build.settle(solved).await;
    drop(running);
    shared.collect();
    solved
}

async fn build(running: &mut RunningBuild<'_>, request: &SolveRequest) -> Result<SolveResponse, Failure> {
    let exporters = exporters(request);
    // Options that cannot be honoured are said before the work begins.
    for exporter in &exporters {
        crate::export::target(exporter)?;
    }
    let outcome = outcome(running, request).await?;
    let exporter_response = export_all(&running.build, &outcome, &exporters).await?;
    Ok(SolveResponse { exporter_response })
}

/// What the front end came to: the client's own, or one of ours.
async fn outcome(running: &mut RunningBuild<'_>, request: &SolveRequest) -> Result<Outcome, Failure> {
    if request.frontend.is_empty() && request.definition.is_none() {
        return (&mut running.returned).await.unwrap_or(Err(Failure::Cancelled));
    }
    let asked = Asked {
        frontend: &request.frontend,
        options: &request.frontend_attrs,
        definition: request.definition.as_ref(),
        inputs: &request.frontend_inputs,
    };
    run(&running.build, asked).await
}

fn exporters(request: &SolveRequest) -> Vec<Exporter> {
    match request.exporters.as_slice() {
        [] if request.exporter_deprecated.is_empty() => Vec::new(),
        [] => vec![Exporter {
            r#type: request.exporter_deprecated.clone(),
            attrs: request.exporter_attrs_deprecated.clone(),
        }],
        exporters => exporters.to_vec(),
    }
}

/// What would change the result and is not honoured must not be passed over.
fn check(request: &SolveRequest) -> Result<(), Failure> {
    let unsupported = |what: &str| Err(Failure::Unsupported(what.to_owned()));
    if request.source_policy.is_some() || !request.source_policy_session.is_empty() {
        return unsupported("source policies");
    }
    if request.enable_session_exporter {
        return unsupported("exporters that the session chooses");
    }
    let cache = request.cache.clone().unwrap_or_default();
    if !cache.export_ref_deprecated.is_empty() || !cache.exports.is_empty() {
        return unsupported("exporting the cache of a client's build");
    }
    Ok(())
}
