//! Whose the files are that a step made as another user, where there is but one.
//! That user has another number in the step's own user namespace, and its files are root's when looked at from
//! outside; here they become its own by record. Must not know ops. Read [`belong_to`] first.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags};
use stave_store::owner;

use crate::root::{At as _, IoAt, RootDir, names, stat_at};
use crate::tree::open_directory;

/// Depth of a tree that is looked at.
const DEPTH_LIMIT: usize = 4096;

/// Directories at the top that every sandbox needs: where the image lacks them they are made before the step.
const PLACES: [&str; 3] = ["dev", "proc", "sys"];

/// Whether what such a user made is another's until it is [recorded](belong_to) as theirs.
pub(crate) fn are_anothers(uid: u32, gid: u32) -> bool {
    owner::is_single() && (uid, gid) != (0, 0)
}

/// Gives what a layer has and its base has not to a user who does not exist here; everything else is as it was.
pub(crate) fn belong_to(uid: u32, gid: u32, upper: &Path, base: &RootDir) -> Result<(), IoAt> {
    give(uid, gid, upper, base).at("recording the owner of new files in", upper)
}

fn give(uid: u32, gid: u32, upper: &Path, base: &RootDir) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let top = rustix::fs::open(upper, flags, Mode::empty())?;
    let mut left: Vec<(OwnedFd, Option<OwnedFd>, usize)> =
        vec![(top, Some(base.fd().try_clone_to_owned()?), 0)];
    while let Some((directory, below, depth)) = left.pop() {
        for name in names(&directory)? {
            let Some(stat) = stat_at(&directory, &name)? else { continue };
            if depth == 0 && PLACES.iter().any(|place| name == *place) {
                continue;
            }
            let kind = FileType::from_raw_mode(stat.st_mode);
            if kind == FileType::CharacterDevice && stat.st_rdev == 0 {
                continue;
            }
            let known = match &below {
                Some(below) => stat_at(below, &name)?,
                None => None,
            };
            match (kind, &known) {
                (FileType::Directory, _) => {
                    let inner = open_directory(directory.as_fd(), &name)?;
                    if known.is_none() {
                        owner::give(&inner, uid, gid)?;
                    }
                    let is_known = known
                        .is_some_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory);
                    let below = below.as_ref().filter(|_| is_known);
                    let below = below.map(|below| open_directory(below.as_fd(), &name)).transpose()?;
                    if depth < DEPTH_LIMIT {
                        left.push((inner, below, depth + 1));
                    }
                }
                (_, None) => owner::give_at(&directory, &name, uid, gid)?,
                (_, Some(_)) => {}
            }
        }
    }
    Ok(())
}
