//! `--builder`: the build is another daemon's, and so is a build whose Dockerfile names a front end image, which a
//! daemon inside this process makes.
//!
//! Owns what of the flags becomes which option of the API, and what of them has no counterpart there. Must not know the
//! protocol. Start with [`run`] and [`inside`].

mod answer;
mod exports;
mod inputs;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use stave_daemon::WorkerConfig;
use stave_daemon::client::{Builder, ClientTls, DaemonAddress, RemoteBuild};
use stave_engine::Engine;
use stave_frontend_dockerfile::ContextSource;
use stave_registry::Keychain;

use super::arguments::{Arguments, NetworkMode};
use super::input::Input;
use super::outputs::TimestampMode;
use super::request::Wishes;
use crate::commands::transfer;
use crate::progress::Display;
use crate::report::Failure;
use crate::runtime::{Interrupt, with_client};
use crate::state::{GlobalOptions, docker_config};

/// Bytes of the largest certificate or key.
const MAX_FILE: u64 = 1 << 20;

/// The flags of this module.
#[derive(Debug, clap::Args)]
#[group(skip)]
pub(super) struct Flags {
    /// Build on another daemon, of this program or BuildKit's (`unix://PATH` or `tcp://HOST:PORT`)
    #[arg(long, value_name = "ADDRESS")]
    builder: Option<DaemonAddress>,
    /// Authority that signed the certificate of --builder (PEM)
    #[arg(long, value_name = "FILE", requires = "builder")]
    tlscacert: Option<PathBuf>,
    /// Certificate to show to --builder (PEM)
    #[arg(long, value_name = "FILE", requires = "tlskey", requires = "tlscacert")]
    tlscert: Option<PathBuf>,
    /// Key of that certificate (PEM)
    #[arg(long, value_name = "FILE", requires = "tlscert")]
    tlskey: Option<PathBuf>,
    /// Name in the certificate of --builder, if it is not the host's
    #[arg(long, value_name = "NAME", requires = "tlscacert")]
    tlsservername: Option<String>,
}

impl Flags {
    /// The daemon to build on.
    pub(super) fn builder(&self) -> Option<&DaemonAddress> {
        self.builder.as_ref()
    }

