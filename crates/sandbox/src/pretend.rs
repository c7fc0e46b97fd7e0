//! Calls of a sandbox that are answered by its owner. Other owners in a user namespace that has but one: calls that
//! would fail for want of ids succeed. And what takes much of a disk at once waits until there is room.
//!
//! Owns the filter and the thread that answers for it. Must not know how owners are recorded or what room there is: it
//! is told, see [`OwnerRecorder`] and [`Room`]. Read [`install`] first, then [`Supervisor`].
//!
//! - `chown` and its kin stop at the filter, and a thread of the caller answers: it finds the file as the process
//!   would (its root, its working directory), makes it the one user's, and has the wanted owner recorded.
//! - `setuid`, `setgroups` and their kin succeed without effect, as under fakeroot: package managers change to users
//!   of theirs for single tasks.
//!
//! What the thread does, it does with a descriptor of a file inside the process's own root, found by one walk of its
//! own that follows no magic link. A process that changes the path's bytes meanwhile only chooses another file of its
//! own; one that ends is noticed before anything is touched, so that a number that came to mean another process
//! is never used. The thread writes one attribute and an owner the process could have written itself.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Uid, chownat, fstat, openat, openat2,
};
use rustix::io::Errno;
use rustix::thread::UnshareFlags;

use crate::room::{self, Room};
use crate::seccomp::{Announced, Answered, Pretence, Source, Stopped};
use crate::sys::{self, Answer, Notification};

/// Longest path the kernel takes, with its NUL.
const PATH_LIMIT: usize = 4096;
/// Reads from another process's memory stop here, since the next page may not be there.
const PAGE: usize = 4096;
/// Paths that lead to what a process has open.
const OWN_DESCRIPTORS: [&[u8]; 6] =
    [b"/dev/stdin", b"/dev/stdout", b"/dev/stderr", b"/dev/fd/", b"/proc/self/fd/", b"/proc/thread-self/fd/"];
/// The id that means "leave as it is".
const UNCHANGED: u32 = u32::MAX;

/// Makes an open file's or directory's owner this one in whatever way can be had; `None` keeps what it is.
pub type OwnerRecorder = fn(BorrowedFd<'_>, Option<u32>, Option<u32>) -> io::Result<()>;

/// Puts the filter on this process and what it executes. Who holds the returned descriptor answers the calls.
pub(crate) fn install(answered: Answered) -> io::Result<OwnedFd> {
    sys::install_pretence(&answered.program())
}

/// Answers the calls of one sandbox until its last process is gone.
#[derive(Debug)]
pub(crate) struct Supervisor {
    thread: Option<JoinHandle<()>>,
}

impl Supervisor {
    pub(crate) fn start(
        listener: OwnedFd,
        recorder: Option<OwnerRecorder>,
        room: Option<Room>,
    ) -> io::Result<Self> {
        let answer = move || {
            let answered =
                Answering::new(listener, recorder, room).and_then(|mut answering| answering.serve());
            if let Err(error) = answered {
                tracing::warn!(%error, "calls of a sandbox are no longer answered");
            }
        };
        let thread = std::thread::Builder::new().name("stave-owners".into()).spawn(answer)?;
        Ok(Self { thread: Some(thread) })
    }
}

impl Drop for Supervisor {
    /// The sandbox is gone by now, and so the thread is about to end.
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            let _panicked = thread.join();
        }
    }
}

struct Answering {
    listener: OwnedFd,
    recorder: Option<OwnerRecorder>,
    room: Option<Room>,
    proc: OwnedFd,
    /// Names of this thread's descriptors, which stay reachable when its root is another.
    descriptors: OwnedFd,
}

/// What a call asks for.
struct Change {
    uid: Option<u32>,
    gid: Option<u32>,
}

