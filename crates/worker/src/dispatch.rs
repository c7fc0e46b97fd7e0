//! [`LocalWorker`] as the solver sees it: which module an op goes to, and what kind of failure its errors are.
//! Must not know how any op works. Read the implementation of [`Worker`] first.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::SystemTime;

use stave_cache::{CacheRecord, ContentDigest, ResultId};
use stave_llb::{DiffOp, MergeOp, Op, SourceIdentifier, SourceOp, Vertex};
use stave_oci::{Digest, Platform, Reference};
use stave_solver::{
    CacheMap, Elsewhere, ImportedRecord, JobContext, OpError, OpErrorKind, OpKey, Selector, Worker, key,
};
use stave_store::{LayerId, Snapshot};

use crate::abandon::until_cancelled;
use crate::context::{Context, ContextFilter};
use crate::exec::{ExecError, Executor};
use crate::file::action::FileError;
use crate::file::copy::CopyError;
use crate::file::snapshot_of;
use crate::file::unpack::UnpackError;
use crate::keyed::with_keyed_secrets;
use crate::remote::{ContextProvider, ContextRequest, FetchedContext};
use crate::session::Session;
use crate::source::SourceError;
use crate::source::blob::BlobSource;
use crate::source::git::{GitError, GitRequest};
use crate::source::http::HttpSource;
use crate::source::image::{Puller, blocking};
use crate::source::layout::OciLayout;
use crate::source::local::LocalSource;
use crate::source::wanted::ImageWanted;
use crate::step::{self, StepError};
use crate::travel;
use crate::view::LAYER_LIMIT;
use crate::worker::{DigestError, LocalWorker, Ref};

/// Between the outputs of one result id; a snapshot is digits and commas.
const OUTPUT_SEPARATOR: char = ';';

/// The code `timeout(1)` has for a command that took too long.
const TIMED_OUT: i32 = 124;

/// In front of each snapshot, so that scratch has a name too.
const SNAPSHOT_MARK: char = 's';

/// Why layers could not be combined.
#[derive(Debug, thiserror::Error)]
pub enum LayersError {
    /// The op refers to an input it does not have.
    #[error("op refers to an input it does not have")]
    NoInput,
    /// More than the kernel can stack.
    #[error("merging makes {0} layers, more than the {LAYER_LIMIT} the kernel can stack")]
    TooMany(usize),
    /// An op that solves a definition in turn.
    #[error("build ops are not supported yet")]
    Build,
}

impl<E: Executor> Worker for LocalWorker<E> {
    type Result = Ref;
    type Session = Session;

    async fn cache_map(&self, vertex: &Vertex, cx: &JobContext<Session>) -> Result<CacheMap, OpError> {
        let mut map = key::cache_map(vertex);
        if let Op::Source(op) = &vertex.op
            && let Some(pin) = self.pin(op, cx).await.map_err(source_error)?
        {
            map.op = OpKey::Stable(key::pinned_source(vertex, op, &pin));
        }
        if let OpKey::Stable(part) = map.op {
            let keyed = with_keyed_secrets(&self.shared.store, vertex, &cx.session, part);
            map.op = OpKey::Stable(keyed.map_err(|error| OpError::new(OpErrorKind::System, error))?);
        }
        Ok(map)
    }

    async fn content_digest(
        &self,
        input: &Ref,
        selector: &Selector,
        _cx: &JobContext<Session>,
    ) -> Result<ContentDigest, OpError> {
        let (shared, input, selector) = (Arc::clone(&self.shared), input.clone(), selector.clone());
        blocking(move || shared.digest(&input, &selector)).await.map_err(digest_error)
    }

