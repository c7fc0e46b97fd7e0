//! What one layer holds, as its image has it: entries, and what it hides of the layers below.
//!
//! Reads no file's content. Start with [`Store::list_layer`].

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FileType, Mode, open};

use crate::diff::sorted_names;
use crate::view::{MergedEntry, directory_flags, is_whiteout};
use crate::{LayerId, Snapshot, Store, StoreError};

/// One thing a layer says.
#[derive(Debug)]
pub enum LayerItem<'a> {
    /// It has this entry.
    Entry(&'a MergedEntry),
    /// What lies at this path below is gone.
    Whiteout(&'a Path),
    /// What lies in this directory below is gone.
    Opaque(&'a Path),
}

/// A directory that is being listed.
struct Level {
    fd: Arc<std::os::fd::OwnedFd>,
    path: PathBuf,
    names: std::vec::IntoIter<OsString>,
}

impl Store {
    /// Tells `visit` everything a layer says, directories before what is in them, names in byte order.
    ///
    /// # Errors
    /// The store's, or the first of `visit`.
    pub fn list_layer<E: From<StoreError>>(
        &self,
        layer: LayerId,
        visit: &mut dyn FnMut(LayerItem<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let xattrs = self.inner.config.xattrs;
        for root in self.layer_paths(&Snapshot::new(vec![layer]))? {
            let top = open(&root, directory_flags(), Mode::empty())
                .map_err(|error| StoreError::io("open", &root, error))?;
            let mut levels = vec![level(top, &root, PathBuf::new())?];
            while let Some(current) = levels.last_mut() {
                let Some(name) = current.names.next() else {
                    levels.pop();
                    continue;
                };
                let path = current.path.join(&name);
                let entry = MergedEntry::lookup(&current.fd, &name, path.clone())
                    .map_err(|error| StoreError::io("read", root.join(&path), error))?;
                let Some(entry) = entry else { continue };
                if is_whiteout(entry.stat()) {
                    visit(LayerItem::Whiteout(&path))?;
                    continue;
                }
                visit(LayerItem::Entry(&entry))?;
                if entry.file_type() == FileType::Directory {
                    if entry.is_opaque(xattrs)? {
                        visit(LayerItem::Opaque(&path))?;
                    }
                    levels.push(level(entry.open_directory()?, &root, path)?);
                }
            }
        }
        Ok(())
    }
}

fn level(fd: std::os::fd::OwnedFd, root: &Path, path: PathBuf) -> Result<Level, StoreError> {
    let names = sorted_names(&fd).map_err(|error| StoreError::io("read", root.join(&path), error))?;
    Ok(Level { fd: Arc::new(fd), path, names: names.into_iter() })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rustix::fs::{CWD, mknodat};

    use super::*;
    use crate::tests::TestStore;

    #[test]
    fn a_layer_says_what_it_has_and_hides() {
        let test = TestStore::new();
        let layer = test.store.prepare(&Snapshot::scratch()).expect("prepares");
        fs::create_dir_all(layer.upper().join("d/e")).expect("creates");
        fs::write(layer.upper().join("d/e/f"), "x").expect("writes");
        mknodat(CWD, layer.upper().join("gone"), FileType::CharacterDevice, Mode::empty(), 0)
            .expect("whiteouts need no privilege");
        let snapshot = layer.commit().expect("commits");
        let mut said = Vec::new();
        let listed: Result<(), StoreError> =
            test.store.list_layer(snapshot.top().expect("a layer"), &mut |item| {
                said.push(match item {
                    LayerItem::Entry(entry) => format!("+{}", entry.path().display()),
                    LayerItem::Whiteout(path) => format!("-{}", path.display()),
                    LayerItem::Opaque(path) => format!("!{}", path.display()),
                });
                Ok(())
            });
        listed.expect("lists");
        assert_eq!(said, ["+d", "+d/e", "+d/e/f", "-gone"]);
    }
}
