//! Executing this program again as the launcher, from a file nobody can write to.
//!
//! Read [`execute_launcher`] first.

use std::fs::File;
use std::io::{self, Seek as _};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};

use rustix::fs::{CWD, MemfdFlags, SealFlags};
use rustix::mount::OpenTreeFlags;
use rustix::thread::UnshareFlags;

use super::{LAUNCHER_NAME, LAUNCHER_VARIABLE, WITHOUT_NAMESPACES};
use crate::sys::{MountFlags, restrict_mount, unshare};

/// Starts the launcher with `socket` as its descriptor 0, in a pid namespace of its own. Later children of the
/// calling thread would be in that namespace too: call it on a thread made for the purpose.
pub(super) fn execute_launcher(socket: OwnedFd) -> io::Result<Child> {
    let program = readonly_clone().or_else(|_| sealed_copy())?;
    let mode = if crate::userns::has_namespaces() {
        unshare(UnshareFlags::NEWPID)?;
        "1"
    } else {
        WITHOUT_NAMESPACES
    };
    let child = Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()))
        .arg0(LAUNCHER_NAME)
        .env_clear()
        .env(LAUNCHER_VARIABLE, mode)
        .current_dir("/")
        .stdin(Stdio::from(socket))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    Ok(child)
}

/// The program's file in a detached, read-only mount. The path is looked up anew, since the running image may
/// belong to the mounts of another namespace; it must lead to the same file.
fn readonly_clone() -> io::Result<OwnedFd> {
    let path = std::fs::read_link("/proc/self/exe")?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = rustix::mount::open_tree(CWD, path, flags)?;
    let (running, found) = (std::fs::metadata("/proc/self/exe")?, rustix::fs::fstat(&tree)?);
    if (running.dev(), running.ino()) != (found.st_dev, found.st_ino) {
        return Err(io::ErrorKind::NotFound.into());
    }
    restrict_mount(tree.as_fd(), MountFlags { readonly: true, nosuid: true, nodev: true }, false)?;
    Ok(tree)
}

/// A copy of the program in memory that can no longer be changed.
fn sealed_copy() -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Kernels from 6.3 want to be told that it will be executed, older ones do not know the flag.
    let memory = rustix::fs::memfd_create("stave", flags | MemfdFlags::EXEC)
        .or_else(|_| rustix::fs::memfd_create("stave", flags))?;
    let mut copy = File::from(memory);
    io::copy(&mut File::open("/proc/self/exe")?, &mut copy)?;
    copy.rewind()?;
    rustix::fs::fcntl_add_seals(
        &copy,
        SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL,
    )?;
    Ok(copy.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_copy_holds_the_program_and_refuses_writes() {
        let copy = sealed_copy().expect("a copy");
        let own = std::fs::metadata("/proc/self/exe").expect("the running program");
        assert_eq!(rustix::fs::fstat(&copy).expect("a memory file").st_size as u64, own.len());
        assert_eq!(rustix::io::write(&copy, b"x"), Err(rustix::io::Errno::PERM));
    }
}
