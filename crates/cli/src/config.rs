//! The configuration file: TOML, with buildkitd's registry tables.

mod store;

use std::path::PathBuf;

use serde::Deserialize;
use stave_registry::RegistryTables;
use stave_sandbox::UserNetworkProgram;
use stave_worker::StepNetwork;

pub(crate) use self::store::StoreTable;
use crate::state::ConfigFile;

/// Bytes of the largest configuration file.
const MAX_SIZE: u64 = 1 << 20;

/// What the file may say.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// `[registry."host"]`
    #[serde(default)]
    pub(crate) registry: RegistryTables,
    /// `[build]`
    #[serde(default)]
    pub(crate) build: Build,
    /// `[store]`
    #[serde(default)]
    pub(crate) store: StoreTable,
    /// An OCI runtime that runs build steps: `oci-runtime = "runc"`.
    #[serde(rename = "oci-runtime")]
    pub(crate) oci_runtime: Option<PathBuf>,
    /// `[cdi]`
    #[serde(default)]
    pub(crate) cdi: Cdi,
}

/// `[build]`: what builds do when no flag says otherwise.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Build {
    /// As `--context-modes`.
    pub(crate) context_modes: Option<ModesName>,
    /// What `--network=default` means.
    pub(crate) network: Option<NetworkName>,
}

/// A network that steps, or containers, can have by default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum NetworkName {
    /// The host's.
    Host,
    /// None.
    None,
    /// One of its own, with NAT.
    Bridge,
    /// One of its own, by the program of that name.
    Pasta,
    /// The same by another program.
    Slirp4netns,
}

impl NetworkName {
    /// What the worker calls it.
    pub(crate) fn step_network(self) -> StepNetwork {
        match self {
            Self::Host => StepNetwork::Host,
            Self::None => StepNetwork::None,
            Self::Bridge => StepNetwork::Bridge,
            Self::Pasta => StepNetwork::User(UserNetworkProgram::Pasta),
            Self::Slirp4netns => StepNetwork::User(UserNetworkProgram::Slirp4netns),
        }
    }
}

/// What `--context-modes` takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ModesName {
    /// As they are
    Keep,
    /// As git keeps them
    Git,
}

/// `[cdi]`, with buildkitd's names.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Cdi {
    /// Directories of specifications instead of the usual ones; those of a later one win.
    pub(crate) spec_dirs: Option<Vec<PathBuf>>,
}

/// A configuration file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigFileError {
    /// Cannot be read.
    #[error("cannot read the configuration file `{}`", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Larger than any honest one.
    #[error("the configuration file `{}` is over {MAX_SIZE} bytes", .0.display())]
    TooLarge(PathBuf),
    /// Not what is expected.
    #[error("the configuration file `{}` is not valid", .path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: Box<toml::de::Error>,
    },
}

/// Reads the file; an absent default file is an empty configuration.
pub(crate) fn load(file: &ConfigFile) -> Result<Config, ConfigFileError> {
    let (path, optional) = match file {
        ConfigFile::Named(path) => (path, false),
        ConfigFile::Default(path) => (path, true),
    };
    let metadata = match std::fs::metadata(path) {
        Err(error) if optional && error.kind() == std::io::ErrorKind::NotFound => {
            return Ok(Config::default());
        }
        other => other.map_err(|source| ConfigFileError::Read { path: path.clone(), source })?,
    };
    if metadata.len() > MAX_SIZE {
        return Err(ConfigFileError::TooLarge(path.clone()));
    }
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigFileError::Read { path: path.clone(), source })?;
    toml::from_str(&text)
        .map_err(|source| ConfigFileError::Syntax { path: path.clone(), source: Box::new(source) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registry_tables_are_read_and_unknown_keys_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("config.toml");
        let read = |text: &str| {
            std::fs::write(&path, text).expect("writes");
            load(&ConfigFile::Named(path.clone()))
        };
        let config =
            read("[registry.\"docker.io\"]\nmirrors = [\"127.0.0.1:5000\"]\nhttp = true\n").expect("valid");
        assert_eq!(config.registry.0["docker.io"].mirrors, ["127.0.0.1:5000"]);
        let error = read("[registri]\n").expect_err("unknown key");
        assert!(crate::report::chain(&error).contains("unknown field `registri`"), "{error:?}");
        let absent = folder.path().join("none.toml");
        assert_eq!(load(&ConfigFile::Default(absent.clone())).expect("may be absent"), Config::default());
        assert!(matches!(load(&ConfigFile::Named(absent)), Err(ConfigFileError::Read { .. })));
    }
}
