//! Sources that the client decides about: before a layer or file of one is fetched, its session is asked.
//!
//! An answer holds for the build. Where a graph is taken up, a source may be replaced; whatever else is about to be
//! solved is asked for there, and then only goes or does not. Owns the conversation and its bound. Must not know
//! graphs' users. Start with [`Build::verified`] and [`Build::check_sources`].

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use bollard_buildkit_proto::moby::buildkit::v1::frontend::{
    ResolveSourceMetaRequest, ResolveSourceMetaResponse,
};
use bollard_buildkit_proto::moby::buildkit::v1::sourcepolicy::PolicyAction;
use bollard_buildkit_proto::pb;
use stave_llb::policy::SourcePolicies;
use stave_llb::{BlobPlace, Definition, Op, SourceIdentifier, SourceOp};
use stave_oci::{Platform, Reference};

use super::sources;
use crate::build::Build;
use crate::failure::Failure;
use crate::session::ClientSession;
use crate::session::verifier::{Answer, CheckRequest, Decision, check};

/// How often a client is asked about one source.
const MAX_REQUESTS: usize = 10;
/// About how many sources a client is asked at a time.
const MAX_AT_ONCE: usize = 32;

/// Who is asked, and what was answered.
#[derive(Debug)]
pub(crate) struct Verifier {
    session: Arc<ClientSession>,
    /// By source and platform: what its decision makes of it; `None` where it may be used.
    answered: Mutex<HashMap<Asked, Option<SourceOp>>>,
}

/// A source as it is asked about.
type Asked = (String, BTreeMap<String, String>, Option<Platform>);

/// Most answers that are kept.
const MAX_KEPT: usize = 10_000;
/// Most bytes of a source whose answer is kept.
const MAX_KEPT_BYTES: usize = 16 << 10;

tokio::task_local! {
    /// What this task is asking about: the facts that a client wants for its decision need none.
    static ASKING: Asked;
}

impl Verifier {
    pub(crate) fn new(session: Arc<ClientSession>) -> Self {
        Self { session, answered: Mutex::default() }
    }

    fn known(&self, asked: &Asked) -> Option<Option<SourceOp>> {
        self.answered.lock().unwrap_or_else(PoisonError::into_inner).get(asked).cloned()
    }

    fn keep(&self, asked: Asked, answer: Option<SourceOp>) {
        let bytes = |attrs: &BTreeMap<String, String>| {
            attrs.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>()
        };
        let other = answer.as_ref().map_or(0, |other| other.raw.len() + bytes(&other.attrs));
        let length = asked.0.len() + bytes(&asked.1) + other;
        let mut answered = self.answered.lock().unwrap_or_else(PoisonError::into_inner);
        // What is not kept is asked about again.
        if answered.len() < MAX_KEPT && length <= MAX_KEPT_BYTES {
            answered.insert(asked, answer);
        }
    }
}

impl Build {
    /// What is used for a source by the word of the client's session: itself, or what takes its place. What does is
    /// held against the rules of the call that it is asked for, whoever asked before.
    pub(crate) async fn verified(
        &self,
        source: &SourceOp,
        platform: Option<&Platform>,
        policies: &SourcePolicies,
    ) -> Result<SourceOp, Failure> {
        let Some(verifier) = self.verifier.as_ref() else { return Ok(source.clone()) };
        let asked = |source: &SourceOp| (source.raw.clone(), source.attrs.clone(), platform.cloned());
        if ASKING.try_with(|asking| *asking == asked(source)).unwrap_or(false) {
            return Ok(source.clone());
        }
        let mut now = source.clone();
        let mut told = only(&now);
        for _ in 0..MAX_REQUESTS {
            let decided = match verifier.known(&asked(&now)) {
                Some(known) => known,
                None => {
                    let request = CheckRequest { platform: platform.map(wire), source: Some(told.clone()) };
                    let answer = check(&verifier.session, request).await?;
                    match answer.map_err(|status| Failure::Client(Box::new(status)))? {
                        None => return Err(Failure::Value("no decision in policy response".to_owned())),
                        Some(Answer::Request(request)) => {
                            told = self.told(&now, asked(&now), request).await?;
                            continue;
                        }
                        Some(Answer::Decision(decision)) => {
                            let decided = self.decided(&now, decision)?;
                            // Who puts a source in its own place has not decided yet.
                            if decided.as_ref() != Some(&now) {
                                verifier.keep(asked(&now), decided.clone());
                            }
                            decided
                        }
                    }
                }
            };
            let Some(other) = decided else { return Ok(now) };
            now = policies.evaluate(&other)?.unwrap_or(other);
            told = only(&now);
        }
        Err(Failure::Value("too many policy requests".to_owned()))
    }

    /// What a client wants to know of the source that it is asked about.
    async fn told(
        &self,
        source: &SourceOp,
        asked: Asked,
        request: ResolveSourceMetaRequest,
    ) -> Result<ResolveSourceMetaResponse, Failure> {
        let known = only(source);
        if !request.source.as_ref().is_some_and(|wanted| Some(wanted) == known.source.as_ref()) {
            let text = format!("policy requested different source than {:?}", source.shown());
            return Err(Failure::Value(text));
        }
        let about = Box::pin(sources::about(self, source.clone(), request));
        let about = ASKING.scope(asked, about).await?;
        // What it is called does not change by what is known of it.
        Ok(ResolveSourceMetaResponse { source: known.source, ..about })
    }