    async fn execute(
        &self,
        vertex: &Vertex,
        inputs: &[Ref],
        cx: &JobContext<Session>,
    ) -> Result<Vec<Ref>, OpError> {
        // Something of the build has to be done: soon a step may ask for a network.
        self.shared.networks.prepare(cx.session.confinement.network);
        let outputs = match &vertex.op {
            Op::Source(op) => {
                self.source(vertex, op, cx).await.map(|result| vec![result]).map_err(source_error)
            }
            Op::Exec(op) => {
                let outcome = step::tries::run(&self.shared, &self.executor, op, inputs, cx).await;
                let platform = vertex.platform.as_ref();
                outcome.map_err(|error| step_error(step::foreign::explained(error, platform)))
            }
            Op::File(op) => {
                let (shared, op, inputs) = (Arc::clone(&self.shared), op.clone(), inputs.to_vec());
                let (name, cancel) = (vertex.name().unwrap_or_default().to_owned(), cx.cancel.clone());
                let vertex = vertex.digest.clone();
                let work = move || {
                    let step = crate::file::Step { vertex: &vertex, name: &name };
                    crate::file::execute(&shared, &op, &inputs, &step, &cancel)
                };
                until_cancelled(work, &cx.cancel).await.ok_or_else(OpError::cancelled)?.map_err(file_error)
            }
            Op::Merge(op) => self.merge(op, inputs, cx).await.map(|result| vec![result]),
            Op::Diff(op) => self.diff(op, inputs, cx).await.map(|result| vec![result]),
            Op::Build(_) => Err(OpError::new(OpErrorKind::Unsupported, LayersError::Build)),
            Op::Passthrough(op) => {
                let output = |at: &u32| inputs.get(*at as usize).cloned();
                let outputs: Option<Vec<Ref>> = op.outputs.iter().map(output).collect();
                outputs.ok_or_else(|| OpError::new(OpErrorKind::Input, LayersError::NoInput))
            }
        }?;
        if let Some(Ref::Snapshot(snapshot)) = outputs.first() {
            self.shared.wishes.made(&self.shared.store, &vertex.digest, snapshot);
        }
        if let Some(travel) = &cx.session.travel {
            for (position, input) in inputs.iter().enumerate() {
                travel.note_input(&vertex.digest, position, input);
            }
            if let Some(layers) = travel::recordable(&outputs) {
                travel.note(&vertex.digest, layers, SystemTime::now());
            }
        }
        Ok(outputs)
    }

    async fn load(&self, record: &CacheRecord) -> Result<Option<Vec<Ref>>, OpError> {
        let Some(snapshots) = parse_result(record.result.as_str()) else { return Ok(None) };
        let store = self.shared.store.clone();
        let loaded = blocking(move || -> Result<Option<Vec<Ref>>, stave_store::StoreError> {
            for snapshot in &snapshots {
                if !store.exists(snapshot)? {
                    return Ok(None);
                }
            }
            Ok(Some(snapshots.into_iter().map(Ref::Snapshot).collect()))
        });
        loaded.await.map_err(|error| OpError::new(OpErrorKind::System, error))
    }

    fn has_imports(&self, session: &Session) -> bool {
        session.travel.as_ref().is_some_and(|travel| travel.imports().is_some())
    }

    async fn look_elsewhere(
        &self,
        vertex: &Vertex,
        contents: &[Option<Ref>],
        cx: &JobContext<Session>,
    ) -> Option<Elsewhere> {
        let travel = cx.session.travel.clone()?;
        let (shared, vertex, contents) = (Arc::clone(&self.shared), vertex.digest.clone(), contents.to_vec());
        blocking(move || travel::look_up(&travel, &shared, &vertex, &contents)).await
    }

    async fn import(&self, record: &ImportedRecord, cx: &JobContext<Session>) -> Option<Vec<Ref>> {
        let travel = cx.session.travel.as_ref()?;
        let outputs = travel::import(travel, record).await?;
        if let Some(layers) = travel::recordable(&outputs) {
            travel.note(&cx.vertex, layers, SystemTime::now());
        }
        Some(outputs)
    }

    fn found(&self, vertex: &Vertex, record: &CacheRecord, session: &Session) {
        if let Some(travel) = &session.travel
            && let Some(snapshots) = parse_result(record.result.as_str())
        {
            travel.note(&vertex.digest, snapshots, record.created_at);
        }
    }

    fn reads(&self, vertex: &Vertex, position: usize, input: &Ref, session: &Session) {
        if let Some(travel) = &session.travel {
            travel.note_input(&vertex.digest, position, input);
        }
    }

    async fn persist(&self, outputs: &[Ref]) -> Result<Option<ResultId>, OpError> {
        // Layers are in the store's database as soon as they are committed: naming them is all there is to do.
        let Some(text) = format_result(outputs) else { return Ok(None) };
        Ok(ResultId::new(text).ok())
    }
}

