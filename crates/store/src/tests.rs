//! Tests of the store as a whole: what survives, what is swept, what is collected.

mod cap;
mod clamps;
mod collection;
mod doctor;
mod faults;
mod full_disk;
mod images;
mod kills;
mod lifecycle;
mod open_files;
mod overlay;
mod remains;

use std::fs;
use std::path::Path;

use tempfile::TempDir;

use crate::{LayerId, Snapshot, Store, StoreConfig};

/// A store in a directory of its own.
pub(crate) struct TestStore {
    pub(crate) directory: TempDir,
    pub(crate) store: Store,
}

impl TestStore {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let store = Store::open(directory.path()).expect("a new store");
        Self { directory, store }
    }

    /// In memory where that is possible: for those who open many stores, and each would wait for the disk.
    pub(crate) fn in_memory() -> Self {
        let Ok(directory) = tempfile::tempdir_in("/dev/shm") else { return Self::new() };
        let store = Store::open(directory.path()).expect("a new store");
        Self { directory, store }
    }

    pub(crate) fn root(&self) -> &Path {
        self.directory.path()
    }

    /// Another session of the same store, as another process has it.
    pub(crate) fn other(&self) -> Store {
        Store::open(self.root()).expect("a second session")
    }

    /// A session after a restart of the machine.
    pub(crate) fn after_reboot(&self, boot: &str) -> Store {
        Store::open_in_boot(self.root(), &StoreConfig::for_this_process(), boot).expect("an opening")
    }

    /// A layer with one file on `base`.
    pub(crate) fn layer(&self, base: &Snapshot, name: &str, content: &str) -> Snapshot {
        layer(&self.store, base, name, content)
    }
}

pub(crate) fn layer(store: &Store, base: &Snapshot, name: &str, content: &str) -> Snapshot {
    let active = store.prepare(base).expect("a layer").described(name);
    fs::write(active.upper().join(name), content).expect("a file");
    active.commit().expect("a commit")
}

pub(crate) fn top(snapshot: &Snapshot) -> LayerId {
    snapshot.top().expect("a layer")
}

/// The number of entries in a directory of the store.
pub(crate) fn count(path: &Path) -> usize {
    fs::read_dir(path).expect("a directory").count()
}
