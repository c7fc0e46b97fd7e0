//! Another engine's image store: only what it lacks is sent, where it keeps images so that it can be told.
//!
//! What engines take (moby's `image/tarexport` and `daemon/containerd`, containers/image):
//! - docker with a graph driver, and podman, look a layer up by its diff id before they open its file in the archive, so
//!   that layers they have may be left out;
//! - docker with containerd's store keeps what an archive has and reports nothing that is missing, so that it gets the
//!   whole image, or nothing if it has it by its digest.
//!
//! An engine that refuses an archive without its layers gets the whole one. Must not know how an archive is laid out.

use std::collections::HashSet;
use std::io::{self, Write};
use std::sync::Arc;

use bytes::Bytes;
use stave_oci::{Digest, ImageConfig};
use tokio::sync::mpsc;

use crate::archive;
use crate::docker_api::{Api, EngineAddress, EngineFault, Keeping};
use crate::error::ExportErrorKind;
use crate::event::{ExportEvent, ExportEvents, ExportStep};
use crate::exporter::Exporter;
use crate::prepare::{PreparedImage, PreparedLayer, PreparedSet};

/// Bytes that go to the engine at a time.
const PIECE: usize = 256 << 10;
/// Pieces that wait for the engine.
const PIECES: usize = 4;

/// Sends an image of one platform. Returns the number of bytes sent.
pub(crate) async fn send(
    exporter: &Exporter,
    address: &EngineAddress,
    prepared: PreparedSet,
) -> Result<u64, ExportErrorKind> {
    let failed = |fault| ExportErrorKind::Engine { address: address.clone(), fault };
    let [image] = prepared.images.as_slice() else { return Err(ExportErrorKind::ManifestList) };
    let job = Job {
        exporter,
        api: Api::new(address.clone()),
        ids: [&image.documents.config.descriptor.digest, &prepared.top.digest].map(Digest::clone),
    };
    if let Some(id) = job.present().await.map_err(failed)? {
        for name in prepared.names.iter().filter(|name| name.tag().is_some()) {
            job.api.tag(id, name).await.map_err(failed)?;
        }
        job.keep(&image.layers);
        return Ok(0);
    }
    let common = job.common(image).await.map_err(failed)?;
    let (below, above) = image.layers.split_at(common);
    job.keep(below);
    let digests = |layers: &[PreparedLayer]| -> HashSet<Digest> {
        layers.iter().map(|layer| layer.descriptor.digest.clone()).collect()
    };
    // The same layer may also lie above what is there: then its file is needed.
    let omitted: HashSet<Digest> = digests(below).difference(&digests(above)).cloned().collect();
    let is_partial = !omitted.is_empty();
    let prepared = Arc::new(prepared);
    let mut sent = job.attempt(&prepared, omitted).await?;
    if is_partial && sent.as_ref().is_err_and(|fault| !matches!(fault, EngineFault::Connect(_))) {
        sent = job.attempt(&prepared, HashSet::new()).await?;
    }
    sent.map_err(failed)
}

/// One image on its way to one engine.
struct Job<'a> {
    exporter: &'a Exporter,
    api: Api,
    /// What an engine may call the image: its config's digest, or that of its manifest.
    ids: [Digest; 2],
}

impl Job<'_> {
    /// What the engine calls the image, if it has it.
    async fn present(&self) -> Result<Option<&Digest>, EngineFault> {
        for id in &self.ids {
            if self.api.has(id).await? {
                return Ok(Some(id));
            }
        }
        Ok(None)
    }

    /// How many of the lowest layers need not be sent.
    async fn common(&self, image: &PreparedImage) -> Result<usize, EngineFault> {
        if self.api.keeping().await? == Keeping::Content {
            return Ok(0);
        }
        let config: Result<ImageConfig, _> = serde_json::from_slice(&image.documents.config.bytes);
        // An image without a config that is one goes as a whole; so does one with layers that it does not tell of.
        let diff_ids = config.map(|config| config.rootfs.diff_ids).unwrap_or_default();
        if diff_ids.len() != image.layers.len() {
            return Ok(0);
        }
        self.api.common_layers(&diff_ids).await
    }

    fn keep(&self, layers: &[PreparedLayer]) {
        for layer in layers {
            self.exporter.events.done(ExportStep::KeptBlob(layer.descriptor.digest.clone()));
        }
    }

    /// Sends the archive without the layers of these digests, and looks whether the image is there then.
    async fn attempt(
        &self,
        prepared: &Arc<PreparedSet>,
        omitted: HashSet<Digest>,
    ) -> Result<Result<u64, EngineFault>, ExportErrorKind> {
        let (sender, receiver) = mpsc::channel(PIECES);
        let archive = Arc::clone(prepared);
        let writing = self.exporter.blocking(move |context| {
            let mut out =
                Outgoing { sender, piece: Vec::new(), sent: 0, is_heard: true, events: &context.events };
            context.events.send(ExportEvent::Started(ExportStep::Archive));
            let written = archive::stream(context, &archive, &omitted, &mut out);
            match written.and_then(|()| Ok(out.flush()?)) {
                Ok(()) => Ok(Some(out.sent)),
                // The reason is the engine's to tell.
                Err(_) if !out.is_heard => Ok(None),
                Err(error) => {
                    // The engine must not take what came so far for a whole archive.
                    drop(out.sender.blocking_send(Err(io::ErrorKind::BrokenPipe.into())));
                    Err(error)
                }
            }
        });
        let (written, loaded) = tokio::join!(writing, self.api.load(receiver));
        let sent = match (written?, loaded) {
            (_, Err(fault)) => return Ok(Err(fault)),
            (Some(sent), Ok(())) => sent,
            (None, Ok(())) => return Ok(Err(EngineFault::NotTaken(self.ids[0].clone()))),
        };
        self.exporter.events.send(ExportEvent::Done(ExportStep::Archive));
        Ok(match self.present().await {
            Ok(Some(_)) => Ok(sent),
            Ok(None) => Err(EngineFault::NotTaken(self.ids[0].clone())),
            Err(fault) => Err(fault),
        })
    }
}

/// Bytes for the engine, handed over in pieces.
struct Outgoing<'a> {
    sender: mpsc::Sender<io::Result<Bytes>>,
    piece: Vec<u8>,
    sent: u64,
    /// Whether the engine still takes them.
    is_heard: bool,
    events: &'a ExportEvents,
}

impl Write for Outgoing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.piece.extend_from_slice(bytes);
        if self.piece.len() >= PIECE {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.piece.is_empty() {
            return Ok(());
        }
        let piece = Bytes::from(std::mem::take(&mut self.piece));
        self.sent += piece.len() as u64;
        self.is_heard = self.sender.blocking_send(Ok(piece)).is_ok();
        if !self.is_heard {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        self.events.send(ExportEvent::Progress {
            step: ExportStep::Archive,
            current: self.sent,
            total: None,
        });
        Ok(())
    }
}
