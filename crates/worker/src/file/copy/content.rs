//! The bytes of a file into another: in the kernel where it can, and holes stay holes.
//! Must not know names, metadata or trees. Read [`copy`] first.

use std::cell::RefCell;
use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

/// Bytes moved by one call.
const CHUNK: usize = 1 << 20;

/// Files up to this size are read and written by one call each.
const SMALL: usize = 64 << 10;

thread_local! {
    /// Content on its way, allocated once for each thread.
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; SMALL]);
}

/// Copies `size` bytes into an empty file. Fewer bytes `allocated` than there are mean holes.
pub(super) fn copy(source: &OwnedFd, target: &OwnedFd, size: u64, allocated: u64) -> io::Result<()> {
    match size {
        0 => Ok(()),
        size if allocated < size => copy_data_ranges(source, target, size),
        size => copy_all(source, target, size),
    }
}

fn copy_all(source: &OwnedFd, target: &OwnedFd, size: u64) -> io::Result<()> {
    if size > SMALL as u64 && in_kernel(source, target)? {
        return Ok(());
    }
    BUFFER.with_borrow_mut(|buffer| {
        loop {
            let length = rustix::io::retry_on_intr(|| rustix::io::read(source, &mut buffer[..]))?;
            if length == 0 {
                return Ok(());
            }
            write_all(target, &buffer[..length])?;
        }
    })
}

/// Lets the kernel move the bytes; false when it cannot between these two file systems and nothing was moved.
fn in_kernel(source: &OwnedFd, target: &OwnedFd) -> io::Result<bool> {
    if rustix::fs::ioctl_ficlone(target, source).is_ok() {
        return Ok(true);
    }
    let mut moved = false;
    loop {
        match rustix::fs::copy_file_range(source, None, target, None, CHUNK * 64) {
            Ok(0) => return Ok(moved),
            Ok(_) => moved = true,
            Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) if !moved => break,
            Err(error) => return Err(error.into()),
        }
    }
    loop {
        match rustix::fs::sendfile(target, source, None, CHUNK) {
            Ok(0) => return Ok(moved),
            Ok(_) => moved = true,
            Err(Errno::INTR) => {}
            Err(Errno::INVAL | Errno::NOSYS) if !moved => return Ok(false),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Copies only the ranges that hold data, so that holes stay holes.
fn copy_data_ranges(source: &OwnedFd, target: &OwnedFd, size: u64) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    let mut at = 0;
    while at < size {
        let start = match rustix::fs::seek(source, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break,
            // No hole support: everything is data.
            Err(Errno::INVAL) => at,
            Err(error) => return Err(error.into()),
        };
        let end = rustix::fs::seek(source, SeekFrom::Hole(start)).unwrap_or(size).min(size);
        at = start;
        while at < end {
            let want = usize::try_from(end - at).unwrap_or(CHUNK).min(CHUNK);
            let length = rustix::io::retry_on_intr(|| rustix::io::pread(source, &mut buffer[..want], at))?;
            if length == 0 {
                break;
            }
            let mut written = 0;
            while written < length {
                let position = at + written as u64;
                written += rustix::io::retry_on_intr(|| {
                    rustix::io::pwrite(target, &buffer[written..length], position)
                })?;
            }
            at += length as u64;
        }
        at = end.max(start + 1);
    }
    Ok(rustix::fs::ftruncate(target, size)?)
}

fn write_all(target: &OwnedFd, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let written = rustix::io::retry_on_intr(|| rustix::io::write(target, bytes))?;
        bytes = &bytes[written..];
    }
    Ok(())
}
