//! `cargo xtask browser`: the daemon's web page in a real browser, installed if need be, with pictures for whoever wants
//! to look. Owns nothing of the tests: they are among the integration tests.

use std::path::PathBuf;

use clap::Args;

use crate::registry::Registry;
use crate::suite::Suite;
use crate::{Failure, images, machine};

/// What to keep.
#[derive(Args)]
pub(crate) struct Options {
    /// A folder for pictures of the pages; made when missing.
    #[arg(long)]
    pictures: Option<PathBuf>,
}

/// Runs the tests that need a browser.
pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    machine::require_root()?;
    machine::install(images::PACKAGES)?;
    machine::install(&["chromium"])?;
    let suite = Suite::compile()?;
    let registry = Registry::start(&images::storage())?;
    images::make(&suite.stave, &registry, images::ALL)?;
    let mut variables = vec![
        ("STAVE_TEST_REGISTRY", registry.host()),
        ("STAVE_TEST_PROGRAM", suite.stave.display().to_string()),
        ("STAVE_TEST_CHROMIUM", "chromium".to_owned()),
    ];
    if let Some(folder) = &options.pictures {
        std::fs::create_dir_all(folder)?;
        variables.push(("STAVE_TEST_PICTURES", folder.canonicalize()?.display().to_string()));
    }
    Suite::run(Some("browser::"), &variables)
}
