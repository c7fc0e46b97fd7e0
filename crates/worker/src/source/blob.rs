//! Single blobs as sources: `docker-image+blob://` and `oci-layout+blob://`. What a blob holds does not matter; it becomes
//! one file of a layer of its own.
//! Owns what the attributes mean and where the bytes come from. Must not know graphs. Read [`BlobSource`] first.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use stave_llb::{BlobPlace, SourceOp};
use stave_oci::{Digest, Hasher, Reference};
use stave_registry::ErrorKind;
use stave_solver::JobContext;
use stave_store::{Snapshot, StoreError};
use tokio::io::{AsyncRead, AsyncReadExt as _};

use super::SourceError;
use super::attributes::{file_name, number};
use super::image::blocking;
use super::layout::{LayoutError, OciLayout};
use crate::file::place::Stamp;
use crate::root::{At as _, RootDir};
use crate::session::Session;
use crate::worker::Shared;

/// Mode when the definition gives none.
const DEFAULT_MODE: u32 = 0o600;

/// Bytes of one blob.
const SIZE_LIMIT: u64 = 256 << 30;

/// Bytes copied at once.
const BUFFER: usize = 256 << 10;

/// Which blob, and how its file is to look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BlobSource {
    from: From,
    digest: Digest,
    filename: String,
    mode: u32,
    owner: (u32, u32),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum From {
    Repository(Reference),
    Layout { reference: String, store: String },
}

