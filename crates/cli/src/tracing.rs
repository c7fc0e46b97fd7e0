//! What the program says of itself while it runs, on standard error: all of it with `--debug`, of a daemon also what its
//! owner must know. How much may change while a daemon runs. Start with [`begin`].

use std::io::IsTerminal as _;
use std::sync::OnceLock;

use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::reload::{Handle, Layer};
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Registry};

/// How much is said now; nothing before [`begin`].
static FILTER: OnceLock<Handle<EnvFilter, Registry>> = OnceLock::new();

/// How much is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Level {
    /// What somebody has to look after.
    Warnings,
    /// What the program does.
    Debug,
}

impl Level {
    /// `STAVE_LOG` beats it.
    fn filter(self) -> EnvFilter {
        let usual = match self {
            Self::Warnings => "stave=warn,error",
            Self::Debug => "stave=debug,warn",
        };
        EnvFilter::try_from_env("STAVE_LOG").unwrap_or_else(|_| EnvFilter::new(usual))
    }
}

/// From now on the program says so much. May be called again.
pub(crate) fn begin(level: Level) {
    if let Some(handle) = FILTER.get() {
        // It fails only when nobody listens any more.
        handle.reload(level.filter()).ok();
        return;
    }
    let (filter, handle) = Layer::new(level.filter());
    // Logs that are kept are read by other programs, too.
    let is_coloured = std::io::stderr().is_terminal();
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(is_coloured);
    if tracing_subscriber::registry().with(filter).with(lines).try_init().is_ok() {
        FILTER.set(handle).ok();
    }
}
