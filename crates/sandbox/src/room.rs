//! Who is asked before a process takes much of a disk at once.
//!
//! Owns what a stopped call would take. Must not know whose disk it is or how much there is: it asks, see [`Room`].
//! The calls are stopped by `seccomp::announced` and answered by `pretend`. Read [`wanted`] first.

use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::fs::{FileType, fstat, fstatfs};

use crate::seccomp::{Announced, LARGE, LARGE_NEAR};

/// `FALLOC_FL_PUNCH_HOLE`, `FALLOC_FL_COLLAPSE_RANGE` and `FALLOC_FL_INSERT_RANGE` take nothing.
const TAKES_NOTHING: u32 = 0x02 | 0x08 | 0x20;
/// `FALLOC_FL_ZERO_RANGE` and `FALLOC_FL_UNSHARE_RANGE` and `FALLOC_FL_WRITE_ZEROES` may take new blocks for old ones.
const TAKES_ANEW: u32 = 0x10 | 0x40 | 0x80;
/// What `statfs` says of a file system in memory: tmpfs, ramfs, hugetlbfs.
const MEMORY: [i64; 3] = [0x0102_1994, 0x8584_58f6, 0x9584_58f6];

/// No call writes more (the kernel's `MAX_RW_COUNT`), whatever length it names.
const MOST: u64 = 0x7fff_f000;
/// What is said of a source that nothing is known of.
pub(crate) const UNKNOWN: u64 = u64::MAX;

/// Asked for so many bytes before a call takes them, says whether it may; the call waits for the answer.
#[derive(Clone)]
pub struct Room {
    ask: Arc<dyn Fn(u64) -> bool + Send + Sync>,
    stands: bool,
}

impl Room {
    /// Asks this.
    pub fn new(ask: impl Fn(u64) -> bool + Send + Sync + 'static) -> Self {
        Self { ask: Arc::new(ask), stands: false }
    }

    /// The same for a sandbox that can be held still, see [`Sandbox::freezer`](crate::Sandbox::freezer).
    #[must_use]
    pub fn held_still(self) -> Self {
        Self { stands: true, ..self }
    }

    pub(crate) fn stands(&self) -> bool {
        self.stands
    }

    /// Calls that take more bytes than these ask.
    pub(crate) fn bound(&self) -> u32 {
        if self.stands { LARGE_NEAR } else { LARGE }
    }

    pub(crate) fn ask(&self, bytes: u64) -> bool {
        (self.ask)(bytes)
    }
}

impl std::fmt::Debug for Room {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Room")
    }
}

/// The most bytes that a call can copy from `source` when it begins at `position`.
pub(crate) fn left(source: impl AsFd, position: u64) -> u64 {
    let Ok(stat) = fstat(source) else { return UNKNOWN };
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => (stat.st_size as u64).saturating_sub(position),
        // What a pipe holds, unless somebody with rights over the machine made it larger.
        FileType::Fifo => u64::from(LARGE),
        _ => UNKNOWN,
    }
}

/// The most bytes of a disk that a call takes, given the file it is for, if that could be seen, and what there is to
/// copy: programs that copy mostly name a length far beyond their source. None when that is not above `bound`.
pub(crate) fn wanted(call: Announced, file: Option<impl AsFd>, source: u64, bound: u32) -> u64 {
    let file = file.as_ref().map(AsFd::as_fd);
    let stat = file.and_then(|file| fstat(file).ok());
    if let Some(stat) = &stat
        && FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile
    {
        return 0;
    }
    if file.and_then(|file| fstatfs(file).ok()).is_some_and(|stat| MEMORY.contains(&stat.f_type)) {
        return 0;
    }
    taken(call, stat.map(|stat| (stat.st_size as u64, stat.st_blocks as u64 * 512)), source, bound)
}