    fn tls(&self) -> Result<Option<ClientTls>, Failure> {
        let Some(authority) = &self.tlscacert else { return Ok(None) };
        let identity = match (&self.tlscert, &self.tlskey) {
            (Some(certificate), Some(key)) => Some((read(certificate)?, read(key)?)),
            _ => None,
        };
        let server_name = self.tlsservername.clone();
        Ok(Some(ClientTls { authority: read(authority)?, identity, server_name }))
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    use std::io::Read as _;
    let failed =
        |error: std::io::Error| Failure::message(format!("cannot read `{}`: {error}", path.display()));
    let mut bytes = Vec::new();
    std::fs::File::open(path).map_err(failed)?.take(MAX_FILE).read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

/// Builds on another daemon. `--load` brings the image into the store of this machine.
pub(super) fn run(
    (arguments, wishes): (&Arguments, &Wishes),
    address: &DaemonAddress,
    global: &GlobalOptions,
) -> Result<u8, Failure> {
    refuse(arguments, wishes, "with --builder")?;
    let tls = arguments.elsewhere.tls()?;
    let inputs = inputs::read(arguments, None)?;
    let folder = arguments.result.load.then(tempfile::tempdir).transpose();
    let folder = folder.map_err(|error| Failure::new(&error))?;
    let archive = folder.as_ref().map(|folder| folder.path().join("image.tar"));
    let build = build((arguments, wishes), &inputs, archive.as_deref())?;
    let code = with_client(async |interrupt| {
        let builder = Builder::connect(address, tls).await.map_err(|error| Failure::new(&error))?;
        drive(&builder, build, arguments, interrupt).await
    })?;
    match archive {
        Some(archive) => transfer::load_archive(archive, global),
        None => Ok(code),
    }
}

/// Builds with a front end image, in a daemon of this process.
pub(super) async fn inside(
    engine: &Arc<Engine>,
    (arguments, wishes): (&Arguments, &Wishes),
    input: &Input,
    interrupt: &Interrupt,
) -> Result<u8, Failure> {
    refuse(arguments, wishes, "with a front end image")?;
    let is_here = input.source == ContextSource::Local;
    let given = inputs::Given { context: is_here.then_some(&input.context), dockerfile: &input.dockerfile };
    let inputs = inputs::read(arguments, Some(&given))?;
    let build = build((arguments, wishes), &inputs, None)?;
    let worker = WorkerConfig {
        id: "stave".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        // Whoever runs the program grants what the flags name.
        entitlements: ["network.host", "security.insecure", "device"].map(str::to_owned).to_vec(),
        confinement: wishes.confinement.clone(),
        ..WorkerConfig::default()
    };
    let builder = Builder::within(Arc::clone(engine), worker).map_err(|error| Failure::new(&error))?;
    drive(&builder, build, arguments, interrupt).await
}

async fn drive(
    builder: &Builder,
    build: RemoteBuild,
    arguments: &Arguments,
    interrupt: &Interrupt,
) -> Result<u8, Failure> {
    let display = Display::steps(arguments.form());
    let built = builder.build(build, &display.observer(), interrupt.token()).await;
    display.abandon();
    let told = built.map_err(|error| answer::explain(&error))?;
    answer::finish(arguments, &told)?;
    Ok(0)
}

/// What the API has no words for must not be passed over.
fn refuse(arguments: &Arguments, wishes: &Wishes, place: &str) -> Result<(), Failure> {
    let confinement = &wishes.confinement;
    let asked = [
        ("--check, --print and --call", arguments.inquiry.inquiry().is_some()),
        ("--verify", arguments.result.verify),
        ("--squash", wishes.result.squash.is_some()),
        // A builder keeps times unless it is told which to write (`SOURCE_DATE_EPOCH`).
        ("--timestamps=reproducible", arguments.result.timestamps == Some(TimestampMode::Reproducible)),
        ("--no-secret-scan", !confinement.secret_scan),
        ("-t STAGE=NAME", !wishes.result.stages.is_empty()),
        ("--annotation", !arguments.result.annotations.is_empty()),
        ("--context-modes", arguments.context_modes.is_some()),
        ("--network bridge, pasta and slirp4netns", !is_common(arguments.network)),
        ("--device", !confinement.devices.is_empty()),
        ("--step-timeout", confinement.timeout.is_some()),
        ("--retry", confinement.retries > 0),
        ("--ca", confinement.authorities.is_some()),
        ("--resource and limits of the build", arguments.confine.has_limits()),
        ("--build-context oci-layout://", !wishes.layouts.is_empty()),
    ];
    match asked.iter().find(|(_, is_asked)| *is_asked) {
        Some((what, _)) => Err(Failure::usage(format!("not supported yet {place}: {what}"))),
        None => Ok(()),
    }
}

fn is_common(network: NetworkMode) -> bool {
    matches!(network, NetworkMode::Default | NetworkMode::None | NetworkMode::Host)
}

fn build(
    (arguments, wishes): (&Arguments, &Wishes),
    inputs: &inputs::Inputs,
    loaded: Option<&Path>,
) -> Result<RemoteBuild, Failure> {
    let mut attributes = inputs::attributes(arguments, wishes)?;
    attributes.extend(inputs.attributes.clone());
    attributes.extend(exports::attestations(&arguments.result)?);
    let mut entitlements = arguments.confine.allow.clone();
    if arguments.network == NetworkMode::Host && !entitlements.iter().any(|word| word == "network.host") {
        entitlements.push("network.host".to_owned());
    }
    Ok(RemoteBuild {
        frontend: "dockerfile.v0".to_owned(),
        attributes,
        directories: inputs.directories.clone(),
        upload: inputs.upload.clone(),
        secrets: wishes.secrets.clone(),
        ssh: wishes.ssh.clone(),
        keychain: Keychain::at(docker_config()),
        entitlements,
        policy: wishes.policy.written.clone(),
        exports: exports::read(&arguments.result, loaded)?,
        cache_from: exports::caches(&arguments.caches.cache_from)?,
        cache_to: exports::caches(&arguments.caches.cache_to)?,
    })
}
