//! A cache as it was imported: which records match an operation, and which layers they lead to.
//!
//! Owns the bounds on what a stranger's cache may hold, and the matching. Must not know where it came from.
//! Start with [`Chains::read`] and [`Chains::matching`].
//!
//! A record matches when its digest is the operation's and each of its inputs is linked with something that
//! input is known to be. That is a question from below: cycles and nonsense in a config match nothing.

use std::collections::HashMap;

use stave_oci::{Descriptor, Digest};

use crate::config::{CacheConfig, CacheInput, CacheRecord};
use crate::key::content_record;

/// Records of one cache.
pub const MAX_RECORDS: usize = 200_000;
/// Layers of one cache.
pub const MAX_LAYERS: usize = 100_000;
/// Links between records of one cache.
pub const MAX_LINKS: usize = 2_000_000;
/// Layers of one result, more than any kernel stacks.
pub const MAX_RESULT_LAYERS: usize = 2_000;

/// Why a cache config cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ChainError {
    /// More of something than there may be.
    #[error("cache has more than {limit} {what}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many there may be.
        limit: usize,
    },
    /// A position outside of its list.
    #[error("cache names {what} {position}, which it does not have")]
    Position {
        /// In which list.
        what: &'static str,
        /// Which.
        position: i64,
    },
}

/// A record of [`Chains`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordId(usize);

/// What is known of one input of an operation.
#[derive(Debug, Clone, Copy)]
pub struct KnownInput<'a> {
    /// Records the input is known to be.
    pub records: &'a [RecordId],
    /// The part of it that is used.
    pub selector: Option<&'a Digest>,
    /// The digest of its content.
    pub content: Option<&'a Digest>,
}

/// A result: layers, bottom first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerStack {
    /// The layers.
    pub layers: Vec<Descriptor>,
    /// When it was made, as the cache says.
    pub created_at: String,
}

/// An imported cache.
#[derive(Debug, Default)]
pub struct Chains {
    config: CacheConfig,
    /// By position of the layer; `None` for one the manifest does not have.
    blobs: Vec<Option<Descriptor>>,
    by_digest: HashMap<Digest, Vec<RecordId>>,
}

impl Chains {
    /// Checks a config against the blobs that are there.
    ///
    /// # Errors
    /// [`ChainError`]; nothing of such a cache is used.
    pub fn read(config: CacheConfig, blobs: &HashMap<Digest, Descriptor>) -> Result<Self, ChainError> {
        let bound = |what, count: usize, limit| {
            if count > limit { Err(ChainError::TooMany { what, limit }) } else { Ok(()) }
        };
        bound("records", config.records.len(), MAX_RECORDS)?;
        bound("layers", config.layers.len(), MAX_LAYERS)?;
        let links = config.records.iter().flat_map(|record| &record.inputs).map(Vec::len).sum();
        bound("links", links, MAX_LINKS)?;
        let inputs = config.records.iter().map(|record| record.inputs.len()).sum();
        bound("inputs", inputs, MAX_LINKS)?;
        let mut by_digest: HashMap<Digest, Vec<RecordId>> = HashMap::new();
        for (at, record) in config.records.iter().enumerate() {
            check_positions(record, &config)?;
            by_digest.entry(record.digest.clone()).or_default().push(RecordId(at));
        }
        for layer in &config.layers {
            if layer.parent != -1 {
                within("layer", layer.parent, config.layers.len())?;
            }
        }
        let blobs = config.layers.iter().map(|layer| blobs.get(&layer.blob).cloned()).collect();
        Ok(Self { config, blobs, by_digest })
    }

    /// Whether no record has this digest, so that nothing can match.
    pub fn lacks(&self, digest: &Digest) -> bool {
        !self.by_digest.contains_key(digest)
    }

