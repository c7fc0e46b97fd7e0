//! What the service's supervisor hears: systemd's protocol of datagrams. Start with [`Supervisor`].

use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};

/// Where the supervisor listens; nowhere when nobody supervises.
#[derive(Debug, Clone, Default)]
pub(crate) struct Supervisor(Option<PathBuf>);

impl Supervisor {
    pub(crate) fn new(socket: Option<PathBuf>) -> Self {
        Self(socket)
    }

    /// Tells how it goes: `READY=1`, `STOPPING=1`, … Nobody who listens is no reason to fail.
    pub(crate) fn tell(&self, state: &str) {
        let Some(socket) = &self.0 else { return };
        if let Err(error) = send(socket, state) {
            tracing::warn!(%error, "the supervisor was not told `{}`", state.escape_debug());
        }
    }
}

fn send(socket: &Path, state: &str) -> std::io::Result<()> {
    let bytes = socket.as_os_str().as_bytes();
    // A name in the abstract namespace.
    let address = match bytes.strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(socket)?,
    };
    UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_supervisor_is_told() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).expect("binds");
        Supervisor::new(Some(path)).tell("READY=1");
        let mut bytes = [0; 64];
        let length = socket.recv(&mut bytes).expect("heard");
        assert_eq!(&bytes[..length], b"READY=1");
        Supervisor::new(Some(folder.path().join("nobody"))).tell("READY=1");
        Supervisor::new(None).tell("READY=1");
    }
}
