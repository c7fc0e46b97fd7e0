//! An object store that speaks as much of S3 as caches need, on loopback: objects are written, read, asked for and
//! copied onto themselves, and every request must be signed (AWS Signature Version 4).
//! Owns a reckoning of signatures of its own, so that a client cannot agree with itself. Start with [`TestBucket`].

use std::collections::BTreeMap;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use stave_oci::Digest;

/// Who may write.
pub const ACCESS_KEY: &str = "AKIDEXAMPLE";
/// His secret.
pub const SECRET_KEY: &str = "wJalrXUtnFEMI+bPxRfiCYEXAMPLEKEY";
/// When every object was written: long ago, so that clients touch what they want to keep.
const WRITTEN: &str = "Thu, 01 Jan 2015 00:00:00 GMT";
/// Bytes of one object.
const MAX_OBJECT: u64 = 64 << 20;
/// HMAC's block.
const BLOCK: usize = 64;

/// A server of one account's buckets; it ends with the value.
#[derive(Debug)]
pub struct TestBucket {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    objects: Mutex<BTreeMap<String, Vec<u8>>>,
    touched: AtomicUsize,
    stopped: AtomicBool,
}

/// A request as it came.
struct Request {
    method: String,
    target: String,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

impl TestBucket {
    /// Begins to serve.
    ///
    /// # Errors
    /// When there is no port.
    pub fn start() -> io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared::default());
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
        Ok(Self { address, shared, accepting: Some(accepting) })
    }

    /// The endpoint.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The objects there are: `/bucket/key`.
    pub fn objects(&self) -> Vec<String> {
        self.shared.objects.lock().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }

    /// How often an object was copied onto itself.
    pub fn touched(&self) -> usize {
        self.shared.touched.load(Ordering::Relaxed)
    }
}

impl Drop for TestBucket {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Release);
        // Wakes the thread that accepts.
        drop(TcpStream::connect(self.address));
        drop(self.accepting.take().map(JoinHandle::join));
    }
}

impl Shared {
    fn answer(&self, stream: &TcpStream) -> io::Result<()> {
        let request = Request::read(stream)?;
        if let Err(code) = request.check_signature() {
            // An answer to HEAD has no body.
            return if request.method == "HEAD" {
                respond(stream, 403, b"", false)
            } else {
                refuse(stream, 403, code)
            };
        }
        let mut objects = self.objects.lock().unwrap_or_else(PoisonError::into_inner);
        match request.method.as_str() {
            "PUT" if request.headers.contains_key("x-amz-copy-source") => {
                self.touched.fetch_add(1, Ordering::Relaxed);
                respond(stream, 200, b"<CopyObjectResult/>", true)
            }
            "PUT" => {
                objects.insert(request.target, request.body);
                respond(stream, 200, b"", true)
            }
            method @ ("GET" | "HEAD") => match objects.get(&request.target) {
                Some(object) => respond(stream, 200, object, method == "GET"),
                None if method == "HEAD" => respond(stream, 404, b"", false),
                None => refuse(stream, 404, "NoSuchKey"),
            },
            _ => refuse(stream, 405, "MethodNotAllowed"),
        }
    }
}

fn refuse(stream: &TcpStream, status: u16, code: &str) -> io::Result<()> {
    respond(stream, status, format!("<Error><Code>{code}</Code></Error>").as_bytes(), true)
}

fn respond(mut stream: &TcpStream, status: u16, body: &[u8], with_body: bool) -> io::Result<()> {
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 {status} X\r\nContent-Length: {length}\r\nLast-Modified: {WRITTEN}\r\nConnection: close\r\n\r\n"
    )?;
    if with_body { stream.write_all(body) } else { Ok(()) }
}

