//! git's own program, run with nothing of this machine's configuration and nothing of this process's environment.
//! Owns that environment, what is handed over as configuration rather than as an argument (credentials), and how a
//! command ends. Must not know repositories. Read [`Git::run`] first.

use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process_group, prlimit};
use stave_solver::{EventSubscription, JobContext, LogStream};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::{Child, Command};
use tokio_util::sync::CancellationToken;

use super::GitRequest;
use super::error::{GitError, GitFailure};
use super::remote::{Protocol, Remote};
use super::ssh::SshAccess;
use crate::session::Session;
use crate::step::secret_value;
use crate::worker::Shared;

/// Bytes of an answer that is read: what a remote lists for one name is a few lines.
const OUTPUT_LIMIT: usize = 16 << 20;

/// Bytes of the end of git's messages that an error quotes.
const TAIL_LIMIT: usize = 16 << 10;

/// Bytes of one file that git may write: a pack is as large as its repository.
const FILE_LIMIT: u64 = 64 << 30;

/// Bytes read at once.
const CHUNK: usize = 16 << 10;

/// Variables of this process that say how the network is reached.
const PROXY_VARIABLES: [&str; 8] = [
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "ALL_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "all_proxy",
];

/// Configuration of every command. Nothing of a repository's makes a program of its run, and nothing is read from
/// this machine's disks unless a command says so.
const CONFIGURATION: [(&str, &str); 22] = [
    ("protocol.allow", "never"),
    ("protocol.http.allow", "always"),
    ("protocol.https.allow", "always"),
    ("protocol.ssh.allow", "always"),
    ("protocol.git.allow", "always"),
    ("safe.directory", "*"),
    ("safe.bareRepository", "all"),
    ("core.hooksPath", "/dev/null"),
    ("core.fsmonitor", "false"),
    ("core.attributesFile", "/dev/null"),
    ("core.excludesFile", "/dev/null"),
    ("core.autocrlf", "false"),
    ("core.symlinks", "true"),
    ("core.fileMode", "true"),
    ("core.askPass", ""),
    ("credential.helper", ""),
    ("init.defaultBranch", "master"),
    ("advice.detachedHead", "false"),
    ("gc.auto", "0"),
    ("maintenance.auto", "false"),
    ("fetch.recurseSubmodules", "false"),
    ("submodule.recurse", "false"),
];

/// What all commands for one request have in common.
pub(super) struct Git {
    /// Configuration for this request, credentials included.
    configuration: Vec<(String, String)>,
    ssh: SshAccess,
    /// Texts that must not be shown.
    hidden: Vec<String>,
    events: EventSubscription,
    cancel: CancellationToken,
}

/// Where a command works.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Place<'a> {
    /// The repository.
    pub git_dir: Option<&'a Path>,
    /// The files.
    pub work_tree: Option<&'a Path>,
    /// Another index than the repository's.
    pub index: Option<&'a Path>,
    /// Whether repositories of this machine may be fetched from.
    pub local: bool,
}

/// A command that did not do what it should.
#[derive(Debug)]
pub(super) enum RunError {
    /// It ran and said no.
    Failed(GitFailure),
    /// It did not run to its end.
    Broken(GitError),
}

impl RunError {
    /// The error with what was attempted.
    pub(super) fn because(self, wrap: impl FnOnce(GitFailure) -> GitError) -> GitError {
        match self {
            Self::Failed(failure) => wrap(failure),
            Self::Broken(error) => error,
        }
    }

    /// Whether git said one of these.
    pub(super) fn says(&self, words: &[&str]) -> bool {
        match self {
            Self::Failed(failure) => words.iter().any(|word| failure.stderr.contains(word)),
            Self::Broken(_) => false,
        }
    }
}

impl Git {
    /// Readies what the commands of a request need of the session: credentials, agent, known hosts.
    pub(super) async fn open(
        request: &GitRequest,
        shared: &Arc<Shared>,
        cx: &JobContext<Session>,
    ) -> Result<Self, GitError> {
        let mut configuration = Vec::new();
        let mut hidden = Vec::new();
        if let Some((scope, header)) = credentials(request, &cx.session)? {
            hidden.extend(header.split(' ').map(str::to_owned).filter(|word| word.len() > "basic".len()));
            configuration.push((format!("http.{scope}.extraheader"), format!("Authorization: {header}")));
        }
        // Addresses of submodules may be relative to it.
        configuration.push(("remote.origin.url".to_owned(), request.remote.address().to_owned()));
        let ssh = SshAccess::open(&request.access, request.remote.protocol(), shared, &cx.session).await?;
        Ok(Self { configuration, ssh, hidden, events: cx.events.clone(), cancel: cx.cancel.clone() })
    }

