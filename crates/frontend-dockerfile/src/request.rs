//! What the caller wants of a Dockerfile, and what it found out about images.
//!
//! Owns the inputs of planning and lowering besides the Dockerfile itself; plain values, no defaults
//! read from a machine. Start with [`PlanRequest`] and [`ResolvedSources`].

use std::collections::BTreeMap;
use std::net::IpAddr;

use stave_llb::Definition;
use stave_oci::{Digest, ImageConfig, Platform, Reference};

use crate::{
    epoch::EPOCH,
    input::{ContextSource, NamedContext},
    source::Span,
};

/// What to build of a Dockerfile and with which settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanRequest {
    /// `--build-arg`s; a name without value is not here but was looked up by the caller.
    pub build_args: BTreeMap<String, String>,
    /// `--target`; `None` is the last stage.
    pub target: Option<String>,
    /// Whether every stage counts as needed: a build check without a target looks at all of them.
    pub all_stages: bool,
    /// The platform steps run on.
    pub build_platform: Platform,
    /// `--platform`; `None` is the build platform, and then a base image may decide otherwise.
    pub target_platform: Option<Platform>,
    /// Whether this is one of several platforms of one request: step names then carry the platform.
    pub multi_platform: bool,
    /// `--label`s, put on top of the image's own.
    pub labels: BTreeMap<String, String>,
    /// `--no-cache` and `--no-cache-filter`.
    pub no_cache: NoCache,
    /// `--network`, for steps that do not choose.
    pub network: BuildNetwork,
    /// `--add-host`, in order.
    pub extra_hosts: Vec<ExtraHost>,
    /// Patterns of the ignore file, as [`crate::dockerignore::parse`] gives them.
    pub dockerignore: Vec<String>,
    /// `--build-arg BUILDKIT_SANDBOX_HOSTNAME`, the host name steps see.
    pub hostname: Option<String>,
    /// How images are looked up: a fact for the definition, not for the plan.
    pub image_resolve_mode: ImageResolveMode,
    /// What `COPY` and `ADD` read.
    pub context: ContextSource,
    /// A directory of a remote context that stands for the whole of it.
    pub context_directory: Option<String>,
    /// `--build-context`: names that stand for something else than a stage or an image, perhaps for
    /// one platform only (`name::linux/arm64`).
    pub named_contexts: BTreeMap<String, NamedContext>,
    /// `--shm-size` in bytes, 0 for the default.
    pub shm_size: i64,
    /// `--ulimit`s: name, soft, hard.
    pub ulimits: Vec<(String, i64, i64)>,
    /// `--cgroup-parent`, empty for the default.
    pub cgroup_parent: String,
    /// A prefix for the ids of cache mounts, empty without one.
    pub cache_id_namespace: String,
}

/// Which stages must not use the cache.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum NoCache {
    /// None: the cache is used.
    #[default]
    Nothing,
    /// All.
    Everything,
    /// Those of these names.
    Stages(Vec<String>),
}

/// The network of steps that do not choose one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BuildNetwork {
    /// The worker's own.
    #[default]
    Sandbox,
    /// None.
    None,
    /// The host's.
    Host,
}

/// A line of `/etc/hosts` in steps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExtraHost {
    /// The name.
    pub host: String,
    /// Its address.
    pub address: HostAddress,
}

/// An address in `/etc/hosts`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostAddress {
    /// This one.
    Ip(IpAddr),
    /// That of the machine the step runs on, whatever it is there. It stands in the graph as docker's word for it, so that a
    /// step's cache key does not depend on the machine.
    Gateway,
}

impl std::fmt::Display for HostAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::Gateway => f.write_str("host-gateway"),
        }
    }
}

/// How images are looked up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ImageResolveMode {
    /// As the worker likes.
    #[default]
    Default,
    /// Always at the registry: `--pull`.
    ForcePull,
    /// A local image first.
    PreferLocal,
}

/// An image whose config the plan needs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceRequest {
    /// Which image; one of a layout is called after its context, with its digest.
    pub reference: Reference,
    /// For which platform.
    pub platform: Platform,
    /// Where it is looked up.
    pub origin: ImageOrigin,
}

/// Where an image is looked up.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ImageOrigin {
    /// In the local store or at its registry.
    Registry {
        /// The named context that chose it, for messages: `[context NAME] load metadata for …`.
        context: Option<String>,
    },
    /// In an OCI layout of the client.
    OciLayout {
        /// The named context that chose it.
        context: String,
        /// What the session calls the layout.
        store: String,
    },
}

