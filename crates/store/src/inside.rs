//! Opening what hostile paths and links name, inside one directory. Knows nothing of what is there.
//! [`open_inside`] is all of it.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;
use rustix::path::Arg;

/// How often something is opened whose place the kernel cannot tell.
const ATTEMPTS: usize = 1000;

/// Opens a path as if `root` were the root directory: links, absolute ones and `..` included, stay inside.
///
/// While anybody renames or mounts anything on the machine the kernel may be unable to tell where a `..` led, and
/// asks to be asked again (openat2(2), `EAGAIN`); so it is, for a while.
///
/// # Errors
/// Those of openat2(2).
pub fn open_inside(
    root: impl AsFd,
    path: impl Arg + Copy,
    flags: OFlags,
    mode: Mode,
) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    for _ in 0..ATTEMPTS {
        match openat2(&root, path, flags | OFlags::CLOEXEC, mode, resolve) {
            Err(Errno::AGAIN) => {}
            opened => return opened,
        }
    }
    Err(Errno::AGAIN)
}
