//! A process over a tree of its own, where nothing can be mounted.
//!
//! Owns what stands for mounts there: the merged root as copies, directories that are moved in and back, copies of
//! what is only read, files, devices; and what of the tree becomes the layer. Must not know ops. Read
//! [`ProcessTree::build`] first.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, fstat, makedev, mknodat, openat2, renameat, statat,
};
use stave_sandbox::{MountSpec, Network, RootFs, SandboxSpec};
use stave_store::{FlatTree, Left, ScratchDir, Store, StoreError, Taking, copy_tree};

use crate::file::place::remove_all;
use crate::root::{Last, RootDir};

/// What every sandbox has at its top and no layer has anything in.
const PLACES: [&str; 3] = ["proc", "sys", "dev"];
/// Name, major and minor number.
const DEVICES: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];
/// Name and what it points to, as docker has them; without `/proc` they lead nowhere. A step's output gets a named
/// pipe in place of the last two.
const LINKS: [(&str, &str); 4] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
];
/// What `statfs` says of a file system in memory.
const MEMORY: [i64; 2] = [0x0102_1994, 0x8584_58f6];

/// Most trees that wait for a next process.
const MAX_WAITING: usize = 2;
/// How long one waits.
const WAITING: Duration = Duration::from_secs(30);

/// Where processes get their trees from, and leave them for the next: a chain of steps is copied once.
#[derive(Debug, Clone)]
pub(crate) struct Trees {
    store: Store,
    waiting: Arc<Mutex<Vec<Waiting>>>,
}

/// A used tree. It goes before the directory it is in.
#[derive(Debug)]
struct Waiting {
    tree: FlatTree,
    _place: ScratchDir,
    since: Instant,
}

impl Trees {
    pub(crate) fn of(store: Store) -> Self {
        Self { store, waiting: Arc::default() }
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The tree of these layers (top first) in `place`.
    fn take(&self, layers: &[PathBuf], place: PathBuf) -> Result<FlatTree, StoreError> {
        let used = {
            let mut waiting = self.waiting();
            let likest = waiting.iter().enumerate().max_by_key(|(_, one)| one.tree.in_common(layers));
            let likest = likest.filter(|(_, one)| one.tree.in_common(layers) > 0).map(|(index, _)| index);
            likest.map(|index| waiting.swap_remove(index))
        };
        match used {
            Some(used) => used.tree.refit(&self.store, layers, place),
            None => self.store.flatten(layers, place, Taking::Copies),
        }
    }

    /// Keeps a tree for the next process, unless the store's room is counted. That it cannot be kept is no failure.
    fn give(&self, mut tree: FlatTree) {
        if self.store.cap().is_some() {
            return;
        }
        let kept = self.store.scratch_dir().and_then(|place| {
            tree.move_to(place.path().join("tree"))?;
            Ok(Waiting { tree, _place: place, since: Instant::now() })
        });
        match kept {
            Ok(kept) => {
                let mut waiting = self.waiting();
                waiting.push(kept);
                let surplus = waiting.len().saturating_sub(MAX_WAITING);
                let surplus: Vec<Waiting> = waiting.drain(..surplus).collect();
                drop(waiting);
                // Removing one takes its time.
                drop(surplus);
                self.tidy_later();
            }
            Err(error) => tracing::debug!(%error, "a tree is not kept for the next step"),
        }
    }

    /// Removes what nobody took, after a while, in a process that goes on.
    fn tidy_later(&self) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let waiting = Arc::downgrade(&self.waiting);
        drop(runtime.spawn(async move {
            tokio::time::sleep(WAITING).await;
            let Some(waiting) = waiting.upgrade() else { return };
            let is_old = |one: &mut Waiting| one.since.elapsed() >= WAITING;
            let old: Vec<Waiting> =
                waiting.lock().unwrap_or_else(PoisonError::into_inner).extract_if(.., is_old).collect();
            drop(tokio::task::spawn_blocking(move || drop(old)));
        }));
    }
}

/// Why there is no tree for a process.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Something could not be put into it.
    #[error("putting `{}` into the file system of a step", path.display())]
    Place {
        /// What, as the step sees it.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A device cannot be made or used: `CAP_MKNOD`, or a file system mounted `nodev`.
    #[error("`/dev/{name}` cannot be had below the state directory, and there are no mounts here")]
    Device {
        /// Its name.
        name: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// It would have to be written to a disk.
    #[error(
        "a secret file at `{}` needs a file system in memory, which cannot be mounted here: pass it as a variable \
         (`--mount=type=secret,env=NAME`), or put the state directory into memory",
        .0.display()
    )]
    Secret(PathBuf),
    /// Nothing but a mount will do.
    #[error("`{}` needs a mount, and nothing can be mounted here", .0.display())]
    NeedsMount(PathBuf),
}

