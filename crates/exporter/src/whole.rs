//! A file of results: it appears whole or not at all, unless its name is a device, a pipe or a link, which stays.
//! Must not know what is written. Start with [`WholeFile`].

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use tempfile::NamedTempFile;

/// A file that is being written. A new one that is dropped before [`Self::keep`] never was there; a device, a pipe or
/// what a link leads to has what was written so far. Opening a pipe blocks until somebody reads it.
#[derive(Debug)]
pub struct WholeFile(Place);

#[derive(Debug)]
enum Place {
    /// Beside the path that it will have.
    Aside(NamedTempFile, PathBuf),
    /// A pipe, `/dev/null` or another device, or what a link like `/dev/stdout` leads to: there is nothing to replace.
    There(File),
}

impl WholeFile {
    /// Begins the file of this path; a symlink there stays, and is written through.
    ///
    /// # Errors
    /// The file system's; a directory is none that could be written.
    pub fn create(path: &Path) -> io::Result<Self> {
        let is_there = |there: fs::Metadata| !there.is_file();
        if fs::symlink_metadata(path).is_ok_and(is_there) {
            // As a shell does: what a link leads to is made if it is missing, and no device is shortened.
            let file = File::options().write(true).create(true).truncate(true).open(path)?;
            return Ok(Self(Place::There(file)));
        }
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let aside = tempfile::Builder::new()
            .prefix(".stave-")
            .permissions(fs::Permissions::from_mode(0o666))
            .tempfile_in(parent)
            .map_err(plain)?;
        Ok(Self(Place::Aside(aside, path.to_owned())))
    }

    /// Ends the writing: the file is there.
    ///
    /// # Errors
    /// The file system's; then nothing is there that was not before.
    pub fn keep(self) -> io::Result<()> {
        match self.0 {
            Place::Aside(aside, path) => aside.persist(path).map(drop).map_err(|error| error.error),
            Place::There(_) => Ok(()),
        }
    }
}

impl Write for WholeFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.0 {
            Place::Aside(file, _) => file.as_file_mut().write(bytes),
            Place::There(file) => file.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.0 {
            Place::Aside(file, _) => file.as_file_mut().flush(),
            Place::There(file) => file.flush(),
        }
    }
}

/// The usual errors as the system tells them: without the name of a file that nobody asked for.
fn plain(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::NotFound => Errno::NOENT.into(),
        io::ErrorKind::NotADirectory => Errno::NOTDIR.into(),
        io::ErrorKind::PermissionDenied => Errno::ACCESS.into(),
        io::ErrorKind::ReadOnlyFilesystem => Errno::ROFS.into(),
        io::ErrorKind::StorageFull => Errno::NOSPC.into(),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileTypeExt as _, symlink};

    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;

    #[test]
    fn errors_name_no_file_that_nobody_asked_for() {
        let place = tempfile::tempdir().expect("a directory");
        let error = WholeFile::create(&place.path().join("missing/file")).expect_err("there is no directory");
        assert_eq!((error.kind(), error.to_string().contains(".stave-")), (io::ErrorKind::NotFound, false));
        assert_eq!(error.raw_os_error(), Some(2));
    }

    fn written(path: &Path) -> io::Result<()> {
        let mut file = WholeFile::create(path)?;
        file.write_all(b"content")?;
        file.keep()
    }

    #[test]
    fn files_appear_whole_or_not_at_all() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("x");
        written(&path).expect("writes");
        assert_eq!(fs::read(&path).expect("reads"), b"content");
        let mut half = WholeFile::create(&path).expect("begins");
        half.write_all(b"half").expect("writes");
        drop(half);
        assert_eq!(fs::read(&path).expect("reads"), b"content");
        assert_eq!(fs::read_dir(directory.path()).expect("lists").count(), 1);
    }

    #[test]
    fn only_regular_files_are_replaced() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = |name: &str| directory.path().join(name);
        assert_eq!(written(directory.path()).expect_err("a directory").kind(), io::ErrorKind::IsADirectory);
        fs::write(path("file"), "old").expect("written");
        symlink("file", path("link")).expect("linked");
        written(&path("link")).expect("writes");
        assert_eq!(fs::read(path("file")).expect("reads"), b"content");
        symlink("missing", path("dangling")).expect("linked");
        written(&path("dangling")).expect("writes");
        assert_eq!(fs::read(path("missing")).expect("reads"), b"content");
        assert!(path("link").is_symlink() && path("dangling").is_symlink());
        // Never the machine's own device: a test that fails must not replace it.
        mknodat(CWD, path("pipe"), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("made");
        let pipe = path("pipe");
        let reader = std::thread::spawn(move || fs::read(pipe).expect("reads"));
        written(&path("pipe")).expect("writes");
        assert_eq!(reader.join().expect("ends"), b"content");
        assert!(fs::symlink_metadata(path("pipe")).expect("there").file_type().is_fifo());
    }
}
