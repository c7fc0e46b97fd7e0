//! The history of the daemon's builds, as clients list and follow it.
//!
//! ```text
//! <root>/builds/<id>/api.pb       a BuildHistoryRecord: what the client asked for and was told
//! <root>/builds/<id>/status.zst   what `Status` said of the build, each message after its length (u32, little-endian)
//! ```
//!
//! What hangs on a record lies in `blobs/` (`attached`). All lie beside the engine's own record of the build, and go with it: there is one history, and one rule of how long
//! it stays. Owns these files and the events of builds that begin, end and are removed. Must not know how builds run.
//! Start with [`Archive`] and [`Recording`].

mod attached;
mod filter;
mod status;
mod trace;

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Read as _};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use bollard_buildkit_proto::google::rpc;
use bollard_buildkit_proto::moby::buildkit::v1::{
    BuildHistoryEvent, BuildHistoryEventType, BuildHistoryRecord, BuildHistoryRequest, BuildResultInfo,
    Descriptor, SolveRequest, SolveResponse, UpdateBuildHistoryRequest,
};
use prost::Message as _;
use stave_engine::Holding;
use stave_engine::record::{
    Beginning, BuildId, BuildRecord, BuildState, Ending, History, HistoryError, Recorder, Retention,
};
use stave_store::Store;
use stave_worker::Namespace;
use tokio::sync::broadcast;

pub(crate) use self::attached::{Attachment, Content};
use self::filter::Filters;
pub(crate) use self::filter::span;
pub(crate) use self::status::Replay;
use crate::failure::Failure;
use crate::progress::{Journal, timestamp};
use crate::tenants::Caller;

/// Bytes of the largest record that is written or read.
const MAX_RECORD: usize = 4 << 20;
/// Events that wait for one slow listener; it is told when it missed some.
const EVENTS: usize = 1024;

/// What BuildKit calls an error with all its details; the spelling is its own.
const ERROR: &str = "application/vnd.googeapis.google.rpc.status+proto";

const RECORD_FILE: &str = "api.pb";
const STATUS_FILE: &str = "status.zst";

/// What is known of the daemon's builds.
#[derive(Debug)]
pub(crate) struct Archive {
    store: Store,
    history: History,
    keep: Retention,
    active: Mutex<HashMap<String, (Namespace, BuildHistoryRecord)>>,
    events: broadcast::Sender<(Namespace, BuildHistoryEvent)>,
}

/// A build while it is taken down. Dropped before its end, the build was given up.
#[derive(Debug)]
pub(crate) struct Recording {
    archive: Arc<Archive>,
    record: BuildHistoryRecord,
    recorder: Recorder,
    owner: Namespace,
    journal: Option<Arc<Journal>>,
    said: Vec<Attachment>,
}

/// What a listener is told at once, and whatever comes then; `None` for one that wants no more.
pub(crate) struct Listening {
    pub(crate) now: Vec<BuildHistoryEvent>,
    pub(crate) later: Option<broadcast::Receiver<(Namespace, BuildHistoryEvent)>>,
}

impl Archive {
    pub(crate) fn new(store: &Store, keep: Retention) -> Arc<Self> {
        Arc::new(Self {
            store: store.clone(),
            history: History::of(store),
            keep,
            active: Mutex::default(),
            events: broadcast::Sender::new(EVENTS),
        })
    }

    /// Begins to take a build down; `None` for those that clients want no trace of.
    pub(crate) fn begin(self: &Arc<Self>, owner: &Namespace, request: &SolveRequest) -> Option<Recording> {
        if request.internal {
            return None;
        }
        let mut record = BuildHistoryRecord {
            r#ref: request.r#ref.clone(),
            frontend: request.frontend.clone(),
            frontend_attrs: request.frontend_attrs.clone(),
            exporters: request.exporters.clone(),
            created_at: Some(timestamp(SystemTime::now())),
            ..BuildHistoryRecord::default()
        };
        if record.encoded_len() > MAX_RECORD / 2 {
            (record.frontend_attrs, record.exporters) = (HashMap::new(), Vec::new());
        }
        let recorder = Recorder::begin_keeping(&self.store, beginning(request), self.keep);
        if let Err(error) = self.history.give(recorder.id(), owner) {
            tracing::warn!(%error, "a build's record has no owner");
        }
        Some(Recording {
            archive: Arc::clone(self),
            record,
            recorder,
            owner: owner.clone(),
            journal: None,
            said: Vec::new(),
        })
    }

