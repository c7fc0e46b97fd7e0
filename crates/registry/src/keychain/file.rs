//! Docker's `config.json` as a JSON object of which we understand three keys and keep all the others.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use serde::Serialize as _;
use serde_json::{Map, Value};

use super::{Credential, DOCKER_HUB_KEY, KeychainError, Secret, TOKEN_USER, is_docker_hub, is_key_of};
use crate::limits::MAX_CREDENTIAL_BYTES;

/// The file's content. Invariant: its root is an object.
pub(super) struct ConfigFile {
    path: PathBuf,
    root: Map<String, Value>,
}

impl ConfigFile {
    /// Reads the file; `None` if there is none.
    pub(super) fn read(path: &Path) -> Result<Option<Self>, KeychainError> {
        let failed = |source| KeychainError::Read { path: path.to_owned(), source };
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let mut text = Vec::new();
        file.take(MAX_CREDENTIAL_BYTES + 1).read_to_end(&mut text).map_err(failed)?;
        let syntax = |reason| KeychainError::Syntax { path: path.to_owned(), reason };
        if text.len() as u64 > MAX_CREDENTIAL_BYTES {
            return Err(syntax(format!("it is over the limit of {MAX_CREDENTIAL_BYTES} bytes")));
        }
        if text.iter().all(u8::is_ascii_whitespace) {
            return Ok(Some(Self { path: path.to_owned(), root: Map::new() }));
        }
        // The reader's message could quote a value; its position cannot.
        let root = match serde_json::from_slice(&text) {
            Ok(Value::Object(root)) => root,
            Ok(_) => return Err(syntax("expected a JSON object".to_owned())),
            Err(error) => {
                return Err(syntax(format!(
                    "invalid JSON at line {} column {}",
                    error.line(),
                    error.column()
                )));
            }
        };
        Ok(Some(Self { path: path.to_owned(), root }))
    }

    /// Changes the file under a lock that all of our processes take, and replaces it in one step.
    pub(super) fn edit(
        path: &Path,
        change: impl FnOnce(&mut Self) -> Result<(), KeychainError>,
    ) -> Result<(), KeychainError> {
        let failed = |source| KeychainError::Write { path: path.to_owned(), source };
        // Whoever keeps the file elsewhere behind a link wants the file changed, not the link.
        let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let directory = match target.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        create_private_directory(&directory).map_err(failed)?;
        let lock = File::open(&directory).map_err(failed)?;
        lock.lock().map_err(failed)?;
        let mut config =
            Self::read(&target)?.unwrap_or_else(|| Self { path: target.clone(), root: Map::new() });
        change(&mut config)?;
        config.replace(&directory).map_err(failed)
    }

    /// Temporary files are created with mode 0600, so the new file is private from its first byte.
    fn replace(&self, directory: &Path) -> io::Result<()> {
        let mut text = Vec::new();
        let formatter = serde_json::ser::PrettyFormatter::with_indent(b"\t");
        self.root.serialize(&mut serde_json::Serializer::with_formatter(&mut text, formatter))?;
        text.push(b'\n');
        let mut file = tempfile::NamedTempFile::new_in(directory)?;
        file.write_all(&text)?;
        file.as_file().sync_all()?;
        file.persist(&self.path).map_err(|failure| failure.error)?;
        Ok(())
    }

    /// The helper responsible for a host: its own, else the general one.
    pub(super) fn helper_for(&self, registry: &str) -> Option<String> {
        let own = self.root.get("credHelpers").and_then(Value::as_object).and_then(|helpers| {
            helpers.iter().find(|(key, _)| is_key_of(key, registry)).map(|(_, helper)| helper)
        });
        let helper = own.or_else(|| self.root.get("credsStore")).and_then(Value::as_str);
        helper.filter(|name| !name.is_empty()).map(str::to_owned)
    }

