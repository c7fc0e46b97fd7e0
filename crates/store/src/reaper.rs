//! Removes what is of no more use, beside the work. Start with [`Reaper`].

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;

use crate::removal::{remove_overlay_rest, remove_tree};

/// Directories kept for the next who wants one.
const MAX_KEPT: usize = 4;

/// A thread that removes paths in the session's directory; started by the first, joined on drop.
/// The queue is bounded by what the session made.
#[derive(Debug, Default)]
pub(crate) struct Reaper {
    running: Mutex<Option<Running>>,
    /// Directories as they were made: the next takes one instead of making and removing its own.
    kept: Mutex<Vec<PathBuf>>,
}

#[derive(Debug)]
struct Running {
    queue: Sender<PathBuf>,
    thread: JoinHandle<()>,
}

impl Running {
    fn start() -> std::io::Result<Self> {
        let (queue, paths) = channel();
        let run = move || paths.into_iter().for_each(|path: PathBuf| remove(&path));
        let thread = std::thread::Builder::new().name("store-reaper".to_owned()).spawn(run)?;
        Ok(Self { queue, thread })
    }
}

impl Reaper {
    /// Keeps a directory for the next; false if there are enough.
    pub(crate) fn keep(&self, path: &Path) -> bool {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() == MAX_KEPT {
            return false;
        }
        kept.push(path.to_owned());
        true
    }

    /// A directory that was kept.
    pub(crate) fn kept(&self) -> Option<PathBuf> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    /// Removes what was kept.
    pub(crate) fn let_go(&self) {
        let kept = std::mem::take(&mut *self.kept.lock().unwrap_or_else(PoisonError::into_inner));
        kept.iter().for_each(|path| remove(path));
    }

    /// Removes a path soon.
    pub(crate) fn remove(&self, path: &Path) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if running.is_none() {
            *running = Running::start().ok();
        }
        let sent = running.as_ref().is_some_and(|running| running.queue.send(path.to_owned()).is_ok());
        if !sent {
            remove(path);
        }
    }
}

impl Drop for Reaper {
    fn drop(&mut self) {
        self.let_go();
        let running = self.running.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        let Some(Running { queue, thread }) = running else { return };
        drop(queue);
        if thread.join().is_err() {
            tracing::warn!("the thread that removes leftovers panicked");
        }
    }
}

fn remove(path: &Path) {
    if let Err(error) = remove_overlay_rest(path).or_else(|_| remove_tree(path)) {
        tracing::warn!(path = %path.display(), %error, "left for the next sweep");
    }
}
