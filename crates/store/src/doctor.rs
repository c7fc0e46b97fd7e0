//! Examining a store, and repairing what can be.
//!
//! Owns the list of what can be wrong on disk. Looks at everything twice as carefully as an opening does: rows
//! against files, files against rows, the content of blobs against their names, what dead processes left.
//! Nothing that a live process uses is touched: rows and files are compared under the database's write lock,
//! and what a repair takes away goes the way a collection does. Start with [`examine`].

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use rusqlite::Transaction;
use stave_oci::{Digest, Hasher};

use crate::database::{Database, Failure, forget_log};
use crate::reconcile::{self, move_aside};
use crate::session::{any_alive, dead_slots, names};
use crate::{Store, StoreConfig, StoreError, journal};

/// Bytes read at a time.
const BUFFER: usize = 1 << 20;

/// Directories only their owner may enter: layers hold setuid files and other images' secrets.
const PRIVATE: [&str; 6] = [".", "l", "blobs", "mutable", "sessions", "tmp"];

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FindingKind {
    /// The database file is gone.
    DatabaseLost,
    /// The database is damaged.
    DatabaseDamaged,
    /// There is no journal to make a lost database from.
    JournalMissing,
    /// A process died; its leases and unfinished files are still there.
    DeadSession,
    /// A layer's row has no directory.
    LayerMissing,
    /// A layer's directory has no row.
    LayerOrphan,
    /// A blob's row has no file.
    BlobMissing,
    /// A blob's file has no row.
    BlobOrphan,
    /// A blob's content is not what its name says.
    BlobDamaged,
    /// Something was marked for removal and is still there.
    Unremoved,
    /// An image misses a layer, or its config is not what its id says.
    ImageDamaged,
    /// Others may enter a directory of the store.
    Permissions,
    /// A mount below the store that no process of ours made.
    Mount,
    /// A record of the build cache whose result is gone.
    CacheRecord,
    /// The build cache's index is damaged.
    CacheDamaged,
    /// A claim, or a build's record, that a dead process left half made.
    Leftover,
}

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FindingState {
    /// It is still so.
    Found,
    /// It was repaired.
    Repaired,
    /// It cannot be.
    Unrepairable,
}

/// One thing that is, or was, wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What.
    pub kind: FindingKind,
    /// With what: a path, number, digest or name.
    pub subject: String,
    /// What became of it.
    pub state: FindingState,
}

impl Finding {
    /// Something that is wrong, and was repaired or not.
    pub fn new(kind: FindingKind, subject: impl Into<String>, repaired: bool) -> Self {
        let state = if repaired { FindingState::Repaired } else { FindingState::Found };
        Self { kind, subject: subject.into(), state }
    }
}

impl FindingKind {
    /// In words.
    pub fn words(self) -> &'static str {
        match self {
            Self::DatabaseLost => "the store's database is gone",
            Self::DatabaseDamaged => "the store's database is damaged",
            Self::JournalMissing => "there is no journal to make a lost database from",
            Self::DeadSession => "a process died and left leases or unfinished files",
            Self::LayerMissing => "a layer has no directory",
            Self::LayerOrphan => "a layer directory belongs to nothing",
            Self::BlobMissing => "a blob has no file",
            Self::BlobOrphan => "a blob file belongs to nothing",
            Self::BlobDamaged => "a blob's content is not what its digest says",
            Self::Unremoved => "a removal was not finished",
            Self::ImageDamaged => "an image is not whole",
            Self::Permissions => "others may enter a directory of the store",
            Self::Mount => "something is mounted below the store",
            Self::CacheRecord => "a cache record leads to a result that is gone",
            Self::CacheDamaged => "the cache index is damaged",
            Self::Leftover => "a dead process left a file",
        }
    }
}

/// Examines the store at `root`, repairing what it finds if told so. Without `repair` nothing is changed.
///
/// # Errors
/// When it cannot even be looked at.
pub fn examine(root: &Path, repair: bool) -> Result<Vec<Finding>, StoreError> {
    let mut findings = Vec::new();
    if !root.join("lock").exists() {
        return Ok(findings);
    }
    permissions(root, repair, &mut findings)?;
    mounts(root, repair, &mut findings);
    if !database(root, repair, &mut findings)? {
        return Ok(findings);
    }
    for slot in dead_slots(root)? {
        findings.push(Finding::new(FindingKind::DeadSession, format!("slot {slot}"), repair));
    }
    if repair {
        // An opening repairs what dead processes left, and makes a lost database again.
        let store = Store::open_with(root, &StoreConfig::for_this_process())?;
        let rubbish = store.inner.database.write(|tx| compare(root, tx, Some(&store), &mut findings))?;
        reconcile::remove_all(&rubbish)?;
        blobs(root, &store.inner.database, Some(&store), &mut findings)?;
        if !journal::exists(root) {
            store.inner.database.write(|tx| journal::append(tx, &[]))?;
        }
        return Ok(findings);
    }
    let lock = root.join("lock");
    let lock = File::open(&lock).map_err(|error| StoreError::io("open", &lock, error))?;
    let database = Database::open(root, &lock)?;
    database.write(|tx| compare(root, tx, None, &mut findings))?;
    blobs(root, &database, None, &mut findings)?;
    Ok(findings)
}

