//! Opening and sharing the state directory. Start with [`Store`].

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Condvar, Mutex, OnceLock};

use crate::database::{Database, checkpoint};
use crate::durability::{self, Flusher};
use crate::fault::refused;
use crate::reaper::Reaper;
use crate::reconcile;
use crate::removal::remove_tree;
use crate::session::Session;
use crate::transplant::disinherit;
use crate::view::top::TopNames;
use crate::{DiskPolicy, LayerTar, StoreError, lease};

/// Which extended attributes mark opaque directories.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OverlayXattrs {
    /// `trusted.overlay.*`: needs CAP_SYS_ADMIN in the initial user namespace.
    Trusted,
    /// `user.overlay.*`: overlay mounts with `userxattr`, for rootless use.
    User,
}

impl OverlayXattrs {
    /// The common start of the names.
    pub fn prefix(self) -> &'static str {
        match self {
            Self::Trusted => "trusted.overlay.",
            Self::User => "user.overlay.",
        }
    }

    /// The mark of an opaque directory (its value is `y`).
    pub(crate) fn opaque(self) -> &'static str {
        match self {
            Self::Trusted => "trusted.overlay.opaque",
            Self::User => "user.overlay.opaque",
        }
    }
}

/// How a store is opened.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// The marks layers carry; all openers of one store must agree.
    pub xattrs: OverlayXattrs,
}

impl StoreConfig {
    /// The configuration this process can use: trusted marks for root of the machine, user marks for others.
    pub fn for_this_process() -> Self {
        let trusted = crate::owner::may_set_trusted();
        Self { xattrs: if trusted { OverlayXattrs::Trusted } else { OverlayXattrs::User } }
    }
}

/// A state directory, open. Cheap to clone; the last clone's drop ends the session.
#[derive(Debug, Clone)]
pub struct Store {
    pub(crate) inner: Arc<Inner>,
}

/// Fields drop in order: the threads are joined before the session gives its slot back.
#[derive(Debug)]
pub(crate) struct Inner {
    _flusher: Option<Flusher>,
    pub(crate) root: PathBuf,
    pub(crate) config: StoreConfig,
    pub(crate) database: Arc<Database>,
    pub(crate) leases: Mutex<BTreeMap<i64, lease::Start>>,
    pub(crate) reaper: Reaper,
    /// Set once, before anything is written.
    pub(crate) policy: OnceLock<DiskPolicy>,
    /// Bytes that are about to be written by this process.
    pub(crate) reserved: AtomicU64,
    /// Held while that changes and others are told.
    pub(crate) reserving: Mutex<()>,
    pub(crate) releases: Mutex<crate::cap::Releases>,
    /// Notified when one is counted.
    pub(crate) released: Condvar,
    /// Whether room is kept back for a full disk.
    pub(crate) keeps_reserve: AtomicBool,
    /// What the store took when that was last reckoned; held while room is made.
    pub(crate) making_room: Mutex<Option<crate::cap::Reckoning>>,
    pub(crate) margin: Mutex<std::sync::Weak<crate::LayerRoom>>,
    /// Tars that are being digested, so that nobody does it twice at once.
    pub(crate) digesting: Mutex<BTreeMap<LayerTar, Arc<Mutex<()>>>>,
    /// What lies at the top of layers that were looked at.
    pub(crate) top_names: TopNames,
    pub(crate) session: Session,
}

/// A private directory under the store, removed on drop.
#[derive(Debug)]
pub struct ScratchDir {
    path: PathBuf,
    _store: Store,
}

impl ScratchDir {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for ScratchDir {
    fn drop(&mut self) {
        if let Err(error) = remove_tree(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "left for the end of the session");
        }
    }
}

