//! A process's own directory for what is empty or passing: made for the first step that needs it.
//!
//! Most builds run nothing and need none. Start with [`Scratch`].

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use stave_store::{ScratchDir, Store, StoreError};

/// Where mount-point stubs go.
const STUBS: &str = "stubs";
/// Nothing is ever put here.
const EMPTY: &str = "empty";

/// The directory, once it is there. It goes with this value.
#[derive(Debug)]
pub(crate) struct Scratch {
    store: Store,
    made: Mutex<Option<ScratchDir>>,
}

impl Scratch {
    pub(crate) fn new(store: &Store) -> Self {
        Self { store: store.clone(), made: Mutex::default() }
    }

    /// Where mount-point stubs go.
    pub(crate) fn stubs(&self) -> Result<PathBuf, StoreError> {
        self.place(STUBS)
    }

    /// A directory with nothing in it.
    pub(crate) fn empty(&self) -> Result<PathBuf, StoreError> {
        self.place(EMPTY)
    }

    /// A name in the directory.
    pub(crate) fn place(&self, name: &str) -> Result<PathBuf, StoreError> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(directory) = &*made {
            return Ok(directory.path().join(name));
        }
        let directory = self.store.scratch_dir()?;
        for name in [STUBS, EMPTY] {
            let path = directory.path().join(name);
            std::fs::create_dir(&path).map_err(|source| StoreError::Io { action: "create", path, source })?;
        }
        Ok(made.insert(directory).path().join(name))
    }
}
