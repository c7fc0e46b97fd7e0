//! Credentials by registry host, where `docker login` keeps them.
//!
//! Owns [`Keychain`] over docker's `config.json` and its credential helpers, and [`Secret`], the only type a
//! password or token is held in. Must not know HTTP. Which file is the caller's to say: nothing here reads the
//! environment, save that helpers are found on the `PATH`.

mod file;
mod helper;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::future::BoxFuture;

use file::ConfigFile;
use helper::Helper;

/// The key of Docker Hub in `config.json`, for historical reasons.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";
/// The names Docker Hub goes by.
const DOCKER_HUB_HOSTS: [&str; 3] = ["docker.io", "index.docker.io", "registry-1.docker.io"];
/// The user name by which helpers mark a secret as an identity token.
const TOKEN_USER: &str = "<token>";

/// A password or token. Shown nowhere: `Debug` prints `***`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Takes a secret over.
    pub fn new(secret: impl Into<String>) -> Self {
        Self(secret.into())
    }

    /// The secret itself, for the one place that sends or stores it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// What a registry knows somebody by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credential {
    /// A user name and password (or access token used as one).
    Basic {
        /// The user.
        username: String,
        /// The password.
        password: Secret,
    },
    /// A refresh token, exchanged at the registry's token service.
    IdentityToken(Secret),
    /// A bearer token sent as it is.
    RegistryToken(Secret),
}

/// Where a login was stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoredIn {
    /// In a file, not encrypted.
    File(PathBuf),
    /// By the program `docker-credential-<name>`.
    Helper(String),
}

/// Why credentials could not be read or stored.
#[derive(Debug, thiserror::Error)]
pub enum KeychainError {
    /// The file cannot be read.
    #[error("cannot read `{path}`: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The file cannot be written.
    #[error("cannot write `{path}`: {source}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The file is not docker's JSON. The content is not quoted: it holds secrets.
    #[error("`{path}` is not a docker configuration: {reason}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where and what.
        reason: String,
    },
    /// A host's entry is not what it should be. The content is not quoted.
    #[error("`{path}` has an unusable entry for `{host}`: {reason}")]
    Entry {
        /// The file.
        path: PathBuf,
        /// The entry's key.
        host: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A helper's name that cannot be a program name.
    #[error("invalid credential helper name `{0}`")]
    HelperName(String),
    /// A helper that cannot be run or does not end.
    #[error("cannot run `{program}`: {source}")]
    HelperRun {
        /// `docker-credential-…`.
        program: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A helper that failed.
    #[error("`{program} {verb}` failed: {message}")]
    HelperFailed {
        /// `docker-credential-…`.
        program: String,
        /// `get`, `store` or `erase`.
        verb: &'static str,
        /// What it said.
        message: String,
    },
    /// Whoever keeps the credentials did not answer.
    #[error("cannot ask for the credentials of `{host}`: {reason}")]
    Elsewhere {
        /// The registry.
        host: String,
        /// Why not; never a secret.
        reason: String,
    },
    /// A token cannot be stored as a login, or there is no file to store in.
    #[error("cannot store this credential: {0}")]
    NotStorable(&'static str),
}

/// Credentials that are kept elsewhere, such as on the machine of whoever asked for a build.
pub trait CredentialSource: Send + Sync + fmt::Debug {
    /// The credential for a registry host (`docker.io`, `localhost:5000`), `None` if there is none.
    fn credential<'a>(
        &'a self,
        registry: &'a str,
    ) -> BoxFuture<'a, Result<Option<Credential>, KeychainError>>;
}

/// The credentials of one user, read afresh at each use: another process may log in meanwhile.
#[derive(Debug, Clone, Default)]
pub struct Keychain {
    path: Option<PathBuf>,
    helper_directory: Option<PathBuf>,
    elsewhere: Option<Arc<dyn CredentialSource>>,
}

impl Keychain {
    /// No credentials at all; storing is an error.
    pub fn anonymous() -> Self {
        Self::default()
    }

    /// The credentials in docker's `config.json` at `path`, which need not exist yet.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: Some(path.into()), ..Self::default() }
    }

    /// The credentials that `source` gives; storing is an error.
    pub fn elsewhere(source: Arc<dyn CredentialSource>) -> Self {
        Self { elsewhere: Some(source), ..Self::default() }
    }

    /// Looks for helper programs in `directory` only, not on the `PATH`.
    #[must_use]
    pub fn with_helpers_in(self, directory: impl Into<PathBuf>) -> Self {
        Self { helper_directory: Some(directory.into()), ..self }
    }

    /// The file, if there is to be one.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// The credential for a registry host (`docker.io`, `localhost:5000`), `None` if there is none.
    ///
    /// # Errors
    /// An unreadable file or entry, a helper that fails.
    pub async fn credential(&self, registry: &str) -> Result<Option<Credential>, KeychainError> {
        if let Some(source) = &self.elsewhere {
            return source.credential(registry).await;
        }
        let Some(config) = self.read().await? else { return Ok(None) };
        if let Some(name) = config.helper_for(registry) {
            let helper = Helper::new(&name, self.helper_directory.as_deref())?;
            for key in lookup_keys(registry) {
                if let Some(found) = helper.get(&key).await? {
                    return Ok(Some(found));
                }
            }
        }
        config.credential(registry)
    }

    /// Stores a user name and password or an identity token for a host, and says where.
    ///
    /// # Errors
    /// [`KeychainError::NotStorable`] for an anonymous keychain or a registry token; else as for reading, and what
    /// goes wrong when writing.
    pub async fn store(&self, registry: &str, credential: &Credential) -> Result<StoredIn, KeychainError> {
        if matches!(credential, Credential::RegistryToken(_)) {
            return Err(KeychainError::NotStorable("a registry token is not a login"));
        }
        let path = self.path.clone().ok_or(KeychainError::NotStorable("no configuration file is in use"))?;
        let helper = self.read().await?.and_then(|config| config.helper_for(registry));
        let key = storage_key(registry).to_owned();
        if let Some(name) = helper {
            Helper::new(&name, self.helper_directory.as_deref())?.store(&key, credential).await?;
            edit(path, move |config| config.mark(&key)).await?;
            return Ok(StoredIn::Helper(name));
        }
        let credential = credential.clone();
        edit(path.clone(), move |config| config.insert(&key, &credential)).await?;
        Ok(StoredIn::File(path))
    }

    /// Forgets the credentials for a host; says whether there were any.
    ///
    /// # Errors
    /// As for reading and writing.
    pub async fn erase(&self, registry: &str) -> Result<bool, KeychainError> {
        let Some(path) = self.path.clone() else { return Ok(false) };
        let Some(config) = self.read().await? else { return Ok(false) };
        let mut erased = false;
        if let Some(name) = config.helper_for(registry) {
            let helper = Helper::new(&name, self.helper_directory.as_deref())?;
            for key in lookup_keys(registry) {
                if helper.get(&key).await?.is_some() {
                    helper.erase(&key).await?;
                    erased = true;
                }
            }
        }
        if config.has_entry(registry) {
            let registry = registry.to_owned();
            edit(path, move |config| {
                config.remove(&registry);
                Ok(())
            })
            .await?;
            erased = true;
        }
        Ok(erased)
    }

    async fn read(&self) -> Result<Option<ConfigFile>, KeychainError> {
        let Some(path) = self.path.clone() else { return Ok(None) };
        blocking(path.clone(), move || ConfigFile::read(&path)).await
    }
}

