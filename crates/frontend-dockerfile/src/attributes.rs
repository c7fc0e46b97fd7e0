//! Front end options, as BuildKit's clients send them, become requests.
//!
//! Owns their names (`target`, `build-arg:NAME`, `context:NAME`, …), forms and complaints. Must not read
//! the directories they name: patterns of ignore files are filled in by the caller. Start with
//! [`PlanRequest::of_attributes`].

use std::{borrow::Cow, collections::BTreeMap, net::IpAddr};

use stave_oci::{Platform, PlatformError};

use crate::{
    boolean, grammar,
    input::{ContextError, NamedContext},
    quote::quote,
    request::{BuildNetwork, ExtraHost, HostAddress, ImageResolveMode, NoCache, PlanRequest},
};

/// The options of one build.
pub type Attributes = BTreeMap<String, String>;

/// An option that is not sound; texts are the reference's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AttributeError {
    /// `platform`
    #[error("failed to parse target platform {text}: {reason}: invalid argument")]
    Platform {
        /// One of the list.
        text: String,
        /// Why.
        reason: PlatformError,
    },
    /// `image-resolve-mode`
    #[error("invalid image-resolve-mode: {0}")]
    ResolveMode(String),
    /// `force-network-mode`
    #[error("invalid netmode {0}")]
    Network(String),
    /// `add-hosts` without `=`
    #[error("failed to parse additional hosts: invalid key-value pair {0}")]
    HostPair(String),
    /// `add-hosts` without an address
    #[error("failed to parse additional hosts: failed to parse IP {0}")]
    Address(String),
    /// `shm-size`
    #[error("failed to parse shm size: strconv.ParseInt: parsing {}: invalid syntax", quote(.0))]
    ShmSize(String),
    /// `ulimit`
    #[error("failed to parse ulimit: invalid ulimit argument: {0}")]
    Ulimit(String),
    /// A list that is no CSV.
    #[error("failed to parse {name}: {reason}")]
    List {
        /// The option.
        name: &'static str,
        /// Why.
        reason: String,
    },
    /// `multi-platform`
    #[error("invalid boolean value for multi-platform: {0}")]
    MultiPlatform(String),
    /// `multi-platform=false` with several.
    #[error("conflicting config: returning multiple target platforms is not allowed")]
    ManyPlatforms,
    /// What the reference had once.
    #[error("support for \"override-copy-image\" was removed in BuildKit 0.11")]
    CopyImage,
    /// The same.
    #[error("support for \"BUILDKIT_DISABLE_FILEOP\" build-arg was removed in BuildKit 0.11")]
    DisableFileOp,
    /// `context:NAME`
    #[error(transparent)]
    Context(#[from] ContextError),
}

impl PlanRequest {
    /// One request for each platform that `attributes` ask for, in order. The build context is local:
    /// whoever knows what the option `context` turned out to be sets [`PlanRequest::context`].
    ///
    /// # Errors
    /// For the first option that is not sound.
    pub fn of_attributes(attributes: &Attributes, build: Platform) -> Result<Vec<Self>, AttributeError> {
        let get = |name: &str| attributes.get(name).map(String::as_str).unwrap_or_default();
        let some = |name: &str| attributes.get(name).filter(|value| !value.is_empty()).cloned();
        if !get("override-copy-image").is_empty() {
            return Err(AttributeError::CopyImage);
        }
        if boolean::parse(get("build-arg:BUILDKIT_DISABLE_FILEOP")) == Some(true) {
            return Err(AttributeError::DisableFileOp);
        }
        let platforms = platforms(get("platform"))?;
        let argument = |name: &str| some(&format!("build-arg:{name}"));
        let request = Self {
            build_args: below(attributes, "build-arg:"),
            target: some("target"),
            labels: below(attributes, "label:"),
            no_cache: no_cache(attributes.get("no-cache")),
            network: network(get("force-network-mode"))?,
            extra_hosts: hosts(get("add-hosts"))?,
            hostname: argument("BUILDKIT_SANDBOX_HOSTNAME").or_else(|| some("hostname")),
            image_resolve_mode: resolve_mode(get("image-resolve-mode"))?,
            context_directory: attributes.get("contextsubdir").cloned(),
            named_contexts: contexts(attributes)?,
            shm_size: shm_size(get("shm-size"))?,
            ulimits: ulimits(get("ulimit"))?,
            cgroup_parent: get("cgroup-parent").to_owned(),
            cache_id_namespace: get("build-arg:BUILDKIT_CACHE_MOUNT_NS").to_owned(),
            ..Self::new(build)
        };
        let mode = argument("BUILDKIT_MULTI_PLATFORM").or_else(|| some("multi-platform"));
        let multi_platform = match mode {
            None => platforms.len() > 1,
            Some(mode) => match boolean::parse(&mode) {
                None => return Err(AttributeError::MultiPlatform(mode)),
                Some(false) if platforms.len() > 1 => return Err(AttributeError::ManyPlatforms),
                Some(wanted) => wanted,
            },
        };
        Ok(Self { multi_platform, ..request }.for_platforms(&platforms))
    }
}