impl Store {
    /// Opens (or makes) the store at `root`, removes what dead processes left.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        Self::open_with(root, &StoreConfig::for_this_process())
    }

    /// [`Self::open`] with a configuration.
    pub fn open_with(root: &Path, config: &StoreConfig) -> Result<Self, StoreError> {
        Self::open_in_boot(root, config, &durability::boot_id()?)
    }

    /// [`Self::open_with`], with the kernel's boot id as a parameter for tests.
    pub(crate) fn open_in_boot(root: &Path, config: &StoreConfig, boot: &str) -> Result<Self, StoreError> {
        let (root, lock) = make_layout(root)?;
        let database = Arc::new(Database::open(&root, &lock)?);
        let session = Session::begin(&root)?;
        durability::drop_unsynced_of_other_boots(&root, &database, &session, (boot, config.xattrs))?;
        reconcile::sweep(&root, &database, &session)?;
        let flusher = Flusher::start_if_due(&root, &database)?;
        let inner = Inner {
            _flusher: flusher,
            root,
            config: config.clone(),
            database,
            leases: Mutex::new(BTreeMap::new()),
            reaper: Reaper::default(),
            policy: OnceLock::new(),
            reserved: AtomicU64::new(0),
            reserving: Mutex::default(),
            releases: Mutex::default(),
            released: Condvar::new(),
            keeps_reserve: AtomicBool::new(false),
            making_room: Mutex::new(None),
            margin: Mutex::default(),
            digesting: Mutex::new(BTreeMap::new()),
            top_names: TopNames::default(),
            session,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Holds the store to a policy from now on. The first call counts.
    pub fn hold_to(&self, policy: DiskPolicy) {
        if self.inner.policy.set(policy).is_err() {
            tracing::debug!("the store has a policy already");
        }
    }

    /// Bytes of the file system the store is on: all, and what an ordinary user could still write.
    pub fn file_system_bytes(&self) -> Result<(u64, u64), StoreError> {
        let found = rustix::fs::statvfs(self.root()).map_err(|error| {
            StoreError::io("look at the file system of", self.root(), std::io::Error::from(error))
        })?;
        Ok((found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize))
    }

    /// The state directory, absolute.
    pub fn root(&self) -> &Path {
        &self.inner.root
    }

    /// How the store was opened.
    pub fn config(&self) -> &StoreConfig {
        &self.inner.config
    }

    /// The database file of the build cache's index.
    pub fn cache_index_path(&self) -> PathBuf {
        self.inner.root.join("cache.db")
    }

    /// Where the worker remembers what it knows of files outside the store. Content of no value: it may vanish.
    pub fn fingerprint_directory(&self) -> PathBuf {
        self.root().join("fingerprints")
    }

    /// Random bytes of this store alone, for fingerprints that mean nothing elsewhere. Made at the first call.
    pub fn secret_key(&self) -> Result<[u8; 32], StoreError> {
        use std::io::Write as _;
        use std::os::unix::fs::OpenOptionsExt as _;
        let path = self.root().join("secret.key");
        let failed = |error| StoreError::io("read", &path, error);
        loop {
            match fs::read(&path) {
                Ok(bytes) => {
                    let wrong = || std::io::Error::from(std::io::ErrorKind::InvalidData);
                    return bytes.try_into().map_err(|_| failed(wrong()));
                }
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(failed(error)),
            }
            let mut key = [0; 32];
            rustix::rand::getrandom(&mut key, rustix::rand::GetRandomFlags::empty())
                .map_err(|error| failed(error.into()))?;
            let aside = self.inner.session.fresh_path("k");
            let written = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&aside);
            written
                .and_then(|mut file| refused("key-write").and_then(|()| file.write_all(&key)))
                .map_err(failed)?;
            // The first of two wins: a link does not replace.
            let linked = refused("key-link").and_then(|()| fs::hard_link(&aside, &path));
            fs::remove_file(&aside).map_err(failed)?;
            match linked {
                Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(failed(error)),
                _ => {}
            }
        }
    }

    /// Where the records of builds are.
    pub fn builds_directory(&self) -> PathBuf {
        self.root().join("builds")
    }

    /// Where the worker keeps what content digests were made of. It may vanish; then misses are told with less.
    pub fn manifest_directory(&self) -> PathBuf {
        self.root().join("manifests")
    }

    /// Where the worker remembers which files its copies made. Content of no value: it may vanish.
    pub fn copies_directory(&self) -> PathBuf {
        self.root().join("copies")
    }

    /// Where the worker remembers how much memory steps needed. Content of no value: it may vanish.
    pub fn step_peaks_directory(&self) -> PathBuf {
        self.root().join("step-peaks")
    }

    /// A private directory on the store's file system, removed on drop (or by the sweep).
    pub fn scratch_dir(&self) -> Result<ScratchDir, StoreError> {
        let path = self.inner.session.fresh_path("s");
        make_dir(&path)?;
        Ok(ScratchDir { path, _store: self.clone() })
    }

    /// Makes everything committed so far survive a power cut (`syncfs`, then the mark in the rows).
    /// Costs as long as the file system needs to write its dirty data.
    pub fn sync(&self) -> Result<(), StoreError> {
        durability::sync(&self.inner.root, &self.inner.database)
    }

    /// Brings the logs of the databases in, the cache index's as well: for a moment at which nothing else is to be done,
    /// since that waits for the disk. Else a commit does it once the log is long, and who opens the store first reads
    /// what there is of it.
    pub fn bring_logs_in(&self) -> Result<(), StoreError> {
        [self.root().join("store.db"), self.cache_index_path()].iter().try_for_each(|path| checkpoint(path))
    }

    pub(crate) fn layer_path(&self, name: &str) -> PathBuf {
        self.inner.root.join("l").join(name)
    }
}

/// Makes the fixed directories. Only root (or the one user) may look inside: layers hold setuid
/// files and other images' secrets.
fn make_layout(root: &Path) -> Result<(PathBuf, File), StoreError> {
    let lock_path = root.join("lock");
    let open = || OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&lock_path);
    let lock = match open() {
        Ok(lock) => lock,
        Err(_) => {
            make_dir(root)?;
            open().map_err(|error| StoreError::io("open", &lock_path, error))?
        }
    };
    let root = fs::canonicalize(root).map_err(|error| StoreError::io("open", root, error))?;
    // The last one made tells that all are there.
    if !root.join("tmp").is_dir() {
        let (new, last) = (root.join("tmp.new"), root.join("tmp"));
        for name in ["l", "blobs/sha256", "blobs/sha512", "mutable", "sessions"] {
            let made = root.join(name);
            make_own_dir(&made)?;
        }
        let made = make_own_dir(&new)
            .and_then(|()| fs::rename(&new, &last).map_err(|error| StoreError::io("rename", &new, error)));
        // Somebody else may have been faster.
        made.or_else(|error| if last.is_dir() { Ok(()) } else { Err(error) })?;
    }
    Ok((root, lock))
}

/// Makes a directory of which what is made in it has the rights that are written there, whatever the directories above
/// give to new ones.
fn make_own_dir(path: &Path) -> Result<(), StoreError> {
    make_dir(path)?;
    disinherit(path).map_err(|error| StoreError::io("take inherited rights off", path, error))
}

/// Makes a directory and its missing parents, for the owner only.
pub(crate) fn make_dir(path: &Path) -> Result<(), StoreError> {
    refused("directory")
        .and_then(|()| fs::DirBuilder::new().recursive(true).mode(0o700).create(path))
        .map_err(|error| StoreError::io("create", path, error))
}
