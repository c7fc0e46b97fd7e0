//! The index as one process, several threads and several processes' worth of handles see it.

use std::collections::BTreeSet;
use std::fs;
use std::time::Instant;

use tempfile::TempDir;

use super::*;
use crate::KeyBuilder;
use crate::preimage::KeyKind;

fn entry(name: &str) -> KeyEntry {
    let (key, fields) = KeyBuilder::new("test").text("name", name).finish().into_parts();
    KeyEntry { key, preimage: KeyPreimage { kind: KeyKind::Definition, fields } }
}

fn record(result: &str) -> NewRecord {
    NewRecord {
        result: ResultId::new(result).expect("a short id"),
        vertex: format!("sha256:{result}"),
        vertex_name: format!("RUN {result}"),
        created_at: at(1000),
        duration: Duration::from_millis(250),
    }
}

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

fn scratch() -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("deep/cache.db");
    (directory, path)
}

fn open(path: &Path) -> CacheIndex {
    CacheIndex::open(path).expect("the index opens")
}

#[track_caller]
fn check(index: &CacheIndex, name: &str, expected: Option<&str>) {
    let found = index.lookup(&entry(name).key).expect("look-up works");
    assert_eq!(found.as_ref().map(|record| record.result.as_str()), expected, "{name}");
}

#[test]
fn that_others_hold_the_index_is_told_from_what_is_wrong() {
    let failed = |kind| IndexError { action: "write", path: PathBuf::new(), kind };
    let sqlite = |code| rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(code), None).into();
    assert!(failed(sqlite(rusqlite::ffi::SQLITE_BUSY)).is_busy());
    assert!(failed(sqlite(rusqlite::ffi::SQLITE_LOCKED)).is_busy());
    assert!(!failed(sqlite(rusqlite::ffi::SQLITE_FULL)).is_busy());
    assert!(!failed(std::io::Error::other("no").into()).is_busy());
}

#[test]
fn several_records_are_inserted_at_once() {
    let (_directory, path) = scratch();
    let index = open(&path);
    let all = [([entry("a"), entry("b")], record("1")), ([entry("c"), entry("b")], record("2"))];
    index.insert_all(all.iter().map(|(entries, record)| (entries.as_slice(), record))).expect("inserts");
    check(&index, "a", Some("1"));
    check(&index, "b", Some("2"));
    check(&index, "c", Some("2"));
}

#[test]
fn several_keys_lead_to_one_record() {
    let (_directory, path) = scratch();
    let index = open(&path);
    check(&index, "a", None);
    let id = index.insert(&[entry("a"), entry("b")], &record("1,2")).expect("inserts");
    assert_eq!(index.insert(&[entry("c")], &record("1,2")).expect("inserts"), id);
    for name in ["a", "b", "c"] {
        check(&index, name, Some("1,2"));
    }
    let found = index.lookup(&entry("a").key).expect("works").expect("is there");
    let NewRecord { result, vertex, vertex_name, created_at, duration } = record("1,2");
    let used_at = created_at;
    let key = entry("a").key;
    assert_eq!(found, CacheRecord { id, key, result, vertex, vertex_name, created_at, duration, used_at });
    let keys: BTreeSet<CacheKey> = index.keys_of(id).expect("works").into_iter().collect();
    assert_eq!(keys, ["a", "b", "c"].map(|name| entry(name).key).into());
    assert_eq!(index.list(10).expect("works").len(), 1);
    assert_eq!(index.recreated(), None);
}

#[test]
fn a_key_turns_to_the_newest_record() {
    let (_directory, path) = scratch();
    let index = open(&path);
    index.insert(&[entry("a"), entry("b")], &record("1")).expect("inserts");
    index.insert(&[entry("a")], &record("2")).expect("inserts");
    check(&index, "a", Some("2"));
    check(&index, "b", Some("1"));
}

#[test]
fn preimages_come_back_and_go_with_their_record() {
    let (_directory, path) = scratch();
    let index = open(&path);
    index.insert(&[entry("a")], &record("1")).expect("inserts");
    let key = entry("a").key;
    assert_eq!(index.preimage(&key).expect("works"), Some(entry("a").preimage));
    let gone = ResultId::new("1").expect("short");
    assert_eq!(index.remove(&gone).expect("removes"), 1);
    assert_eq!(index.remove(&gone).expect("removes nothing"), 0);
    check(&index, "a", None);
    assert_eq!(index.preimage(&key).expect("works"), None);
}

