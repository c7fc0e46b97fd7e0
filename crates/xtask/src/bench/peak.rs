//! The most that a directory ever held.
//!
//! Owns the watching, which is a walk after the other. Start with [`Peak`].

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use crate::Failure;

/// A directory that is watched.
pub(crate) struct Peak {
    is_over: Arc<AtomicBool>,
    watching: JoinHandle<u64>,
}

impl Peak {
    /// Begins at once.
    pub(crate) fn watch(directory: &Path) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let (over, directory) = (Arc::clone(&is_over), directory.to_owned());
        let watching = std::thread::spawn(move || {
            let mut most = 0;
            // Looked at once after the end, too.
            loop {
                let is_last = over.load(Ordering::Acquire);
                most = most.max(held(&directory));
                if is_last {
                    return most;
                }
            }
        });
        Self { is_over, watching }
    }

    /// The most bytes that were seen.
    pub(crate) fn end(self) -> Result<u64, Failure> {
        self.is_over.store(true, Ordering::Release);
        self.watching.join().map_err(|_| "the watching thread panicked".into())
    }
}

/// Bytes that the files below a directory occupy, each file once. What vanishes meanwhile counts nothing.
fn held(directory: &Path) -> u64 {
    let (mut open, mut seen, mut sum): (Vec<PathBuf>, _, _) = (vec![directory.to_owned()], HashSet::new(), 0);
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.nlink() > 1 && metadata.is_file() && !seen.insert(metadata.ino()) {
                continue;
            }
            sum += metadata.blocks() * 512;
            if metadata.is_dir() {
                open.push(entry.path());
            }
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_is_seen_once() {
        let folder = std::env::temp_dir().join(format!("stave-peak-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("is made");
        fs::write(folder.join("a"), vec![1; 1 << 20]).expect("is written");
        fs::hard_link(folder.join("a"), folder.join("b")).expect("is linked");
        let most = Peak::watch(&folder).end().expect("ends");
        fs::remove_dir_all(&folder).expect("goes");
        assert!((1 << 20..2 << 20).contains(&most), "{most}");
    }
}