    /// The credential written in the file for a host.
    pub(super) fn credential(&self, registry: &str) -> Result<Option<Credential>, KeychainError> {
        let Some((key, entry)) = self.entry(registry) else { return Ok(None) };
        let text = |name: &str| entry.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
        if let Some(token) = text("identitytoken") {
            return Ok(Some(Credential::IdentityToken(Secret::new(token))));
        }
        if let Some(token) = text("registrytoken") {
            return Ok(Some(Credential::RegistryToken(Secret::new(token))));
        }
        if let Some(auth) = text("auth") {
            let unusable =
                |reason| KeychainError::Entry { path: self.path.clone(), host: key.to_owned(), reason };
            return decode(auth).map(Some).map_err(unusable);
        }
        Ok(text("username").zip(text("password")).map(|(username, password)| Credential::Basic {
            username: username.to_owned(),
            password: Secret::new(password),
        }))
    }

    pub(super) fn has_entry(&self, registry: &str) -> bool {
        self.entry(registry).is_some()
    }

    fn entry(&self, registry: &str) -> Option<(&str, &Map<String, Value>)> {
        let auths = self.root.get("auths")?.as_object()?;
        let exact = if is_docker_hub(registry) { DOCKER_HUB_KEY } else { registry };
        let found = auths.get_key_value(exact);
        let found = found.or_else(|| auths.iter().find(|(key, _)| is_key_of(key, registry)));
        found.and_then(|(key, entry)| Some((key.as_str(), entry.as_object()?)))
    }

    /// Writes a credential under a key; what else the entry holds (an email) stays.
    pub(super) fn insert(&mut self, key: &str, credential: &Credential) -> Result<(), KeychainError> {
        let entry = self.entry_mut(key)?;
        for name in ["auth", "identitytoken", "registrytoken", "username", "password"] {
            entry.shift_remove(name);
        }
        match credential {
            Credential::Basic { username, password } => {
                let auth = STANDARD.encode(format!("{username}:{}", password.expose()));
                entry.insert("auth".to_owned(), auth.into());
            }
            Credential::IdentityToken(token) => {
                let auth = STANDARD.encode("00000000-0000-0000-0000-000000000000:");
                entry.insert("auth".to_owned(), auth.into());
                entry.insert("identitytoken".to_owned(), token.expose().into());
            }
            Credential::RegistryToken(token) => {
                entry.insert("registrytoken".to_owned(), token.expose().into());
            }
        }
        Ok(())
    }

    /// Leaves an empty entry, as docker does for a host whose secret a helper keeps.
    pub(super) fn mark(&mut self, key: &str) -> Result<(), KeychainError> {
        self.entry_mut(key)?.clear();
        Ok(())
    }

    pub(super) fn remove(&mut self, registry: &str) {
        if let Some(auths) = self.root.get_mut("auths").and_then(Value::as_object_mut) {
            auths.retain(|key, _| !is_key_of(key, registry));
        }
    }

    fn entry_mut(&mut self, key: &str) -> Result<&mut Map<String, Value>, KeychainError> {
        let path = &self.path;
        let unusable = |reason| KeychainError::Entry { path: path.clone(), host: key.to_owned(), reason };
        let auths = self.root.entry("auths").or_insert_with(|| Map::new().into());
        let auths = auths.as_object_mut().ok_or_else(|| unusable("`auths` is not an object"))?;
        let entry = auths.entry(key).or_insert_with(|| Map::new().into());
        entry.as_object_mut().ok_or_else(|| unusable("it is not an object"))
    }
}

/// `base64(user:password)`; a password may hold colons, and old versions of docker padded with zero bytes.
fn decode(auth: &str) -> Result<Credential, &'static str> {
    let auth = auth.trim();
    let bytes = STANDARD.decode(auth).or_else(|_| STANDARD_NO_PAD.decode(auth));
    let text = bytes.ok().and_then(|bytes| String::from_utf8(bytes).ok());
    let text = text.ok_or("`auth` is not the base64 form of `user:password`")?;
    let (username, password) = text.split_once(':').ok_or("`auth` holds no `user:password`")?;
    let password = Secret::new(password.trim_end_matches('\0'));
    if username == TOKEN_USER {
        return Ok(Credential::IdentityToken(password));
    }
    Ok(Credential::Basic { username: username.to_owned(), password })
}

fn create_private_directory(directory: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)
}
