//! A cache to be exported: records and layers become a config, the same one for the same content.
//!
//! Owns deduplication and order. Must not know operations or where the config goes. Start with
//! [`ChainBuilder`].

use std::collections::{BTreeMap, HashMap};

use stave_oci::Digest;

use crate::config::{CacheConfig, CacheInput, CacheLayer, CacheRecord, CacheResult, ChainedResult};

/// A record of a [`ChainBuilder`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BuiltId(usize);

/// One record an input may be, with the part of it that is used.
pub type Link = (BuiltId, Option<Digest>);

/// A layer of a result: its blob, and its uncompressed digest.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BuiltLayer {
    /// The blob.
    pub blob: Digest,
    /// Digest of the uncompressed tar.
    pub diff_id: Digest,
}

#[derive(Debug)]
struct Built {
    digest: Digest,
    inputs: Vec<Vec<Link>>,
    result: Option<BuiltResult>,
}

#[derive(Debug, Clone)]
struct BuiltResult {
    layers: Vec<BuiltLayer>,
    created_at: String,
}

/// Collects records, inputs before their users.
#[derive(Debug, Default)]
pub struct ChainBuilder {
    records: Vec<Built>,
    known: HashMap<(Digest, Vec<Vec<Link>>), BuiltId>,
}

impl ChainBuilder {
    /// The record with this digest and these inputs; each input needs a link.
    pub fn record(&mut self, digest: Digest, mut inputs: Vec<Vec<Link>>) -> BuiltId {
        for links in &mut inputs {
            links.sort_unstable();
            links.dedup();
        }
        let next = BuiltId(self.records.len());
        let id = *self.known.entry((digest.clone(), inputs.clone())).or_insert(next);
        if id == next {
            self.records.push(Built { digest, inputs, result: None });
        }
        id
    }

    /// Says what a record leads to.
    pub fn set_result(&mut self, id: BuiltId, layers: Vec<BuiltLayer>, created_at: String) {
        if let Some(record) = self.records.get_mut(id.0) {
            record.result = Some(BuiltResult { layers, created_at });
        }
    }

    /// The config, its records and layers in an order that content alone decides.
    pub fn config(&self) -> CacheConfig {
        let mut layers = Layers::default();
        let tops: Vec<Option<i64>> = self
            .records
            .iter()
            .map(|record| record.result.as_ref().and_then(|result| layers.stack(&result.layers)))
            .collect();
        let results = |at: usize| {
            let found = self.records[at].result.as_ref().zip(tops[at]);
            found
                .map(|(result, layer)| CacheResult { layer, created_at: result.created_at.clone() })
                .into_iter()
                .collect()
        };
        let records = self.sorted(&results, &|_| Vec::new());
        CacheConfig { layers: layers.all, records }
    }

    /// The records as an image's config carries them: layers are the image's, named by position. `None` when no
    /// result is made of the image's layers.
    pub fn inline(&self, diff_ids: &[Digest]) -> Option<Vec<CacheRecord>> {
        let positions: HashMap<&Digest, i64> = diff_ids.iter().zip(0..).collect();
        let place = |at: usize| {
            let result = self.records[at].result.as_ref()?;
            let layers: Vec<i64> = result
                .layers
                .iter()
                .map(|layer| positions.get(&layer.diff_id).copied())
                .collect::<Option<_>>()?;
            (!layers.is_empty()).then_some((layers, result.created_at.clone()))
        };
        let is_prefix = |layers: &[i64]| layers.iter().zip(0..).all(|(layer, at)| *layer == at);
        let results = |at: usize| match place(at) {
            Some((layers, created_at)) if is_prefix(&layers) => {
                vec![CacheResult { layer: layers.len() as i64 - 1, created_at }]
            }
            _ => Vec::new(),
        };
        let chains = |at: usize| match place(at) {
            Some((layers, created_at)) if !is_prefix(&layers) => vec![ChainedResult { layers, created_at }],
            _ => Vec::new(),
        };
        let records = self.sorted(&results, &chains);
        records
            .iter()
            .any(|record| !record.results.is_empty() || !record.chains.is_empty())
            .then_some(records)
    }

    fn sorted(
        &self,
        results: &dyn Fn(usize) -> Vec<CacheResult>,
        chains: &dyn Fn(usize) -> Vec<ChainedResult>,
    ) -> Vec<CacheRecord> {
        let names = self.names();
        let mut order: Vec<usize> = (0..self.records.len()).collect();
        order.sort_by(|a, b| {
            (&self.records[*a].digest, &names[*a]).cmp(&(&self.records[*b].digest, &names[*b]))
        });
        let mut places = vec![0; order.len()];
        for (place, at) in (0..).zip(&order) {
            places[*at] = place;
        }
        let input = |(link, selector): &Link| CacheInput {
            selector: selector.as_ref().map(ToString::to_string).unwrap_or_default(),
            link: places[link.0],
        };
        let record = |at: usize| {
            let inputs = self.records[at].inputs.iter().map(|links| {
                let mut links: Vec<CacheInput> = links.iter().map(input).collect();
                links.sort_unstable_by(|a, b| (a.link, &a.selector).cmp(&(b.link, &b.selector)));
                links
            });
            CacheRecord {
                results: results(at),
                chains: chains(at),
                digest: self.records[at].digest.clone(),
                inputs: inputs.collect(),
            }
        };
        order.into_iter().map(record).collect()
    }

    /// A name for each record that its content alone decides. Inputs come before their users.
    fn names(&self) -> Vec<Digest> {
        let mut names: Vec<Digest> = Vec::with_capacity(self.records.len());
        for record in &self.records {
            let mut text = record.digest.to_string();
            for links in &record.inputs {
                text.push('\n');
                let mut parts: Vec<String> = links
                    .iter()
                    .map(|(link, selector)| {
                        let name = names.get(link.0).map(Digest::as_str).unwrap_or_default();
                        format!("{name}/{}", selector.as_ref().map(Digest::as_str).unwrap_or_default())
                    })
                    .collect();
                parts.sort_unstable();
                text.push_str(&parts.join(" "));
            }
            names.push(Digest::sha256(text.as_bytes()));
        }
        names
    }
}

/// Stacks of layers with their common parts told once.
#[derive(Default)]
struct Layers {
    all: Vec<CacheLayer>,
    known: BTreeMap<(Digest, i64), i64>,
}

impl Layers {
    /// The position of the top layer; `None` for an empty stack.
    fn stack(&mut self, layers: &[BuiltLayer]) -> Option<i64> {
        let mut parent = -1;
        for layer in layers {
            let next = self.all.len() as i64;
            let place = *self.known.entry((layer.blob.clone(), parent)).or_insert(next);
            if place == next {
                self.all.push(CacheLayer { blob: layer.blob.clone(), parent, annotations: None });
            }
            parent = place;
        }
        (parent != -1).then_some(parent)
    }
}

#[cfg(test)]
mod tests;
