//! What a process of a container says to its client, and when.
//!
//! BuildKit's client reads the messages of all its processes one after the other, and hands each to whoever reads that
//! process's output. One that connects two processes, as `a | b`, has a reader for the first only after it heard that the
//! second has started; with two messages of the first before that, it waits for itself for ever. Its own daemon needs a
//! moment to start a process; ours does not, and gives that moment to what follows the first message.
//! Owns that order. Must not know processes. Start with [`Voice`].

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bollard_buildkit_proto::moby::buildkit::v1::frontend::ExecMessage;
use bollard_buildkit_proto::moby::buildkit::v1::frontend::exec_message::Input;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::exec::Answers;

/// How long a client may take to start the process that reads another: about what a runtime needs to start one.
const MOMENT: Duration = Duration::from_millis(250);

/// The client has gone.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Gone;

/// The way to the client of one process.
#[derive(Debug)]
pub(super) struct Voice {
    id: String,
    answers: Answers,
    is_begun: AtomicBool,
    until: Instant,
    /// Nobody is waited for any more: the next process has started, or none will.
    followed: CancellationToken,
}

impl Voice {
    /// That of process `id`, of whose start the client hears now.
    pub(super) fn new(id: String, answers: Answers, followed: CancellationToken) -> Self {
        Self::waiting(id, answers, (MOMENT, followed))
    }

    fn waiting(id: String, answers: Answers, (moment, followed): (Duration, CancellationToken)) -> Self {
        Self { id, answers, is_begun: AtomicBool::new(false), until: Instant::now() + moment, followed }
    }

    /// Says it: the first message at once.
    pub(super) async fn say(&self, input: Input) -> Result<(), Gone> {
        if self.is_begun.swap(true, Ordering::AcqRel) {
            tokio::select! {
                () = self.followed.cancelled() => {}
                () = tokio::time::sleep_until(self.until) => {}
                () = self.answers.closed() => return Err(Gone),
            }
        }
        let message = ExecMessage { process_id: self.id.clone(), input: Some(input) };
        self.answers.send(Ok(message)).await.map_err(|_| Gone)
    }
}

#[cfg(test)]
mod tests {
    use bollard_buildkit_proto::moby::buildkit::v1::frontend::DoneMessage;
    use tokio::sync::mpsc;

    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    async fn says(voice: &Voice) -> Result<(), Gone> {
        voice.say(Input::Done(DoneMessage {})).await
    }

    #[tokio::test]
    async fn what_follows_the_first_message_waits_for_the_process_that_may_read_it() {
        let (answers, mut heard) = mpsc::channel(8);
        let followed = CancellationToken::new();
        let voice = Voice::waiting("first".to_owned(), answers.clone(), (LONG, followed.clone()));
        assert_eq!(says(&voice).await, Ok(()), "somebody may look at it");
        let second = tokio::spawn(async move { (says(&voice).await, says(&voice).await) });
        tokio::task::yield_now().await;
        assert_eq!((heard.len(), second.is_finished()), (1, false));
        followed.cancel();
        assert_eq!(second.await.expect("ends"), (Ok(()), Ok(())), "its reader is there");
        assert_eq!(heard.recv().await.expect("said").expect("well").process_id, "first");
    }

    #[tokio::test]
    async fn nobody_is_waited_for_longer_than_that() {
        let (answers, mut heard) = mpsc::channel(8);
        let voice = Voice::new("alone".to_owned(), answers, CancellationToken::new());
        assert_eq!((says(&voice).await, says(&voice).await), (Ok(()), Ok(())));
        assert!(voice.until <= Instant::now());
        assert_eq!(heard.recv().await.expect("said").expect("well").process_id, "alone");
    }

    #[tokio::test]
    async fn who_is_gone_is_not_waited_for() {
        let (answers, heard) = mpsc::channel(8);
        let voice = Voice::waiting("p".to_owned(), answers, (LONG, CancellationToken::new()));
        assert_eq!(says(&voice).await, Ok(()));
        drop(heard);
        assert_eq!(says(&voice).await, Err(Gone));
    }
}
