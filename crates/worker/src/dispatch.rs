//! [`LocalWorker`] as the solver sees it: which module an op goes to, and what kind of failure its errors are.
//! Must not know how any op works. Read the implementation of [`Worker`] first.

use std::sync::Arc;

use stave_cache::{CacheRecord, ContentDigest, ResultId};
use stave_llb::{DiffOp, MergeOp, Op, SourceIdentifier, SourceOp, Vertex};
use stave_oci::{Digest, Platform, Reference};
use stave_solver::{CacheMap, JobContext, OpError, OpErrorKind, Selector, Worker, key};
use stave_store::{LayerId, Snapshot};

use crate::context::{Context, ContextFilter};
use crate::exec::{ExecError, Executor};
use crate::file::action::FileError;
use crate::file::copy::CopyError;
use crate::file::place::Stamp;
use crate::file::snapshot_of;
use crate::file::unpack::UnpackError;
use crate::root::At as _;
use crate::session::Session;
use crate::source::SourceError;
use crate::source::http::HttpSource;
use crate::source::image::{Puller, blocking};
use crate::step::{self, StepError};
use crate::view::LAYER_LIMIT;
use crate::worker::{DigestError, LocalWorker, Ref};

/// Between the outputs of one result id; a snapshot is digits and commas.
const OUTPUT_SEPARATOR: char = ';';

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
    /// The upper snapshot is not built on the lower one.
    #[error("the difference of file systems that are not built on each other is not supported yet")]
    Unrelated,
    /// An op that solves a definition in turn.
    #[error("build ops are not supported yet")]
    Build,
}

impl<E: Executor> Worker for LocalWorker<E> {
    type Result = Ref;
    type Session = Session;

    async fn cache_map(&self, vertex: &Vertex, _cx: &JobContext<Session>) -> Result<CacheMap, OpError> {
        Ok(key::cache_map(vertex))
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
        match &vertex.op {
            Op::Source(op) => {
                self.source(vertex, op, cx).await.map(|result| vec![result]).map_err(source_error)
            }
            Op::Exec(op) => {
                step::execute(&self.shared, &self.executor, op, inputs, cx).await.map_err(step_error)
            }
            Op::File(op) => {
                let (shared, op, inputs) = (Arc::clone(&self.shared), op.clone(), inputs.to_vec());
                let (name, cancel) = (vertex.name().unwrap_or_default().to_owned(), cx.cancel.clone());
                blocking(move || crate::file::execute(&shared, &op, &inputs, &name, &cancel))
                    .await
                    .map_err(file_error)
            }
            Op::Merge(op) => self.merge(op, inputs, cx).await.map(|result| vec![result]),
            Op::Diff(op) => self.diff(op, inputs, cx).await.map(|result| vec![result]),
            Op::Build(_) => Err(OpError::new(OpErrorKind::Unsupported, LayersError::Build)),
        }
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

    async fn persist(&self, outputs: &[Ref]) -> Result<Option<ResultId>, OpError> {
        // Layers are in the store's database as soon as they are committed: naming them is all there is to do.
        let Some(text) = format_result(outputs) else { return Ok(None) };
        Ok(ResultId::new(text).ok())
    }
}

impl<E: Executor> LocalWorker<E> {
    async fn source(
        &self,
        vertex: &Vertex,
        op: &SourceOp,
        cx: &JobContext<Session>,
    ) -> Result<Ref, SourceError> {
        match &op.identifier {
            SourceIdentifier::DockerImage { reference } => {
                self.image(reference, vertex.platform.as_ref(), cx).await
            }
            SourceIdentifier::Local { name } => self.context(name, op, &cx.session).await,
            SourceIdentifier::Http { url } => self.http(url, op, cx).await,
            SourceIdentifier::Git(_)
            | SourceIdentifier::OciLayout { .. }
            | SourceIdentifier::Blob { .. }
            | SourceIdentifier::Unknown { .. } => Err(SourceError::Unsupported(op.raw.clone())),
        }
    }

    async fn image(
        &self,
        name: &Reference,
        platform: Option<&Platform>,
        cx: &JobContext<Session>,
    ) -> Result<Ref, SourceError> {
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
        if let Some(image) = puller.local(name, &platform)?
            && self.shared.store.exists(&image.snapshot())?
        {
            return Ok(Ref::Snapshot(image.snapshot()));
        }
        let known = name.digest().and_then(|digest| cx.session.resolved.get(digest));
        let image = match known {
            Some(resolved) => puller.pull_resolved(name, resolved).await?,
            None => puller.pull(name, &platform).await?,
        };
        // Kept under its name, as docker and podman keep base images: the next build need not ask anybody.
        let store = &self.shared.store;
        store.put_image(name.tagged().as_slice(), &image)?;
        Ok(Ref::Snapshot(image.snapshot()))
    }

