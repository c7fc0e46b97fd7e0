//! OCI layouts of a client: what a build reads of one is brought into a directory of ours, which is a layout, too.
//!
//! Owns which blobs are brought: those of the image for the platforms wanted, no others. Must not know what reads
//! them: documents and layers are read again, and trusted no more, where images of layouts are read. Start with
//! [`ClientLayouts`].

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use futures::{StreamExt as _, TryStreamExt as _, stream};
use stave_llb::{BlobPlace, Definition, Op, SourceIdentifier};
use stave_oci::{Descriptor, Digest, ManifestOrIndex, Platform};
use stave_store::{ScratchDir, Store};
use tokio::sync::OnceCell;

use super::ClientSession;
use super::content::{ClientStore, ContentError};
use crate::failure::Failure;

/// Bytes of a manifest, an index or a config.
const MAX_DOCUMENT: u64 = 16 << 20;
/// Bytes of a layer.
const MAX_LAYER: u64 = 256 << 30;
/// Indexes within indexes.
const MAX_DEPTH: usize = 4;
/// Images of layouts in one build.
const MAX_LAYOUTS: usize = 256;
/// Single blobs of layouts in one build.
const MAX_BLOBS: usize = 4096;
/// Layers on their way at once.
const PARALLEL: usize = 4;

/// A store of the client, an image in it and the platform that is wanted of it; without one, a blob.
type Wish = (String, Digest, Option<Platform>);

/// The layouts of one build's client.
#[derive(Debug)]
pub(crate) struct ClientLayouts {
    session: Arc<ClientSession>,
    store: Store,
    brought: Mutex<HashMap<Wish, Arc<OnceCell<()>>>>,
    directories: Mutex<BTreeMap<String, Arc<ScratchDir>>>,
}

impl ClientLayouts {
    pub(crate) fn new(session: Arc<ClientSession>, store: Store) -> Self {
        Self { session, store, brought: Mutex::default(), directories: Mutex::default() }
    }

    /// Where the layouts lie that were brought so far, by name.
    pub(crate) fn directories(&self) -> BTreeMap<String, PathBuf> {
        let directories = self.directories.lock().unwrap_or_else(PoisonError::into_inner);
        directories.iter().map(|(name, directory)| (name.clone(), directory.path().to_owned())).collect()
    }

    /// Brings all images that a graph takes from layouts.
    pub(crate) async fn bring_for(&self, definition: &Definition) -> Result<(), Failure> {
        for vertex in definition.vertices() {
            let Op::Source(source) = &vertex.op else { continue };
            let (reference, whole) = match &source.identifier {
                SourceIdentifier::OciLayout { reference } => (reference, true),
                SourceIdentifier::Blob { reference, place: BlobPlace::Layout } => (reference, false),
                _ => continue,
            };
            let Some((name, digest)) = reference.rsplit_once('@') else { continue };
            let Ok(digest) = digest.parse() else { continue };
            let store = source.attrs.get("oci.store").map_or(name, String::as_str);
            if whole {
                let platform = vertex.platform.clone().unwrap_or_else(Platform::host);
                self.bring(store, &digest, &platform).await?;
            } else {
                self.once((store.to_owned(), digest, None)).await?;
            }
        }
        Ok(())
    }

    /// Brings what an image for a platform consists of, once.
    pub(crate) async fn bring(
        &self,
        name: &str,
        digest: &Digest,
        platform: &Platform,
    ) -> Result<(), Failure> {
        self.once((name.to_owned(), digest.clone(), Some(platform.clone()))).await
    }

    async fn once(&self, key: Wish) -> Result<(), Failure> {
        let (name, digest, platform) = key.clone();
        let slot = {
            let mut brought = self.brought.lock().unwrap_or_else(PoisonError::into_inner);
            refuse_more(&brought, &key)?;
            Arc::clone(brought.entry(key).or_default())
        };
        let bringing = async {
            let directory = self.directory(&name)?;
            let store = ClientStore::new(Arc::clone(&self.session), format!("oci:{name}"));
            match &platform {
                Some(platform) => bring(&store, &directory, &digest, platform).await?,
                None => bring_blob(&store, &directory, &digest).await?,
            }
            Ok::<_, Failure>(())
        };
        slot.get_or_try_init(|| bringing).await.map(drop)
    }

    fn directory(&self, name: &str) -> Result<Arc<ScratchDir>, Failure> {
        let mut directories = self.directories.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(directory) = directories.get(name) {
            return Ok(Arc::clone(directory));
        }
        let directory = Arc::new(self.store.scratch_dir()?);
        let blobs = directory.path().join("blobs");
        for algorithm in ["sha256", "sha384", "sha512"] {
            std::fs::create_dir_all(blobs.join(algorithm)).map_err(ContentError::File)?;
        }
        directories.insert(name.to_owned(), Arc::clone(&directory));
        Ok(directory)
    }
}

