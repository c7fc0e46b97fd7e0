//! Whose the files are that a step made as another user, where there is but one.
//! That user has another number in the step's own user namespace, and its files are root's when looked at from
//! outside; here they become its own by record. Must not know ops. Read [`belong_to`] first.
//!
//! What the user made is told from what it changed by overlay: a file or directory that is copied up is marked, and
//! keeps its record. Files with several names below are not marked; there the rights decide who may have written.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::rc::Rc;

use rustix::fs::{FileType, Mode, OFlags, Stat};
use stave_store::owner::{self, Marks};

use crate::root::{At as _, IoAt, RootDir, names, stat_at};
use crate::tree::open_directory;

/// Depth of a tree that is looked at.
const DEPTH_LIMIT: usize = 4096;

/// Directories at the top that every sandbox needs: where the image lacks them they are made before the step.
const PLACES: [&str; 3] = ["dev", "proc", "sys"];

/// Mode bits: new entries get the directory's group; the group and everybody may write.
const SET_GROUP: u32 = 0o2000;
const GROUP_WRITES: u32 = 0o020;
const ALL_WRITE: u32 = 0o002;

/// Whether what such a user made is another's until it is [recorded](belong_to) as theirs.
pub(crate) fn are_anothers(uid: u32, gid: u32) -> bool {
    owner::is_single() && (uid, gid) != (0, 0)
}

/// Gives what was made in a layer to a user who does not exist here; everything else is as it was.
pub(crate) fn belong_to(uid: u32, gid: u32, upper: &Path, base: &RootDir) -> Result<(), IoAt> {
    give(uid, gid, upper, base).at("recording the owner of new files in", upper)
}

/// A directory of the layer and what of the base shows through it.
struct Level {
    directory: OwnedFd,
    below: Option<OwnedFd>,
    /// The group of what is made in it.
    gid: u32,
    depth: usize,
}

/// Directories to look at. They are opened when it is their turn: a directory may have more in it than can be open.
type Left = Vec<(Rc<Level>, OsString)>;

fn give(uid: u32, gid: u32, upper: &Path, base: &RootDir) -> io::Result<()> {
    let mut left = Left::new();
    give_entries(&Rc::new(top(gid, upper, base)?), (uid, gid), &mut left)?;
    while let Some((parent, name)) = left.pop() {
        let inner = give_directory(&parent, &name, (uid, gid))?;
        // Nobody needs it any more unless others in it are left.
        drop(parent);
        if inner.depth <= DEPTH_LIMIT {
            give_entries(&Rc::new(inner), (uid, gid), &mut left)?;
        }
    }
    Ok(())
}

fn top(gid: u32, upper: &Path, base: &RootDir) -> io::Result<Level> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(upper, flags, Mode::empty())?;
    let below = Some(base.fd().try_clone_to_owned()?);
    Ok(Level { gid: group_within(&directory, gid)?, directory, below, depth: 0 })
}

/// All in a directory that is none itself; those are left.
fn give_entries(level: &Rc<Level>, (uid, gid): (u32, u32), left: &mut Left) -> io::Result<()> {
    for name in names(&level.directory)? {
        let Some(stat) = stat_at(&level.directory, &name)? else { continue };
        if level.depth == 0 && PLACES.iter().any(|place| name == *place) {
            continue;
        }
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::CharacterDevice && stat.st_rdev == 0 {
            continue;
        }
        if kind == FileType::Directory {
            left.push((Rc::clone(level), name));
            continue;
        }
        let marks = match kind {
            FileType::RegularFile => Marks::of(open_file(&level.directory, &name)?),
            // No other can have any, nor an owner of its own.
            _ => Marks::default(),
        };
        if is_made(kind, marks, known(level, &name)?.as_ref(), gid) {
            owner::give_at(&level.directory, &name, uid, level.gid)?;
        }
    }
    Ok(())
}

/// A directory itself; returns it for what is in it.
fn give_directory(parent: &Level, name: &OsStr, (uid, gid): (u32, u32)) -> io::Result<Level> {
    let directory = open_directory(parent.directory.as_fd(), name)?;
    let (marks, known) = (Marks::of(&directory), known(parent, name)?);
    if is_made(FileType::Directory, marks, known.as_ref(), gid) {
        owner::give(&directory, uid, parent.gid)?;
    }
    let shows = !marks.opaque
        && known.is_some_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory);
    let below = parent.below.as_ref().filter(|_| shows);
    let below = below.map(|below| open_directory(below.as_fd(), name)).transpose()?;
    Ok(Level { gid: group_within(&directory, gid)?, directory, below, depth: parent.depth + 1 })
}

/// What of the base shows through under a name.
fn known(level: &Level, name: &OsStr) -> io::Result<Option<Stat>> {
    let Some(below) = &level.below else { return Ok(None) };
    Ok(stat_at(below, name)?.map(|mut stat| {
        owner::restore(&mut stat, below, name);
        stat
    }))
}

