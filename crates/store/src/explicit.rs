//! Layers whose removals are told one by one, so that they can be laid on another base than their own.
//!
//! A directory that was removed and made anew is opaque: it hides all that stands below it, whatever that is. On the
//! layer's own base this is the same as removing each name that is there; on another it would hide files that nobody
//! removed. Owns that change of form. Must not know why a layer gets another base. Read [`Store::explicit`] first.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, Stat, fgetxattr, fremovexattr, fstat, futimens, linkat, mkdirat,
    openat, statat,
};
use rustix::io::Errno;

use crate::diff::sorted_names;
use crate::transplant::{DEPTH_LIMIT, copy_entry, settle};
use crate::view::{MergedEntry, directory_flags, is_whiteout};
use crate::{LayerId, MergedView, OverlayXattrs, Snapshot, Store, StoreError, owner};

impl Store {
    /// `layers`, made on `below`, as layers that remove the same names and hide nothing else. A layer without opaque
    /// directories is itself; of another there is a second one afterwards, which shares its files. Blocks.
    ///
    /// # Errors
    /// When a layer cannot be read or written.
    pub fn explicit(&self, below: &Snapshot, layers: &[LayerId]) -> Result<Vec<LayerId>, StoreError> {
        let mut base = below.clone();
        let mut all = Vec::with_capacity(layers.len());
        for layer in layers {
            all.push(self.one_explicit(&base, *layer)?);
            base = base.push(*layer);
        }
        Ok(all)
    }

    fn one_explicit(&self, base: &Snapshot, layer: LayerId) -> Result<LayerId, StoreError> {
        // On nothing an opaque directory hides nothing.
        if base.is_scratch() {
            return Ok(layer);
        }
        let Some(from) = self.layer_paths(&Snapshot::new(vec![layer]))?.into_iter().next() else {
            return Ok(layer);
        };
        let xattrs = self.inner.config.xattrs;
        let failed = |error: io::Error| StoreError::Io { action: "read", path: from.clone(), source: error };
        let root =
            openat(CWD, &from, directory_flags(), Mode::empty()).map_err(|error| failed(error.into()))?;
        if !has_opaque(&root, xattrs, DEPTH_LIMIT).map_err(failed)? {
            return Ok(layer);
        }
        let made = self.layer_created(layer)?;
        let mut active = self.prepare(base)?.described(&self.layer_description(layer)?).made(made);
        let to = openat(CWD, active.upper(), directory_flags(), Mode::empty())
            .map_err(|error| StoreError::io("open", active.upper(), error))?;
        let copying = Explicit { below: self.view(base)?, xattrs };
        copying.level((&root, &to), Path::new(""), Under::Shown, DEPTH_LIMIT)?;
        active.commit_layer(None)
    }
}

/// What the base has at the place of a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Under {
    /// No directory.
    Nothing,
    /// A directory whose names show through.
    Shown,
    /// A directory of which nothing shows.
    Hidden,
}

struct Explicit {
    below: MergedView,
    xattrs: OverlayXattrs,
}

