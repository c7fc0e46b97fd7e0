//! What a layer repeats as it is below.
//!
//! A file made and removed again leaves its directory behind in the overlay's upper directory, with no difference
//! but a time; a change to what a file is already (`chmod`, `chown`), or another link to it, leaves a copy of it.
//! BuildKit leaves both out of the layer, and images are compared file by file; the copies would cost space, too.
//! A directory whose time was set, not come to, is a difference to the next step, as it is in BuildKit's snapshots.
//! Must not know ops. Read [`remove_repeated`] first.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::time::SystemTime;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, Timespec, Timestamps};
use rustix::io::Errno;
use stave_store::{MergedView, owner};

use crate::root::{At as _, IoAt, RootDir, stat_at};
use crate::tree::open_directory;
use crate::xattr;

/// Directories deeper than this stay as they are: every level holds two descriptors.
const DEPTH_LIMIT: usize = 128;

/// What marks a directory of a layer that hides the one below, in both of overlay's spellings.
const OPAQUE: [&str; 2] = ["trusted.overlay.opaque", "user.overlay.opaque"];

/// Entries of a layer that are looked up one by one; for more, a tree is mounted.
const GLANCES: usize = 64;

/// Bytes compared at once.
const BLOCK: usize = 64 << 10;

/// The last change of a file's content or a directory's entries: seconds and nanoseconds.
pub(crate) type Moment = (i64, u64);

fn moment(stat: &Stat) -> Moment {
    (stat.st_mtime, stat.st_mtime_nsec)
}

/// When the step that writes into the layer `upper` began, by the clock that dates what it writes. Asked before it does.
pub(crate) fn beginning(upper: &Path) -> Result<Moment, IoAt> {
    let stat = rustix::fs::stat(upper).at("looking at", upper)?;
    Ok(moment(&stat))
}

/// Removes from the layer `upper` every file that equals that of the image `base`, and every directory that holds
/// nothing then and equals that of the image in all but its times. A time from before the step's `beginning`, or one that
/// has not come yet, is one that the step gave to the directory: then it stays.
pub(crate) fn remove_repeated(upper: &Path, base: &RootDir, beginning: Moment) -> Result<(), IoAt> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let open = |root: &RootDir| root.open_at(Path::new(""), flags, Mode::empty()).at("opening", upper);
    let (above, below) = (open(&RootDir::open(upper)?)?, open(base)?);
    let tidying = Tidying { beginning, end: now() };
    tidying.directory(&above, &below, 0).at("tidying", upper)?;
    Ok(())
}