/// Options below a prefix, by what follows it.
fn below(attributes: &Attributes, prefix: &str) -> BTreeMap<String, String> {
    let below = attributes.iter();
    below.filter_map(|(name, value)| Some((name.strip_prefix(prefix)?.to_owned(), value.clone()))).collect()
}

fn platforms(text: &str) -> Result<Vec<Platform>, AttributeError> {
    let one = |text: &str| {
        let failed = |reason| AttributeError::Platform { text: text.to_owned(), reason };
        text.parse::<Platform>().map_err(failed)
    };
    if text.is_empty() { Ok(Vec::new()) } else { text.split(',').map(one).collect() }
}

fn contexts(attributes: &Attributes) -> Result<BTreeMap<String, NamedContext>, AttributeError> {
    let mut contexts = BTreeMap::new();
    for (name, specifier) in below(attributes, "context:") {
        // A graph of the client comes beside the options, not in them.
        if specifier.starts_with("input:") {
            continue;
        }
        let mut context = NamedContext::parse(&name, &specifier)?;
        if let NamedContext::Local(local) = &mut context {
            let key = attributes.get(&format!("sharedkey:localdir:{name}"));
            local.shared_key = key.cloned().unwrap_or_default();
        }
        contexts.insert(name, context);
    }
    Ok(contexts)
}

fn no_cache(stages: Option<&String>) -> NoCache {
    match stages.map(String::as_str) {
        None => NoCache::Nothing,
        Some("") => NoCache::Everything,
        Some(stages) => NoCache::Stages(stages.split(',').map(str::to_owned).collect()),
    }
}

fn network(mode: &str) -> Result<BuildNetwork, AttributeError> {
    match mode {
        "" | "sandbox" => Ok(BuildNetwork::Sandbox),
        "none" => Ok(BuildNetwork::None),
        "host" => Ok(BuildNetwork::Host),
        other => Err(AttributeError::Network(other.to_owned())),
    }
}

fn resolve_mode(mode: &str) -> Result<ImageResolveMode, AttributeError> {
    match mode {
        "" | "default" => Ok(ImageResolveMode::Default),
        "pull" => Ok(ImageResolveMode::ForcePull),
        "local" => Ok(ImageResolveMode::PreferLocal),
        other => Err(AttributeError::ResolveMode(other.to_owned())),
    }
}

fn list(name: &'static str, text: &str) -> Result<Vec<String>, AttributeError> {
    let failed = |error: grammar::FieldsError| AttributeError::List { name, reason: error.to_string() };
    if text.is_empty() {
        return Ok(Vec::new());
    }
    Ok(grammar::fields(text).map_err(failed)?.into_iter().map(Cow::into_owned).collect())
}

fn hosts(text: &str) -> Result<Vec<ExtraHost>, AttributeError> {
    let host = |field: &String| {
        let field = field.to_lowercase();
        let (host, address) = field.split_once('=').ok_or_else(|| AttributeError::HostPair(field.clone()))?;
        let address: IpAddr = address.parse().map_err(|_| AttributeError::Address(address.to_owned()))?;
        Ok(ExtraHost { host: host.to_owned(), address: HostAddress::Ip(address) })
    };
    list("additional hosts", text)?.iter().map(host).collect()
}

fn shm_size(text: &str) -> Result<i64, AttributeError> {
    if text.is_empty() { Ok(0) } else { text.parse().map_err(|_| AttributeError::ShmSize(text.to_owned())) }
}

