//! Git repositories behind HTTP on loopback, served by git's own `http-backend`, with a count of the bytes it sent.
//! Owns the little of HTTP and CGI that takes. Start with [`GitServer`].

use std::collections::HashMap;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use tempfile::TempDir;

/// A server of repositories; it ends with the value.
#[derive(Debug)]
pub struct GitServer {
    folder: TempDir,
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    root: PathBuf,
    /// The `Authorization` header without which nothing is answered.
    authorization: Mutex<Option<String>>,
    /// Files answered as they are, by path.
    files: Mutex<HashMap<String, StaticFile>>,
    requests: Mutex<Vec<String>>,
    sent: AtomicU64,
    stopped: AtomicBool,
}

/// A file that is not a repository's.
#[derive(Debug, Clone, Default)]
pub struct StaticFile {
    /// What it holds.
    pub body: Vec<u8>,
    /// Headers of the answer, such as `ETag`.
    pub headers: Vec<(String, String)>,
    /// Another address to go to instead.
    pub redirect: Option<String>,
}

impl GitServer {
    /// Begins to serve.
    ///
    /// # Errors
    /// When there is no port or no folder.
    pub fn start() -> io::Result<Self> {
        let folder = tempfile::tempdir()?;
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared { root: folder.path().to_owned(), ..Shared::default() });
        let accepting = {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || {
                for stream in listener.incoming() {
                    if shared.stopped.load(Ordering::Acquire) {
                        return;
                    }
                    let shared = Arc::clone(&shared);
                    // A client that goes away is its own business.
                    std::thread::spawn(move || stream.and_then(|stream| shared.answer(&stream)).ok());
                }
            })
        };
        Ok(Self { folder, address, shared, accepting: Some(accepting) })
    }

    /// Makes a repository, with a work tree to commit in.
    ///
    /// # Errors
    /// When git fails.
    pub fn repository(&self, name: &str) -> io::Result<Repository> {
        self.repository_with(name, "sha1")
    }

    /// The same with hashes of a kind: `sha1` or `sha256`.
    ///
    /// # Errors
    /// When git fails.
    pub fn repository_with(&self, name: &str, hash: &str) -> io::Result<Repository> {
        let format = format!("--object-format={hash}");
        let bare = self.folder.path().join(format!("{name}.git"));
        let tree = self.folder.path().join(format!("{name}.tree"));
        let repository = Repository { tree, bare: bare.clone() };
        let bare = bare.display().to_string();
        run(self.folder.path(), &["init", "--quiet", "--bare", "--initial-branch=main", &format, &bare])?;
        let tree = repository.tree.display().to_string();
        run(self.folder.path(), &["init", "--quiet", "--initial-branch=main", &format, &tree])?;
        repository.git(&["remote", "add", "origin", &bare])?;
        Ok(repository)
    }

    /// The address of a repository.
    pub fn url(&self, name: &str) -> String {
        format!("http://{}/{name}.git", self.address)
    }

    /// The address of a file.
    pub fn file_url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Host and port.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// Serves a file.
    pub fn put(&self, path: &str, file: StaticFile) {
        self.shared.files.lock().unwrap_or_else(PoisonError::into_inner).insert(path.to_owned(), file);
    }

    /// Answers only who has this `Authorization` header.
    pub fn require(&self, authorization: &str) {
        *self.shared.authorization.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(authorization.to_owned());
    }

    /// The requests so far, as `METHOD path status`.
    pub fn requests(&self) -> Vec<String> {
        self.shared.requests.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Bytes of all bodies sent so far.
    pub fn sent(&self) -> u64 {
        self.shared.sent.load(Ordering::Relaxed)
    }
}

impl Drop for GitServer {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Release);
        // Wakes the accepting thread.
        drop(TcpStream::connect(self.address));
        if let Some(accepting) = self.accepting.take() {
            accepting.join().ok();
        }
    }
}

/// A repository of a [`GitServer`].
#[derive(Debug)]
pub struct Repository {
    tree: PathBuf,
    bare: PathBuf,
}

impl Repository {
    /// The work tree.
    pub fn tree(&self) -> &Path {
        &self.tree
    }

    /// Writes a file into the work tree.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, path: &str, text: &str) -> io::Result<()> {
        let path = self.tree.join(path);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::write(path, text)
    }

    /// Commits all that is in the work tree and publishes it; the result is the commit.
    ///
    /// # Errors
    /// When git fails.
    pub fn commit(&self, message: &str) -> io::Result<String> {
        self.git(&["add", "--all"])?;
        self.git(&["commit", "--quiet", "--allow-empty", "--message", message])?;
        self.publish()?;
        Ok(self.git(&["rev-parse", "HEAD"])?.trim().to_owned())
    }

    /// Publishes branches and tags.
    ///
    /// # Errors
    /// When git fails.
    pub fn publish(&self) -> io::Result<()> {
        self.git(&["push", "--quiet", "--force", "--mirror", "origin"])?;
        Ok(())
    }

    /// Runs git in the work tree; the result is what it wrote.
    ///
    /// # Errors
    /// When git fails.
    pub fn git(&self, arguments: &[&str]) -> io::Result<String> {
        run(&self.tree, arguments)
    }

    /// Runs git in the published repository; the result is what it wrote.
    ///
    /// # Errors
    /// When git fails.
    pub fn git_published(&self, arguments: &[&str]) -> io::Result<String> {
        run(&self.bare, arguments)
    }
}

