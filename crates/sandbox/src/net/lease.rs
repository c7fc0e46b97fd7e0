//! Which process has which bridge network of this machine, without anybody to ask: a locked file each.
//!
//! A lock goes with the process that holds it, so a file that can be locked and names a namespace is a dead one's, and
//! what that left is removed. Everything happens under one more lock, for moments. Read [`Slots::claim`] first.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

use super::address::{SLOTS, device};
use super::forwarding;
use super::route::Routes;
use super::rules::Rules;

/// Bytes of a slot's file that are looked at: the number of a namespace.
const MAX_SLOT: usize = 32;

/// The files of all slots of this machine.
#[derive(Debug, Clone)]
pub(super) struct Slots {
    directory: PathBuf,
    /// The namespace these are about: that of the host as this process sees it.
    namespace: u64,
}

/// The lock under which slots change hands.
#[derive(Debug)]
pub(super) struct Turn {
    _lock: File,
}

/// A slot that is ours, until [`Slots::release`] or the end of the process.
#[derive(Debug)]
pub(super) struct Lease {
    pub(super) slot: u8,
    file: File,
    path: PathBuf,
}

impl Slots {
    /// Those in `directory`, for the network namespace of the calling thread.
    pub(super) fn new(directory: &Path) -> io::Result<Self> {
        let namespace = fs::metadata("/proc/thread-self/ns/net")?.ino();
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        Ok(Self { directory: directory.to_owned(), namespace })
    }

    /// Waits for the turn of this process.
    pub(super) fn turn(&self) -> io::Result<Turn> {
        let lock = open(&self.directory.join("lock"))?;
        rustix::fs::flock(&lock, FlockOperation::LockExclusive)?;
        Ok(Turn { _lock: lock })
    }

    /// Where switched switches are written down.
    pub(super) fn record(&self) -> PathBuf {
        self.directory.join(format!("forwarding-{}", self.namespace))
    }

    /// A slot whose device does not exist; `None` when all are taken.
    pub(super) fn claim(&self, _turn: &Turn, routes: &mut Routes) -> io::Result<Option<Lease>> {
        let links = routes.links()?;
        for slot in 0..SLOTS {
            // Somebody who shares the network but not this directory.
            if links.iter().any(|(_, name, _)| *name == device(slot)) {
                continue;
            }
            let path = self.path(slot);
            let mut file = open(&path)?;
            if !lock(&file)? {
                continue;
            }
            file.set_len(0)?;
            file.write_all(self.namespace.to_string().as_bytes())?;
            return Ok(Some(Lease { slot, file, path }));
        }
        Ok(None)
    }

    /// Gives a slot back whose device and rules are gone.
    pub(super) fn release(&self, _turn: &Turn, lease: Lease) -> io::Result<()> {
        let Lease { file, path, .. } = lease;
        // Nobody opens it meanwhile: it is our turn.
        fs::remove_file(path)?;
        drop(file);
        self.close_if_last()
    }

    /// Removes what dead processes left; returns how many there were.
    pub(super) fn sweep(&self, _turn: &Turn, routes: &mut Routes, rules: &mut Rules) -> io::Result<usize> {
        let mut swept = 0;
        for slot in 0..SLOTS {
            let path = self.path(slot);
            let Some(file) = existing(&path)? else { continue };
            if !lock(&file)? || self.owner(&path) != Some(self.namespace) {
                continue;
            }
            // Usually gone with the process: neither is an error.
            let _gone = routes.remove_link(&device(slot));
            let _gone = rules.remove(&device(slot));
            fs::remove_file(&path)?;
            swept += 1;
        }
        self.close_if_last()?;
        Ok(swept)
    }

    /// The devices of the slots whose holders are dead.
    pub(super) fn abandoned(&self, _turn: &Turn) -> io::Result<Vec<String>> {
        let mut abandoned = Vec::new();
        for slot in 0..SLOTS {
            let path = self.path(slot);
            if let Some(file) = existing(&path)?
                && lock(&file)?
                && self.owner(&path) == Some(self.namespace)
            {
                abandoned.push(device(slot));
            }
        }
        Ok(abandoned)
    }

    /// Undoes what was switched when nobody is left who needs it.
    fn close_if_last(&self) -> io::Result<()> {
        for slot in 0..SLOTS {
            let path = self.path(slot);
            if let Some(file) = existing(&path)?
                && self.owner(&path) == Some(self.namespace)
                && !lock(&file)?
            {
                return Ok(());
            }
        }
        forwarding::close(&self.record())
    }

    fn path(&self, slot: u8) -> PathBuf {
        self.directory.join(format!("slot-{slot}"))
    }

    /// The namespace the slot's holder is in, or was.
    fn owner(&self, path: &Path) -> Option<u64> {
        let text = fs::read_to_string(path).ok()?;
        text.get(..text.len().min(MAX_SLOT))?.trim().parse().ok()
    }
}

fn open(path: &Path) -> io::Result<File> {
    File::options().create(true).truncate(false).read(true).write(true).open(path)
}

fn existing(path: &Path) -> io::Result<Option<File>> {
    match File::options().read(true).write(true).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}

/// Whether nobody else has it locked; then we have.
fn lock(file: &File) -> io::Result<bool> {
    match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
        other => other.map(|()| true).map_err(Into::into),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_has_one_holder_and_is_free_again() {
        let directory = tempfile::tempdir().expect("a directory");
        let slots = Slots::new(directory.path()).expect("slots");
        let mut routes = Routes::here().expect("routes");
        let turn = slots.turn().expect("a turn");
        let first = slots.claim(&turn, &mut routes).expect("claims").expect("a slot");
        let second = slots.claim(&turn, &mut routes).expect("claims").expect("a slot");
        assert_ne!(first.slot, second.slot);
        let (slot, path) = (first.slot, first.path.clone());
        slots.release(&turn, first).expect("releases");
        assert!(!path.exists());
        assert_eq!(slots.claim(&turn, &mut routes).expect("claims").map(|lease| lease.slot), Some(slot));
    }

    #[test]
    fn what_a_dead_holder_left_is_swept() {
        let directory = tempfile::tempdir().expect("a directory");
        let slots = Slots::new(directory.path()).expect("slots");
        let (mut routes, mut rules) = (Routes::here().expect("routes"), Rules::here().expect("rules"));
        let turn = slots.turn().expect("a turn");
        let Lease { file, path, .. } = slots.claim(&turn, &mut routes).expect("claims").expect("a slot");
        assert_eq!(slots.sweep(&turn, &mut routes, &mut rules).expect("sweeps"), 0);
        // As the kernel does when a process ends.
        drop(file);
        assert_eq!(slots.sweep(&turn, &mut routes, &mut rules).expect("sweeps"), 1);
        assert!(!path.exists());
    }
}