/// An image as found.
#[derive(Clone, Debug, PartialEq)]
pub struct ResolvedImage {
    /// The digest to pin: of the manifest, or of the index where there is one.
    pub digest: Digest,
    /// Its config.
    pub config: ImageConfig,
}

/// The output of a command that the plan needs before it can be lowered (`ENV NAME=$(…)`, own syntax).
/// Whoever has it solves `definition` and reads the file [`CommandRequest::FILE`] of its result.
#[derive(Clone, Debug, PartialEq)]
pub struct CommandRequest {
    /// Which command: the digest of the vertex that runs it, which covers all it depends on.
    pub key: Digest,
    /// What runs it; its one output holds the file.
    pub definition: Definition,
    /// The instruction, for messages.
    pub span: Span,
}

impl CommandRequest {
    /// Where the command's standard output lies in the result.
    pub const FILE: &str = "/stdout";
    /// The most bytes that it may be.
    pub const MAX_BYTES: usize = 1 << 20;
}

/// What was found out so far; the caller fills it, nothing else does.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ResolvedSources {
    images: BTreeMap<SourceRequest, ResolvedImage>,
    outputs: BTreeMap<Digest, String>,
}

impl SourceRequest {
    /// Whether a named context chose it.
    pub fn is_named_context(&self) -> bool {
        self.origin != ImageOrigin::Registry { context: None }
    }

    /// An image that the Dockerfile itself names.
    pub fn plain(reference: Reference, platform: Platform) -> Self {
        Self { reference, platform, origin: ImageOrigin::Registry { context: None } }
    }
}

impl ResolvedSources {
    /// The image found for a request.
    pub fn get(&self, request: &SourceRequest) -> Option<&ResolvedImage> {
        self.images.get(request)
    }

    /// Everything found, in the order of the requests.
    pub fn images(&self) -> impl Iterator<Item = (&SourceRequest, &ResolvedImage)> {
        self.images.iter()
    }

    /// Takes up an image.
    pub fn insert(&mut self, request: SourceRequest, image: ResolvedImage) {
        self.images.insert(request, image);
    }

    /// What a command wrote, see [`CommandRequest`].
    pub fn output(&self, key: &Digest) -> Option<&str> {
        self.outputs.get(key).map(String::as_str)
    }

    /// Takes up what a command wrote, the whole file; line ends at its end do not count.
    pub fn insert_output(&mut self, key: Digest, text: String) {
        self.outputs.insert(key, text);
    }
}

impl PlanRequest {
    /// A build of the last stage for `platform` with nothing else asked for.
    pub fn new(platform: Platform) -> Self {
        Self {
            build_args: BTreeMap::new(),
            target: None,
            all_stages: false,
            build_platform: platform,
            target_platform: None,
            multi_platform: false,
            labels: BTreeMap::new(),
            no_cache: NoCache::Nothing,
            network: BuildNetwork::Sandbox,
            extra_hosts: Vec::new(),
            dockerignore: Vec::new(),
            hostname: None,
            image_resolve_mode: ImageResolveMode::Default,
            context: ContextSource::Local,
            context_directory: None,
            named_contexts: BTreeMap::new(),
            shm_size: 0,
            ulimits: Vec::new(),
            cgroup_parent: String::new(),
            cache_id_namespace: String::new(),
        }
    }

    /// One request for each of `--platform`'s: plan and lower each, all images go into one index. A
    /// single platform changes nothing but the target; warnings are the first one's.
    pub fn for_platforms(&self, platforms: &[Platform]) -> Vec<Self> {
        let one = |platform: &Platform| Self {
            target_platform: Some(platform.normalized()),
            multi_platform: self.multi_platform || platforms.len() > 1,
            ..self.clone()
        };
        if platforms.is_empty() { vec![self.clone()] } else { platforms.iter().map(one).collect() }
    }

    /// With the time that its `SOURCE_DATE_EPOCH` turned out to name, in seconds; without one where that has none.
    #[must_use]
    pub fn with_epoch(mut self, seconds: Option<i64>) -> Self {
        let text = seconds.map(|seconds| seconds.to_string()).unwrap_or_default();
        self.build_args.insert(EPOCH.to_owned(), text);
        self
    }

    /// The platform of the image to build.
    pub fn platform(&self) -> &Platform {
        self.target_platform.as_ref().unwrap_or(&self.build_platform)
    }
}
