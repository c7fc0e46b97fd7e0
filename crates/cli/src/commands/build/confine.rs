//! Flags about how far the steps of a build may go: rights, limits, time, tries, proxies, certificates.
//!
//! Owns what the flags, docker's config file and the environment say together. Read [`Flags::confinement`] first.

use std::io::Read as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use stave_sandbox::UserNetworkProgram;
use stave_worker::{Confinement, StepNetwork};

use super::arguments::NetworkMode;
use crate::commands::limits;
use crate::config::NetworkName;
use crate::report::Failure;
use crate::state::docker_config;

/// Bytes of the largest file of certificates.
const MAX_AUTHORITIES: u64 = 4 << 20;
/// Bytes of docker's config file that are looked at.
const MAX_CONFIG: u64 = 4 << 20;
/// Most tries of one step.
const MAX_RETRIES: i64 = 100;

/// Environment variables of proxies, docker's names for them in its config file beside.
const PROXIES: [(&str, &str); 5] = [
    ("HTTP_PROXY", "httpProxy"),
    ("HTTPS_PROXY", "httpsProxy"),
    ("FTP_PROXY", "ftpProxy"),
    ("NO_PROXY", "noProxy"),
    ("ALL_PROXY", "allProxy"),
];

// What steps may do
#[derive(Debug, clap::Args)]
#[group(skip)]
pub(crate) struct Flags {
    /// Grant steps a right: `network.host`, `security.insecure`, `device[=NAME]`
    #[arg(long, value_name = "ENTITLEMENT")]
    pub(super) allow: Vec<String>,
    /// Give every step a device, by its CDI name (`vendor.com/class=name`)
    #[arg(long = "device", value_name = "NAME")]
    devices: Vec<String>,
    #[command(flatten)]
    pub(super) limits: limits::Flags,
    /// Limit each step (`memory=512m,cpus=1.5,pids=100`; also memory-swap, cpu-shares, cpu-period, cpu-quota,
    /// cpuset-cpus, cpuset-mems)
    #[arg(long = "resource", value_name = "NAME=VALUE")]
    resources: Vec<String>,
    /// End a step that runs longer (`90s`, `1h30m`)
    #[arg(long, value_name = "DURATION", value_parser = limits::duration)]
    step_timeout: Option<Duration>,
    /// Run a step that failed again, so many times
    #[arg(long, value_name = "TIMES", default_value_t = 0, value_parser = clap::value_parser!(i64).range(0..=MAX_RETRIES))]
    retry: i64,
    /// Certificates (PEM) that programs in steps shall trust; they enter neither image nor cache key
    #[arg(long = "ca", value_name = "FILE")]
    authorities: Vec<PathBuf>,
    /// Do not look for secrets' values in new layers and configs
    #[arg(long)]
    no_secret_scan: bool,
}

impl Flags {
    /// Whether steps or the build are limited.
    pub(super) fn has_limits(&self) -> bool {
        !self.resources.is_empty() || self.limits.limits().is_ok_and(|limits| !limits.is_empty())
    }

