//! Sessions: what clients serve to the daemon while they wait for a build.
//!
//! A client opens a stream of bytes that carries HTTP/2 the other way round: the daemon is the caller there. Owns the
//! registry of open sessions and their end: by the stream's, or when two health checks in a row fail. What each service
//! of a client is good for is in the modules. Must not know builds. Start with [`Sessions`] and [`ClientSession`].

pub(crate) mod auth;
pub(crate) mod connection;
pub(crate) mod content;
pub(crate) mod exporters;
pub(crate) mod files;
pub(crate) mod layout;
pub(crate) mod output;
pub(crate) mod secrets;
pub(crate) mod ssh;
pub(crate) mod upload;
pub(crate) mod verifier;

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bollard_buildkit_proto::health::HealthCheckRequest;
use bollard_buildkit_proto::health::health_client::HealthClient;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::metadata::MetadataMap;
use tonic::transport::Channel;

use crate::tenants::Caller;

/// Most sessions at a time.
const MAX_SESSIONS: usize = 1000;
/// Most services one client may name.
const MAX_METHODS: usize = 256;
/// The longest id or key, in bytes.
const MAX_ID: usize = 256;
/// How long a build waits for its client's session.
const ARRIVAL: Duration = Duration::from_secs(5);
/// Between two health checks.
const HEALTH_INTERVAL: Duration = Duration::from_secs(5);
/// How long one health check may take: a client that sends a lot answers late.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(15);
/// Health checks that may fail in a row.
const HEALTH_FAILURES: u32 = 2;
/// The longest time between health checks that a client may ask for.
const HEALTH_MOST: Duration = Duration::from_secs(600);
/// How long a client is waited for that is asked whether it is still there.
const PROBE: Duration = Duration::from_secs(2);
/// The longest message taken from a client.
pub(crate) const MAX_MESSAGE: usize = 16 << 20;

const ID: &str = "x-docker-expose-session-uuid";
const SHARED_KEY: &str = "x-docker-expose-session-sharedkey";
/// How closely a client wants to be watched, in milliseconds.
const HEALTH: &str = "x-buildkit-session-health-custom-timeout";
const METHOD: &str = "x-docker-expose-session-grpc-method";

/// Why there is no session.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SessionError {
    /// No id, or one that is taken, too long or no text.
    #[error("invalid session id")]
    Id,
    /// More than are served.
    #[error("more than {MAX_SESSIONS} sessions")]
    TooMany,
    /// It did not arrive, or is over.
    #[error("no active session for {0}: context deadline exceeded")]
    Absent(String),
    /// The HTTP/2 connection could not be set up.
    #[error("cannot talk to the client: {0}")]
    Connection(String),
    /// The client does not serve this.
    #[error("method {0} not supported by the client")]
    Unsupported(&'static str),
}

/// What a client says of itself when it opens a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Introduction {
    /// The session's id, which builds name.
    pub(crate) id: String,
    /// What makes two sessions the same client, as far as its directories go; may be empty.
    pub(crate) shared_key: String,
    /// How it is watched.
    health: Health,
    methods: BTreeSet<String>,
}

/// When a client counts as gone that does not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Health {
    /// Between two checks.
    interval: Duration,
    /// How long a check may take.
    timeout: Duration,
    /// Checks in a row that may not fail.
    failures: u32,
}

impl Default for Health {
    fn default() -> Self {
        Self { interval: HEALTH_INTERVAL, timeout: HEALTH_TIMEOUT, failures: HEALTH_FAILURES }
    }
}

impl Health {
    /// What a client asks for, in milliseconds: one check decides then. Less than a second is taken for one.
    fn asked(text: &str) -> Self {
        match text.parse() {
            Ok(milliseconds @ 1..) => {
                let time = Duration::from_millis(milliseconds).clamp(Duration::from_secs(1), HEALTH_MOST);
                Self { interval: time, timeout: time, failures: 1 }
            }
            _ => Self::default(),
        }
    }
}

impl Introduction {
    /// Reads the headers of a `Session` call.
    pub(crate) fn read(headers: &MetadataMap) -> Result<Self, SessionError> {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let id = text(ID).to_owned();
        if id.is_empty() || id.len() > MAX_ID || text(SHARED_KEY).len() > MAX_ID {
            return Err(SessionError::Id);
        }
        let methods = headers.get_all(METHOD).iter().take(MAX_METHODS);
        let methods = methods.filter_map(|value| value.to_str().ok()).map(str::to_lowercase).collect();
        let health = Health::asked(text(HEALTH));
        Ok(Self { id, shared_key: text(SHARED_KEY).to_owned(), health, methods })
    }
}