impl<E: Executor> LocalWorker<E> {
    /// The layers of a record's outputs, if all of them are still here. Counts as a use.
    ///
    /// # Errors
    /// When the store fails.
    pub fn layers_of(&self, record: &CacheRecord) -> Result<Option<Vec<Snapshot>>, stave_store::StoreError> {
        let Some(snapshots) = parse_result(record.result.as_str()) else { return Ok(None) };
        for snapshot in &snapshots {
            if !self.shared.store.exists(snapshot)? {
                return Ok(None);
            }
        }
        Ok(Some(snapshots))
    }

    async fn source(
        &self,
        vertex: &Vertex,
        op: &SourceOp,
        cx: &JobContext<Session>,
    ) -> Result<Ref, SourceError> {
        match &op.identifier {
            SourceIdentifier::DockerImage { reference } => {
                self.image(reference, op, vertex.platform.as_ref(), cx).await
            }
            SourceIdentifier::Local { name } => self.context(name, op, cx).await,
            SourceIdentifier::Http { url } => self.http(url, op, cx).await,
            SourceIdentifier::Git(git) => {
                let request = GitRequest::new(git, op)?;
                let pin = request.pin(&self.shared, cx).await?;
                Ok(Ref::Snapshot(request.fetch(&pin, &self.shared, cx).await?))
            }
            SourceIdentifier::OciLayout { reference } => {
                self.layout(reference, op, vertex.platform.as_ref(), cx).await
            }
            SourceIdentifier::Blob { reference, place } => {
                let source = BlobSource::new(reference, *place, op)?;
                Ok(Ref::Snapshot(source.fetch(&self.shared, cx).await?))
            }
            SourceIdentifier::Unknown { .. } => Err(SourceError::Unsupported(op.raw.clone())),
        }
    }

    async fn image(
        &self,
        name: &Reference,
        op: &SourceOp,
        platform: Option<&Platform>,
        cx: &JobContext<Session>,
    ) -> Result<Ref, SourceError> {
        let wanted = ImageWanted::new(op)?;
        let platform = platform.cloned().unwrap_or_else(Platform::host);
        let progress = |layer: &Digest, current: u64, total: u64| {
            cx.events.progress(layer.as_str(), current, Some(total));
        };
        let puller = Puller {
            store: &self.shared.store,
            client: &cx.session.registry,
            progress: &progress,
            cancel: &cx.cancel,
        };
        // What another pulled is no leave to have it: a tenant's own credentials must reach the manifest.
        let finds = cx.session.namespace.finds_local_images();
        let here = if finds { puller.local(name, &platform)? } else { None };
        let here = match here {
            Some(image) if self.shared.store.exists(&image.snapshot())? => Some(image),
            _ => None,
        };
        let asks = wanted.asks(name, cx.session.asks_for_tags);
        let image = match (here, name.digest().and_then(|digest| cx.session.resolved.get(digest))) {
            (Some(image), _) if !asks => return Ok(Ref::Snapshot(wanted.layers_of(name, &image)?)),
            (_, Some(resolved)) => {
                wanted.check(name, &resolved.root.descriptor.digest)?;
                puller.pull_resolved(name, resolved).await?
            }
            (here, None) => match (puller.resolve(name, &platform).await, here) {
                (Ok(resolved), _) => {
                    wanted.check(name, &resolved.root.descriptor.digest)?;
                    puller.pull_resolved(name, &resolved).await?
                }
                // Nobody else has what was made here.
                (Err(_), Some(image)) if wanted.checksum.is_none() => image,
                (Err(error), _) => return Err(error),
            },
        };
        // Kept under its name, as docker and podman keep base images: the next build need not ask anybody.
        match name.tagged() {
            Some(name) if finds => puller.keep(&name, &image)?,
            _ => self.shared.store.put_image(&[], &image)?,
        }
        Ok(Ref::Snapshot(wanted.layers_of(name, &image)?))
    }

