//! The part of buildkitd's TOML file that is honoured, and the program's own tables in it.
//!
//! One that buildkitd has and nothing here honours is an error that names it, unless it says what is so anyway. Start
//! with [`FileConfig`].

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;
use stave_oci::Platform;
use stave_registry::RegistryTables;
use stave_worker::StepNetwork;

use super::{AuditConfig, FrontEndTables, GcPolicyConfig, HistoryConfig, Size, StoreConfig, WebConfig};
use crate::tenants::TenancyConfig;

/// The part of buildkitd's TOML that is honoured.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileConfig {
    /// Prints what the daemon does.
    #[serde(default)]
    pub debug: bool,
    /// The state directory.
    #[serde(default)]
    pub root: Option<PathBuf>,
    /// Entitlements that builds may ask for.
    #[serde(default, rename = "insecure-entitlements")]
    pub entitlements: Vec<String>,
    /// Where it listens.
    #[serde(default)]
    pub grpc: GrpcConfig,
    /// A directory of JSON files, whose fields statements tell of the builder.
    #[serde(default, rename = "provenanceEnvDir")]
    pub provenance_environment: Option<PathBuf>,
    /// Registries, by host.
    #[serde(default)]
    pub registry: RegistryTables,
    /// Workers.
    #[serde(default)]
    pub worker: WorkerTables,
    /// How logs look; taken and without effect but for `format = "text"`.
    #[serde(default)]
    pub log: LogConfig,
    /// Where steps could send traces.
    #[serde(default)]
    pub otel: OtelConfig,
    /// More words in the log.
    #[serde(default)]
    pub trace: bool,
    /// Where device specifications are.
    #[serde(default)]
    pub cdi: CdiConfig,
    /// The DNS of steps; taken as far as it is empty.
    #[serde(default)]
    pub dns: DnsConfig,
    /// What may say how a build is made.
    #[serde(default)]
    pub frontend: FrontEndTables,
    /// How long builds are remembered.
    #[serde(default)]
    pub history: HistoryConfig,
    /// How callers are told apart. buildkitd has no such table, nor the next ones.
    #[serde(default)]
    pub tenancy: TenancyConfig,
    /// Where the audit log goes.
    #[serde(default)]
    pub audit: AuditConfig,
    /// The web page.
    #[serde(default)]
    pub web: WebConfig,
    /// What the store is held to.
    #[serde(default)]
    pub store: StoreConfig,
    /// What is so anyway.
    #[serde(default)]
    pub system: SystemConfig,
}

/// `[otel]`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OtelConfig {
    /// Where buildkitd listens for traces of its steps; taken: no step is given a way to send any.
    #[serde(default, rename = "socketPath")]
    pub socket_path: Option<PathBuf>,
}

/// `[system]`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SystemConfig {
    /// How long buildkitd believes in the emulators that it found; taken: here they are looked for in each build.
    #[serde(default, rename = "platformsCacheMaxAge")]
    pub platforms_cache_max_age: Option<toml::Value>,
    /// Connections to one registry; only `max-parallelism` of a registry's own table bounds them here.
    #[serde(default, rename = "maxRegistryConcurrency")]
    pub registry_concurrency: Option<u64>,
}

/// `[grpc]`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GrpcConfig {
    /// Addresses.
    #[serde(default)]
    pub address: Vec<String>,
    /// The socket's owner; only the daemon's own is possible.
    #[serde(default)]
    pub uid: Option<u32>,
    /// The socket's group.
    #[serde(default)]
    pub gid: Option<u32>,
    /// Where metrics, readiness and dumps are served.
    #[serde(default, rename = "debugAddress")]
    pub debug_address: Option<String>,
    /// Certificates.
    #[serde(default)]
    pub tls: TlsConfig,
}

/// `[grpc.tls]`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsConfig {
    /// The certificate chain.
    #[serde(default)]
    pub cert: Option<PathBuf>,
    /// The key.
    #[serde(default)]
    pub key: Option<PathBuf>,
    /// The authority of clients.
    #[serde(default)]
    pub ca: Option<PathBuf>,
}

/// `[cdi]`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CdiConfig {
    /// Whether there are none.
    #[serde(default)]
    pub disabled: Option<bool>,
    /// Directories of specifications.
    #[serde(default, rename = "specDirs")]
    pub spec_dirs: Vec<PathBuf>,
    /// Devices that need no grant.
    #[serde(default, rename = "autoAllowed")]
    pub auto_allowed: Vec<String>,
}

