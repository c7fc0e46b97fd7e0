//! What mounting leaves in the layer of a step.
//!
//! Mount points are made below every layer, so that none gets into an image. Two things are visible all the same
//! where BuildKit and runc make mount points in the layer itself, and images are compared file by file: the file
//! systems that every process has mounted leave their directories in an image that lacks them, and a directory in
//! which a mount point was made and removed has a new modification time.
//! Must not know ops or how mounts are made. Read [`leave_directories`] and [`Touched`] first.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, Timespec, Timestamps, UTIME_NOW};

use crate::base::Look;
use crate::file::place::{PARENT_MODE, Stamp, create_directory};
use crate::root::{At as _, IoAt, Last, RootDir, absent};

/// What every process has mounted.
const ALWAYS: [&str; 3] = ["dev", "proc", "sys"];

/// Makes the directories that every process has mounted, in the layer `upper`, where the image `base` has nothing.
pub(crate) fn leave_directories(base: &impl Look, upper: &Path) -> Result<(), IoAt> {
    let mut root = None;
    for name in ALWAYS {
        let path = Path::new(name);
        if base.stat(path).at("looking at", path)?.is_some() {
            continue;
        }
        let root = match &root {
            Some(root) => root,
            None => root.insert(RootDir::open(upper)?),
        };
        create_directory(root, path, PARENT_MODE, &Stamp { owner: None, time: None })?;
    }
    Ok(())
}

/// Directories of an image in which mount points had to be made, with the time of the last change that the image has of
/// each: seconds and nanoseconds.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Touched(BTreeMap<PathBuf, (i64, u64)>);

impl Touched {
    /// What mounting at `targets` changes in the image `base`. What cannot be told is left out.
    pub(crate) fn by<'a>(base: &impl Look, targets: impl Iterator<Item = &'a Path>) -> Self {
        Self(targets.filter_map(|target| parent_of_missing(base, target)).collect())
    }

    /// Gives those that are in the layer anyway the time they would have. One that the step changed has that of the
    /// step's last change, or what it set.
    pub(crate) fn apply(&self, upper: &Path) -> Result<(), IoAt> {
        if self.0.is_empty() {
            return Ok(());
        }
        let root = RootDir::open(upper)?;
        for (path, before) in &self.0 {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
            match root.open_at(path, flags, Mode::empty()) {
                Ok(directory) => {
                    let here = rustix::fs::fstat(&directory).at("looking at", path)?;
                    if (here.st_mtime, here.st_mtime_nsec) == *before {
                        rustix::fs::futimens(directory, &NOW).at("setting the time of", path)?;
                    }
                }
                // Nothing in it changed, or the step made something else of it.
                Err(error) if absent(&error) || error.raw_os_error() == Some(LOOP) => {}
                Err(error) => return Err(error).at("opening", path),
            }
        }
        Ok(())
    }
}

/// What opening a symbolic link says when links are not followed.
const LOOP: i32 = rustix::io::Errno::LOOP.raw_os_error();

const NOW: Timestamps = Timestamps {
    last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
    last_modification: Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
};

/// The directory of the image in which the first missing part of a path would be made, and its time; `None` when nothing is
/// missing, or only the root is concerned, which layers do not record.
fn parent_of_missing(base: &impl Look, target: &Path) -> Option<(PathBuf, (i64, u64))> {
    let mut path = base.resolve(target, Last::Follow).ok()?;
    if base.stat(&path).ok()?.is_some() {
        return None;
    }
    while path.pop() && !path.as_os_str().is_empty() {
        if let Some(stat) = base.stat(&path).ok()? {
            let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
            return is_directory.then_some((path, (stat.st_mtime, stat.st_mtime_nsec)));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

    fn image() -> (tempfile::TempDir, RootDir) {
        let directory = tempfile::tempdir().expect("tempdir");
        fs::create_dir_all(directory.path().join("etc/deep")).expect("mkdir");
        fs::write(directory.path().join("etc/hosts"), "").expect("write");
        symlink("/etc", directory.path().join("link")).expect("symlink");
        let root = RootDir::open(directory.path()).expect("root");
        (directory, root)
    }

    #[track_caller]
    fn check_touched(targets: &[&str], expected: &[&str]) {
        let (_directory, base) = image();
        let found = Touched::by(&base, targets.iter().map(Path::new));
        let found: Vec<_> = found.0.keys().map(PathBuf::as_path).collect();
        assert_eq!(found, expected.iter().map(Path::new).collect::<Vec<_>>());
    }

    #[test]
    fn the_nearest_directory_is_touched() {
        check_touched(&["/etc/hosts"], &[]);
        check_touched(&["/etc/resolv.conf", "/etc/other"], &["etc"]);
        check_touched(&["/link/resolv.conf"], &["etc"]);
        check_touched(&["/etc/deep/a/b/c"], &["etc/deep"]);
        check_touched(&["/cache", "/run/secrets/x", "/"], &[]);
        check_touched(&["/etc/hosts/below"], &[]);
    }

    #[test]
    fn only_what_the_layer_has_gets_a_time() {
        let upper = tempfile::tempdir().expect("tempdir");
        let etc = upper.path().join("etc");
        fs::create_dir(&etc).expect("mkdir");
        let old = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1000);
        fs::File::open(&etc).and_then(|etc| etc.set_modified(old)).expect("time");
        symlink("/etc", upper.path().join("link")).expect("symlink");
        let touched = |paths: &[(&str, i64)]| {
            Touched(paths.iter().map(|(path, time)| (PathBuf::from(path), (*time, 0))).collect())
        };
        touched(&[("absent/deep", 1000), ("link", 1000)]).apply(upper.path()).expect("apply");
        assert_eq!(fs::metadata(&etc).expect("stat").mtime(), 1000);
        // It has another time than in the image: the step set it.
        touched(&[("etc", 999)]).apply(upper.path()).expect("apply");
        assert_eq!(fs::metadata(&etc).expect("stat").mtime(), 1000);
        touched(&[("etc", 1000)]).apply(upper.path()).expect("apply");
        assert!(fs::metadata(&etc).expect("stat").mtime() > 1000);
    }

    #[test]
    fn an_image_gets_the_directories_it_lacks() {
        let (image, base) = image();
        fs::create_dir(image.path().join("dev")).expect("mkdir");
        symlink("nowhere", image.path().join("sys")).expect("symlink");
        let upper = tempfile::tempdir().expect("tempdir");
        leave_directories(&base, upper.path()).expect("leave");
        let names: Vec<_> = fs::read_dir(upper.path())
            .expect("list")
            .map(|entry| entry.expect("entry").file_name().into_string().expect("utf-8"))
            .collect();
        assert_eq!(names, ["proc"]);
        let mode = fs::metadata(upper.path().join("proc")).expect("stat").permissions().mode();
        assert_eq!(mode & 0o7777, 0o755);
    }
}