#[test]
fn pruning_drops_the_old_the_orphaned_and_the_surplus() {
    let (_directory, path) = scratch();
    let index = open(&path);
    let mut ids = Vec::new();
    for name in ["old", "one", "two", "three"] {
        ids.push(index.insert(&[entry(name)], &record(name)).expect("inserts"));
    }
    index.insert(&[entry("one")], &record("uno")).expect("turns the key away from `one`");
    index.touch(&ids[1..], at(100_000)).expect("touches");
    index.touch(&ids[3..], at(100_001)).expect("too soon to write");
    let three = index.lookup(&entry("three").key).expect("works").expect("is there");
    assert_eq!(three.used_at, at(100_000));
    let policy = PrunePolicy { max_records: 1, unused_since: Some(at(50_000)) };
    // `old` and `uno` are too old, `one` has no key, `two` is one too many.
    assert_eq!(index.prune(&policy).expect("prunes"), 4);
    check(&index, "three", Some("three"));
    for name in ["old", "one", "two"] {
        check(&index, name, None);
    }
    assert_eq!(index.prune(&policy).expect("prunes"), 0);
}

#[test]
fn what_one_handle_writes_another_reads() {
    let (_directory, path) = scratch();
    let (writer, reader) = (open(&path), open(&path));
    writer.insert(&[entry("a")], &record("1")).expect("inserts");
    check(&reader, "a", Some("1"));
    reader.remove(&ResultId::new("1").expect("short")).expect("removes");
    check(&writer, "a", None);
    drop((writer, reader));
    assert_eq!(open(&path).recreated(), None);
}

#[test]
fn writers_of_several_handles_do_not_lose_records() {
    const HANDLES: usize = 4;
    const EACH: usize = 25;
    let (_directory, path) = scratch();
    std::thread::scope(|scope| {
        for handle in 0..HANDLES {
            let path = &path;
            scope.spawn(move || {
                let index = open(path);
                for number in 0..EACH {
                    let name = format!("{handle}-{number}");
                    index.insert(&[entry(&name)], &record(&name)).expect("inserts beside others");
                    check(&index, &name, Some(&name));
                }
            });
        }
    });
    assert_eq!(open(&path).list(1000).expect("lists").len(), HANDLES * EACH);
}

#[track_caller]
fn check_recreated(content: &[u8], expected: impl Fn(&Recreated) -> bool) {
    let (_directory, path) = scratch();
    open(&path).insert(&[entry("a")], &record("1")).expect("inserts");
    fs::write(&path, content).expect("writes over the file");
    for suffix in ["-wal", "-shm"] {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        fs::remove_file(name).ok();
    }
    let index = open(&path);
    assert!(index.recreated().is_some_and(expected), "{:?}", index.recreated());
    check(&index, "a", None);
    index.insert(&[entry("a")], &record("2")).expect("the new file works");
    check(&index, "a", Some("2"));
    assert_eq!(open(&path).recreated(), None);
}

#[test]
fn a_damaged_file_is_replaced() {
    check_recreated(b"not a database, and long enough to be looked at closely", |found| {
        matches!(found, Recreated::Damaged(_))
    });
    let mut torn = b"SQLite format 3\0".to_vec();
    torn.resize(8192, 0xff);
    check_recreated(&torn, |found| matches!(found, Recreated::Damaged(_)));
}

#[test]
fn a_file_of_another_format_is_replaced() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let other = directory.path().join("other.db");
    let connection = Connection::open(&other).expect("opens");
    connection
        .execute_batch("CREATE TABLE keys (a); PRAGMA user_version = 4000;")
        .expect("makes a foreign schema");
    drop(connection);
    let content = fs::read(&other).expect("reads");
    check_recreated(&content, |found| *found == Recreated::Format { found: 4000 });
}

#[test]
fn damage_met_while_reading_is_mended_at_the_next_open() {
    let (_directory, path) = scratch();
    drop(open(&path));
    schema::mark_damaged(&path);
    assert!(matches!(open(&path).recreated(), Some(Recreated::Damaged(_))));
    assert_eq!(open(&path).recreated(), None);
}

#[test]
fn a_directory_that_cannot_be_made_is_an_error() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("file");
    fs::write(&file, "").expect("writes");
    let error = CacheIndex::open(&file.join("cache.db")).expect_err("a file is no directory");
    assert!(matches!(error.kind(), IndexErrorKind::Io(_)), "{error:?}");
    assert!(error.to_string().starts_with("failed to open the cache index `"), "{error}");
}

/// The mean of many look-ups stays far from the figure that a fully cached build rests on (100 µs).
#[test]
fn lookups_are_cheap() {
    const COUNT: usize = 500;
    let (_directory, path) = scratch();
    let index = open(&path);
    let entries: Vec<KeyEntry> = (0..COUNT).map(|number| entry(&number.to_string())).collect();
    index.insert(&entries, &record("1")).expect("inserts");
    let start = Instant::now();
    for entry in &entries {
        assert!(index.lookup(&entry.key).expect("works").is_some());
    }
    let mean = start.elapsed() / u32::try_from(COUNT).expect("small");
    assert!(mean < Duration::from_micros(500), "{mean:?}");
}
