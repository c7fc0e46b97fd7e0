//! Tables of the configuration file that buildkitd does not have. Start with any of them.

use std::path::PathBuf;

use serde::Deserialize;

use super::size::Size;

/// `[audit]`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditConfig {
    /// The file that lines are appended to.
    #[serde(default)]
    pub path: Option<PathBuf>,
}

/// `[web]`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WebConfig {
    /// Where the page is served: `unix://PATH` or `tcp://IP:PORT`.
    #[serde(default)]
    pub address: Option<String>,
    /// Names that browsers may know it by.
    #[serde(default)]
    pub hosts: Vec<String>,
}

/// `[store]`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoreConfig {
    /// Bytes that the state directory never passes.
    #[serde(default, rename = "max-used")]
    pub cap: Option<Size>,
}