/// A file that was written into a tree for one process alone.
#[derive(Debug)]
struct Written {
    here: PathBuf,
    /// It itself, wherever the process has moved it.
    file: OwnedFd,
}

impl Written {
    /// Removes it; `false` if it may still be somewhere, since the process moved it or gave it a second name.
    fn remove(&self) -> io::Result<bool> {
        let written = fstat(&self.file)?;
        if written.st_nlink == 0 {
            return Ok(true);
        }
        let (parent, name) = unfollowed(&self.here)?;
        let there = match statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(rustix::io::Errno::NOENT) => return Ok(false),
            there => there?,
        };
        if written.st_nlink > 1 || (there.st_dev, there.st_ino) != (written.st_dev, written.st_ino) {
            return Ok(false);
        }
        rustix::fs::unlinkat(&parent, name, AtFlags::empty())?;
        Ok(true)
    }
}

/// The directory that holds a path of a tree, and its last name. The process may have put links on the way, which lead
/// out of the tree for us: none is followed.
fn unfollowed(path: &Path) -> io::Result<(OwnedFd, &OsStr)> {
    let no_place = || io::Error::from(io::ErrorKind::NotFound);
    let (parent, name) = path.parent().zip(path.file_name()).ok_or_else(no_place)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok((openat2(CWD, parent, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS)?, name))
}

/// A directory or file that was moved into the tree.
#[derive(Debug)]
struct Moved {
    home: PathBuf,
    here: PathBuf,
    /// It itself, wherever the process has moved it.
    lent: OwnedFd,
}

impl Moved {
    /// Moves it home, if it still is where it was put: nothing but what was lent is moved.
    fn give_back(&self) -> io::Result<()> {
        let (parent, name) = unfollowed(&self.here)?;
        let there = statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let lent = fstat(&self.lent)?;
        if (there.st_dev, there.st_ino) != (lent.st_dev, lent.st_ino) {
            return Err(io::Error::new(io::ErrorKind::NotFound, "something else is in its place"));
        }
        Ok(renameat(&parent, name, CWD, &self.home)?)
    }
}

/// The file system of one process.
#[derive(Debug)]
pub(crate) struct ProcessTree {
    // What was moved in leaves before the tree goes.
    lent: Lent,
    /// Secrets among them.
    written: Vec<Written>,
    left: Left,
    upper: PathBuf,
    trees: Trees,
    tree: FlatTree,
}

/// What was moved into a tree. On drop it is at home again; what the process itself has moved away stays lost to it.
#[derive(Debug, Default)]
struct Lent(Vec<Moved>);

impl Drop for Lent {
    fn drop(&mut self) {
        for moved in self.0.drain(..).rev() {
            // The empty stand-in of a directory gives way to it; a file's place is free.
            if let Err(error) = moved.give_back() {
                let path = moved.home.display();
                tracing::warn!(%path, %error, "a directory that was lent to a step is lost");
            }
        }
    }
}

impl ProcessTree {
    /// Makes the tree of a process and changes `spec` so that it uses it. Blocks as long as copying takes.
    pub(crate) fn build(trees: &Trees, spec: &mut SandboxSpec) -> Result<Self, TreeError> {
        let RootFs::Overlay(root) = &spec.rootfs else {
            return Err(TreeError::NeedsMount("/".into()));
        };
        let tree = trees.take(&root.lower, root.work.join("tree"))?;
        let (lent, left, upper) = (Lent::default(), Left::default(), root.upper.clone());
        let mut made = Self { lent, written: Vec::new(), left, upper, trees: trees.clone(), tree };
        made.basics()?;
        for mount in std::mem::take(&mut spec.mounts) {
            made.add(&mount)?;
        }
        // What there is of a network is the caller's; only "none" cannot be pretended, and is refused.
        if spec.network != Network::None {
            spec.network = Network::Host;
        }
        spec.rootfs = RootFs::Chroot { path: made.tree.root().to_owned() };
        Ok(made)
    }

    /// Makes what the process changed the layer. Nothing inside runs any more.
    pub(crate) fn finish(self) -> Result<(), StoreError> {
        let Self { lent, written, left, upper, trees, tree } = self;
        drop(lent);
        tree.collect(&upper, &left)?;
        // A tree that waits for the next process holds no secret of this one: if it may, it goes at once.
        let is_clean = |file: &Written| {
            file.remove().unwrap_or_else(|error| {
                tracing::debug!(path = %file.here.display(), %error, "a tree is not kept for the next step");
                false
            })
        };
        let mut all_clean = true;
        for file in &written {
            all_clean &= is_clean(file);
        }
        if all_clean {
            trees.give(tree);
        }
        Ok(())
    }

