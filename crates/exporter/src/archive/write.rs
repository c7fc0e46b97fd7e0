//! Writing an archive of images: an OCI image layout, and beside it docker's `manifest.json`.
//!
//! Owns the order of entries (sorted, as containerd's writer has it), so that equal images give equal
//! archives. Must not know how blobs are made.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::FlockOperation;
use rustix::io::Errno;
use stave_oci::{Digest, Index, Reference};
use stave_store::Store;

use crate::blob;
use crate::document::{self, CONTAINERD_NAME, DockerArchiveEntry, IndexEntry, REF_NAME};
use crate::error::ExportErrorKind;
use crate::exporter::{ArchiveLayout, Context};
use crate::output;
use crate::prepare::{LayerContent, PreparedImage, PreparedSet};
use crate::spec::{ArchiveDestination, Destination};
use crate::tar_writer::TarWriter;

/// The largest `index.json` that another image is added to, in bytes.
const MAX_INDEX: u64 = 4 << 20;

/// Where a blob's bytes are.
#[derive(Clone, Copy)]
enum Blob<'a> {
    Bytes(&'a [u8]),
    /// The store's, or the config of an image there.
    Kept(&'a Digest),
    Layer {
        image: &'a PreparedImage,
        index: usize,
    },
}

/// Everything in an archive, by digest so that shared layers are written once.
struct Content<'a> {
    blobs: BTreeMap<&'a Digest, (u64, Blob<'a>)>,
    index: Index,
    /// Docker's `manifest.json`, where the layout has one.
    docker: Option<Vec<u8>>,
}

/// Writes `images` to `dest`. Returns the number of bytes.
pub(crate) fn write(
    context: &Context,
    sets: &[PreparedSet],
    layout: ArchiveLayout,
    annotations: &BTreeMap<String, String>,
    dest: &ArchiveDestination,
) -> Result<u64, ExportErrorKind> {
    let content = content(sets, layout, annotations);
    match dest {
        ArchiveDestination::Tar(dest) => {
            output::write(context, dest, |out| tar(&context.store, &content, out))
        }
        ArchiveDestination::Directory(path) => directory(context, content, path),
    }
}

/// Writes docker's archive of one image to a reader that has the layers of the `omitted` digests.
pub(crate) fn stream(
    context: &Context,
    set: &PreparedSet,
    omitted: &HashSet<Digest>,
    out: &mut dyn Write,
) -> Result<(), ExportErrorKind> {
    let mut content = content(std::slice::from_ref(set), ArchiveLayout::Docker, &BTreeMap::new());
    content.blobs.retain(|digest, _| !omitted.contains(digest));
    tar(&context.store, &content, &mut output::Counted::new(out, &context.cancel))
}

fn content<'a>(
    sets: &'a [PreparedSet],
    layout: ArchiveLayout,
    annotations: &BTreeMap<String, String>,
) -> Content<'a> {
    let mut blobs = BTreeMap::new();
    let mut entries = Vec::new();
    for set in sets {
        for image in &set.images {
            let own = [&image.documents.config, &image.documents.manifest].into_iter();
            let attested = image.attestation.iter();
            let attested = attested.flat_map(|found| found.blobs().chain([&found.manifest]));
            for document in own.chain(attested) {
                let descriptor = &document.descriptor;
                blobs.insert(&descriptor.digest, (descriptor.size, Blob::Bytes(&document.bytes)));
            }
            for (index, layer) in image.layers.iter().enumerate() {
                let blob = Blob::Layer { image, index };
                blobs.insert(&layer.descriptor.digest, (layer.descriptor.size, blob));
            }
        }
        if let Some(index) = &set.index {
            let descriptor = &index.descriptor;
            blobs.insert(&descriptor.digest, (descriptor.size, Blob::Bytes(&index.bytes)));
        }
        for document in set.kept.iter().flat_map(|kept| &kept.documents) {
            let size = document.bytes.len() as u64;
            blobs.insert(&document.digest, (size, Blob::Bytes(&document.bytes)));
        }
        for blob in set.kept.iter().flat_map(|kept| &kept.blobs) {
            blobs.insert(&blob.digest, (blob.size, Blob::Kept(&blob.digest)));
        }
        entries.push(IndexEntry {
            top: set.top.clone(),
            created: set.images.first().and_then(|image| image.created.as_deref()),
            names: &set.names,
        });
    }
    let docker = (layout == ArchiveLayout::Docker).then(|| {
        let images =
            sets.iter().flat_map(|set| set.images.iter().map(|image| docker_entry(image, &set.names)));
        document::json(&images.collect::<Vec<_>>())
    });
    Content { blobs, index: document::index(&entries, annotations), docker }
}

fn docker_entry(image: &PreparedImage, names: &[Reference]) -> DockerArchiveEntry {
    let tags: Vec<_> = names.iter().filter(|name| name.tag().is_some()).map(Reference::familiar).collect();
    DockerArchiveEntry {
        config: document::blob_path(&image.documents.config.descriptor.digest),
        repo_tags: (!tags.is_empty()).then_some(tags),
        layers: Some(
            image.layers.iter().map(|layer| document::blob_path(&layer.descriptor.digest)).collect(),
        ),
    }
}

