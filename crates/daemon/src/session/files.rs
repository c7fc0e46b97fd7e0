//! A client's directories: fetched into a directory of the store that outlives the build, so that only what changed
//! since the client's last build travels.
//!
//! Owns the call, its headers and where the files go. Must not know what is in the packets: see [`crate::fsutil`].
//! Start with [`ClientFiles`].

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use bollard_buildkit_proto::fsutil::types::Packet;
use bollard_buildkit_proto::moby::filesync::packet::file_sync_client::FileSyncClient;
use futures::future::BoxFuture;
use futures::{StreamExt as _, stream};
use stave_llb::pattern::PatternMatcher;
use stave_store::{MutableDir, Sharing, Store};
use stave_worker::{
    CLIENT_DIRECTORY, ContextFetchError, ContextProvider, ContextRequest, Differ, FetchedContext,
};
use tokio::sync::{OnceCell, mpsc, watch};
use tonic::metadata::{MetadataKey, MetadataMap, MetadataValue};
use tonic::{Request, Streaming};

use super::upload::Uploaded;
use super::{ClientSession, MAX_MESSAGE, Sessions};
use crate::fsutil::PACKETS;
use crate::fsutil::receive::{self, Manner};

const METHOD: &str = "/moby.filesync.v1.FileSync/DiffCopy";
/// Most directories, or parts of some, of one build.
const MAX_DIRECTORIES: usize = 1000;

/// The directories of one client.
///
/// Within one build a directory is fetched once: its parts must not see different states of it.
#[derive(Debug)]
pub(crate) struct ClientFiles {
    session: Arc<ClientSession>,
    sessions: Arc<Sessions>,
    store: Store,
    fetched: Mutex<HashMap<Wanted, Arc<OnceCell<Arc<FetchedDirectory>>>>>,
    given: Mutex<HashMap<String, Arc<FetchedDirectory>>>,
    elsewhere: Mutex<HashMap<String, Arc<ClientSession>>>,
}

/// What was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Wanted {
    name: String,
    session: Option<String>,
    hint: String,
    include: Vec<String>,
    exclude: Vec<String>,
    follow: Vec<String>,
    differ: Differ,
    metadata_but: Option<Vec<String>>,
}

/// A directory that was fetched. Nobody else changes it while this lives.
#[derive(Debug)]
pub(crate) enum FetchedDirectory {
    /// Kept for the client's next build.
    Kept(MutableDir),
    /// Part of something that the client sent as a whole, which stays while this does.
    Sent { path: PathBuf, _whole: Uploaded },
}

impl FetchedDirectory {
    pub(crate) fn path(&self) -> PathBuf {
        match self {
            Self::Kept(directory) => directory.path().to_owned(),
            Self::Sent { path, .. } => path.clone(),
        }
    }
}

impl ClientFiles {
    pub(crate) fn new(session: Arc<ClientSession>, sessions: Arc<Sessions>, store: Store) -> Self {
        Self {
            session,
            sessions,
            store,
            fetched: Mutex::default(),
            given: Mutex::default(),
            elsewhere: Mutex::default(),
        }
    }

    /// From now on the directory of this name is the one that was sent.
    pub(crate) fn give(&self, name: &str, directory: PathBuf, sent: Uploaded) {
        let mut given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        given.insert(name.to_owned(), Arc::new(FetchedDirectory::Sent { path: directory, _whole: sent }));
    }

