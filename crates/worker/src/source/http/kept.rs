//! What is known of an address from earlier builds: the file, and what the server calls it.
//! Must not know requests. Read [`Kept`] first.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use stave_oci::Digest;
use stave_solver::JobContext;
use stave_store::{MutableDir, Sharing, Snapshot};

use super::HttpPin;
use crate::namespace::DOWNLOAD;
use crate::root::At as _;
use crate::session::Session;
use crate::source::SourceError;
use crate::source::image::blocking;
use crate::worker::Shared;

/// Between two tries for an address that another build downloads from.
const LOCK_POLL: Duration = Duration::from_millis(50);

/// Where it is written down.
const FILE: &str = "download.json";

/// A download of an earlier build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Known {
    pub digest: Digest,
    pub filename: String,
    pub modified: Option<i64>,
    pub snapshot: Snapshot,
    /// `ETag`, for asking whether it is still the same.
    pub etag: Option<String>,
    /// `Last-Modified`, for the same.
    pub last_modified: Option<String>,
}

impl Known {
    pub(super) fn pin(&self) -> HttpPin {
        HttpPin {
            digest: self.digest.clone(),
            filename: self.filename.clone(),
            modified: self.modified,
            snapshot: self.snapshot.clone(),
        }
    }

    fn to_json(&self) -> Value {
        let Self { digest, filename, modified, snapshot, etag, last_modified } = self;
        json!({
            "digest": digest.to_string(), "filename": filename, "modified": modified,
            "snapshot": snapshot.to_string(), "etag": etag, "lastModified": last_modified,
        })
    }

    fn from_json(value: &Value) -> Option<Self> {
        let text = |name: &str| value.get(name)?.as_str().map(str::to_owned);
        Some(Self {
            digest: text("digest")?.parse().ok()?,
            filename: text("filename")?,
            modified: value.get("modified").and_then(Value::as_i64),
            snapshot: text("snapshot")?.parse().ok()?,
            etag: text("etag"),
            last_modified: text("lastModified"),
        })
    }
}

/// The note about one address. Nobody else downloads from it while this lives.
pub(super) struct Kept {
    directory: MutableDir,
}

impl Kept {
    /// Opens the note about what `identity` stands for.
    pub(super) async fn open(
        shown: &str,
        identity: &str,
        shared: &Arc<Shared>,
        cx: &JobContext<Session>,
    ) -> Result<Self, SourceError> {
        let cancel = &cx.cancel;
        let key = cx.session.namespace.key(&format!("{DOWNLOAD}{shown} {identity}"));
        let directory = loop {
            let (shared, key) = (Arc::clone(shared), key.clone());
            match blocking(move || shared.store.try_mutable_dir(&key, Sharing::Locked)).await? {
                Some(directory) => break directory,
                None => tokio::select! {
                    () = tokio::time::sleep(LOCK_POLL) => {}
                    () = cancel.cancelled() => return Err(SourceError::Cancelled),
                },
            }
        };
        Ok(Self { directory: directory.initialised()? })
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join(FILE)
    }

    /// What is known, if its file is still here.
    pub(super) async fn known(&self, shared: &Arc<Shared>) -> Result<Option<Known>, SourceError> {
        let Ok(text) = tokio::fs::read(self.path()).await else { return Ok(None) };
        let known = serde_json::from_slice(&text).ok().as_ref().and_then(Known::from_json);
        let Some(known) = known else { return Ok(None) };
        let (store, snapshot) = (shared.store.clone(), known.snapshot.clone());
        Ok(blocking(move || store.exists(&snapshot)).await?.then_some(known))
    }

    /// Writes down what is known now.
    pub(super) async fn set(&self, known: &Known) -> Result<(), SourceError> {
        let aside = self.directory.path().join("new");
        tokio::fs::write(&aside, known.to_json().to_string()).await.at("writing", &aside)?;
        Ok(tokio::fs::rename(&aside, self.path()).await.at("writing", &self.path())?)
    }
}
