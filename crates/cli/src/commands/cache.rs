//! `stave cache mounts`: cache mounts of this machine and of archives elsewhere.

use jiff::Timestamp;
use stave_engine::cache_spec::{ExportSpec, ImportSpec, SpecError};

use crate::format::size;
use crate::output::say;
use crate::progress::sanitise::clean;
use crate::report::Failure;
use crate::runtime::with_engine;
use crate::state::GlobalOptions;

/// Manage what travels with caches
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Cache mounts (`RUN --mount=type=cache`)
    Mounts {
        #[command(subcommand)]
        action: Action,
    },
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// List cache mounts
    Ls {
        /// Of a cache elsewhere (`REF`, or `type=registry|local|s3,…`), not of this machine
        #[arg(long, value_name = "CACHE")]
        from: Option<String>,
    },
    /// Remove cache mounts
    Rm {
        /// Which
        #[arg(required = true, value_name = "ID")]
        ids: Vec<String>,
        /// From a cache elsewhere, not from this machine
        #[arg(long, value_name = "CACHE")]
        from: Option<String>,
    },
    /// Save cache mounts of this machine to a cache elsewhere
    Export {
        /// Where to (`REF`, or `type=registry|local|s3,…`)
        #[arg(value_name = "CACHE")]
        to: String,
        /// Which; all without
        #[arg(value_name = "ID")]
        ids: Vec<String>,
    },
    /// Restore cache mounts that this machine does not have
    Import {
        /// Where from (`REF`, or `type=registry|local|s3,…`)
        #[arg(value_name = "CACHE")]
        from: String,
        /// Which; all without
        #[arg(value_name = "ID")]
        ids: Vec<String>,
    },
}

/// Does it.
pub(crate) fn run(arguments: &Arguments, global: &GlobalOptions) -> Result<u8, Failure> {
    let What::Mounts { action } = &arguments.what;
    match action {
        Action::Ls { from } => list(from.as_deref(), global),
        Action::Rm { ids, from } => remove(ids, from.as_deref(), global),
        Action::Export { to, ids } => {
            let to = ExportSpec::parse(to, &environment).map_err(usage)?;
            with_engine(global, async |engine, _| {
                let saved = engine.export_mounts(&to, ids).await.map_err(|error| Failure::new(&error))?;
                say!("{} sent of {}", size(saved.sent), size(saved.size));
                Ok(0)
            })
        }
        Action::Import { from, ids } => {
            let from = source(from)?;
            with_engine(global, async |engine, _| {
                let restored =
                    engine.import_mounts(&from, ids).await.map_err(|error| Failure::new(&error))?;
                for id in restored {
                    say!("{}", clean(&id));
                }
                Ok(0)
            })
        }
    }
}

fn list(from: Option<&str>, global: &GlobalOptions) -> Result<u8, Failure> {
    let from = from.map(source).transpose()?;
    with_engine(global, async |engine, _| {
        let rows: Vec<(String, u64, String)> = match &from {
            Some(from) => {
                let mounts = engine.archived_mounts(from).await.map_err(|error| Failure::new(&error))?;
                mounts.into_iter().map(|(id, entry)| (id, entry.size, entry.saved_at)).collect()
            }
            None => {
                let mounts = engine.cache_mounts().map_err(|error| Failure::new(&error))?;
                let time = |seconds| Timestamp::from_second(seconds).unwrap_or_default().to_string();
                mounts.into_iter().map(|mount| (mount.id, mount.size, time(mount.last_used))).collect()
            }
        };
        say!("{:<40} {:>10}  {}", "ID", "SIZE", if from.is_some() { "SAVED" } else { "LAST USED" });
        for (id, bytes, time) in rows {
            say!("{:<40} {:>10}  {}", clean(&id), size(bytes), clean(&time));
        }
        Ok(0)
    })
}

fn remove(ids: &[String], from: Option<&str>, global: &GlobalOptions) -> Result<u8, Failure> {
    let from = from.map(source).transpose()?;
    with_engine(global, async |engine, _| {
        let removed = match &from {
            Some(from) => engine.remove_archived_mounts(from, ids).await,
            None => engine.remove_mounts(ids),
        };
        let removed = removed.map_err(|error| Failure::new(&error))?;
        for id in &removed {
            say!("{}", clean(id));
        }
        let is_removed = |id: &&String| {
            removed.iter().any(|found| found.trim_start_matches('/') == id.trim_start_matches('/'))
        };
        match ids.iter().find(|id| !is_removed(id)) {
            None => Ok(0),
            Some(id) => Err(Failure::message(format!("no cache mount `{}`, or it is in use", clean(id)))),
        }
    })
}

fn source(text: &str) -> Result<ImportSpec, Failure> {
    ImportSpec::parse(text, &environment).map_err(usage)
}

fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn usage(error: SpecError) -> Failure {
    Failure::usage(error.to_string())
}