    /// From now on the directory of this name is another session's.
    pub(crate) fn take_from(&self, name: &str, session: Arc<ClientSession>) {
        self.elsewhere.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), session);
    }

    /// Whose directory it is: a source may name a session, and where that is gone the build's own is asked, as BuildKit does.
    async fn session_of(&self, request: &ContextRequest<'_>) -> Arc<ClientSession> {
        if let Some(id) = request.session.filter(|id| *id != self.session.id())
            && let Ok(session) = self.sessions.of(self.session.owner(), id).await
        {
            return session;
        }
        let elsewhere = self.elsewhere.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(elsewhere.get(request.name).unwrap_or(&self.session))
    }

    /// Fetches what the request picks of a directory.
    pub(crate) async fn fetch(
        &self,
        request: &ContextRequest<'_>,
    ) -> Result<Arc<FetchedDirectory>, ContextFetchError> {
        if let Some(given) = self.given.lock().unwrap_or_else(PoisonError::into_inner).get(request.name) {
            return Ok(Arc::clone(given));
        }
        let wanted = Wanted {
            name: request.name.to_owned(),
            session: request.session.map(str::to_owned),
            hint: request.shared_key_hint.to_owned(),
            include: request.include.to_vec(),
            exclude: request.exclude.to_vec(),
            follow: request.follow.to_vec(),
            differ: request.differ,
            metadata_but: request.metadata_but.map(<[String]>::to_vec),
        };
        let slot = {
            let mut fetched = self.fetched.lock().unwrap_or_else(PoisonError::into_inner);
            if fetched.len() >= MAX_DIRECTORIES && !fetched.contains_key(&wanted) {
                let words = format!("more than {MAX_DIRECTORIES} local sources in one build");
                return Err(ContextFetchError(words));
            }
            Arc::clone(fetched.entry(wanted).or_default())
        };
        slot.get_or_try_init(|| async { self.fetch_now(request).await.map(Arc::new) }).await.cloned()
    }

    async fn fetch_now(&self, request: &ContextRequest<'_>) -> Result<FetchedDirectory, ContextFetchError> {
        let words = |error: &dyn std::fmt::Display| ContextFetchError(error.to_string());
        let session = self.session_of(request).await;
        let channel = session.channel(METHOD).map_err(|_| {
            // What BuildKit says where the client serves no directories at all.
            ContextFetchError("no local sources enabled".to_owned())
        })?;
        // One client's builds of one context meet here; another client's never do.
        // Nor does another tenant's, which may give itself any key: files of equal size and time are not sent again.
        let manner = Manner {
            is_all: request.differ == Differ::None,
            owner: None,
            metadata_but: request
                .metadata_but
                .map(PatternMatcher::new)
                .transpose()
                .map_err(|error| words(&error))?,
        };
        let part = if manner.metadata_but.is_some() { ":metadata" } else { "" };
        let (name, hint) = (request.name, request.shared_key_hint);
        let key = format!("{CLIENT_DIRECTORY}{name}:{hint}:{}{part}", session.shared_key());
        let key = self.session.owner().namespace.key(&key);
        let store = self.store.clone();
        let directory = tokio::task::spawn_blocking(move || {
            let directory = store.mutable_dir(&key, Sharing::Private)?;
            directory.initialised()
        });
        let directory = directory.await.map_err(|error| words(&error))?.map_err(|error| words(&error))?;
        let (to_client, requests) = mpsc::channel(PACKETS);
        let mut call = Request::new(packets(requests));
        *call.metadata_mut() = headers(request);
        let mut client = FileSyncClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
        let incoming =
            client.diff_copy(call).await.map_err(|status| ContextFetchError(status.message().to_owned()))?;
        let transfer = transfer((directory, manner), incoming.into_inner(), to_client, request.progress);
        tokio::select! {
            done = transfer => done,
            () = request.cancel.cancelled() => Err(ContextFetchError("context canceled".to_owned())),
            () = session.ended().cancelled() => {
                Err(ContextFetchError("the client went away".to_owned()))
            }
        }
    }
}

impl ContextProvider for ClientFiles {
    fn fetch<'a>(
        &'a self,
        request: ContextRequest<'a>,
    ) -> BoxFuture<'a, Result<FetchedContext, ContextFetchError>> {
        Box::pin(async move {
            let fetched = Self::fetch(self, &request).await?;
            Ok(FetchedContext { directory: fetched.path(), guard: Box::new(fetched) })
        })
    }
}

