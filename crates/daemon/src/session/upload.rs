//! What was piped into a client, such as the archive of `build -`: the client offers it under an address of its session.
//!
//! Owns the call and what becomes of the bytes: an archive is unpacked, anything else is a file. Start with [`pull`].

use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use bollard_buildkit_proto::moby::upload::v1::BytesMessage;
use bollard_buildkit_proto::moby::upload::v1::upload_client::UploadClient;
use futures::stream;
use stave_engine::{ARCHIVE_HEAD, ContextArchive, looks_like_archive};
use stave_store::{ScratchDir, Store};
use tonic::Request;
use tonic::metadata::MetadataValue;

use super::{ClientSession, MAX_MESSAGE};
use crate::failure::Failure;

/// The address that such things have.
pub(crate) const ADDRESS: &str = "http://buildkit-session/";
const METHOD: &str = "/moby.upload.v1.Upload/Pull";
/// Bytes of one upload.
const MAX_UPLOAD: u64 = 64 << 30;

/// Something that a client sent.
#[derive(Debug)]
pub(crate) enum Uploaded {
    /// The files of an archive.
    Archive(ContextArchive),
    /// A directory with the one file that was sent.
    File(ScratchDir),
}

impl Uploaded {
    /// A directory of it, which must lie within.
    pub(crate) fn directory(&self, below: &str) -> io::Result<PathBuf> {
        let root = match self {
            Self::Archive(archive) => archive.path(),
            Self::File(directory) => directory.path(),
        };
        let plain = |part: Component<'_>| {
            matches!(part, Component::Normal(_) | Component::RootDir | Component::CurDir)
        };
        if !Path::new(below).components().all(plain) {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        }
        let (root, wanted) = (root.canonicalize()?, root.join(below.trim_start_matches('/')).canonicalize()?);
        if wanted.starts_with(&root) { Ok(wanted) } else { Err(io::Error::from(io::ErrorKind::NotFound)) }
    }
}

/// Takes what lies at an address of the client; a file gets the name `name`.
pub(crate) async fn pull(
    session: &Arc<ClientSession>,
    store: &Store,
    address: &str,
    name: &'static str,
) -> Result<Uploaded, Failure> {
    let failed =
        |words: &dyn std::fmt::Display| Failure::Dockerfile(format!("failed to load http context: {words}"));
    let channel = session.channel(METHOD)?;
    let path = format!("/{}", address.trim_start_matches(ADDRESS));
    let mut request = Request::new(stream::pending::<BytesMessage>());
    let path = MetadataValue::try_from(path).map_err(|error| failed(&error))?;
    request.metadata_mut().insert("urlpath", path);
    request.metadata_mut().insert("urlhost", MetadataValue::from_static("buildkit-session"));
    let mut client = UploadClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
    let answer = client.pull(request).await.map_err(|status| failed(&status.message()))?;
    let mut messages = answer.into_inner();
    let scratch = store.scratch_dir()?;
    let (sender, mut receiver) = tokio::sync::mpsc::channel::<Vec<u8>>(4);
    let store = store.clone();
    let working = tokio::task::spawn_blocking(move || {
        let path = scratch.path().join(name);
        let mut file = File::options().create_new(true).read(true).write(true).open(&path)?;
        let mut count: u64 = 0;
        while let Some(piece) = receiver.blocking_recv() {
            count += piece.len() as u64;
            if count > MAX_UPLOAD {
                return Err(io::Error::from(io::ErrorKind::FileTooLarge));
            }
            file.write_all(&piece)?;
        }
        let mut head = Vec::new();
        file.rewind()?;
        (&mut file).take(ARCHIVE_HEAD as u64).read_to_end(&mut head)?;
        file.rewind()?;
        if !looks_like_archive(&head) {
            return Ok(Uploaded::File(scratch));
        }
        let unpacked = ContextArchive::unpack(&store, &mut file).map_err(io::Error::other)?;
        Ok(Uploaded::Archive(unpacked))
    });
    loop {
        match messages.message().await {
            Ok(Some(message)) => {
                if sender.send(message.data).await.is_err() {
                    break;
                }
            }
            Ok(None) => break,
            Err(status) => return Err(failed(&status.message())),
        }
    }
    drop(sender);
    let worked = working.await.map_err(|error| failed(&error))?;
    worked.map_err(|error| failed(&error))
}