/// git with an author, a fixed time and nobody's configuration.
fn run(directory: &Path, arguments: &[&str]) -> io::Result<String> {
    let output = Command::new("git")
        .args(arguments)
        .current_dir(directory)
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_AUTHOR_NAME", "A")
        .env("GIT_AUTHOR_EMAIL", "a@example.test")
        .env("GIT_COMMITTER_NAME", "A")
        .env("GIT_COMMITTER_EMAIL", "a@example.test")
        .env("GIT_AUTHOR_DATE", "1700000000 +0000")
        .env("GIT_COMMITTER_DATE", "1700000000 +0000")
        .env("GIT_CONFIG_COUNT", "1")
        .env("GIT_CONFIG_KEY_0", "protocol.file.allow")
        .env("GIT_CONFIG_VALUE_0", "always")
        .output()?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(io::Error::other(format!("git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr))))
}

/// Status, headers and body.
type Answer = (u16, Vec<(String, String)>, Vec<u8>);

/// A request as read.
struct Request {
    method: String,
    path: String,
    query: String,
    headers: HashMap<String, String>,
    body: Vec<u8>,
}

impl Shared {
    fn answer(&self, mut stream: &TcpStream) -> io::Result<()> {
        let request = read(stream)?;
        let (status, headers, body) = self.response(&request)?;
        let line = format!("{} {} {status}", request.method, request.path);
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).push(line);
        self.sent.fetch_add(body.len() as u64, Ordering::Relaxed);
        let mut head =
            format!("HTTP/1.1 {status} x\r\nConnection: close\r\nContent-Length: {}\r\n", body.len());
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        stream.write_all(head.as_bytes())?;
        stream.write_all(b"\r\n")?;
        stream.write_all(&body)
    }

    fn response(&self, request: &Request) -> io::Result<Answer> {
        let required = self.authorization.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if required.is_some() && request.headers.get("authorization") != required.as_ref() {
            let challenge = ("WWW-Authenticate".to_owned(), "Basic realm=\"test\"".to_owned());
            return Ok((401, vec![challenge], Vec::new()));
        }
        let file = self.files.lock().unwrap_or_else(PoisonError::into_inner).get(&request.path).cloned();
        let Some(file) = file else { return self.backend(request) };
        if let Some(to) = file.redirect {
            return Ok((302, vec![("Location".to_owned(), to)], Vec::new()));
        }
        let condition = |header: &str, condition: &str| {
            let value = file.headers.iter().find(|(name, _)| name.eq_ignore_ascii_case(header));
            value.is_some_and(|(_, value)| request.headers.get(condition) == Some(value))
        };
        if condition("etag", "if-none-match") || condition("last-modified", "if-modified-since") {
            return Ok((304, file.headers, Vec::new()));
        }
        Ok((200, file.headers, file.body))
    }

    /// Hands a request to git.
    fn backend(&self, request: &Request) -> io::Result<Answer> {
        let mut command = Command::new("git");
        command
            .arg("http-backend")
            .env("GIT_PROJECT_ROOT", &self.root)
            .env("GIT_HTTP_EXPORT_ALL", "1")
            .env("REQUEST_METHOD", &request.method)
            .env("PATH_INFO", &request.path)
            .env("QUERY_STRING", &request.query)
            .env("REMOTE_ADDR", "127.0.0.1")
            .env("CONTENT_LENGTH", request.body.len().to_string());
        for (header, variable) in [
            ("content-type", "CONTENT_TYPE"),
            ("content-encoding", "HTTP_CONTENT_ENCODING"),
            ("git-protocol", "GIT_PROTOCOL"),
        ] {
            command.envs(request.headers.get(header).map(|value| (variable, value)));
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        if let Some(mut input) = child.stdin.take() {
            let body = request.body.clone();
            std::thread::spawn(move || input.write_all(&body).ok());
        }
        let output = child.wait_with_output()?.stdout;
        let end = output.windows(4).position(|window| window == b"\r\n\r\n").unwrap_or(output.len());
        let (mut status, mut headers) = (200, Vec::new());
        for line in String::from_utf8_lossy(&output[..end]).lines() {
            let Some((name, value)) = line.split_once(": ") else { continue };
            if name == "Status" {
                status = value.split(' ').next().and_then(|code| code.parse().ok()).unwrap_or(500);
            } else {
                headers.push((name.to_owned(), value.to_owned()));
            }
        }
        Ok((status, headers, output.get(end + 4..).unwrap_or_default().to_vec()))
    }
}

fn read(stream: &TcpStream) -> io::Result<Request> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut words = line.split(' ');
    let method = words.next().unwrap_or_default().to_owned();
    let target = words.next().unwrap_or_default().to_owned();
    let mut headers = HashMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        match line.trim_end().split_once(": ") {
            Some((name, value)) => headers.insert(name.to_ascii_lowercase(), value.to_owned()),
            None => break,
        };
    }
    let mut body = Vec::new();
    if headers.get("expect").is_some_and(|value| value == "100-continue") {
        let mut stream = stream;
        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
    }
    if headers.get("transfer-encoding").is_some_and(|value| value == "chunked") {
        loop {
            let mut size = String::new();
            reader.read_line(&mut size)?;
            let size = usize::from_str_radix(size.trim(), 16).map_err(io::Error::other)?;
            let mut chunk = vec![0; size + 2];
            reader.read_exact(&mut chunk)?;
            if size == 0 {
                break;
            }
            body.extend_from_slice(&chunk[..size]);
        }
    } else if let Some(length) = headers.get("content-length").and_then(|length| length.parse().ok()) {
        body = vec![0; length];
        reader.read_exact(&mut body)?;
    }
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    Ok(Request { method, path: path.to_owned(), query: query.to_owned(), headers, body })
}