/// Whether it is certain at a few glances, without a tree of the image, that nothing of the layer `upper` is as it is
/// in the image `base`. Most steps write something new and leave nothing else behind.
pub(crate) fn repeats_nothing(upper: &Path, base: &MergedView) -> Result<bool, IoAt> {
    let mut glances = GLANCES;
    let top = rustix::fs::open(upper, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let top = top.at("opening", upper)?;
    Ok(new_entries(&top, (base, Path::new("")), &mut glances).at("tidying", upper)?.is_some())
}

/// How many entries of a directory of the layer stay, if all do; `None` if that is not certain.
fn new_entries(
    upper: &OwnedFd,
    (base, path): (&MergedView, &Path),
    glances: &mut usize,
) -> io::Result<Option<usize>> {
    let entries = entries(upper)?;
    for (name, is_directory) in &entries {
        if *glances == 0 {
            return Ok(None);
        }
        *glances -= 1;
        let path = path.join(name);
        // What the image does not have cannot be a repetition.
        let Some(below) = base.symlink_metadata(&path).map_err(io::Error::other)? else { continue };
        if *is_directory {
            let directory = open_directory(upper.as_fd(), name)?;
            let is_beside = below.file_type() != FileType::Directory;
            // An empty one may be what a file that is gone left behind.
            if !is_beside && new_entries(&directory, (base, &path), glances)?.unwrap_or(0) == 0 {
                return Ok(None);
            }
            continue;
        }
        let Some(mut above) = stat_at(upper, name)? else { return Ok(None) };
        owner::restore(&mut above, upper, name);
        if facts(&above) == facts(below.stat()) {
            return Ok(None);
        }
    }
    Ok(Some(entries.len()))
}

/// What a file and its repetition have in common beside their content.
fn facts(stat: &Stat) -> impl PartialEq {
    (stat.st_mode, stat.st_uid, stat.st_gid, stat.st_rdev, stat.st_size, moment(stat))
}

/// One look at all that a layer holds.
#[derive(Debug, Clone, Copy)]
struct Tidying {
    beginning: Moment,
    end: Moment,
}

/// By a clock that is never behind the one that dates files.
fn now() -> Moment {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    (i64::try_from(since.as_secs()).unwrap_or(i64::MAX), u64::from(since.subsec_nanos()))
}

impl Tidying {
    /// Tidies a directory of the layer; true when nothing is left in it.
    fn directory(self, upper: &OwnedFd, base: &OwnedFd, depth: usize) -> io::Result<bool> {
        let before = rustix::fs::fstat(upper)?;
        let (mut is_empty, mut changed) = (true, false);
        for (name, is_directory) in entries(upper)? {
            let removed = match is_directory {
                true => depth < DEPTH_LIMIT && self.remove_directory(upper, base, &name, depth)?,
                false => remove_file(upper, base, &name)?,
            };
            if removed {
                changed = true;
            } else {
                is_empty = false;
            }
        }
        if changed {
            let time = |seconds, nanoseconds: u64| Timespec {
                tv_sec: seconds,
                tv_nsec: i64::try_from(nanoseconds).unwrap_or(0),
            };
            let times = Timestamps {
                last_access: time(before.st_atime, before.st_atime_nsec),
                last_modification: time(before.st_mtime, before.st_mtime_nsec),
            };
            rustix::fs::futimens(upper, &times)?;
        }
        Ok(is_empty)
    }

    /// Removes a directory of the layer if it only repeats; what the image does not have cannot be a repetition.
    fn remove_directory(
        self,
        upper: &OwnedFd,
        base: &OwnedFd,
        name: &OsStr,
        depth: usize,
    ) -> io::Result<bool> {
        let below = match open_directory(base.as_fd(), name) {
            Ok(below) => below,
            Err(error) => {
                return match Errno::from_io_error(&error) {
                    Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(false),
                    _ => Err(error),
                };
            }
        };
        let directory = open_directory(upper.as_fd(), name)?;
        // It hides what is below: equal or not, what it holds is there because of this layer alone.
        if is_opaque(&directory)? {
            return Ok(false);
        }
        let is_empty = self.directory(&directory, &below, depth + 1)?;
        if !is_empty || !is_same(&directory, &below)? || self.was_dated(&directory, &below)? {
            return Ok(false);
        }
        rustix::fs::unlinkat(upper, name, AtFlags::REMOVEDIR)?;
        Ok(true)
    }

    /// Whether the step gave a directory another time than the image's: what it only changed has one of its own run.
    fn was_dated(self, upper: &OwnedFd, base: &OwnedFd) -> io::Result<bool> {
        let (above, below) = (moment(&rustix::fs::fstat(upper)?), moment(&rustix::fs::fstat(base)?));
        Ok(above != below && (above < self.beginning || above > self.end))
    }
}

/// Removes a file, symbolic link or device of the layer if it only repeats.
fn remove_file(upper: &OwnedFd, base: &OwnedFd, name: &OsStr) -> io::Result<bool> {
    let Some(mut below) = stat_at(base, name)? else { return Ok(false) };
    let Some(mut above) = stat_at(upper, name)? else { return Ok(false) };
    owner::restore(&mut below, base, name);
    owner::restore(&mut above, upper, name);
    if facts(&above) != facts(&below) {
        return Ok(false);
    }
    let same = match FileType::from_raw_mode(above.st_mode) {
        // Two contents may share a time: those of archives are whole seconds, and any can be set.
        FileType::RegularFile => has_same_content(upper, base, name)?,
        FileType::Symlink => {
            rustix::fs::readlinkat(upper, name, Vec::new())?
                == rustix::fs::readlinkat(base, name, Vec::new())?
        }
        // A whiteout is a device, too, but never equals anything that is there.
        _ => true,
    };
    if same {
        rustix::fs::unlinkat(upper, name, AtFlags::empty())?;
    }
    Ok(same)
}

fn has_same_content(upper: &OwnedFd, base: &OwnedFd, name: &OsStr) -> io::Result<bool> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let open = |at: &OwnedFd| rustix::fs::openat(at, name, flags, Mode::empty()).map(File::from);
    let (mut above, mut below) = (open(upper)?, open(base)?);
    if xattr::read(&above)? != xattr::read(&below)? {
        return Ok(false);
    }
    let (mut left, mut right) = (vec![0; BLOCK], vec![0; BLOCK]);
    loop {
        let length = above.read(&mut left)?;
        if length == 0 {
            return Ok(true);
        }
        match below.read_exact(&mut right[..length]) {
            Ok(()) if left[..length] == right[..length] => {}
            Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => return Err(error),
            _ => return Ok(false),
        }
    }
}