    /// The records of an output with this digest (see [`crate::key::output_digest`]), given its inputs.
    pub fn matching(&self, digest: &Digest, inputs: &[KnownInput<'_>]) -> Vec<RecordId> {
        let contents: Vec<Option<Digest>> =
            inputs.iter().map(|input| input.content.map(content_record)).collect();
        let linked = |links: &[CacheInput], known: &KnownInput<'_>, content: Option<&Digest>| {
            links.iter().any(|link| {
                let Some((id, record)) = self.at(link.link) else { return false };
                let selector = known.selector.map_or("", Digest::as_str);
                let by_definition = link.selector == selector && known.records.contains(&id);
                let by_content = link.selector.is_empty()
                    && record.inputs.is_empty()
                    && content.is_some_and(|content| record.digest == *content);
                by_definition || by_content
            })
        };
        let matches = |id: &RecordId| {
            let record = &self.config.records[id.0];
            record.inputs.len() == inputs.len()
                && record
                    .inputs
                    .iter()
                    .zip(inputs)
                    .zip(&contents)
                    .all(|((links, known), content)| linked(links, known, content.as_ref()))
        };
        let candidates = self.by_digest.get(digest).map(Vec::as_slice).unwrap_or_default();
        candidates.iter().copied().filter(matches).collect()
    }

    /// Results of a record whose layers are all there, newest first. An empty stack is an empty file system.
    pub fn results(&self, id: RecordId) -> Vec<LayerStack> {
        let Some(record) = self.config.records.get(id.0) else { return Vec::new() };
        let stacked = record.results.iter().filter_map(|result| {
            Some(LayerStack { layers: self.stack(result.layer)?, created_at: result.created_at.clone() })
        });
        let chained = record.chains.iter().filter_map(|result| {
            let blob = |at: &i64| self.blobs.get(usize::try_from(*at).ok()?)?.clone();
            let layers = result.layers.iter().map(blob).collect::<Option<Vec<_>>>()?;
            Some(LayerStack { layers, created_at: result.created_at.clone() })
        });
        let mut results: Vec<LayerStack> = stacked.chain(chained).collect();
        results.sort_by(|a, b| b.created_at.cmp(&a.created_at));
        results
    }

    /// The records by which a record knows one of its inputs by itself: its content, or the source that it is.
    pub fn alone(&self, id: RecordId, input: usize) -> impl Iterator<Item = &Digest> {
        let links = self.config.records.get(id.0).and_then(|record| record.inputs.get(input));
        let links = links.into_iter().flatten().filter(|link| link.selector.is_empty());
        let records = links.filter_map(|link| Some(self.at(link.link)?.1));
        records.filter(|record| record.inputs.is_empty()).map(|record| &record.digest)
    }

    /// How many records there are.
    pub fn len(&self) -> usize {
        self.config.records.len()
    }

    /// Whether there is no record.
    pub fn is_empty(&self) -> bool {
        self.config.records.is_empty()
    }

    fn at(&self, position: i64) -> Option<(RecordId, &CacheRecord)> {
        let position = usize::try_from(position).ok()?;
        Some((RecordId(position), self.config.records.get(position)?))
    }

    fn stack(&self, top: i64) -> Option<Vec<Descriptor>> {
        let (mut layers, mut next) = (Vec::new(), top);
        while next != -1 {
            let at = usize::try_from(next).ok()?;
            // A loop is longer than any stack.
            if layers.len() >= MAX_RESULT_LAYERS {
                return None;
            }
            layers.push(self.blobs.get(at)?.clone()?);
            next = self.config.layers.get(at)?.parent;
        }
        layers.reverse();
        Some(layers)
    }
}

fn check_positions(record: &CacheRecord, config: &CacheConfig) -> Result<(), ChainError> {
    for link in record.inputs.iter().flatten() {
        within("record", link.link, config.records.len())?;
    }
    let chained = record.chains.iter().flat_map(|chain| chain.layers.iter().copied());
    for layer in record.results.iter().map(|result| result.layer).chain(chained) {
        within("layer", layer, config.layers.len())?;
    }
    if record.chains.iter().any(|chain| chain.layers.len() > MAX_RESULT_LAYERS) {
        return Err(ChainError::TooMany { what: "layers in one result", limit: MAX_RESULT_LAYERS });
    }
    Ok(())
}

fn within(what: &'static str, position: i64, count: usize) -> Result<(), ChainError> {
    if usize::try_from(position).is_ok_and(|position| position < count) {
        return Ok(());
    }
    Err(ChainError::Position { what, position })
}

#[cfg(test)]
mod tests;
