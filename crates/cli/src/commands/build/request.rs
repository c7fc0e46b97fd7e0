//! Flags to a build request: what was typed becomes what is meant, or a usage error.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use stave_engine::{BuildRequest, Caches, DockerfileAt, PullPolicy, RemoteRequest};
use stave_frontend_dockerfile::PlanRequest;
use stave_frontend_dockerfile::request::{BuildNetwork, ImageResolveMode, NoCache};
use stave_oci::Platform;
use stave_worker::{Confinement, ContextModes, Secret, SshAgent};

use super::arguments::{Arguments, NetworkMode};
use super::input::Input;
use super::outputs;
use super::values::{self, SecretSource};
use super::{contexts, policy, ssh};
use crate::config::{Config, ModesName};
use crate::report::Failure;

/// Bytes of the largest secret, as BuildKit limits it.
const MAX_SECRET: u64 = 500 << 10;

/// Everything the flags say, checked, before anything is read.
pub(super) struct Wishes {
    pub(super) plan: PlanRequest,
    pull: PullPolicy,
    context_modes: ContextModes,
    contexts: BTreeMap<String, PathBuf>,
    pub(super) layouts: BTreeMap<String, PathBuf>,
    pub(super) platforms: Vec<Platform>,
    pub(super) ssh: BTreeMap<String, SshAgent>,
    known_hosts: Option<String>,
    pub(super) secrets: BTreeMap<String, Secret>,
    pub(super) confinement: Confinement,
    pub(super) result: outputs::Outcome,
    caches: Caches,
    /// Rules about what the build may be made from.
    pub(super) policy: policy::Rules,
}

impl Wishes {
    /// Reads the flags.
    pub(super) fn of(arguments: &Arguments, config: &Config) -> Result<Self, Failure> {
        let named = contexts::read(&arguments.build_contexts).map_err(|error| Failure::new(&error))?;
        let pull = if arguments.pull { PullPolicy::Always } else { PullPolicy::Missing };
        Ok(Self {
            plan: PlanRequest { named_contexts: named.plan, ..plan(arguments)? },
            pull,
            context_modes: context_modes(arguments, config),
            contexts: named.directories,
            layouts: named.layouts,
            platforms: arguments.platforms.clone(),
            ssh: agents(arguments)?,
            known_hosts: ssh::known_hosts(std::env::var_os("HOME").as_deref().map(Path::new)),
            secrets: secrets(&arguments.secrets)?,
            confinement: arguments.confine.confinement(arguments.network, config.build.network)?,
            result: outputs::read(arguments)?,
            caches: arguments.caches.caches()?,
            policy: policy::read()?,
        })
    }

    /// What is to be fetched before that.
    pub(super) fn remote(&self, context: Option<String>, dockerfile: DockerfileAt) -> RemoteRequest {
        RemoteRequest {
            context,
            dockerfile,
            plan: self.plan.clone(),
            secrets: self.secrets.clone(),
            ssh: self.ssh.clone(),
            known_hosts: self.known_hosts.clone(),
            policy: self.policy.policies.clone(),
        }
    }

    /// The request for these inputs.
    pub(super) fn request(self, input: &Input) -> BuildRequest {
        BuildRequest {
            context: input.context.clone(),
            dockerfile: input.dockerfile.clone(),
            plan: PlanRequest {
                dockerignore: input.ignored.clone(),
                context: input.source.clone(),
                ..self.plan
            },
            pull: self.pull,
            policy: self.policy.policies,
            context_modes: self.context_modes,
            contexts: self.contexts,
            layouts: self.layouts,
            pins: input.pins.clone(),
            platforms: self.platforms,
            ssh: self.ssh,
            known_hosts: self.known_hosts,
            secrets: self.secrets,
            timestamps: self.result.timestamps,
            attest: self.result.attest,
            squash: self.result.squash,
            stages: self.result.stages,
            confinement: self.confinement,
            caches: self.caches,
            exports: self.result.exports,
        }
    }
}

/// The flag, else the configuration's, else docker's way.
fn context_modes(arguments: &Arguments, config: &Config) -> ContextModes {
    match arguments.context_modes.or(config.build.context_modes) {
        Some(ModesName::Git) => ContextModes::Git,
        Some(ModesName::Keep) | None => ContextModes::Kept,
    }
}