/// An open session: the way to a client's services.
pub(crate) struct ClientSession {
    about: Introduction,
    owner: Caller,
    channel: Channel,
    ended: CancellationToken,
}

impl ClientSession {
    /// Who opened it.
    pub(crate) fn owner(&self) -> &Caller {
        &self.owner
    }

    /// Its id, a secret of its client and of what runs for it.
    pub(crate) fn id(&self) -> &str {
        &self.about.id
    }

    /// What makes two sessions the same client.
    pub(crate) fn shared_key(&self) -> &str {
        &self.about.shared_key
    }

    /// Fires when the session is over.
    pub(crate) fn ended(&self) -> &CancellationToken {
        &self.ended
    }

    /// Whether the client went away. Its calls may fail before the end of its stream of bytes is seen, so it is asked.
    pub(crate) async fn is_gone(&self) -> bool {
        let mut client = HealthClient::new(self.channel.clone());
        tokio::select! {
            biased;
            () = self.ended.cancelled() => true,
            answer = tokio::time::timeout(PROBE, client.check(HealthCheckRequest::default())) => match answer {
                // What a client answered has no cause on our side; a broken connection has.
                Ok(Err(status)) => std::error::Error::source(&status).is_some(),
                Ok(Ok(_)) | Err(_) => false,
            },
        }
    }

    /// The connection, if the client serves `method` (`/package.Service/Method`).
    pub(crate) fn channel(&self, method: &'static str) -> Result<Channel, SessionError> {
        match self.about.methods.contains(&method.to_lowercase()) {
            true => Ok(self.channel.clone()),
            false => Err(SessionError::Unsupported(method)),
        }
    }
}

impl fmt::Debug for ClientSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientSession").field("id", &self.about.id).finish_non_exhaustive()
    }
}

/// All open sessions, by id.
#[derive(Debug)]
pub(crate) struct Sessions {
    open: Mutex<HashMap<String, Arc<ClientSession>>>,
    changed: watch::Sender<()>,
}

impl Sessions {
    pub(crate) fn new() -> Self {
        Self { open: Mutex::default(), changed: watch::Sender::new(()) }
    }

    /// Serves a session until it ends by itself, by bad health or by `ended`.
    pub(crate) async fn run(
        &self,
        (about, owner): (Introduction, Caller),
        channel: Channel,
        ended: CancellationToken,
    ) -> Result<(), SessionError> {
        let session = Arc::new(ClientSession { about, owner, channel, ended: ended.clone() });
        let guard = self.enter(&session)?;
        tokio::select! {
            () = ended.cancelled() => {}
            () = watch_health(session.channel.clone(), session.about.health) => tracing::warn!("a session ended: its client does not answer"),
        }
        ended.cancel();
        drop(guard);
        Ok(())
    }

    fn enter(&self, session: &Arc<ClientSession>) -> Result<Entered<'_>, SessionError> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.len() >= MAX_SESSIONS {
            return Err(SessionError::TooMany);
        }
        let id = session.about.id.clone();
        // Ids are secrets of their clients: a second one would take over what the first is asked.
        if open.contains_key(&id) {
            return Err(SessionError::Id);
        }
        open.insert(id.clone(), Arc::clone(session));
        self.changed.send_replace(());
        Ok(Entered { sessions: self, id })
    }

    /// The session of this id, waiting for it a little: clients open it while they ask for the build.
    pub(crate) async fn get(&self, id: &str) -> Result<Arc<ClientSession>, SessionError> {
        let mut changed = self.changed.subscribe();
        let arrived = async {
            loop {
                changed.borrow_and_update();
                let open = self.open.lock().unwrap_or_else(PoisonError::into_inner).get(id).cloned();
                if let Some(session) = open {
                    return Some(session);
                }
                changed.changed().await.ok()?;
            }
        };
        let arrived = tokio::time::timeout(ARRIVAL, arrived).await.ok().flatten();
        arrived.ok_or_else(|| SessionError::Absent(id.chars().take(MAX_ID).collect()))
    }

    /// The same, if its owner is in the namespace of this caller: to all others it is nowhere.
    pub(crate) async fn of(&self, caller: &Caller, id: &str) -> Result<Arc<ClientSession>, SessionError> {
        let session = self.get(id).await?;
        match session.owner.namespace == caller.namespace {
            true => Ok(session),
            false => Err(SessionError::Absent(id.chars().take(MAX_ID).collect())),
        }
    }

    /// How many are open.
    pub(crate) fn count(&self) -> usize {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Ends all sessions.
    pub(crate) fn close(&self) {
        for session in self.open.lock().unwrap_or_else(PoisonError::into_inner).values() {
            session.ended.cancel();
        }
    }
}

