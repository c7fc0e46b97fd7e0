//! A directory with an OCI image layout, as BuildKit's clients write local caches.
//!
//! Owns its files: `blobs/`, `index.json` with one entry per tag, the lock other clients take for it, and `.writing`, which
//! whoever sends blobs holds shared until he is done, and whoever removes blobs alone.
//! Blobs appear by rename, so a reader never sees half of one. Start with [`LocalPlace`].

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use rustix::fs::{FlockOperation, flock};
use stave_oci::{Descriptor, Digest, Hasher, Index, MAX_MANIFEST_SIZE, media_type};

use super::{BlobReader, Content, Document, PlaceError, Written};

/// The annotation with a manifest's name in the layout.
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// A layout and the name of the cache in it.
#[derive(Debug, Clone)]
pub struct LocalPlace {
    directory: PathBuf,
    tag: String,
    digest: Option<Digest>,
    /// Locked from the first blob on, by all that are this place under one name or another.
    writing: Arc<OnceLock<File>>,
}

impl LocalPlace {
    /// The cache `tag` in `directory`, or the manifest `digest` when given.
    pub fn new(directory: PathBuf, tag: String, digest: Option<Digest>) -> Self {
        Self { directory, tag, digest, writing: Arc::default() }
    }

    /// The same directory under another name.
    pub(crate) fn named(&self, suffix: &str) -> Self {
        let tag = format!("{}-{suffix}", self.tag);
        Self { directory: self.directory.clone(), tag, digest: None, writing: Arc::clone(&self.writing) }
    }