fn is_same(upper: &OwnedFd, base: &OwnedFd) -> io::Result<bool> {
    let (mut above, mut below) = (rustix::fs::fstat(upper)?, rustix::fs::fstat(base)?);
    owner::restore_open(&mut above, upper);
    owner::restore_open(&mut below, base);
    let equal = (above.st_mode, above.st_uid, above.st_gid) == (below.st_mode, below.st_uid, below.st_gid);
    Ok(equal && xattr::read(upper)? == xattr::read(base)?)
}

fn is_opaque(directory: &OwnedFd) -> io::Result<bool> {
    for name in OPAQUE {
        match rustix::fs::fgetxattr(directory, name, &mut [0u8; 8][..]) {
            Ok(_) => return Ok(true),
            Err(Errno::NODATA | Errno::NOTSUP) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(false)
}

/// The names in a directory, and which are directories.
fn entries(directory: &OwnedFd) -> io::Result<Vec<(OsString, bool)>> {
    use std::os::unix::ffi::OsStrExt as _;
    let mut entries = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name == "." || name == ".." {
            continue;
        }
        let kind = match entry.file_type() {
            FileType::Unknown => stat_at(directory, name)?.map(|stat| FileType::from_raw_mode(stat.st_mode)),
            kind => Some(kind),
        };
        entries.push((name.to_owned(), kind == Some(FileType::Directory)));
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
    use std::time::Duration;

    /// Tidies the layer of a step that began before all times that matter.
    fn tidied(upper: &Path, base: &Path) {
        remove_repeated(upper, &RootDir::open(base).expect("root"), (0, 0)).expect("tidy");
    }

    /// Directories end in `/`, with a mode where it matters.
    fn tree(paths: &[(&str, u32)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("tempdir");
        for (path, mode) in paths {
            let place = root.path().join(path);
            if path.ends_with('/') {
                fs::create_dir_all(&place).expect("mkdir");
                fs::set_permissions(&place, Permissions::from_mode(*mode)).expect("chmod");
            } else {
                fs::write(place, "").expect("write");
            }
        }
        root
    }

    /// What [`repeats_nothing`] says of a layer on an image of one layer.
    fn is_certain(upper: &Path, base: &Path) -> bool {
        let place = tempfile::tempdir().expect("tempdir");
        let store = stave_store::Store::open(place.path()).expect("store");
        let layer = store.prepare(&stave_store::Snapshot::scratch()).expect("layer");
        let mut copy = std::process::Command::new("cp");
        let copied = copy.arg("-a").arg(base.join(".")).arg(layer.upper()).status().expect("cp");
        assert!(copied.success());
        let image = layer.commit().expect("commit");
        repeats_nothing(upper, &store.glance(&image).expect("view")).expect("answer")
    }

    fn list(root: &Path, path: &Path, found: &mut Vec<String>) {
        for entry in fs::read_dir(path).expect("list") {
            let path = entry.expect("entry").path();
            found.push(path.strip_prefix(root).expect("below").display().to_string());
            if path.is_dir() {
                list(root, &path, found);
            }
        }
    }

    #[track_caller]
    fn check(upper: &[(&str, u32)], base: &[(&str, u32)], expected: &[&str]) {
        let (upper, base) = (tree(upper), tree(base));
        let all = || {
            let mut found = Vec::new();
            list(upper.path(), upper.path(), &mut found);
            found.sort_unstable();
            found
        };
        let (before, is_certain) = (all(), is_certain(upper.path(), base.path()));
        tidied(upper.path(), base.path());
        assert_eq!(all(), expected);
        assert!(!is_certain || before == expected);
    }

    #[test]
    fn what_is_new_is_seen_at_a_glance() {
        let dir = 0o755;
        #[track_caller]
        fn check(upper: &[(&str, u32)], base: &[(&str, u32)], expected: bool) {
            let (upper, base) = (tree(upper), tree(base));
            fs::write(upper.path().join("f"), "more").expect("write");
            assert_eq!(is_certain(upper.path(), base.path()), expected);
        }
        check(&[], &[], true);
        check(&[], &[("f", 0)], true);
        check(&[("new/", dir), ("new/x", 0)], &[], true);
        check(&[("a/", dir), ("a/x", 0)], &[("a/", dir), ("a/y", 0)], true);
        check(&[("a/", dir), ("a/x", 0)], &[("a", 0)], true);
        // An empty directory may be what is left of a file that is gone.
        check(&[("a/", dir)], &[("a/", dir)], false);
        check(&[("a/", dir), ("a/x", 0), ("a/b/", dir)], &[("a/", dir), ("a/b/", dir)], false);
        let many: Vec<String> = (0..=GLANCES).map(|number| format!("n{number}")).collect();
        check(&many.iter().map(|name| (name.as_str(), 0)).collect::<Vec<_>>(), &[], false);
    }

    #[test]
    fn only_repetitions_go() {
        let dir = 0o755;
        check(&[("tmp/", 0o1777)], &[("tmp/", 0o1777)], &[]);
        check(&[("tmp/", 0o700)], &[("tmp/", 0o1777)], &["tmp"]);
        check(&[("new/", dir)], &[], &["new"]);
        check(&[("a/", dir)], &[("a", 0)], &["a"]);
        let base = [("a/", dir), ("a/b/", dir), ("a/b/c/", dir)];
        check(&base, &base, &[]);
        check(&[("a/", dir), ("a/b/", dir), ("a/new/", dir)], &base, &["a", "a/new"]);
        check(&[("a/", dir), ("a/b/", dir), ("a/file", 0)], &base, &["a", "a/file"]);
        check(&[("a/", dir), ("a/b/", 0o700), ("a/b/c/", dir)], &base, &["a", "a/b"]);
    }

    #[track_caller]
    fn check_file(change: impl Fn(&Path, &Path), stays: bool) {
        let (upper, base) = (tree(&[("a/", 0o755)]), tree(&[("a/", 0o755)]));
        let (above, below) = (upper.path().join("a/f"), base.path().join("a/f"));
        for path in [&above, &below] {
            fs::write(path, "content").expect("write");
            let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
            File::open(path).and_then(|file| file.set_modified(time)).expect("time");
        }
        change(&above, &below);
        assert!(stays || !is_certain(upper.path(), base.path()));
        tidied(upper.path(), base.path());
        assert_eq!(above.symlink_metadata().is_ok(), stays);
        assert_eq!(upper.path().join("a").exists(), stays);
    }

    #[test]
    fn files_go_when_nothing_about_them_changed() {
        let moment = |seconds, nanoseconds| SystemTime::UNIX_EPOCH + Duration::new(seconds, nanoseconds);
        let set =
            |path: &Path, time| File::open(path).and_then(|file| file.set_modified(time)).expect("time");
        check_file(|_, _| {}, false);
        check_file(
            |above, _| fs::set_permissions(above, Permissions::from_mode(0o600)).expect("chmod"),
            true,
        );
        check_file(|above, _| std::os::unix::fs::chown(above, Some(7), None).expect("root's right"), true);
        check_file(|above, _| set(above, moment(1001, 0)), true);
        check_file(
            |above, _| {
                fs::write(above, "CONTENT").expect("write");
                set(above, moment(1000, 0));
            },
            true,
        );
        check_file(
            |above, below| {
                fs::write(above, "CONTENT").expect("write");
                set(above, moment(1000, 7));
                set(below, moment(1000, 7));
            },
            true,
        );
        check_file(
            |above, below| {
                for (path, target) in [(above, "x"), (below, "y")] {
                    fs::remove_file(path).expect("remove");
                    symlink(target, path).expect("link");
                    let time = rustix::fs::Timespec { tv_sec: 5, tv_nsec: 0 };
                    let times = Timestamps { last_access: time, last_modification: time };
                    let flags = AtFlags::SYMLINK_NOFOLLOW;
                    rustix::fs::utimensat(rustix::fs::CWD, path, &times, flags).expect("time");
                }
            },
            true,
        );
        check_file(|_, below| fs::remove_file(below).expect("remove"), true);
    }

    #[test]
    fn a_directory_stays_whose_time_was_set() {
        let dated = |path: &Path, seconds| {
            let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
            File::open(path).and_then(|file| file.set_modified(time)).expect("time");
        };
        let check = |above: u64, below: u64, stays: bool| {
            let (upper, base) = (tree(&[("a/", 0o755), ("a/f", 0)]), tree(&[("a/", 0o755), ("a/f", 0)]));
            // What only repeats goes all the same, and takes nothing of the time with it.
            [&upper, &base].iter().for_each(|root| dated(&root.path().join("a/f"), 5));
            dated(&upper.path().join("a"), above);
            dated(&base.path().join("a"), below);
            remove_repeated(upper.path(), &RootDir::open(base.path()).expect("root"), (1000, 0))
                .expect("tidy");
            let found = fs::metadata(upper.path().join("a")).ok().map(|found| found.mtime().unsigned_abs());
            assert_eq!(found, stays.then_some(above), "{above} over {below}");
            assert!(!upper.path().join("a/f").exists());
        };
        check(500, 700, true);
        check(700, 500, true);
        // Brought up by overlay, and changed while the step ran.
        check(500, 500, false);
        check(1000, 500, false);
        check(1001, 500, false);
        check(u64::from(u32::MAX), 500, true);
    }

    #[test]
    fn another_link_to_a_file_stands_alone() {
        let (upper, base) = (tree(&[]), tree(&[]));
        for root in [&upper, &base] {
            fs::write(root.path().join("old"), "content").expect("write");
            let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
            File::open(root.path().join("old")).and_then(|file| file.set_modified(time)).expect("time");
        }
        fs::hard_link(upper.path().join("old"), upper.path().join("new")).expect("link");
        tidied(upper.path(), base.path());
        assert!(!upper.path().join("old").exists());
        assert_eq!(fs::read(upper.path().join("new")).expect("read"), b"content");
    }

    #[test]
    fn a_directory_that_hides_the_one_below_stays() {
        let (upper, base) = (tree(&[("a/", 0o755)]), tree(&[("a/", 0o755), ("a/gone", 0)]));
        let hiding = File::open(upper.path().join("a")).expect("open");
        rustix::fs::fsetxattr(&hiding, OPAQUE[0], b"y", rustix::fs::XattrFlags::empty())
            .expect("root's right");
        tidied(upper.path(), base.path());
        assert!(upper.path().join("a").is_dir());
    }

    #[test]
    fn nothing_in_a_directory_that_was_made_anew_is_a_repetition() {
        let shape = [("a/", 0o755), ("a/x", 0), ("a/b/", 0o755), ("a/b/y", 0)];
        let (upper, base) = (tree(&shape), tree(&shape));
        for root in [&upper, &base] {
            for file in ["a/x", "a/b/y"] {
                let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
                File::open(root.path().join(file)).and_then(|file| file.set_modified(time)).expect("time");
            }
        }
        let hiding = File::open(upper.path().join("a")).expect("open");
        rustix::fs::fsetxattr(&hiding, OPAQUE[0], b"y", rustix::fs::XattrFlags::empty())
            .expect("root's right");
        tidied(upper.path(), base.path());
        assert!(upper.path().join("a/x").is_file() && upper.path().join("a/b/y").is_file());
    }

    #[test]
    fn what_stays_keeps_its_time_and_links_are_not_followed() {
        let shape = [("a/", 0o755), ("a/b/", 0o755)];
        let (upper, base) = (tree(&shape), tree(&shape));
        fs::write(upper.path().join("a/file"), "").expect("write");
        symlink("/tmp", upper.path().join("a/link")).expect("symlink");
        let old = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        File::open(upper.path().join("a")).and_then(|a| a.set_modified(old)).expect("time");
        tidied(upper.path(), base.path());
        assert!(!upper.path().join("a/b").exists());
        assert!(upper.path().join("a/link").is_symlink());
        assert_eq!(fs::metadata(upper.path().join("a")).expect("stat").mtime(), 1000);
    }
}
