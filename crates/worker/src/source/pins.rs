//! What moving sources turned out to be: a branch's commit, an address's content. Asked for once in a session, so
//! that everything one build takes from one place is of one moment. Read [`Pins`] first.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use super::git::GitPin;
use super::http::HttpPin;

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

impl Pins {
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