/// `[log]`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogConfig {
    /// `text`.
    #[serde(default)]
    pub format: Option<String>,
    /// `debug` and `trace` say all; of the others each says warnings.
    #[serde(default)]
    pub level: Option<String>,
}

/// `[dns]`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DnsConfig {
    /// Servers.
    #[serde(default)]
    pub nameservers: Vec<String>,
    /// Options.
    #[serde(default)]
    pub options: Vec<String>,
    /// Domains.
    #[serde(default, rename = "searchDomains")]
    pub search_domains: Vec<String>,
}

/// `[worker]`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkerTables {
    /// The one that there is.
    #[serde(default)]
    pub oci: OciWorker,
    /// The one that there is not.
    #[serde(default)]
    pub containerd: ContainerdWorker,
}

/// `[worker.containerd]`
#[derive(Debug, Clone, Default, Deserialize)]
pub struct ContainerdWorker {
    /// Whether it is wanted.
    #[serde(default)]
    pub enabled: Option<bool>,
}

/// `[worker.oci]`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OciWorker {
    /// Whether it is wanted.
    #[serde(default)]
    pub enabled: Option<bool>,
    /// What clients are told.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Whether layers nobody uses are removed now and then.
    #[serde(default)]
    pub gc: Option<bool>,
    /// `overlayfs` or `auto`.
    #[serde(default)]
    pub snapshotter: Option<String>,
    /// `sandbox`.
    #[serde(default, rename = "noProcessSandbox")]
    pub no_process_sandbox: Option<bool>,
    /// `host`, `bridge` or `auto`, which is `host`.
    #[serde(default, rename = "networkMode")]
    pub network_mode: Option<String>,
    /// Most steps that run at one time; 0 leaves it to the machine.
    #[serde(default, rename = "max-parallelism")]
    pub max_parallelism: usize,
    /// The OCI runtime that runs steps, such as `runc`; without one, this program does.
    #[serde(default)]
    pub binary: Option<PathBuf>,
    /// Whether it runs as an ordinary user; it finds that out by itself.
    #[serde(default)]
    pub rootless: Option<bool>,
    /// Platforms that clients are told; this machine's own stands first, since it is the one that is built for.
    #[serde(default)]
    pub platforms: Vec<String>,
    /// Bytes that are left in any case: a number, or one with `KB`, `MB`, `GB` or `%`.
    #[serde(default, alias = "gckeepstorage", rename = "reservedSpace")]
    pub reserved_space: Option<Size>,
    /// Bytes that are too many.
    #[serde(default, rename = "maxUsedSpace")]
    pub max_used_space: Option<Size>,
    /// Bytes of the disk that shall be free.
    #[serde(default, rename = "minFreeSpace")]
    pub min_free_space: Option<Size>,
    /// Rules of the collection; with one, the sizes above have none.
    #[serde(default)]
    pub gcpolicy: Vec<GcPolicyConfig>,
}

impl OciWorker {
    /// The platforms that clients are told; empty for this machine's own.
    ///
    /// # Errors
    /// For what is no platform, and where another than this machine's own stands first.
    pub fn platforms(&self) -> Result<Vec<Platform>, ConfigError> {
        let invalid =
            |text: &str| ConfigError::Syntax(format!("invalid platform `{text}` in `worker.oci.platforms`"));
        let read = |text: &String| text.parse::<Platform>().map_err(|_| invalid(text));
        let platforms = self.platforms.iter().map(read).collect::<Result<Vec<_>, _>>()?;
        match platforms.first() {
            Some(first) if !first.matches(&Platform::host()) => {
                let words = format!(
                    "`worker.oci.platforms` that begin with `{first}`: this machine builds for its own"
                );
                Err(ConfigError::Unsupported(words))
            }
            _ => Ok(platforms),
        }
    }

    /// The network of steps that ask for none in particular.
    #[must_use]
    pub fn network(&self) -> StepNetwork {
        match self.network_mode.as_deref() {
            Some("bridge") => StepNetwork::Bridge,
            _ => StepNetwork::Host,
        }
    }
}

/// A configuration that cannot be honoured.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not TOML of this form.
    #[error("{0}")]
    Syntax(String),
    /// Something that is not there.
    #[error("not supported yet: {0}")]
    Unsupported(String),
    /// How much is to be said, in a word that nobody knows.
    #[error("unknown log level `{0}`: expected panic, fatal, error, warn, info, debug or trace")]
    LogLevel(String),
    /// A right that does not exist: nobody could ask for it.
    #[error("unknown entitlement `{0}`: expected network.host, security.insecure or device")]
    Entitlement(String),
}

