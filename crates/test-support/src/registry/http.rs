//! As much of HTTP/1.1 as a registry's clients speak.

use std::io::{self, BufRead as _, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};

use rustls::{ServerConnection, StreamOwned};

/// Longest request line or header accepted.
const MAX_LINE: u64 = 64 << 10;
/// Most headers accepted.
const MAX_HEADERS: usize = 100;
/// First byte of a TLS handshake record: what a client sends that tries https first.
const TLS_HANDSHAKE: u8 = 0x16;

/// A request without its body.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) method: String,
    /// Path and query, as sent.
    pub(super) target: String,
    headers: Vec<(String, String)>,
}

impl Head {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    pub(super) fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }

    /// A parameter of the query, decoded.
    pub(super) fn query(&self, name: &str) -> Option<String> {
        self.query_all(name).into_iter().next()
    }

    pub(super) fn query_all(&self, name: &str) -> Vec<String> {
        form_values(self.target.split_once('?').map_or("", |(_, query)| query), name)
    }

    pub(super) fn length(&self) -> u64 {
        self.header("content-length").and_then(|text| text.parse().ok()).unwrap_or(0)
    }

    fn is_chunked(&self) -> bool {
        self.header("transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked"))
    }

    pub(super) fn has_body(&self) -> bool {
        self.length() > 0 || self.is_chunked()
    }
}

/// The values of a form's field, decoded.
pub(super) fn form_values(form: &str, name: &str) -> Vec<String> {
    let pairs = form.split('&').filter_map(|pair| pair.split_once('='));
    pairs.filter(|(key, _)| *key == name).map(|(_, value)| decode(value)).collect()
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        let escaped = (byte == b'%').then(|| after.get(..2)).flatten();
        let escaped = escaped.and_then(|hex| std::str::from_utf8(hex).ok());
        match escaped.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(value) => {
                bytes.push(value);
                rest = &after[2..];
            }
            None => bytes.push(if byte == b'+' { b' ' } else { byte }),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// An answer.
#[derive(Debug)]
pub(super) struct Response {
    pub(super) status: u16,
    headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
}

impl Response {
    pub(super) fn new(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: Vec::new() }
    }

    /// Sets a header.
    pub(super) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.retain(|(known, _)| !known.eq_ignore_ascii_case(name));
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(super) fn with_body(mut self, body: Vec<u8>) -> Self {
        self.body = body;
        self
    }

    fn head(&self, framing: &str) -> String {
        let mut text = format!("HTTP/1.1 {} Scripted\r\n{framing}\r\n", self.status);
        for (name, value) in &self.headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        text.push_str("\r\n");
        text
    }

    fn framing(&self) -> String {
        format!("Content-Length: {}", self.body.len())
    }
}

/// Bytes to and from a client, in the clear or not.
pub(super) enum Stream {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ServerConnection, TcpStream>>),
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.read(buffer),
            Self::Tls(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.write(bytes),
            Self::Tls(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(stream) => stream.flush(),
            Self::Tls(stream) => stream.flush(),
        }
    }
}

/// One client's connection.
pub(super) struct Connection {
    reader: BufReader<Stream>,
}

impl Connection {
    pub(super) fn new(stream: Stream) -> Self {
        Self { reader: BufReader::new(stream) }
    }

    pub(super) fn stream(&mut self) -> &mut Stream {
        self.reader.get_mut()
    }

    /// The next request, `None` at the connection's end.
    pub(super) fn read_head(&mut self) -> io::Result<Option<Head>> {
        match self.reader.fill_buf()?.first() {
            None => return Ok(None),
            Some(&TLS_HANDSHAKE) => {
                // As Go's server does: an answer in the clear tells the client what it is talking to.
                self.stream().write_all(b"HTTP/1.0 400 Bad Request\r\n\r\n")?;
                let count = self.reader.buffer().len();
                self.reader.consume(count);
                self.close()?;
                return Ok(None);
            }
            Some(_) => {}
        }
        let line = self.read_line()?;
        let mut words = line.split(' ');
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let mut head = Head { method: method.to_owned(), target: target.to_owned(), headers: Vec::new() };
        while head.headers.len() < MAX_HEADERS {
            let line = self.read_line()?;
            let Some((name, value)) = line.split_once(':') else { break };
            head.headers.push((name.to_owned(), value.trim().to_owned()));
        }
        Ok(Some(head))
    }

    fn read_line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        (&mut self.reader).take(MAX_LINE).read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }

    /// The request's body, or its first `limit` bytes.
    pub(super) fn read_body(&mut self, head: &Head, limit: usize) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        if !head.is_chunked() {
            let wanted = head.length().min(limit as u64);
            (&mut self.reader).take(wanted).read_to_end(&mut body)?;
            return Ok(body);
        }
        loop {
            let line = self.read_line()?;
            let size = u64::from_str_radix(line.split(';').next().unwrap_or_default().trim(), 16);
            let size = size.map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
            (&mut self.reader).take(size).read_to_end(&mut body)?;
            self.read_line()?;
            if size == 0 || body.len() >= limit {
                body.truncate(limit);
                return Ok(body);
            }
        }
    }

    pub(super) fn write(&mut self, response: &Response, is_head: bool) -> io::Result<()> {
        let head = response.head(&response.framing());
        let stream = self.stream();
        stream.write_all(head.as_bytes())?;
        if !is_head {
            stream.write_all(&response.body)?;
        }
        stream.flush()
    }

    /// Announces the whole body and sends a part of it.
    pub(super) fn write_part(&mut self, response: &Response, count: usize) -> io::Result<()> {
        let head = response.head(&response.framing());
        let stream = self.stream();
        stream.write_all(head.as_bytes())?;
        stream.write_all(&response.body[..count.min(response.body.len())])?;
        stream.flush()
    }

    /// Sends until the other side has had enough.
    pub(super) fn write_endless(&mut self, response: &Response) -> io::Result<()> {
        let head = response.head("Transfer-Encoding: chunked");
        let stream = self.stream();
        stream.write_all(head.as_bytes())?;
        let mut chunk = b"8000\r\n".to_vec();
        chunk.extend(std::iter::repeat_n(b' ', 0x8000));
        chunk.extend(b"\r\n");
        loop {
            stream.write_all(&chunk)?;
        }
    }

    /// Breaks the connection, as a machine that loses power does: TLS says no goodbye either.
    pub(super) fn close(&mut self) -> io::Result<()> {
        match self.stream() {
            Stream::Plain(stream) => stream.shutdown(Shutdown::Both),
            Stream::Tls(stream) => stream.sock.shutdown(Shutdown::Both),
        }
    }
}
