//! The receiving side: a directory becomes what somebody else's is, and only what differs travels.
//!
//! Owns the comparison, the limits and the writing. What comes is hostile: paths are checked before they are used,
//! each is opened below the root without following symlinks, and ids, sizes and counts are bounded. A file that was
//! not received whole has another time than the sender says, so that the next run asks for it again.
//! Blocks its thread. Start with [`receive`].

mod metadata;

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;
use tokio::sync::mpsc;

use stave_llb::pattern::PatternMatcher;

use self::metadata::Metadata;
use super::mode::{FileMode, Kind};
use super::path::{Order, PathFault, is_clean};
use super::{MAX_BYTES, MAX_ENTRIES, MAX_NAMES, MAX_PATH, Packet, PacketType, Stat, packet};

/// Files asked for at a time.
const WINDOW: usize = 64;

/// Why a directory was not received.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReceiveError {
    /// The sender gave up.
    #[error("error from sender: {0}")]
    Sender(String),
    /// The sender went away.
    #[error("the sender went away in the middle of a transfer")]
    Closed,
    /// A path that cannot be where it is.
    #[error(transparent)]
    Path(#[from] PathFault),
    /// More than is taken.
    #[error("the directory has more than {limit} {what}")]
    TooMuch {
        /// Of what.
        what: &'static str,
        /// How much is taken.
        limit: u64,
    },
    /// A packet that makes no sense here.
    #[error("unexpected packet: {0}")]
    Unexpected(&'static str),
    /// A device or socket.
    #[error("`{0}` is a device or socket")]
    Special(String),
    /// A hard link to something that is no file of the tree.
    #[error("`{path}` is a link to `{target}`, which is no file of the directory")]
    Link {
        /// The entry.
        path: String,
        /// What it names.
        target: String,
    },
    /// The disk.
    #[error("cannot write `{path}`")]
    Io {
        /// The entry.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// What a transfer came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Received {
    /// Entries of the tree.
    pub(crate) entries: u64,
    /// Files whose content travelled.
    pub(crate) files: u64,
    /// Bytes of content that travelled.
    pub(crate) bytes: u64,
}

/// What of a directory travels.
#[derive(Debug, Default)]
pub(crate) struct Manner {
    /// Files also that are here as they are there, by size, mode, owner and time.
    pub(crate) is_all: bool,
    /// Whose all entries become, user and group; as the sender says without it.
    pub(crate) owner: Option<(u32, u32)>,
    /// Only entries that this selects are placed; all are told in a file. `None` places everything.
    pub(crate) metadata_but: Option<PatternMatcher>,
}

/// Makes `directory` what the sender's is. `progress` is told the bytes so far.
pub(crate) fn receive(
    directory: &Path,
    manner: Manner,
    packets: &mut mpsc::Receiver<Packet>,
    requests: &mpsc::Sender<Packet>,
    progress: &dyn Fn(u64),
) -> Result<Received, ReceiveError> {
    let outcome = Receiver::open(directory, manner).and_then(|mut receiver| {
        receiver.read_tree(packets, progress)?;
        receiver.choose();
        receiver.remove_others()?;
        let wanted = receiver.place_all()?;
        receiver.fetch(&wanted, packets, requests, progress)?;
        receiver.finish()?;
        Ok(receiver.received)
    });
    // The sender may be gone: then it needs no answer.
    match &outcome {
        Ok(_) => drop(requests.blocking_send(packet(PacketType::PacketFin, 0))),
        Err(error) => {
            let data = error.to_string().into_bytes();
            drop(requests.blocking_send(Packet { data, ..packet(PacketType::PacketErr, 0) }));
        }
    }
    outcome
}

struct Receiver {
    root: OwnedFd,
    is_all: bool,
    owner: Option<(u32, u32)>,
    metadata: Option<Metadata>,
    /// All entries of the sender; an entry's place is its id.
    tree: Vec<Stat>,
    /// Entries that are not placed here; empty for none.
    left: Vec<bool>,
    /// Those that are placed.
    by_path: HashMap<String, usize>,
    received: Received,
}

impl Receiver {
    fn open(directory: &Path, manner: Manner) -> Result<Self, ReceiveError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::openat(CWD, directory, flags, Mode::empty()).at("/")?;
        Ok(Self {
            root,
            is_all: manner.is_all,
            owner: manner.owner,
            metadata: manner.metadata_but.map(Metadata::new),
            tree: Vec::new(),
            left: Vec::new(),
            by_path: HashMap::new(),
            received: Received::default(),
        })
    }

    /// The entries that are placed here, with their ids.
    fn placed(&self) -> impl DoubleEndedIterator<Item = (usize, &Stat)> {
        let is_left = |at: usize| self.left.get(at).copied().unwrap_or_default();
        self.tree.iter().enumerate().filter(move |(at, _)| !is_left(*at))
    }

    /// Decides what is placed, now that all entries are known.
    fn choose(&mut self) {
        let Some(metadata) = &self.metadata else { return };
        let placed = metadata.placed(&mut self.tree, &self.by_path);
        self.by_path.retain(|_, at| placed[*at]);
        self.left = placed.into_iter().map(|placed| !placed).collect();
    }

    /// Takes the list of entries.
    fn read_tree(
        &mut self,
        packets: &mut mpsc::Receiver<Packet>,
        progress: &dyn Fn(u64),
    ) -> Result<(), ReceiveError> {
        let (mut order, mut names) = (Order::default(), 0);
        loop {
            let packet = next(packets)?;
            let Some(mut stat) = packet.stat else {
                return match packet.r#type() {
                    PacketType::PacketStat => Ok(()),
                    _ => Err(ReceiveError::Unexpected("content before the list of files")),
                };
            };
            names += stat.path.len() + stat.linkname.len();
            limit("entries", self.tree.len() as u64 + 1, MAX_ENTRIES)?;
            limit("bytes of names", names as u64, MAX_NAMES)?;
            let kind = FileMode(stat.mode).kind();
            order.next(&stat.path, kind == Kind::Directory)?;
            self.check(&stat, kind)?;
            (stat.uid, stat.gid) = self.owner.unwrap_or((stat.uid, stat.gid));
            if let Some(metadata) = &mut self.metadata {
                metadata.add(&stat)?;
            }
            self.by_path.insert(stat.path.clone(), self.tree.len());
            self.tree.push(stat);
            self.received.entries += 1;
            progress(names as u64);
        }
    }

    fn check(&self, stat: &Stat, kind: Kind) -> Result<(), ReceiveError> {
        if kind == Kind::Special {
            return Err(ReceiveError::Special(stat.path.clone()));
        }
        if stat.linkname.len() > MAX_PATH || stat.linkname.contains('\0') {
            return Err(PathFault::Invalid(stat.linkname.clone()).into());
        }
        if kind == Kind::File && !stat.linkname.is_empty() {
            let target = self.by_path.get(&stat.linkname).and_then(|&at| self.tree.get(at));
            let is_file = target.is_some_and(|target| FileMode(target.mode).kind() == Kind::File);
            if !is_clean(&stat.linkname) || !is_file {
                let (path, target) = (stat.path.clone(), stat.linkname.clone());
                return Err(ReceiveError::Link { path, target });
            }
        }
        Ok(())
    }

    /// Removes what the sender does not have, and what is of another kind there.
    fn remove_others(&self) -> Result<(), ReceiveError> {
        let mut waiting = vec![String::new()];
        while let Some(directory) = waiting.pop() {
            let folder = self.directory(&directory).at(&directory)?;
            for name in names(&folder).at(&directory)? {
                let path = name.to_str().map(|name| join(&directory, name));
                let here = rustix::fs::statat(&folder, &*name, AtFlags::SYMLINK_NOFOLLOW).at(&directory)?;
                let here = FileMode::from_raw(here.st_mode).kind();
                let there = path
                    .as_ref()
                    .and_then(|path| self.by_path.get(path))
                    .map(|&at| FileMode(self.tree[at].mode).kind());
                match (path, there) {
                    (Some(path), Some(there)) if there == here => {
                        if here == Kind::Directory {
                            waiting.push(path);
                        }
                    }
                    _ => remove(&folder, &name).at(&directory)?,
                }
            }
        }
        Ok(())
    }

    /// Makes everything but the content of files; returns the files whose content is wanted.
    fn place_all(&self) -> Result<Vec<u32>, ReceiveError> {
        let mut wanted = Vec::new();
        for (id, stat) in self.placed() {
            if self.place(stat).at(&stat.path)? {
                wanted.push(u32::try_from(id).unwrap_or(u32::MAX));
            }
        }
        Ok(wanted)
    }

    /// Makes one entry; says whether its content is wanted.
    fn place(&self, stat: &Stat) -> io::Result<bool> {
        let (folder, name) = self.entry(&stat.path)?;
        let here = match rustix::fs::statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(here) => Some(here),
            Err(Errno::NOENT) => None,
            Err(error) => return Err(error.into()),
        };
        let mode = FileMode(stat.mode);
        match mode.kind() {
            Kind::Directory => {
                if here.is_none() {
                    rustix::fs::mkdirat(&folder, name, Mode::from_raw_mode(0o700))?;
                }
                Ok(false)
            }
            Kind::Symlink => {
                if here.is_some() {
                    let target = rustix::fs::readlinkat(&folder, name, Vec::new())?;
                    if target.to_bytes() == stat.linkname.as_bytes() {
                        return Ok(false);
                    }
                    rustix::fs::unlinkat(&folder, name, AtFlags::empty())?;
                }
                rustix::fs::symlinkat(stat.linkname.as_str(), &folder, name)?;
                own(&folder, name, stat)?;
                rustix::fs::utimensat(&folder, name, &times(stat), AtFlags::SYMLINK_NOFOLLOW)?;
                Ok(false)
            }
            Kind::Pipe => {
                if here.is_none() {
                    let mode = Mode::from_raw_mode(mode.permissions());
                    rustix::fs::mknodat(&folder, name, FileType::Fifo, mode, 0)?;
                    own(&folder, name, stat)?;
                }
                Ok(false)
            }
            Kind::File if !stat.linkname.is_empty() => Ok(false),
            Kind::File => match here {
                Some(here) if !self.is_all && is_same(&here, stat) => Ok(false),
                Some(_) => {
                    rustix::fs::unlinkat(&folder, name, AtFlags::empty())?;
                    Ok(true)
                }
                None => Ok(true),
            },
            Kind::Special => Err(Errno::INVAL.into()),
        }
    }

    /// Asks for files and writes what comes.
    fn fetch(
        &mut self,
        wanted: &[u32],
        packets: &mut mpsc::Receiver<Packet>,
        requests: &mpsc::Sender<Packet>,
        progress: &dyn Fn(u64),
    ) -> Result<(), ReceiveError> {
        let mut waiting = wanted.iter().copied();
        // `None` until the first of the content is there.
        let mut open: HashMap<u32, Option<File>> = HashMap::new();
        loop {
            while open.len() < WINDOW
                && let Some(id) = waiting.next()
            {
                let request = packet(PacketType::PacketReq, id);
                requests.blocking_send(request).map_err(|_| ReceiveError::Closed)?;
                open.insert(id, None);
            }
            if open.is_empty() {
                return Ok(());
            }
            let packet = next(packets)?;
            if packet.r#type() != PacketType::PacketData {
                return Err(ReceiveError::Unexpected("something else than content"));
            }
            let Some(file) = open.remove(&packet.id) else {
                return Err(ReceiveError::Unexpected("content nobody asked for"));
            };
            let stat = &self.tree[packet.id as usize];
            self.received.bytes += packet.data.len() as u64;
            limit("bytes", self.received.bytes, MAX_BYTES)?;
            let file = match file {
                Some(file) => file,
                None => self.create(stat).at(&stat.path)?,
            };
            if packet.data.is_empty() {
                settle(&file, stat).at(&stat.path)?;
                self.received.files += 1;
            } else {
                (&file).write_all(&packet.data).at(&stat.path)?;
                open.insert(packet.id, Some(file));
            }
            progress(self.received.bytes);
        }
    }

    fn create(&self, stat: &Stat) -> io::Result<File> {
        let (folder, name) = self.entry(&stat.path)?;
        create_at(&folder, name)
    }

    /// Hard links, now that all files are there, then what directories are like, now that nothing changes in them.
    fn finish(&self) -> Result<(), ReceiveError> {
        for (_, stat) in self.placed() {
            if is_file(stat) && !stat.linkname.is_empty() {
                self.link(stat).at(&stat.path)?;
            }
        }
        for (_, stat) in self.placed().rev() {
            if FileMode(stat.mode).kind() == Kind::Directory {
                self.directory(&stat.path).and_then(|folder| settle(&folder, stat)).at(&stat.path)?;
            }
        }
        match &self.metadata {
            Some(metadata) => self.tell(metadata.text()).at(metadata::FILE),
            None => Ok(()),
        }
    }

    /// Writes down what the entries are; whatever had the file's name is gone by now.
    fn tell(&self, text: &[u8]) -> io::Result<()> {
        let file = create_at(&self.root, metadata::FILE)?;
        (&file).write_all(text)?;
        Ok(rustix::fs::fchmod(&file, Mode::from_raw_mode(0o644))?)
    }

    fn link(&self, stat: &Stat) -> io::Result<()> {
        let (from, target) = self.entry(&stat.linkname)?;
        let (to, name) = self.entry(&stat.path)?;
        let wanted = rustix::fs::statat(&from, target, AtFlags::SYMLINK_NOFOLLOW)?;
        match rustix::fs::statat(&to, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(here) if here.st_ino == wanted.st_ino => return Ok(()),
            Ok(_) => rustix::fs::unlinkat(&to, name, AtFlags::empty())?,
            Err(Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(rustix::fs::linkat(&from, target, &to, name, AtFlags::empty())?)
    }

    /// Opens a directory of the tree; no symlink is followed on the way.
    fn directory(&self, path: &str) -> io::Result<OwnedFd> {
        let path = if path.is_empty() { "." } else { path };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        Ok(rustix::fs::openat2(&self.root, path, flags, Mode::empty(), resolve)?)
    }

    fn entry<'a>(&self, path: &'a str) -> io::Result<(OwnedFd, &'a str)> {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        Ok((self.directory(parent)?, name))
    }
}

