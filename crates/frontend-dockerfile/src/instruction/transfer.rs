//! `COPY` and `ADD`.
//!
//! Owns their flags, and which sources are heredocs.

use crate::{
    ast::{Add, Copy, Heredoc, InlineFile, Transfer, Word},
    diagnostic::Diagnostic,
    dialect::Dialect,
    flags::{FlagKind, Flags},
    heredoc,
};

use super::{Arguments, Reading, Split};

const COPY_FLAGS: [(&str, FlagKind); 6] = [
    ("chmod", FlagKind::Value),
    ("chown", FlagKind::Value),
    ("exclude", FlagKind::Values),
    ("from", FlagKind::Value),
    ("link", FlagKind::Bool),
    ("parents", FlagKind::Bool),
];
/// Those of our own language.
const OWN_COPY_FLAGS: [(&str, FlagKind); 7] = [
    ("chmod", FlagKind::Value),
    ("chown", FlagKind::Value),
    ("exclude", FlagKind::Values),
    ("from", FlagKind::Value),
    ("if-exists", FlagKind::Bool),
    ("link", FlagKind::Bool),
    ("parents", FlagKind::Bool),
];
const ADD_FLAGS: [(&str, FlagKind); 7] = [
    ("checksum", FlagKind::Value),
    ("chmod", FlagKind::Value),
    ("chown", FlagKind::Value),
    ("exclude", FlagKind::Values),
    ("keep-git-dir", FlagKind::Bool),
    ("link", FlagKind::Bool),
    ("unpack", FlagKind::Bool),
];

impl Reading<'_> {
    pub(super) fn copy(&self, split: Split) -> Result<Copy, Diagnostic> {
        self.has_destination(&split, "COPY")?;
        let known: &[_] = if self.dialect < Dialect::Own { &COPY_FLAGS } else { &OWN_COPY_FLAGS };
        let flags = self.flags(&split, known)?;
        let transfer = self.transfer(split, &flags, "COPY")?;
        let parents = flags.switch("parents").unwrap_or(false);
        let if_exists = known.len() > COPY_FLAGS.len() && flags.switch("if-exists").unwrap_or(false);
        Ok(Copy { transfer, from: flags.filled("from"), if_exists, parents })
    }

    pub(super) fn add(&self, split: Split) -> Result<Add, Diagnostic> {
        self.has_destination(&split, "ADD")?;
        let flags = self.flags(&split, &ADD_FLAGS)?;
        let transfer = self.transfer(split, &flags, "ADD")?;
        Ok(Add {
            transfer,
            keep_git_dir: flags.switch("keep-git-dir"),
            checksum: flags.filled("checksum"),
            unpack: flags.switch("unpack"),
        })
    }

    fn has_destination(&self, split: &Split, name: &str) -> Result<(), Diagnostic> {
        if split.words().len() >= 2 {
            return Ok(());
        }
        let message = format!(
            "{name} requires at least two arguments, but only one was provided. Destination could not be determined"
        );
        let span = if split.span.is_empty() { split.keyword.span } else { split.span };
        Err(self.error(span, message).with_help(format!("write `{name} source destination`")))
    }

    fn transfer(&self, split: Split, flags: &Flags, name: &str) -> Result<Transfer, Diagnostic> {
        let in_words = matches!(split.arguments, Arguments::Words(_));
        let mut words = split.arguments.into_words();
        let destination = words.pop().unwrap_or_default();
        if is_heredoc(&destination) {
            let message = format!("{name} cannot accept a heredoc as a destination");
            return Err(self.error(destination.span, message));
        }
        let mut sources = Vec::new();
        let mut inline = Vec::new();
        for word in words {
            match heredoc::parse_word(&word.text).ok().flatten() {
                Some(announced) => {
                    let body = self.body(&announced.name);
                    let content = match (body, announced.strip_tabs) {
                        (None, _) => String::new(),
                        (Some(body), strip_tabs) => Heredoc { strip_tabs, ..body.clone() }.body(),
                    };
                    // In JSON form no body follows, the word alone makes an empty file.
                    debug_assert!(in_words || body.is_none());
                    let (name, expand) = (announced.name, announced.expand);
                    inline.push(InlineFile { name, content, expand, span: word.span });
                }
                None => sources.push(word),
            }
        }
        Ok(Transfer {
            sources,
            inline,
            destination,
            chown: flags.filled("chown"),
            chmod: flags.filled("chmod"),
            link: flags.switch("link").unwrap_or(false),
            excludes: flags.values("exclude"),
        })
    }

    /// The body of the last heredoc of this name.
    fn body(&self, name: &str) -> Option<&Heredoc> {
        self.heredocs.iter().rev().find(|heredoc| heredoc.name == name)
    }
}

fn is_heredoc(word: &Word) -> bool {
    matches!(heredoc::parse_word(&word.text), Ok(Some(_)))
}
