//! Flags to a build request: what was typed becomes what is meant, or a usage error.

use std::collections::BTreeMap;
use std::io::Read as _;

use stave_engine::{BuildRequest, PullPolicy};
use stave_exporter::{ExportTarget, ImageTarget, PushOptions};
use stave_frontend_dockerfile::PlanRequest;
use stave_frontend_dockerfile::request::{BuildNetwork, ImageResolveMode, NoCache};
use stave_oci::Platform;
use stave_worker::Secret;

use super::arguments::{Arguments, NetworkMode};
use super::input::Input;
use super::values::{self, SecretSource};
use crate::report::Failure;

/// Bytes of the largest secret, as BuildKit limits it.
const MAX_SECRET: u64 = 500 << 10;

/// Everything the flags say, checked, before anything is read.
pub(super) struct Wishes {
    plan: PlanRequest,
    pull: PullPolicy,
    secrets: BTreeMap<String, Secret>,
    exports: Vec<ExportTarget>,
}

impl Wishes {
    /// Reads the flags.
    pub(super) fn of(arguments: &Arguments) -> Result<Self, Failure> {
        if let Some(context) = arguments.build_contexts.first() {
            let text = format!("--build-context `{context}`: named contexts are not supported yet");
            return Err(Failure::usage(text));
        }
        let pull = if arguments.pull { PullPolicy::Always } else { PullPolicy::Missing };
        Ok(Self { plan: plan(arguments)?, pull, secrets: secrets(arguments)?, exports: exports(arguments)? })
    }

    /// The request for these inputs.
    pub(super) fn request(self, input: &Input) -> BuildRequest {
        BuildRequest {
            context: input.context.clone(),
            dockerfile: input.dockerfile.clone(),
            plan: PlanRequest { dockerignore: input.ignored.clone(), ..self.plan },
            pull: self.pull,
            secrets: self.secrets,
            exports: self.exports,
        }
    }
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
        target_platform: arguments.platform.clone(),
        labels: values::labels(&arguments.labels).map_err(usage)?,
        no_cache: match (arguments.no_cache, arguments.no_cache_filter.as_slice()) {
            (true, _) => NoCache::Everything,
            (false, []) => NoCache::Nothing,
            (false, stages) => NoCache::Stages(stages.to_vec()),
        },
        network: match arguments.network {
            NetworkMode::Default => BuildNetwork::Sandbox,
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
fn secrets(arguments: &Arguments) -> Result<BTreeMap<String, Secret>, Failure> {
    let mut secrets = BTreeMap::new();
    for spec in &arguments.secrets {
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

/// The targets of `-o`, `--push` and `--load`; without any, the local store. A named image that goes to an archive
/// is also stored: its layers are hashed anyway, and the next Dockerfile may build on the name.
fn exports(arguments: &Arguments) -> Result<Vec<ExportTarget>, Failure> {
    let usage = |error: stave_exporter::ExportSpecError| Failure::usage(crate::report::chain(&error));
    let mut targets = Vec::new();
    for spec in &arguments.outputs {
        targets.push(spec.parse::<ExportTarget>().map_err(usage)?.named(&arguments.tags));
    }
    if arguments.push {
        if targets.iter().any(|target| matches!(target, ExportTarget::Image(_))) {
            targets = targets.into_iter().map(ExportTarget::pushed).collect();
        } else {
            // As docker's own store does: what is pushed is also kept under its name.
            let push = Some(PushOptions::default());
            let target =
                ImageTarget { names: arguments.tags.clone(), store: true, push, ..ImageTarget::default() };
            targets.push(ExportTarget::Image(target));
        }
    }
    let has_image = targets.iter().any(|target| matches!(target, ExportTarget::Image(_)));
    let has_archive =
        targets.iter().any(|target| matches!(target, ExportTarget::Oci(_) | ExportTarget::Docker(_)));
    let named_archive = has_archive && !arguments.tags.is_empty();
    if targets.is_empty() || ((arguments.load || named_archive) && !has_image) {
        targets.push(ExportTarget::store(arguments.tags.clone()));
    }
    for target in &targets {
        target.validate().map_err(usage)?;
    }
    Ok(targets)
}
