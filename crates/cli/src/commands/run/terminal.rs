//! Our terminal and the container's: raw mode, bytes both ways, size.

use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::termios::{OptionalActions, tcgetattr, tcgetwinsize, tcsetattr};
use stave_sandbox::TerminalSize;
use tokio::task::JoinHandle;

use crate::runtime::{remember_terminal, restore_terminal};

/// How often the input thread looks whether it is still wanted, in milliseconds.
const POLL: i64 = 100;

/// The size of our terminal, or a usual one where it cannot be asked.
pub(crate) fn size() -> TerminalSize {
    match tcgetwinsize(io::stdout()).or_else(|_| tcgetwinsize(io::stdin())) {
        Ok(found) if found.ws_row > 0 => TerminalSize { rows: found.ws_row, columns: found.ws_col },
        _ => TerminalSize { rows: 24, columns: 80 },
    }
}

/// Traffic between the two terminals. Our own is restored when it ends, however it ends.
pub(super) struct Session {
    output: JoinHandle<io::Result<()>>,
    done: Arc<AtomicBool>,
    _raw: Option<RawMode>,
}

impl Session {
    /// Puts our terminal into raw mode and starts copying.
    pub(super) fn start(master: OwnedFd) -> io::Result<Self> {
        let raw = RawMode::enter();
        let done = Arc::new(AtomicBool::new(false));
        let (reader, writer) = (std::fs::File::from(master.try_clone()?), std::fs::File::from(master));
        let stop = Arc::clone(&done);
        std::thread::spawn(move || drop(copy_input(writer, &stop)));
        let output = tokio::task::spawn_blocking(move || copy_output(reader));
        Ok(Self { output, done, _raw: raw })
    }

    /// Waits for the last output.
    pub(super) async fn finish(self) {
        self.done.store(true, Ordering::Relaxed);
        // Output that cannot be written has nowhere to be reported either.
        drop(self.output.await);
    }
}

/// Bytes typed here go to the container until it ends.
fn copy_input(mut to: std::fs::File, done: &AtomicBool) -> io::Result<()> {
    let mut buffer = [0; 4096];
    let mut stdin = io::stdin().lock();
    let timeout = rustix::event::Timespec { tv_sec: 0, tv_nsec: POLL * 1_000_000 };
    while !done.load(Ordering::Relaxed) {
        let mut fds = [PollFd::new(&stdin, PollFlags::IN)];
        if poll(&mut fds, Some(&timeout))? == 0 {
            continue;
        }
        match stdin.read(&mut buffer)? {
            0 => return Ok(()),
            length => to.write_all(&buffer[..length])?,
        }
    }
    Ok(())
}

/// What the container writes comes here. The master reports EIO when the last process is gone.
fn copy_output(mut from: std::fs::File) -> io::Result<()> {
    let mut buffer = [0; 16 << 10];
    let mut stdout = io::stdout().lock();
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(length) => {
                stdout.write_all(&buffer[..length])?;
                stdout.flush()?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

/// Our terminal without line editing and echo, until dropped.
struct RawMode;

impl RawMode {
    fn enter() -> Option<Self> {
        let before = tcgetattr(io::stdin()).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        remember_terminal(before);
        tcsetattr(io::stdin(), OptionalActions::Now, &raw).ok()?;
        Some(Self)
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore_terminal();
    }
}
