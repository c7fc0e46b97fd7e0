//! Single files and directories written straight into a layer's directory, without a mount of all that is below it.
//!
//! What an overlay would do for them is done here: the directories above are brought up from the base with all that they
//! carry, and a file in the layer hides the one below. Nothing else is done: what would have to remove something, or to
//! join two directories, needs a mount, and the answer is `None`. Must not know ops. Read [`Bare`] first.

use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, Stat, Timespec, Timestamps};
use stave_store::{ActiveLayer, MergedView, StoreError};

use super::action::{CopyRequest, Destination};
use super::place::Stamp;
use crate::base::{Look, link, unwrapped};
use crate::root::{At as _, IoAt, Last, RootDir, resolve_with, stat_at};
use crate::tree::{Meta, open_directory};
use crate::xattr;

/// A layer being made, and what it is made on.
#[derive(Debug)]
pub(crate) struct Bare {
    base: MergedView,
    upper: RootDir,
}

impl Look for Bare {
    fn resolve(&self, path: &Path, last: Last) -> io::Result<PathBuf> {
        resolve_with(path, last, |current| {
            let Some(stat) = self.upper.stat(current)? else {
                return if self.shows_base(current)? { link(&self.base, current) } else { Ok(None) };
            };
            if Meta::from(&stat).file_type() != FileType::Symlink {
                return Ok(None);
            }
            let (parent, name) = self.upper.entry(current)?;
            let target = rustix::fs::readlinkat(&parent, name, Vec::new())?;
            Ok(Some(std::os::unix::ffi::OsStringExt::from_vec(target.into_bytes())))
        })
    }

    /// Of a canonical path. Nothing is removed from the layer, so what it has is what there is.
    fn stat(&self, path: &Path) -> io::Result<Option<Stat>> {
        match self.upper.stat(path)? {
            Some(stat) => Ok(Some(stat)),
            None if self.shows_base(path)? => self.base.stat(path),
            None => Ok(None),
        }
    }

    fn read_file(&self, path: &Path, limit: u64) -> io::Result<Vec<u8>> {
        let real = self.resolve(path, Last::Follow)?;
        match self.upper.stat(&real)? {
            Some(_) => self.upper.read_file(&real, limit),
            None if self.shows_base(&real)? => self.base.read_file(&real, limit),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }
}

impl Bare {
    /// A layer in which nothing is written yet.
    pub(crate) fn of(layer: &ActiveLayer) -> Result<Self, StoreError> {
        let upper = RootDir::open(layer.upper());
        let upper = upper.map_err(|error| StoreError::Io {
            action: "open",
            path: layer.upper().to_owned(),
            source: std::io::Error::other(error),
        })?;
        Ok(Self { base: layer.glance()?, upper })
    }

    /// The layer's own directory.
    pub(crate) fn upper(&self) -> &RootDir {
        &self.upper
    }

    /// The request as it can be carried out on the layer's own directory, for a source that is no directory.
    pub(crate) fn copy(&self, request: &CopyRequest) -> Result<Option<CopyRequest>, IoAt> {
        let shown = Path::new(&request.destination);
        let planned = || -> io::Result<Option<PathBuf>> {
            let destination = Destination::new(&request.destination);
            let target = self.resolve(&destination.path, Last::Follow)?;
            let existing = self.kind(&target)?;
            let is_inside = destination.is_directory || existing == Some(FileType::Directory);
            let place = match (is_inside, existing) {
                (true, None | Some(FileType::Directory)) => {
                    target.join(Path::new(&request.source).file_name().unwrap_or_default())
                }
                (true, Some(_)) => return Ok(None),
                (false, _) => target.clone(),
            };
            let above = target.parent().unwrap_or(Path::new(""));
            let is_made = request.create_destination || self.kind(above)? == Some(FileType::Directory);
            Ok((is_made && self.make_way(&place)?).then_some(target))
        };
        let target = planned().at("looking at", shown)?;
        Ok(target.map(|target| {
            let end = if Destination::new(&request.destination).is_directory { "/" } else { "" };
            // All of it is text, else no way would have been made.
            CopyRequest { destination: format!("/{}{end}", target.display()), ..request.clone() }
        }))
    }