impl Explicit {
    fn level(
        &self,
        (from, to): (&OwnedFd, &OwnedFd),
        path: &Path,
        under: Under,
        depth: usize,
    ) -> Result<(), StoreError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |error: io::Error| StoreError::Io { action: "copy", path, source: error }
        };
        let stat = fstat(from).map_err(|error| failed(path)(error.into()))?;
        self.own(from, to, &stat).map_err(failed(path))?;
        let names = sorted_names(from).map_err(|error| failed(path)(error.into()))?;
        for name in &names {
            let path = path.join(name);
            let Some(inner) = self.name((from, to), name).map_err(failed(&path))? else { continue };
            if depth == 0 {
                return Err(failed(&path)(Errno::NAMETOOLONG.into()));
            }
            let open = |at: &OwnedFd| openat(at, name, directory_flags(), Mode::empty());
            let (inner_from, inner_to) = (open(from).and_then(|from| Ok((from, open(to)?))))
                .map_err(|error| failed(&path)(error.into()))?;
            let under = self.under(&path, under, inner)?;
            self.level((&inner_from, &inner_to), &path, under, depth - 1)?;
        }
        if under == Under::Hidden {
            let own: BTreeSet<OsString> = names.into_iter().collect();
            for name in self.below.read_dir(path)?.unwrap_or_default() {
                if !own.contains(&name) {
                    let made = owner::make_whiteout(to, &name);
                    made.map_err(|error| failed(&path.join(&name))(error.into()))?;
                }
            }
        }
        futimens(to, &times(&stat)).map_err(|error| failed(path)(error.into()))
    }

    /// Everything of a directory but its entries and the mark.
    fn own(&self, from: &OwnedFd, to: &OwnedFd, stat: &Stat) -> io::Result<()> {
        let own = OsStr::new(".");
        settle((from, own), (to, own), stat)?;
        if is_opaque(to, self.xattrs)? {
            fremovexattr(to, self.xattrs.opaque())?;
        }
        Ok(())
    }

    /// One name; whether it is opaque where it is a directory.
    fn name(&self, (from, to): (&OwnedFd, &OwnedFd), name: &OsStr) -> io::Result<Option<bool>> {
        let mut stat = statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            mkdirat(to, name, Mode::from_raw_mode(0o700))?;
            let inner = openat(from, name, directory_flags(), Mode::empty())?;
            return is_opaque(&inner, self.xattrs).map(Some);
        }
        owner::restore(&mut stat, from, name);
        if is_whiteout(&stat) {
            owner::make_whiteout(to, name)?;
            return Ok(None);
        }
        match linkat(from, name, to, name, AtFlags::empty()) {
            Ok(()) => {}
            Err(Errno::XDEV | Errno::PERM | Errno::MLINK | Errno::ACCESS) => {
                let stat = statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
                copy_entry((from, name), (to, name), &stat)?;
            }
            Err(error) => return Err(error.into()),
        }
        Ok(None)
    }

    /// What the base has under a directory of the layer.
    fn under(&self, path: &Path, above: Under, opaque: bool) -> Result<Under, StoreError> {
        // Above it only directories stand in the base: no link is followed on the way.
        let is_directory = |entry: &MergedEntry| entry.file_type() == FileType::Directory;
        if above == Under::Nothing
            || !self.below.symlink_metadata(path)?.is_some_and(|entry| is_directory(&entry))
        {
            return Ok(Under::Nothing);
        }
        Ok(if opaque || above == Under::Hidden { Under::Hidden } else { Under::Shown })
    }
}