    /// What a decision makes of a source: `None` if it may be used.
    fn decided(&self, source: &SourceOp, decision: Decision) -> Result<Option<SourceOp>, Failure> {
        let action = PolicyAction::try_from(decision.action);
        let name =
            action.map_or_else(|_| decision.action.to_string(), |action| action.as_str_name().to_owned());
        match action {
            Ok(PolicyAction::Allow) => Ok(None),
            Ok(PolicyAction::Convert) => {
                let missing = || Failure::Value("convert action requires updated source".to_owned());
                let update = decision.update.ok_or_else(missing)?;
                Ok(Some(SourceOp::new(update.identifier, update.attrs)))
            }
            _ => Err(Failure::Denied {
                text: format!("source {:?} not allowed by policy: action {name}", source.shown()),
                messages: decision.messages.into_iter().map(|one| one.message).collect(),
            }),
        }
    }

    /// A graph whose sources the client's session has decided about.
    pub(super) async fn with_verified(
        &self,
        definition: Definition,
        policies: &SourcePolicies,
    ) -> Result<Definition, Failure> {
        if self.verifier.is_none() {
            return Ok(definition);
        }
        let mut used_of: HashMap<(String, BTreeMap<String, String>), SourceOp> = HashMap::new();
        for (source, used) in Box::pin(self.verified_all(&definition, policies)).await? {
            match used_of.entry((source.raw.clone(), source.attrs.clone())) {
                Entry::Vacant(entry) => drop(entry.insert(used)),
                Entry::Occupied(entry) if *entry.get() == used => {}
                Entry::Occupied(_) => {
                    let text = format!(
                        "the policy replaces {} by one source for a platform and by another for the next, which is \
                         not supported yet",
                        source.shown()
                    );
                    return Err(Failure::Value(text));
                }
            }
        }
        let mut replaced = |source: &SourceOp| {
            let used = used_of.get(&(source.raw.clone(), source.attrs.clone()));
            Ok::<_, std::convert::Infallible>(used.filter(|used| *used != source).cloned())
        };
        match definition.with_sources(&mut replaced) {
            Ok(definition) => Ok(definition),
            Err(never) => match never {},
        }
    }

    /// The sources of a graph, each with what is used for it. The session is asked about several at a time, and about
    /// none twice.
    async fn verified_all<'a>(
        &self,
        definition: &'a Definition,
        policies: &SourcePolicies,
    ) -> Result<Vec<(&'a SourceOp, SourceOp)>, Failure> {
        let mut seen = HashSet::new();
        let mut all = Vec::new();
        for vertex in definition.vertices() {
            let Op::Source(source) = &vertex.op else { continue };
            let platform = vertex.platform.as_ref();
            if seen.insert((source.raw.as_str(), &source.attrs, platform)) {
                all.push((source, platform));
            }
        }
        let mut used = Vec::with_capacity(all.len());
        for some in all.chunks(MAX_AT_ONCE) {
            let mut asking = Vec::with_capacity(some.len());
            for (source, platform) in some {
                asking.push(self.verified(source, *platform, policies));
            }
            used.extend(futures::future::try_join_all(asking).await?);
        }
        Ok(all.into_iter().map(|(source, _)| source).zip(used).collect())
    }

    /// Refuses a graph with a source that the client's session does not let through as it is.
    pub(crate) async fn check_sources(&self, definition: &Definition) -> Result<(), Failure> {
        if self.verifier.is_none() {
            return Ok(());
        }
        let policies = self.policies(Vec::new())?;
        for vertex in definition.vertices() {
            let Op::Source(source) = &vertex.op else { continue };
            if self.verified(source, vertex.platform.as_ref(), &policies).await? != *source {
                let text = "another source by the word of the session, for a front end of the daemon";
                return Err(Failure::Unsupported(text.to_owned()));
            }
        }
        Ok(())
    }
}

/// A source of which nothing is known yet.
fn only(source: &SourceOp) -> ResolveSourceMetaResponse {
    let identifier = match &source.identifier {
        SourceIdentifier::DockerImage { reference } => format!("docker-image://{}", reference.canonical()),
        SourceIdentifier::Blob { reference, place: BlobPlace::Registry } => {
            let name = reference.parse::<Reference>();
            name.map_or_else(
                |_| source.raw.clone(),
                |name| format!("docker-image+blob://{}", name.canonical()),
            )
        }
        _ => source.raw.clone(),
    };
    let attrs = source.attrs.clone().into_iter().collect();
    ResolveSourceMetaResponse {
        source: Some(pb::SourceOp { identifier, attrs }),
        ..ResolveSourceMetaResponse::default()
    }
}

fn wire(platform: &Platform) -> pb::Platform {
    pb::Platform {
        architecture: platform.architecture.clone(),
        os: platform.os.clone(),
        variant: platform.variant.clone().unwrap_or_default(),
        os_version: platform.os_version.clone().unwrap_or_default(),
        os_features: platform.os_features.clone(),
    }
}
