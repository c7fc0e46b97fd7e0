//! Exec ops: a process over its mounts, and what it wrote as new layers.
//! Owns the order prepare → run → commit, and what an exit code means. Mounts are built in [`mounts`].
//! Must not know how processes are isolated. Read [`tries::run`] first.

pub(crate) mod container;
pub(crate) mod failed;
pub(crate) mod foreign;
pub(crate) mod leftovers;
pub(crate) mod mounts;
mod new_files;
pub(crate) mod repeated;
mod surroundings;
pub(crate) mod traces;
pub(crate) mod tries;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use stave_llb::{ExecOp, HostIp, Mount, NetMode, ProxyEnv, SecurityMode, Sharing, Ulimit};
use stave_sandbox::{
    CgroupParent, DEFAULT_PATH, ExitStatus, MountSpec, Process, Rlimit, RlimitResource, Security,
    remove_mount_points,
};
use stave_solver::Selector;
use stave_store::{MutableDir, StoreError};
use tokio_util::sync::CancellationToken;

use self::mounts::{CacheMount, Caches, Plan, Prepared, Written};
use self::repeated::{Moment, beginning, remove_repeated, repeats_nothing};
use self::traces::{Touched, leave_directories};
use crate::cdi::DeviceError;
use crate::confinement::Confinement;
use crate::exec::network_files::HostEntry;
use crate::exec::{ExecError, Finished, MountSet, ProcessSpec};
use crate::file::action::FileError;
use crate::namespace::is_cache_mount_id;
use crate::networks::NetworkError;
use crate::root::IoAt;
use crate::rootfs::{Names, network_mounts, overlay_root};
use crate::session::{Secret, Session, StepNetwork};
use crate::source::image::blocking;
use crate::users::{Identity, UserError, UserTable};
use crate::worker::{DigestError, MountError, Ref, Shared};

/// Host name of steps that name none: BuildKit's.
const HOSTNAME: &str = "buildkitsandbox";

/// Bytes of one secret, as BuildKit limits them.
const SECRET_LIMIT: u64 = 500 << 10;

/// Between two tries for a cache mount that another build holds.
const LOCK_POLL: std::time::Duration = std::time::Duration::from_millis(50);