/// Whether the step made an entry of its layer anew, rather than that it changed what was below.
fn is_made(kind: FileType, marks: Marks, below: Option<&Stat>, gid: u32) -> bool {
    if marks.recorded || marks.copied {
        return false;
    }
    let Some(below) = below.filter(|below| FileType::from_raw_mode(below.st_mode) == kind) else {
        return true;
    };
    match kind {
        // Those that nobody marked were made for mounts.
        FileType::Directory => marks.opaque,
        // What was recorded below still would be.
        _ if (below.st_uid, below.st_gid) != (0, 0) || below.st_nlink == 1 => true,
        _ => below.st_mode & ALL_WRITE == 0 && (gid != 0 || below.st_mode & GROUP_WRITES == 0),
    }
}

/// The group of what a process with group `gid` makes in a directory.
fn group_within(directory: &OwnedFd, gid: u32) -> io::Result<u32> {
    let mut stat = rustix::fs::fstat(directory)?;
    owner::restore_open(&mut stat, directory);
    Ok(if stat.st_mode & SET_GROUP == 0 { gid } else { stat.st_gid })
}

fn open_file(parent: &OwnedFd, name: &OsStr) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(parent, name, flags, Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEW: Marks = Marks { recorded: false, copied: false, opaque: false };

    /// A file below with this owner, mode and number of names.
    fn file(uid: u32, mode: u32, nlink: u64) -> Option<Stat> {
        let mut stat = rustix::fs::stat("/").expect("a status");
        (stat.st_uid, stat.st_gid, stat.st_mode, stat.st_nlink) = (uid, 0, 0o100_000 | mode, nlink);
        Some(stat)
    }

    #[track_caller]
    fn check(marks: Marks, below: Option<Stat>, gid: u32, expected: bool) {
        assert_eq!(is_made(FileType::RegularFile, marks, below.as_ref(), gid), expected);
    }

    #[test]
    fn what_is_new_under_an_old_name_is_made() {
        let (copied, recorded) = (Marks { copied: true, ..NEW }, Marks { recorded: true, ..NEW });
        check(NEW, None, 7, true);
        // Moved there, from another name that the base has.
        check(copied, None, 7, false);
        check(recorded, None, 7, false);
        // Replaced, as `sed -i` does.
        check(NEW, file(0, 0o644, 1), 7, true);
        check(NEW, file(5, 0o644, 1), 7, true);
        // Changed in place.
        check(copied, file(0, 0o666, 1), 7, false);
        check(recorded, file(5, 0o666, 1), 7, false);
    }

    #[test]
    fn of_files_with_several_names_the_rights_decide() {
        check(NEW, file(0, 0o644, 2), 7, true);
        check(NEW, file(5, 0o666, 2), 7, true);
        check(NEW, file(0, 0o666, 2), 7, false);
        check(NEW, file(0, 0o664, 2), 7, true);
        check(NEW, file(0, 0o664, 2), 0, false);
    }

    #[test]
    fn a_directory_is_made_where_it_hides_what_was_there() {
        let below = rustix::fs::stat("/").expect("a status");
        let made = |marks, below: Option<&Stat>| is_made(FileType::Directory, marks, below, 7);
        assert!(made(Marks { opaque: true, ..NEW }, Some(&below)));
        assert!(!made(NEW, Some(&below)));
        assert!(!made(Marks { copied: true, ..NEW }, Some(&below)));
        assert!(made(NEW, None));
        assert!(made(NEW, file(0, 0o644, 1).as_ref()));
    }

    /// Files of this process that are open within a directory.
    fn open_within(directory: &Path) -> usize {
        let open = std::fs::read_dir("/proc/self/fd").expect("lists");
        let open = open.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
        open.filter(|path| path.starts_with(directory)).count()
    }

    #[test]
    fn directories_that_wait_for_their_turn_are_not_open() {
        let place = tempfile::tempdir().expect("a directory");
        let (upper, lower) = (place.path().join("upper"), place.path().join("lower"));
        for number in 0..50 {
            for layer in [&upper, &lower] {
                std::fs::create_dir_all(layer.join(format!("modules/{number}/inner"))).expect("makes");
            }
            std::fs::write(upper.join(format!("modules/{number}/inner/file")), "").expect("writes");
        }
        let base = RootDir::open(&lower).expect("opens");
        // Only root may give files away; others have them already.
        let own = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
        let user = if own.0 == 0 { (7, 8) } else { own };
        let (mut left, top) = (Left::new(), Rc::new(top(user.1, &upper, &base).expect("opens")));
        give_entries(&top, user, &mut left).expect("gives");
        let (parent, name) = left.pop().expect("a directory");
        let modules = Rc::new(give_directory(&parent, &name, user).expect("gives"));
        give_entries(&modules, user, &mut left).expect("gives");
        assert_eq!(left.len(), 50);
        assert_eq!(open_within(place.path()), 5, "the base, and two layers of two directories");
        give(user.0, user.1, &upper, &base).expect("gives");
        let stat = rustix::fs::stat(upper.join("modules/49/inner/file")).expect("a status");
        assert_eq!((stat.st_uid, stat.st_gid), user);
    }
}