    async fn context(&self, name: &str, op: &SourceOp, cx: &JobContext<Session>) -> Result<Ref, SourceError> {
        let session = &cx.session;
        let source = LocalSource::new(name, op)?;
        let Some(directory) = session.contexts.get(name).cloned() else {
            return match &session.remote {
                Some(provider) => self.remote_context(provider.as_ref(), &source, cx).await,
                None => Err(SourceError::UnknownContext(name.to_owned())),
            };
        };
        if source.metadata_but.is_some() {
            return Err(SourceError::Here(name.to_owned()));
        }
        let LocalSource { include, exclude, follow, .. } = source;
        let filter = ContextFilter { include, exclude, follow, modes: session.context_modes };
        let shared = Arc::clone(&self.shared);
        blocking(move || match Context::scan(&directory, &filter, shared.fingerprints.as_deref()) {
            Ok(context) => Ok(Ref::Context(Arc::new(context))),
            Err(source) => Err(SourceError::Context { directory, source }),
        })
        .await
    }

    /// A directory of the client: what comes is what takes part, so nothing is left to filter.
    async fn remote_context(
        &self,
        provider: &dyn ContextProvider,
        source: &LocalSource,
        cx: &JobContext<Session>,
    ) -> Result<Ref, SourceError> {
        let progress =
            |bytes: u64| cx.events.progress(&format!("transferring {}:", source.name), bytes, None);
        let fetched = provider
            .fetch(ContextRequest {
                name: &source.name,
                session: source.session.as_deref(),
                shared_key_hint: &source.shared_key_hint,
                include: &source.include,
                exclude: &source.exclude,
                follow: &source.follow,
                differ: source.differ,
                metadata_but: source.metadata_but.as_deref(),
                progress: &progress,
                cancel: &cx.cancel,
            })
            .await;
        if cx.cancel.is_cancelled() {
            return Err(SourceError::Cancelled);
        }
        let FetchedContext { directory, guard } = fetched?;
        let modes = cx.session.context_modes;
        let shared = Arc::clone(&self.shared);
        blocking(move || {
            let filter = ContextFilter { modes, ..ContextFilter::default() };
            match Context::scan(&directory, &filter, shared.fingerprints.as_deref()) {
                Ok(context) => Ok(Ref::Context(Arc::new(context.guarded(guard)))),
                Err(source) => Err(SourceError::Context { directory, source }),
            }
        })
        .await
    }

    async fn http(&self, url: &str, op: &SourceOp, cx: &JobContext<Session>) -> Result<Ref, SourceError> {
        let source = HttpSource::new(url, &op.attrs)?;
        Ok(Ref::Snapshot(source.pin(&self.shared, cx).await?.snapshot))
    }

    async fn layout(
        &self,
        reference: &str,
        op: &SourceOp,
        platform: Option<&Platform>,
        cx: &JobContext<Session>,
    ) -> Result<Ref, SourceError> {
        let malformed = || SourceError::Unsupported(op.raw.clone());
        let (name, digest) = reference.rsplit_once('@').ok_or_else(malformed)?;
        let digest: Digest = digest.parse().map_err(|_| malformed())?;
        let id = op.attrs.get("oci.store").map_or(name, String::as_str);
        let Some(directory) = cx.session.layouts.get(id).cloned() else {
            return Err(SourceError::UnknownLayout(id.to_owned()));
        };
        let platform = platform.cloned().unwrap_or_else(Platform::host);
        let (store, image) = (self.shared.store.clone(), reference.to_owned());
        blocking(move || {
            let brought = OciLayout::open(&directory)
                .and_then(|layout| layout.bring(&layout.image(&digest, &platform)?, &store));
            match brought {
                Ok(image) => Ok(Ref::Snapshot(image.snapshot())),
                Err(source) => Err(SourceError::Layout { image, directory, source: Box::new(source) }),
            }
        })
        .await
    }

    /// What names the content of a source for good, where that has to be found out.
    async fn pin(&self, op: &SourceOp, cx: &JobContext<Session>) -> Result<Option<String>, SourceError> {
        match &op.identifier {
            SourceIdentifier::Git(git) => {
                let request = GitRequest::new(git, op)?;
                let pin = request.pin(&self.shared, cx).await?;
                Ok(Some(request.key(&pin)))
            }
            SourceIdentifier::Http { url } => {
                let source = HttpSource::new(url, &op.attrs)?;
                if source.is_pinned() {
                    return Ok(None);
                }
                let pin = source.pin(&self.shared, cx).await?;
                Ok(Some(source.key(&pin)))
            }
            _ => Ok(None),
        }
    }

