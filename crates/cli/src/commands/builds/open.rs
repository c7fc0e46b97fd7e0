//! `stave builds open`: the daemon's page of a build, served to this machine alone for as long as somebody looks.
//!
//! Must not know what the page shows. Start with [`run`].

use std::path::PathBuf;
use std::process::{Command, Stdio};

use stave_daemon::{Address, Daemon, DaemonConfig, Listener, WebPage, page_of};
use stave_engine::EngineConfig;
use stave_engine::record::History;
use stave_registry::{Keychain, RegistryTables};

use super::find;
use crate::output::say;
use crate::report::Failure;
use crate::runtime::{with_shared_engine, with_store};
use crate::state::GlobalOptions;

/// Where the page is, at a port that is free.
const PLACE: &str = "tcp://127.0.0.1:0";

/// Show a daemon's build in the browser
///
/// Serves the page to this machine and prints its address; Ctrl-C ends it.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Id of a build, or the start of one (default: the list of all)
    build: Option<String>,
    /// Only print the address
    #[arg(long)]
    no_browser: bool,
}

/// The socket that a daemon has to have, gone with this.
struct Socket(PathBuf);

impl Drop for Socket {
    fn drop(&mut self) {
        // The daemon removes it when it ends well.
        std::fs::remove_file(&self.0).ok();
    }
}

pub(super) fn run(arguments: &Arguments, global: &GlobalOptions) -> Result<u8, Failure> {
    let mut page = String::new();
    if let Some(text) = &arguments.build {
        with_store(global, |store| {
            let history = History::of(store);
            let record = find(&history, Some(text))?;
            page = page_of(&history, &record.id).ok_or_else(|| {
                Failure::message(format!("build `{}` was made without a daemon: it has no page", record.id))
                    .with_hint("`stave builds inspect` shows it".to_owned())
            })?;
            Ok(0)
        })?;
    }
    let socket = Socket(std::env::temp_dir().join(format!("stave-page-{}.sock", std::process::id())));
    let address: Address = PLACE.parse().map_err(|error: stave_daemon::AddressError| Failure::new(&error))?;
    let config = DaemonConfig {
        listeners: vec![Listener::Unix { path: socket.0.clone(), group: None }],
        web: Some(WebPage { address, hosts: Vec::new() }),
        ..DaemonConfig::default()
    };
    let engine = EngineConfig {
        root: global.state_directory(),
        registries: RegistryTables::default(),
        keychain: Keychain::anonymous(),
        oci_runtime: None,
        device_directories: None,
        parallel_steps: None,
    };
    with_shared_engine(engine, async |engine, interrupt| {
        let daemon = Daemon::bind(engine, config).await.map_err(|error| Failure::new(&error))?;
        for place in daemon.watched_at() {
            let address = format!("{place}{page}");
            say!("{address}");
            if !arguments.no_browser {
                browse(&address);
            }
        }
        daemon.serve(interrupt.token().clone()).await.map_err(|error| Failure::new(&error))?;
        Ok(0)
    })
}

/// Shows it where there is a browser; the address is printed anyway.
fn browse(address: &str) {
    let mut command = Command::new("xdg-open");
    command.arg(address).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().ok();
}
