//! Saving cache mounts: content leaves whenever somebody has a mount at hand, and what names it last of all.
//!
//! Owns the order: packs first, then trees, then the index, merged with what another writer has put there meanwhile.
//! Must not know when mounts are at hand. Start with [`Saving`].

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;
use stave_oci::Descriptor;

use super::{MountArchive, MountEntry, MountError, SUFFIX, Saved, TREE, Tree, blocking, chunk, tree};
use crate::place::{Content, Place};

/// Packs waiting to be sent.
const PACK_QUEUE: usize = 2;

/// Mounts on their way to a place. Until [`Self::finish`] nobody finds them there.
#[derive(Debug)]
pub struct Saving {
    place: Place,
    archive: MountArchive,
    /// Bounds the bytes of one mount's files; those changed longest ago stay behind.
    max_size: Option<u64>,
    trees: BTreeMap<String, Tree>,
    saved: Saved,
}

impl Saving {
    /// Begins, with what the place has already.
    ///
    /// # Errors
    /// [`MountError`].
    pub async fn begin(place: &Place, max_size: Option<u64>) -> Result<Self, MountError> {
        let archive = MountArchive::read(place).await?;
        let (trees, saved) = (BTreeMap::new(), Saved::default());
        Ok(Self { place: place.clone(), archive, max_size, trees, saved })
    }

    /// Sends what is new in a mount. May be asked again when it has changed: only what changed is read and sent then.
    ///
    /// # Errors
    /// [`MountError`].
    pub async fn take(&mut self, id: &str, directory: &Path) -> Result<(), MountError> {
        let companion = self.place.companion(SUFFIX);
        let old = match self.trees.remove(id) {
            Some(tree) => tree,
            None => self.archive.tree(&self.place, id).await.unwrap_or_default().unwrap_or_default(),
        };
        let known = self.archive.chunks();
        let (directory, limit) = (directory.to_owned(), self.max_size);
        // Packs leave while the walk goes on, and it waits for them: memory stays bounded.
        let (sender, mut packs) = tokio::sync::mpsc::channel(PACK_QUEUE);
        let emit = move |pack| sender.blocking_send(pack).is_ok();
        let scanning =
            tokio::spawn(blocking(move || tree::scan(&directory, &old, &known, limit, Box::new(emit))));
        while let Some(pack) = packs.recv().await {
            self.saved.sent += self.archive.send(&companion, pack).await?;
        }
        let scanned = match scanning.await {
            Ok(scanned) => scanned?,
            Err(join) => std::panic::resume_unwind(join.into_panic()),
        };
        self.saved.read += scanned.read;
        self.trees.insert(id.to_owned(), scanned.tree);
        Ok(())
    }

    /// Writes what names the mounts that were taken. `now` is RFC 3339.
    ///
    /// # Errors
    /// [`MountError`].
    pub async fn finish(self, now: &str) -> Result<Saved, MountError> {
        let Self { place, mut archive, max_size, mut trees, mut saved } = self;
        let companion = place.companion(SUFFIX);
        // Another writer may have been faster: what it wrote is merged, not lost.
        let latest = MountArchive::read(&place).await?;
        if latest.manifest != archive.manifest {
            for (id, tree) in &mut trees {
                if let Ok(Some(theirs)) = latest.tree(&place, id).await {
                    tree.merge(theirs);
                    tree.limit(max_size);
                }
            }
            archive.adopt(latest);
        }
        for (id, tree) in trees {
            saved.size += tree.size();
            let (size, files) = (tree.size(), tree.entries.len() as u64);
            let bytes = Bytes::from(chunk::pack(&serde_json::to_vec(&tree)?));
            let blob = Descriptor::of(TREE, &bytes);
            companion.put_blob(&blob, Content::Bytes(bytes)).await?;
            let entry = MountEntry { tree: blob.digest.clone(), size, files, saved_at: now.to_owned() };
            archive.blobs.insert(blob.digest.clone(), blob);
            archive.index.mounts.insert(id, entry);
        }
        archive.drop_unused(&place).await;
        archive.write(&companion).await?;
        Ok(saved)
    }
}
