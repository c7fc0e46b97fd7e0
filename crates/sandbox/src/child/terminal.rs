//! Standard streams: the terminal of a sandbox, and pipes handed to another user.
//!
//! Read [`open`] first.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, Uid};
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;

use super::devices::create_file;
use super::mounts::{attach, open_tree};
use super::root::Root;
use crate::channel::{AtStep as _, Failure};
use crate::error::SetupStep;
use crate::ids::IdMap;
use crate::spec::TerminalSize;
use crate::sys;

const CONSOLE: &str = "/dev/console";

/// Makes a terminal of the sandbox's own `/dev/pts` its controlling terminal, standard streams and console.
/// Returns the master side.
pub(super) fn open(root: &Root, size: TerminalSize, uid: u32) -> Result<OwnedFd, Failure> {
    let open = || -> io::Result<OwnedFd> {
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let master = rustix::fs::open("/dev/pts/ptmx", flags, Mode::empty())?;
        rustix::pty::unlockpt(&master)?;
        let peer = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let slave = rustix::pty::ioctl_tiocgptpeer(&master, peer)?;
        rustix::termios::tcsetwinsize(&master, size.into())?;
        if IdMap::current().has_uid(uid) {
            rustix::fs::fchown(&slave, Some(Uid::from_raw(uid)), None)?;
        }
        rustix::process::ioctl_tiocsctty(&slave)?;
        create_file(rustix::fs::CWD, CONSOLE)?;
        attach(&open_tree(&slave, Path::new(""), false)?, root.as_fd(), Path::new(CONSOLE))?;
        for number in 0..3 {
            sys::duplicate_onto(slave.as_fd(), number)?;
        }
        Ok(master)
    };
    open().at(SetupStep::Terminal)
}

/// Lets the process's user reopen a pipe through `/dev/stdout`, as programs that log there do. Files and
/// terminals stay the caller's.
pub(super) fn give_pipe_to(stream: &OwnedFd, uid: u32) {
    if uid != 0
        && rustix::fs::fstat(stream).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Fifo)
    {
        // A pipe of another user namespace cannot be given away; it stays usable as it is.
        let _kept = rustix::fs::fchown(stream, Some(Uid::from_raw(uid)), None);
    }
}

impl From<TerminalSize> for Winsize {
    fn from(size: TerminalSize) -> Self {
        Self { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 }
    }
}
