//! What moving sources turned out to be: a branch's commit, an address's content. Asked for once in a session, so
//! that everything one build takes from one place is of one moment. Read [`Pins`] first.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use stave_llb::{SourceIdentifier, SourceOp};
use stave_oci::Digest;

use super::git::{GitPin, GitRequest};
use super::http::{HttpPin, HttpSource};

/// The answers of one session; clones share them.
#[derive(Clone, Default)]
pub struct Pins {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    git: HashMap<String, GitPin>,
    http: HashMap<String, HttpPin>,
}

/// Addresses may hold credentials.
impl fmt::Debug for Pins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pins")
    }
}

/// What a moving source turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pinned {
    /// The commit of a repository.
    Commit(String),
    /// The content of a download.
    Content(Digest),
}

impl Pins {
    /// What a source turned out to be, if that was asked.
    #[must_use]
    pub fn of(&self, op: &SourceOp) -> Option<Pinned> {
        match &op.identifier {
            SourceIdentifier::Git(git) => {
                let request = GitRequest::new(git, op).ok()?;
                let pin = request.known_pin().ok()?.or_else(|| self.git(&request.question()))?;
                Some(Pinned::Commit(pin.hash().to_owned()))
            }
            SourceIdentifier::Http { url } => {
                let source = HttpSource::new(url, &op.attrs).ok()?;
                Some(Pinned::Content(self.http(&source.identity())?.digest))
            }
            _ => None,
        }
    }

    /// The commit of a remote's revision, if it was asked for.
    pub(crate) fn git(&self, key: &str) -> Option<GitPin> {
        self.with(|inner| inner.git.get(key).cloned())
    }

    /// Remembers a commit; the first answer stays.
    pub(crate) fn set_git(&self, key: String, pin: GitPin) {
        self.with(|inner| {
            inner.git.entry(key).or_insert(pin);
        });
    }

    /// The content of an address, if it was fetched.
    pub(crate) fn http(&self, key: &str) -> Option<HttpPin> {
        self.with(|inner| inner.http.get(key).cloned())
    }

    /// Remembers a content; the first answer stays.
    pub(crate) fn set_http(&self, key: String, pin: HttpPin) {
        self.with(|inner| {
            inner.http.entry(key).or_insert(pin);
        });
    }

    fn with<T>(&self, look: impl FnOnce(&mut Inner) -> T) -> T {
        look(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
