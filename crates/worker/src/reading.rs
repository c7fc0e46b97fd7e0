//! Single files of results, for whoever has to read one before it goes on: a Dockerfile in a repository.
//! Must not know what they are for. Read [`LocalWorker::read_file`] first.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use stave_store::Snapshot;

use crate::root::{At as _, IoAt, absent};
use crate::source::image::blocking;
use crate::worker::{LocalWorker, MountError};

/// Why a file of a result could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The result could not be looked at.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// It is no file, or the operating system refused.
    #[error(transparent)]
    Io(#[from] IoAt),
    /// It is larger than it may be.
    #[error("`{}` is larger than {limit} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The most it may be.
        limit: u64,
    },
}

/// How much of a file is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// All of it, which may be at most so many bytes.
    Whole(u64),
    /// Its first bytes.
    Head(u64),
}

impl<E> LocalWorker<E> {
    /// A file of a result; `None` when there is no such file. Links lead nowhere out of the result.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn read_file(
        &self,
        snapshot: &Snapshot,
        path: &Path,
        extent: Extent,
    ) -> Result<Option<Vec<u8>>, ReadError> {
        let (shared, snapshot, path) = (Arc::clone(&self.shared), snapshot.clone(), path.to_owned());
        blocking(move || {
            let view = shared.view(&snapshot)?;
            let most = match extent {
                Extent::Whole(limit) => limit.saturating_add(1),
                Extent::Head(length) => length,
            };
            match view.read_file(&path, most) {
                Ok(bytes) => match extent {
                    Extent::Whole(limit) if bytes.len() as u64 > limit => {
                        Err(ReadError::TooLarge { path, limit })
                    }
                    _ => Ok(Some(bytes)),
                },
                Err(error) if absent(&error) => Ok(None),
                Err(error) => Ok(Err(error).at("reading", &path)?),
            }
        })
        .await
    }

    /// The names in a directory of a result, sorted; none when there is no such directory.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn list(&self, snapshot: &Snapshot, path: &Path) -> Result<Vec<String>, ReadError> {
        let (shared, snapshot, path) = (Arc::clone(&self.shared), snapshot.clone(), path.to_owned());
        blocking(move || {
            let view = shared.view(&snapshot)?;
            match view.list(&path) {
                Ok(names) => Ok(names.iter().map(|name| name.to_string_lossy().into_owned()).collect()),
                Err(error) if absent(&error) => Ok(Vec::new()),
                Err(error) => Ok(Err(error).at("listing", &path)?),
            }
        })
        .await
    }
}