fn tar(store: &Store, content: &Content<'_>, out: &mut dyn Write) -> Result<(), ExportErrorKind> {
    let mut tar = TarWriter::new(out);
    tar.directory("blobs/")?;
    let mut algorithm = String::new();
    for (digest, (size, blob)) in &content.blobs {
        let path = document::blob_path(digest);
        let directory = path.rsplit_once('/').map_or("blobs", |(directory, _)| directory);
        if directory != algorithm {
            directory.clone_into(&mut algorithm);
            tar.directory(&format!("{directory}/"))?;
        }
        tar.file_with(&path, *size, |out| write_blob(store, *blob, out))?;
    }
    tar.bytes("index.json", &document::json(&content.index))?;
    if let Some(docker) = &content.docker {
        tar.bytes("manifest.json", docker)?;
    }
    tar.bytes("oci-layout", document::OCI_LAYOUT)?;
    tar.finish()?;
    Ok(())
}

fn write_blob(store: &Store, blob: Blob<'_>, out: &mut dyn Write) -> Result<(), ExportErrorKind> {
    match blob {
        Blob::Bytes(bytes) => Ok(out.write_all(bytes)?),
        Blob::Kept(digest) => match (store.open_blob(digest)?, store.image_by_id(digest)?) {
            (Some(mut file), _) => Ok(io::copy(&mut file, out).map(drop)?),
            (None, Some(image)) => Ok(out.write_all(&image.config)?),
            (None, None) => Err(ExportErrorKind::BlobMissing(digest.clone())),
        },
        Blob::Layer { image, index } => {
            let layer = &image.layers[index];
            let digest = &layer.descriptor.digest;
            match &layer.content {
                LayerContent::Plain(source) => blob::write_plain(store, &source.0, &source.1, out),
                LayerContent::Blob => {
                    let file = store.open_blob(digest)?;
                    let mut file = file.ok_or_else(|| ExportErrorKind::BlobMissing(digest.clone()))?;
                    io::copy(&mut file, out)?;
                    Ok(())
                }
            }
        }
    }
}

fn directory(context: &Context, mut content: Content<'_>, root: &Path) -> Result<u64, ExportErrorKind> {
    let mut total = 0;
    let index_path = root.join("index.json");
    create_parent(&index_path)?;
    // Who removes blobs without a name waits for those that get theirs last.
    let _writing = locked(&root.join(".writing"), FlockOperation::LockShared)?;
    for (digest, (size, blob)) in &content.blobs {
        total += size;
        let path = root.join(document::blob_path(digest));
        create_parent(&path)?;
        // Blobs are named by what they hold: one of the right size that is there is the same.
        if std::fs::symlink_metadata(&path).is_ok_and(|found| found.is_file() && found.size() == *size) {
            continue;
        }
        put(context, &path, |out| write_blob(&context.store, *blob, out))?;
    }
    // Somebody else may add to it at the same time: what is read must still be there when it is replaced.
    let _alone = locked(&root.join("index.json.lock"), FlockOperation::LockExclusive)?;
    merge_index(&mut content.index, &index_path)?;
    put(context, &index_path, |out| Ok(out.write_all(&document::json(&content.index))?))?;
    if let Some(docker) = &content.docker {
        put(context, &root.join("manifest.json"), |out| Ok(out.write_all(docker)?))?;
    }
    put(context, &root.join("oci-layout"), |out| Ok(out.write_all(document::OCI_LAYOUT)?))?;
    Ok(total)
}

fn put(
    context: &Context,
    path: &Path,
    produce: impl FnOnce(&mut dyn Write) -> Result<(), ExportErrorKind>,
) -> Result<u64, ExportErrorKind> {
    output::write(context, &Destination::File(path.to_owned()), produce)
}

fn create_parent(path: &Path) -> Result<(), ExportErrorKind> {
    let parent = path.parent().unwrap_or(path);
    std::fs::create_dir_all(parent).map_err(|source| ExportErrorKind::Io {
        action: "create",
        path: parent.to_owned(),
        source,
    })
}

/// A lock of the layout, held until it is dropped: local caches in the same directory take the same ones, and BuildKit's
/// clients that of the index.
fn locked(path: &Path, how: FlockOperation) -> Result<File, ExportErrorKind> {
    let failed = |source| ExportErrorKind::Io { action: "lock", path: path.to_owned(), source };
    let file = File::options().write(true).create(true).truncate(false).open(path).map_err(failed)?;
    match rustix::fs::flock(&file, how) {
        // A file system without locks is used all the same.
        Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOLCK | Errno::BADF) => Ok(file),
        Err(error) => Err(failed(error.into())),
    }
}

/// Adds the images that the directory's index has under other names.
fn merge_index(index: &mut Index, path: &Path) -> Result<(), ExportErrorKind> {
    let unreadable = |source| ExportErrorKind::Io { action: "read", path: path.to_owned(), source };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(unreadable(error)),
    };
    let mut bytes = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(file, MAX_INDEX), &mut bytes).map_err(unreadable)?;
    let found: Index = serde_json::from_slice(&bytes).map_err(|error| unreadable(error.into()))?;
    let name = |annotations: &BTreeMap<String, String>| {
        annotations.get(CONTAINERD_NAME).or_else(|| annotations.get(REF_NAME)).cloned()
    };
    let added = index.manifests.len();
    for other in found.manifests {
        let replaced = index.manifests[..added].iter().any(|new| {
            // An image may stand there under several names; without one, once.
            match name(&other.annotations) {
                Some(known) => name(&new.annotations) == Some(known),
                None => new.digest == other.digest,
            }
        });
        if !replaced {
            index.manifests.push(other);
        }
    }
    Ok(())
}
