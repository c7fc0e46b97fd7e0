//! What every process gets around its root: the overlay, the network files, the network itself.
//! Owns what of the host a step may see. Must not know LLB. Read [`overlay_root`] and [`network_mounts`] first.

use std::path::PathBuf;

use stave_sandbox::{MountSpec, OverlayRoot, RootFs};
use stave_store::{ActiveLayer, StoreError};

use crate::exec::network_files::{HostEntry, hosts};
use crate::networks::{Connected, NetworkError};
use crate::worker::Shared;

/// Why a root could not be prepared.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The names a process resolves without a name server.
#[derive(Debug, Clone, Default)]
pub(crate) struct Names {
    pub hostname: String,
    pub extra: Vec<HostEntry>,
}

/// The root of a process: a layer being made, over its base.
pub(crate) fn overlay_root(shared: &Shared, layer: &ActiveLayer) -> Result<RootFs, StoreError> {
    Ok(RootFs::Overlay(OverlayRoot {
        lower: layer.lowers().to_vec(),
        upper: layer.upper().to_owned(),
        work: layer.work().to_owned(),
        // The store syncs what it commits.
        volatile: true,
        stubs: Some(shared.scratch.stubs()?),
    }))
}

/// `/etc/hosts` and `/etc/resolv.conf`, in memory, so that neither ever becomes part of an image.
pub(crate) fn network_mounts(names: &Names, network: &Connected) -> Result<Vec<MountSpec>, NetworkError> {
    let hosts = hosts(&names.hostname, &network.entries(&names.extra)?);
    let file = |target: &str, contents: String| MountSpec::File {
        target: PathBuf::from(target),
        contents: contents.into_bytes(),
        mode: 0o644,
        uid: 0,
        gid: 0,
    };
    Ok(vec![file("/etc/resolv.conf", network.resolv.clone()), file("/etc/hosts", hosts)])
}
