//! What is in an image's layers, and what two of them differ in.
//!
//! Owns the lists that `stave image` shows and that a verification compares: which layer has which
//! file, which bytes are hidden by a layer above, how two files differ. Must not print.
//!
//! Start with [`LayerContents`]; [`waste`], [`merged`] and [`FileFacts::differs`] work on them.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use rustix::fs::FileType;
use stave_oci::{Digest, Sha256Writer};
use stave_store::{LayerId, LayerItem, MergedEntry, MergedView, Store, StoreError};

/// Bytes compared at once.
const BUFFER: usize = 64 << 10;

/// What a layer has and hides.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LayerContents {
    /// Its entries, by path.
    pub entries: BTreeMap<PathBuf, FileFacts>,
    /// Paths that are gone from here on.
    pub whiteouts: Vec<PathBuf>,
    /// Directories whose content below is gone.
    pub opaque: Vec<PathBuf>,
}

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileFacts {
    /// What it is.
    pub kind: FileKind,
    /// Bytes of content; 0 for anything but files, and for further names of one.
    pub size: u64,
    /// Permission bits.
    pub mode: u32,
    /// User and group.
    pub owner: (u32, u32),
    /// Modification time, in seconds since the epoch.
    pub mtime: i64,
    /// Whether that time came from a build context.
    pub of_context: bool,
    /// Where a symbolic link leads.
    pub target: Option<PathBuf>,
    /// The content's digest, where it was asked for.
    pub digest: Option<Digest>,
}

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A device, pipe or socket.
    Special,
}

/// One way in which two entries differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Difference {
    /// They are different things.
    Kind,
    /// Their content, or where they lead.
    Content,
    /// Their permission bits.
    Mode,
    /// Their owners.
    Owner,
    /// Their modification times.
    Mtime,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kind => "type",
            Self::Content => "content",
            Self::Mode => "mode",
            Self::Owner => "owner",
            Self::Mtime => "mtime",
        })
    }
}

impl LayerContents {
    /// Lists a layer; the content of files is read only for digests.
    ///
    /// # Errors
    /// The store's.
    pub fn of(store: &Store, layer: LayerId, with_digests: bool) -> Result<Self, StoreError> {
        let mut found = Self::default();
        let mut links = std::collections::HashSet::new();
        store.list_layer(layer, &mut |item| {
            match item {
                LayerItem::Whiteout(path) => found.whiteouts.push(path.to_owned()),
                LayerItem::Opaque(path) => found.opaque.push(path.to_owned()),
                LayerItem::Entry(entry) => {
                    let mut facts = FileFacts::of(entry, with_digests)?;
                    // Further names of a file take no room.
                    let stat = entry.stat();
                    if stat.st_nlink > 1 && facts.kind == FileKind::File && !links.insert(stat.st_ino) {
                        facts.size = 0;
                    }
                    found.entries.insert(entry.path().to_owned(), facts);
                }
            }
            Ok::<(), StoreError>(())
        })?;
        Ok(found)
    }

    /// Bytes of all files.
    pub fn size(&self) -> u64 {
        self.entries.values().map(|facts| facts.size).sum()
    }
}

impl FileFacts {
    fn of(entry: &MergedEntry, with_digest: bool) -> Result<Self, StoreError> {
        let stat = entry.stat();
        let kind = match entry.file_type() {
            FileType::RegularFile => FileKind::File,
            FileType::Directory => FileKind::Directory,
            FileType::Symlink => FileKind::Symlink,
            _ => FileKind::Special,
        };
        let digest = if kind == FileKind::File && with_digest {
            let mut hash = Sha256Writer::new(io::sink());
            let failed =
                |error| StoreError::Io { action: "read", path: entry.path().to_owned(), source: error };
            io::copy(&mut entry.open()?, &mut hash).map_err(failed)?;
            Some(hash.finish().1)
        } else {
            None
        };
        Ok(Self {
            kind,
            size: if kind == FileKind::File { u64::try_from(stat.st_size).unwrap_or(0) } else { 0 },
            mode: stat.st_mode & 0o7777,
            owner: (stat.st_uid, stat.st_gid),
            mtime: stat.st_mtime,
            of_context: stave_store::is_context_time(entry.mtime()),
            target: if kind == FileKind::Symlink { Some(entry.read_link()?) } else { None },
            digest,
        })
    }

