//! What a build reads: the context, the Dockerfile, the ignore file, from wherever the flags say.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use stave_engine::{ARCHIVE_HEAD, ContextArchive, RemoteInput};
use stave_frontend_dockerfile::{ContextSource, Source, dockerignore};
use stave_store::Store;
use stave_worker::Pins;

use super::includes;

/// Bytes of the largest Dockerfile or ignore file that is read: a binary named by mistake is caught early.
const MAX_DOCKERFILE: u64 = 16 << 20;

/// A build's inputs.
pub(super) struct Input {
    /// Where files are copied from; an empty folder if the context is not on this machine.
    pub(super) context: PathBuf,
    /// What COPY and ADD read.
    pub(super) source: ContextSource,
    /// What a context that is not on this machine turned out to be.
    pub(super) pins: Pins,
    /// The Dockerfile with the name that messages show.
    pub(super) dockerfile: Source,
    /// The ignore file's patterns.
    pub(super) ignored: Vec<String>,
    /// The ignore file as messages show it, if there is one.
    pub(super) ignore_file: Option<String>,
    /// An unpacked or empty context; it lives as long as the build.
    _unpacked: Option<ContextArchive>,
}

impl Input {
    fn plain(context: PathBuf, dockerfile: Source, unpacked: Option<ContextArchive>) -> Self {
        Self {
            context,
            source: ContextSource::Local,
            pins: Pins::default(),
            dockerfile,
            ignored: Vec::new(),
            ignore_file: None,
            _unpacked: unpacked,
        }
    }
}

/// An input that cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InputError {
    /// The context is not there.
    #[error("unable to prepare context: path \"{}\" not found", .0.display())]
    NoContext(PathBuf),
    /// The context is a file.
    #[error("unable to prepare context: \"{}\" is not a directory", .0.display())]
    ContextIsFile(PathBuf),
    /// A Dockerfile on standard input and another one named.
    #[error("invalid argument: standard input is a Dockerfile, and `-f` names another one")]
    TwoDockerfiles,
    /// `-f -` and `-` at once.
    #[error("invalid argument: can't use stdin for both build context and dockerfile")]
    StdinTwice,
    /// No Dockerfile.
    #[error("failed to read dockerfile: open {}: no such file or directory", .path.display())]
    NoDockerfile {
        /// Where it was looked for.
        path: PathBuf,
        /// Files of the context whose names are close.
        similar: Vec<String>,
    },
    /// A file that cannot be read.
    #[error("failed to read `{}`", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Not text, or much too large.
    #[error("`{}` is not a Dockerfile: {problem}", .path.display())]
    NotText {
        /// The file.
        path: PathBuf,
        /// What it is instead.
        problem: &'static str,
    },
    /// The archive on standard input.
    #[error("failed to read the context archive from standard input")]
    Archive(#[source] stave_engine::ContextError),
}

impl InputError {
    /// What to do about it.
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Self::NoDockerfile { similar, .. } if !similar.is_empty() => {
                Some(format!("the context has {}; name it with `-f`", similar.join(", ")))
            }
            Self::NoDockerfile { .. } => {
                Some("name the file with `-f`, or run in the directory that has it".to_owned())
            }
            Self::NoContext(_) | Self::ContextIsFile(_) => {
                Some("the last argument is the directory to build from, for instance `.`".to_owned())
            }
            _ => None,
        }
    }
}