    /// Pipes that have a name in the tree, so that a process finds its streams where `/proc` would lead it; each with
    /// its reading end first.
    pub(crate) fn named_pipes(&self) -> io::Result<[(OwnedFd, OwnedFd); 2]> {
        let pipe = |name: &str| -> io::Result<(OwnedFd, OwnedFd)> {
            let path = self.tree.root().join("dev").join(name);
            fs::remove_file(&path)?;
            mknodat(CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o622), 0)?;
            fs::set_permissions(&path, Permissions::from_mode(0o622))?;
            // Who opens to write waits for a reader, and who opens to read would wait for a writer.
            let read = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let reader = rustix::fs::open(&path, read, Mode::empty())?;
            let writer = rustix::fs::open(&path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
            Ok((reader, writer))
        };
        Ok([pipe("stdout")?, pipe("stderr")?])
    }

    fn basics(&mut self) -> Result<(), TreeError> {
        let root = self.tree.root().to_owned();
        let failed = |name: &str| {
            let path = Path::new("/").join(name);
            move |source: io::Error| TreeError::Place { path, source }
        };
        let top = RootDir::open(&root).map_err(|error| failed("")(io::Error::other(error)))?;
        for name in PLACES {
            self.left.out.insert(name.into());
            let place = root.join(name);
            remove_all(top.fd(), OsStr::new(name)).map_err(failed(name))?;
            fs::create_dir(&place).map_err(failed(name))?;
            fs::set_permissions(&place, Permissions::from_mode(0o755)).map_err(failed(name))?;
        }
        let dev = root.join("dev");
        for (name, mode) in [("pts", 0o755), ("mqueue", 0o1777), ("shm", 0o1777)] {
            fs::create_dir(dev.join(name)).map_err(failed("dev"))?;
            fs::set_permissions(dev.join(name), Permissions::from_mode(mode)).map_err(failed("dev"))?;
        }
        for (name, target) in LINKS {
            symlink(target, dev.join(name)).map_err(failed("dev"))?;
        }
        for (name, major, minor) in DEVICES {
            let device = |source: io::Error| TreeError::Device { name, source };
            let path = dev.join(name);
            let made = mknodat(
                CWD,
                &path,
                FileType::CharacterDevice,
                Mode::from_raw_mode(0o666),
                makedev(major, minor),
            );
            made.map_err(|error| device(error.into()))?;
            fs::set_permissions(&path, Permissions::from_mode(0o666)).map_err(device)?;
            if name == "null" {
                fs::File::open(&path).map_err(device)?;
            }
        }
        Ok(())
    }

    /// Puts what a mount would show where it would be.
    fn add(&mut self, mount: &MountSpec) -> Result<(), TreeError> {
        let target = mount.target();
        let failed = |source: io::Error| TreeError::Place { path: target.to_owned(), source };
        let path = self.point(target)?;
        let here = self.tree.root().join(&path);
        match mount {
            MountSpec::File { contents, mode, uid, gid, .. } => {
                if mode & 0o004 == 0 && !is_in_memory(self.tree.root()).map_err(failed)? {
                    return Err(TreeError::Secret(target.to_owned()));
                }
                let file = write_new(&here, contents).map_err(failed)?;
                let owned = chown(&here, Some(*uid), Some(*gid));
                owned
                    .and_then(|()| fs::set_permissions(&here, Permissions::from_mode(*mode)))
                    .map_err(failed)?;
                self.written.push(Written { here, file });
            }
            MountSpec::Tmpfs { mode, .. } => {
                fs::create_dir(&here).map_err(failed)?;
                fs::set_permissions(&here, Permissions::from_mode(*mode)).map_err(failed)?;
            }
            MountSpec::Bind { source, readonly: true, .. } => copy_tree(source, &here)?,
            MountSpec::Bind { source, .. } => self.bind(source, target, here)?,
            MountSpec::Device { .. } => return Err(TreeError::NeedsMount(target.to_owned())),
        }
        Ok(())
    }

    /// Moves a directory or file in; a socket gets a second name, and what is in already a link to it.
    fn bind(&mut self, source: &Path, target: &Path, here: PathBuf) -> Result<(), TreeError> {
        let failed = |source: io::Error| TreeError::Place { path: target.to_owned(), source };
        if let Some(earlier) = self.lent.0.iter().find(|moved| moved.home == source) {
            let inside = earlier.here.strip_prefix(self.tree.root()).unwrap_or(&earlier.here);
            return symlink(Path::new("/").join(inside), here).map_err(failed);
        }
        let kind = fs::symlink_metadata(source).map_err(failed)?.file_type();
        if kind.is_socket() {
            return fs::hard_link(source, here).map_err(failed);
        }
        // What is somebody's own may be in use elsewhere, and would be lost with a process that is killed.
        if !source.starts_with(self.trees.store.root()) || !(kind.is_dir() || kind.is_file()) {
            return Err(TreeError::NeedsMount(target.to_owned()));
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let lent = rustix::fs::open(source, flags, Mode::empty()).map_err(|error| failed(error.into()))?;
        match fs::rename(source, &here) {
            Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
                return Err(TreeError::NeedsMount(target.to_owned()));
            }
            moved => moved.map_err(failed)?,
        }
        self.lent.0.push(Moved { home: source.to_owned(), here, lent });
        // Whoever is killed before it is moved back leaves an empty one, and no name that leads nowhere.
        if kind.is_dir() {
            fs::create_dir(source).map_err(failed)?;
        }
        Ok(())
    }