impl Answering {
    fn new(listener: OwnedFd, recorder: Option<OwnerRecorder>, room: Option<Room>) -> io::Result<Self> {
        // Root and working directory change with every call that is answered: they must be this thread's alone.
        sys::unshare(UnshareFlags::FS)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let proc = openat(CWD, "/proc", flags, Mode::empty())?;
        let descriptors = openat(&proc, "thread-self/fd", flags, Mode::empty())?;
        Ok(Self { listener, recorder, room, proc, descriptors })
    }

    fn serve(&mut self) -> io::Result<()> {
        while sys::wait_notification(self.listener.as_fd())? {
            let notification = match sys::receive_notification(self.listener.as_fd()) {
                Ok(notification) => notification,
                // The caller was killed between its call and now, or a signal came to this thread.
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINTR)) => continue,
                Err(error) => return Err(error),
            };
            let answer = self.answer(&notification).unwrap_or_else(|error| {
                Answer::Failed(Errno::from_io_error(&error).unwrap_or(Errno::PERM).raw_os_error())
            });
            match sys::answer_notification(self.listener.as_fd(), notification.id, answer) {
                Err(error) if error.raw_os_error() != Some(libc::ENOENT) => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    fn answer(&self, call: &Notification) -> io::Result<Answer> {
        match (&self.room, Announced::of(call.architecture, call.number, &call.arguments)) {
            (Some(room), Some(Stopped { call: announced, descriptor, source })) => {
                let source = source.map_or(room::UNKNOWN, |source| self.left(call, source));
                // A file that cannot be looked at may be one of the disk.
                let wanted =
                    room::wanted(announced, self.descriptor(call, descriptor).ok(), source, room.bound());
                Ok(if wanted == 0 || room.ask(wanted) {
                    Answer::Proceed
                } else {
                    Answer::Failed(libc::ENOSPC)
                })
            }
            _ => self.change_owner(call).map(|()| Answer::Done),
        }
    }

    /// The most bytes that there are to copy.
    fn left(&self, call: &Notification, source: Source) -> u64 {
        let Ok(file) = self.descriptor(call, source.descriptor) else { return room::UNKNOWN };
        let position = if source.at_position { self.position(call, source.descriptor) } else { None };
        room::left(file, position.unwrap_or(0))
    }

    /// Where a descriptor of the process stands in its file.
    fn position(&self, call: &Notification, number: i32) -> Option<u64> {
        let name = format!("{}/fdinfo/{number}", call.process);
        let opened = openat(&self.proc, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        self.still_there(call).ok()?;
        let mut text = String::new();
        File::from(opened.ok()?).read_to_string(&mut text).ok()?;
        text.lines().find_map(|line| line.strip_prefix("pos:"))?.trim().parse().ok()
    }

    fn change_owner(&self, call: &Notification) -> io::Result<()> {
        let id = |value: u64| Some(value as u32).filter(|id| *id != UNCHANGED);
        let [first, second, third, fourth, fifth, _] = call.arguments;
        let change = |uid, gid| Change { uid: id(uid), gid: id(gid) };
        let (file, change) = match Pretence::of(call.number) {
            Some(Pretence::Descriptor) => (Some(self.descriptor(call, first as i32)?), change(second, third)),
            Some(Pretence::Path) => {
                (self.path(call, libc::AT_FDCWD, first, OFlags::empty())?, change(second, third))
            }
            Some(Pretence::Link) => {
                (self.path(call, libc::AT_FDCWD, first, OFlags::NOFOLLOW)?, change(second, third))
            }
            Some(Pretence::At) => {
                let flags = fifth as i32;
                let follow =
                    if flags & libc::AT_SYMLINK_NOFOLLOW != 0 { OFlags::NOFOLLOW } else { OFlags::empty() };
                let file = match self.text(call, second)? {
                    path if path.is_empty() && flags & libc::AT_EMPTY_PATH != 0 => {
                        Some(self.descriptor(call, first as i32)?)
                    }
                    _ => self.path(call, first as i32, second, follow)?,
                };
                (file, change(third, fourth))
            }
            None => return Err(Errno::NOSYS.into()),
        };
        file.map_or(Ok(()), |file| self.give(&file, &change))
    }

    /// What a descriptor of the process stands for.
    fn descriptor(&self, call: &Notification, number: i32) -> io::Result<OwnedFd> {
        let name = match number {
            libc::AT_FDCWD => format!("{}/cwd", call.process),
            number if number < 0 => return Err(Errno::BADF.into()),
            number => format!("{}/fd/{number}", call.process),
        };
        let opened = openat(&self.proc, name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
        self.still_there(call)?;
        opened.map_err(|error| if error == Errno::NOENT { Errno::BADF.into() } else { error.into() })
    }

    /// What a path means to the process; `None` for what is to stay as it is.
    fn path(
        &self,
        call: &Notification,
        at: i32,
        pointer: u64,
        follow: OFlags,
    ) -> io::Result<Option<OwnedFd>> {
        let path = self.text(call, pointer)?;
        if path.is_empty() {
            return Err(Errno::NOENT.into());
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = openat(&self.proc, format!("{}/root", call.process), flags, Mode::empty())?;
        let start = if path[0] == b'/' { None } else { Some(self.descriptor(call, at)?) };
        self.still_there(call)?;
        rustix::process::fchdir(&root)?;
        rustix::process::chroot(".")?;
        if let Some(start) = start {
            rustix::process::fchdir(start)?;
        }
        let flags = OFlags::PATH | OFlags::CLOEXEC | follow;
        let found = openat2(CWD, OsStr::from_bytes(&path), flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS);
        match found {
            // The process's own descriptors, by links that mean nothing to this thread: its pipes are not the image's.
            Err(Errno::LOOP | Errno::NOENT)
                if OWN_DESCRIPTORS.iter().any(|start| path.starts_with(start)) =>
            {
                Ok(None)
            }
            found => Ok(Some(found?)),
        }
    }

    /// The bytes of a C string of the process.
    fn text(&self, call: &Notification, pointer: u64) -> io::Result<Vec<u8>> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let memory = openat(&self.proc, format!("{}/mem", call.process), flags, Mode::empty())?;
        self.still_there(call)?;
        let (memory, mut text) = (File::from(memory), Vec::new());
        while text.len() < PATH_LIMIT {
            let place = pointer.wrapping_add(text.len() as u64);
            let mut piece = [0; PAGE];
            let room = PAGE - (place as usize % PAGE);
            let length = memory.read_at(&mut piece[..room], place).map_err(|_| Errno::FAULT)?;
            match piece[..length].iter().position(|byte| *byte == 0) {
                Some(end) => {
                    text.extend_from_slice(&piece[..end]);
                    return Ok(text);
                }
                None if length == 0 => return Err(Errno::FAULT.into()),
                None => text.extend_from_slice(&piece[..length]),
            }
        }
        Err(Errno::NAMETOOLONG.into())
    }

    /// Makes sure that what was just opened by the process's number was this process's.
    fn still_there(&self, call: &Notification) -> io::Result<()> {
        sys::is_notification_valid(self.listener.as_fd(), call.id)
    }

    fn give(&self, file: &OwnedFd, change: &Change) -> io::Result<()> {
        let kind = FileType::from_raw_mode(fstat(file)?.st_mode);
        if matches!(kind, FileType::RegularFile | FileType::Directory)
            && let Some(recorder) = self.recorder
            && (change.uid.is_some() || change.gid.is_some())
        {
            rustix::process::fchdir(&self.descriptors)?;
            let name = PathBuf::from(file.as_raw_fd().to_string());
            let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
            let opened = openat(CWD, Path::new(&name), flags, Mode::empty())?;
            return recorder(opened.as_fd(), change.uid, change.gid);
        }
        let uid = change.uid.map(|_| Uid::ROOT);
        let gid = change.gid.map(|_| Gid::ROOT);
        Ok(chownat(file, "", uid, gid, AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW)?)
    }
}