/// The rights that builds may be granted.
const ENTITLEMENTS: [&str; 3] = ["network.host", "security.insecure", "device"];

impl CdiConfig {
    /// Directories of specifications; `None` leaves the usual ones.
    pub fn directories(&self) -> Option<Vec<PathBuf>> {
        (!self.spec_dirs.is_empty()).then(|| self.spec_dirs.clone())
    }
}

impl FileConfig {
    /// Reads a file's text.
    ///
    /// # Errors
    /// For a text of another form, and for what is not honoured.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text)
            .map_err(|error| ConfigError::Syntax(error.to_string().trim_end().to_owned()))?;
        config.checked()
    }

    /// The same, if all of it is honoured.
    ///
    /// # Errors
    /// For the first value that is not.
    pub fn checked(self) -> Result<Self, ConfigError> {
        self.check()?;
        Ok(self)
    }

    fn check(&self) -> Result<(), ConfigError> {
        let unsupported = |what: &str| Err(ConfigError::Unsupported(format!("`{what}`")));
        self.history.retention()?;
        let is_unknown = |name: &&String| !ENTITLEMENTS.contains(&name.as_str());
        if let Some(unknown) = self.entitlements.iter().find(is_unknown) {
            return Err(ConfigError::Entitlement(unknown.clone()));
        }
        let oci = &self.worker.oci;
        if self.worker.containerd.enabled == Some(true) {
            return unsupported("worker.containerd");
        }
        if oci.enabled == Some(false) {
            return unsupported("worker.oci.enabled = false");
        }
        if !matches!(oci.snapshotter.as_deref(), None | Some("" | "auto" | "overlayfs")) {
            return unsupported("worker.oci.snapshotter");
        }
        if !matches!(oci.network_mode.as_deref(), None | Some("" | "auto" | "host" | "bridge")) {
            return unsupported("worker.oci.networkMode");
        }
        if oci.no_process_sandbox == Some(true) {
            return unsupported("worker.oci.noProcessSandbox");
        }
        if !matches!(self.log.format.as_deref(), None | Some("" | "text")) {
            return unsupported("log.format");
        }
        if !matches!(
            self.log.level.as_deref(),
            None | Some("" | "panic" | "fatal" | "error" | "warn" | "warning" | "info" | "debug" | "trace")
        ) {
            return Err(ConfigError::LogLevel(self.log.level.clone().unwrap_or_default()));
        }
        if self.system.registry_concurrency.is_some() {
            return unsupported("system.maxRegistryConcurrency");
        }
        if !self.dns.nameservers.is_empty()
            || !self.dns.options.is_empty()
            || !self.dns.search_domains.is_empty()
        {
            return unsupported("dns");
        }
        if self.cdi.disabled == Some(true) || !self.cdi.auto_allowed.is_empty() {
            return unsupported("cdi.disabled");
        }
        oci.platforms()?;
        oci.rules(0).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Result<(), &str>) {
        let found = FileConfig::parse(text).map(drop).map_err(|error| error.to_string());
        match (found, expected) {
            (Ok(()), Ok(())) => {}
            (Err(found), Err(expected)) if found.contains(expected) => {}
            (found, expected) => panic!("{found:?} is not {expected:?}"),
        }
    }

    #[test]
    fn the_file_of_the_integration_suite() {
        check(
            "insecure-entitlements = [\"network.host\"]\n[registry.\"localhost:5000\"]\n  http = true\n\
             [otel]\n  socketPath = \"/x\"\n[cdi]\n  specDirs = [\"/y\"]\n[worker.oci]\n  gc = false\n",
            Ok(()),
        );
    }

    /// Every key of buildkitd's file: it counts, what it asks for is so anyway, or it is an error that names it.
    #[test]
    fn each_key_of_the_file_is_honoured_or_said() {
        let at = |table: &str, line: &str, expected: Result<(), &str>| {
            check(&format!("[{table}]\n{line}\n"), expected);
        };
        for line in ["debug = true", "trace = true", "root = \"/x\"", "provenanceEnvDir = \"/x\""] {
            check(line, Ok(()));
        }
        check("insecure-entitlements = [\"security.insecure\", \"device\"]", Ok(()));
        check("insecure-entitlements = [\"all\"]", Err("unknown entitlement `all`: expected"));
        check("proxyNetwork = true", Err("unknown field `proxyNetwork`"));
        at("log", "format = \"text\"\nlevel = \"debug\"", Ok(()));
        at("log", "format = \"json\"", Err("`log.format`"));
        at("log", "level = \"loud\"", Err("unknown log level `loud`: expected"));
        at("grpc", "address = [\"unix:///x\"]\ndebugAddress = \"127.0.0.1:1\"\nuid = 0\ngid = 0", Ok(()));
        at("grpc", "securityDescriptor = \"x\"", Err("unknown field `securityDescriptor`"));
        at("grpc.tls", "cert = \"/c\"\nkey = \"/k\"\nca = \"/a\"", Ok(()));
        at("otel", "socketPath = \"/x\"", Ok(()));
        at("otel", "socketpath = \"/x\"", Err("unknown field `socketpath`"));
        at("cdi", "disabled = false\nspecDirs = [\"/x\"]", Ok(()));
        at("cdi", "disabled = true", Err("`cdi.disabled`"));
        at("cdi", "autoAllowed = [\"x\"]", Err("`cdi.disabled`"));
        at("cache.gha", "x = 1", Err("unknown field `cache`"));
        at("history", "maxAge = 3600\nmaxEntries = 10", Ok(()));
        at("system", "platformsCacheMaxAge = \"1h\"", Ok(()));
        at("system", "maxRegistryConcurrency = 4", Err("`system.maxRegistryConcurrency`"));
        at("dns", "nameservers = [\"1.1.1.1\"]", Err("`dns`"));
        at("dns", "options = [\"x\"]", Err("`dns`"));
        at("dns", "searchDomains = [\"x\"]", Err("`dns`"));
        at("frontend.\"dockerfile.v0\"", "enabled = false", Ok(()));
        at("frontend.\"gateway.v0\"", "enabled = true\nallowedRepositories = [\"a/b\"]", Ok(()));
        at("frontend.\"other.v0\"", "enabled = true", Err("unknown field `other.v0`"));
        at("registry.\"a.example\"", "mirrors = [\"b\"]\nhttp = true\ninsecure = true\nca = []", Ok(()));
        at("worker.containerd", "enabled = false\nnamespace = \"x\"", Ok(()));
        at("worker.containerd", "enabled = true", Err("`worker.containerd`"));
        for line in [
            "enabled = true",
            "labels = { a = \"b\" }",
            "platforms = []",
            "snapshotter = \"overlayfs\"",
            "rootless = true",
            "noProcessSandbox = false",
            "networkMode = \"bridge\"",
            "max-parallelism = 4",
            "gc = true\ngckeepstorage = 1",
            "reservedSpace = \"1GB\"\nmaxUsedSpace = \"80%\"\nminFreeSpace = 1",
            "[[worker.oci.gcpolicy]]\nall = true\nkeepDuration = \"48h\"\nkeepBytes = 1\nfilters = [\"type==exec.cachemount\"]",
        ] {
            at("worker.oci", line, Ok(()));
        }
        let own = Platform::host();
        at("worker.oci", &format!("platforms = [\"{own}\", \"linux/riscv64\"]"), Ok(()));
        at("worker.oci", "platforms = [\"linux/mips\"]", Err("that begin with `linux/mips`"));
        at("worker.oci", "platforms = [\"a b\"]", Err("invalid platform `a b`"));
        at("worker.oci", "enabled = false", Err("`worker.oci.enabled = false`"));
        at("worker.oci", "snapshotter = \"native\"", Err("`worker.oci.snapshotter`"));
        at("worker.oci", "noProcessSandbox = true", Err("`worker.oci.noProcessSandbox`"));
        at("worker.oci", "networkMode = \"cni\"", Err("`worker.oci.networkMode`"));
        at("worker.oci", "max-parallelism = -1", Err("max-parallelism"));
        at("worker.oci", "binary = \"runc\"", Ok(()));
        for (key, value) in [
            ("userRemapUnsupported", "\"x\""),
            ("proxySnapshotterPath", "\"/x\""),
            ("defaultCgroupParent", "\"/x\""),
            ("stargzSnapshotter", "{}"),
            ("apparmor-profile", "\"x\""),
            ("selinux", "true"),
            ("cniConfigPath", "\"/x\""),
            ("cniBinaryPath", "\"/x\""),
            ("cniPoolSize", "1"),
            ("bridgeName", "\"x\""),
            ("bridgeSubnet", "\"10.0.0.0/8\""),
        ] {
            let unknown = format!("unknown field `{key}`");
            at("worker.oci", &format!("{key} = {value}"), Err(&unknown));
        }
        check("nonsense = 1", Err("unknown field `nonsense`"));
    }
}
