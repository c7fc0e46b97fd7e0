//! The caches of a client's build: read by whatever is solved for it, written once with its results. Directories and
//! credentials are the client's.
//!
//! Start with [`Build::caches`] and [`Build::solve_for_export`].

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::{Arc, PoisonError};

use bollard_buildkit_proto::moby::buildkit::v1::CacheOptionsEntry;
use futures::StreamExt as _;
use futures::future::BoxFuture;
use stave_engine::cache_place::{BlobReader, Content, Contents, PlaceError};
use stave_engine::cache_spec::ImportSpec;
use stave_engine::{CacheOwner, Caches, ImageLayers, Journey};
use stave_llb::Definition;
use stave_oci::Digest;
use stave_store::Snapshot;

use super::{Build, Target};
use crate::failure::Failure;
use crate::outcome::Outcome;
use crate::session::content::{ClientStore, ContentError};
use crate::wanted::{MAX_CACHES, read_imports};

impl Build {
    /// The caches of this build; written are only those of its results.
    pub(super) fn caches(&self, are_written: bool) -> Caches {
        let session = Arc::clone(&self.session);
        let directories = move |path: &Path| {
            let store = ClientStore::new(Arc::clone(&session), format!("local:{}", path.display()));
            Arc::new(store) as Arc<dyn Contents>
        };
        Caches {
            from: self.imports(),
            to: if are_written { self.wanted.exports.clone() } else { Vec::new() },
            owner: Some(CacheOwner {
                registry: self.registry.clone(),
                directories: Arc::new(directories),
                namespace: self.gate.owner().namespace.clone(),
            }),
        }
    }

    /// The caches that are read: those of the request, and what front ends named since.
    fn imports(&self) -> Vec<ImportSpec> {
        let named = self.named_imports.lock().unwrap_or_else(PoisonError::into_inner);
        self.wanted.imports.iter().chain(named.iter()).cloned().collect()
    }

    /// Takes up caches that a front end names. They are read by whatever is solved from then on.
    pub(crate) fn import_from(&self, entries: &[CacheOptionsEntry]) -> Result<(), Failure> {
        let full = || Failure::Value(format!("more than {MAX_CACHES} caches"));
        // Each is compared with each.
        if entries.len() > MAX_CACHES {
            return Err(full());
        }
        let (imports, unreadable) = read_imports(entries);
        {
            let mut named = self.named_imports.lock().unwrap_or_else(PoisonError::into_inner);
            let is_new =
                |import: &ImportSpec| !self.wanted.imports.contains(import) && !named.contains(import);
            let fresh: Vec<ImportSpec> = imports.into_iter().filter(is_new).collect();
            if self.wanted.imports.len() + named.len() + fresh.len() > MAX_CACHES {
                return Err(full());
            }
            named.extend(fresh);
        }
        self.show(&unreadable);
        Ok(())
    }

    /// Shows the caches that cannot be read.
    pub(crate) fn show_unreadable(&self) {
        self.show(&self.wanted.unreadable);
    }

    fn show(&self, unreadable: &[(String, String)]) {
        for (place, reason) in unreadable {
            let step = self.journal.begin(format!("importing cache manifest from {place}"));
            step.end(Err::<(), _>(reason)).ok();
        }
    }

    /// The caches that the steps of one result read.
    pub(super) async fn journey_of(&self, target: &Target) -> Result<Option<Journey>, Failure> {
        if self.imports().is_empty() {
            return Ok(None);
        }
        let parts = self.parts(None);
        let journey = parts.travel(&self.caches(false), &target.definition, &target.origin.layers).await;
        journey.map_err(|error| Failure::of_definition(error, &target.definition))
    }

    /// The files of all results. Where caches are written, they are made in one run, which the caches then describe.
    pub(crate) async fn solve_for_export(
        &self,
        outcome: &Outcome,
    ) -> Result<(Vec<Snapshot>, Option<Journey>), Failure> {
        if self.wanted.exports.is_empty() {
            return Ok((self.solve_all(outcome).await?, None));
        }
        let definitions: Vec<&Definition> =
            outcome.targets.iter().map(|(_, target)| &target.definition).collect();
        let whole = Definition::union(definitions.iter().copied());
        let failed = |error| Failure::of_definition(error, &whole);
        let (mut layers, mut resolved) = (ImageLayers::default(), BTreeMap::new());
        for (_, target) in &outcome.targets {
            layers.absorb(&target.origin.layers);
            resolved.extend(target.resolved.clone());
        }
        let parts = self.parts(None);
        let journey = parts.travel(&self.caches(true), &whole, &layers).await.map_err(failed)?;
        let Some(journey) = journey else { return Ok((self.solve_all(outcome).await?, None)) };
        let session = self.session_over(&whole, resolved, Some(journey.travel())).await?;
        let whose = (self.engine().store(), &self.gate.owner().namespace);
        Box::pin(self.emptied.for_graph(&whole, whose)).await?;
        for (_, target) in &outcome.targets {
            // One that was solved before keeps its own: its secrets are the same.
            target.session.set(Arc::clone(&session)).ok();
        }
        let snapshots = parts.solve_together(&definitions, session).await.map_err(failed)?;
        Ok((snapshots, Some(journey)))
    }
}

fn place_error(error: ContentError) -> PlaceError {
    match error {
        ContentError::File(error) => PlaceError::Cut(error),
        other => PlaceError::Elsewhere(other.to_string()),
    }
}

impl Contents for ClientStore {
    fn size<'a>(&'a self, digest: &'a Digest) -> BoxFuture<'a, Result<Option<u64>, PlaceError>> {
        Box::pin(async move { Self::size(self, digest).await.map_err(place_error) })
    }

    fn read<'a>(&'a self, digest: &'a Digest) -> BoxFuture<'a, Result<BlobReader, PlaceError>> {
        Box::pin(async move {
            let pieces = Self::read(self, digest).await.map_err(place_error)?;
            let pieces = pieces.map(|piece| piece.map(io::Cursor::new));
            Ok(Box::pin(tokio_util::io::StreamReader::new(pieces)) as BlobReader)
        })
    }

    fn write<'a>(&'a self, digest: &'a Digest, content: Content) -> BoxFuture<'a, Result<(), PlaceError>> {
        Box::pin(async move {
            let file = match content {
                Content::File(file) => file,
                Content::Bytes(bytes) => in_memory(&bytes)?,
            };
            self.put(digest, file).await.map_err(place_error)
        })
    }
}

/// Bytes as a file that lies nowhere.
fn in_memory(bytes: &[u8]) -> io::Result<File> {
    use std::io::{Seek as _, Write as _};
    let file = rustix::fs::memfd_create("content", rustix::fs::MemfdFlags::CLOEXEC)?;
    let mut file = File::from(file);
    file.write_all(bytes)?;
    file.rewind()?;
    Ok(file)
}
