//! The gateway: what a client's own front end asks of the build it belongs to. Start with [`Gateway`].

mod attested;
pub(crate) mod containers;
mod failed;
mod files;
pub(crate) mod image;
mod nested;
mod sources;
pub(crate) mod verified;

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;

use bollard_buildkit_proto::moby::buildkit::v1::frontend::llb_bridge_server::LlbBridge;
use bollard_buildkit_proto::moby::buildkit::v1::frontend::result::Result as Refs;
use bollard_buildkit_proto::moby::buildkit::v1::frontend::{
    EvaluateRequest, EvaluateResponse, ExecMessage, InputsRequest, InputsResponse, NewContainerRequest,
    NewContainerResponse, PingRequest, PongResponse, ReadDirRequest, ReadDirResponse, ReadFileRequest,
    ReadFileResponse, Ref, RefMap, RefMapDeprecated, ReleaseContainerRequest, ReleaseContainerResponse,
    ResolveImageConfigRequest, ResolveImageConfigResponse, ResolveSourceMetaRequest,
    ResolveSourceMetaResponse, Result as Results, ReturnRequest, ReturnResponse, SolveRequest, SolveResponse,
    StatFileRequest, StatFileResponse, WarnRequest, WarnResponse,
};
use bollard_buildkit_proto::moby::buildkit::v1::{CacheOptionsEntry, VertexWarning};
use bollard_buildkit_proto::pb;
use futures::Stream;
use stave_llb::policy::SourcePolicies;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};

use crate::build::{Build, Target};
use crate::failure::{Failure, from_message};
use crate::frontend::{self, Made};
use crate::gateway::containers::Containers;
use crate::gateway::image::Served;
use crate::identity::may_see;
use crate::outcome::Outcome;
use crate::policy::of_messages;
use crate::state::Shared;
use crate::{caps, statements, workers};

/// The header that names the build a call belongs to.
const BUILD_ID: &str = "buildkit-controlapi-buildid";
/// Most bytes of a result's metadata.
const MAX_METADATA: usize = 16 << 20;

/// The service.
#[derive(Debug, Clone)]
pub(crate) struct Gateway {
    pub(crate) shared: Arc<Shared>,
    /// The front end image that is served, whose build all calls belong to; `None` for clients, whose calls name theirs.
    pub(crate) served: Option<Arc<Served>>,
}

impl Gateway {
    /// The build that a call belongs to.
    async fn build(&self, headers: &MetadataMap) -> Result<Arc<Build>, Failure> {
        if let Some(served) = &self.served {
            return Ok(Arc::clone(&served.build));
        }
        let id = headers.get(BUILD_ID).and_then(|id| id.to_str().ok());
        let id = id.ok_or_else(|| Failure::Value("no buildid found in context".to_owned()))?;
        let build = self.shared.builds.get(id).await?;
        // As if it were nowhere: ids of others tell nothing.
        match may_see(headers, &build.gate.owner().namespace) {
            true => Ok(build),
            false => Err(Failure::NotFound(format!("no such job {id}"))),
        }
    }

    /// A result of the build that a call belongs to. Of another build's it has none.
    async fn target(&self, headers: &MetadataMap, id: &str) -> Result<(Arc<Build>, Arc<Target>), Failure> {
        let build = self.build(headers).await?;
        let target = build.target(id)?;
        Ok((build, target))
    }

    /// The containers of whoever calls.
    async fn containers(&self, headers: &MetadataMap) -> Result<(Arc<Build>, Arc<Containers>), Failure> {
        let build = self.build(headers).await?;
        let containers = match &self.served {
            Some(served) => Arc::clone(&served.containers),
            None => Arc::clone(&build.containers),
        };
        Ok((build, containers))
    }

