//! What a running step takes of the store's room, watched until it is too much.
//! Owns the waiting between looks. Must not know what a look is: see [`Growth`]. Read [`passed`] first.

use std::time::Duration;

use stave_store::{Growth, StoreError};

use crate::source::image::blocking;

/// Until the next look after one that saw nothing.
const AGAIN: Duration = Duration::from_millis(250);

/// Returns when the step has to end: it would pass the store's cap. Never without a cap.
pub(super) async fn passed(growth: Option<Growth>) -> StoreError {
    let Some(mut growth) = growth else { return std::future::pending().await };
    loop {
        let (same, looked) = blocking(move || {
            let looked = growth.look();
            (growth, looked)
        })
        .await;
        growth = same;
        let pause = match looked {
            Ok(pause) => pause,
            Err(error @ StoreError::CapReached { .. }) => return error,
            Err(error) => {
                // What cannot be seen now is measured when the step has ended, at the latest.
                tracing::warn!(%error, "what a step writes cannot be looked at");
                AGAIN
            }
        };
        tokio::time::sleep(pause).await;
    }
}
