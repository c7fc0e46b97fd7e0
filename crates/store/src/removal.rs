//! Removing whole trees, however deep. Start with [`remove_tree`].
//!
//! What is removed was made by others, who may nest directories deeper than this process may have files open or
//! its stack reaches. So the recursion ends at [`MAX_DEPTH`]: what lies deeper is moved up to the top first.
//! Must not know what the trees are. Nobody else may use them any more.

use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, RenameFlags, chmodat, fchmod, openat, renameat_with, unlink,
    unlinkat,
};
use rustix::io::Errno;

use crate::fault::refused;

/// Directories open at the same time.
const MAX_DEPTH: usize = 64;

/// Removes a file or a whole directory; what is not there is fine.
pub(crate) fn remove_tree(path: &Path) -> io::Result<()> {
    match refused("remove").and_then(|()| unlink(path)) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        // What the kernel says of a directory; POSIX has the other.
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(error) => return Err(error.into()),
    }
    let name = CString::new(path.as_os_str().as_bytes())?;
    let mut removal = Removal { top: open_directory(CWD, &name)?, moved: 0, deeper: true };
    // Each round takes away the uppermost levels of whatever was moved up by the one before.
    while std::mem::take(&mut removal.deeper) {
        let top = open_directory(removal.top.as_fd(), c".")?;
        removal.empty(top, 0)?;
    }
    match refused("remove-top").and_then(|()| unlinkat(CWD, path, AtFlags::REMOVEDIR)) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// What an overlay leaves in its work directory, the innermost first.
const OVERLAY_REST: [&str; 5] =
    ["w/work/incompat/volatile/dirty", "w/work/incompat/volatile", "w/work/incompat", "w/work", "w"];

/// Removes the directory of a layer that was committed, if nothing is left of it but what every overlay leaves: without
/// looking what there is, which takes longer.
pub(crate) fn remove_overlay_rest(path: &Path) -> io::Result<()> {
    refused::<Errno>("remove")?;
    let (file, directories) = OVERLAY_REST.split_first().unwrap_or((&"", &[]));
    for (inside, flags) in std::iter::once((file, AtFlags::empty()))
        .chain(directories.iter().map(|directory| (directory, AtFlags::REMOVEDIR)))
    {
        match unlinkat(CWD, path.join(inside), flags) {
            Ok(()) | Err(Errno::NOENT | Errno::NOTDIR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    refused::<Errno>("remove-top")?;
    Ok(unlinkat(CWD, path, AtFlags::REMOVEDIR)?)
}

struct Removal {
    top: OwnedFd,
    /// Directories moved to the top so far.
    moved: u64,
    /// Whether some were since the round began.
    deeper: bool,
}

impl Removal {
    /// Removes what is in a directory, or moves it up.
    fn empty(&mut self, directory: OwnedFd, depth: usize) -> Result<(), Errno> {
        let mut entries = Dir::new(directory)?;
        while let Some(entry) = entries.read() {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            if entry.file_type() != FileType::Directory {
                let unlinked = writable(entries.fd()?, |directory| {
                    refused("remove-file").and_then(|()| unlinkat(directory, name, AtFlags::empty()))
                });
                match unlinked {
                    Ok(()) | Err(Errno::NOENT) => continue,
                    // Some file systems do not say what is a directory.
                    Err(Errno::ISDIR | Errno::PERM) if entry.file_type() == FileType::Unknown => {}
                    Err(error) => return Err(error),
                }
            }
            match self.directory(entries.fd()?, name, depth) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn directory(&mut self, parent: BorrowedFd<'_>, name: &CStr, depth: usize) -> Result<(), Errno> {
        // Most are empty, or nearly.
        let remove = |parent: BorrowedFd<'_>| {
            refused("remove-directory").and_then(|()| unlinkat(parent, name, AtFlags::REMOVEDIR))
        };
        match writable(parent, remove) {
            Err(Errno::NOTEMPTY | Errno::EXIST) => {}
            other => return other,
        }
        let directory = open_directory(parent, name)?;
        if depth == MAX_DEPTH {
            return writable(directory.as_fd(), |_| self.move_up(parent, name));
        }
        self.empty(directory, depth + 1)?;
        unlinkat(parent, name, AtFlags::REMOVEDIR)
    }

    fn move_up(&mut self, parent: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
        loop {
            self.moved += 1;
            let free = format!("deep-{}", self.moved);
            match renameat_with(parent, name, &self.top, OsStr::new(&free), RenameFlags::NOREPLACE) {
                Err(Errno::EXIST) => {}
                other => {
                    self.deeper |= other.is_ok();
                    return other;
                }
            }
        }
    }
}

/// Opens a directory to list it. Without root's privileges one of mode 0 (overlay makes one) has to be opened up.
fn open_directory(parent: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match openat(parent, name, flags, Mode::empty()) {
        Err(Errno::ACCESS) => {
            chmodat(parent, name, Mode::RWXU, AtFlags::empty())?;
            openat(parent, name, flags, Mode::empty())
        }
        opened => opened,
    }
}

/// Tries a change of what is in a directory again once that may be written.
fn writable(
    directory: BorrowedFd<'_>,
    mut change: impl FnMut(BorrowedFd<'_>) -> Result<(), Errno>,
) -> Result<(), Errno> {
    match change(directory) {
        Err(Errno::ACCESS) => {
            fchmod(directory, Mode::RWXU)?;
            change(directory)
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{mkdirat, open};
    use std::fs;

    /// A chain of directories with a file in each.
    fn nest(top: &Path, depth: usize) {
        let mut at = open(top, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).expect("a directory");
        for _ in 0..depth {
            mkdirat(&at, "d", Mode::RWXU).expect("a directory");
            let file = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
            openat(&at, "file", file, Mode::RUSR).expect("a file");
            at = openat(&at, "d", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).expect("a directory");
        }
    }

    #[test]
    fn trees_of_any_depth_go_with_few_files_open() {
        let place = tempfile::tempdir().expect("a directory");
        let tree = place.path().join("tree");
        fs::create_dir_all(tree.join("deep-1")).expect("a directory");
        nest(&tree, 5 * MAX_DEPTH);
        nest(&tree.join("deep-1"), 2 * MAX_DEPTH);
        remove_tree(&tree).expect("a removal");
        remove_tree(&tree).expect("what is not there is fine");
        assert_eq!(fs::read_dir(place.path()).expect("a directory").count(), 0);
    }

    #[test]
    fn links_are_removed_and_never_followed() {
        let place = tempfile::tempdir().expect("a directory");
        let (tree, kept) = (place.path().join("tree"), place.path().join("kept"));
        fs::create_dir(&kept).expect("a directory");
        fs::write(kept.join("file"), "").expect("a file");
        fs::create_dir(&tree).expect("a directory");
        std::os::unix::fs::symlink(&kept, tree.join("link")).expect("a link");
        std::os::unix::fs::symlink(&kept, place.path().join("link")).expect("a link");
        remove_tree(&tree).expect("a removal");
        remove_tree(&place.path().join("link")).expect("a removal");
        assert!(kept.join("file").exists());
        assert_eq!(fs::read_dir(place.path()).expect("a directory").count(), 1);
    }
}
