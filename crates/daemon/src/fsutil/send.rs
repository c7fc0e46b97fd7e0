//! The sending side: a directory of ours to a client's. Owns the walk and the answers to requests, each file once.
//! Blocks its thread. Start with [`send`].

use std::collections::HashMap;
use std::fs::{self, File, Metadata};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use tokio::sync::mpsc;

use super::mode::FileMode;
use super::selection::{Selection, Verdict, Within};
use super::{CHUNK, Packet, PacketType, Stat, packet};

/// Why a directory was not sent.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SendError {
    /// The receiver gave up.
    #[error("error from receiver: {0}")]
    Receiver(String),
    /// The receiver went away.
    #[error("the client went away in the middle of a transfer")]
    Closed,
    /// A file that was not offered, or not again.
    #[error("the client asked for file {0}, which it was not offered")]
    UnknownFile(u32),
    /// A name that is no text cannot travel.
    #[error("file name `{0}` is not valid UTF-8")]
    Name(String),
    /// A file cannot be read.
    #[error("cannot read `{path}`")]
    Read {
        /// Which.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Sends what is in `root`, which nobody changes meanwhile; returns the bytes of content that travelled.
pub(crate) fn send(
    root: &Path,
    incoming: &mut mpsc::UnboundedReceiver<Packet>,
    outgoing: &mpsc::Sender<Packet>,
) -> Result<u64, SendError> {
    send_as(root, None, incoming, outgoing)
}

/// Sends what `selection` picks in `root`, as nobody's: whose files these are here means nothing elsewhere.
pub(crate) fn send_picked(
    root: &Path,
    selection: &Selection,
    incoming: &mut mpsc::UnboundedReceiver<Packet>,
    outgoing: &mpsc::Sender<Packet>,
) -> Result<u64, SendError> {
    send_as(root, Some(selection), incoming, outgoing)
}

fn send_as(
    root: &Path,
    selection: Option<&Selection>,
    incoming: &mut mpsc::UnboundedReceiver<Packet>,
    outgoing: &mpsc::Sender<Packet>,
) -> Result<u64, SendError> {
    let (offered, links) = (HashMap::new(), HashMap::new());
    let mut sender = Sender { root, selection, outgoing, offered, links, next: 0, bytes: 0 };
    let outcome = sender.offer_all().and_then(|()| sender.answer(incoming));
    if let Err(error) = &outcome {
        let data = error.to_string().into_bytes();
        drop(outgoing.blocking_send(Packet { data, ..packet(PacketType::PacketErr, 0) }));
    }
    outcome.map(|()| sender.bytes)
}

struct Sender<'a> {
    root: &'a Path,
    /// What is sent, as whose; `None` sends everything as it is.
    selection: Option<&'a Selection>,
    outgoing: &'a mpsc::Sender<Packet>,
    /// Files by number.
    offered: HashMap<u32, PathBuf>,
    /// The first path of each file that has several.
    links: HashMap<(u64, u64), String>,
    next: u32,
    bytes: u64,
}