    /// Builds that are being taken down, and events that wait for their listeners.
    pub(crate) fn holdings(&self) -> [Holding; 3] {
        let active = self.active.lock().unwrap_or_else(PoisonError::into_inner).len();
        [
            Holding::in_use("history.active", active),
            Holding::in_use("history.listeners", self.events.receiver_count()),
            Holding::remembered("history.events", (self.events.len(), EVENTS)),
        ]
    }

    /// What a client that listens is told.
    pub(crate) fn listen(
        &self,
        caller: &Caller,
        request: &BuildHistoryRequest,
    ) -> Result<Listening, Failure> {
        let filters = Filters::parse(&request.filter).map_err(Failure::Value)?;
        let limit = usize::try_from(request.limit)
            .map_err(|_| Failure::Value(format!("invalid limit {}", request.limit)))?;
        // Before the builds are listed, so that none falls in between.
        let later = (!request.early_exit).then(|| self.events.subscribe());
        let is_meant =
            |record: &BuildHistoryRecord| request.r#ref.is_empty() || record.r#ref == request.r#ref;
        let mut now: Vec<_> = {
            let active = self.active.lock().unwrap_or_else(PoisonError::into_inner);
            let meant = active.values().filter(|(owner, record)| caller.may_see(owner) && is_meant(record));
            meant.map(|(_, record)| event(BuildHistoryEventType::Started, record.clone())).collect()
        };
        if !request.active_only {
            // The newest come first.
            let over = self.over(caller).map(|(_, record)| record);
            let over = over.filter(|record| is_meant(record) && filters.matches(record));
            let most = if limit == 0 { usize::MAX } else { limit };
            now.extend(over.take(most).map(|record| event(BuildHistoryEventType::Complete, record)));
        }
        Ok(Listening { now, later })
    }

    /// Pins a build, lets it go, or removes it.
    pub(crate) fn update(&self, caller: &Caller, request: &UpdateBuildHistoryRequest) -> Result<(), Failure> {
        let reference = &request.r#ref;
        if request.finalize {
            // Everything is written when a build ends; only that there is such a build is left to say.
            return match self.is_active(caller, reference) {
                true => Ok(()),
                false => self.find(caller, reference).map(drop),
            };
        }
        if self.is_active(caller, reference) && request.delete {
            return Err(Failure::Value(format!("build {reference} is running")));
        }
        let (id, mut record) = self.find(caller, reference)?;
        let owner = &caller.namespace;
        if request.delete {
            self.history.remove(&id).map_err(|error| failed(&error))?;
            self.tell(owner, BuildHistoryEventType::Deleted, record);
            return Ok(());
        }
        self.history.pin(&id, request.pinned).map_err(|error| failed(&error))?;
        if record.pinned != request.pinned {
            record.pinned = request.pinned;
            record.generation = record.generation.saturating_add(1);
            self.write(&id, &record).map_err(|error| failed(&error))?;
            self.tell(owner, BuildHistoryEventType::Complete, record);
        }
        Ok(())
    }

    /// The engine's own record of a build.
    pub(crate) fn engine_record(&self, id: &BuildId) -> Option<BuildRecord> {
        self.history.read(id).ok()
    }

    /// The error of a build with its details.
    pub(crate) fn whole_error(&self, id: &BuildId, record: &BuildHistoryRecord) -> Option<rpc::Status> {
        let plain = record.error.clone()?;
        let hung = record.external_error.as_ref();
        let path = hung.and_then(|hung| attached::path(&self.history.place(id), &hung.digest));
        let whole = path.and_then(|path| std::fs::read(path).ok());
        Some(whole.and_then(|bytes| rpc::Status::decode(bytes.as_slice()).ok()).unwrap_or(plain))
    }

    /// What `Status` said of a build that is over.
    pub(crate) fn replay(&self, caller: &Caller, reference: &str) -> Result<Replay, Failure> {
        let (id, _) = self.find(caller, reference)?;
        Replay::open(&self.history.place(&id).join(STATUS_FILE)).map_err(|error| failed(&error))
    }

    pub(crate) fn is_active(&self, caller: &Caller, reference: &str) -> bool {
        let active = self.active.lock().unwrap_or_else(PoisonError::into_inner);
        active.get(reference).is_some_and(|(owner, _)| caller.may_see(owner))
    }

