//! Containers that a front end drives: made from mounts of results, with processes whose input and output travel.
//!
//! Owns their ids, their number, and their end: with their release, their first process, or their build.
//! Start with [`Containers`]; a call of `ExecProcess` is in [`exec`].

pub(super) mod exec;
mod message;
mod process;
mod voice;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use bollard_buildkit_proto::moby::buildkit::v1::frontend::{
    ExitMessage, NewContainerRequest, NewContainerResponse, ReleaseContainerRequest, ReleaseContainerResponse,
};
use stave_llb::Mount;
use stave_store::Snapshot;
use stave_worker::{Container, ContainerSpec};
use tokio::sync::Semaphore;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Request, Status};

use super::Gateway;
use crate::build::Build;
use crate::failure::Failure;

/// Most containers of one build at a time.
const MAX_CONTAINERS: usize = 64;
/// Most processes of one container at a time.
const MAX_PROCESSES: usize = 64;
/// Most mounts of one container.
const MAX_MOUNTS: usize = 1000;
/// The longest id, in bytes.
const MAX_ID: usize = 256;

/// The containers of one build, or of one front end in it.
#[derive(Debug, Default)]
pub(crate) struct Containers(Mutex<HashMap<String, Slot>>);

#[derive(Debug)]
enum Slot {
    /// Its file systems are being made ready.
    Beginning,
    Open(Arc<Open>),
}

/// A container that runs processes.
#[derive(Debug)]
pub(super) struct Open {
    container: Arc<Container>,
    processes: Arc<Semaphore>,
    /// Whether its first process was started; when that ends, all do.
    has_first: Mutex<bool>,
    /// Where its programs are looked for, if not where this system does.
    path: Option<&'static str>,
    /// How the first of its processes that failed did.
    failed: Mutex<Option<String>>,
    over: CancellationToken,
    _end: DropGuard,
}

impl Containers {
    /// Takes an id, as long as there are not too many.
    fn reserve(&self, id: &str) -> Result<(), Failure> {
        if id.is_empty() || id.len() > MAX_ID {
            return Err(Failure::Value("invalid container id".to_owned()));
        }
        let mut slots = self.lock();
        if slots.contains_key(id) {
            return Err(Failure::Value(format!("container {id} already exists")));
        }
        if slots.len() >= MAX_CONTAINERS {
            return Err(Failure::Value(format!("more than {MAX_CONTAINERS} containers in one build")));
        }
        slots.insert(id.to_owned(), Slot::Beginning);
        Ok(())
    }

    fn get(&self, id: &str) -> Result<Arc<Open>, Failure> {
        match self.lock().get(id) {
            Some(Slot::Open(open)) => Ok(Arc::clone(open)),
            _ => {
                let shown: String = id.chars().take(MAX_ID).collect();
                Err(Failure::NotFound(format!("container {shown:?} previously released or not created")))
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Slot>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) async fn new(
    gateway: &Gateway,
    request: Request<NewContainerRequest>,
) -> Result<NewContainerResponse, Failure> {
    let (build, containers) = gateway.containers(request.metadata()).await?;
    let request = request.into_inner();
    containers.reserve(&request.container_id)?;
    let made = tokio::select! {
        made = make(&build, &request) => made,
        () = build.cancel.cancelled() => Err(Failure::Cancelled),
    };
    let mut slots = containers.lock();
    match made {
        Ok(open) => drop(slots.insert(request.container_id, Slot::Open(Arc::new(open)))),
        Err(failure) => {
            slots.remove(&request.container_id);
            return Err(failure);
        }
    }
    Ok(NewContainerResponse {})
}

async fn make(build: &Arc<Build>, request: &NewContainerRequest) -> Result<Open, Failure> {
    if request.mounts.len() > MAX_MOUNTS {
        return Err(Failure::Value(format!("more than {MAX_MOUNTS} mounts")));
    }
    let (op, results) = message::container(request)?;
    let mut inputs: Vec<Snapshot> = Vec::with_capacity(results.len());
    for id in &results {
        inputs.push(build.solve(&*build.target(id)?).await?);
    }
    let session = build.session_for(&op).await?;
    let spec = ContainerSpec { op, inputs };
    let container = build.engine().container(spec, session, &build.cancel).await?;
    let over = build.cancel.child_token();
    Ok(Open {
        container: Arc::new(container),
        processes: Arc::new(Semaphore::new(MAX_PROCESSES)),
        has_first: Mutex::new(false),
        path: message::path_of(request.platform.as_ref()),
        failed: Mutex::default(),
        _end: over.clone().drop_guard(),
        over,
    })
}

pub(super) async fn release(
    gateway: &Gateway,
    request: Request<ReleaseContainerRequest>,
) -> Result<ReleaseContainerResponse, Failure> {
    let (build, containers) = gateway.containers(request.metadata()).await?;
    let id = request.into_inner().container_id;
    let open = containers.get(&id)?;
    open.over.cancel();
    containers.lock().remove(&id);
    // Who releases hears how its processes ended, those that end by this included.
    tokio::select! {
        failed = open.ended() => match failed {
            None => Ok(ReleaseContainerResponse {}),
            Some(words) => Err(Failure::Client(Box::new(Status::unknown(words)))),
        },
        () = build.cancel.cancelled() => Err(Failure::Cancelled),
    }
}

impl Open {
    /// Takes down how a process ended.
    fn note(&self, exit: &ExitMessage) {
        if let Some(error) = &exit.error {
            let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
            failed.get_or_insert_with(|| error.message.clone());
        }
    }

    /// Waits for the end of all processes; how the first that failed did.
    async fn ended(&self) -> Option<String> {
        let all = u32::try_from(MAX_PROCESSES).unwrap_or(u32::MAX);
        // It is never closed.
        let none_left = self.processes.acquire_many(all).await.ok();
        drop(none_left);
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A container that runs, for whoever looks at its files.
pub(super) async fn opened(
    gateway: &Gateway,
    headers: &tonic::metadata::MetadataMap,
    id: &str,
) -> Result<Arc<Container>, Failure> {
    let (_, containers) = gateway.containers(headers).await?;
    Ok(Arc::clone(&containers.get(id)?.container))
}

/// Whether two mounts are at the same place.
fn is_repeated(mounts: &[Mount]) -> bool {
    let mut places: Vec<_> = mounts.iter().map(Mount::target).collect();
    places.sort_unstable();
    places.windows(2).any(|pair| pair[0] == pair[1])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_taken_once_and_there_are_not_too_many() {
        let containers = Containers::default();
        let reserve = |id: &str| containers.reserve(id).map_err(|failure| failure.to_string());
        assert_eq!(reserve(""), Err("invalid container id".to_owned()));
        assert_eq!(reserve(&"x".repeat(MAX_ID + 1)), Err("invalid container id".to_owned()));
        for number in 0..MAX_CONTAINERS {
            assert_eq!(reserve(&number.to_string()), Ok(()));
        }
        assert_eq!(reserve("0"), Err("container 0 already exists".to_owned()));
        assert_eq!(reserve("x"), Err("more than 64 containers in one build".to_owned()));
        let absent = containers.get("0").expect_err("is not ready").to_string();
        assert_eq!(absent, "container \"0\" previously released or not created");
    }
}