    /// Whether a directory is there already, or can be made in the layer's own directory at the path returned.
    pub(crate) fn mkdir(&self, path: &str, parents: bool) -> Result<Option<Way>, IoAt> {
        let planned = || -> io::Result<Option<Way>> {
            let real = self.resolve(Path::new(path), Last::Follow)?;
            match self.kind(&real)? {
                Some(FileType::Directory) => return Ok(Some(Way::Nothing)),
                Some(_) => return Ok(None),
                None => {}
            }
            let above = real.parent().unwrap_or(Path::new(""));
            if !parents && self.kind(above)? != Some(FileType::Directory) {
                return Ok(None);
            }
            Ok(if self.make_way(&real)? { Way::at(&real) } else { None })
        };
        planned().at("looking at", Path::new(path))
    }

    /// Where in the layer's own directory a file can be written.
    pub(crate) fn mkfile(&self, path: &str) -> Result<Option<Way>, IoAt> {
        let planned = || -> io::Result<Option<Way>> {
            let real = self.resolve(Path::new(path), Last::Follow)?;
            let above = real.parent().unwrap_or(Path::new(""));
            let can_be = self.kind(above)? == Some(FileType::Directory) && self.make_way(&real)?;
            Ok(if can_be { Way::at(&real) } else { None })
        };
        planned().at("looking at", Path::new(path))
    }

    /// Whether what the layer does not have at a canonical path is the base's: not below a file of the layer's, which may
    /// have taken the place of a link that the base would follow.
    fn shows_base(&self, path: &Path) -> io::Result<bool> {
        for above in path.ancestors().skip(1).filter(|above| !above.as_os_str().is_empty()) {
            if let Some(stat) = self.upper.stat(above)? {
                return Ok(Meta::from(&stat).file_type() == FileType::Directory);
            }
        }
        Ok(true)
    }

    fn kind(&self, path: &Path) -> io::Result<Option<FileType>> {
        if path.as_os_str().is_empty() {
            return Ok(Some(FileType::Directory));
        }
        Ok(self.stat(path)?.map(|stat| Meta::from(&stat).file_type()))
    }

    /// Brings up the directories above a canonical path that is to be made. False, and nothing done, if one of them is
    /// none, or the path is a directory.
    fn make_way(&self, path: &Path) -> io::Result<bool> {
        if path.as_os_str().is_empty() || path.to_str().is_none() {
            return Ok(false);
        }
        if self.kind(path)? == Some(FileType::Directory) {
            return Ok(false);
        }
        let mut there = Vec::new();
        for above in path.ancestors().skip(1).filter(|above| !above.as_os_str().is_empty()) {
            match self.kind(above)? {
                Some(FileType::Directory) => there.push(above),
                Some(_) => return Ok(false),
                None => {}
            }
        }
        for directory in there.into_iter().rev() {
            self.bring_up(directory)?;
        }
        Ok(true)
    }

    /// Makes a directory of the base one of the layer, with its owner, mode, attributes and times.
    fn bring_up(&self, path: &Path) -> io::Result<()> {
        let (parent, name) = self.upper.entry(path)?;
        if stat_at(&parent, name)?.is_some() {
            return Ok(());
        }
        let Some(below) = self.base.symlink_metadata(path).map_err(unwrapped)? else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let meta = Meta::from(below.stat());
        let attributes = xattr::read(below.open_directory().map_err(unwrapped)?)?;
        let before = rustix::fs::fstat(&parent)?;
        rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o700))?;
        let made = open_directory(parent.as_fd(), name)?;
        xattr::disinherit(&made)?;
        Stamp { owner: Some((meta.uid, meta.gid)), time: None }.apply(&made, meta.permissions())?;
        xattr::write(&made, &attributes)?;
        rustix::fs::futimens(&made, &times(below.stat()))?;
        // To bring a directory up is no change of the one it is in, whose descriptor may be a path's only.
        Ok(rustix::fs::utimensat(&parent, ".", &times(&before), AtFlags::empty())?)
    }
}

/// The times of a file, to be set.
fn times(stat: &Stat) -> Timestamps {
    let time = |seconds, nanoseconds: u64| Timespec {
        tv_sec: seconds,
        tv_nsec: i64::try_from(nanoseconds).unwrap_or(0),
    };
    Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    }
}

/// What is left to do of an action.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// It is as it shall be.
    Nothing,
    /// The action itself, at this path of the layer's own directory.
    At(String),
}