async fn edit(
    path: PathBuf,
    change: impl FnOnce(&mut ConfigFile) -> Result<(), KeychainError> + Send + 'static,
) -> Result<(), KeychainError> {
    blocking(path.clone(), move || ConfigFile::edit(&path, change)).await
}

/// The home directory may be on a slow file system, and edits wait for a lock.
async fn blocking<T: Send + 'static>(
    path: PathBuf,
    work: impl FnOnce() -> Result<T, KeychainError> + Send + 'static,
) -> Result<T, KeychainError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(failure) => Err(KeychainError::Read { path, source: io::Error::other(failure) }),
    }
}

/// The key under which docker writes a host.
fn storage_key(registry: &str) -> &str {
    if is_docker_hub(registry) { DOCKER_HUB_KEY } else { registry }
}

/// The keys under which docker and others may have written a host, most usual first.
fn lookup_keys(registry: &str) -> Vec<String> {
    if is_docker_hub(registry) {
        return vec![DOCKER_HUB_KEY.to_owned(), "docker.io".to_owned()];
    }
    vec![registry.to_owned(), format!("https://{registry}")]
}

fn is_docker_hub(registry: &str) -> bool {
    DOCKER_HUB_HOSTS.contains(&registry)
}

/// The host a key stands for: keys may be URLs of old (`https://host/v1/`).
fn host_of_key(key: &str) -> &str {
    let rest = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    rest.split('/').next().unwrap_or(rest)
}

fn is_key_of(key: &str, registry: &str) -> bool {
    let host = host_of_key(key);
    host == registry || (is_docker_hub(registry) && is_docker_hub(host))
}
