//! Archives a build may restore its cache mounts from, read when the first mount asks.

use std::fmt;
use std::path::Path;

use tokio::sync::OnceCell;

use super::{MountArchive, MountError};
use crate::import::Warn;
use crate::place::Place;

/// The archives of one build, in the order they are asked.
pub struct MountImports {
    sources: Vec<Source>,
    warn: Warn,
}

struct Source {
    name: String,
    place: Place,
    archive: OnceCell<MountArchive>,
}

impl MountImports {
    /// Archives by the names and places of their caches.
    pub fn new(places: Vec<(String, Place)>, warn: Warn) -> Self {
        let source = |(name, place)| Source { name, place, archive: OnceCell::new() };
        Self { sources: places.into_iter().map(source).collect(), warn }
    }

    /// Fills an empty directory with the files of mount `id`; `false` when no archive has it. Trouble is told, and
    /// leaves the directory empty: a cache is never needed.
    pub async fn restore(&self, id: &str, into: &Path) -> bool {
        for source in &self.sources {
            match source.restore(id, into).await {
                Ok(true) => return true,
                Ok(false) => {}
                Err(error) => {
                    (self.warn)(format!("cache mount {id} from {}: {error}", source.name));
                    clear(into);
                }
            }
        }
        false
    }
}

impl Source {
    async fn restore(&self, id: &str, into: &Path) -> Result<bool, MountError> {
        let archive = self.archive.get_or_try_init(|| MountArchive::read(&self.place)).await?;
        archive.restore(&self.place, id, into).await
    }
}

impl fmt::Debug for MountImports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.sources.iter().map(|source| source.name.as_str()).collect();
        f.debug_struct("MountImports").field("sources", &names).finish_non_exhaustive()
    }
}

/// Empties a directory again.
fn clear(directory: &Path) {
    let Ok(entries) = std::fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
        let removed = if is_directory { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
        if let Err(error) = removed {
            tracing::warn!(path = %path.display(), %error, "left of a cache mount that was not restored");
        }
    }
}