    /// What ends its commands from now on, beside what ends the build.
    pub(super) fn ended_by_itself(&mut self) -> CancellationToken {
        self.cancel = self.cancel.child_token();
        self.cancel.clone()
    }

    /// Runs a command that needs no repository; the result is what it wrote.
    pub(super) async fn run(&self, arguments: &[&str]) -> Result<String, RunError> {
        self.run_in(Place::default(), arguments).await
    }

    /// Runs a command in a place; the result is what it wrote.
    pub(super) async fn run_in(&self, place: Place<'_>, arguments: &[&str]) -> Result<String, RunError> {
        Ok(String::from_utf8_lossy(&self.bytes_in(place, arguments).await?).into_owned())
    }

    /// The same where what is written need not be text.
    pub(super) async fn bytes_in(&self, place: Place<'_>, arguments: &[&str]) -> Result<Vec<u8>, RunError> {
        let broken = |error| RunError::Broken(GitError::Run(error));
        let mut child = self.command(place, arguments).spawn().map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => RunError::Broken(GitError::NoProgram),
            _ => broken(error),
        })?;
        limit(&child);
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let reading = async { tokio::join!(read_all(stdout), self.pass_on(stderr)) };
        let (output, messages) = tokio::select! {
            read = reading => read,
            () = self.cancel.cancelled() => {
                end(&mut child).await;
                return Err(RunError::Broken(GitError::Cancelled));
            }
        };
        let (output, stderr) = (output.map_err(broken)?, messages.map_err(broken)?);
        let status = child.wait().await.map_err(broken)?;
        if status.success() {
            return Ok(output);
        }
        Err(RunError::Failed(GitFailure { stderr, status: ending(status) }))
    }

    fn command(&self, place: Place<'_>, arguments: &[&str]) -> Command {
        let mut command = Command::new("git");
        command.args(arguments).env_clear();
        for name in PROXY_VARIABLES.into_iter().chain(["PATH"]) {
            command.envs(std::env::var_os(name).map(|value| (name, value)));
        }
        for (name, value) in [
            ("LC_ALL", "C"),
            ("HOME", "/dev/null"),
            ("GIT_TERMINAL_PROMPT", "0"),
            ("GIT_CONFIG_NOSYSTEM", "1"),
            ("GIT_CONFIG_GLOBAL", "/dev/null"),
            ("GIT_ATTR_NOSYSTEM", "1"),
            ("GIT_PROTOCOL_FROM_USER", "0"),
            ("GIT_ASKPASS", ""),
            ("SSH_ASKPASS", ""),
            ("GIT_LFS_SKIP_SMUDGE", "1"),
        ] {
            command.env(name, value);
        }
        let file = if place.local { "always" } else { "never" };
        let mut pairs: Vec<(String, String)> =
            CONFIGURATION.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        pairs.push(("protocol.file.allow".to_owned(), file.to_owned()));
        pairs.extend(self.configuration.iter().cloned());
        command.env("GIT_CONFIG_COUNT", pairs.len().to_string());
        for (index, (name, value)) in pairs.iter().enumerate() {
            command.env(format!("GIT_CONFIG_KEY_{index}"), name);
            command.env(format!("GIT_CONFIG_VALUE_{index}"), value);
        }
        command.env("GIT_SSH_COMMAND", self.ssh.command());
        command.envs(self.ssh.socket().map(|socket| ("SSH_AUTH_SOCK", socket.to_owned())));
        let paths: [(&str, Option<&Path>); 3] =
            [("GIT_DIR", place.git_dir), ("GIT_WORK_TREE", place.work_tree), ("GIT_INDEX_FILE", place.index)];
        command.envs(paths.into_iter().filter_map(|(name, path)| Some((name, OsString::from(path?)))));
        let directory: PathBuf = place.work_tree.or(place.git_dir).unwrap_or(Path::new("/")).to_owned();
        command.current_dir(directory);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // Its helpers end with it when the build is cancelled.
        command.process_group(0).kill_on_drop(true);
        command
    }

    /// Shows what git says while it works, and keeps the end of it for an error.
    async fn pass_on(&self, stream: Option<impl AsyncRead + Unpin>) -> std::io::Result<String> {
        let Some(mut stream) = stream else { return Ok(String::new()) };
        let mut tail = String::new();
        let mut line = Vec::new();
        let mut chunk = vec![0; CHUNK];
        loop {
            let length = stream.read(&mut chunk).await?;
            line.extend_from_slice(&chunk[..length]);
            // Whole lines, so that nothing to be hidden is cut in two.
            let whole = match line.iter().rposition(|byte| *byte == b'\n') {
                _ if length == 0 || line.len() > TAIL_LIMIT => line.len(),
                Some(end) => end + 1,
                None => 0,
            };
            let text = self.hide(&String::from_utf8_lossy(&line[..whole]));
            line.drain(..whole);
            if !text.is_empty() {
                self.events.log(LogStream::Stderr, text.as_bytes()).await;
                tail.push_str(&text);
                keep_end(&mut tail);
            }
            if length == 0 {
                return Ok(tail);
            }
        }
    }

    fn hide(&self, text: &str) -> String {
        self.hidden.iter().fold(text.to_owned(), |text, secret| text.replace(secret, "xxxxx"))
    }
}