    async fn layers(
        &self,
        input: Option<u32>,
        inputs: &[Ref],
        cx: &JobContext<Session>,
    ) -> Result<Snapshot, OpError> {
        let Some(index) = input else { return Ok(Snapshot::scratch()) };
        let Some(input) = inputs.get(index as usize).cloned() else {
            return Err(OpError::new(OpErrorKind::Input, LayersError::NoInput));
        };
        let (shared, cancel) = (Arc::clone(&self.shared), cx.cancel.clone());
        let made = until_cancelled(move || snapshot_of(&shared, &input, &cancel), &cx.cancel).await;
        made.ok_or_else(OpError::cancelled)?.map_err(file_error)
    }

    async fn merge(&self, op: &MergeOp, inputs: &[Ref], cx: &JobContext<Session>) -> Result<Ref, OpError> {
        let mut layers = Vec::new();
        for input in &op.inputs {
            let above = self.layers(*input, inputs, cx).await?;
            match layers.is_empty() {
                true => layers.extend_from_slice(above.layers()),
                false => layers.extend(self.explicit(Snapshot::scratch(), above).await?),
            }
        }
        let stacked = layers.iter().collect::<HashSet<_>>().len();
        if stacked > LAYER_LIMIT {
            return Err(OpError::new(OpErrorKind::Unsupported, LayersError::TooMany(stacked)));
        }
        Ok(settle(Snapshot::new(layers), inputs))
    }

    async fn diff(&self, op: &DiffOp, inputs: &[Ref], cx: &JobContext<Session>) -> Result<Ref, OpError> {
        let lower = self.layers(op.lower, inputs, cx).await?;
        let upper = self.layers(op.upper, inputs, cx).await?;
        match upper.above(&lower).map(<[LayerId]>::to_vec) {
            Some(layers) => {
                let layers = self.explicit(lower, Snapshot::new(layers)).await?;
                Ok(settle(Snapshot::new(layers), inputs))
            }
            None => self.unrelated((lower, upper), inputs, cx).await,
        }
    }

    /// Layers that are made for another base than the one they get.
    async fn explicit(&self, below: Snapshot, above: Snapshot) -> Result<Vec<LayerId>, OpError> {
        let store = self.shared.store.clone();
        let explicit = blocking(move || store.explicit(&below, above.layers()));
        explicit.await.map_err(|error| OpError::new(OpErrorKind::System, error))
    }
}

impl<E: Executor> LocalWorker<E> {
    /// The difference of file systems that are not built on each other: found by comparing them.
    async fn unrelated(
        &self,
        (lower, upper): (Snapshot, Snapshot),
        inputs: &[Ref],
        cx: &JobContext<Session>,
    ) -> Result<Ref, OpError> {
        let shared = Arc::clone(&self.shared);
        let compare = move || {
            let layer = shared.prepare(&Snapshot::scratch(), "diff")?;
            shared.store.difference(&lower, &upper, layer.upper())?;
            layer.commit()
        };
        let failed = |error: stave_store::StoreError| OpError::new(OpErrorKind::System, error);
        let compared = until_cancelled(compare, &cx.cancel).await.ok_or_else(OpError::cancelled)?;
        Ok(settle(compared.map_err(failed)?, inputs))
    }
}

/// Layers made of inputs are as unsettled as these.
fn settle(snapshot: Snapshot, inputs: &[Ref]) -> Ref {
    let unsettled = inputs.iter().any(|input| match input {
        Ref::Snapshot(_) => false,
        Ref::Unsettled(_) => true,
        Ref::Context(context) => context.has_changed(),
    });
    if unsettled { Ref::Unsettled(snapshot) } else { Ref::Snapshot(snapshot) }
}

fn format_result(outputs: &[Ref]) -> Option<String> {
    let mut text = String::new();
    for output in outputs {
        let Ref::Snapshot(snapshot) = output else { return None };
        if !text.is_empty() {
            text.push(OUTPUT_SEPARATOR);
        }
        text.push(SNAPSHOT_MARK);
        text.push_str(&snapshot.to_string());
    }
    (!text.is_empty()).then_some(text)
}

/// The snapshots that a result id of this worker names; `None` for another's.
pub fn snapshots_of(result: &str) -> Option<Vec<Snapshot>> {
    parse_result(result)
}

fn parse_result(text: &str) -> Option<Vec<Snapshot>> {
    text.split(OUTPUT_SEPARATOR).map(|part| part.strip_prefix(SNAPSHOT_MARK)?.parse().ok()).collect()
}