    /// How two entries differ, as far as their facts tell: contents without digests are not compared
    /// unless their lengths differ. Times later than `clamp`, and those of a build context, count as `clamp`.
    pub fn differs(&self, other: &Self, clamp: Option<i64>) -> Vec<Difference> {
        if self.kind != other.kind {
            return vec![Difference::Kind];
        }
        let time = |facts: &Self| match clamp {
            Some(clamp) if facts.of_context => clamp,
            Some(clamp) => facts.mtime.min(clamp),
            None => facts.mtime,
        };
        let has_digests = self.digest.is_some() && other.digest.is_some();
        let content = self.target != other.target
            || if has_digests { self.digest != other.digest } else { self.size != other.size };
        let ways = [
            (content, Difference::Content),
            (self.mode != other.mode, Difference::Mode),
            (self.owner != other.owner, Difference::Owner),
            (time(self) != time(other), Difference::Mtime),
        ];
        ways.into_iter().filter(|(differs, _)| *differs).map(|(_, difference)| difference).collect()
    }
}

/// An entry of an image's file system, with the layer it is from (counted from 0, the lowest).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    /// Which layer.
    pub layer: usize,
    /// The entry.
    pub facts: FileFacts,
}

/// Bytes that an image carries and nobody sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wasted {
    /// The file.
    pub path: PathBuf,
    /// Its bytes.
    pub size: u64,
    /// The layer that brought it, counted from 0.
    pub layer: usize,
    /// The layer that hides it.
    pub hidden_by: usize,
    /// Whether that layer has another file there; otherwise the file is gone.
    pub is_replaced: bool,
}

/// The file system that the layers make together.
pub fn merged(layers: &[LayerContents]) -> BTreeMap<PathBuf, Placed> {
    fold(layers, &mut |_| {})
}

/// What lower layers carry for nothing, the largest first.
pub fn waste(layers: &[LayerContents]) -> Vec<Wasted> {
    let mut found = Vec::new();
    fold(layers, &mut |wasted| found.push(wasted));
    found.sort_by(|a: &Wasted, b| (b.size, &a.path).cmp(&(a.size, &b.path)));
    found
}

fn fold(layers: &[LayerContents], hidden: &mut dyn FnMut(Wasted)) -> BTreeMap<PathBuf, Placed> {
    let mut tree: BTreeMap<PathBuf, Placed> = BTreeMap::new();
    for (index, layer) in layers.iter().enumerate() {
        let mut hide = |path: &Path, placed: Placed, is_replaced| {
            if placed.facts.kind == FileKind::File && placed.facts.size > 0 {
                let (size, layer) = (placed.facts.size, placed.layer);
                hidden(Wasted { path: path.to_owned(), size, layer, hidden_by: index, is_replaced });
            }
        };
        let mut gone: Vec<PathBuf> = Vec::new();
        for path in &layer.whiteouts {
            gone.extend(below(&tree, path).map(|(path, _)| path.clone()));
        }
        for path in &layer.opaque {
            gone.extend(below(&tree, path).map(|(path, _)| path.clone()).filter(|inner| inner != path));
        }
        for (path, facts) in &layer.entries {
            // Something else in a directory's place hides what was in it.
            if facts.kind != FileKind::Directory {
                gone.extend(below(&tree, path).map(|(path, _)| path.clone()).filter(|inner| inner != path));
            }
        }
        for path in gone {
            if let Some(placed) = tree.remove(&path) {
                let is_replaced = layer.entries.contains_key(&path);
                hide(&path, placed, is_replaced);
            }
        }
        for (path, facts) in &layer.entries {
            let placed = Placed { layer: index, facts: facts.clone() };
            if let Some(old) = tree.insert(path.clone(), placed) {
                hide(path, old, true);
            }
        }
    }
    tree
}

/// `path` and everything below it.
fn below<'a>(
    tree: &'a BTreeMap<PathBuf, Placed>,
    path: &'a Path,
) -> impl Iterator<Item = (&'a PathBuf, &'a Placed)> {
    tree.range(path.to_owned()..).take_while(move |(found, _)| found.starts_with(path))
}

