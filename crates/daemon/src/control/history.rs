//! The calls about builds of the past: reading files away from the threads that serve.

use std::sync::Arc;

use bollard_buildkit_proto::moby::buildkit::v1::{
    BuildHistoryEvent, BuildHistoryRequest, StatusResponse, UpdateBuildHistoryRequest,
};
use futures::{StreamExt as _, stream};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use tonic::Status;

use super::Answers;
use crate::failure::Failure;
use crate::history::{Archive, Listening, Replay};
use crate::session::files::packets;
use crate::state::Shared;
use crate::tenants::Caller;

/// Messages of a build of the past that wait for the network.
const MESSAGES: usize = 16;

/// What is told of builds, from the past on until the client or the daemon ends.
pub(super) async fn listen(
    shared: &Shared,
    caller: &Caller,
    request: BuildHistoryRequest,
) -> Result<Answers<BuildHistoryEvent>, Failure> {
    let wanted = request.r#ref.clone();
    let who = caller.clone();
    let Listening { now, later } = reading(shared, move |archive| archive.listen(&who, &request)).await?;
    let now = stream::iter(now.into_iter().map(Ok));
    let Some(later) = later else { return Ok(now.boxed()) };
    let closing = shared.closing.clone();
    let later = stream::unfold((later, wanted, caller.clone()), |(mut later, wanted, caller)| async {
        loop {
            match later.recv().await {
                Ok((owner, _)) if !caller.may_see(&owner) => {}
                Ok((_, event)) => {
                    let reference = event.record.as_ref().map_or("", |record| record.r#ref.as_str());
                    if wanted.is_empty() || wanted == reference {
                        return Some((Ok(event), (later, wanted, caller)));
                    }
                }
                Err(RecvError::Closed) => return None,
                Err(RecvError::Lagged(missed)) => {
                    let told = Status::data_loss(format!("{missed} events were missed"));
                    return Some((Err(told), (later, wanted, caller)));
                }
            }
        }
    });
    Ok(now.chain(later.take_until(closing.cancelled_owned())).boxed())
}

pub(super) async fn update(
    shared: &Shared,
    caller: &Caller,
    request: UpdateBuildHistoryRequest,
) -> Result<(), Failure> {
    let caller = caller.clone();
    reading(shared, move |archive| archive.update(&caller, &request)).await
}

/// What `Status` said of a build that is over; `None` for one that runs, or is nowhere.
pub(super) async fn past(shared: &Shared, caller: &Caller, build: &str) -> Option<Answers<StatusResponse>> {
    if shared.builds.is_known(build) {
        return None;
    }
    let (caller, build) = (caller.clone(), build.to_owned());
    let replay = reading(shared, move |archive| archive.replay(&caller, &build)).await.ok()?;
    let (sender, receiver) = mpsc::channel(MESSAGES);
    tokio::task::spawn_blocking(move || send(replay, &sender));
    Some(Box::pin(packets(receiver)))
}

fn send(replay: Replay, sender: &mpsc::Sender<Result<StatusResponse, Status>>) {
    for message in replay {
        let message = message.map_err(|error| Status::data_loss(error.to_string()));
        if sender.blocking_send(message).is_err() {
            return;
        }
    }
}

async fn reading<T: Send + 'static>(
    shared: &Shared,
    work: impl FnOnce(&Archive) -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    let archive = Arc::clone(&shared.history);
    let done = tokio::task::spawn_blocking(move || work(&archive)).await;
    done.unwrap_or_else(|error| Err(Failure::Value(error.to_string())))
}