    async fn context(&self, name: &str, op: &SourceOp, session: &Session) -> Result<Ref, SourceError> {
        let Some(directory) = session.contexts.get(name).cloned() else {
            return Err(SourceError::UnknownContext(name.to_owned()));
        };
        let filter = ContextFilter {
            include: list(op, "local.includepattern")?,
            exclude: list(op, "local.excludepatterns")?,
            follow: list(op, "local.followpaths")?,
        };
        let shared = Arc::clone(&self.shared);
        blocking(move || match Context::scan(&directory, &filter, shared.fingerprints.as_deref()) {
            Ok(context) => Ok(Ref::Context(Arc::new(context))),
            Err(source) => Err(SourceError::Context { directory, source }),
        })
        .await
    }

    async fn http(&self, url: &str, op: &SourceOp, cx: &JobContext<Session>) -> Result<Ref, SourceError> {
        use rustix::fs::{Mode, OFlags};
        let source = HttpSource::new(url, &op.attrs)?;
        let shared = Arc::clone(&self.shared);
        let description = op.raw.clone();
        let layer = blocking(move || shared.prepare(&Snapshot::scratch(), &description)).await?;
        let upper = layer.upper().to_owned();
        let root = crate::root::RootDir::open(&upper)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let aside = "download";
        let file =
            rustix::fs::openat(root.fd(), aside, flags, Mode::from_raw_mode(0o600)).at("creating", &upper)?;
        let mut file = std::fs::File::from(file);
        let fetched = source.fetch(&mut file, &cx.cancel).await?;
        let stamp = Stamp { owner: Some(source.owner), time: fetched.modified.map(|seconds| (seconds, 0)) };
        stamp.apply(&file, source.mode).at("setting metadata of", &upper)?;
        rustix::fs::renameat(root.fd(), aside, root.fd(), &*fetched.filename).at("naming", &upper)?;
        drop((file, root));
        Ok(Ref::Snapshot(blocking(move || layer.commit()).await?))
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
        blocking(move || snapshot_of(&shared, &input, &cancel)).await.map_err(file_error)
    }

    async fn merge(&self, op: &MergeOp, inputs: &[Ref], cx: &JobContext<Session>) -> Result<Ref, OpError> {
        let mut layers = Vec::new();
        for input in &op.inputs {
            layers.extend_from_slice(self.layers(*input, inputs, cx).await?.layers());
        }
        let layers = topmost(layers);
        if layers.len() > LAYER_LIMIT {
            return Err(OpError::new(OpErrorKind::Unsupported, LayersError::TooMany(layers.len())));
        }
        Ok(settle(Snapshot::new(layers), inputs))
    }

    async fn diff(&self, op: &DiffOp, inputs: &[Ref], cx: &JobContext<Session>) -> Result<Ref, OpError> {
        let lower = self.layers(op.lower, inputs, cx).await?;
        let upper = self.layers(op.upper, inputs, cx).await?;
        match upper.above(&lower) {
            Some(layers) => Ok(settle(Snapshot::new(layers.to_vec()), inputs)),
            None => Err(OpError::new(OpErrorKind::Unsupported, LayersError::Unrelated)),
        }
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

/// Overlay refuses a layer twice. Only its highest place counts: what it holds hides the same below.
fn topmost(layers: Vec<LayerId>) -> Vec<LayerId> {
    let mut seen = std::collections::HashSet::new();
    let mut kept: Vec<LayerId> = layers.into_iter().rev().filter(|layer| seen.insert(*layer)).collect();
    kept.reverse();
    kept
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

fn parse_result(text: &str) -> Option<Vec<Snapshot>> {
    text.split(OUTPUT_SEPARATOR).map(|part| part.strip_prefix(SNAPSHOT_MARK)?.parse().ok()).collect()
}

/// A JSON list of strings in a source's attributes, as BuildKit's client writes patterns.
fn list(op: &SourceOp, name: &str) -> Result<Vec<String>, SourceError> {
    let Some(value) = op.attrs.get(name).filter(|value| !value.is_empty()) else { return Ok(Vec::new()) };
    serde_json::from_str(value)
        .map_err(|_| SourceError::Attribute { name: name.to_owned(), value: value.clone() })
}

fn source_error(error: SourceError) -> OpError {
    let kind = match &error {
        SourceError::Cancelled => return OpError::cancelled(),
        SourceError::Unsupported(_) => OpErrorKind::Unsupported,
        SourceError::UnknownContext(_) | SourceError::Attribute { .. } | SourceError::Context { .. } => {
            OpErrorKind::Input
        }
        SourceError::Registry { .. } | SourceError::Image { .. } | SourceError::Http { .. } => {
            OpErrorKind::Source
        }
        SourceError::Layer { .. } | SourceError::Store(_) | SourceError::Io(_) => OpErrorKind::System,
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
        StepError::NotEntitled(_) | StepError::Unsupported(_) => OpErrorKind::Unsupported,
        StepError::NoRoot
        | StepError::NoInput
        | StepError::MissingSecret(_)
        | StepError::Secret { .. }
        | StepError::Ulimit(_)
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

    #[test]
    fn only_the_highest_place_of_a_layer_counts() {
        let layers = |text: &str| text.parse::<Snapshot>().expect("snapshot").layers().to_vec();
        assert_eq!(topmost(layers("1,2,1,3")), layers("2,1,3"));
        assert_eq!(topmost(layers("1,2")), layers("1,2"));
    }
}