/// Whether a file has the same content in both views.
///
/// # Errors
/// When one of them cannot be read.
pub fn same_content(one: &MergedView, other: &MergedView, path: &Path) -> Result<bool, StoreError> {
    let (Some(mut one), Some(mut other)) = (one.open(path)?, other.open(path)?) else { return Ok(false) };
    let failed = |source| StoreError::Io { action: "read", path: path.to_owned(), source };
    let (mut left, mut right) = (vec![0; BUFFER], vec![0; BUFFER]);
    loop {
        let count = one.read(&mut left).map_err(failed)?;
        if count == 0 {
            return Ok(other.read(&mut right[..1]).map_err(failed)? == 0);
        }
        match other.read_exact(&mut right[..count]) {
            Ok(()) if left[..count] == right[..count] => {}
            Ok(()) => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
            Err(error) => return Err(failed(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(size: u64) -> FileFacts {
        let kind = FileKind::File;
        FileFacts {
            kind,
            size,
            mode: 0o644,
            owner: (0, 0),
            mtime: 0,
            of_context: false,
            target: None,
            digest: None,
        }
    }

    fn layer(entries: &[(&str, u64)], whiteouts: &[&str], opaque: &[&str]) -> LayerContents {
        let entry = |(path, size): &(&str, u64)| match path.strip_suffix('/') {
            Some(directory) => (PathBuf::from(directory), FileFacts { kind: FileKind::Directory, ..file(0) }),
            None => (PathBuf::from(path), file(*size)),
        };
        let paths = |list: &[&str]| list.iter().map(PathBuf::from).collect();
        LayerContents {
            entries: entries.iter().map(entry).collect(),
            whiteouts: paths(whiteouts),
            opaque: paths(opaque),
        }
    }

    #[test]
    fn what_upper_layers_hide_is_waste() {
        let layers = [
            layer(
                &[("d/", 0), ("d/a", 5), ("d/b", 7), ("d-x", 1), ("e/", 0), ("e/f", 3), ("kept", 9)],
                &[],
                &[],
            ),
            layer(&[("d/", 0), ("d/b", 8)], &["d/a"], &[]),
            layer(&[("e/", 0), ("e/g", 1)], &[], &["e"]),
            layer(&[], &["d"], &[]),
        ];
        let shown = |wasted: &Wasted| {
            let Wasted { path, size, layer, hidden_by, is_replaced } = wasted;
            format!("{} {size} {layer}>{hidden_by} {is_replaced}", path.display())
        };
        let found: Vec<String> = waste(&layers).iter().map(shown).collect();
        assert_eq!(found, ["d/b 8 1>3 false", "d/b 7 0>1 true", "d/a 5 0>1 false", "e/f 3 0>2 false"]);
        let left: Vec<String> = merged(&layers)
            .iter()
            .map(|(path, placed)| format!("{}@{}", path.display(), placed.layer))
            .collect();
        assert_eq!(left, ["d-x@0", "e@2", "e/g@2", "kept@0"]);
    }

    #[test]
    fn a_file_in_a_directorys_place_hides_what_was_in_it() {
        let layers = [layer(&[("d/", 0), ("d/a", 5)], &[], &[]), layer(&[("d", 1)], &[], &[])];
        assert_eq!(merged(&layers).len(), 1);
        assert_eq!(waste(&layers)[0].path, Path::new("d/a"));
    }

    #[track_caller]
    fn check(change: impl FnOnce(&mut FileFacts), clamp: Option<i64>, expected: &[Difference]) {
        let mut other = file(1);
        change(&mut other);
        assert_eq!(file(1).differs(&other, clamp), expected);
    }

    #[test]
    fn entries_differ_in_named_ways() {
        check(|_| {}, None, &[]);
        check(|facts| facts.size = 2, None, &[Difference::Content]);
        check(|facts| facts.mtime = 9, None, &[Difference::Mtime]);
        check(|facts| facts.mtime = 9, Some(0), &[]);
        check(|facts| facts.kind = FileKind::Special, None, &[Difference::Kind]);
        check(
            |facts| (facts.mode, facts.owner) = (0o600, (1, 1)),
            None,
            &[Difference::Mode, Difference::Owner],
        );
    }
}