    /// Makes room for a mount at a path as the process sees it; the canonical path, which does not exist then.
    fn point(&mut self, target: &Path) -> Result<PathBuf, TreeError> {
        let failed = |source: io::Error| TreeError::Place { path: target.to_owned(), source };
        let root = RootDir::open(self.tree.root()).map_err(|error| failed(io::Error::other(error)))?;
        let path = root.resolve(target, Last::Follow).map_err(failed)?;
        let here = self.tree.root().join(&path);
        // What is put into a lent directory would go home with it, and what is lent must not be removed for another.
        let is_lent = |moved: &Moved| moved.here.starts_with(&here) || here.starts_with(&moved.here);
        if self.lent.0.iter().any(is_lent) || PLACES.iter().any(|place| path == Path::new(place)) {
            return Err(TreeError::NeedsMount(target.to_owned()));
        }
        self.clear(&root, path).map_err(failed)
    }

    /// Removes what is at a path, and makes the directories on the way to it.
    fn clear(&mut self, root: &RootDir, path: PathBuf) -> io::Result<PathBuf> {
        let Some(parent) = path.parent() else { return Err(io::ErrorKind::InvalidInput.into()) };
        let mut missing = BTreeSet::new();
        for holder in parent.ancestors().take_while(|holder| !holder.as_os_str().is_empty()) {
            if root.stat(holder)?.is_some() {
                break;
            }
            missing.insert(holder.to_owned());
        }
        let topmost = missing.first().and_then(|first| first.parent()).unwrap_or(parent);
        let touched = self.tree.root().join(topmost);
        let before = fs::metadata(&touched)?;
        for holder in &missing {
            fs::create_dir(self.tree.root().join(holder))?;
            fs::set_permissions(self.tree.root().join(holder), Permissions::from_mode(0o755))?;
        }
        self.left.holders.extend(missing);
        let (directory, name) = root.entry(&path)?;
        remove_all(directory.as_fd(), name)?;
        // What the image's directory was is what it shall be: its time tells whether the step changed it.
        fs::File::open(&touched)?.set_modified(before.modified()?)?;
        self.left.out.insert(path.clone());
        Ok(path)
    }
}

fn write_new(path: &Path, contents: &[u8]) -> io::Result<OwnedFd> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut file = fs::File::options().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(contents)?;
    drop(file);
    // Only to know it again: what is open for writing cannot be executed.
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

fn is_in_memory(path: &Path) -> io::Result<bool> {
    Ok(MEMORY.contains(&(rustix::fs::statfs(path)?.f_type as i64)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A secret in a tree, what the process does to it, and whether it is surely gone then.
    #[track_caller]
    fn check(process: impl FnOnce(&Path, &Path), expected: Option<bool>) {
        let directory = tempfile::tempdir().expect("tempdir");
        let tree = fs::canonicalize(directory.path()).expect("is there");
        fs::create_dir(tree.join("secrets")).expect("makes");
        let here = tree.join("secrets/s");
        let file = write_new(&here, b"secret").expect("writes");
        process(&tree, &here);
        let removed = Written { here: here.clone(), file }.remove();
        assert_eq!(removed.ok(), expected);
        if expected == Some(true) {
            assert!(!fs::exists(&here).expect("looks"));
        }
    }

    #[test]
    fn a_tree_that_is_kept_holds_no_secret() {
        check(|_, _| {}, Some(true));
        check(|_, here| fs::write(here, "other").expect("writes"), Some(true));
        check(|_, here| fs::remove_file(here).expect("removes"), Some(true));
        check(|tree, here| fs::rename(here, tree.join("s")).expect("moves"), Some(false));
        check(|tree, here| fs::hard_link(here, tree.join("s")).expect("links"), Some(false));
        check(
            |tree, here| {
                fs::rename(here, tree.join("s")).expect("moves");
                fs::write(here, "other").expect("writes");
            },
            Some(false),
        );
        // A link on the way leads out of the tree for us.
        check(
            |tree, _| {
                fs::rename(tree.join("secrets"), tree.join("moved")).expect("moves");
                symlink("moved", tree.join("secrets")).expect("links");
            },
            None,
        );
    }
}
