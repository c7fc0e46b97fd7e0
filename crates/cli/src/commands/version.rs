//! `stave version`

use crate::output::say;
use crate::report::Failure;

/// Show the version
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Output form
    #[arg(long, value_name = "FORM")]
    format: Option<super::Form>,
}

/// Prints it.
pub(crate) fn run(arguments: &Arguments) -> Result<u8, Failure> {
    let version = env!("CARGO_PKG_VERSION");
    let platform = stave_oci::Platform::host();
    match arguments.format {
        Some(super::Form::Json) => {
            say!(
                "{}",
                serde_json::json!({"Version": version, "Os": platform.os, "Arch": platform.architecture})
            );
        }
        _ => say!("stave version {version} {platform}"),
    }
    Ok(0)
}