    /// What they say together.
    /// `usual` is what the configuration says for `--network=default`.
    pub(super) fn confinement(
        &self,
        network: NetworkMode,
        usual: Option<NetworkName>,
    ) -> Result<Confinement, Failure> {
        let mut confinement = Confinement {
            network: match network {
                NetworkMode::Default => usual.map_or(StepNetwork::default(), NetworkName::step_network),
                NetworkMode::Bridge => StepNetwork::Bridge,
                NetworkMode::Pasta => StepNetwork::User(UserNetworkProgram::Pasta),
                NetworkMode::Slirp4netns => StepNetwork::User(UserNetworkProgram::Slirp4netns),
                NetworkMode::Host => StepNetwork::Host,
                NetworkMode::None => StepNetwork::None,
            },
            step_limits: limits::resources(&self.resources)?,
            build_limits: self.limits.limits()?,
            cgroup_parent: self.limits.cgroup_parent.clone().filter(|parent| !parent.is_empty()),
            devices: self.devices.clone(),
            timeout: self.step_timeout,
            retries: u32::try_from(self.retry).unwrap_or(0),
            proxies: proxies(docker_proxies(), |name| std::env::var(name).ok()),
            authorities: self.authorities()?,
            secret_scan: !self.no_secret_scan,
            ..Confinement::default()
        };
        for word in &self.allow {
            confinement.entitlements.grant(word).map_err(|error| Failure::usage(error.to_string()))?;
        }
        // Who gives every step a device grants it.
        for name in &self.devices {
            let word = format!("device={name}");
            confinement.entitlements.grant(&word).map_err(|error| Failure::usage(error.to_string()))?;
        }
        // docker: who gives every step the host's network grants it to those that ask for it.
        confinement.entitlements.network_host |= network == NetworkMode::Host;
        Ok(confinement)
    }

    fn authorities(&self) -> Result<Option<Arc<[u8]>>, Failure> {
        let mut all = Vec::new();
        for path in &self.authorities {
            let failed = |problem: String| Failure::message(format!("--ca `{}`: {problem}", path.display()));
            let file = std::fs::File::open(path).map_err(|error| failed(error.to_string()))?;
            let before = all.len();
            file.take(MAX_AUTHORITIES + 1)
                .read_to_end(&mut all)
                .map_err(|error| failed(error.to_string()))?;
            let text = String::from_utf8_lossy(&all[before..]);
            if all.len() as u64 > MAX_AUTHORITIES {
                return Err(failed(format!("larger than {MAX_AUTHORITIES} bytes")));
            }
            if !text.contains("-----BEGIN CERTIFICATE-----") {
                return Err(failed("holds no certificate in PEM form".to_owned()));
            }
            all.push(b'\n');
        }
        Ok((!all.is_empty()).then(|| all.into()))
    }
}

/// `proxies.default` of docker's config file; what cannot be read names none.
fn docker_proxies() -> serde_json::Value {
    let mut text = String::new();
    let read =
        std::fs::File::open(docker_config()).and_then(|file| file.take(MAX_CONFIG).read_to_string(&mut text));
    let config: Option<serde_json::Value> = read.ok().and_then(|_| serde_json::from_str(&text).ok());
    config
        .and_then(|mut config| config.pointer_mut("/proxies/default").map(serde_json::Value::take))
        .unwrap_or_default()
}

/// docker's file before the environment, in which small letters win as they do for most programs.
fn proxies(file: serde_json::Value, environment: impl Fn(&str) -> Option<String>) -> Vec<(String, String)> {
    let proxy = |(name, key): &(&str, &str)| {
        let configured = file.get(key).and_then(|value| value.as_str()).map(str::to_owned);
        let found = configured.or_else(|| environment(&name.to_lowercase())).or_else(|| environment(name))?;
        Some(((*name).to_owned(), found)).filter(|(_, value)| !value.is_empty())
    };
    PROXIES.iter().filter_map(proxy).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(file: &str, environment: &[(&str, &str)], expected: &[(&str, &str)]) {
        let file = serde_json::from_str(file).expect("JSON");
        let of = |name: &str| {
            environment.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        };
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        assert_eq!(proxies(file, of), expected.iter().map(owned).collect::<Vec<_>>());
    }

    #[test]
    fn proxies_of_file_and_environment() {
        check("null", &[], &[]);
        check("{}", &[("HTTP_PROXY", "a"), ("http_proxy", "b")], &[("HTTP_PROXY", "b")]);
        check(
            r#"{"httpProxy":"f"}"#,
            &[("HTTP_PROXY", "a"), ("NO_PROXY", "n")],
            &[("HTTP_PROXY", "f"), ("NO_PROXY", "n")],
        );
        check("{}", &[("HTTPS_PROXY", "")], &[]);
    }
}
