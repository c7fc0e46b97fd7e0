//! `--ssh default|ID[=SOCKET|KEY[,KEY…]]`: agents and keys that steps and repositories may use.
//!
//! Owns the flag's language and the reading of keys. Must not use them. Start with [`read`].

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use stave_worker::{DEFAULT_AGENT, KeyError, SshAgent, SshKeys};

/// Bytes of the largest key, as docker limits it.
const MAX_KEY: u64 = 100 << 10;

/// Bytes of all known hosts together.
const MAX_KNOWN_HOSTS: u64 = 16 << 20;

/// A `--ssh` that cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum SshFlagError {
    /// Two of one id.
    #[error("duplicate agent ID {0:?}")]
    Duplicate(String),
    /// No agent runs, or nobody says where.
    #[error("invalid empty ssh agent socket: make sure SSH_AUTH_SOCK is set")]
    NoSocket,
    /// Several sockets.
    #[error("failed to convert agent config for ID: {0:?}: only single socket allowed")]
    Sockets(String),
    /// Both.
    #[error("failed to convert agent config for ID: {0:?}: invalid combination of keys and sockets")]
    Mixed(String),
    /// Forwarding whatever comes.
    #[error("ssh agent {0:?}: `raw` is not supported: a build may ask for signatures, and nothing else")]
    Raw(String),
    /// A file that cannot be read.
    #[error("failed to read `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A key that cannot be used.
    #[error("failed to parse {}", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: KeyError,
    },
}

/// Reads the flags; `agent` is where `SSH_AUTH_SOCK` says that an agent listens.
pub(super) fn read(
    flags: &[String],
    agent: Option<&Path>,
) -> Result<BTreeMap<String, SshAgent>, SshFlagError> {
    let mut agents = BTreeMap::new();
    for flag in flags {
        let (id, paths) = flag.split_once('=').unwrap_or((flag, ""));
        let id = if id.is_empty() { DEFAULT_AGENT } else { id };
        if agents.contains_key(id) {
            return Err(SshFlagError::Duplicate(id.to_owned()));
        }
        let mut places = Vec::new();
        for path in paths.split(',').filter(|path| !path.is_empty()) {
            match path.split_once('=') {
                Some(("raw", "false" | "0")) => {}
                Some(("raw", _)) => return Err(SshFlagError::Raw(id.to_owned())),
                _ => places.push(PathBuf::from(path)),
            }
        }
        if places.is_empty() {
            places.push(
                agent.filter(|path| !path.as_os_str().is_empty()).ok_or(SshFlagError::NoSocket)?.into(),
            );
        }
        agents.insert(id.to_owned(), one(id, &places)?);
    }
    Ok(agents)
}

fn one(id: &str, paths: &[PathBuf]) -> Result<SshAgent, SshFlagError> {
    let (mut socket, mut keys) = (None, SshKeys::default());
    for path in paths {
        let failed = |source| SshFlagError::Read { path: path.clone(), source };
        if socket.is_some() {
            return Err(SshFlagError::Sockets(id.to_owned()));
        }
        if fs::metadata(path).map_err(failed)?.file_type().is_socket() {
            socket = Some(path.clone());
            continue;
        }
        let mut text = String::new();
        let file = fs::File::open(path).map_err(failed)?;
        file.take(MAX_KEY).read_to_string(&mut text).map_err(failed)?;
        keys.add(&text).map_err(|source| SshFlagError::Key { path: path.clone(), source })?;
    }
    match (socket, keys.count()) {
        (Some(socket), 0) => Ok(SshAgent::Socket(std::path::absolute(&socket).unwrap_or(socket))),
        (Some(_), _) => Err(SshFlagError::Mixed(id.to_owned())),
        (None, _) => Ok(SshAgent::Keys(Arc::new(keys))),
    }
}

/// The host keys that this user and this machine trust.
pub(super) fn known_hosts(home: Option<&Path>) -> Option<String> {
    let own = home.map(|home| home.join(".ssh/known_hosts"));
    let mut known = String::new();
    for path in own.into_iter().chain([PathBuf::from("/etc/ssh/ssh_known_hosts")]) {
        let read =
            fs::File::open(path).and_then(|file| file.take(MAX_KNOWN_HOSTS).read_to_string(&mut known));
        if read.is_ok_and(|length| length > 0) && !known.ends_with('\n') {
            known.push('\n');
        }
    }
    (!known.is_empty()).then_some(known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_error(flags: &[&str], expected: &str) {
        let flags: Vec<String> = flags.iter().map(|flag| (*flag).to_owned()).collect();
        assert_eq!(read(&flags, None).expect_err("is refused").to_string(), expected);
    }

    #[test]
    fn what_is_refused() {
        check_error(&["default"], "invalid empty ssh agent socket: make sure SSH_AUTH_SOCK is set");
        check_error(&["x=/nowhere"], "failed to read `/nowhere`");
        check_error(&["x=/etc/passwd"], "failed to parse /etc/passwd");
        check_error(
            &["x=/tmp/socket,raw=true"],
            "ssh agent \"x\": `raw` is not supported: a build may ask for signatures, and nothing else",
        );
    }

    #[test]
    fn sockets() {
        let folder = tempfile::tempdir().expect("tempdir");
        let path = folder.path().join("agent");
        let _listener = std::os::unix::net::UnixListener::bind(&path).expect("binds");
        let agents = read(&["default".to_owned()], Some(&path)).expect("valid");
        assert!(matches!(&agents["default"], SshAgent::Socket(found) if *found == path));
        let shown = path.display();
        check_error(
            &[&format!("x={shown},{shown}")],
            "failed to convert agent config for ID: \"x\": only single socket allowed",
        );
        check_error(&[&format!("x={shown}"), &format!("x={shown}")], "duplicate agent ID \"x\"");
    }
}
