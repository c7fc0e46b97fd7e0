//! The flags of a daemon, as the program's own and as buildkitd has them. Start with [`Arguments`].

use std::path::PathBuf;
use std::str::FromStr;

use super::error::StartError;
use super::flags::ForeignFlags;

/// Serve builds to BuildKit's clients: buildctl, docker buildx and their like
///
/// Called as `buildkitd`, the program does this without being told.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Arguments {
    /// Address to listen at: unix://PATH or tcp://IP:PORT (may be repeated)
    #[arg(long, value_name = "ADDRESS")]
    pub(super) addr: Vec<String>,
    /// Group (name or number) that may use the unix sockets
    #[arg(long, value_name = "GROUP")]
    pub(super) group: Option<String>,
    /// Server certificate for tcp (PEM)
    #[arg(long, value_name = "FILE")]
    pub(super) tlscert: Option<PathBuf>,
    /// Key of the server certificate (PEM)
    #[arg(long, value_name = "FILE")]
    pub(super) tlskey: Option<PathBuf>,
    /// Authority that signs clients' certificates (PEM)
    #[arg(long, value_name = "FILE")]
    pub(super) tlscacert: Option<PathBuf>,
    /// Let everybody in who reaches a tcp address: no certificates
    #[arg(long)]
    pub(super) insecure_tcp: bool,
    /// Entitlement that builds may ask for, in place of the file's: network.host, security.insecure, device (may be repeated)
    #[arg(long, value_name = "NAME")]
    pub(super) allow_insecure_entitlement: Vec<String>,
    #[command(flatten)]
    pub(super) worker: WorkerArguments,
    #[command(flatten)]
    pub(super) watch: WatchArguments,
    #[command(flatten)]
    pub(super) foreign: ForeignFlags,
}

/// Who watches the daemon, and what is taken down of it.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct WatchArguments {
    /// Address of metrics (/metrics), readiness (/healthz, /readyz) and dumps (/debug/graph)
    #[arg(long, value_name = "ADDRESS", visible_alias = "debugaddr")]
    pub(super) metrics_addr: Option<String>,
    /// Address of the web page; on tcp it is for this machine alone, or with --insecure-tcp for all
    #[arg(long, value_name = "ADDRESS")]
    pub(super) web_addr: Option<String>,
    /// Name that browsers may know the web page by (may be repeated)
    #[arg(long, value_name = "NAME")]
    pub(super) web_host: Vec<String>,
    /// How much is said: `debug` and `trace` say all
    #[arg(long, value_name = "LEVEL", env = "BUILDKITD_LOG_LEVEL")]
    pub(super) log_level: Option<String>,
    /// File that gets a line of JSON for everything that is asked for
    #[arg(long, value_name = "FILE")]
    pub(super) audit_log: Option<PathBuf>,
    /// Collector that traces of builds are sent to: OTLP over http
    #[arg(long, value_name = "URL", env = "OTEL_EXPORTER_OTLP_ENDPOINT")]
    pub(super) otlp_endpoint: Option<String>,
}

/// buildkitd's flags for its workers, of which there is one here.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct WorkerArguments {
    /// Only `true` is possible
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", hide = true)]
    pub(super) oci_worker: Option<Presence>,
    /// Only `false` is possible
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", hide = true)]
    pub(super) containerd_worker: Option<Presence>,
    /// Whether what nobody uses is removed after builds; see --oci-worker-gc-keepstorage
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub(super) oci_worker_gc: Option<Switch>,
    /// Megabytes of the state directory that stay after a build; those of the disk that shall be free; those that are
    /// too many
    #[arg(long, value_name = "MB[,FREE[,MAX]]")]
    pub(super) oci_worker_gc_keepstorage: Option<KeepStorage>,
    /// Steps that run at a time; 0 is as many as there are processors
    #[arg(long, value_name = "N")]
    pub(super) oci_max_parallelism: Option<usize>,
    /// Platform that clients are told, this machine's own first (may be repeated)
    #[arg(long, value_name = "PLATFORM")]
    pub(super) oci_worker_platform: Vec<String>,
    /// OCI runtime that runs build steps instead of the sandbox
    #[arg(long, value_name = "PROGRAM", hide = true)]
    pub(super) oci_worker_binary: Option<PathBuf>,
    /// Directory of device specifications (may be repeated)
    #[arg(long, value_name = "DIR")]
    pub(super) cdi_spec_dir: Vec<PathBuf>,
    /// Label that clients are told: NAME=VALUE (may be repeated)
    #[arg(long, value_name = "LABEL")]
    pub(super) oci_worker_labels: Vec<String>,
    /// Only `overlayfs` is possible
    #[arg(long, value_name = "NAME", hide = true)]
    pub(super) oci_worker_snapshotter: Option<Snapshotter>,
    /// `host` or `bridge`
    #[arg(long, value_name = "NAME", hide = true)]
    pub(super) oci_worker_net: Option<Network>,
}

/// A flag with a value, as Go's programs take it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Switch {
    True,
    False,
}

/// Whether a worker is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Presence {
    True,
    False,
    Auto,
}

/// What collection keeps, in megabytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct KeepStorage {
    pub(super) reserved: u64,
    pub(super) free: Option<u64>,
    pub(super) most: Option<u64>,
}

impl FromStr for KeepStorage {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers: Result<Vec<u64>, _> = text.split(',').map(str::parse).collect();
        match numbers.as_deref() {
            Ok([reserved]) => Ok(Self { reserved: *reserved, free: None, most: None }),
            Ok([reserved, free]) => Ok(Self { reserved: *reserved, free: Some(*free), most: None }),
            Ok([reserved, free, most]) => {
                Ok(Self { reserved: *reserved, free: Some(*free), most: Some(*most) })
            }
            _ => Err("expected megabytes: RESERVED[,FREE[,MAX]]".to_owned()),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Snapshotter {
    Auto,
    Overlayfs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Network {
    Auto,
    Host,
    Bridge,
}

impl WorkerArguments {
    /// Fails for workers that are not there.
    pub(super) fn check(&self) -> Result<(), StartError> {
        if self.oci_worker == Some(Presence::False) {
            return Err(StartError::Worker("--oci-worker=false"));
        }
        if self.containerd_worker == Some(Presence::True) {
            return Err(StartError::Worker("--containerd-worker=true"));
        }
        Ok(())
    }
}