    pub(super) async fn document(&self) -> Result<Option<Document>, PlaceError> {
        let place = self.clone();
        blocking(move || {
            let (digest, media_type) = match &place.digest {
                Some(digest) => (digest.clone(), None),
                None => match place.index()?.and_then(|index| place.entry(&index)) {
                    Some(entry) => (entry.digest, Some(entry.media_type)),
                    None => return Ok(None),
                },
            };
            let path = place.path(&digest);
            let file = match File::open(&path) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(failed("open", &path, error)),
            };
            let mut bytes = Vec::new();
            file.take(MAX_MANIFEST_SIZE + 1)
                .read_to_end(&mut bytes)
                .map_err(|error| failed("read", &path, error))?;
            let found = digest_of(&bytes, &digest);
            if found != digest {
                return Err(PlaceError::Digest { expected: digest, found });
            }
            Ok(Some(Document { media_type, bytes: bytes.into() }))
        })
        .await
    }

    fn entry(&self, index: &Index) -> Option<Descriptor> {
        let named =
            |entry: &&Descriptor| entry.annotations.get(REF_NAME).is_some_and(|name| *name == self.tag);
        index.manifests.iter().find(named).cloned()
    }

    fn index(&self) -> Result<Option<Index>, PlaceError> {
        let path = self.directory.join("index.json");
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed("open", &path, error)),
        };
        let mut bytes = Vec::new();
        file.take(MAX_MANIFEST_SIZE).read_to_end(&mut bytes).map_err(|error| failed("read", &path, error))?;
        serde_json::from_slice(&bytes).map(Some).map_err(|source| PlaceError::Index { path, source })
    }

    pub(super) async fn blob(&self, digest: &Digest) -> Result<BlobReader, PlaceError> {
        let path = self.path(digest);
        match tokio::fs::File::open(&path).await {
            Ok(file) => Ok(Box::pin(file)),
            Err(error) => Err(failed("open", &path, error)),
        }
    }

    /// Whether a blob is there, and stays until it can be named. One of another length is what a power cut left of it.
    pub(super) async fn has_blob(&self, descriptor: &Descriptor) -> Result<bool, PlaceError> {
        let (place, descriptor) = (self.clone(), descriptor.clone());
        // The lock is waited for while somebody removes what has no name.
        blocking(move || Ok(place.directory.is_dir() && place.keeps(&descriptor))).await
    }

    fn keeps(&self, descriptor: &Descriptor) -> bool {
        if self.begin_writing().is_err() {
            return false;
        }
        let found = fs::metadata(self.path(&descriptor.digest));
        found.is_ok_and(|found| found.is_file() && found.len() == descriptor.size)
    }

    pub(super) async fn put_blob(
        &self,
        descriptor: &Descriptor,
        content: Content,
    ) -> Result<Written, PlaceError> {
        let (place, descriptor) = (self.clone(), descriptor.clone());
        blocking(move || {
            if place.keeps(&descriptor) {
                return Ok(Written::Kept);
            }
            let path = place.path(&descriptor.digest);
            place.write_aside(&path, |out| match content {
                Content::Bytes(bytes) => out.write_all(&bytes),
                Content::File(mut file) => io::copy(&mut file, out).map(drop),
            })?;
            Ok(Written::Sent)
        })
        .await
    }

    pub(super) async fn put_document(&self, kind: &str, bytes: Bytes) -> Result<Digest, PlaceError> {
        let digest = Digest::sha256(&bytes);
        let mut entry = Descriptor::of(kind, &bytes);
        entry.annotations.insert(REF_NAME.to_owned(), self.tag.clone());
        self.put_blob(&entry, Content::Bytes(bytes)).await?;
        let place = self.clone();
        blocking(move || place.update_index(entry)).await?;
        Ok(digest)
    }

    /// Names a manifest, under the lock that other clients take, too.
    fn update_index(&self, entry: Descriptor) -> Result<(), PlaceError> {
        let lock_path = self.directory.join("index.json.lock");
        let lock = File::options().write(true).create(true).truncate(false).open(&lock_path);
        let lock = lock.map_err(|error| failed("open", &lock_path, error))?;
        flock(&lock, FlockOperation::LockExclusive)
            .map_err(|error| failed("lock", &lock_path, error.into()))?;
        let mut index = self.index()?.unwrap_or_else(|| Index {
            schema_version: 2,
            media_type: Some(media_type::OCI_INDEX.to_owned()),
            artifact_type: None,
            manifests: Vec::new(),
            subject: None,
            annotations: std::collections::BTreeMap::new(),
        });
        let is_other = |old: &Descriptor| old.annotations.get(REF_NAME) != entry.annotations.get(REF_NAME);
        index.manifests.retain(is_other);
        index.manifests.push(entry);
        let layout = self.directory.join("oci-layout");
        if !layout.exists() {
            self.write_aside(&layout, |out| out.write_all(br#"{"imageLayoutVersion":"1.0.0"}"#))?;
        }
        let text = serde_json::to_vec(&index).unwrap_or_default();
        self.write_aside(&self.directory.join("index.json"), |out| out.write_all(&text))
    }

    /// From here on nobody takes what has no name yet for rubbish.
    fn begin_writing(&self) -> Result<&File, PlaceError> {
        if let Some(lock) = self.writing.get() {
            return Ok(lock);
        }
        let path = self.directory.join(".writing");
        fs::create_dir_all(&self.directory).map_err(|error| failed("create", &self.directory, error))?;
        let lock = File::options().write(true).create(true).truncate(false).open(&path);
        let lock = lock.map_err(|error| failed("open", &path, error))?;
        flock(&lock, FlockOperation::LockShared).map_err(|error| failed("lock", &path, error.into()))?;
        Ok(self.writing.get_or_init(|| lock))
    }

    /// Removes blobs that no name in the layout leads to, unless somebody else is writing some: the next one will.
    /// Ends the writing of this place.
    ///
    /// # Errors
    /// [`PlaceError`].
    pub async fn remove_unnamed(&self) -> Result<(), PlaceError> {
        let place = self.clone();
        blocking(move || {
            let lock = place.begin_writing()?;
            if flock(lock, FlockOperation::NonBlockingLockExclusive).is_err() {
                return Ok(());
            }
            let kept = place.reachable()?;
            let directory = place.directory.join("blobs").join("sha256");
            let entries = fs::read_dir(&directory).map_err(|error| failed("list", &directory, error))?;
            for entry in entries {
                let entry = entry.map_err(|error| failed("list", &directory, error))?;
                // What is no digest is being written by somebody.
                let name = format!("sha256:{}", entry.file_name().to_string_lossy());
                if name.parse::<Digest>().is_ok_and(|digest| !kept.contains(&digest)) {
                    fs::remove_file(entry.path()).map_err(|error| failed("remove", &entry.path(), error))?;
                }
            }
            flock(lock, FlockOperation::Unlock).ok();
            Ok(())
        })
        .await
    }

    /// Every digest that a document of the layout names, documents in documents included.
    fn reachable(&self) -> Result<HashSet<Digest>, PlaceError> {
        let mut kept = HashSet::new();
        let mut open: Vec<Digest> = self
            .index()?
            .map(|index| index.manifests)
            .unwrap_or_default()
            .into_iter()
            .map(|entry| entry.digest)
            .collect();
        while let Some(digest) = open.pop() {
            if !kept.insert(digest.clone()) {
                continue;
            }
            let path = self.path(&digest);
            // Layers are no documents, and larger than any.
            let is_small = fs::metadata(&path).is_ok_and(|meta| meta.len() <= MAX_MANIFEST_SIZE);
            let Some(text) = is_small.then(|| fs::read(&path).ok()).flatten() else { continue };
            if let Ok(document) = serde_json::from_slice(&text) {
                named(&document, &mut open);
            }
        }
        Ok(kept)
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.directory.join("blobs").join(digest.as_str().replacen(':', "/", 1))
    }

    fn write_aside(
        &self,
        path: &Path,
        write: impl FnOnce(&mut File) -> io::Result<()>,
    ) -> Result<(), PlaceError> {
        let parent = path.parent().unwrap_or(&self.directory);
        fs::create_dir_all(parent).map_err(|error| failed("create", parent, error))?;
        let aside = parent.join(format!(".{}.{}", std::process::id(), unique()));
        let written = File::create_new(&aside)
            .and_then(|mut file| write(&mut file))
            .and_then(|()| fs::rename(&aside, path));
        if written.is_err() {
            fs::remove_file(&aside).ok();
        }
        written.map_err(|error| failed("write", path, error))
    }
}

/// The digests that descriptors in a document name.
fn named(document: &serde_json::Value, found: &mut Vec<Digest>) {
    match document {
        serde_json::Value::Object(fields) => {
            let digest = fields.get("digest").and_then(serde_json::Value::as_str);
            found.extend(digest.and_then(|text| text.parse().ok()));
            fields.values().for_each(|value| named(value, found));
        }
        serde_json::Value::Array(items) => items.iter().for_each(|item| named(item, found)),
        _ => {}
    }
}

/// A number that no other call of this process gives.
fn unique() -> u64 {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

fn digest_of(bytes: &[u8], like: &Digest) -> Digest {
    let mut hasher = Hasher::new(like.algorithm());
    hasher.update(bytes);
    hasher.finish()
}

fn failed(action: &'static str, path: &Path, source: io::Error) -> PlaceError {
    PlaceError::File { action, path: path.to_owned(), source }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, PlaceError> + Send + 'static,
) -> Result<T, PlaceError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(join) => std::panic::resume_unwind(join.into_panic()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_a_power_cut_left_of_a_blob_is_no_blob() {
        let place = tempfile::tempdir().expect("a directory");
        let local = LocalPlace::new(place.path().to_owned(), "latest".to_owned(), None);
        let (blob, content) = (Descriptor::of("application/x", b"content"), Bytes::from_static(b"content"));
        let put = || local.put_blob(&blob, Content::Bytes(content.clone()));
        assert_eq!(put().await.expect("writes"), Written::Sent);
        assert_eq!(put().await.expect("looks"), Written::Kept);
        fs::write(local.path(&blob.digest), "").expect("cuts");
        assert!(!local.keeps(&blob));
        assert_eq!(put().await.expect("writes"), Written::Sent);
        assert_eq!(fs::read(local.path(&blob.digest)).expect("reads"), content);
    }

    #[tokio::test]
    async fn blobs_that_somebody_is_about_to_name_are_no_rubbish() {
        let place = tempfile::tempdir().expect("a directory");
        let local = |tag: &str| LocalPlace::new(place.path().to_owned(), tag.to_owned(), None);
        let (one, other) = (local("one"), local("other"));
        let blob = Descriptor::of("application/x", b"content");
        let content = || Content::Bytes(Bytes::from_static(b"content"));
        one.put_blob(&blob, content()).await.expect("writes");
        other.put_document("application/y", Bytes::from_static(b"{}")).await.expect("writes");
        other.remove_unnamed().await.expect("works");
        assert!(one.keeps(&blob));
        drop(one);
        other.remove_unnamed().await.expect("works");
        assert!(!other.keeps(&blob));
        // Its own, which has a name.
        assert!(other.keeps(&Descriptor::of("application/y", b"{}")));
    }

    #[tokio::test]
    async fn a_question_waits_for_who_removes_and_holds_nobody_else_up() {
        let place = tempfile::tempdir().expect("a directory");
        let local = LocalPlace::new(place.path().join("cache"), "latest".to_owned(), None);
        let blob = Descriptor::of("application/x", b"content");
        assert!(!local.has_blob(&blob).await.expect("asks"));
        assert!(!place.path().join("cache").exists(), "a question makes nothing");
        fs::create_dir(place.path().join("cache")).expect("made");
        let removing = File::create(place.path().join("cache/.writing")).expect("made");
        flock(&removing, FlockOperation::LockExclusive).expect("is free");
        let free = async {
            flock(&removing, FlockOperation::Unlock).expect("was held");
        };
        // One thread runs both.
        let (found, ()) = tokio::join!(local.has_blob(&blob), free);
        assert!(!found.expect("asks"));
    }
}
