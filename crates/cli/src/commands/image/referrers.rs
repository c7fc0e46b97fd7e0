//! `stave image referrers`: what is kept beside an image at its registry: signatures, statements and other artifacts.

use serde_json::json;
use stave_oci::{Platform, Reference};

use crate::format;
use crate::output::say;
use crate::report::Failure;
use crate::runtime::with_engine;
use crate::state::GlobalOptions;

/// A name and how to show what refers to it.
#[derive(Debug, clap::Args)]
pub(crate) struct ReferrersArguments {
    /// Of an image for several platforms, the one to ask about (default: their index)
    #[arg(long, value_name = "OS/ARCH")]
    platform: Option<Platform>,
    /// Only artifacts of this type
    #[arg(long, value_name = "MEDIA-TYPE")]
    artifact_type: Option<String>,
    /// Print JSON, one object a line
    #[arg(long)]
    json: bool,
    /// The image's name at its registry
    #[arg(value_name = "NAME[:TAG|@DIGEST]")]
    name: Reference,
}

/// Asks the registry.
pub(crate) fn referrers(arguments: &ReferrersArguments, global: &GlobalOptions) -> Result<u8, Failure> {
    let ReferrersArguments { platform, artifact_type, json, name } = arguments;
    with_engine(global, async |engine, interrupt| {
        let asked = engine.referrers(name, platform.as_ref(), artifact_type.as_deref());
        let found = tokio::select! {
            found = asked => found.map_err(|error| Failure::new(&error))?,
            () = interrupt.token().cancelled() => return Err(Failure::message("cancelled")),
        };
        if *json {
            for one in &found {
                say!("{}", json!(one));
            }
            return Ok(0);
        }
        let row = |one: &stave_oci::Descriptor| {
            let kind = one.artifact_type.as_deref().unwrap_or(&one.media_type);
            vec![one.digest.to_string(), kind.to_owned(), format::size(one.size)]
        };
        say!("{}", format::table(&["DIGEST", "TYPE", "SIZE"], &found.iter().map(row).collect::<Vec<_>>()));
        Ok(0)
    })
}