    async fn solve(&self, request: Request<SolveRequest>) -> Result<SolveResponse, Failure> {
        let build = self.build(request.metadata()).await?;
        let request = request.into_inner();
        if !request.source_policies.is_empty() && !request.frontend.is_empty() {
            return Err(Failure::Unsupported("source policies for a front end alone".to_owned()));
        }
        let policies = build.policies(of_messages(request.source_policies)?)?;
        let imports = request.cache_imports.into_iter();
        let imports = imports.map(|entry| CacheOptionsEntry { r#type: entry.r#type, attrs: entry.attrs });
        build.import_from(&imports.collect::<Vec<_>>())?;
        let work = async {
            let asked = Asked {
                frontend: &request.frontend,
                options: &request.frontend_opt,
                definition: request.definition.as_ref(),
                inputs: &request.frontend_inputs,
                policies: Some(&policies),
                depth: self.served.as_ref().map_or(0, |served| served.depth),
            };
            let outcome = Box::pin(run(&self.shared, &build, asked)).await?;
            if request.evaluate {
                Box::pin(build.solve_all(&outcome)).await?;
            }
            Ok::<_, Failure>(outcome)
        };
        let outcome = tokio::select! {
            outcome = work => outcome,
            () = build.cancel.cancelled() => Err(Failure::Cancelled),
        };
        let outcome = build.settle(outcome).await;
        let outcome = match outcome {
            Ok(outcome) => outcome,
            Err(failure) => return Err(failed::with_leftovers(&build, failure).await),
        };
        Ok(answer(outcome, request.allow_result_return, request.allow_result_array_ref))
    }

    async fn take_result(&self, request: Request<ReturnRequest>) -> Result<(), Failure> {
        let build = self.build(request.metadata()).await?;
        let request = request.into_inner();
        let outcome = match request.error {
            Some(error) => Err(Failure::Client(Box::new(from_message(error)))),
            None => returned(&build, request.result.unwrap_or_default()),
        };
        match &self.served {
            Some(served) => served.finish(outcome),
            None => build.finish(outcome),
        }
    }
}

/// What a front end is asked.
pub(crate) struct Asked<'a> {
    pub(crate) frontend: &'a str,
    pub(crate) options: &'a HashMap<String, String>,
    pub(crate) definition: Option<&'a pb::Definition>,
    pub(crate) inputs: &'a HashMap<String, pb::Definition>,
    /// Rules about what a graph may be made from, where they are others than the build's.
    pub(crate) policies: Option<&'a SourcePolicies>,
    /// Front end images that stand between it and the client.
    pub(crate) depth: usize,
}

/// Runs a front end, or takes up a graph.
pub(crate) async fn run(
    shared: &Arc<Shared>,
    build: &Arc<Build>,
    asked: Asked<'_>,
) -> Result<Outcome, Failure> {
    if !asked.frontend.is_empty() || asked.definition.is_some() {
        build.enter().await?;
    }
    for (name, id) in asked.options {
        // An id of a session is a secret of whoever opened it.
        if let Some(name) = name.strip_prefix("local-sessionid:") {
            build.files.take_from(name, shared.sessions.of(build.gate.owner(), id).await?);
        }
    }
    if !asked.frontend.is_empty() && !shared.settings.now().worker.front_ends.has(asked.frontend) {
        return Err(Failure::Frontend(asked.frontend.to_owned()));
    }
    match asked.frontend {
        "" => {
            let mut outcome = Outcome::default();
            let message = asked.definition.filter(|definition| !definition.def.is_empty());
            if let Some(message) = message {
                let definition = frontend::graph_of(message)?;
                let definition = match asked.policies {
                    Some(policies) => nested::allowed(build, policies, &definition).await?,
                    None => nested::allowed(build, &build.policies(Vec::new())?, &definition).await?,
                };
                let target = build.add(definition, Default::default(), None)?;
                outcome.targets.push((None, target));
            }
            Ok(outcome)
        }
        "dockerfile.v0" => dockerfile(shared, build, asked).await,
        "gateway.v0" => {
            let source = asked.options.get("source").map_or("", String::as_str);
            // The reference's own front end images are the one inside: it and they must be allowed.
            match source == "dockerfile.v0" || stave_engine::is_built_in_frontend(source) {
                true => {
                    let front_ends = &shared.settings.now().worker.front_ends;
                    if !front_ends.has("dockerfile.v0") {
                        return Err(Failure::Frontend("dockerfile.v0".to_owned()));
                    }
                    if source != "dockerfile.v0" && !front_ends.allows(source) {
                        return Err(front_end_refused(source));
                    }
                    dockerfile(shared, build, asked).await
                }
                false => of_image(shared, build, source, asked).await,
            }
        }
        other => Err(Failure::Frontend(other.chars().take(100).collect())),
    }
}

/// The front end inside, unless the Dockerfile names another.
async fn dockerfile(shared: &Arc<Shared>, build: &Arc<Build>, asked: Asked<'_>) -> Result<Outcome, Failure> {
    match Box::pin(frontend::dockerfile(build, asked.options, asked.inputs)).await? {
        Made::Outcome(outcome) => Ok(outcome),
        Made::Forward { source, line, dockerfile } => {
            let mut options = asked.options.clone();
            options.insert("source".to_owned(), source.clone());
            options.insert("cmdline".to_owned(), line.clone());
            let ran = of_image(shared, build, &source, Asked { options: &options, ..asked }).await;
            // That it could not be had is said at the line that names it.
            ran.map_err(|failure| match failure {
                Failure::Resolve(_) | Failure::PolicyOfImage(_) => failure.at_syntax(&dockerfile, &line),
                failure => failure,
            })
        }
    }
}

/// A front end that is an image, if this one may be.
async fn of_image(
    shared: &Arc<Shared>,
    build: &Arc<Build>,
    source: &str,
    asked: Asked<'_>,
) -> Result<Outcome, Failure> {
    let settings = shared.settings.now();
    let front_ends = &settings.worker.front_ends;
    if !front_ends.has("gateway.v0") {
        return Err(Failure::Frontend("gateway.v0".to_owned()));
    }
    if !front_ends.allows(source) {
        return Err(front_end_refused(source));
    }
    image::run(shared, build, source, asked).await
}

fn front_end_refused(source: &str) -> Failure {
    Failure::Value(format!("'{source}' is not an allowed gateway source"))
}

fn answer(outcome: Outcome, is_full: bool, is_array: bool) -> SolveResponse {
    let reference = |target: &Target| Ref { id: target.id.clone(), def: Some(target.message.clone()) };
    let is_single = outcome.targets.iter().all(|(platform, _)| platform.is_none());
    let first = outcome.targets.first().map(|(_, target)| target);
    if !is_full {
        let r#ref = first.map(|target| target.id.clone()).unwrap_or_default();
        return SolveResponse { r#ref, result: None };
    }
    let by_platform = || outcome.targets.iter().filter_map(|(id, target)| Some((id.clone()?, target)));
    let refs = match (is_single, is_array) {
        (true, true) => first.map(|target| Refs::Ref(reference(target))),
        (true, false) => first.map(|target| Refs::RefDeprecated(target.id.clone())),
        (false, true) => {
            let refs = by_platform().map(|(id, target)| (id, reference(target))).collect();
            Some(Refs::Refs(RefMap { refs }))
        }
        (false, false) => {
            let refs = by_platform().map(|(id, target)| (id, target.id.clone())).collect();
            Some(Refs::RefsDeprecated(RefMapDeprecated { refs }))
        }
    };
    let attestations = statements::messages(&outcome.statements);
    let result = Results { metadata: outcome.metadata, attestations, result: refs };
    SolveResponse { r#ref: String::new(), result: Some(result) }
}

/// What a client's front end came to.
fn returned(build: &Build, results: Results) -> Result<Outcome, Failure> {
    let size: usize = results.metadata.iter().map(|(key, value)| key.len() + value.len()).sum();
    if size > MAX_METADATA {
        return Err(Failure::Value(format!("more than {MAX_METADATA} bytes of metadata")));
    }
    let single = |id: &str| match id {
        "" => Ok(Vec::new()),
        id => Ok::<_, Failure>(vec![(None, build.target(id)?)]),
    };
    let several = |refs: Vec<(String, String)>| {
        let one = |(platform, id): (String, String)| match id.as_str() {
            "" => Ok((Some(platform), build.add_empty()?)),
            id => Ok((Some(platform), build.target(id)?)),
        };
        let mut targets = refs.into_iter().map(one).collect::<Result<Vec<_>, Failure>>()?;
        // The order of platforms is the client's, where it says it; else that of their names.
        let order = Outcome::order(&results.metadata);
        targets.sort_by_key(|(platform, _)| {
            let place = order.iter().position(|known| Some(known) == platform.as_ref());
            (place.unwrap_or(usize::MAX), platform.clone())
        });
        Ok::<_, Failure>(targets)
    };
    let targets = match results.result.clone() {
        None => Vec::new(),
        Some(Refs::RefDeprecated(id)) => single(&id)?,
        Some(Refs::Ref(target)) => single(&target.id)?,
        Some(Refs::RefsDeprecated(map)) => several(map.refs.into_iter().collect())?,
        Some(Refs::Refs(map)) => {
            several(map.refs.into_iter().map(|(key, target)| (key, target.id)).collect())?
        }
    };
    let statements = statements::taken(build, results.attestations)?;
    Ok(Outcome { targets, metadata: results.metadata, statements })
}

fn reply<T>(result: Result<T, Failure>) -> Result<Response<T>, Status> {
    result.map(Response::new).map_err(|failure| failure.status())
}

#[tonic::async_trait]
impl LlbBridge for Gateway {
    type ExecProcessStream = Pin<Box<dyn Stream<Item = Result<ExecMessage, Status>> + Send>>;

    async fn ping(&self, request: Request<PingRequest>) -> Result<Response<PongResponse>, Status> {
        let build = self.build(request.metadata()).await;
        reply(build.map(|_| PongResponse {
            frontend_api_caps: caps::frontend(),
            llb_caps: caps::llb(),
            workers: vec![workers::record(&self.shared)],
        }))
    }

    async fn solve(&self, request: Request<SolveRequest>) -> Result<Response<SolveResponse>, Status> {
        reply(Self::solve(self, request).await)
    }

    async fn r#return(&self, request: Request<ReturnRequest>) -> Result<Response<ReturnResponse>, Status> {
        reply(self.take_result(request).await.map(|()| ReturnResponse {}))
    }

    async fn inputs(&self, request: Request<InputsRequest>) -> Result<Response<InputsResponse>, Status> {
        let build = self.build(request.metadata()).await;
        let definitions = |build: Arc<Build>| match &self.served {
            Some(served) => served.inputs.clone(),
            None => build.inputs.clone(),
        };
        reply(build.map(|build| InputsResponse { definitions: definitions(build) }))
    }

    async fn evaluate(
        &self,
        request: Request<EvaluateRequest>,
    ) -> Result<Response<EvaluateResponse>, Status> {
        let evaluated = async {
            let (build, target) = self.target(request.metadata(), &request.get_ref().r#ref).await?;
            let solved = build.solve(&target).await;
            let solved = build.settle(solved).await;
            match solved {
                Ok(_) => Ok(EvaluateResponse {}),
                Err(failure) => Err(failed::with_leftovers(&build, failure).await),
            }
        };
        reply(evaluated.await)
    }

    async fn read_file(
        &self,
        request: Request<ReadFileRequest>,
    ) -> Result<Response<ReadFileResponse>, Status> {
        reply(files::read_file(self, request).await)
    }

    async fn read_dir(&self, request: Request<ReadDirRequest>) -> Result<Response<ReadDirResponse>, Status> {
        reply(files::read_dir(self, request).await)
    }

    async fn stat_file(
        &self,
        request: Request<StatFileRequest>,
    ) -> Result<Response<StatFileResponse>, Status> {
        reply(files::stat_file(self, request).await)
    }

    async fn resolve_image_config(
        &self,
        request: Request<ResolveImageConfigRequest>,
    ) -> Result<Response<ResolveImageConfigResponse>, Status> {
        reply(sources::image_config(self, request).await)
    }

    async fn resolve_source_meta(
        &self,
        request: Request<ResolveSourceMetaRequest>,
    ) -> Result<Response<ResolveSourceMetaResponse>, Status> {
        reply(sources::metadata(self, request).await)
    }

    async fn warn(&self, request: Request<WarnRequest>) -> Result<Response<WarnResponse>, Status> {
        let warned = async {
            let build = self.build(request.metadata()).await?;
            let warning = request.into_inner();
            build.journal.warn(VertexWarning {
                vertex: warning.digest,
                level: warning.level,
                short: warning.short,
                detail: warning.detail,
                url: warning.url,
                info: warning.info,
                ranges: warning.ranges,
            });
            Ok(WarnResponse {})
        };
        reply(warned.await)
    }

    async fn new_container(
        &self,
        request: Request<NewContainerRequest>,
    ) -> Result<Response<NewContainerResponse>, Status> {
        reply(containers::new(self, request).await)
    }

    async fn release_container(
        &self,
        request: Request<ReleaseContainerRequest>,
    ) -> Result<Response<ReleaseContainerResponse>, Status> {
        reply(containers::release(self, request).await)
    }

    async fn exec_process(
        &self,
        request: Request<Streaming<ExecMessage>>,
    ) -> Result<Response<Self::ExecProcessStream>, Status> {
        let answers = containers::exec::exec(self, request).await;
        reply(answers.map(|answers| Box::pin(answers) as Self::ExecProcessStream))
    }

    async fn read_file_container(
        &self,
        request: Request<ReadFileRequest>,
    ) -> Result<Response<ReadFileResponse>, Status> {
        reply(files::read_file_container(self, request).await)
    }

    async fn read_dir_container(
        &self,
        request: Request<ReadDirRequest>,
    ) -> Result<Response<ReadDirResponse>, Status> {
        reply(files::read_dir_container(self, request).await)
    }

    async fn stat_file_container(
        &self,
        request: Request<StatFileRequest>,
    ) -> Result<Response<StatFileResponse>, Status> {
        reply(files::stat_file_container(self, request).await)
    }
}
