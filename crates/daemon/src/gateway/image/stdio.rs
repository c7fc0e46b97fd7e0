//! A front end's standard input and output as one connection, and what it says on standard error.

use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::task::{Context, Poll};

use rustix::pipe::{PipeFlags, pipe_with};
use stave_worker::Stdio;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use tokio::net::unix::pipe;
use tonic::transport::server::Connected;

/// Bytes of the last words that are kept.
const MAX_WORDS: usize = 4 << 10;

/// What the front end writes and reads, from our side.
#[derive(Debug)]
pub(super) struct Connection {
    read: pipe::Receiver,
    write: pipe::Sender,
}

/// The descriptors of a front end, the connection to it, and its standard error.
pub(super) fn open() -> io::Result<(Stdio, Connection, pipe::Receiver)> {
    let (stdin, to_it) = pipe_with(PipeFlags::CLOEXEC)?;
    let (from_it, stdout) = pipe_with(PipeFlags::CLOEXEC)?;
    let (errors, stderr) = pipe_with(PipeFlags::CLOEXEC)?;
    let receiver = |fd: OwnedFd| {
        rustix::io::ioctl_fionbio(&fd, true)?;
        pipe::Receiver::from_owned_fd(fd)
    };
    rustix::io::ioctl_fionbio(&to_it, true)?;
    let connection = Connection { read: receiver(from_it)?, write: pipe::Sender::from_owned_fd(to_it)? };
    Ok((Stdio { stdin, stdout, stderr }, connection, receiver(errors)?))
}

/// The last of what a front end says, in one line; it is read to its end however much it is.
pub(super) async fn last_words(mut errors: pipe::Receiver) -> String {
    let mut kept: Vec<u8> = Vec::new();
    let mut buffer = vec![0; MAX_WORDS];
    while let Ok(count @ 1..) = errors.read(&mut buffer).await {
        kept.extend_from_slice(&buffer[..count]);
        let surplus = kept.len().saturating_sub(MAX_WORDS);
        kept.drain(..surplus);
    }
    let text = String::from_utf8_lossy(&kept).into_owned();
    let line = text.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or_default();
    line.chars().filter(|letter| !letter.is_control()).collect()
}

impl Connected for Connection {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.read).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.write).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.write).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.write).poll_shutdown(cx)
    }
}
