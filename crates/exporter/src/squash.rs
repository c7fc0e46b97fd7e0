//! Layers made one: what lies above a base, as a single difference from it.
//!
//! Owns finding that difference. Two snapshots that share layers show the same file under the same
//! inode, so that what is the same need not be read. Must not know images. Start with [`Exporter::squash`].

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use rustix::fs::{FileType, Stat};
use stave_store::{ApplyOptions, LayerId, MergedView, Snapshot};

use crate::error::{ExportError, ExportErrorKind};
use crate::event::ExportStep;
use crate::exporter::{Context, Exporter};
use crate::merged::{Kind, Visit, walk};
use crate::output::Counted;
use crate::tar_writer::TarWriter;

/// Bytes handed from the writer of the difference to its reader at once, and how many of them wait.
const PIECE: usize = 256 << 10;
const PIECES: usize = 8;

impl Exporter {
    /// One layer that makes the file system of `top` of that of `base`, which is below it.
    ///
    /// # Errors
    /// [`ExportError`].
    pub async fn squash(&self, base: &Snapshot, top: &Snapshot) -> Result<LayerId, ExportError> {
        let (base, top) = (base.clone(), top.clone());
        let squashed = self.blocking(move |context| {
            context.events.step(ExportStep::Squashing, || squash(context, &base, &top))
        });
        let failed = |kind| ExportError { target: "one layer".to_owned(), kind: Box::new(kind) };
        squashed.await.map_err(failed)
    }
}

fn squash(context: &Context, base: &Snapshot, top: &Snapshot) -> Result<LayerId, ExportErrorKind> {
    let (below, above) = (context.store.view(base)?, context.store.view(top)?);
    let (sender, receiver) = sync_channel(PIECES);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut pieces = Pieces { sender, piece: Vec::with_capacity(PIECE) };
            difference(&below, &above, &mut Counted::new(&mut pieces, &context.cancel))?;
            pieces.hand_over()?;
            Ok::<(), ExportErrorKind>(())
        });
        let reader = Arriving { receiver, piece: Vec::new(), at: 0 };
        let options = ApplyOptions { description: "squashed".to_owned(), ..ApplyOptions::default() };
        let applied = context.store.apply_layer(reader, &options);
        // What went wrong in writing is the cause of what reading says.
        writer.join().unwrap_or(Err(ExportErrorKind::ThreadDied))?;
        Ok(applied?.layer)
    })
}

/// What decides whether an entry of a directory tree is another one.
#[derive(Debug, PartialEq, Eq)]
struct Identity {
    file: (u64, u64),
    is_directory: bool,
}

impl Identity {
    fn of(stat: &Stat) -> Self {
        let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        Self { file: (stat.st_dev, stat.st_ino), is_directory }
    }
}

/// Writes the layer tar that makes `above` of `below`.
fn difference(
    below: &MergedView,
    above: &MergedView,
    output: &mut dyn std::io::Write,
) -> Result<(), ExportErrorKind> {
    let mut old: BTreeMap<PathBuf, Identity> = BTreeMap::new();
    walk(below, &mut |visit| {
        if let Visit::Entry(entry) = visit {
            old.insert(entry.path().to_owned(), Identity::of(entry.stat()));
        }
        Ok(())
    })?;
    let mut kept = BTreeMap::new();
    // The layer keeps the times as they are, with what marks those of a build context.
    let mut tar = TarWriter::new(output).exact();
    walk(above, &mut |visit| {
        let Visit::Entry(entry) = visit else { return Ok(()) };
        let identity = Identity::of(entry.stat());
        let is_same = old.get(entry.path()) == Some(&identity);
        // A second name of a file that is the same lies where it lay, too.
        if !is_same || matches!(&entry.kind, Kind::HardLink(first) if old.get(first) != Some(&identity)) {
            tar.entry_below(Path::new(""), entry)?;
        }
        kept.insert(entry.path().to_owned(), identity.is_directory);
        Ok(())
    })?;
    let mut gone: Option<&PathBuf> = None;
    for path in old.keys() {
        let is_below = |directory: &&PathBuf| path.starts_with(directory);
        if kept.contains_key(path) || gone.as_ref().is_some_and(is_below) {
            continue;
        }
        let parent = path.parent().unwrap_or(Path::new(""));
        // Below something that is no directory any more nothing is left to hide.
        if parent.as_os_str().is_empty() || kept.get(parent) == Some(&true) {
            let mut hidden = OsString::from(".wh.");
            hidden.push(path.file_name().unwrap_or_default());
            tar.whiteout(&parent.join(hidden))?;
        }
        gone = Some(path);
    }
    tar.finish()?;
    Ok(())
}

/// The writing end of a stream between two threads.
struct Pieces {
    sender: SyncSender<Vec<u8>>,
    piece: Vec<u8>,
}

impl Pieces {
    fn hand_over(&mut self) -> std::io::Result<()> {
        let piece = std::mem::replace(&mut self.piece, Vec::with_capacity(PIECE));
        self.sender.send(piece).map_err(|_| std::io::ErrorKind::BrokenPipe.into())
    }
}

