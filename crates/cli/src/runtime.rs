//! The life of a command that needs the engine: open it, run, stop on signals, close it.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::termios::{OptionalActions, Termios, tcsetattr};
use stave_engine::{Engine, EngineConfig};
use stave_registry::Keychain;
use stave_store::{DiskPolicy, Store};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::config::{self, StoreTable};
use crate::report::Failure;
use crate::state::{GlobalOptions, docker_config};

/// How the terminal was before a command changed it: what ends the process at once has to set it back.
static TERMINAL_BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// Remembers how the terminal was, for [`restore_terminal`].
pub(crate) fn remember_terminal(before: Termios) {
    *TERMINAL_BEFORE.lock().unwrap_or_else(PoisonError::into_inner) = Some(before);
}

/// Sets the terminal back, if a command changed it.
pub(crate) fn restore_terminal() {
    if let Some(before) = TERMINAL_BEFORE.lock().unwrap_or_else(PoisonError::into_inner).take() {
        // The terminal may be gone by now; there is nothing left to restore then.
        tcsetattr(std::io::stdin(), OptionalActions::Now, &before).ok();
    }
}

/// How a command is told to stop.
#[derive(Debug, Clone)]
pub(crate) struct Interrupt {
    token: CancellationToken,
    signal: Arc<AtomicU8>,
    handed_over: Arc<AtomicBool>,
}

impl Interrupt {
    /// Fires at the first SIGINT or SIGTERM.
    pub(crate) fn token(&self) -> &CancellationToken {
        &self.token
    }

    /// From now on signals are a container's business: it is told of each, and none ends this program.
    pub(crate) fn hand_over(&self) {
        self.handed_over.store(true, Ordering::Relaxed);
    }

    /// The exit code of an interrupted command: 128 and the signal's number.
    pub(crate) fn code(&self) -> Option<u8> {
        match self.signal.load(Ordering::Relaxed) {
            0 => None,
            number => Some(128 + number),
        }
    }
}

/// Opens the engine, runs `command` on it, and waits until nothing of it runs any more.
pub(crate) fn with_engine(
    global: &GlobalOptions,
    command: impl AsyncFnOnce(&Arc<Engine>, &Interrupt) -> Result<u8, Failure>,
) -> Result<u8, Failure> {
    let config = config::load(&global.config_file()).map_err(|error| Failure::new(&error))?;
    let limits = config.store;
    let config = EngineConfig {
        root: global.state_directory(),
        registries: config.registry,
        keychain: Keychain::at(docker_config()),
        oci_runtime: global.oci_runtime.clone().or(config.oci_runtime),
        device_directories: config.cdi.spec_dirs,
        parallel_steps: None,
    };
    let mut held = None;
    let result = with_shared_engine(config, async |engine, interrupt| {
        let policy = hold_to(&engine, &limits)?;
        engine.store().keep_reserve();
        held = Some((engine.store().clone(), policy));
        command(&engine, interrupt).await
    });
    if let Some((store, policy)) = held {
        collect(&store, &policy);
    }
    result
}

/// The same for a command that serves many at once; what of it still runs then holds the engine until it ends.
pub(crate) fn with_shared_engine(
    config: EngineConfig,
    command: impl AsyncFnOnce(Arc<Engine>, &Interrupt) -> Result<u8, Failure>,
) -> Result<u8, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::new(&error))?;
    let result = runtime.block_on(async {
        let interrupt = listen()?;
        let engine = Arc::new(Engine::open(config).map_err(|error| Failure::new(&error))?);
        let result = command(Arc::clone(&engine), &interrupt).await;
        if let Some(engine) = Arc::into_inner(engine) {
            engine.shutdown().await;
        }
        match (result, interrupt.code()) {
            (Err(failure), Some(code)) => Err(failure.with_code(code)),
            (result, _) => result,
        }
    });
    // Reading standard input blocks a thread of the runtime for as long as nobody types: not waited for.
    runtime.shutdown_background();
    result
}

/// Runs a command whose work is another machine's.
pub(crate) fn with_client(
    command: impl AsyncFnOnce(&Interrupt) -> Result<u8, Failure>,
) -> Result<u8, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::new(&error))?;
    let result = runtime.block_on(async {
        let interrupt = listen()?;
        match (command(&interrupt).await, interrupt.code()) {
            (Err(failure), Some(code)) => Err(failure.with_code(code)),
            (result, _) => result,
        }
    });
    runtime.shutdown_background();
    result
}

/// Holds the store to what the configuration says of it.
fn hold_to(engine: &Engine, limits: &StoreTable) -> Result<DiskPolicy, Failure> {
    if *limits == StoreTable::default() {
        return Ok(DiskPolicy::default());
    }
    let (disk, _) = engine.store().file_system_bytes().map_err(|error| Failure::new(&error))?;
    let policy = limits.policy(disk)?;
    engine.store().hold_to(policy.clone());
    Ok(policy)
}

/// The automatic collection, when nothing of the command is in use any more. The command's outcome stands.
fn collect(store: &Store, policy: &DiskPolicy) {
    if *policy != DiskPolicy::default()
        && let Err(error) = stave_engine::disk::collect(store, policy)
    {
        eprintln!("WARNING: the automatic collection failed: {}", crate::report::chain(&error));
    }
}

/// Listens for signals: the first asks for an orderly end, the second ends the process at once (mounts
/// and sandboxes end with it).
fn listen() -> Result<Interrupt, Failure> {
    let open = |kind| signal(kind).map_err(|error| Failure::new(&error));
    let (mut int, mut term) = (open(SignalKind::interrupt())?, open(SignalKind::terminate())?);
    let interrupt =
        Interrupt { token: CancellationToken::new(), signal: Arc::default(), handed_over: Arc::default() };
    let heard = interrupt.clone();
    tokio::spawn(async move {
        let number = next(&mut int, &mut term).await;
        heard.signal.store(number, Ordering::Relaxed);
        heard.token.cancel();
        loop {
            let number = next(&mut int, &mut term).await;
            if !heard.handed_over.load(Ordering::Relaxed) {
                restore_terminal();
                std::process::exit(128 + i32::from(number));
            }
        }
    });
    Ok(interrupt)
}

async fn next(int: &mut Signal, term: &mut Signal) -> u8 {
    tokio::select! {
        _ = int.recv() => 2,
        _ = term.recv() => 15,
    }
}

/// Runs a command that needs nothing but the store, on a full disk, too: none of them writes much, and some make room.
pub(crate) fn with_store(
    global: &GlobalOptions,
    command: impl FnOnce(&stave_store::Store) -> Result<u8, Failure>,
) -> Result<u8, Failure> {
    let root = global.state_directory();
    let failed = |error: stave_store::StoreError| Failure::new(&error);
    let _reserve = stave_store::give_up(&root).map_err(failed)?;
    let store = Store::open(&root).map_err(failed)?;
    command(&store)
}
