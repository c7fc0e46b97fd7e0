//! Where layers are made: in the store, or in memory where the store's file system cannot hold an overlay's changes.
//! Owns the decision, taken once and only when a layer is begun. Must not know ops. Read [`LayerPlace`] first.

use std::io;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use stave_sandbox::{MountGuard, mount_memory, upper_refusal};
use stave_store::{ActiveLayer, ScratchDir, Snapshot, Store, StoreError};

/// What `statfs` says of an overlay.
const OVERLAY_MAGIC: i64 = 0x794c_7630;

/// The decision.
#[derive(Debug, Default)]
pub(crate) struct LayerPlace(Mutex<Decision>);

#[derive(Debug, Default)]
enum Decision {
    #[default]
    Open,
    Store,
    /// Unmounted before its directory is removed.
    Memory {
        _mount: MountGuard,
        place: ScratchDir,
    },
}

impl LayerPlace {
    /// Begins a layer on a snapshot.
    pub(crate) fn prepare(&self, store: &Store, base: &Snapshot) -> Result<ActiveLayer, StoreError> {
        // Without a base there is no overlay, and where nothing can be mounted neither.
        if base.is_scratch() || !stave_sandbox::has_namespaces() {
            return store.prepare(base);
        }
        let mut decision = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Decision::Open = *decision {
            *decision = decide(store)?;
        }
        let memory = match &*decision {
            Decision::Memory { place, .. } => Some(place.path().to_owned()),
            Decision::Open | Decision::Store => None,
        };
        // A layer may have to wait for room: not all others behind it.
        drop(decision);
        match memory {
            Some(memory) => store.prepare_in(base, &memory),
            None => store.prepare(base),
        }
    }
}

fn decide(store: &Store) -> Result<Decision, StoreError> {
    let place = store.scratch_dir()?;
    let failed =
        |source: io::Error| StoreError::Io { action: "try an overlay in", path: place.path().into(), source };
    if !refuses_layers(place.path()).map_err(failed)? {
        return Ok(Decision::Store);
    }
    let mount = mount_memory(place.path()).map_err(|error| failed(error.source))?;
    tracing::warn!(store = %store.root().display(), "layers are made in memory: the state directory cannot hold them");
    Ok(Decision::Memory { _mount: mount, place })
}

/// Whether an overlay cannot have its upper directory in `directory`. Root of the machine is only told what the kind of
/// file system says; elsewhere it is tried, since more than that may stand against it.
fn refuses_layers(directory: &Path) -> io::Result<bool> {
    let on_overlay = rustix::fs::statfs(directory)?.f_type as i64 == OVERLAY_MAGIC;
    if on_overlay || !stave_store::owner::may_be_recorded() {
        return Ok(on_overlay);
    }
    Ok(upper_refusal(directory)?.is_some())
}
