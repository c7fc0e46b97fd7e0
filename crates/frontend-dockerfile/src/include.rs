//! Bringing included files to a Dockerfile of our own syntax, wherever it is from.
//!
//! Owns how much is read, and that no file is asked for twice. Must not know where files come from: whoever read the
//! Dockerfile looks beside it. Start with [`Includes`].

use std::collections::BTreeSet;

use crate::{OWN_SYNTAX, Source, parse};

/// A Dockerfile that grows by the files it includes.
///
/// [`Includes::wanted`] names files until none is missing that was not looked for; [`Includes::add`] takes those
/// that were found. Files that are not there are left out: the parser says so where they are named.
#[derive(Clone, Debug)]
pub struct Includes {
    source: Source,
    left: usize,
    asked: BTreeSet<String>,
}

/// The included files are larger than they may be together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the included files are larger than {} MiB", Includes::MAX_BYTES >> 20)]
pub struct TooMuchIncluded;

impl Includes {
    /// Bytes of all included files together.
    pub const MAX_BYTES: usize = 16 << 20;

    /// The files of this Dockerfile, none of them brought yet.
    pub fn new(source: Source) -> Self {
        Self { source, left: Self::MAX_BYTES, asked: BTreeSet::new() }
    }

    /// Files to look for now, by their paths from the Dockerfile's directory, which they do not leave.
    pub fn wanted(&mut self) -> Vec<String> {
        // Cheap for everybody else: nothing else names our syntax.
        if !self.source.text.contains(OWN_SYNTAX) {
            return Vec::new();
        }
        let missing = parse(&self.source).missing_includes.into_iter().map(|request| request.path);
        missing.filter(|path| self.asked.insert(path.clone())).collect()
    }

    /// How many bytes the next file may have.
    pub fn left(&self) -> usize {
        self.left
    }

    /// Takes a file that was found.
    ///
    /// # Errors
    /// When it is one too many.
    pub fn add(&mut self, path: String, text: &str) -> Result<(), TooMuchIncluded> {
        self.left = self.left.checked_sub(text.len()).ok_or(TooMuchIncluded)?;
        self.source = std::mem::replace(&mut self.source, Source::new("", "")).with_included(path, text);
        Ok(())
    }

    /// The Dockerfile with what was found.
    pub fn finish(self) -> Source {
        self.source
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_asked_for_once() {
        let text = "# syntax=stave/1\nFROM a\nINCLUDE parts/one\nINCLUDE gone\n";
        let mut includes = Includes::new(Source::new("Dockerfile", text));
        assert_eq!(includes.wanted(), ["parts/one", "gone"]);
        includes.add("parts/one".to_owned(), "INCLUDE two\n").expect("is small");
        assert_eq!(includes.wanted(), ["parts/two"]);
        assert!(includes.wanted().is_empty());
        let source = includes.finish();
        assert_eq!(source.parts().count(), 2);
        let mut plain = Includes::new(Source::new("Dockerfile", "FROM a\nINCLUDE x\n"));
        assert!(plain.wanted().is_empty());
    }

    #[test]
    fn all_files_share_a_limit() {
        let mut includes = Includes::new(Source::new("Dockerfile", "# syntax=stave/1\nFROM a\nINCLUDE x\n"));
        let half = "#".repeat(Includes::MAX_BYTES / 2 + 1);
        includes.add("x".to_owned(), &half).expect("is half");
        assert_eq!(includes.add("y".to_owned(), &half), Err(TooMuchIncluded));
    }
}
