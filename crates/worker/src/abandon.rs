//! Blocking work that nobody waits for any more once it is cancelled.
//!
//! What waits for room in the store hears of no cancellation, and whoever presses ^C is not to wait with it. What such work
//! makes after all goes as soon as it is made: its result must own all of it. Must not know what the work is. Read
//! [`until_cancelled`] first.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::source::image::blocking;

/// How long work that was cancelled may take to end by itself and to remove what it made.
const GRACE: Duration = Duration::from_millis(500);

/// Runs blocking work beside the runtime; `None` when it was cancelled and goes on without being waited for.
pub(crate) async fn until_cancelled<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
    cancel: &CancellationToken,
) -> Option<T> {
    until(work, cancel, GRACE).await
}

async fn until<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
    cancel: &CancellationToken,
    grace: Duration,
) -> Option<T> {
    let mut work = std::pin::pin!(blocking(work));
    tokio::select! {
        value = &mut work => return Some(value),
        () = cancel.cancelled() => {}
    }
    tokio::time::timeout(grace, work).await.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_cancelled_is_waited_for_a_while() {
        let cancel = CancellationToken::new();
        assert_eq!(until(|| 1, &cancel, Duration::ZERO).await, Some(1));
        cancel.cancel();
        assert_eq!(until(|| 2, &cancel, Duration::from_secs(3600)).await, Some(2));
        let (release, room) = std::sync::mpsc::channel::<()>();
        let waits = move || room.recv().is_ok();
        assert_eq!(until(waits, &cancel, Duration::ZERO).await, None);
        drop(release);
    }
}
