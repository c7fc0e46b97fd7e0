//! The root file system as one tar.

use std::io::Write;
use std::path::PathBuf;

use crate::error::ExportErrorKind;
use crate::merged::{MAX_DEPTH, Visit, WalkError, walk};
use crate::tar_writer::TarWriter;

/// Writes the merged tree of `layers` (directories, top first).
pub(crate) fn write(layers: &[PathBuf], output: &mut dyn Write) -> Result<(), ExportErrorKind> {
    let mut tar = TarWriter::new(output);
    let written = walk(layers, &mut |visit| match visit {
        Visit::Entry(entry) => tar.entry(entry),
        Visit::Leave(_) => Ok(()),
    });
    match written {
        Ok(()) => tar.finish().map(drop).map_err(ExportErrorKind::Stream),
        Err(WalkError::Io { path, source }) => Err(ExportErrorKind::Io { action: "read", path, source }),
        Err(WalkError::TooDeep { path }) => Err(ExportErrorKind::TooDeep { path, limit: MAX_DEPTH }),
        Err(WalkError::Visitor(error)) => Err(ExportErrorKind::Stream(error)),
    }
}