fn is_file(stat: &Stat) -> bool {
    FileMode(stat.mode).kind() == Kind::File
}

fn create_at(folder: &OwnedFd, name: &str) -> io::Result<File> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(folder, name, flags, Mode::from_raw_mode(0o600))?.into())
}

/// Gives a finished file or directory its owner, mode and time, in this order: each would undo the one before.
fn settle(entry: impl AsFd, stat: &Stat) -> io::Result<()> {
    match rustix::fs::fchown(&entry, Some(Uid::from_raw(stat.uid)), Some(Gid::from_raw(stat.gid))) {
        // An ordinary user owns all it has; nothing depends on more.
        Ok(()) | Err(Errno::PERM) => {}
        Err(error) => return Err(error.into()),
    }
    rustix::fs::fchmod(&entry, Mode::from_raw_mode(FileMode(stat.mode).permissions()))?;
    for (name, value) in &stat.xattrs {
        if name.starts_with("user.") || name == "security.capability" {
            // The file system may not have them.
            rustix::fs::fsetxattr(&entry, name.as_str(), value, XattrFlags::empty()).ok();
        }
    }
    Ok(rustix::fs::futimens(&entry, &times(stat))?)
}

fn own(folder: &OwnedFd, name: &str, stat: &Stat) -> io::Result<()> {
    let (uid, gid) = (Some(Uid::from_raw(stat.uid)), Some(Gid::from_raw(stat.gid)));
    match rustix::fs::chownat(folder, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(()) | Err(Errno::PERM) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn times(stat: &Stat) -> Timestamps {
    let time = Timespec {
        tv_sec: stat.mod_time.div_euclid(1_000_000_000),
        tv_nsec: stat.mod_time.rem_euclid(1_000_000_000),
    };
    Timestamps { last_access: time, last_modification: time }
}

/// Whether a file need not travel: fsutil's rule.
fn is_same(here: &rustix::fs::Stat, stat: &Stat) -> bool {
    let time = i128::from(here.st_mtime) * 1_000_000_000 + i128::from(here.st_mtime_nsec);
    let owned = (here.st_uid, here.st_gid) == (stat.uid, stat.gid) || !rustix::process::geteuid().is_root();
    i128::from(here.st_size) == i128::from(stat.size)
        && time == i128::from(stat.mod_time)
        && here.st_mode & 0o7777 == FileMode(stat.mode).permissions()
        && owned
}

fn remove(folder: &OwnedFd, name: &std::ffi::OsStr) -> io::Result<()> {
    let here = rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)?;
    if FileType::from_raw_mode(here.st_mode) != FileType::Directory {
        return Ok(rustix::fs::unlinkat(folder, name, AtFlags::empty())?);
    }
    // The kernel's own name of the directory: removal goes on from there whatever the path is by now.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let inner = rustix::fs::openat(folder, name, flags, Mode::empty())?;
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&inner));
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        match entry.file_type()?.is_dir() {
            true => std::fs::remove_dir_all(entry.path())?,
            false => std::fs::remove_file(entry.path())?,
        }
    }
    Ok(rustix::fs::unlinkat(folder, name, AtFlags::REMOVEDIR)?)
}

