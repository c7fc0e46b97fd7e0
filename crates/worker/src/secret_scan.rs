//! Looking for the values of a build's secrets in what it made.
//!
//! Owns the walk over layers' files: contents, names and targets of links. Files that are compressed are not looked into.
//! Must not know images' configs or exports. Read [`LocalWorker::find_secret`] first.

use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FileType, Mode, OFlags};
use stave_store::{LayerId, Snapshot};
use tokio_util::sync::CancellationToken;

use crate::exec::ExecError;
use crate::redact::Redactions;
use crate::root::{At as _, RootDir};
use crate::session::Session;
use crate::source::image::blocking;
use crate::step::StepError;
use crate::worker::LocalWorker;

/// Bytes of a file looked at together.
const CHUNK: usize = 1 << 20;
/// Directories in directories.
const MAX_DEPTH: usize = 4096;

/// A secret where it must not be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the value of secret `{secret}` is in {place}")]
pub struct SecretLeak {
    /// Its id.
    pub secret: String,
    /// Where, in words.
    pub place: String,
}

/// The values of a build's secrets, as they are recognised in texts.
#[derive(Debug, Clone)]
pub struct KnownSecrets(Arc<Redactions>);

impl KnownSecrets {
    /// Those of a session; `None` when there is nothing to look for. Reads files.
    pub fn of(session: &Session) -> Option<Self> {
        Redactions::of(session).map(Self)
    }

    /// The text without them; `None` when it has none.
    pub fn hidden_in(&self, text: &str) -> Option<String> {
        self.0.find(text.as_bytes())?;
        Some(replaced(text, &self.0))
    }
}

impl<E> LocalWorker<E> {
    /// The first file of these layers that holds the value of one of the session's secrets.
    ///
    /// # Errors
    /// When a layer cannot be read.
    pub async fn find_secret(
        &self,
        session: &Session,
        layers: Vec<LayerId>,
        cancel: &CancellationToken,
    ) -> Result<Option<SecretLeak>, StepError> {
        let Some(redactions) = Redactions::of(session) else { return Ok(None) };
        let (shared, cancel) = (Arc::clone(&self.shared), cancel.clone());
        blocking(move || {
            for layer in layers {
                let paths = shared.store.layer_paths(&Snapshot::new(vec![layer]))?;
                let Some(directory) = paths.first() else { continue };
                let scan = Scan { root: RootDir::open(directory)?, redactions: &redactions, cancel: &cancel };
                if let Some((secret, path)) = scan.directory(Path::new(""), 0)? {
                    let made_by = shared.store.layer_description(layer)?;
                    let place =
                        format!("file `/{}`, left by `{}`", path.display(), shown(&made_by, &redactions));
                    return Ok(Some(SecretLeak { secret, place }));
                }
            }
            Ok(None)
        })
        .await
    }

    /// The first of these texts (what it is, what it says) that holds the value of one of the session's secrets.
    #[must_use]
    pub fn find_secret_in_texts(&self, session: &Session, texts: &[(String, String)]) -> Option<SecretLeak> {
        let redactions = Redactions::of(session)?;
        texts.iter().find_map(|(what, text)| {
            let secret = redactions.find(text.as_bytes())?.to_owned();
            Some(SecretLeak { secret, place: shown(what, &redactions) })
        })
    }
}

/// A text without secrets, in one line.
fn shown(text: &str, redactions: &Arc<Redactions>) -> String {
    replaced(text, redactions).replace('\n', " ")
}

fn replaced(text: &str, redactions: &Arc<Redactions>) -> String {
    let mut stream = redactions.stream();
    let mut bytes = stream.push(text.as_bytes());
    bytes.extend(stream.finish());
    String::from_utf8_lossy(&bytes).into_owned()
}

struct Scan<'a> {
    root: RootDir,
    redactions: &'a Arc<Redactions>,
    cancel: &'a CancellationToken,
}

