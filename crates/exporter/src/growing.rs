//! A blob that is read while it is written: what is being compressed is sent meanwhile.
//!
//! Owns who waits for whom. Must not know what the bytes are or where they go.
//!
//! Start with [`Growing`].

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use stave_registry::BlobSource;
use stave_store::{BlobWriter, StoreError};

/// Bytes that become more until they are whole, or until their writer gives up.
#[derive(Debug)]
pub(crate) struct Growing {
    file: File,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// So many bytes, and more to come.
    Open(u64),
    /// So many bytes.
    Whole(u64),
    /// The rest will not come.
    Broken,
}

impl Growing {
    /// Waits until there are more than `length` bytes, or no more come. Whether there are more.
    pub(crate) fn grows_beyond(&self, length: u64) -> bool {
        match self.wait_beyond(length) {
            State::Open(_) => true,
            State::Whole(written) => written > length,
            State::Broken => false,
        }
    }

    fn wait_beyond(&self, length: u64) -> State {
        let is_short = |state: &mut State| matches!(state, State::Open(written) if *written <= length);
        *self.changed.wait_while(self.lock(), is_short).unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, change: impl FnOnce(State) -> State) {
        let mut state = self.lock();
        *state = change(*state);
        drop(state);
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BlobSource for Growing {
    fn read_at(&self, offset: u64, length: usize) -> io::Result<Bytes> {
        let written = match self.wait_beyond(offset) {
            State::Open(written) | State::Whole(written) => written,
            State::Broken => return Err(io::ErrorKind::BrokenPipe.into()),
        };
        let there = usize::try_from(written.saturating_sub(offset)).unwrap_or(usize::MAX);
        let mut buffer = vec![0; length.min(there)];
        self.file.read_exact_at(&mut buffer, offset)?;
        Ok(buffer.into())
    }
}

/// Writes a blob that others read meanwhile. Dropped before [`Self::finish`], it tells them that the rest will not come.
pub(crate) struct GrowingWriter<'a> {
    blob: &'a mut BlobWriter,
    growing: Arc<Growing>,
}

impl<'a> GrowingWriter<'a> {
    pub(crate) fn new(blob: &'a mut BlobWriter) -> Result<Self, StoreError> {
        let growing =
            Growing { file: blob.reader()?, state: Mutex::new(State::Open(0)), changed: Condvar::new() };
        Ok(Self { blob, growing: Arc::new(growing) })
    }

    /// What is written, for its readers.
    pub(crate) fn growing(&self) -> Arc<Growing> {
        Arc::clone(&self.growing)
    }

    /// Everything is written.
    pub(crate) fn finish(self) {
        self.growing.set(|_| State::Whole(self.blob.written()));
    }
}

impl Write for GrowingWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.blob.write(bytes)?;
        let written = self.blob.written();
        self.growing.set(|_| State::Open(written));
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.blob.flush()
    }
}

impl Drop for GrowingWriter<'_> {
    fn drop(&mut self) {
        self.growing.set(|state| if matches!(state, State::Open(_)) { State::Broken } else { state });
    }
}

#[cfg(test)]
mod tests {
    use stave_store::Store;

    use super::*;

    /// Reads everything in pieces of three bytes.
    fn read(growing: &Growing) -> io::Result<Vec<u8>> {
        let mut found = Vec::new();
        loop {
            let piece = growing.read_at(found.len() as u64, 3)?;
            if piece.is_empty() {
                return Ok(found);
            }
            found.extend_from_slice(&piece);
        }
    }

    #[test]
    fn readers_wait_for_what_is_written() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = Store::open(directory.path()).expect("a store");
        let mut blob = store.blob_writer(None, 100).expect("a writer");
        let mut writer = GrowingWriter::new(&mut blob).expect("its reader");
        let growing = writer.growing();
        let reader = std::thread::spawn({
            let growing = Arc::clone(&growing);
            move || read(&growing)
        });
        for part in ["a", "bcde", "fghi"] {
            writer.write_all(part.as_bytes()).expect("writes");
        }
        assert!(growing.grows_beyond(8));
        writer.finish();
        assert_eq!(reader.join().expect("ends").expect("reads"), b"abcdefghi");
        assert!(!growing.grows_beyond(9));
        blob.commit().expect("commits");
        assert_eq!(read(&growing).expect("reads what was renamed"), b"abcdefghi");
    }

    #[test]
    fn readers_are_told_when_the_rest_will_not_come() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = Store::open(directory.path()).expect("a store");
        let mut blob = store.blob_writer(None, 100).expect("a writer");
        let mut writer = GrowingWriter::new(&mut blob).expect("its reader");
        let growing = writer.growing();
        writer.write_all(b"half").expect("writes");
        drop(writer);
        assert!(!growing.grows_beyond(2));
        assert_eq!(read(&growing).expect_err("broken").kind(), io::ErrorKind::BrokenPipe);
    }
}
