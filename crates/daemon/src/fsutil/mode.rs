//! Go's `os.FileMode`, which is what `Stat.mode` holds, and the kernel's mode. Read [`FileMode`] first.

use rustix::fs::FileType;

const DIR: u32 = 1 << 31;
const SYMLINK: u32 = 1 << 27;
const DEVICE: u32 = 1 << 26;
const PIPE: u32 = 1 << 25;
const SOCKET: u32 = 1 << 24;
const SETUID: u32 = 1 << 23;
const SETGID: u32 = 1 << 22;
const CHAR_DEVICE: u32 = 1 << 21;
const STICKY: u32 = 1 << 20;
const KINDS: u32 = DIR | SYMLINK | DEVICE | PIPE | SOCKET | CHAR_DEVICE | (1 << 19);

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Directory,
    Symlink,
    Pipe,
    /// A device or socket.
    Special,
}

/// A mode as Go writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileMode(pub(crate) u32);

impl FileMode {
    /// Of the kernel's `st_mode`.
    pub(crate) fn from_raw(mode: u32) -> Self {
        let kind = match FileType::from_raw_mode(mode) {
            FileType::Directory => DIR,
            FileType::Symlink => SYMLINK,
            FileType::Fifo => PIPE,
            FileType::Socket => SOCKET,
            FileType::BlockDevice => DEVICE,
            FileType::CharacterDevice => DEVICE | CHAR_DEVICE,
            _ => 0,
        };
        let special = [(0o4000, SETUID), (0o2000, SETGID), (0o1000, STICKY)];
        let bits = special.iter().filter(|(raw, _)| mode & raw != 0).map(|(_, bit)| bit);
        Self(bits.fold(kind | (mode & 0o777), |mode, bit| mode | bit))
    }

    /// The permissions as the kernel has them: the lowest twelve bits.
    pub(crate) fn permissions(self) -> u32 {
        let special = [(0o4000, SETUID), (0o2000, SETGID), (0o1000, STICKY)];
        let bits = special.iter().filter(|(_, bit)| self.0 & bit != 0).map(|(raw, _)| raw);
        bits.fold(self.0 & 0o777, |mode, bit| mode | bit)
    }

    pub(crate) fn kind(self) -> Kind {
        match self.0 & KINDS {
            0 => Kind::File,
            DIR => Kind::Directory,
            SYMLINK => Kind::Symlink,
            PIPE => Kind::Pipe,
            _ => Kind::Special,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(raw: u32, go: u32, kind: Kind) {
        let mode = FileMode::from_raw(raw);
        assert_eq!((mode.0, mode.kind(), mode.permissions()), (go, kind, raw & 0o7777));
    }

    #[test]
    fn modes_of_go() {
        check(0o100_644, 0o644, Kind::File);
        check(0o104_755, SETUID | 0o755, Kind::File);
        check(0o042_775, DIR | SETGID | 0o775, Kind::Directory);
        check(0o041_777, DIR | STICKY | 0o777, Kind::Directory);
        check(0o120_777, SYMLINK | 0o777, Kind::Symlink);
        check(0o010_600, PIPE | 0o600, Kind::Pipe);
        check(0o020_600, DEVICE | CHAR_DEVICE | 0o600, Kind::Special);
        check(0o140_600, SOCKET | 0o600, Kind::Special);
    }
}