fn source_error(error: SourceError) -> OpError {
    let kind = match &error {
        SourceError::Cancelled | SourceError::Git(GitError::Cancelled) => return OpError::cancelled(),
        SourceError::Unsupported(_) | SourceError::Git(GitError::Unsupported(_)) => OpErrorKind::Unsupported,
        SourceError::UnknownContext(_)
        | SourceError::UnknownLayout(_)
        | SourceError::Attribute { .. }
        | SourceError::UnknownAttribute(_)
        | SourceError::Here(_)
        | SourceError::BlobReference(_)
        | SourceError::NoStore
        | SourceError::ImageAttribute { .. }
        | SourceError::Context { .. }
        | SourceError::Fetch(_) => OpErrorKind::Input,
        SourceError::Registry { .. }
        | SourceError::Image { .. }
        | SourceError::Http { .. }
        | SourceError::Layout { .. }
        | SourceError::Blob { .. }
        | SourceError::Git(_) => OpErrorKind::Source,
        SourceError::Layer { .. } | SourceError::Room { .. } | SourceError::Store(_) | SourceError::Io(_) => {
            OpErrorKind::System
        }
    };
    OpError::new(kind, error)
}

fn file_error(error: FileError) -> OpError {
    let kind = match &error {
        FileError::Copy(CopyError::Cancelled) | FileError::Unpack(UnpackError::Cancelled) => {
            return OpError::cancelled();
        }
        FileError::Copy(CopyError::Io(_)) | FileError::Unpack(UnpackError::Io(_)) => OpErrorKind::System,
        FileError::Io(_) | FileError::View(_) | FileError::Store(_) => OpErrorKind::System,
        FileError::Copy(_)
        | FileError::Unpack(_)
        | FileError::NotFound(_)
        | FileError::Missing(_)
        | FileError::NothingToRemove(_)
        | FileError::NoParent(_)
        | FileError::Root(_)
        | FileError::Pattern(_)
        | FileError::Mode(_)
        | FileError::Reference(_) => OpErrorKind::Input,
    };
    OpError::new(kind, error)
}

fn step_error(error: StepError) -> OpError {
    let kind = match &error {
        StepError::Exec(ExecError::Cancelled) => return OpError::cancelled(),
        StepError::Exit { code, signal, .. } => OpErrorKind::ExitCode { code: *code, signal: *signal },
        StepError::OutOfMemory { code, .. } => OpErrorKind::ExitCode { code: *code, signal: None },
        StepError::TimedOut { .. } => OpErrorKind::ExitCode { code: TIMED_OUT, signal: None },
        StepError::NotEntitled(_) | StepError::Unsupported(_) | StepError::Foreign { .. } => {
            OpErrorKind::Unsupported
        }
        StepError::NoRoot
        | StepError::NoInput
        | StepError::CacheMountId(_)
        | StepError::MissingSecret(_)
        | StepError::NoAgent(_)
        | StepError::RefusedAgent(_)
        | StepError::UnknownAgent(_)
        | StepError::Secret { .. }
        | StepError::Ulimit(_)
        | StepError::Device(_)
        | StepError::NotKept
        | StepError::User(_) => OpErrorKind::Input,
        _ => OpErrorKind::System,
    };
    OpError::new(kind, error)
}

fn digest_error(error: DigestError) -> OpError {
    OpError::new(OpErrorKind::System, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Option<&[&str]>) {
        let parsed = parse_result(text);
        let shown = parsed.as_ref().map(|all| all.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(
            shown.as_deref(),
            expected.map(|all| all.iter().map(|one| (*one).to_owned()).collect::<Vec<_>>()).as_deref()
        );
        if let Some(snapshots) = parsed {
            let outputs: Vec<Ref> = snapshots.into_iter().map(Ref::Snapshot).collect();
            assert_eq!(format_result(&outputs).as_deref(), Some(text));
        }
    }

    #[test]
    fn result_ids() {
        check("s", Some(&[""]));
        check("s1,2", Some(&["1,2"]));
        check("s1;s;s2", Some(&["1", "", "2"]));
        check("", None);
        check("1,2", None);
        check("s1,x", None);
        assert_eq!(format_result(&[Ref::Unsettled(Snapshot::scratch())]), None);
    }
}
