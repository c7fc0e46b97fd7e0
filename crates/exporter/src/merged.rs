//! The root file system of a snapshot, as sinks need it: the store's merged view, with hard links
//! told apart and a visit at the end of each directory.
//!
//! Must not know how layers lie on disk (the store's view does), nor what is done with the entries.
//!
//! Read [`walk`] and [`Entry`] first.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Stat};
use stave_store::{MergedEntry, MergedView, StoreError};

use crate::error::ExportErrorKind;

/// Names of attributes that belong to overlayfs, not to the image.
const OVERLAY_ATTRIBUTES: [&str; 2] = ["trusted.overlay.", "user.overlay."];

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    Directory,
    File,
    /// A further name of a file that was visited under the path given.
    HardLink(PathBuf),
    /// With its target, byte for byte.
    Symlink(PathBuf),
    /// A character or block device, pipe or socket.
    Special(FileType),
}

/// One name in the merged tree.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) kind: Kind,
    inner: MergedEntry,
}

/// A step of the walk: parents before children, names in byte order.
#[derive(Debug)]
pub(crate) enum Visit<'a> {
    /// An entry; for a directory, its content follows.
    Entry(&'a Entry),
    /// A directory's content is complete.
    Leave(&'a Entry),
}

impl Entry {
    /// Relative to the root; never empty, absolute, or with `..`.
    pub(crate) fn path(&self) -> &Path {
        self.inner.path()
    }

    pub(crate) fn stat(&self) -> &Stat {
        self.inner.stat()
    }

    /// The content of a regular file.
    pub(crate) fn open(&self) -> Result<File, StoreError> {
        self.inner.open()
    }

    /// Extended attributes in byte order of their names, without overlayfs' own.
    pub(crate) fn xattrs(&self) -> Result<Vec<(OsString, Vec<u8>)>, StoreError> {
        let mut found = self.inner.xattrs()?;
        found.retain(|(name, _)| {
            let name = name.as_encoded_bytes();
            !OVERLAY_ATTRIBUTES.iter().any(|prefix| name.starts_with(prefix.as_bytes()))
                && !stave_store::owner::is_record(name)
        });
        found.sort();
        Ok(found)
    }
}

/// Visits every entry of `view`, its root excepted.
pub(crate) fn walk(
    view: &MergedView,
    visitor: &mut dyn FnMut(Visit<'_>) -> Result<(), ExportErrorKind>,
) -> Result<(), ExportErrorKind> {
    // First path of each file with several names, by device and inode.
    let mut links = HashMap::new();
    let mut open: Vec<Entry> = Vec::new();
    for inner in view.walk() {
        let inner = inner?;
        if inner.path().as_os_str().is_empty() {
            continue;
        }
        while let Some(directory) = open.pop_if(|directory| !inner.path().starts_with(directory.path())) {
            visitor(Visit::Leave(&directory))?;
        }
        let entry = Entry { kind: kind(&inner, &mut links)?, inner };
        visitor(Visit::Entry(&entry))?;
        if entry.kind == Kind::Directory {
            open.push(entry);
        }
    }
    while let Some(directory) = open.pop() {
        visitor(Visit::Leave(&directory))?;
    }
    Ok(())
}

fn kind(entry: &MergedEntry, links: &mut HashMap<(u64, u64), PathBuf>) -> Result<Kind, StoreError> {
    let (stat, file_type) = (entry.stat(), entry.file_type());
    if file_type == FileType::Directory {
        return Ok(Kind::Directory);
    }
    if stat.st_nlink > 1 {
        if let Some(first) = links.get(&(stat.st_dev, stat.st_ino)) {
            return Ok(Kind::HardLink(first.clone()));
        }
        links.insert((stat.st_dev, stat.st_ino), entry.path().to_owned());
    }
    Ok(match file_type {
        FileType::RegularFile => Kind::File,
        FileType::Symlink => Kind::Symlink(entry.read_link()?),
        special => Kind::Special(special),
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use rustix::fs::{CWD, Mode, XattrFlags};
    use stave_store::{OverlayXattrs, Snapshot, Store, StoreConfig};

    use super::*;

    /// A store in a directory of its own.
    pub(crate) struct Fixture {
        pub(crate) store: Store,
        _directory: tempfile::TempDir,
    }

    impl Fixture {
        pub(crate) fn new() -> Self {
            let directory = tempfile::tempdir().expect("a temporary directory");
            // Attributes that need no privilege, so that the tests need none.
            let config = StoreConfig { xattrs: OverlayXattrs::User };
            let store = Store::open_with(directory.path(), &config).expect("a store");
            Self { store, _directory: directory }
        }

        /// `base` with a layer on top that `build` fills.
        pub(crate) fn layer(&self, base: &Snapshot, build: impl FnOnce(&Path)) -> Snapshot {
            let layer = self.store.prepare(base).expect("prepares");
            build(layer.upper());
            layer.commit().expect("commits")
        }

        pub(crate) fn view(&self, snapshot: &Snapshot) -> MergedView {
            self.store.view(snapshot).expect("a view")
        }
    }

    fn whiteout(path: &Path) {
        rustix::fs::mknodat(CWD, path, FileType::CharacterDevice, Mode::empty(), 0)
            .expect("whiteouts need no privilege");
    }

    #[track_caller]
    fn check(fixture: &Fixture, snapshot: &Snapshot, expected: &[&str]) {
        let mut found = Vec::new();
        let result = walk(&fixture.view(snapshot), &mut |visit| {
            found.push(match visit {
                Visit::Leave(entry) => format!("/{}", entry.path().display()),
                Visit::Entry(entry) => {
                    let path = entry.path().display();
                    match &entry.kind {
                        Kind::Directory => format!("{path}/"),
                        Kind::File => format!("{path}={}", std::io::read_to_string(entry.open()?)?),
                        Kind::HardLink(first) => format!("{path}=>{}", first.display()),
                        Kind::Symlink(target) => format!("{path}->{}", target.display()),
                        Kind::Special(kind) => format!("{path}:{kind:?}"),
                    }
                }
            });
            Ok(())
        });
        result.expect("walks");
        assert_eq!(found, expected);
    }

    #[test]
    fn directories_are_left_when_their_content_is_complete() {
        let fixture = Fixture::new();
        let lower = fixture.layer(&Snapshot::scratch(), |root| {
            fs::create_dir_all(root.join("d/e")).expect("creates");
            fs::write(root.join("d/e/kept"), "1").expect("writes");
            fs::write(root.join("d/gone"), "1").expect("writes");
            fs::write(root.join("d-file"), "old").expect("writes");
        });
        let upper = fixture.layer(&lower, |root| {
            fs::create_dir(root.join("d")).expect("creates");
            whiteout(&root.join("d/gone"));
            fs::write(root.join("d-file"), "new").expect("writes");
        });
        let expected = ["d/", "d/e/", "d/e/kept=1", "/d/e", "/d", "d-file=new"];
        check(&fixture, &upper, &expected);
        check(&fixture, &Snapshot::scratch(), &[]);
    }

    #[test]
    fn links_keep_their_kind() {
        let fixture = Fixture::new();
        let only = fixture.layer(&Snapshot::scratch(), |root| {
            fs::write(root.join("a"), "1").expect("writes");
            fs::hard_link(root.join("a"), root.join("b")).expect("links");
            symlink("/etc/passwd", root.join("c")).expect("links");
            rustix::fs::mkfifoat(CWD, root.join("p"), Mode::RUSR).expect("makes");
        });
        check(&fixture, &only, &["a=1", "b=>a", "c->/etc/passwd", "p:Fifo"]);
    }

    #[test]
    fn attributes_of_overlayfs_are_not_the_images() {
        let fixture = Fixture::new();
        let only = fixture.layer(&Snapshot::scratch(), |root| {
            fs::write(root.join("a"), "1").expect("writes");
            for name in ["user.b", "user.a", "user.overlay.uuid"] {
                rustix::fs::setxattr(root.join("a"), name, b"v", XattrFlags::empty()).expect("sets");
            }
        });
        let mut names = Vec::new();
        walk(&fixture.view(&only), &mut |visit| {
            if let Visit::Entry(entry) = visit {
                names.extend(entry.xattrs()?.into_iter().map(|(name, _)| name));
            }
            Ok(())
        })
        .expect("walks");
        assert_eq!(names, ["user.a", "user.b"]);
    }
}