    pub(crate) fn find(
        &self,
        caller: &Caller,
        reference: &str,
    ) -> Result<(BuildId, BuildHistoryRecord), Failure> {
        let found = self.over(caller).find(|(_, record)| record.r#ref == reference);
        found.ok_or_else(|| {
            let shown: String = reference.chars().take(256).collect();
            Failure::NotFound(format!("failed to retrieve ref {shown}: file does not exist"))
        })
    }

    /// The builds of clients that are over, the newest first.
    pub(crate) fn over(&self, caller: &Caller) -> impl Iterator<Item = (BuildId, BuildHistoryRecord)> + '_ {
        let ids = self.history.within(&caller.namespace).ids().unwrap_or_default().into_iter();
        ids.filter_map(|id| {
            let record = read(&self.history.place(&id).join(RECORD_FILE)).ok()?;
            let record = BuildHistoryRecord { pinned: self.history.is_pinned(&id), ..record };
            Some((id, record))
        })
    }

    /// What clients call a build of these records; `None` for one that no daemon made.
    pub(crate) fn name_of(records: &History, id: &BuildId) -> Option<String> {
        Some(read(&records.place(id).join(RECORD_FILE)).ok()?.r#ref)
    }

    fn write(&self, id: &BuildId, record: &BuildHistoryRecord) -> io::Result<()> {
        let place = self.history.place(id);
        let aside = place.join("api.pb.new");
        std::fs::write(&aside, record.encode_to_vec())?;
        std::fs::rename(aside, place.join(RECORD_FILE))
    }

    fn tell(&self, owner: &Namespace, kind: BuildHistoryEventType, record: BuildHistoryRecord) {
        // Nobody may be listening.
        self.events.send((owner.clone(), event(kind, record))).ok();
    }
}

impl Recording {
    /// What takes the build's steps and their output down.
    pub(crate) fn recorder(&self) -> Recorder {
        self.recorder.clone()
    }