/// Runs the receiver on a thread of its own. It ends when the packets do: when the call is dropped, too.
async fn transfer(
    (directory, manner): (MutableDir, Manner),
    incoming: Streaming<Packet>,
    to_client: mpsc::Sender<Packet>,
    progress: &(dyn Fn(u64) + Send + Sync),
) -> Result<FetchedDirectory, ContextFetchError> {
    let (forward, mut packets) = mpsc::channel(PACKETS);
    let (count, mut counted) = watch::channel(0);
    let working = tokio::task::spawn_blocking(move || {
        let outcome = receive::receive(directory.path(), manner, &mut packets, &to_client, &|bytes| {
            count.send_replace(bytes);
        });
        // Until the echo of the end: a client that is cut off before it takes it for an error.
        drop(packets);
        drop(to_client);
        outcome.map(|received| (directory, received))
    });
    let pumping = pump(incoming, forward);
    let reporting = async {
        while counted.changed().await.is_ok() {
            progress(*counted.borrow_and_update());
        }
    };
    let (failure, ()) = futures::join!(pumping, reporting);
    let outcome = working.await.map_err(|error| ContextFetchError(error.to_string()))?;
    match (outcome, failure) {
        (Ok((directory, received)), _) => {
            tracing::debug!(?received, "fetched a directory");
            Ok(FetchedDirectory::Kept(directory))
        }
        // What the client said is the cause of what the receiver noticed.
        (Err(receive::ReceiveError::Closed), Some(words)) => Err(ContextFetchError(words)),
        (Err(error), _) => Err(ContextFetchError(crate::failure::one_line(&error))),
    }
}

/// Packets from the network to the receiver; returns the words of a call that failed.
async fn pump(mut incoming: Streaming<Packet>, forward: mpsc::Sender<Packet>) -> Option<String> {
    while let Some(packet) = incoming.next().await {
        match packet {
            Ok(packet) => {
                if forward.send(packet).await.is_err() {
                    // The receiver is done; what is left is the end of the stream.
                    while let Some(Ok(_)) = incoming.next().await {}
                    return None;
                }
            }
            Err(status) => return Some(status.message().to_owned()),
        }
    }
    None
}

/// A channel as the stream of a call.
pub(crate) fn packets<T: Send + 'static>(
    receiver: mpsc::Receiver<T>,
) -> impl futures::Stream<Item = T> + Send {
    stream::unfold(receiver, |mut receiver| async { Some((receiver.recv().await?, receiver)) })
}

fn headers(request: &ContextRequest<'_>) -> MetadataMap {
    let mut headers = MetadataMap::new();
    add(&mut headers, "dir-name", &[request.name.to_owned()]);
    add(&mut headers, "include-patterns", request.include);
    add(&mut headers, "exclude-patterns", request.exclude);
    add(&mut headers, "followpaths", request.follow);
    headers
}

/// Adds a list. Headers are ASCII: a list with anything else in it travels URL-encoded and says so.
fn add(headers: &mut MetadataMap, name: &'static str, values: &[String]) {
    let encode = values.iter().any(|value| !value.bytes().all(|byte| (b' '..=b'~').contains(&byte)));
    for value in values {
        let text = match encode {
            true => url::form_urlencoded::byte_serialize(value.as_bytes()).collect(),
            false => value.clone(),
        };
        if let Ok(value) = MetadataValue::try_from(text) {
            headers.append(name, value);
        }
    }
    if encode && let Ok(key) = MetadataKey::from_bytes(format!("{name}-encoded").as_bytes()) {
        headers.insert(key, MetadataValue::from_static("1"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(values: &[&str], expected: &[&str], encoded: bool) {
        let mut headers = MetadataMap::new();
        let values: Vec<String> = values.iter().map(|value| (*value).to_owned()).collect();
        add(&mut headers, "followpaths", &values);
        let sent: Vec<_> =
            headers.get_all("followpaths").iter().map(|value| value.to_str().expect("text")).collect();
        assert_eq!(sent, expected);
        assert_eq!(headers.get("followpaths-encoded").is_some(), encoded);
    }

    #[test]
    fn lists_in_headers() {
        check(&[], &[], false);
        check(&["a b", "*.go"], &["a b", "*.go"], false);
        check(&["ä b", "c/d"], &["%C3%A4+b", "c%2Fd"], true);
        check(&["line\nbreak"], &["line%0Abreak"], true);
    }
}
