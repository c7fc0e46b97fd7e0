//! The options of `dockerfile.v0` that say where its files are; the rest is the planner's. Start with
//! [`Attributes::read`].

use std::collections::{BTreeMap, HashMap};

use bollard_buildkit_proto::pb;
use stave_engine::PullPolicy;
use stave_frontend_dockerfile::PlanRequest;
use stave_frontend_dockerfile::request::ImageResolveMode;
use stave_oci::Platform;

use crate::failure::Failure;

/// Most options of one build.
const MAX_OPTIONS: usize = 10_000;
/// Most platforms of one build.
const MAX_PLATFORMS: usize = 64;

/// What a client wants of a Dockerfile.
#[derive(Debug, Clone)]
pub(crate) struct Attributes {
    /// One request for each platform, whose contexts are still as written.
    pub(crate) requests: Vec<PlanRequest>,
    /// Whether images are asked for at their registry even if they are here.
    pub(crate) pull: PullPolicy,
    /// The Dockerfile's path.
    pub(crate) filename: String,
    /// What the client calls the directory of the Dockerfile.
    pub(crate) dockerfile_name: String,
    /// Whether the Dockerfile is the client's even if the context is not.
    pub(crate) is_dockerfile_local: bool,
    /// A context that is no directory of the client.
    pub(crate) context: Option<String>,
    /// The directory of it that counts.
    pub(crate) context_subdir: Option<String>,
    /// Named contexts that are graphs of the client: the context's name and the graph's.
    pub(crate) graphs: BTreeMap<String, String>,
    /// Graphs that the client hands in.
    pub(crate) inputs: HashMap<String, pb::Definition>,
    /// What is said about the graphs, as JSON.
    pub(crate) input_metadata: BTreeMap<String, String>,
    /// What is wanted instead of a build.
    pub(crate) subrequest: Option<String>,
}

impl Attributes {
    /// Whether the context was piped into the client.
    pub(crate) fn is_context_sent(&self) -> bool {
        self.context.as_deref().is_some_and(|text| text.starts_with(crate::session::upload::ADDRESS))
    }

    /// Reads the options of one call.
    pub(crate) fn read(
        options: &HashMap<String, String>,
        inputs: &HashMap<String, pb::Definition>,
    ) -> Result<Self, Failure> {
        if options.len() > MAX_OPTIONS {
            return Err(Failure::Value(format!("more than {MAX_OPTIONS} options")));
        }
        let options: BTreeMap<String, String> =
            options.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
        if let Some(name) =
            options.iter().find(|(name, value)| changes_result(name, value)).map(|(name, _)| name)
        {
            return Err(Failure::Unsupported(format!("the option `{name}`")));
        }
        let requests = PlanRequest::of_attributes(&options, Platform::host());
        let requests = requests.map_err(|error| Failure::Value(error.to_string()))?;
        if requests.len() > MAX_PLATFORMS {
            return Err(Failure::Value(format!("more than {MAX_PLATFORMS} platforms")));
        }
        let some = |name: &str| options.get(name).filter(|value| !value.is_empty()).cloned();
        let mode = requests.first().map(|request| request.image_resolve_mode);
        let pull = match mode {
            Some(ImageResolveMode::ForcePull) => PullPolicy::Always,
            _ => PullPolicy::Missing,
        };
        let graph = |(name, specifier): (String, String)| {
            specifier.strip_prefix("input:").map(|input| (name, input.to_owned()))
        };
        Ok(Self {
            requests,
            pull,
            filename: some("filename").unwrap_or_else(|| "Dockerfile".to_owned()),
            dockerfile_name: some("dockerfilekey").unwrap_or_else(|| "dockerfile".to_owned()),
            is_dockerfile_local: some("dockerfilekey").is_some(),
            context: some(&some("contextkey").unwrap_or_else(|| "context".to_owned())),
            context_subdir: some("contextsubdir"),
            graphs: below(&options, "context:").into_iter().filter_map(graph).collect(),
            inputs: inputs.clone(),
            input_metadata: below(&options, "input-metadata:"),
            subrequest: some("requestid"),
        })
    }
}

/// What would make another result and is not honoured must not be passed over.
fn changes_result(name: &str, value: &str) -> bool {
    let is_limit = matches!(
        name,
        "memory" | "memswap" | "cpushares" | "cpuperiod" | "cpuquota" | "cpusetcpus" | "cpusetmems"
    );
    !value.is_empty() && is_limit
}

/// Options below a prefix, by what follows it.
fn below(options: &BTreeMap<String, String>, prefix: &str) -> BTreeMap<String, String> {
    let below = options.iter();
    below.filter_map(|(name, value)| Some((name.strip_prefix(prefix)?.to_owned(), value.clone()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(options: &[(&str, &str)]) -> Result<Attributes, String> {
        let options = options.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Attributes::read(&options, &HashMap::new()).map_err(|failure| failure.to_string())
    }

    #[test]
    fn options_become_requests() {
        let read = read(&[
            ("build-arg:A", "1"),
            ("platform", "linux/amd64,linux/arm64"),
            ("filename", "x/D"),
            ("image-resolve-mode", "pull"),
            ("context:base", "docker-image://alpine"),
            ("context:other", "input:0"),
            ("dockerfilekey", "elsewhere"),
        ])
        .expect("is read");
        assert_eq!(read.requests.len(), 2);
        assert!(read.requests[0].named_contexts.contains_key("base"));
        assert_eq!(read.graphs["other"], "0");
        assert_eq!((read.filename.as_str(), read.pull), ("x/D", PullPolicy::Always));
        assert!(read.is_dockerfile_local && read.dockerfile_name == "elsewhere");
    }

    #[test]
    fn options_that_make_no_sense() {
        let error = read(&[("force-network-mode", "x")]).expect_err("is refused");
        assert_eq!(error, "invalid netmode x");
        let error = read(&[("cpuquota", "1")]).expect_err("is refused");
        assert_eq!(error, "not supported yet: the option `cpuquota`");
    }
}
