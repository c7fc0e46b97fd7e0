//! The credential helper protocol: a program, one verb, a request on stdin, JSON on stdout.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;

use super::{Credential, KeychainError, Secret, TOKEN_USER};
use crate::limits::{CREDENTIAL_HELPER_TIMEOUT, MAX_CREDENTIAL_BYTES, MAX_SERVER_MESSAGE_CHARS};

/// What every helper prints, with a failing exit code, for a host it does not know.
const NOT_FOUND: &str = "credentials not found in native keychain";

/// One `docker-credential-<name>` program.
pub(super) struct Helper {
    name: String,
    program: PathBuf,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    #[serde(default)]
    username: String,
    #[serde(default)]
    secret: String,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Request<'a> {
    #[serde(rename = "ServerURL")]
    server_url: &'a str,
    username: &'a str,
    secret: &'a str,
}

impl Helper {
    pub(super) fn new(name: &str, directory: Option<&Path>) -> Result<Self, KeychainError> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        if name.is_empty() || !name.bytes().all(allowed) {
            return Err(KeychainError::HelperName(name.to_owned()));
        }
        let name = format!("docker-credential-{name}");
        let program = directory.map_or_else(|| PathBuf::from(&name), |directory| directory.join(&name));
        Ok(Self { name, program })
    }

    pub(super) async fn get(&self, server: &str) -> Result<Option<Credential>, KeychainError> {
        let output = self.run("get", server.as_bytes()).await?;
        if !output.status.success() {
            if said(&output).contains(NOT_FOUND) {
                return Ok(None);
            }
            return Err(self.failed("get", said(&output)));
        }
        // The answer is a secret: no part of it is quoted.
        let answer: Answer = serde_json::from_slice(&output.stdout)
            .map_err(|_| self.failed("get", "its answer is not the expected JSON".to_owned()))?;
        let secret = Secret::new(answer.secret);
        Ok(Some(match answer.username.as_str() {
            TOKEN_USER => Credential::IdentityToken(secret),
            username => Credential::Basic { username: username.to_owned(), password: secret },
        }))
    }

    pub(super) async fn store(&self, server: &str, credential: &Credential) -> Result<(), KeychainError> {
        let (username, secret) = match credential {
            Credential::Basic { username, password } => (username.as_str(), password),
            Credential::IdentityToken(token) => (TOKEN_USER, token),
            Credential::RegistryToken(_) => {
                return Err(KeychainError::NotStorable("a registry token is not a login"));
            }
        };
        let request = Request { server_url: server, username, secret: secret.expose() };
        let request = serde_json::to_vec(&request)
            .map_err(|_| KeychainError::NotStorable("the credential has no JSON form"))?;
        self.expect_success("store", &request).await
    }

    pub(super) async fn erase(&self, server: &str) -> Result<(), KeychainError> {
        self.expect_success("erase", server.as_bytes()).await
    }

    async fn expect_success(&self, verb: &'static str, input: &[u8]) -> Result<(), KeychainError> {
        let output = self.run(verb, input).await?;
        if output.status.success() { Ok(()) } else { Err(self.failed(verb, said(&output))) }
    }

    async fn run(&self, verb: &'static str, input: &[u8]) -> Result<Output, KeychainError> {
        let running = tokio::time::timeout(CREDENTIAL_HELPER_TIMEOUT, self.exchange(verb, input));
        let result = running.await.unwrap_or_else(|_| {
            let seconds = CREDENTIAL_HELPER_TIMEOUT.as_secs();
            Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {seconds} s")))
        });
        result.map_err(|source| KeychainError::HelperRun { program: self.name.clone(), source })
    }

    async fn exchange(&self, verb: &str, input: &[u8]) -> io::Result<Output> {
        let mut child = Command::new(&self.program)
            .arg(verb)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let write = async {
            if let Some(mut stdin) = stdin {
                // A helper that does not read its input closes it; its exit code tells what became of it.
                match stdin.write_all(input).await {
                    Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error),
                    _ => {}
                }
            }
            Ok(())
        };
        let ((), stdout, stderr) = tokio::try_join!(write, read_limited(stdout), read_limited(stderr))?;
        Ok(Output { status: child.wait().await?, stdout, stderr })
    }

    fn failed(&self, verb: &'static str, message: String) -> KeychainError {
        KeychainError::HelperFailed { program: self.name.clone(), verb, message }
    }
}

async fn read_limited(stream: Option<impl AsyncRead + Unpin>) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(stream) = stream {
        stream.take(MAX_CREDENTIAL_BYTES + 1).read_to_end(&mut bytes).await?;
    }
    if bytes.len() as u64 > MAX_CREDENTIAL_BYTES {
        return Err(io::Error::other(format!(
            "its answer is over the limit of {MAX_CREDENTIAL_BYTES} bytes"
        )));
    }
    Ok(bytes)
}

/// Helpers print their failures on stdout.
fn said(output: &Output) -> String {
    let text = if output.stdout.is_empty() { &output.stderr } else { &output.stdout };
    let text = String::from_utf8_lossy(text);
    text.trim().chars().filter(|letter| !letter.is_control()).take(MAX_SERVER_MESSAGE_CHARS).collect()
}