/// `NAME=SOFT[:HARD]`
fn ulimits(text: &str) -> Result<Vec<(String, i64, i64)>, AttributeError> {
    let limit = |field: &String| {
        let bad = || AttributeError::Ulimit(field.clone());
        let (name, limits) = field.split_once('=').ok_or_else(bad)?;
        let (soft, hard) = limits.split_once(':').unwrap_or((limits, limits));
        let number = |text: &str| text.parse::<i64>().map_err(|_| bad());
        Ok((name.to_owned(), number(soft)?, number(hard)?))
    };
    list("ulimit", text)?.iter().map(limit).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attributes(pairs: &[(&str, &str)]) -> Attributes {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn build() -> Platform {
        Platform::new("linux", "amd64", None)
    }

    #[test]
    fn options_become_a_request() {
        let given = attributes(&[
            ("target", "t"),
            ("build-arg:A", "1"),
            ("label:l", "x"),
            ("no-cache", "one,two"),
            ("force-network-mode", "none"),
            ("add-hosts", "a=1.2.3.4,B=::1"),
            ("context:c", "local:dir"),
            ("sharedkey:localdir:c", "key"),
            ("ulimit", "nofile=1:2"),
            ("shm-size", "64"),
            ("hostname", "h"),
        ]);
        let requests = PlanRequest::of_attributes(&given, build()).expect("is sound");
        let [request] = requests.as_slice() else { panic!("{requests:?}") };
        assert_eq!(request.build_args["A"], "1");
        assert_eq!(request.no_cache, NoCache::Stages(vec!["one".into(), "two".into()]));
        assert_eq!(request.extra_hosts[1].host, "b");
        assert_eq!(request.ulimits, [("nofile".to_owned(), 1, 2)]);
        assert_eq!((request.target.as_deref(), request.hostname.as_deref()), (Some("t"), Some("h")));
        assert_eq!((request.shm_size, request.network), (64, BuildNetwork::None));
        let NamedContext::Local(local) = &request.named_contexts["c"] else { panic!("{request:?}") };
        assert_eq!((local.name.as_str(), local.shared_key.as_str()), ("dir", "key"));
        assert_eq!((request.target_platform.as_ref(), request.multi_platform), (None, false));
    }

    #[test]
    fn one_request_for_each_platform() {
        let given = attributes(&[("platform", "linux/amd64,linux/arm/v7")]);
        let requests = PlanRequest::of_attributes(&given, build()).expect("is sound");
        let names: Vec<_> = requests.iter().map(|request| request.platform().to_string()).collect();
        assert_eq!(names, ["linux/amd64", "linux/arm/v7"]);
        assert!(requests.iter().all(|request| request.multi_platform));
        let given = attributes(&[("platform", "linux/amd64"), ("build-arg:BUILDKIT_MULTI_PLATFORM", "1")]);
        let requests = PlanRequest::of_attributes(&given, build()).expect("is sound");
        assert!(requests[0].multi_platform);
    }

    #[track_caller]
    fn check_error(name: &str, value: &str, expected: &str) {
        let failure = PlanRequest::of_attributes(&attributes(&[(name, value)]), build());
        assert_eq!(failure.expect_err(value).to_string(), expected);
    }

    #[test]
    fn complaints_are_the_references() {
        check_error("force-network-mode", "x", "invalid netmode x");
        check_error("image-resolve-mode", "x", "invalid image-resolve-mode: x");
        check_error("add-hosts", "a", "failed to parse additional hosts: invalid key-value pair a");
        check_error("add-hosts", "a=b", "failed to parse additional hosts: failed to parse IP b");
        check_error("multi-platform", "x", "invalid boolean value for multi-platform: x");
        check_error("context:a", "b", "invalid context specifier b for a");
        check_error("context:a", "ftp:b", "unsupported context source ftp for a");
        check_error("context:a", "oci-layout://b", "oci-layout reference \"b\" has no digest");
        check_error(
            "platform",
            "a/b/c/d",
            "failed to parse target platform a/b/c/d: \"a/b/c/d\": cannot parse platform specifier: invalid argument",
        );
        check_error(
            "shm-size",
            "x",
            "failed to parse shm size: strconv.ParseInt: parsing \"x\": invalid syntax",
        );
        check_error(
            "override-copy-image",
            "x",
            "support for \"override-copy-image\" was removed in BuildKit 0.11",
        );
        check_error(
            "build-arg:BUILDKIT_DISABLE_FILEOP",
            "1",
            "support for \"BUILDKIT_DISABLE_FILEOP\" build-arg was removed in BuildKit 0.11",
        );
    }
}