/// Whether the database can be looked at.
fn database(root: &Path, repair: bool, findings: &mut Vec<Finding>) -> Result<bool, StoreError> {
    let path = root.join("store.db");
    let subject = || path.display().to_string();
    let has_layers = !names(&root.join("l"))?.is_empty();
    if !path.exists() {
        if has_layers || journal::exists(root) {
            findings.push(Finding::new(FindingKind::DatabaseLost, subject(), repair));
        }
        return Ok(repair);
    }
    if !journal::exists(root) && has_layers {
        findings.push(Finding::new(
            FindingKind::JournalMissing,
            root.join("journal").display().to_string(),
            repair,
        ));
    }
    let lock = root.join("lock");
    let lock = File::open(&lock).map_err(|error| StoreError::io("open", &lock, error))?;
    let sound = match Database::open(root, &lock) {
        Ok(database) => database.integrity().is_ok_and(|found| found.is_empty()),
        Err(StoreError::Database { .. }) => false,
        Err(error) => return Err(error),
    };
    if sound {
        return Ok(true);
    }
    let mut finding = Finding::new(FindingKind::DatabaseDamaged, subject(), repair);
    if repair && (any_alive(root)? || !journal::exists(root)) {
        finding.state = FindingState::Unrepairable;
        findings.push(finding);
        return Ok(false);
    }
    findings.push(finding);
    if repair {
        let aside = root.join("store.db.damaged");
        fs::rename(&path, &aside).map_err(|error| StoreError::io("rename", &path, error))?;
        forget_log(&path)?;
    }
    Ok(repair)
}

fn permissions(root: &Path, repair: bool, findings: &mut Vec<Finding>) -> Result<(), StoreError> {
    for name in PRIVATE {
        let path = root.join(name);
        let Ok(metadata) = fs::metadata(&path) else { continue };
        // The root itself may be a directory that somebody made for us.
        if metadata.permissions().mode() & 0o077 == 0
            || name == "." && metadata.permissions().mode() & 0o022 == 0
        {
            continue;
        }
        if repair {
            fs::set_permissions(&path, fs::Permissions::from_mode(0o700))
                .map_err(|error| StoreError::io("change the mode of", &path, error))?;
        }
        findings.push(Finding::new(FindingKind::Permissions, path.display().to_string(), repair));
    }
    Ok(())
}

/// Mounts of ours live in a mount namespace that dies with its process; one in this namespace is a leftover.
fn mounts(root: &Path, repair: bool, findings: &mut Vec<Finding>) {
    let Ok(text) = fs::read_to_string("/proc/self/mountinfo") else { return };
    let mut below: Vec<PathBuf> = text
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|path| PathBuf::from(path.replace("\\040", " ")))
        .filter(|path| path.starts_with(root) && path != root)
        .collect();
    // The innermost first.
    below.sort_unstable_by_key(|path| std::cmp::Reverse(path.components().count()));
    for path in below {
        let gone = repair && rustix::mount::unmount(&path, rustix::mount::UnmountFlags::DETACH).is_ok();
        findings.push(Finding::new(FindingKind::Mount, path.display().to_string(), gone));
    }
}

