//! Where things are: the state directory, the config file, docker's credentials.
//!
//! The only module that reads the environment for paths; everything below gets values.

use std::path::{Path, PathBuf};

/// Options that every command has.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct GlobalOptions {
    /// State directory (default: /var/lib/stave for root, else the XDG data directory)
    #[arg(long, global = true, env = "STAVE_ROOT", value_name = "DIR")]
    pub(crate) root: Option<PathBuf>,
    /// Configuration file in TOML (default: the XDG config directory's stave/config.toml)
    #[arg(long, global = true, env = "STAVE_CONFIG", value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// OCI runtime that runs build steps instead of the sandbox (`runc`, `crun`, or a path)
    #[arg(long, global = true, env = "STAVE_OCI_RUNTIME", value_name = "PROGRAM", hide_short_help = true)]
    pub(crate) oci_runtime: Option<PathBuf>,
    /// Print what stave itself does to standard error
    #[arg(short = 'D', long, global = true)]
    pub(crate) debug: bool,
    /// Whether the state directory was named, and is not the usual one.
    #[arg(skip)]
    pub(crate) is_root_named: bool,
    /// With what privileges this process works, once its namespaces are entered.
    #[arg(skip)]
    pub(crate) tier: Option<stave_sandbox::Tier>,
}

impl GlobalOptions {
    /// The options with the state directory looked up, which must happen while the process still has the ids it was
    /// started with.
    #[must_use]
    pub(crate) fn settled(self) -> Self {
        let root = self.state_directory();
        Self { is_root_named: self.root.is_some(), root: Some(root), ..self }
    }

    /// The state directory in use.
    pub(crate) fn state_directory(&self) -> PathBuf {
        if let Some(root) = &self.root {
            return absolute(root);
        }
        if rustix::process::geteuid().is_root() {
            return PathBuf::from("/var/lib/stave");
        }
        xdg("XDG_DATA_HOME", ".local/share").join("stave")
    }

    /// The config file: one that was named must exist, the default one may be absent.
    pub(crate) fn config_file(&self) -> ConfigFile {
        match &self.config {
            Some(path) => ConfigFile::Named(path.clone()),
            None => ConfigFile::Default(xdg("XDG_CONFIG_HOME", ".config").join("stave/config.toml")),
        }
    }
}

/// Which config file to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ConfigFile {
    /// Named by a flag or the environment.
    Named(PathBuf),
    /// The usual place.
    Default(PathBuf),
}

/// docker's own config file, where credentials are.
pub(crate) fn docker_config() -> PathBuf {
    match non_empty("DOCKER_CONFIG") {
        Some(folder) => PathBuf::from(folder).join("config.json"),
        None => home().join(".docker/config.json"),
    }
}

fn xdg(variable: &str, default: &str) -> PathBuf {
    // The XDG base directory specification: relative values are to be ignored.
    let named = non_empty(variable).map(PathBuf::from).filter(|path| path.is_absolute());
    named.unwrap_or_else(|| home().join(default))
}

fn home() -> PathBuf {
    non_empty("HOME").map_or_else(|| PathBuf::from("/"), PathBuf::from)
}

fn non_empty(variable: &str) -> Option<std::ffi::OsString> {
    std::env::var_os(variable).filter(|value| !value.is_empty())
}

/// `path` from the root, so that a later change of directory does not move it.
pub(crate) fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}