/// Why the bytes of a blob were not taken.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// They broke off.
    #[error("it broke off")]
    Read(#[source] std::io::Error),
    /// The file could not be written.
    #[error("keeping the file")]
    Write(#[source] std::io::Error),
    /// It does not fit into the store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// More bytes than allowed.
    #[error("more than {SIZE_LIMIT} bytes")]
    TooLarge,
    /// More or fewer bytes than announced.
    #[error("it does not have the {announced} bytes that were announced")]
    Size {
        /// How many there should be.
        announced: u64,
    },
    /// Another content than its name says.
    #[error("it does not match its digest")]
    Mismatch,
}

/// The bytes of a blob, and how many they should be.
type Content = (Box<dyn AsyncRead + Send + Unpin>, u64);

impl BlobSource {
    /// Reads an identifier behind its scheme, and the attributes `http.filename`, `http.perm`, `http.uid`, `http.gid` and
    /// `oci.store`.
    pub(crate) fn new(reference: &str, place: BlobPlace, op: &SourceOp) -> Result<Self, SourceError> {
        let malformed = || SourceError::BlobReference(reference.to_owned());
        let (_, digest) = reference.rsplit_once('@').ok_or_else(malformed)?;
        let digest: Digest = digest.parse().map_err(|_| malformed())?;
        let from = match place {
            BlobPlace::Registry => From::Repository(reference.parse().map_err(|_| malformed())?),
            BlobPlace::Layout => {
                let store = op.attrs.get("oci.store").filter(|store| !store.is_empty());
                let store = store.ok_or(SourceError::NoStore)?.clone();
                From::Layout { reference: reference.to_owned(), store }
            }
        };
        let number = |name: &str| match op.attrs.get(name) {
            None => Ok(0),
            Some(value) => number(value)
                .ok_or_else(|| SourceError::Attribute { name: name.to_owned(), value: value.clone() }),
        };
        let mode = match number("http.perm")? & 0o777 {
            0 => DEFAULT_MODE,
            mode => mode,
        };
        let filename =
            op.attrs.get("http.filename").map_or_else(|| digest.hex().to_owned(), |name| file_name(name));
        Ok(Self { from, digest, filename, mode, owner: (number("http.uid")?, number("http.gid")?) })
    }

    /// Brings the blob into a layer.
    pub(crate) async fn fetch(
        &self,
        shared: &Arc<Shared>,
        cx: &JobContext<Session>,
    ) -> Result<Snapshot, SourceError> {
        let bringing = async {
            let content = self.open(shared, cx).await?;
            self.keep(content, shared, cx).await
        };
        tokio::select! {
            kept = bringing => kept,
            () = cx.cancel.cancelled() => Err(SourceError::Cancelled),
        }
    }

    async fn open(&self, shared: &Arc<Shared>, cx: &JobContext<Session>) -> Result<Content, SourceError> {
        match &self.from {
            From::Repository(name) => self.in_repository(name, shared, cx).await,
            From::Layout { reference, store } => {
                let Some(directory) = cx.session.layouts.get(store).cloned() else {
                    return Err(SourceError::UnknownLayout(store.clone()));
                };
                let (digest, image) = (self.digest.clone(), reference.clone());
                let opened = move || {
                    let opened = OciLayout::open(&directory).and_then(|layout| layout.open_blob(&digest));
                    let failed = |source: LayoutError| SourceError::Layout {
                        image,
                        directory,
                        source: Box::new(source),
                    };
                    opened.map_err(failed)
                };
                let (file, size) = blocking(opened).await?;
                Ok((Box::new(tokio::fs::File::from_std(file)), size))
            }
        }
    }

    /// Whoever has the blob here already asks the repository all the same: it decides who may have it.
    async fn in_repository(
        &self,
        name: &Reference,
        shared: &Arc<Shared>,
        cx: &JobContext<Session>,
    ) -> Result<Content, SourceError> {
        let failed = |source| SourceError::Registry { image: name.clone(), source: Box::new(source) };
        let client = &cx.session.registry;
        let blob = match client.find_blob(name, &self.digest).await {
            Ok(blob) => blob,
            // Manifests have a place of their own.
            Err(error) if matches!(*error.kind, ErrorKind::NotFound) => {
                let Ok(found) = client.fetch_manifest(&name.pinned(self.digest.clone())).await else {
                    return Err(failed(error));
                };
                let size = found.bytes.len() as u64;
                return Ok((Box::new(std::io::Cursor::new(found.bytes)), size));
            }
            Err(error) => return Err(failed(error)),
        };
        let (store, digest) = (shared.store.clone(), self.digest.clone());
        // A repository that says of any blob that it has it gives no leave: to a tenant it must give the bytes.
        let here = match cx.session.namespace.finds_local_images() {
            true => blocking(move || store.open_blob(&digest)).await?,
            false => None,
        };
        match here {
            Some(file) => Ok((Box::new(tokio::fs::File::from_std(file)), blob.size)),
            None => {
                let stream = client.fetch_blob(name, &blob).await.map_err(failed)?;
                Ok((Box::new(stream.into_async_read()), blob.size))
            }
        }
    }

    async fn keep(
        &self,
        (content, size): Content,
        shared: &Arc<Shared>,
        cx: &JobContext<Session>,
    ) -> Result<Snapshot, SourceError> {
        let failed = |source| SourceError::Blob { digest: self.digest.clone(), source };
        if size > SIZE_LIMIT {
            return Err(failed(BlobError::TooLarge));
        }
        let layer = {
            let (shared, description) = (Arc::clone(shared), format!("blob {}", self.digest));
            blocking(move || shared.prepare(&Snapshot::scratch(), &description)).await?
        };
        let room = layer.room().clone();
        blocking(move || room.take(size)).await.map_err(|error| failed(error.into()))?;
        let upper = layer.upper().to_owned();
        let root = RootDir::open(&upper)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = rustix::fs::openat(root.fd(), &*self.filename, flags, Mode::from_raw_mode(DEFAULT_MODE));
        let mut file = File::from(file.at("creating", &upper)?);
        self.copy((content, size), &mut file, cx).await.map_err(failed)?;
        let stamp = Stamp { owner: Some(self.owner), time: Some((0, 0)) };
        stamp.apply(&file, self.mode).at("setting metadata of", Path::new(&self.filename))?;
        drop((file, root));
        Ok(blocking(move || layer.commit()).await?)
    }

    async fn copy(
        &self,
        (mut content, size): Content,
        into: &mut File,
        cx: &JobContext<Session>,
    ) -> Result<(), BlobError> {
        let mut hasher = Hasher::new(self.digest.algorithm());
        let (mut buffer, mut done) = (vec![0; BUFFER], 0);
        loop {
            let length = content.read(&mut buffer).await.map_err(BlobError::Read)?;
            done += length as u64;
            // Room was taken for so many.
            if done > size || (length == 0 && done < size) {
                return Err(BlobError::Size { announced: size });
            }
            if length == 0 {
                break;
            }
            hasher.update(&buffer[..length]);
            into.write_all(&buffer[..length]).map_err(BlobError::Write)?;
            cx.events.progress(self.digest.as_str(), done, Some(size));
        }
        if hasher.finish() == self.digest { Ok(()) } else { Err(BlobError::Mismatch) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(place: BlobPlace, reference: &str, attrs: &[(&str, &str)]) -> Result<BlobSource, String> {
        let attrs = attrs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let op = SourceOp::new("x", attrs);
        BlobSource::new(reference, place, &op).map_err(|error| error.to_string())
    }

    #[test]
    fn attributes() {
        let digest = Digest::sha256(b"x");
        let name = format!("a.test/b@{digest}");
        let plain = source(BlobPlace::Registry, &name, &[]).expect("valid");
        assert_eq!((&*plain.filename, plain.mode, plain.owner), (digest.hex(), 0o600, (0, 0)));
        let all = [
            ("http.filename", "../c"),
            ("http.perm", "0o4750"),
            ("http.uid", "1"),
            ("http.gid", "2"),
            ("oci.store", "s"),
        ];
        let full = source(BlobPlace::Layout, &name, &all).expect("valid");
        assert_eq!((&*full.filename, full.mode, full.owner), ("c", 0o750, (1, 2)));
        let refused =
            |place, name: &str, attrs: &[(&str, &str)]| source(place, name, attrs).expect_err("is invalid");
        assert_eq!(refused(BlobPlace::Layout, &name, &[]), "oci-layout blob source requires store id");
        for name in ["a.test/b", "a.test/b:1", "a.test/b@sha256:0"] {
            let expected = format!("invalid image blob reference {name}");
            assert_eq!(refused(BlobPlace::Registry, name, &[]), expected);
        }
        let uid = refused(BlobPlace::Registry, &name, &[("http.uid", "me")]);
        assert_eq!(uid, "source attribute `http.uid` has the invalid value `me`");
    }
}