/// Rows against files. With a store, what is wrong is put right; the paths given back are to be removed then.
fn compare(
    root: &Path,
    tx: &Transaction<'_>,
    store: Option<&Store>,
    findings: &mut Vec<Finding>,
) -> Result<Vec<PathBuf>, Failure> {
    let repair = store.is_some();
    let mut rubbish = Vec::new();
    let mut report = |kind, subject: String| findings.push(Finding::new(kind, subject, repair));
    let mut marked = 0;
    for query in ["SELECT count(*) FROM layer WHERE state = 1", "SELECT count(*) FROM blob WHERE state = 1"] {
        marked += tx.query_row(query, [], |row| row.get::<_, i64>(0))?;
    }
    // A collection that is under way in another process is no fault.
    if marked > 0 && !any_alive_but(root, store)? {
        report(FindingKind::Unremoved, format!("{marked} layers or blobs"));
        if repair {
            tx.execute_batch("DELETE FROM layer WHERE state = 1; DELETE FROM blob WHERE state = 1;")?;
        }
    }
    let rows = strings(tx, "SELECT name FROM layer")?;
    let files: BTreeSet<String> = names(&root.join("l"))?.into_iter().collect();
    for name in rows.difference(&files) {
        report(FindingKind::LayerMissing, name.clone());
    }
    for name in files.difference(&rows) {
        report(FindingKind::LayerOrphan, name.clone());
        rubbish.extend(aside(store, &root.join("l").join(name))?);
    }
    let rows = strings(tx, "SELECT digest FROM blob")?;
    let mut files = BTreeSet::new();
    for algorithm in ["sha256", "sha512"] {
        let directory = root.join("blobs").join(algorithm);
        files.extend(names(&directory)?.into_iter().map(|name| format!("{algorithm}:{name}")));
    }
    for digest in rows.difference(&files) {
        report(FindingKind::BlobMissing, digest.clone());
    }
    for digest in files.difference(&rows) {
        report(FindingKind::BlobOrphan, digest.clone());
        rubbish.extend(aside(store, &root.join("blobs").join(digest.replacen(':', "/", 1)))?);
    }
    images(tx, repair, findings)?;
    if repair {
        reconcile::forget_rows_without_files(root, tx)?;
    }
    Ok(rubbish)
}

fn images(tx: &Transaction<'_>, repair: bool, findings: &mut Vec<Finding>) -> Result<(), Failure> {
    let incomplete = strings(
        tx,
        "SELECT DISTINCT image FROM image_layer WHERE layer NOT IN (SELECT id FROM layer WHERE state = 0)",
    )?;
    let mut damaged = incomplete;
    let mut statement = tx.prepare("SELECT id, config FROM image")?;
    let rows = statement.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, Vec<u8>>(1)?)))?;
    for row in rows {
        let (id, config) = row?;
        if Digest::sha256(&config).as_str() != id {
            damaged.insert(id);
        }
    }
    for id in damaged {
        if repair {
            tx.execute("DELETE FROM image WHERE id = ?1", [&id])?;
        }
        findings.push(Finding::new(FindingKind::ImageDamaged, id, repair));
    }
    Ok(())
}

/// The content of every blob against its name.
fn blobs(
    root: &Path,
    database: &Database,
    store: Option<&Store>,
    findings: &mut Vec<Finding>,
) -> Result<(), StoreError> {
    for text in database.read(|tx| strings(tx, "SELECT digest FROM blob WHERE state = 0"))? {
        let Ok(digest) = text.parse::<Digest>() else { continue };
        let path = root.join("blobs").join(text.replacen(':', "/", 1));
        // Collected since by somebody else.
        let Ok(file) = File::open(&path) else { continue };
        if digest_of(file, &digest).map_err(|error| StoreError::io("read", &path, error))? == digest {
            continue;
        }
        if let Some(store) = store {
            let moved = database.write(|tx| {
                tx.execute("DELETE FROM blob WHERE digest = ?1", [&text])?;
                aside(Some(store), &path)
            })?;
            reconcile::remove_all(moved.as_slice())?;
        }
        findings.push(Finding::new(FindingKind::BlobDamaged, text, store.is_some()));
    }
    Ok(())
}

fn digest_of(mut file: File, like: &Digest) -> std::io::Result<Digest> {
    let mut hasher = Hasher::new(like.algorithm());
    let mut buffer = vec![0; BUFFER];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finish()),
            count => hasher.update(&buffer[..count]),
        }
    }
}

/// Moves something into the session's directory, to be removed after the commit.
fn aside(store: Option<&Store>, path: &Path) -> Result<Option<PathBuf>, Failure> {
    let Some(store) = store else { return Ok(None) };
    let aside = store.inner.session.fresh_path("d");
    Ok(move_aside(path, &aside)?.then_some(aside))
}

/// Whether a session other than our own lives.
fn any_alive_but(root: &Path, store: Option<&Store>) -> Result<bool, StoreError> {
    let own = store.map(|store| store.inner.session.slot().to_owned());
    for slot in names(&root.join("sessions"))? {
        if Some(&slot) == own.as_ref() {
            continue;
        }
        let path = root.join("sessions").join(&slot);
        let lock = File::open(&path).map_err(|error| StoreError::io("open", &path, error))?;
        if lock.try_lock_shared().is_err() {
            return Ok(true);
        }
    }
    Ok(false)
}

fn strings(tx: &Transaction<'_>, query: &str) -> Result<BTreeSet<String>, Failure> {
    let mut statement = tx.prepare(query)?;
    let rows = statement.query_map([], |row| row.get(0))?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}