impl Way {
    fn at(path: &Path) -> Option<Self> {
        path.to_str().map(|path| Self::At(format!("/{path}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mode::ModeChange;
    use std::fs::{self, File, Permissions};
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
    use std::time::{Duration, SystemTime};

    use rustix::fs::{CWD, XattrFlags, fgetxattr, fsetxattr, makedev, mknodat};
    use stave_store::{Snapshot, Store};

    use crate::file::copy::CopyRules;

    /// A layer on two others, of which the upper one removes a file.
    fn layer(place: &Path) -> ActiveLayer {
        let store = Store::open(place).expect("store");
        let layer = store.prepare(&Snapshot::scratch()).expect("layer");
        let path = |name: &str| layer.upper().join(name);
        fs::create_dir_all(path("srv/data")).expect("mkdir");
        symlink("/srv/data", path("alias")).expect("link");
        for file in ["f", "srv/data/gone", "srv/data/kept"] {
            fs::write(path(file), file).expect("write");
        }
        chown(path("srv/data"), Some(5), Some(6)).expect("root's right");
        fs::set_permissions(path("srv/data"), Permissions::from_mode(0o2775)).expect("chmod");
        let data = File::open(path("srv/data")).expect("open");
        fsetxattr(&data, "user.of", b"it", XattrFlags::empty()).expect("attribute");
        data.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1000)).expect("time");
        let below = layer.commit().expect("commit");
        let layer = store.prepare(&below).expect("layer");
        fs::create_dir(layer.upper().join("srv")).expect("mkdir");
        let data = layer.upper().join("srv/data");
        fs::create_dir(&data).expect("mkdir");
        chown(&data, Some(5), Some(6)).expect("root's right");
        fs::set_permissions(&data, Permissions::from_mode(0o2775)).expect("chmod");
        let opened = File::open(&data).expect("open");
        fsetxattr(&opened, "user.of", b"it", XattrFlags::empty()).expect("attribute");
        mknodat(CWD, data.join("gone"), FileType::CharacterDevice, Mode::empty(), makedev(0, 0))
            .expect("root's right");
        opened.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1000)).expect("time");
        let above = File::open(layer.upper().join("srv")).expect("open");
        above.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(900)).expect("time");
        store.prepare(&layer.commit().expect("commit")).expect("layer")
    }

    fn request(source: &str, destination: &str) -> CopyRequest {
        CopyRequest {
            source: source.into(),
            destination: destination.into(),
            follow_symlinks: false,
            directory_contents: false,
            attempt_unpack: false,
            create_destination: true,
            wildcard: false,
            allow_empty_wildcard: false,
            include: Vec::new(),
            exclude: Vec::new(),
            required: Vec::new(),
            rules: CopyRules {
                owner: None,
                mode: ModeChange::Keep,
                time: None,
                replace: false,
                keep_directories: false,
            },
        }
    }

    /// What is in the layer's own directory, sorted.
    fn all(directory: &Path, root: &Path, found: &mut Vec<String>) {
        for entry in fs::read_dir(directory).expect("list") {
            let path = entry.expect("entry").path();
            found.push(path.strip_prefix(root).expect("below").display().to_string());
            if path.symlink_metadata().expect("status").is_dir() {
                all(&path, root, found);
            }
        }
        found.sort_unstable();
    }

    #[track_caller]
    fn check(destination: &str, expected: Option<&str>, brought_up: &[&str]) {
        let place = tempfile::tempdir().expect("tempdir");
        let layer = layer(place.path());
        let bare = Bare::of(&layer).expect("layers");
        let copy = bare.copy(&request("/a/new", destination)).expect("answer");
        assert_eq!(copy.map(|copy| copy.destination).as_deref(), expected);
        let mut found = Vec::new();
        all(layer.upper(), layer.upper(), &mut found);
        assert_eq!(found, brought_up);
    }

    #[test]
    fn copies_go_where_paths_lead() {
        check("/", Some("//"), &[]);
        check("/none/", Some("/none/"), &[]);
        check("/f", Some("/f"), &[]);
        check("/alias/", Some("/srv/data/"), &["srv", "srv/data"]);
        check("/alias", Some("/srv/data"), &["srv", "srv/data"]);
        check("/alias/gone", Some("/srv/data/gone"), &["srv", "srv/data"]);
        check("/alias/kept", Some("/srv/data/kept"), &["srv", "srv/data"]);
        check("/alias/../x/y", Some("/x/y"), &[]);
        // What cannot be said of the layer alone.
        check("/f/", None, &[]);
        check("/f/x", None, &[]);
    }

    #[test]
    fn directories_come_with_all_they_carry() {
        let place = tempfile::tempdir().expect("tempdir");
        let layer = layer(place.path());
        let bare = Bare::of(&layer).expect("layers");
        assert_eq!(bare.mkdir("/alias", true).expect("answer"), Some(Way::Nothing));
        assert_eq!(fs::read_dir(layer.upper()).expect("list").count(), 0, "nothing changed");
        let way = bare.mkdir("/alias/new/deep", true).expect("answer");
        assert_eq!(way, Some(Way::At("/srv/data/new/deep".into())));
        let data = layer.upper().join("srv/data");
        let status = fs::metadata(&data).expect("status");
        let facts = (status.mode() & 0o7777, status.uid(), status.gid(), status.mtime());
        assert_eq!(facts, (0o2775, 5, 6, 1000));
        let above = fs::metadata(layer.upper().join("srv")).expect("status");
        assert_eq!(above.mtime(), 900, "nothing in it changed but what it has");
        let mut value = [0; 2];
        fgetxattr(File::open(&data).expect("open"), "user.of", &mut value).expect("attribute");
        assert_eq!(&value, b"it");
    }

    #[test]
    fn what_needs_more_than_the_layer_is_left_to_a_mount() {
        let place = tempfile::tempdir().expect("tempdir");
        let layer = layer(place.path());
        let bare = Bare::of(&layer).expect("layers");
        assert_eq!(bare.mkdir("/f", true).expect("answer"), None);
        assert_eq!(bare.mkdir("/none/x", false).expect("answer"), None);
        assert_eq!(bare.mkfile("/none/x").expect("answer"), None);
        assert_eq!(bare.mkfile("/alias").expect("answer"), None);
        assert_eq!(bare.mkfile("/srv/data/gone").expect("answer"), Some(Way::At("/srv/data/gone".into())));
        let over = CopyRequest { create_destination: false, ..request("/a/new", "/none/x") };
        assert!(bare.copy(&over).expect("answer").is_none());
    }

    #[test]
    fn nothing_is_below_a_file_that_took_the_place_of_a_link() {
        let place = tempfile::tempdir().expect("tempdir");
        let layer = layer(place.path());
        fs::write(layer.upper().join("alias"), "a file now").expect("write");
        let bare = Bare::of(&layer).expect("layers");
        assert!(bare.stat(Path::new("alias/kept")).expect("answer").is_none());
        let read = bare.read_file(Path::new("/alias/kept"), 64);
        assert_eq!(read.map_err(|error| error.kind()), Err(io::ErrorKind::NotFound));
        for path in ["/alias/new", "/alias/../alias/new"] {
            assert_eq!(bare.mkdir(path, true).expect("answer"), None, "{path} cannot be");
        }
        assert_eq!(bare.mkfile("/alias/new").expect("answer"), None);
        assert!(bare.copy(&request("/a/new", "/alias/")).expect("answer").is_none());
        assert_eq!(bare.mkdir("/srv/data", true).expect("answer"), Some(Way::Nothing));
    }

    #[test]
    fn what_was_written_is_seen_before_what_is_below() {
        let place = tempfile::tempdir().expect("tempdir");
        let layer = layer(place.path());
        let bare = Bare::of(&layer).expect("layers");
        let read = |path: &str| bare.read_file(Path::new(path), 64).map_err(|error| error.kind());
        assert_eq!(read("alias/kept").as_deref(), Ok(&b"srv/data/kept"[..]));
        assert_eq!(read("alias/gone"), Err(io::ErrorKind::NotFound));
        bare.mkfile("/alias/gone").expect("answer").expect("a way");
        fs::write(layer.upper().join("srv/data/gone"), "again").expect("write");
        symlink("srv/data/gone", layer.upper().join("link")).expect("link");
        assert_eq!(read("link").as_deref(), Ok(&b"again"[..]));
        assert_eq!(bare.resolve(Path::new("link"), Last::Follow).expect("path"), Path::new("srv/data/gone"));
    }
}