/// The agents of `--ssh`. As docker's client does, a repository over ssh gets the user's own without a flag.
fn agents(arguments: &Arguments) -> Result<BTreeMap<String, SshAgent>, Failure> {
    let socket = std::env::var_os("SSH_AUTH_SOCK").filter(|socket| !socket.is_empty());
    let mut flags = arguments.ssh.clone();
    let context = arguments.context.to_string_lossy();
    let sources = arguments.build_contexts.iter().filter_map(|flag| Some(flag.split_once('=')?.1));
    let over_ssh = |text: &str| text.starts_with("ssh://") || text.starts_with("git@");
    if flags.is_empty() && socket.is_some() && sources.chain([&*context]).any(over_ssh) {
        flags.push("default".to_owned());
    }
    ssh::read(&flags, socket.as_deref().map(Path::new)).map_err(|error| Failure::new(&error))
}

fn plan(arguments: &Arguments) -> Result<PlanRequest, Failure> {
    let usage = |error: values::ValueError| Failure::usage(error.to_string());
    let environment = |name: &str| std::env::var(name).ok();
    let mut build_args = values::build_arguments(&arguments.build_args, environment).map_err(usage)?;
    // docker's client passes the caller's epoch on by itself.
    if let Some(epoch) = environment("SOURCE_DATE_EPOCH") {
        build_args.entry("SOURCE_DATE_EPOCH".to_owned()).or_insert(epoch);
    }
    let shm_size = arguments.shm_size.as_deref().map(values::size).transpose().map_err(usage)?.unwrap_or(0);
    Ok(PlanRequest {
        build_args,
        target: arguments.target.clone(),
        // What is only asked about is asked for the first.
        target_platform: arguments.platforms.first().cloned(),
        labels: values::labels(&arguments.labels).map_err(usage)?,
        no_cache: match (arguments.no_cache, arguments.no_cache_filter.as_slice()) {
            (true, _) => NoCache::Everything,
            (false, []) => NoCache::Nothing,
            (false, stages) => NoCache::Stages(stages.to_vec()),
        },
        network: match arguments.network {
            NetworkMode::Default | NetworkMode::Bridge | NetworkMode::Pasta | NetworkMode::Slirp4netns => {
                BuildNetwork::Sandbox
            }
            NetworkMode::None => BuildNetwork::None,
            NetworkMode::Host => BuildNetwork::Host,
        },
        extra_hosts: values::hosts(&arguments.add_hosts).map_err(usage)?,
        image_resolve_mode: if arguments.pull {
            ImageResolveMode::ForcePull
        } else {
            ImageResolveMode::Default
        },
        shm_size: i64::try_from(shm_size).map_err(|_| Failure::usage("--shm-size is too large"))?,
        ulimits: values::limits(&arguments.ulimits).map_err(usage)?,
        hostname: arguments.hostname.clone(),
        ..PlanRequest::new(Platform::host())
    })
}

/// Secrets are read at once: a missing file is said before the first step runs, and a step that comes
/// later sees what was there when the build began.
pub(crate) fn secrets(specs: &[String]) -> Result<BTreeMap<String, Secret>, Failure> {
    let mut secrets = BTreeMap::new();
    for spec in specs {
        let (id, source) = values::secret(spec).map_err(|error| Failure::usage(error.to_string()))?;
        let value = match source {
            SecretSource::Environment(name) => {
                std::env::var(&name).map(String::into_bytes).map_err(|_| {
                    Failure::message(format!("secret `{id}`: the environment variable `{name}` is not set"))
                })?
            }
            SecretSource::File(path) => {
                let failed = |error: std::io::Error| {
                    Failure::message(format!("secret `{id}`: failed to read `{}`: {error}", path.display()))
                };
                let mut value = Vec::new();
                let file = std::fs::File::open(&path).map_err(failed)?;
                file.take(MAX_SECRET + 1).read_to_end(&mut value).map_err(failed)?;
                value
            }
        };
        if value.len() as u64 > MAX_SECRET {
            return Err(Failure::message(format!("secret `{id}` is larger than {MAX_SECRET} bytes")));
        }
        secrets.insert(id, Secret::Value(value));
    }
    Ok(secrets)
}
