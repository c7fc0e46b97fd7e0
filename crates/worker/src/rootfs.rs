//! What every process gets around its root: the overlay, the network files, the network itself.
//! Owns what of the host a step may see. Must not know LLB. Read [`overlay_root`] and [`network_mounts`] first.

use std::io::Read as _;
use std::path::PathBuf;

use stave_sandbox::{MountSpec, Network, OverlayRoot, RootFs};
use stave_store::{ActiveLayer, StoreError};

use crate::exec::network_files::{HostEntry, RESOLV_LIMIT, hosts, resolv_conf, with_server};
use crate::session::StepNetwork;
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
pub(crate) fn overlay_root(shared: &Shared, layer: &ActiveLayer) -> RootFs {
    RootFs::Overlay(OverlayRoot {
        lower: layer.lowers().to_vec(),
        upper: layer.upper().to_owned(),
        work: layer.work().to_owned(),
        // The store syncs what it commits.
        volatile: true,
        stubs: Some(shared.stubs()),
    })
}

/// `/etc/hosts` and `/etc/resolv.conf`, in memory, so that neither ever becomes part of an image.
pub(crate) fn network_mounts(names: &Names, network: StepNetwork) -> Vec<MountSpec> {
    // What cannot be read is as good as absent: a step without name servers says so itself.
    let mut host = Vec::new();
    if let Ok(file) = std::fs::File::open("/etc/resolv.conf")
        && file.take(RESOLV_LIMIT).read_to_end(&mut host).is_err()
    {
        host.clear();
    }
    let host = String::from_utf8_lossy(&host);
    let resolv = match network {
        StepNetwork::User => with_server(&host, stave_sandbox::USER_NETWORK_RESOLVER),
        StepNetwork::Host | StepNetwork::None => resolv_conf(&host, network == StepNetwork::Host),
    };
    let hosts = hosts(&names.hostname, &names.extra);
    let file = |target: &str, contents: String| MountSpec::File {
        target: PathBuf::from(target),
        contents: contents.into_bytes(),
        mode: 0o644,
        uid: 0,
        gid: 0,
    };
    vec![file("/etc/resolv.conf", resolv), file("/etc/hosts", hosts)]
}

/// The sandbox's network for a step's.
pub(crate) fn network(network: StepNetwork) -> Network {
    match network {
        StepNetwork::Host => Network::Host,
        StepNetwork::None => Network::None,
        StepNetwork::User => Network::User,
    }
}