impl Scan<'_> {
    fn directory(&self, directory: &Path, depth: usize) -> Result<Option<(String, PathBuf)>, StepError> {
        if depth > MAX_DEPTH {
            return Ok(None);
        }
        for name in self.root.list(directory).at("scanning", directory)? {
            if self.cancel.is_cancelled() {
                return Err(ExecError::Cancelled.into());
            }
            let path = directory.join(&name);
            if let Some(secret) = self.redactions.find(name.as_bytes()) {
                let hidden = PathBuf::from(shown(&path.to_string_lossy(), self.redactions));
                return Ok(Some((secret.to_owned(), hidden)));
            }
            let Some(stat) = self.root.stat(&path).at("scanning", &path)? else { continue };
            let found = match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => {
                    if let Some(found) = self.directory(&path, depth + 1)? {
                        return Ok(Some(found));
                    }
                    None
                }
                FileType::RegularFile => self.file(&path).at("scanning", &path)?,
                FileType::Symlink => {
                    let (directory, name) = self.root.entry(&path).at("scanning", &path)?;
                    let target = rustix::fs::readlinkat(directory, name, Vec::new());
                    let target = target.map_err(std::io::Error::from).at("scanning", &path)?;
                    self.redactions.find(target.to_bytes()).map(str::to_owned)
                }
                _ => None,
            };
            if let Some(secret) = found {
                return Ok(Some((secret, path)));
            }
        }
        Ok(None)
    }

    fn file(&self, path: &Path) -> std::io::Result<Option<String>> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let mut file = std::fs::File::from(self.root.open_at(path, flags, Mode::empty())?);
        let overlap = self.redactions.overlap();
        let mut buffer: Vec<u8> = Vec::with_capacity(CHUNK + overlap);
        loop {
            let read = file.by_ref().take(CHUNK as u64).read_to_end(&mut buffer)?;
            if let Some(secret) = self.redactions.find(&buffer) {
                return Ok(Some(secret.to_owned()));
            }
            if read < CHUNK {
                return Ok(None);
            }
            // What may be the beginning of a value is looked at again with what follows.
            buffer.drain(..buffer.len().saturating_sub(overlap));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(make: impl FnOnce(&Path), expected: Option<&str>) {
        let folder = tempfile::tempdir().expect("a folder");
        make(folder.path());
        let secret = ("token".to_owned(), b"s3cr3t-value\n".to_vec());
        let redactions = Redactions::new([secret].into_iter()).expect("secrets");
        let cancel = CancellationToken::new();
        let root = RootDir::open(folder.path()).expect("opens");
        let scan = Scan { root, redactions: &redactions, cancel: &cancel };
        let found = scan.directory(Path::new(""), 0).expect("scans");
        let expected = expected.map(|path| ("token".to_owned(), PathBuf::from(path)));
        assert_eq!(found, expected);
    }

    #[test]
    fn values_are_found_in_contents_names_and_links() {
        check(|at| std::fs::write(at.join("a"), "nothing").expect("writes"), None);
        check(
            |at| {
                std::fs::create_dir_all(at.join("root/.config")).expect("creates");
                std::fs::write(at.join("root/.config/npmrc"), "token=s3cr3t-value!").expect("writes");
            },
            Some("root/.config/npmrc"),
        );
        check(|at| std::fs::write(at.join("x-s3cr3t-value"), "").expect("writes"), Some("x-***"));
        check(
            |at| std::os::unix::fs::symlink("/s3cr3t-value", at.join("link")).expect("links"),
            Some("link"),
        );
    }

    #[test]
    fn a_value_across_chunks_is_found() {
        for shift in [0, 1, 6, 11, 12] {
            let mut text = vec![b'.'; CHUNK - shift];
            text.extend_from_slice(b"s3cr3t-value");
            text.extend(vec![b'.'; 3 * CHUNK]);
            check(|at| std::fs::write(at.join("big"), &text).expect("writes"), Some("big"));
        }
    }
}