/// Takes a session off the list.
struct Entered<'a> {
    sessions: &'a Sessions,
    id: String,
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.sessions.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}

/// Returns when a client has failed too many health checks.
async fn watch_health(channel: Channel, health: Health) {
    let mut client = HealthClient::new(channel);
    let mut failures = 0;
    while failures < health.failures {
        tokio::time::sleep(health.interval).await;
        let check = client.check(HealthCheckRequest::default());
        failures = match tokio::time::timeout(health.timeout, check).await {
            Ok(Ok(_)) => 0,
            Ok(Err(_)) | Err(_) => failures + 1,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(headers: &[(&'static str, &str)], expected: Option<(&str, &str, usize)>) {
        let mut map = MetadataMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().expect("a header"));
        }
        let found = Introduction::read(&map).ok();
        let found =
            found.as_ref().map(|about| (about.id.as_str(), about.shared_key.as_str(), about.methods.len()));
        assert_eq!(found, expected);
    }

    #[test]
    fn introductions() {
        check(&[(ID, "a"), (SHARED_KEY, "k"), (METHOD, "/x.Y/Z"), (METHOD, "/x.Y/W")], Some(("a", "k", 2)));
        check(&[(ID, "a")], Some(("a", "", 0)));
        check(&[], None);
        check(&[(ID, &"x".repeat(MAX_ID + 1))], None);
    }

    #[test]
    fn a_client_may_be_watched_more_closely() {
        let times = |text| {
            let Health { interval, timeout, failures } = Health::asked(text);
            (interval.as_millis(), timeout.as_millis(), failures)
        };
        assert_eq!(times("2000"), (2000, 2000, 1));
        assert_eq!(times("1"), (1000, 1000, 1));
        for usual in ["", "0", "-5", "soon"] {
            assert_eq!(times(usual), (5000, 15_000, 2), "{usual}");
        }
        assert_eq!(times("18446744073709551615").0, HEALTH_MOST.as_millis());
    }

    #[tokio::test]
    async fn a_client_is_gone_when_its_connection_is_even_before_its_stream_ends() {
        let ((ours, mut near), (mut far, theirs)) = (tokio::io::duplex(1 << 16), tokio::io::duplex(1 << 16));
        let wire = tokio::spawn(async move { tokio::io::copy_bidirectional(&mut near, &mut far).await });
        let connections = futures::StreamExt::chain(
            futures::stream::iter([Ok::<_, std::io::Error>(theirs)]),
            futures::stream::pending(),
        );
        let mut server = tonic::transport::Server::builder();
        let services = server.add_routes(tonic::service::Routes::default());
        let serving = tokio::spawn(services.serve_with_incoming(connections));
        let about = Introduction {
            id: "a".into(),
            shared_key: String::new(),
            health: Health::default(),
            methods: BTreeSet::new(),
        };
        let session = ClientSession {
            about,
            owner: Caller::anybody(),
            channel: connection::over(ours),
            ended: CancellationToken::new(),
        };
        assert!(!session.is_gone().await, "it answers, if only that it serves no such thing");
        wire.abort();
        assert!(wire.await.expect_err("was stopped").is_cancelled());
        assert!(session.is_gone().await);
        assert!(!session.ended().is_cancelled());
        serving.abort();
    }

    #[tokio::test]
    async fn a_session_is_found_once_it_is_there_and_gone_once_it_ended() {
        let sessions = Arc::new(Sessions::new());
        let channel = tonic::transport::Endpoint::from_static("http://127.0.0.1:1").connect_lazy();
        let about = Introduction {
            id: "a".into(),
            shared_key: String::new(),
            health: Health::default(),
            methods: ["/x.y/z".into()].into(),
        };
        let waiting = tokio::spawn({
            let sessions = Arc::clone(&sessions);
            async move { sessions.get("a").await }
        });
        let ended = CancellationToken::new();
        let running = tokio::spawn({
            let (sessions, about, ended) = (Arc::clone(&sessions), about.clone(), ended.clone());
            let channel = channel.clone();
            async move { sessions.run((about, Caller::anybody()), channel, ended).await }
        });
        let found = waiting.await.expect("no panic").expect("arrives");
        assert!(found.channel("/X.Y/Z").is_ok());
        assert_eq!(found.channel("/other").err(), Some(SessionError::Unsupported("/other")));
        let second = sessions.run((about, Caller::anybody()), channel, CancellationToken::new()).await;
        assert_eq!(second, Err(SessionError::Id), "an id is taken once");
        ended.cancel();
        running.await.expect("no panic").expect("ends");
        assert!(found.ended().is_cancelled());
        assert!(sessions.open.lock().expect("not poisoned").is_empty());
    }
}