    /// The build runs from here on, and is told of.
    pub(crate) fn run(&mut self, journal: &Arc<Journal>) {
        self.journal = Some(Arc::clone(journal));
        let mut active = self.archive.active.lock().unwrap_or_else(PoisonError::into_inner);
        active.insert(self.record.r#ref.clone(), (self.owner.clone(), self.record.clone()));
        drop(active);
        self.archive.tell(&self.owner, BuildHistoryEventType::Started, self.record.clone());
    }

    /// Takes down what is said of the result.
    pub(crate) fn attach(&mut self, said: Vec<Attachment>) {
        self.said = said;
    }

    /// Takes down what the exporters made, by their numbers.
    pub(crate) fn made(&mut self, made: BTreeMap<usize, stave_oci::Descriptor>) {
        self.record.result = results(made);
    }

    /// Takes the end down; when this returns, clients find it.
    pub(crate) async fn end(mut self, solved: &Result<SolveResponse, Failure>) {
        match solved {
            Ok(response) => {
                self.record.exporter_response = response.exporter_response.clone();
            }
            Err(failure) => self.record.error = Some(told(failure)),
        }
        let ending = ending(solved);
        let writing = tokio::task::spawn_blocking(move || self.close(ending));
        if let Err(error) = writing.await {
            tracing::warn!(%error, "a build's record is not whole");
        }
    }

    fn close(&mut self, ending: Ending) {
        self.recorder.finish(ending);
        // A build that never began is nobody's.
        let Some(journal) = self.journal.take() else { return };
        let record = &mut self.record;
        record.completed_at = Some(timestamp(SystemTime::now()));
        record.generation = 1;
        let sums = journal.sums();
        (record.num_total_steps, record.num_completed_steps) = (sums.total, sums.completed);
        (record.num_cached_steps, record.num_warnings) = (sums.cached, sums.warnings);
        let place = self.archive.history.place(self.recorder.id());
        let failed = record.error.as_ref().map(|error| error.message.clone());
        let spans = trace::spans(&record.r#ref, &journal.vertexes(), failed.as_deref());
        let hung = hang(record, &place, std::mem::take(&mut self.said), spans);
        let written = hung
            .and_then(|()| status::write(&place.join(STATUS_FILE), &journal.entries()))
            .and_then(|logs| {
                record.logs = Some(logs);
                self.archive.write(self.recorder.id(), record)
            });
        if let Err(error) = written {
            tracing::warn!(%error, "a build's record is not whole");
        }
        self.archive.active.lock().unwrap_or_else(PoisonError::into_inner).remove(&record.r#ref);
        self.archive.tell(&self.owner, BuildHistoryEventType::Complete, record.clone());
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        if self.journal.is_none() {
            self.recorder.finish(ending(&Err(Failure::Cancelled)));
            return;
        }
        self.record.error = Some(told(&Failure::Cancelled));
        self.close(ending(&Err(Failure::Cancelled)));
    }
}

/// Hangs what is too long for a record on it. Details of an error are there only.
fn hang(
    record: &mut BuildHistoryRecord,
    place: &Path,
    said: Vec<Attachment>,
    spans: Vec<u8>,
) -> io::Result<()> {
    if let Some(error) = &mut record.error {
        let whole = Attachment::new(ERROR, error.encode_to_vec()).write(place)?;
        record.external_error = Some(whole);
        error.details.clear();
    }
    record.trace = Some(Attachment::new(trace::MEDIA_TYPE, spans).write(place)?);
    if !said.is_empty() {
        let said: Vec<_> = said.into_iter().map(|one| one.write(place)).collect::<Result<_, _>>()?;
        record.result.get_or_insert_default().attestations = said;
    }
    Ok(())
}

fn event(kind: BuildHistoryEventType, record: BuildHistoryRecord) -> BuildHistoryEvent {
    BuildHistoryEvent { r#type: kind.into(), record: Some(record) }
}

fn failed(error: &(dyn std::error::Error + 'static)) -> Failure {
    match error.downcast_ref() {
        Some(HistoryError::NoSuchBuild(_)) => Failure::NotFound(error.to_string()),
        _ => Failure::Value(stave_engine::one_line(error)),
    }
}

/// The build in the terms of the engine's own record.
fn beginning(request: &SolveRequest) -> Beginning {
    let attribute = |name: &str| request.frontend_attrs.get(name).filter(|text| !text.is_empty()).cloned();
    let context = ["vcs:localdir:context", "context"].into_iter().find_map(attribute);
    let context = context.map(|text| stave_engine::without_credentials(&text).into_owned());
    let names = request.exporters.iter().filter_map(|exporter| exporter.attrs.get("name"));
    Beginning {
        dockerfile: attribute("filename").unwrap_or_else(|| "Dockerfile".to_owned()),
        text: String::new(),
        context: context.unwrap_or_else(|| "context".to_owned()),
        target: attribute("target"),
        tags: names.flat_map(|names| names.split(',')).map(str::to_owned).take(64).collect(),
        platforms: attribute("platform").map(|text| vec![text]).unwrap_or_default(),
    }
}

fn ending(solved: &Result<SolveResponse, Failure>) -> Ending {
    match solved {
        Ok(response) => {
            let image = response.exporter_response.get("containerimage.config.digest");
            let images = image.and_then(|text| text.parse().ok()).into_iter().collect();
            Ending { state: BuildState::Succeeded, error: None, images }
        }
        Err(failure) => {
            let state = match failure {
                Failure::Cancelled => BuildState::Cancelled,
                _ => BuildState::Failed,
            };
            Ending { state, error: Some(failure.to_string()), images: Vec::new() }
        }
    }
}

fn told(failure: &Failure) -> rpc::Status {
    let status = failure.again().status();
    // With the place in the Dockerfile, as whoever built it was told.
    let mut details = rpc::Status::decode(status.details()).map(|whole| whole.details).unwrap_or_default();
    details.push(crate::failure::stack());
    rpc::Status { code: status.code().into(), message: status.message().to_owned(), details }
}

/// The images of a build; the first is told in the old place, too.
fn results(made: BTreeMap<usize, stave_oci::Descriptor>) -> Option<BuildResultInfo> {
    let descriptor = |descriptor: stave_oci::Descriptor| Descriptor {
        media_type: descriptor.media_type,
        digest: descriptor.digest.to_string(),
        size: i64::try_from(descriptor.size).unwrap_or(i64::MAX),
        annotations: HashMap::new(),
    };
    let number = |id: usize| i64::try_from(id).unwrap_or(i64::MAX);
    let first = made.values().next().cloned().map(descriptor)?;
    let results = made.into_iter().map(|(id, one)| (number(id), descriptor(one))).collect();
    Some(BuildResultInfo { result_deprecated: Some(first), results, ..BuildResultInfo::default() })
}

fn read(path: &Path) -> io::Result<BuildHistoryRecord> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(MAX_RECORD as u64).read_to_end(&mut bytes)?;
    Ok(BuildHistoryRecord::decode(bytes.as_slice())?)
}