fn is_opaque(directory: &OwnedFd, xattrs: OverlayXattrs) -> io::Result<bool> {
    let mut value = [0u8; 1];
    match fgetxattr(directory, xattrs.opaque(), &mut value) {
        Ok(_) => Ok(value == *b"y"),
        Err(Errno::NODATA | Errno::NOTSUP) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Whether a directory below this one is opaque. The root of a layer never counts.
fn has_opaque(directory: &OwnedFd, xattrs: OverlayXattrs, depth: usize) -> io::Result<bool> {
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..")
            || !matches!(entry.file_type(), FileType::Directory | FileType::Unknown)
        {
            continue;
        }
        let inner = match openat(directory, name, directory_flags(), Mode::empty()) {
            Ok(inner) => inner,
            Err(Errno::NOTDIR | Errno::LOOP) => continue,
            Err(error) => return Err(error.into()),
        };
        if is_opaque(&inner, xattrs)? || depth > 0 && has_opaque(&inner, xattrs, depth - 1)? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn times(stat: &Stat) -> rustix::fs::Timestamps {
    let time = |seconds, nanoseconds| rustix::fs::Timespec { tv_sec: seconds, tv_nsec: nanoseconds as _ };
    rustix::fs::Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use rustix::fs::{XattrFlags, lgetxattr, lsetxattr};

    use super::*;
    use crate::tests::TestStore;
    use crate::transplant::RIGHTS;

    fn layer(test: &TestStore, base: &Snapshot, write: impl FnOnce(&Path)) -> Snapshot {
        let active = test.store.prepare(base).expect("a layer");
        write(active.upper());
        active.commit().expect("a snapshot")
    }

    fn paths(test: &TestStore, snapshot: &Snapshot) -> Vec<PathBuf> {
        let view = test.store.view(snapshot).expect("a view");
        view.walk().map(|entry| entry.expect("an entry").path().to_owned()).skip(1).collect()
    }

    fn files(root: &Path, files: &[&str]) {
        for file in files {
            let path = root.join(file);
            fs::create_dir_all(path.parent().expect("a parent")).expect("directories");
            fs::write(path, file).expect("a file");
        }
    }

    fn opaque(test: &TestStore, directory: &Path) {
        let mark = test.store.inner.config.xattrs.opaque();
        lsetxattr(directory, mark, b"y", XattrFlags::empty()).expect("a mark");
    }

    #[test]
    fn a_directory_made_anew_hides_only_what_it_replaced() {
        let test = TestStore::new();
        let scratch = Snapshot::scratch();
        let base = layer(&test, &scratch, |root| files(root, &["d/old", "d/sub/old", "d/both/old", "e"]));
        let anew = layer(&test, &base, |root| {
            files(root, &["d/new", "d/both/new", "e/now"]);
            opaque(&test, &root.join("d"));
            opaque(&test, &root.join("e"));
        });
        let expected: Vec<PathBuf> =
            ["d", "d/both", "d/both/new", "d/new", "e", "e/now"].iter().map(PathBuf::from).collect();
        assert_eq!(paths(&test, &anew), expected);
        let layers = anew.above(&base).expect("is on it");
        let explicit = test.store.explicit(&base, layers).expect("is made");
        assert_ne!(explicit, layers);
        // On its own base it is what it was.
        assert_eq!(paths(&test, &base.push(explicit[0])), expected);
        // On another what nobody removed stays.
        let other =
            layer(&test, &scratch, |root| files(root, &["d/old", "d/theirs", "d/both/theirs", "d/sub/x"]));
        let expected: Vec<PathBuf> =
            ["d", "d/both", "d/both/new", "d/both/theirs", "d/new", "d/theirs", "e", "e/now"]
                .iter()
                .map(PathBuf::from)
                .collect();
        assert_eq!(paths(&test, &other.push(explicit[0])), expected);
        // It is as it should be from now on.
        assert_eq!(test.store.explicit(&base, &explicit).expect("is read"), explicit);
    }

    #[test]
    fn rights_that_a_directory_hands_down_are_not_those_of_what_is_in_it() {
        let test = TestStore::new();
        let base = layer(&test, &Snapshot::scratch(), |root| files(root, &["d/old"]));
        let [_, handed_down] = RIGHTS;
        if !hands_down(tempfile::tempdir().expect("a directory").path()) {
            return;
        }
        let anew = layer(&test, &base, |root| {
            files(root, &["d/inner/new"]);
            opaque(&test, &root.join("d"));
            lsetxattr(root.join("d"), handed_down, &rights(), XattrFlags::empty()).expect("rights");
        });
        let layers = anew.above(&base).expect("is on it");
        let explicit = test.store.explicit(&base, layers).expect("is made");
        assert_ne!(explicit, layers);
        let made = test.store.layer_paths(&Snapshot::new(explicit)).expect("a place").remove(0);
        let has = |path: &str, name: &str| lgetxattr(made.join(path), name, &mut [0; 64][..]).is_ok();
        assert!(has("d", handed_down));
        assert_eq!(RIGHTS.map(|name| has("d/inner", name)), [false, false]);
    }

    /// Lets a directory hand rights down; whether its file system has such.
    fn hands_down(directory: &Path) -> bool {
        let [_, handed_down] = RIGHTS;
        match lsetxattr(directory, handed_down, &rights(), XattrFlags::empty()) {
            Err(Errno::NOTSUP) => false,
            set => set.map(|()| true).expect("rights"),
        }
    }

    /// A list with one more user.
    fn rights() -> Vec<u8> {
        let entries: [(u16, u16, u32); 5] =
            [(1, 7, u32::MAX), (2, 7, 1234), (4, 5, u32::MAX), (16, 7, u32::MAX), (32, 5, u32::MAX)];
        let entries = entries.iter().flat_map(|(tag, rights, id)| {
            [tag.to_le_bytes().as_slice(), &rights.to_le_bytes(), &id.to_le_bytes()].concat()
        });
        2u32.to_le_bytes().into_iter().chain(entries).collect()
    }

    #[test]
    fn rights_that_are_handed_down_from_above_the_store_do_not_come_into_layers() {
        let place = tempfile::tempdir().expect("a directory");
        if !hands_down(place.path()) {
            return;
        }
        let store = Store::open(&place.path().join("store")).expect("a store");
        let layer = store.prepare(&Snapshot::scratch()).expect("a layer");
        fs::create_dir(layer.upper().join("d")).expect("a directory");
        let has = |name: &str| lgetxattr(layer.upper().join("d"), name, &mut [0; 64][..]).is_ok();
        assert_eq!(RIGHTS.map(has), [false, false]);
    }

    #[test]
    fn layers_that_hide_nothing_stay() {
        let test = TestStore::new();
        let scratch = Snapshot::scratch();
        let bottom = layer(&test, &scratch, |root| {
            files(root, &["d/f"]);
            opaque(&test, &root.join("d"));
        });
        let top = layer(&test, &bottom, |root| {
            files(root, &["d/g"]);
            owner::make_whiteout(
                openat(CWD, root.join("d"), directory_flags(), Mode::empty()).expect("d"),
                "f",
            )
            .expect("a whiteout");
        });
        assert_eq!(test.store.explicit(&scratch, top.layers()).expect("is read"), top.layers());
    }
}