/// Why a step failed.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// There is no such network here.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The process ended with a code that is not accepted. The text is BuildKit's.
    #[error("process {command:?} did not complete successfully: exit code: {code}")]
    Exit {
        /// The command as a shell user would write it.
        command: String,
        /// The code; 128 and the signal's number when a signal ended it.
        code: i32,
        /// The signal that ended it.
        signal: Option<i32>,
        /// The last of its output.
        tail: Vec<u8>,
    },
    /// The process is made for another processor, and nothing here runs it.
    #[error(
        "process {command:?} did not complete successfully: exec format error: programs for {platform} do not run on \
         this machine ({host}); register an emulator for them with binfmt_misc (the package `qemu-user-static`, or the \
         image `tonistiigi/binfmt` with `--install all`), or build that stage `FROM --platform=$BUILDPLATFORM`"
    )]
    Foreign {
        /// The command as a shell user would write it.
        command: String,
        /// What it is made for.
        platform: String,
        /// What this machine is.
        host: String,
    },
    /// No mount at `/`.
    #[error("exec op without a root mount")]
    NoRoot,
    /// The op refers to an input it does not have.
    #[error("exec op refers to an input it does not have")]
    NoInput,
    /// A secret that is required and not there.
    #[error("secret {0}: not found")]
    MissingSecret(String),
    /// The build has no agent at all.
    #[error("no SSH key {0:?} forwarded from the client")]
    NoAgent(String),
    /// The build has agents, but none of this id.
    #[error("unset ssh forward key {0}")]
    UnknownAgent(String),
    /// Who lends agents does not lend this one.
    #[error("{0}")]
    RefusedAgent(String),
    /// An agent cannot be lent to the step.
    #[error("ssh agent {id}")]
    Agent {
        /// Its id.
        id: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A secret that cannot be used.
    #[error("secret {id}: {fault}")]
    Secret {
        /// Its id.
        id: String,
        /// What is wrong.
        fault: SecretFault,
    },
    /// The kernel killed it, or one of its children, for want of memory.
    #[error("process {command:?} was killed: out of memory ({memory}): exit code: {code}")]
    OutOfMemory {
        /// The command as a shell user would write it.
        command: String,
        /// The code it ended with.
        code: i32,
        /// The limit, if there was one, and the most it held, in words.
        memory: String,
        /// Whether other steps ran at the same time, so that it may do better alone.
        crowded: bool,
    },
    /// It ran longer than a step may.
    #[error("process {command:?} did not end within {after:?}")]
    TimedOut {
        /// The command as a shell user would write it.
        command: String,
        /// How long it was given.
        after: std::time::Duration,
    },
    /// What a failed step left was removed since.
    #[error("the step's file system is no longer kept")]
    NotKept,
    /// It does not get its devices.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The build was not granted what the step asks for.
    #[error("{0} is not allowed")]
    NotEntitled(&'static str),
    /// A cache mount that would be a directory of this machine's own.
    #[error("cache mount id `{0}` is reserved")]
    CacheMountId(String),
    /// Not there yet.
    #[error("{0} is not supported yet")]
    Unsupported(&'static str),
    /// A limit docker does not know.
    #[error("unknown resource limit `{0}`")]
    Ulimit(String),
    /// The user is not known in the image.
    #[error(transparent)]
    User(#[from] UserError),
    /// A mount could not be prepared.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// A mount could not be made in this process.
    #[error(transparent)]
    Overlay(#[from] stave_sandbox::MountError),
    /// A path could not be resolved or changed.
    #[error(transparent)]
    Io(#[from] IoAt),
    /// An input could not be made a directory.
    #[error(transparent)]
    Input(#[from] FileError),
    /// A cache mount's seed could not be identified.
    #[error(transparent)]
    Seed(#[from] DigestError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The process could not be run.
    #[error(transparent)]
    Exec(#[from] ExecError),
}

impl StepError {
    /// Whether the process failed, and not what is around it: another try may go better.
    fn is_of_the_process(&self) -> bool {
        matches!(self, Self::Exit { .. } | Self::OutOfMemory { .. } | Self::TimedOut { .. })
    }
}

/// Why a secret cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SecretFault {
    /// Its file cannot be read.
    #[error("cannot be read: {0}")]
    Unreadable(std::io::Error),
    /// Larger than allowed.
    #[error("larger than {SECRET_LIMIT} bytes")]
    TooLarge,
    /// Not text, or with a NUL byte, and so no environment variable.
    #[error("cannot be an environment variable")]
    NotText,
}

/// A step ready to run.
pub(crate) struct Ready {
    process: ProcessSpec,
    mounts: MountSet,
    prepared: Prepared,
    touched: Touched,
    beginning: Moment,
}

/// Prepares a step. Blocks.
fn begin(plan: &Plan, caches: Caches) -> Result<Ready, StepError> {
    let op = &plan.op;
    let network = plan.shared.networks.connect(step_network(op, &plan.session))?;
    let hostname = if op.hostname.is_empty() { HOSTNAME } else { &op.hostname };
    let names =
        Names { hostname: hostname.to_owned(), extra: op.extra_hosts.iter().map(host_entry).collect() };
    let mut prepared = mounts::prepare(plan, caches)?;
    surroundings::show_authorities(plan, &mut prepared)?;
    let devices = surroundings::devices(op, plan)?;
    prepared.specs.extend(surroundings::device_mounts(&devices));
    let identity = UserTable::read(&*prepared.root_view).identity(&op.user)?;
    let mut specs = network_mounts(&names, &network)?;
    specs.extend(prepared.specs.iter().cloned());
    let mut process = Process::new(op.args.clone());
    process.env = environment(op, &identity, &plan.session)?;
    surroundings::add_device_variables(&mut process.env, devices.env);
    process.cwd = Path::new("/").join(&op.cwd);
    (process.uid, process.gid, process.groups) = (identity.uid, identity.gid, identity.groups);
    process.groups.extend(devices.groups);
    process.rlimits = op.ulimits.iter().map(rlimit).collect::<Result<_, _>>()?;
    let security = security(op.security);
    let process = ProcessSpec {
        process,
        hostname: hostname.to_owned(),
        network: network.network,
        security,
        limits: None,
        cgroup_parent: CgroupParent::Default,
        watch: None,
        turn: None,
    };
    let touched = Touched::by(&*prepared.root_view, specs.iter().map(MountSpec::target));
    if !prepared.readonly_root {
        leave_directories(&*prepared.root_view, prepared.root.upper())?;
    }
    let beginning = beginning(prepared.root.upper())?;
    let root = overlay_root(&plan.shared, &prepared.root).map_err(StepError::Store)?;
    let mounts = MountSet { root, readonly_root: prepared.readonly_root, mounts: specs, shm_size: None };
    Ok(Ready { process, mounts, prepared, touched, beginning })
}

fn commit(ready: Ready, created: &[PathBuf]) -> Result<Vec<Ref>, StepError> {
    let Ready { process, prepared, touched, beginning, .. } = ready;
    let Prepared { root, root_output, written, contexts, guards, root_view, caches, .. } = prepared;
    guards.iter().try_for_each(mounts::Mounted::collect)?;
    // Everything that has the layers mounted goes first; the view is of those below.
    drop((guards, caches));
    if !created.is_empty() {
        let upper = root.upper().to_owned();
        remove_mount_points(&upper, created).map_err(|source| StoreError::Io {
            action: "clean",
            path: upper,
            source,
        })?;
    }
    if new_files::are_anothers(process.process.uid, process.process.gid) {
        new_files::belong_to(process.process.uid, process.process.gid, root.upper(), root_view.tree()?)?;
    }
    touched.apply(root.upper())?;
    if !root_view.layers().map_or(Ok(false), |layers| repeats_nothing(root.upper(), layers))? {
        remove_repeated(root.upper(), root_view.tree()?, beginning)?;
    }
    drop(root_view);
    let mut outputs: Vec<(u32, Ref)> = Vec::new();
    let settled = !contexts.iter().any(|context| context.has_changed());
    let result = |snapshot| if settled { Ref::Snapshot(snapshot) } else { Ref::Unsettled(snapshot) };
    if let Some(output) = root_output {
        outputs.push((output, result(root.commit()?)));
    }
    for (output, written) in written {
        let made = match written {
            Written::Layer(layer) => result(layer.commit()?),
            Written::Unchanged(input) => input,
        };
        outputs.push((output, made));
    }
    outputs.sort_unstable_by_key(|(output, _)| *output);
    Ok(outputs.into_iter().map(|(_, result)| result).collect())
}

fn check_supported(op: &ExecOp, session: &Session) -> Result<(), StepError> {
    let Confinement { entitlements, network, .. } = &session.confinement;
    if op.security == SecurityMode::Insecure && !entitlements.security_insecure {
        return Err(StepError::NotEntitled("security.insecure"));
    }
    // Where every step has the host's network, asking for it is asking for nothing.
    if op.network == NetMode::Host && *network != StepNetwork::Host && !entitlements.network_host {
        return Err(StepError::NotEntitled("network.host"));
    }
    for mount in &op.mounts {
        if let Mount::Cache { id, .. } = mount
            && !is_cache_mount_id(id)
        {
            return Err(StepError::CacheMountId(id.clone()));
        }
    }
    Ok(())
}

/// Takes the cache mounts of a step, one after the other by id, so that two steps never wait for each other.
async fn lock_caches(
    shared: &Arc<Shared>,
    op: &ExecOp,
    inputs: &[Ref],
    session: &Session,
    cancel: &CancellationToken,
) -> Result<Caches, StepError> {
    let mut wanted = Vec::new();
    for (index, mount) in op.mounts.iter().enumerate() {
        let Mount::Cache { id, sharing, input, selector, .. } = mount else { continue };
        let mut key = id.clone();
        if let Some(input) = input {
            // Another seed is another cache; its content says which, so that a rebuilt seed finds it again.
            let seed = inputs.get(*input as usize).ok_or(StepError::NoInput)?.clone();
            let shared = Arc::clone(shared);
            let selector = if selector.is_empty() { Selector::whole() } else { Selector::path(selector) };
            let digest = blocking(move || shared.digest(&seed, &selector)).await?;
            key = format!("{id}:{digest}");
        }
        wanted.push((session.namespace.key(&key), *sharing, index));
    }
    wanted.sort_unstable_by(|a, b| (&a.0, a.2).cmp(&(&b.0, b.2)));
    let mut caches = Caches::new();
    let mut last: Option<(String, usize)> = None;
    for (key, sharing, index) in wanted {
        // One cache at two targets is held once, as the first wants it: the step would wait for itself.
        if let Some((_, first)) = last.as_ref().filter(|(held, _)| *held == key) {
            caches.insert(index, CacheMount::Same(*first));
            continue;
        }
        last = Some((key.clone(), index));
        let sharing = match sharing {
            // Without mounts a directory is in one place at a time.
            Sharing::Shared if !stave_sandbox::has_namespaces() => stave_store::Sharing::Locked,
            Sharing::Shared => stave_store::Sharing::Shared,
            Sharing::Private => stave_store::Sharing::Private,
            Sharing::Locked => stave_store::Sharing::Locked,
        };
        let mut directory: MutableDir = loop {
            let (shared, key) = (Arc::clone(shared), key.clone());
            match blocking(move || shared.store.try_mutable_dir(&key, sharing)).await? {
                Some(directory) => break directory,
                None => tokio::select! {
                    () = tokio::time::sleep(LOCK_POLL) => {}
                    () = cancel.cancelled() => return Err(ExecError::Cancelled.into()),
                },
            }
        };
        if let Some(travel) = &session.travel {
            let fresh = directory.is_fresh().then(|| directory.path().to_owned());
            if travel.enter_mount(&key, fresh.as_deref()).await {
                directory = directory.initialised()?;
            }
        }
        caches.insert(index, CacheMount::Held(directory));
    }
    Ok(caches)
}

fn step_network(op: &ExecOp, session: &Session) -> StepNetwork {
    match op.network {
        NetMode::Default => session.confinement.network,
        NetMode::Host => StepNetwork::Host,
        NetMode::None => StepNetwork::None,
    }
}

fn security(mode: SecurityMode) -> Security {
    match mode {
        SecurityMode::Sandbox => Security::Default,
        SecurityMode::Insecure => Security::Insecure,
    }
}

fn host_entry(host: &HostIp) -> HostEntry {
    HostEntry { name: host.host.clone(), address: host.ip.clone() }
}

fn rlimit(limit: &Ulimit) -> Result<Rlimit, StepError> {
    let resource =
        RlimitResource::from_name(&limit.name).ok_or_else(|| StepError::Ulimit(limit.name.clone()))?;
    // Negative means none.
    let value = |value: i64| u64::try_from(value).unwrap_or(u64::MAX);
    Ok(Rlimit { resource, soft: value(limit.soft), hard: value(limit.hard) })
}

/// The op's own environment, then what it lacks: proxies, secrets, `PATH`, `HOME`. Nothing of this process's.
fn environment(op: &ExecOp, identity: &Identity, session: &Session) -> Result<Vec<String>, StepError> {
    let mut env = op.env.clone();
    let has = |env: &[String], name: &str| env.iter().any(|entry| entry.split('=').next() == Some(name));
    if let Some(ProxyEnv { http_proxy, https_proxy, ftp_proxy, no_proxy, all_proxy }) = &op.proxy_env {
        let proxies = [
            ("HTTP_PROXY", http_proxy),
            ("HTTPS_PROXY", https_proxy),
            ("FTP_PROXY", ftp_proxy),
            ("NO_PROXY", no_proxy),
            ("ALL_PROXY", all_proxy),
        ];
        for (name, value) in proxies.into_iter().filter(|(_, value)| !value.is_empty()) {
            for name in [name.to_owned(), name.to_lowercase()] {
                if !has(&env, &name) {
                    env.push(format!("{name}={value}"));
                }
            }
        }
    }
    surroundings::add_variables(&mut env, &session.confinement);
    for secret in &op.secret_env {
        let Some(value) = secret_value(session, &secret.id, secret.optional)? else { continue };
        let fault = || StepError::Secret { id: secret.id.clone(), fault: SecretFault::NotText };
        let value = String::from_utf8(value).map_err(|_| fault())?;
        if value.contains('\0') {
            return Err(fault());
        }
        env.push(format!("{}={value}", secret.name));
    }
    if !has(&env, "PATH") {
        env.push(format!("PATH={DEFAULT_PATH}"));
    }
    if !has(&env, "HOME") {
        env.push(format!("HOME={}", identity.home));
    }
    Ok(env)
}

/// A secret's value; `None` when it is not there and need not be.
pub(crate) fn secret_value(
    session: &Session,
    id: &str,
    optional: bool,
) -> Result<Option<Vec<u8>>, StepError> {
    let fault = |fault| StepError::Secret { id: id.to_owned(), fault };
    let value = match session.secrets.get(id) {
        None if optional => return Ok(None),
        None => return Err(StepError::MissingSecret(id.to_owned())),
        Some(Secret::Value(value)) => value.clone(),
        Some(Secret::File(path)) => {
            use std::io::Read as _;
            let mut value = Vec::new();
            let file = std::fs::File::open(path).map_err(|error| fault(SecretFault::Unreadable(error)))?;
            let read = file.take(SECRET_LIMIT + 1).read_to_end(&mut value);
            read.map_err(|error| fault(SecretFault::Unreadable(error)))?;
            value
        }
    };
    if value.len() as u64 > SECRET_LIMIT {
        return Err(fault(SecretFault::TooLarge));
    }
    Ok(Some(value))
}

fn check_exit(op: &ExecOp, finished: &Finished) -> Result<(), StepError> {
    let code = finished.status.code();
    let accepted =
        if op.valid_exit_codes.is_empty() { code == 0 } else { op.valid_exit_codes.contains(&code) };
    if accepted {
        return Ok(());
    }
    let signal = match finished.status {
        ExitStatus::Signaled(signal) => Some(signal),
        ExitStatus::Exited(_) => None,
    };
    Err(StepError::Exit { command: op.args.join(" "), code, signal, tail: finished.tail.clone() })
}

/// A program that is not there is the step's failure, not the machine's: docker gives it a code.
fn start_failure(op: &ExecOp, error: ExecError) -> StepError {
    match error {
        ExecError::Spawn(spawn) if spawn.exit_code() != 125 => StepError::Exit {
            command: op.args.join(" "),
            code: i32::from(spawn.exit_code()),
            signal: None,
            tail: format!("{spawn}\n").into_bytes(),
        },
        other => other.into(),
    }
}

#[cfg(test)]
mod tests;
