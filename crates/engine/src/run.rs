//! `stave run`: an image's config and a user's wishes become one process.
//!
//! Owns what overrides what. Must not know terminals or signals: the caller holds the running process.
//! Start with [`Engine::start`].

use stave_oci::{ImageConfig, Platform};
use stave_sandbox::{CgroupLimits, CgroupParent, Rlimit, Stdio, Sysctl, TerminalSize};
use stave_store::LocalImage;
use stave_worker::{Bind, RunSpec, Running, StepNetwork};

use crate::Engine;

/// What to run, over what the image says.
#[derive(Debug, Clone)]
pub struct RunRequest {
    /// The image.
    pub image: LocalImage,
    /// Replaces `ENTRYPOINT`, and then `CMD` does not count; an empty one removes it.
    pub entrypoint: Option<Vec<String>>,
    /// Replaces `CMD`, unless empty.
    pub command: Vec<String>,
    /// `NAME=value`, over the image's.
    pub env: Vec<String>,
    /// Replaces `WORKDIR`.
    pub cwd: Option<String>,
    /// Replaces `USER`.
    pub user: Option<String>,
    /// The host name inside.
    pub hostname: String,
    /// Host files to mount.
    pub binds: Vec<Bind>,
    /// The network.
    pub network: StepNetwork,
    /// Whether the root refuses writes.
    pub readonly_root: bool,
    /// Extra names, `(name, address)`.
    pub extra_hosts: Vec<(String, String)>,
    /// Limits of its processes together.
    pub limits: CgroupLimits,
    /// The control group in which theirs is made.
    pub cgroup_parent: CgroupParent,
    /// Limits of each process.
    pub rlimits: Vec<Rlimit>,
    /// Size of `/dev/shm` in bytes; `None` for the default.
    pub shm_size: Option<u64>,
    /// Kernel parameters of its own namespaces.
    pub sysctls: Vec<Sysctl>,
    /// A terminal of this size instead of the descriptors.
    pub terminal: Option<TerminalSize>,
}

/// Why a container could not be started.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The image's config cannot be read.
    #[error("malformed image config")]
    Config(#[from] serde_json::Error),
    /// The image is for another machine.
    #[error("image platform ({0}) does not match the host's ({1}), and emulation is not supported yet")]
    Platform(Box<Platform>, Box<Platform>),
    /// The process could not be started.
    #[error(transparent)]
    Start(#[from] stave_worker::RunError),
}

impl RunError {
    /// docker's exit code for it: 127 not found, 126 not executable, 125 anything else.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Start(error) => error.exit_code(),
            _ => 125,
        }
    }
}

impl Engine {
    /// Starts a container with these descriptors.
    ///
    /// # Errors
    /// [`RunError`].
    pub async fn start(&self, request: RunRequest, stdio: Stdio) -> Result<Running, RunError> {
        let config: ImageConfig = serde_json::from_slice(&request.image.config)?;
        let host = Platform::host();
        if config.architecture != host.architecture && !config.architecture.is_empty() {
            return Err(RunError::Platform(Box::new(config.platform()), Box::new(host)));
        }
        Ok(self.worker.start(spec(request, config), stdio).await?)
    }
}

/// What overrides what, as docker has it.
fn spec(request: RunRequest, config: ImageConfig) -> RunSpec {
    let container = config.config;
    let cmd = container.cmd.unwrap_or_default();
    let (mut args, default) = match request.entrypoint {
        Some(entrypoint) => (entrypoint, Vec::new()),
        None => (container.entrypoint.unwrap_or_default(), cmd),
    };
    args.extend(if request.command.is_empty() { default } else { request.command });
    RunSpec {
        snapshot: request.image.snapshot(),
        platform: request.image.platform,
        args,
        env: overlay(container.env, request.env),
        cwd: request.cwd.unwrap_or(container.working_dir),
        user: request.user.unwrap_or(container.user),
        hostname: request.hostname,
        binds: request.binds,
        readonly_root: request.readonly_root,
        network: request.network,
        extra_hosts: request.extra_hosts,
        rlimits: request.rlimits,
        shm_size: request.shm_size,
        sysctls: request.sysctls,
        limits: request.limits,
        cgroup_parent: request.cgroup_parent,
        terminal: request.terminal,
    }
}

/// `over` on top of `base`, by name; the order of first mention stays.
fn overlay(mut base: Vec<String>, over: Vec<String>) -> Vec<String> {
    let name = |pair: &str| pair.split('=').next().unwrap_or_default().to_owned();
    for pair in over {
        match base.iter_mut().find(|known| name(known) == name(&pair)) {
            Some(known) => *known = pair,
            None => base.push(pair),
        }
    }
    base
}

#[cfg(test)]
mod tests {
    use stave_oci::{ContainerConfig, Digest};

    use super::*;

    #[track_caller]
    fn check(entrypoint: Option<&[&str]>, command: &[&str], expected: &[&str]) {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let container = ContainerConfig {
            entrypoint: Some(words(&["entry"])),
            cmd: Some(words(&["cmd"])),
            env: words(&["A=1", "B=2"]),
            ..ContainerConfig::default()
        };
        let image = LocalImage {
            id: Digest::sha256(b""),
            config: Vec::new(),
            layers: Vec::new(),
            manifest: None,
            platform: Platform::host(),
        };
        let request = RunRequest {
            image,
            entrypoint: entrypoint.map(words),
            command: words(command),
            env: words(&["B=3", "C=4"]),
            cwd: None,
            user: None,
            hostname: "h".to_owned(),
            binds: Vec::new(),
            network: StepNetwork::None,
            readonly_root: false,
            extra_hosts: Vec::new(),
            limits: CgroupLimits::default(),
            cgroup_parent: CgroupParent::Default,
            rlimits: Vec::new(),
            shm_size: None,
            sysctls: Vec::new(),
            terminal: None,
        };
        let spec = spec(request, ImageConfig { config: container, ..ImageConfig::default() });
        assert_eq!(spec.args, words(expected));
        assert_eq!(spec.env, words(&["A=1", "B=3", "C=4"]));
    }

    #[test]
    fn arguments_override_as_docker_has_it() {
        check(None, &[], &["entry", "cmd"]);
        check(None, &["mine"], &["entry", "mine"]);
        check(Some(&["other"]), &[], &["other"]);
        check(Some(&["other"]), &["mine"], &["other", "mine"]);
        check(Some(&[]), &["mine"], &["mine"]);
    }
}