impl Request {
    fn read(stream: &TcpStream) -> io::Result<Self> {
        let invalid = || io::Error::from(io::ErrorKind::InvalidData);
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let mut words = line.split_whitespace();
        let method = words.next().ok_or_else(invalid)?.to_owned();
        let target = words.next().ok_or_else(invalid)?.to_owned();
        let mut headers = BTreeMap::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            let Some((name, value)) = line.trim_end().split_once(':') else { break };
            headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        }
        let length = headers.get("content-length").map_or(Ok(0), |text| text.parse::<u64>());
        let length = length.ok().filter(|length| *length <= MAX_OBJECT).ok_or_else(invalid)?;
        let mut body = Vec::new();
        reader.take(length).read_to_end(&mut body)?;
        Ok(Self { method, target, headers, body })
    }

    /// Reckons the signature anew from what arrived; the code S3 answers with when it is another.
    fn check_signature(&self) -> Result<(), &'static str> {
        let header = |name: &str| self.headers.get(name).map(String::as_str);
        let given = header("authorization").and_then(|text| text.strip_prefix("AWS4-HMAC-SHA256 "));
        let mut fields = BTreeMap::new();
        for field in given.ok_or("AccessDenied")?.split(',') {
            let (name, value) = field.trim().split_once('=').ok_or("AuthorizationHeaderMalformed")?;
            fields.insert(name, value);
        }
        let field = |name: &str| fields.get(name).copied().ok_or("AuthorizationHeaderMalformed");
        let (id, scope) = field("Credential")?.split_once('/').ok_or("AuthorizationHeaderMalformed")?;
        if id != ACCESS_KEY {
            return Err("InvalidAccessKeyId");
        }
        let payload = header("x-amz-content-sha256").ok_or("AuthorizationHeaderMalformed")?;
        if Digest::sha256(&self.body).hex() != payload {
            return Err("XAmzContentSHA256Mismatch");
        }
        let names = field("SignedHeaders")?;
        // What decides about a request must be signed.
        let decisive = |name: &&String| *name == "host" || name.starts_with("x-amz-");
        if self.headers.keys().filter(decisive).any(|name| !names.split(';').any(|signed| signed == name)) {
            return Err("AccessDenied");
        }
        let (path, query) = self.target.split_once('?').unwrap_or((&self.target, ""));
        let mut canonical = format!("{}\n{path}\n{query}\n", self.method);
        for name in names.split(';') {
            canonical += &format!("{name}:{}\n", header(name).unwrap_or_default());
        }
        canonical += &format!("\n{names}\n{payload}");
        let time = header("x-amz-date").ok_or("AuthorizationHeaderMalformed")?;
        let hash = Digest::sha256(canonical.as_bytes());
        let text = format!("AWS4-HMAC-SHA256\n{time}\n{scope}\n{}", hash.hex());
        let mut key = format!("AWS4{SECRET_KEY}").into_bytes();
        for part in scope.split('/') {
            key = hmac(&key, part.as_bytes());
        }
        let signature: String =
            hmac(&key, text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
        if signature == field("Signature")? { Ok(()) } else { Err("SignatureDoesNotMatch") }
    }
}

/// HMAC-SHA256 (RFC 2104), with a key that fits into a block.
fn hmac(key: &[u8], text: &[u8]) -> Vec<u8> {
    let padded = |pad: u8| (0..BLOCK).map(move |at| key.get(at).copied().unwrap_or(0) ^ pad);
    let inner: Vec<u8> = padded(0x36).chain(text.iter().copied()).collect();
    let outer: Vec<u8> = padded(0x5c).chain(sha256(&inner)).collect();
    sha256(&outer)
}

fn sha256(bytes: &[u8]) -> Vec<u8> {
    let digest = Digest::sha256(bytes);
    let pairs = digest.hex().as_bytes().chunks(2);
    pairs.filter_map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 4231, test case 2.
    #[test]
    fn hmac_is_the_standards() {
        let mac = hmac(b"Jefe", b"what do ya want for nothing?");
        assert_eq!(mac[..4], [0x5b, 0xdc, 0xc1, 0x46]);
        assert_eq!(mac[28..], [0x64, 0xec, 0x38, 0x43]);
    }
}