fn names(folder: &OwnedFd) -> io::Result<Vec<std::ffi::OsString>> {
    use std::os::unix::ffi::OsStrExt as _;
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(std::ffi::OsStr::from_bytes(name).to_owned());
        }
    }
    Ok(names)
}

fn join(directory: &str, name: &str) -> String {
    if directory.is_empty() { name.to_owned() } else { format!("{directory}/{name}") }
}

fn next(packets: &mut mpsc::Receiver<Packet>) -> Result<Packet, ReceiveError> {
    let packet = packets.blocking_recv().ok_or(ReceiveError::Closed)?;
    if packet.r#type() == PacketType::PacketErr {
        let words = String::from_utf8_lossy(&packet.data);
        return Err(ReceiveError::Sender(words.chars().take(MAX_PATH).collect()));
    }
    Ok(packet)
}

fn limit(what: &'static str, amount: u64, limit: u64) -> Result<(), ReceiveError> {
    if amount > limit { Err(ReceiveError::TooMuch { what, limit }) } else { Ok(()) }
}

trait At<T> {
    fn at(self, path: &str) -> Result<T, ReceiveError>;
}

impl<T, E: Into<io::Error>> At<T> for Result<T, E> {
    fn at(self, path: &str) -> Result<T, ReceiveError> {
        self.map_err(|source| ReceiveError::Io { path: path.to_owned(), source: source.into() })
    }
}

#[cfg(test)]
mod tests;