/// The same, given the file's size and what it takes already.
fn taken(call: Announced, file: Option<(u64, u64)>, source: u64, bound: u32) -> u64 {
    match call {
        Announced::Write { length } => {
            let length = length.min(MOST).min(source);
            if length <= u64::from(bound) { 0 } else { length }
        }
        Announced::Allocate { mode, .. } if mode & TAKES_NOTHING != 0 => 0,
        // The kernel refuses what is beyond the end of every file.
        Announced::Allocate { offset, length, .. }
            if i64::try_from(offset.saturating_add(length)).is_err() =>
        {
            0
        }
        Announced::Allocate { mode, offset, length } => {
            let end = offset.saturating_add(length);
            let whole =
                file.is_some_and(|(size, blocks)| mode & TAKES_ANEW == 0 && blocks >= size && end <= size);
            if whole { 0 } else { length }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(call: Announced, file: Option<(u64, u64)>, expected: u64) {
        assert_eq!(taken(call, file, UNKNOWN, LARGE), expected, "{call:?}");
    }

    #[test]
    fn what_takes_blocks_is_asked_for() {
        let allocate = |mode, offset, length| Announced::Allocate { mode, offset, length };
        let whole = Some((8192, 8192));
        check(allocate(0, 0, 1 << 40), whole, 1 << 40);
        check(allocate(0, 0, 1 << 40), None, 1 << 40);
        check(allocate(0, 4096, 4096), whole, 0);
        check(allocate(0, 4096, 4096), Some((8192, 4096)), 4096);
        check(allocate(0, 4096, 4097), whole, 4097);
        check(allocate(0x10, 4096, 4096), whole, 4096);
        check(allocate(0x03, 0, 1 << 40), whole, 0);
        check(Announced::Write { length: 7 << 20 }, whole, 7 << 20);
        check(Announced::Write { length: u64::MAX }, whole, MOST);
        check(allocate(0, 0, u64::MAX), None, 0);
        check(allocate(0, 1 << 62, 1 << 62), None, 0);
        assert_eq!(taken(Announced::Write { length: 65 << 10 }, None, UNKNOWN, LARGE_NEAR), 65 << 10);
        assert_eq!(taken(Announced::Write { length: 64 << 10 }, None, UNKNOWN, LARGE_NEAR), 0);
        check(Announced::Write { length: 65 << 10 }, None, 0);
        check(allocate(0x10, u64::MAX, u64::MAX), whole, 0);
    }

    #[test]
    fn what_copies_takes_what_its_source_has() {
        let copy = Announced::Write { length: i64::MAX as u64 };
        assert_eq!(taken(copy, None, 3, LARGE), 0);
        assert_eq!(taken(copy, None, u64::from(LARGE), LARGE), 0);
        assert_eq!(taken(copy, None, 5 << 20, LARGE), 5 << 20);
        assert_eq!(taken(Announced::Write { length: 2 << 20 }, None, 5 << 20, LARGE), 2 << 20);
        let file = tempfile::tempfile().expect("a file");
        file.set_len(5 << 20).expect("a length");
        assert_eq!(left(&file, 0), 5 << 20);
        assert_eq!((left(&file, 4 << 20), left(&file, 6 << 20)), (1 << 20, 0));
        assert_eq!(left(std::io::pipe().expect("a pipe").0, 0), u64::from(LARGE));
        assert_eq!(left(std::fs::File::open("/dev/zero").expect("a device"), 0), UNKNOWN);
    }

    #[test]
    fn what_is_no_file_of_a_disk_takes_nothing() {
        let null = std::fs::File::open("/dev/null").expect("a device");
        assert_eq!(wanted(Announced::Write { length: 7 << 20 }, Some(&null), UNKNOWN, LARGE), 0);
        let memory = rustix::fs::memfd_create("m", rustix::fs::MemfdFlags::CLOEXEC).expect("memory");
        assert_eq!(wanted(Announced::Write { length: 7 << 20 }, Some(&memory), UNKNOWN, LARGE), 0);
    }
}
