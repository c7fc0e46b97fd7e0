//! Where a stream of result bytes ends: a file that appears whole or not at all, or standard output.

use std::io::{self, BufWriter, Write};
use std::path::Path;

use tokio_util::sync::CancellationToken;

use crate::error::ExportErrorKind;
use crate::exporter::Context;
use crate::spec::Destination;
use crate::whole::WholeFile;

/// Bytes gathered before a write to the system.
const BUFFER: usize = 256 << 10;

/// Counts bytes, and fails once nobody wants them.
pub(crate) struct Counted<'a, W: Write + ?Sized> {
    output: &'a mut W,
    cancel: &'a CancellationToken,
    pub(crate) written: u64,
}

impl<'a, W: Write + ?Sized> Counted<'a, W> {
    pub(crate) fn new(output: &'a mut W, cancel: &'a CancellationToken) -> Self {
        Self { output, cancel, written: 0 }
    }
}

impl<W: Write + ?Sized> Write for Counted<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Not `Interrupted`: that kind means "try again".
        if self.cancel.is_cancelled() {
            return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "cancelled"));
        }
        let count = self.output.write(bytes)?;
        self.written += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}

/// Lets `produce` write to `dest`. Returns the number of bytes.
pub(crate) fn write(
    context: &Context,
    dest: &Destination,
    produce: impl FnOnce(&mut dyn Write) -> Result<(), ExportErrorKind>,
) -> Result<u64, ExportErrorKind> {
    match dest {
        Destination::Stdout => {
            let no_stream =
                || io::Error::new(io::ErrorKind::Unsupported, "standard output is not available here");
            let stream = context.stdout.as_ref().ok_or_else(no_stream)?;
            let mut stream = stream.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            fill(&mut *stream, &context.cancel, produce)
        }
        Destination::File(path) => file(path, &context.cancel, produce),
    }
}

fn fill(
    output: &mut (dyn Write + Send),
    cancel: &CancellationToken,
    produce: impl FnOnce(&mut dyn Write) -> Result<(), ExportErrorKind>,
) -> Result<u64, ExportErrorKind> {
    let mut buffered = BufWriter::with_capacity(BUFFER, output);
    let mut counted = Counted::new(&mut buffered, cancel);
    produce(&mut counted)?;
    let written = counted.written;
    buffered.flush()?;
    Ok(written)
}

fn file(
    path: &Path,
    cancel: &CancellationToken,
    produce: impl FnOnce(&mut dyn Write) -> Result<(), ExportErrorKind>,
) -> Result<u64, ExportErrorKind> {
    let io_at = |action| move |source| ExportErrorKind::Io { action, path: path.to_owned(), source };
    if path.is_dir() {
        return Err(ExportErrorKind::IsDirectory(path.to_owned()));
    }
    let mut file = WholeFile::create(path).map_err(io_at("create"))?;
    let written = fill(&mut file, cancel, produce)?;
    file.keep().map_err(io_at("write"))?;
    Ok(written)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn produce(out: &mut dyn Write) -> Result<(), ExportErrorKind> {
        Ok(out.write_all(b"content")?)
    }

    #[test]
    fn files_appear_whole_or_not_at_all() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let (path, cancel) = (directory.path().join("x"), CancellationToken::new());
        assert_eq!(file(&path, &cancel, produce).expect("writes"), 7);
        assert_eq!(std::fs::read(&path).expect("reads"), b"content");
        let failing = |out: &mut dyn Write| {
            out.write_all(b"half")?;
            Err(ExportErrorKind::ThreadDied)
        };
        assert!(file(&path, &cancel, failing).is_err());
        cancel.cancel();
        assert!(matches!(file(&path, &cancel, produce), Err(ExportErrorKind::Stream(_))));
        assert_eq!(std::fs::read(&path).expect("reads"), b"content");
        assert_eq!(std::fs::read_dir(directory.path()).expect("lists").count(), 1);
    }

    #[test]
    fn a_directory_is_not_replaced() {
        let cancel = CancellationToken::new();
        let directory = tempfile::tempdir().expect("a temporary directory");
        assert!(matches!(file(directory.path(), &cancel, produce), Err(ExportErrorKind::IsDirectory(_))));
    }
}
