//! `--cache-from` and `--cache-to`: text to caches. Options and their errors are the engine's.

use stave_engine::Caches;
use stave_engine::cache_spec::{ExportSpec, ImportSpec};

use crate::report::Failure;

/// The flags.
#[derive(Debug, Default, clap::Args)]
pub(super) struct CacheFlags {
    /// Ask a cache made elsewhere (`REF`, or `type=registry|local|s3,…`)
    #[arg(long = "cache-from", value_name = "CACHE")]
    pub(super) cache_from: Vec<String>,
    /// Write the cache of this build for others (`type=inline|registry|local|s3,mode=min|max,…`)
    #[arg(long = "cache-to", value_name = "CACHE")]
    pub(super) cache_to: Vec<String>,
}

impl CacheFlags {
    pub(super) fn caches(&self) -> Result<Caches, Failure> {
        let environment = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let from = self.cache_from.iter().map(|text| ImportSpec::parse(text, &environment));
        let to = self.cache_to.iter().map(|text| ExportSpec::parse(text, &environment));
        let usage = |error: stave_engine::cache_spec::SpecError| Failure::usage(error.to_string());
        Ok(Caches {
            from: from.collect::<Result<_, _>>().map_err(usage)?,
            to: to.collect::<Result<_, _>>().map_err(usage)?,
            owner: None,
        })
    }
}
