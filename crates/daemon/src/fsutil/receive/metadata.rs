//! Directories of which only a part is wanted, and of the rest what its entries are: a file says it all.
//!
//! The file is fsutil's: for each entry the length of its `Stat` as four bytes, least first, then the `Stat` itself.
//! Must not know the disk. Start with [`Metadata`].

use std::collections::HashMap;

use prost::Message as _;
use stave_llb::pattern::PatternMatcher;

use super::{ReceiveError, limit};
use crate::fsutil::{MAX_NAMES, Stat};

/// Where the entries are told, in the directory itself. A sender's file of this name is passed over.
pub(super) const FILE: &str = ".fsutil-metadata";

/// What is told of the entries, and which of them are placed.
#[derive(Debug)]
pub(super) struct Metadata {
    but: PatternMatcher,
    text: Vec<u8>,
}

impl Metadata {
    pub(super) fn new(but: PatternMatcher) -> Self {
        Self { but, text: Vec::new() }
    }

    /// What the file says.
    pub(super) fn text(&self) -> &[u8] {
        &self.text
    }

    /// Takes an entry down.
    pub(super) fn add(&mut self, stat: &Stat) -> Result<(), ReceiveError> {
        if is_file(&stat.path) {
            return Ok(());
        }
        limit("bytes of metadata", (self.text.len() + stat.encoded_len()) as u64, MAX_NAMES)?;
        let length = u32::try_from(stat.encoded_len()).unwrap_or(u32::MAX);
        self.text.extend_from_slice(&length.to_le_bytes());
        self.text.extend(stat.encode_to_vec());
        Ok(())
    }

    /// Which entries are placed: what the patterns select, with the directories it is in. A link to a file that is
    /// not placed becomes a file.
    pub(super) fn placed(&self, tree: &mut [Stat], by_path: &HashMap<String, usize>) -> Vec<bool> {
        let mut placed = vec![false; tree.len()];
        for (at, stat) in tree.iter().enumerate() {
            if is_file(&stat.path) || !self.but.matches(&stat.path) {
                continue;
            }
            placed[at] = true;
            let mut path = stat.path.as_str();
            while let Some((parent, _)) = path.rsplit_once('/') {
                match by_path.get(parent) {
                    Some(&above) if !placed[above] => placed[above] = true,
                    _ => break,
                }
                path = parent;
            }
        }
        for at in 0..tree.len() {
            let is_link = by_path.get(&tree[at].linkname).is_some_and(|&target| !placed[target]);
            if placed[at] && is_link && super::is_file(&tree[at]) {
                tree[at].linkname.clear();
            }
        }
        placed
    }
}

/// Whether it is the file in which the entries are told, or below it.
fn is_file(path: &str) -> bool {
    path.strip_prefix(FILE).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}