/// Refuses one image or one blob too many. Must be called with what is on its way held.
fn refuse_more(brought: &HashMap<Wish, Arc<OnceCell<()>>>, key: &Wish) -> Result<(), Failure> {
    let (most, what) = match key.2 {
        Some(_) => (MAX_LAYOUTS, "images"),
        None => (MAX_BLOBS, "blobs"),
    };
    let alike = brought.keys().filter(|other| other.2.is_some() == key.2.is_some()).count();
    if alike >= most && !brought.contains_key(key) {
        return Err(Failure::Value(format!("more than {most} {what} of OCI layouts in one build")));
    }
    Ok(())
}

async fn bring(
    store: &ClientStore,
    directory: &ScratchDir,
    digest: &Digest,
    platform: &Platform,
) -> Result<(), ContentError> {
    let path = |digest: &Digest| place_of(directory, digest);
    let mut open = vec![(digest.clone(), 0)];
    let mut layers = Vec::new();
    while let Some((digest, depth)) = open.pop() {
        let document = store.document(&digest, MAX_DOCUMENT).await?;
        put(&path(&digest), &document)?;
        let parsed = ManifestOrIndex::parse(&document, None);
        match parsed.map_err(|error| ContentError::Client(error.to_string()))? {
            ManifestOrIndex::Index(index) if depth < MAX_DEPTH => {
                let chosen = index.manifests.iter().filter(|entry| is_for(entry, platform));
                open.extend(chosen.map(|entry| (entry.digest.clone(), depth + 1)));
            }
            ManifestOrIndex::Index(_) => {}
            ManifestOrIndex::Manifest(manifest) => {
                let config = store.document(&manifest.config.digest, MAX_DOCUMENT).await?;
                put(&path(&manifest.config.digest), &config)?;
                layers.extend(manifest.layers.into_iter().map(|layer| layer.digest));
            }
        }
    }
    layers.sort();
    layers.dedup();
    let fetching =
        layers.into_iter().map(|digest| async move { bring_blob(store, directory, &digest).await });
    stream::iter(fetching).buffer_unordered(PARALLEL).try_collect::<()>().await
}

/// Puts a document that was verified into its place; another image of this layout may be read there.
fn put(path: &Path, document: &[u8]) -> std::io::Result<()> {
    if path.exists() {
        return Ok(());
    }
    let aside = aside(path);
    std::fs::write(&aside, document)?;
    std::fs::rename(&aside, path)
}

/// A name beside a blob's own: what has that is whole.
fn aside(path: &Path) -> PathBuf {
    path.with_extension(format!("{:016x}", fastrand::u64(..)))
}

/// Brings one blob, whatever it holds; one that is there already is not asked for.
async fn bring_blob(
    store: &ClientStore,
    directory: &ScratchDir,
    digest: &Digest,
) -> Result<(), ContentError> {
    let path = place_of(directory, digest);
    if path.exists() {
        return Ok(());
    }
    // Beside its place first: another image of this layout may look for it there.
    let aside = aside(&path);
    store.fetch(digest, MAX_LAYER, &aside).await?;
    std::fs::rename(&aside, &path).map_err(ContentError::File)
}

fn place_of(directory: &ScratchDir, digest: &Digest) -> PathBuf {
    directory.path().join("blobs").join(digest.as_str().replacen(':', "/", 1))
}

/// Whether an entry of an index may be the image for a platform: one that says nothing may be.
fn is_for(entry: &Descriptor, platform: &Platform) -> bool {
    let Some(own) = &entry.platform else { return true };
    own.os == platform.os && own.architecture == platform.architecture
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_and_blobs_are_counted_apart() {
        let wish = |at: usize, platform| (String::new(), Digest::sha256(&at.to_le_bytes()), platform);
        let mut brought = HashMap::new();
        brought.extend((0..MAX_BLOBS).map(|at| (wish(at, None), Arc::default())));
        let image = Some(Platform::new("linux", "amd64", None));
        refuse_more(&brought, &wish(0, image.clone())).expect("the first image");
        refuse_more(&brought, &wish(0, None)).expect("is there already");
        refuse_more(&brought, &wish(MAX_BLOBS, None)).expect_err("one blob too many");
        brought.extend((0..MAX_LAYOUTS).map(|at| (wish(at, image.clone()), Arc::default())));
        refuse_more(&brought, &wish(MAX_LAYOUTS, image)).expect_err("one image too many");
    }

    #[test]
    fn a_document_that_is_there_is_not_touched() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("ab");
        put(&path, b"whole").expect("is written");
        let reader = std::fs::File::open(&path).expect("opens");
        put(&path, b"other").expect("is there");
        assert_eq!(std::io::read_to_string(reader).expect("reads"), "whole");
        assert_eq!(std::fs::read(&path).expect("reads"), b"whole");
        assert_eq!(std::fs::read_dir(folder.path()).expect("lists").count(), 1);
    }
}