fn keep_end(text: &mut String) {
    if text.len() > TAIL_LIMIT {
        let cut = text.len() - TAIL_LIMIT;
        let cut = (cut..text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len());
        text.drain(..cut);
    }
}

async fn read_all(stream: Option<impl AsyncRead + Unpin>) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let Some(mut stream) = stream else { return Ok(bytes) };
    let mut chunk = vec![0; CHUNK];
    loop {
        let length = stream.read(&mut chunk).await?;
        if length == 0 {
            return Ok(bytes);
        }
        if bytes.len() + length > OUTPUT_LIMIT {
            return Err(std::io::Error::other(format!("it wrote more than {OUTPUT_LIMIT} bytes")));
        }
        bytes.extend_from_slice(&chunk[..length]);
    }
}

/// Bounds what a hostile remote can make git write.
fn limit(child: &Child) {
    let Some(pid) = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)) else { return };
    let limit = Rlimit { current: Some(FILE_LIMIT), maximum: Some(FILE_LIMIT) };
    if let Err(error) = prlimit(Some(pid), Resource::Fsize, limit) {
        tracing::debug!(%error, "git's file size is not limited");
    }
}

/// Ends a command with all it started, and waits for it.
async fn end(child: &mut Child) {
    if let Some(group) = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?))
        && let Err(error) = kill_process_group(group, Signal::KILL)
    {
        tracing::debug!(%error, "git was gone already");
    }
    if let Err(error) = child.wait().await {
        tracing::debug!(%error, "git's end was not seen");
    }
}

fn ending(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "unknown status".to_owned(),
    }
}

/// The header that authenticates, and for which addresses: the first of the session's secrets that is there, one
/// for this host before one for all, then what the address itself says.
fn credentials(request: &GitRequest, session: &Session) -> Result<Option<(String, String)>, GitError> {
    let remote: &Remote = &request.remote;
    if remote.protocol() != Protocol::Http {
        return Ok(None);
    }
    let access = &request.access;
    let host = remote.authority().unwrap_or_default();
    let names = [
        access.header_secret.as_ref().map(|name| (format!("{name}.{host}"), false)),
        access.token_secret.as_ref().map(|name| (format!("{name}.{host}"), true)),
        access.header_secret.as_ref().map(|name| (name.clone(), false)),
        access.token_secret.as_ref().map(|name| (name.clone(), true)),
    ];
    for (name, is_token) in names.into_iter().flatten() {
        let value = secret_value(session, &name, true).map_err(|error| GitError::UnreadableSecret {
            remote: remote.shown().to_owned(),
            fault: error.to_string(),
        })?;
        let Some(value) = value else { continue };
        let text = String::from_utf8(value).map_err(|_| GitError::Secret(name.clone()))?;
        // A file ends with a newline more often than not.
        let text = text.trim_end_matches(['\r', '\n']);
        let header = if is_token {
            format!("basic {}", STANDARD.encode(format!("x-access-token:{text}")))
        } else {
            text.to_owned()
        };
        if header.contains(|letter: char| letter.is_control()) {
            return Err(GitError::Secret(name));
        }
        return Ok(Some((remote.token_scope().to_owned(), header)));
    }
    Ok(remote.login())
}
