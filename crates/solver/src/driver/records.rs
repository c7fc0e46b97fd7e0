//! Records on their way to the index: those that come about the same time are written in one transaction.
//!
//! A transaction costs more than what is in it, and nobody waits for a single record; a build ends when all are
//! written. So the first one waits a moment for others, unless there is nothing else left to be done. What took long to
//! make is not risked for that: it is written before anybody uses it. Must not know what a record is for. Start with
//! [`Records::write`].

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use stave_cache::{CacheIndex, Claim, IndexError, KeyEntry, NewRecord};
use tokio::sync::{Notify, oneshot};

use crate::graph::Unwritten;

/// How long a record waits for others: less than a step needs to begin, so that who is killed in one has most of those
/// before it.
const GATHERING: Duration = Duration::from_millis(1);

/// What is not written yet.
#[derive(Debug, Default)]
pub(super) struct Records {
    waiting: Mutex<Vec<Waiting>>,
    hurry: Notify,
}

#[derive(Debug)]
struct Waiting {
    entries: Vec<KeyEntry>,
    record: Arc<NewRecord>,
    /// Dropped once it is written: whoever waited for this to run finds it then.
    claims: Vec<Claim>,
    written: oneshot::Sender<()>,
}

impl Records {
    /// Writes a record and returns when it is written, or cannot be.
    pub(super) async fn write(&self, index: &CacheIndex, unwritten: Unwritten, record: Arc<NewRecord>) {
        let (place, is_written) = self.enter(unwritten, record);
        if place == 0 {
            tokio::select! {
                () = tokio::time::sleep(GATHERING) => {}
                () = self.hurry.notified() => {}
            }
            self.write_waiting(index).await;
        }
        // Whoever was to write it panicked, if there is no answer: then it is not recorded.
        is_written.await.ok();
    }

    /// Writes a record, and those that wait, without waiting for others.
    pub(super) async fn write_now(&self, index: &CacheIndex, unwritten: Unwritten, record: Arc<NewRecord>) {
        let (_, is_written) = self.enter(unwritten, record);
        self.write_waiting(index).await;
        // Another may have taken it along and be writing it.
        is_written.await.ok();
    }

    /// How many came before, and what tells that it is written.
    fn enter(&self, unwritten: Unwritten, record: Arc<NewRecord>) -> (usize, oneshot::Receiver<()>) {
        let Unwritten { entries, claims } = unwritten;
        let (written, is_written) = oneshot::channel();
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.push(Waiting { entries, record, claims, written });
        (waiting.len() - 1, is_written)
    }

    async fn write_waiting(&self, index: &CacheIndex) {
        let all = std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
        if all.is_empty() {
            return;
        }
        let index = index.clone();
        // Off the async threads: another process may hold the index for a while.
        if let Err(error) = tokio::task::spawn_blocking(move || write_all(&index, all)).await {
            tracing::warn!(error = &error as &dyn std::error::Error, "results not recorded");
        }
    }

    /// Nothing is left to be done but this.
    pub(super) fn hurry(&self) {
        self.hurry.notify_one();
    }
}

fn write_all(index: &CacheIndex, all: Vec<Waiting>) {
    let records = all.iter().map(|one| (one.entries.as_slice(), one.record.as_ref()));
    let warn = |error: &IndexError| {
        tracing::warn!(error = error as &dyn std::error::Error, "result not recorded");
    };
    match index.insert_all(records) {
        // One of them is at fault, perhaps; where the index is busy, each would only wait as long as all did.
        Err(error) if all.len() > 1 && !error.is_busy() => {
            for one in &all {
                if let Err(error) = index.insert(&one.entries, &one.record) {
                    warn(&error);
                }
            }
        }
        outcome => drop(outcome.map_err(|error| warn(&error))),
    }
    for Waiting { claims, written, .. } in all {
        drop(claims);
        // Its task is gone with the solver.
        written.send(()).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt as _;
    use stave_cache::{KeyBuilder, KeyKind, KeyPreimage, ResultId};
    use std::time::UNIX_EPOCH;

    fn unwritten(name: &str) -> Unwritten {
        let (key, fields) = KeyBuilder::new("test").text("name", name).finish().into_parts();
        vec![KeyEntry { key, preimage: KeyPreimage { kind: KeyKind::Definition, fields } }].into()
    }

    fn record(name: &str) -> Arc<NewRecord> {
        Arc::new(NewRecord {
            result: ResultId::new(name).expect("short"),
            vertex: name.to_owned(),
            vertex_name: String::new(),
            created_at: UNIX_EPOCH,
            duration: Duration::ZERO,
        })
    }

    #[tokio::test]
    async fn what_comes_together_is_written_together() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let index = CacheIndex::open(&directory.path().join("cache.db")).expect("opens");
        let is_there = |name: &str| {
            let key = unwritten(name).entries.first().map(|entry| entry.key).expect("a key");
            index.lookup(&key).expect("works").is_some()
        };
        let records = Records::default();
        let claimed = |name: &str| {
            let mut unwritten = unwritten(name);
            let key = unwritten.entries.first().map(|entry| entry.key).expect("a key");
            unwritten.claims.extend(index.claim(&key).expect("works"));
            (unwritten, key)
        };
        let (first, key) = claimed("1");
        let mut first = Box::pin(records.write(&index, first, record("1")));
        assert!((&mut first).now_or_never().is_none());
        let mut second = Box::pin(records.write(&index, claimed("2").0, record("2")));
        assert!((&mut second).now_or_never().is_none());
        assert!(!is_there("1") && index.claim(&key).expect("works").is_none(), "nobody else may run it yet");
        records.hurry();
        // Who came first writes for both.
        first.await;
        second.now_or_never().expect("is written as well");
        assert!(is_there("1") && is_there("2") && index.claim(&key).expect("works").is_some());
        // Nobody has to hurry for it to be written.
        records.write(&index, unwritten("3"), record("3")).await;
        assert!(is_there("3"));
        // Who cannot wait takes along whoever waits.
        let mut patient = Box::pin(records.write(&index, unwritten("4"), record("4")));
        assert!((&mut patient).now_or_never().is_none());
        records.write_now(&index, unwritten("5"), record("5")).await;
        assert!(is_there("4") && is_there("5"));
        patient.await;
    }
}
