//! The stub layer: directories and empty files at the bottom of an overlay for mounts to be placed on.
//!
//! An image need not have `/proc` or the target of a bind. Making them in the upper directory would put them into
//! the image's next layer; making them in the lowest layer does not, and whatever the image has lies above.
//! Layers are named by what is in them and never change, so sandboxes with the same targets share one.
//! Read [`stub_layer`] first.

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::spec::MountSpec;

/// Part of every layer's name; changing what a layer looks like changes it.
const STUB_FORMAT: &str = "1";
/// Directories every sandbox mounts on.
const ALWAYS: [&str; 3] = ["proc", "sys", "dev"];

/// What a mount is placed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum PointKind {
    Directory,
    File,
}

/// What kind of mount point a mount needs; a bind source that cannot be read fails later, with its name.
pub(crate) fn point_kind(mount: &MountSpec) -> PointKind {
    match mount {
        MountSpec::Bind { source, .. } if fs::metadata(source).is_ok_and(|found| !found.is_dir()) => {
            PointKind::File
        }
        MountSpec::Bind { .. } | MountSpec::Tmpfs { .. } => PointKind::Directory,
        MountSpec::File { .. } | MountSpec::Device { .. } => PointKind::File,
    }
}

/// The layer with the mount points of `mounts`, below the directory `stubs`; made unless it is there.
pub(crate) fn stub_layer(stubs: &Path, mounts: &[MountSpec]) -> io::Result<PathBuf> {
    let points = points(mounts);
    let mut hasher = DefaultHasher::new();
    points.hash(&mut hasher);
    let layer = stubs.join(format!("{STUB_FORMAT}-{:016x}", hasher.finish()));
    if layer.is_dir() {
        return Ok(layer);
    }
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let aside = stubs.join(format!("new-{}-{number}", std::process::id()));
    make_directory(&aside)?;
    for (path, kind) in &points {
        make_point(&aside, path, *kind)?;
    }
    match fs::rename(&aside, &layer) {
        // Another thread or process was faster.
        Err(_) if layer.is_dir() => fs::remove_dir_all(&aside).map(|()| layer),
        other => other.map(|()| layer),
    }
}

/// Mount points by their path relative to the root. A path with `..` cannot be told without the image.
fn points(mounts: &[MountSpec]) -> BTreeMap<PathBuf, PointKind> {
    let always = ALWAYS.iter().map(|name| (PathBuf::from(name), PointKind::Directory));
    let wanted = mounts.iter().filter_map(|mount| Some((relative(mount.target())?, point_kind(mount))));
    // Below the file systems every sandbox mounts, a stub could not be seen.
    always.chain(wanted.filter(|(path, _)| !ALWAYS.iter().any(|always| path.starts_with(always)))).collect()
}

fn relative(target: &Path) -> Option<PathBuf> {
    let mut relative = PathBuf::new();
    for component in target.components() {
        match component {
            Component::Normal(name) => relative.push(name),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => return None,
        }
    }
    (relative != Path::new("")).then_some(relative)
}

fn make_point(layer: &Path, path: &Path, kind: PointKind) -> io::Result<()> {
    let place = layer.join(path);
    match kind {
        PointKind::Directory => make_directory(&place),
        // One target below another that is a file: the mount itself will say what is wrong.
        PointKind::File if place.exists() => Ok(()),
        PointKind::File => {
            make_directory(place.parent().unwrap_or(layer))?;
            File::create(&place)?.set_permissions(Permissions::from_mode(0o644))
        }
    }
}

/// Makes a directory and its missing parents, for all to enter whatever the caller's umask.
fn make_directory(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        make_directory(parent)?;
    }
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other.and_then(|()| fs::set_permissions(path, Permissions::from_mode(0o755))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tmpfs(target: &str) -> MountSpec {
        MountSpec::Tmpfs { target: target.into(), size: None, mode: 0o755 }
    }

    fn file(target: &str) -> MountSpec {
        MountSpec::File { target: target.into(), contents: Vec::new(), mode: 0o644, uid: 0, gid: 0 }
    }

    #[track_caller]
    fn check(mounts: &[MountSpec], expected: &[&str]) {
        let points = points(mounts);
        let shown: Vec<String> = points
            .iter()
            .map(|(path, kind)| {
                format!("{}{}", path.display(), if *kind == PointKind::Directory { "/" } else { "" })
            })
            .collect();
        assert_eq!(shown, expected);
    }

    #[test]
    fn points_are_those_of_the_mounts_and_the_usual_ones() {
        check(&[], &["dev/", "proc/", "sys/"]);
        check(&[tmpfs("/a/./b"), file("//etc/hosts")], &["a/b/", "dev/", "etc/hosts", "proc/", "sys/"]);
        check(&[tmpfs("/dev/x"), tmpfs("/a/../b"), tmpfs("/")], &["dev/", "proc/", "sys/"]);
    }

    #[test]
    fn a_layer_is_made_once_and_shared() {
        let directory = tempfile::tempdir().expect("a directory");
        let stubs = directory.path().join("stubs");
        let first = stub_layer(&stubs, &[tmpfs("/cache"), file("/etc/hosts")]).expect("a layer");
        assert!(
            first.join("cache").is_dir() && first.join("etc/hosts").is_file() && first.join("proc").is_dir()
        );
        assert_eq!(stub_layer(&stubs, &[file("/etc/hosts"), tmpfs("/cache")]).expect("the same"), first);
        assert_ne!(stub_layer(&stubs, &[tmpfs("/cache")]).expect("another"), first);
        assert_eq!(fs::read_dir(&stubs).expect("layers").count(), 2);
    }

    #[test]
    fn a_target_below_a_file_is_left_to_the_mount() {
        let directory = tempfile::tempdir().expect("a directory");
        let made = stub_layer(directory.path(), &[file("/a"), tmpfs("/a/b")]);
        assert!(made.is_err());
    }
}