impl std::io::Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.piece.extend_from_slice(bytes);
        if self.piece.len() >= PIECE {
            self.hand_over()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The reading end. A writer that fails ends the stream early, which the reader sees as a cut archive.
struct Arriving {
    receiver: Receiver<Vec<u8>>,
    piece: Vec<u8>,
    at: usize,
}

impl Read for Arriving {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        while self.at == self.piece.len() {
            match self.receiver.recv() {
                Ok(piece) => (self.piece, self.at) = (piece, 0),
                Err(_) => return Ok(0),
            }
        }
        let count = buffer.len().min(self.piece.len() - self.at);
        buffer[..count].copy_from_slice(&self.piece[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rustix::fs::{CWD, Mode};

    use super::*;
    use crate::merged::tests::Fixture;

    fn whiteout(path: &Path) {
        rustix::fs::mknodat(CWD, path, FileType::CharacterDevice, Mode::empty(), 0)
            .expect("whiteouts need no privilege");
    }

    fn names(bytes: &[u8]) -> Vec<String> {
        let mut archive = tar::Archive::new(bytes);
        let entries = archive.entries().expect("a tar");
        entries.map(|e| e.expect("an entry").path().expect("a path").display().to_string()).collect()
    }

    #[track_caller]
    fn check(fixture: &Fixture, base: &Snapshot, top: &Snapshot, expected: &[&str]) {
        let mut bytes = Vec::new();
        difference(&fixture.view(base), &fixture.view(top), &mut bytes).expect("writes");
        assert_eq!(names(&bytes), expected);
        // Laid over the base it gives the same tree.
        let applied = fixture.store.apply_layer(&bytes[..], &ApplyOptions::default()).expect("applies");
        let tree = |snapshot: &Snapshot| {
            let mut found = Vec::new();
            walk(&fixture.view(snapshot), &mut |visit| {
                if let Visit::Entry(entry) = visit {
                    found.push((entry.path().to_owned(), entry.kind.clone(), entry.stat().st_mode));
                }
                Ok(())
            })
            .expect("walks");
            found
        };
        assert_eq!(tree(&base.push(applied.layer)), tree(top));
    }

    #[test]
    fn times_stay_what_they_are() {
        use std::os::unix::fs::MetadataExt as _;
        let fixture = Fixture::new();
        let times = [stave_store::context_time((1000, 5)), (2000, 7), (3000, 0)];
        let names = ["a", "b", "c"];
        let top = fixture.layer(&Snapshot::scratch(), |root| {
            for (name, (seconds, nanoseconds)) in names.iter().zip(times) {
                let file = fs::File::create(root.join(name)).expect("creates");
                let time = std::time::Duration::new(seconds.unsigned_abs(), nanoseconds);
                file.set_modified(std::time::UNIX_EPOCH + time).expect("sets");
            }
        });
        let mut bytes = Vec::new();
        difference(&fixture.view(&Snapshot::scratch()), &fixture.view(&top), &mut bytes).expect("writes");
        let applied = fixture.store.apply_layer(&bytes[..], &ApplyOptions::default()).expect("applies");
        let view = fixture.view(&Snapshot::scratch().push(applied.layer));
        let found = names.map(|name| {
            let file = view.open(Path::new(name)).expect("looks").expect("is there");
            let status = file.metadata().expect("is there");
            (status.mtime(), u32::try_from(status.mtime_nsec()).expect("less than a second"))
        });
        assert_eq!(found, times);
    }

    #[test]
    fn layers_become_one_difference() {
        let fixture = Fixture::new();
        let base = fixture.layer(&Snapshot::scratch(), |root| {
            for directory in ["gone/deep", "kept", "was-directory/x"] {
                fs::create_dir_all(root.join(directory)).expect("creates");
            }
            for file in ["gone/deep/f", "kept/same", "kept/changed", "kept/removed", "was-file"] {
                fs::write(root.join(file), file).expect("writes");
            }
        });
        let first = fixture.layer(&base, |root| {
            fs::create_dir(root.join("kept")).expect("creates");
            fs::write(root.join("kept/changed"), "new").expect("writes");
            fs::write(root.join("kept/intermediate"), "x").expect("writes");
            whiteout(&root.join("kept/removed"));
            whiteout(&root.join("gone"));
        });
        let top = fixture.layer(&first, |root| {
            fs::create_dir(root.join("kept")).expect("creates");
            whiteout(&root.join("kept/intermediate"));
            fs::write(root.join("was-directory"), "a file").expect("writes");
            fs::create_dir(root.join("was-file")).expect("creates");
            fs::write(root.join("a"), "1").expect("writes");
            fs::hard_link(root.join("a"), root.join("b")).expect("links");
        });
        let expected =
            ["a", "b", "kept/", "kept/changed", "was-directory", "was-file/", ".wh.gone", "kept/.wh.removed"];
        check(&fixture, &base, &top, &expected);
        let whole = ["a", "b", "kept/", "kept/changed", "kept/same", "was-directory", "was-file/"];
        check(&fixture, &Snapshot::scratch(), &top, &whole);
        check(&fixture, &top, &top, &[]);
    }
}