impl Sender<'_> {
    /// In the order that receivers insist on: what is in a directory right after it, names sorted by their bytes.
    fn offer_all(&mut self) -> Result<(), SendError> {
        let mut waiting: Vec<(PathBuf, Within)> = self.list(Path::new(""), &Within::default())?;
        // Directories that are offered only if something in them is, the outermost first.
        let mut pending: Vec<(PathBuf, Metadata)> = Vec::new();
        while let Some((path, within)) = waiting.pop() {
            let metadata =
                fs::symlink_metadata(self.root.join(&path)).map_err(|error| failed(&path, error))?;
            if metadata.file_type().is_socket() {
                continue;
            }
            let text = path.to_str().ok_or_else(|| SendError::Name(path.display().to_string()))?;
            let (verdict, within) = match self.selection {
                None => (Verdict::Taken, Within::default()),
                Some(selection) => selection.verdict(text, metadata.is_dir(), &within),
            };
            pending.retain(|(folder, _)| path.starts_with(folder));
            match verdict {
                Verdict::Left => continue,
                Verdict::Perhaps => pending.push((path.clone(), metadata.clone())),
                Verdict::Taken => {
                    for (folder, metadata) in std::mem::take(&mut pending) {
                        self.offer(&folder, &metadata)?;
                    }
                    self.offer(&path, &metadata)?;
                }
            }
            if metadata.is_dir() {
                waiting.extend(self.list(&path, &within)?);
            }
        }
        self.put(packet(PacketType::PacketStat, 0))
    }

    /// What is in a directory, the last name first.
    fn list(&self, folder: &Path, within: &Within) -> Result<Vec<(PathBuf, Within)>, SendError> {
        let entries = fs::read_dir(self.root.join(folder)).map_err(|error| failed(folder, error))?;
        let names = entries.map(|entry| entry.map(|entry| entry.file_name()));
        let mut names: Vec<_> = names.collect::<Result<_, _>>().map_err(|error| failed(folder, error))?;
        names.sort_unstable_by(|one, other| other.cmp(one));
        Ok(names.into_iter().map(|name| (folder.join(name), within.clone())).collect())
    }

    fn offer(&mut self, path: &Path, metadata: &Metadata) -> Result<(), SendError> {
        let text = |path: &Path| {
            path.to_str().map(str::to_owned).ok_or_else(|| SendError::Name(path.display().to_string()))
        };
        let mut stat = Stat {
            path: text(path)?,
            mode: FileMode::from_raw(metadata.mode()).0,
            uid: metadata.uid(),
            gid: metadata.gid(),
            mod_time: metadata.mtime().saturating_mul(1_000_000_000).saturating_add(metadata.mtime_nsec()),
            ..Stat::default()
        };
        if self.selection.is_some() {
            (stat.uid, stat.gid) = (0, 0);
        }
        if metadata.is_symlink() {
            let target = fs::read_link(self.root.join(path)).map_err(|error| failed(path, error))?;
            stat.linkname = text(&target)?;
        } else if metadata.is_file() {
            stat.size = i64::try_from(metadata.len()).unwrap_or(i64::MAX);
            let inode = (metadata.dev(), metadata.ino());
            match self.links.get(&inode) {
                Some(first) => stat.linkname.clone_from(first),
                None => drop(self.offered.insert(self.next, path.to_owned())),
            }
            if metadata.nlink() > 1 {
                self.links.entry(inode).or_insert_with(|| stat.path.clone());
            }
        } else if metadata.file_type().is_char_device() || metadata.file_type().is_block_device() {
            stat.devmajor = i64::from(rustix::fs::major(metadata.rdev()));
            stat.devminor = i64::from(rustix::fs::minor(metadata.rdev()));
        }
        self.next += 1;
        self.put(Packet { stat: Some(stat), ..packet(PacketType::PacketStat, 0) })
    }

    fn answer(&mut self, incoming: &mut mpsc::UnboundedReceiver<Packet>) -> Result<(), SendError> {
        loop {
            let request = incoming.blocking_recv().ok_or(SendError::Closed)?;
            match request.r#type() {
                PacketType::PacketReq => self.content(request.id)?,
                PacketType::PacketFin => return self.put(packet(PacketType::PacketFin, 0)),
                PacketType::PacketErr => {
                    let words = String::from_utf8_lossy(&request.data);
                    return Err(SendError::Receiver(words.chars().take(super::MAX_PATH).collect()));
                }
                PacketType::PacketStat | PacketType::PacketData => {}
            }
        }
    }

    fn content(&mut self, id: u32) -> Result<(), SendError> {
        // Once each: a client cannot have a file read for ever.
        let path = self.offered.remove(&id).ok_or(SendError::UnknownFile(id))?;
        let mut file = File::open(self.root.join(&path)).map_err(|error| failed(&path, error))?;
        let mut buffer = vec![0; CHUNK];
        loop {
            let read = file.read(&mut buffer).map_err(|error| failed(&path, error))?;
            self.put(Packet { data: buffer[..read].to_vec(), ..packet(PacketType::PacketData, id) })?;
            self.bytes += read as u64;
            if read == 0 {
                return Ok(());
            }
        }
    }

    fn put(&self, packet: Packet) -> Result<(), SendError> {
        self.outgoing.blocking_send(packet).map_err(|_| SendError::Closed)
    }
}

fn failed(path: &Path, source: io::Error) -> SendError {
    SendError::Read { path: path.display().to_string(), source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fsutil::PACKETS;
    use crate::fsutil::receive::{Manner, receive};

    /// Both sides against each other.
    #[test]
    fn what_is_sent_is_received() {
        let (from, to) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        fs::create_dir(from.path().join("a")).expect("made");
        fs::write(from.path().join("a/b"), vec![b'x'; 3 * CHUNK + 1]).expect("written");
        fs::write(from.path().join("a.txt"), "").expect("written");
        fs::hard_link(from.path().join("a/b"), from.path().join("c")).expect("linked");
        std::os::unix::fs::symlink("a/b", from.path().join("d")).expect("linked");
        let (to_receiver, mut packets) = mpsc::channel(PACKETS);
        let (requests, mut asked) = mpsc::channel(PACKETS);
        let (forward, mut incoming) = mpsc::unbounded_channel();
        let root = from.path().to_owned();
        let sending = std::thread::spawn(move || send(&root, &mut incoming, &to_receiver));
        let pumping = std::thread::spawn(move || {
            while let Some(packet) = asked.blocking_recv() {
                forward.send(packet).ok();
            }
        });
        let received =
            receive(to.path(), Manner::default(), &mut packets, &requests, &|_| {}).expect("received");
        drop(requests);
        assert_eq!((received.entries, received.files), (5, 2));
        assert_eq!(sending.join().expect("ends").expect("sent"), 3 * CHUNK as u64 + 1);
        pumping.join().expect("ends");
        assert_eq!(fs::read(to.path().join("d")).expect("reads").len(), 3 * CHUNK + 1);
        assert_eq!(fs::metadata(to.path().join("c")).expect("is there").nlink(), 2);
    }

    #[test]
    fn a_file_is_given_once_and_only_if_offered() {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("f"), "x").expect("written");
        for (asked, expected) in [(vec![7], 7), (vec![0, 0], 0)] {
            let (outgoing, _kept) = mpsc::channel(PACKETS);
            let (forward, mut incoming) = mpsc::unbounded_channel();
            for id in asked {
                forward.send(packet(PacketType::PacketReq, id)).expect("is open");
            }
            let outcome = send(folder.path(), &mut incoming, &outgoing);
            assert!(matches!(outcome, Err(SendError::UnknownFile(id)) if id == expected));
        }
    }
}
