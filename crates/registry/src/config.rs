//! The `[registry."host"]` tables of buildkitd's configuration file, as values.
//!
//! Owns their keys and what they mean; reading the file is the caller's. Start with [`RegistryTables`].

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;
use url::Url;

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
    /// Requests to the host at once; absent: the client's own bound.
    #[serde(default, rename = "max-parallelism")]
    pub max_parallelism: Option<std::num::NonZeroUsize>,
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
    /// An authority, certificate or key that cannot be used.
    #[error("registry `{registry}`: {reason}")]
    Certificates {
        /// The table that names it.
        registry: String,
        /// Which file, and why.
        reason: String,
    },
}

/// The part of a configuration file that is ours; its other keys belong to others.
#[derive(Deserialize)]
struct Document {
    #[serde(default)]
    registry: RegistryTables,
}

impl RegistryTables {
    /// Reads the `[registry]` tables of a TOML document and checks them; other tables are passed over.
    ///
    /// # Errors
    /// [`ConfigError`], naming the key and line.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let syntax = |error: toml::de::Error| ConfigError::Syntax(one_line(&error, text));
        let Document { registry } = toml::from_str(text).map_err(syntax)?;
        registry.check()?;
        Ok(registry)
    }

    /// Checks every host and mirror.
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        for (registry, table) in &self.0 {
            if registry.contains('/') || !is_address(registry) {
                return Err(ConfigError::Host(registry.clone()));
            }
            if let Some(mirror) = table.mirrors.iter().find(|mirror| !is_address(mirror)) {
                return Err(ConfigError::Mirror { registry: registry.clone(), mirror: mirror.clone() });
            }
        }
        Ok(())
    }
}

/// The reader draws an excerpt over several lines; errors of ours are one line.
fn one_line(error: &toml::de::Error, text: &str) -> String {
    let message = error.message().replace('\n', ", ");
    match error.span().and_then(|span| text.get(..span.start)) {
        Some(before) => format!("line {}: {message}", before.matches('\n').count() + 1),
        None => message,
    }
}

/// Whether `text` is `host[:port][/path]` and nothing more, in a URL parser's eyes.
fn is_address(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:[]/~".contains(&byte);
    let authority = text.split('/').next().unwrap_or_default();
    !authority.is_empty()
        && text.bytes().all(plain)
        && !text.contains("//")
        && !text.split('/').any(|part| part == "." || part == "..")
        && Url::parse(&format!("https://{text}")).is_ok_and(|url| url.has_host())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_buildkits_tables() {
        let text = r#"
            debug = true
            [registry."docker.io"]
              mirrors = ["yourmirror.local:5000", "core.harbor.domain/proxy.docker.io"]
              http = true
              insecure = true
              ca = ["/etc/config/myca.pem"]
              [[registry."docker.io".keypair]]
                key = "/etc/config/key.pem"
                cert = "/etc/config/cert.pem"
            [registry."yourmirror.local:5000"]
              http = false
              capabilities = ["pull", "resolve"]
        "#;
        let tables = RegistryTables::parse(text).expect("this is buildkitd's own example");
        let hub = &tables.0["docker.io"];
        assert_eq!(hub.mirrors, ["yourmirror.local:5000", "core.harbor.domain/proxy.docker.io"]);
        assert_eq!((hub.http, hub.insecure), (Some(true), Some(true)));
        assert_eq!(hub.ca, [PathBuf::from("/etc/config/myca.pem")]);
        assert_eq!(hub.keypair[0].cert, PathBuf::from("/etc/config/cert.pem"));
        let mirror = &tables.0["yourmirror.local:5000"];
        assert_eq!(mirror.capabilities, [Capability::Pull, Capability::Resolve]);
        assert_eq!(RegistryTables::parse("root = \"/x\""), Ok(RegistryTables::default()));
    }

    #[track_caller]
    fn check(text: &str, expected: &str) {
        let error = RegistryTables::parse(text).expect_err("the table is invalid").to_string();
        assert!(error.contains(expected), "`{error}` does not contain `{expected}`");
        assert!(!error.contains('\n'), "{error:?}");
    }

    #[test]
    fn says_what_is_wrong_with_a_table() {
        check(
            "\n[registry.\"docker.io\"]\nmirror = [\"x\"]",
            "line 3: unknown field `mirror`, expected one of `mirrors`",
        );
        check(
            "[registry.\"docker.io\"]\nhttp = \"yes\"",
            "line 2: invalid type: string \"yes\", expected a boolean",
        );
        check("[registry.\"https://x.example\"]\nhttp = true", "invalid registry host `https://x.example`");
        check("[registry.\"x\"]\nmirrors = [\"https://y\"]", "invalid mirror `https://y` of registry `x`");
        check("[registry.\"x\"]\nmirrors = [\"y/../z\"]", "invalid mirror `y/../z`");
        check("[registry.\"user@x\"]", "invalid registry host `user@x`");
        check("[registry.\"x\"]\ncapabilities = [\"delete\"]", "unknown variant `delete`");
        check("[[registry.\"x\".keypair]]\nkey = \"k\"", "missing field `cert`");
    }
}