/// A Dockerfile as the flags name it.
#[derive(Clone, Copy)]
pub(super) enum Wanted<'a> {
    /// The usual one of the context, or `-f`.
    Named(Option<&'a Path>),
    /// One that is here already.
    Given(&'a Source),
}

/// The Dockerfile on standard input.
pub(super) fn dockerfile_from_stdin() -> Result<Source, InputError> {
    let text = text_of(&mut io::stdin().lock(), Path::new("-"))?;
    Ok(Source::new("Dockerfile", text))
}

/// What was fetched from elsewhere, as inputs.
pub(super) fn fetched(remote: RemoteInput, store: &Store) -> Result<Input, InputError> {
    let empty = ContextArchive::empty(store).map_err(InputError::Archive)?;
    Ok(Input {
        context: empty.path().to_owned(),
        source: remote.context,
        pins: remote.pins,
        dockerfile: remote.dockerfile,
        ignored: Vec::new(),
        ignore_file: None,
        _unpacked: Some(empty),
    })
}

/// Reads what the flags name on this machine. An archive is unpacked in `store`.
pub(super) fn read(context: &Path, wanted: Wanted<'_>, store: &Store) -> Result<Input, InputError> {
    if context == Path::new("-") {
        return from_stdin(wanted, store);
    }
    let metadata = fs::metadata(context).map_err(|_| InputError::NoContext(context.to_owned()))?;
    if !metadata.is_dir() {
        return Err(InputError::ContextIsFile(context.to_owned()));
    }
    match wanted {
        // A Dockerfile from elsewhere includes what lies in the directory it builds.
        Wanted::Given(source) => {
            finish(context.to_owned(), includes::add(source.clone(), context)?, None, None)
        }
        Wanted::Named(Some(path)) if path == Path::new("-") => {
            let source = includes::add(dockerfile_from_stdin()?, context)?;
            finish(context.to_owned(), source, None, None)
        }
        Wanted::Named(Some(path)) => from_directory(context, path.to_owned(), None),
        Wanted::Named(None) => from_directory(context, default_file(context), None),
    }
}

/// The Dockerfile when none is named. BuildKit takes the name in lower case too.
fn default_file(context: &Path) -> PathBuf {
    let usual = context.join("Dockerfile");
    let lower = context.join("dockerfile");
    if !usual.exists() && lower.is_file() { lower } else { usual }
}

fn from_stdin(wanted: Wanted<'_>, store: &Store) -> Result<Input, InputError> {
    if matches!(wanted, Wanted::Named(Some(file)) if file == Path::new("-")) {
        return Err(InputError::StdinTwice);
    }
    let mut stdin = io::stdin().lock();
    let mut head = vec![0; ARCHIVE_HEAD];
    let length =
        fill(&mut stdin, &mut head).map_err(|source| InputError::Read { path: "-".into(), source })?;
    head.truncate(length);
    let is_archive = stave_engine::looks_like_archive(&head);
    let mut whole = io::Cursor::new(head).chain(stdin);
    if is_archive {
        let unpacked = ContextArchive::unpack(store, &mut whole).map_err(InputError::Archive)?;
        let context = unpacked.path().to_owned();
        let dockerfile = match wanted {
            Wanted::Given(source) => {
                let source = includes::add(source.clone(), &context)?;
                return finish(context, source, None, Some(unpacked));
            }
            Wanted::Named(file) => file.map_or_else(|| default_file(&context), |file| context.join(file)),
        };
        return from_directory(&context, dockerfile, Some(unpacked));
    }
    if matches!(wanted, Wanted::Given(_)) {
        return Err(InputError::TwoDockerfiles);
    }
    let text = text_of(&mut whole, Path::new("-"))?;
    let empty = ContextArchive::empty(store).map_err(InputError::Archive)?;
    let context = empty.path().to_owned();
    finish(context, Source::new("Dockerfile", text), None, Some(empty))
}

fn fill(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while length < buffer.len() {
        match reader.read(&mut buffer[length..]) {
            Ok(0) => break,
            Ok(count) => length += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}

fn from_directory(
    context: &Path,
    path: PathBuf,
    unpacked: Option<ContextArchive>,
) -> Result<Input, InputError> {
    let mut file = match open(&path, unpacked.as_ref()) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let path =
                if unpacked.is_some() { path.strip_prefix(context).unwrap_or(&path).into() } else { path };
            return Err(InputError::NoDockerfile { similar: similar(context), path });
        }
        Err(source) => return Err(InputError::Read { path, source }),
    };
    let text = text_of(&mut file, &path)?;
    let name =
        path.file_name().map_or_else(|| "Dockerfile".to_owned(), |name| name.to_string_lossy().into_owned());
    let folder = path.parent().unwrap_or(Path::new("."));
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let source = includes::add(Source::new(name, text), folder)?;
    finish(context.to_owned(), source, Some(path), unpacked)
}

/// Opens a file; in an archive of somebody else's, links lead nowhere else.
fn open(path: &Path, unpacked: Option<&ContextArchive>) -> io::Result<fs::File> {
    unpacked.map_or_else(|| fs::File::open(path), |archive| archive.open(path))
}

/// Names in the context that somebody may have meant.
fn similar(context: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(context) else { return Vec::new() };
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut names: Vec<String> = names
        .filter(|name| {
            let lower = name.to_ascii_lowercase();
            (lower.contains("dockerfile") || lower.contains("containerfile")) && !lower.ends_with("ignore")
        })
        .take(8)
        .collect();
    names.sort();
    names
}

fn text_of(reader: &mut dyn Read, path: &Path) -> Result<String, InputError> {
    let mut bytes = Vec::new();
    let read = reader.take(MAX_DOCKERFILE + 1).read_to_end(&mut bytes);
    read.map_err(|source| InputError::Read { path: path.to_owned(), source })?;
    if bytes.len() as u64 > MAX_DOCKERFILE {
        return Err(InputError::NotText { path: path.to_owned(), problem: "it is larger than 16 MiB" });
    }
    if bytes.contains(&0) {
        return Err(InputError::NotText { path: path.to_owned(), problem: "it contains NUL bytes" });
    }
    String::from_utf8(bytes)
        .map_err(|_| InputError::NotText { path: path.to_owned(), problem: "it is not valid UTF-8" })
}

/// Adds the ignore file: the one named after the Dockerfile wins over the context's.
fn finish(
    context: PathBuf,
    dockerfile: Source,
    path: Option<PathBuf>,
    unpacked: Option<ContextArchive>,
) -> Result<Input, InputError> {
    let own = path.map(|path| {
        let mut name = path.into_os_string();
        name.push(".dockerignore");
        PathBuf::from(name)
    });
    for candidate in own.into_iter().chain([context.join(".dockerignore")]) {
        let mut file = match open(&candidate, unpacked.as_ref()) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(source) => return Err(InputError::Read { path: candidate, source }),
        };
        let text = text_of(&mut file, &candidate)?;
        let ignored = dockerignore::parse(&text);
        let shown = candidate.file_name().map(|name| name.to_string_lossy().into_owned());
        return Ok(Input { ignored, ignore_file: shown, ..Input::plain(context, dockerfile, unpacked) });
    }
    Ok(Input::plain(context, dockerfile, unpacked))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_name_comes_first() {
        let context = tempfile::tempdir().expect("tempdir");
        let name = || default_file(context.path()).file_name().map(std::ffi::OsStr::to_owned);
        assert_eq!(name(), Some("Dockerfile".into()));
        fs::write(context.path().join("dockerfile"), "FROM scratch").expect("write");
        assert_eq!(name(), Some("dockerfile".into()));
        fs::write(context.path().join("Dockerfile"), "FROM scratch").expect("write");
        assert_eq!(name(), Some("Dockerfile".into()));
    }
}
