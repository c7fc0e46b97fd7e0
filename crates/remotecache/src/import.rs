//! Caches made elsewhere, asked for what this build wants.
//!
//! Owns the reading of a cache's documents with their bounds, which records a build's vertices are known to be,
//! and the fetching of their layers into the store. Must not know the solver, or how content is digested: the
//! caller brings digests through [`Contents`]. Start with [`Imports`].
//!
//! What a vertex is known to be only grows: first by the graph alone, then by the content of inputs. Nothing is
//! fetched before a step or the export needs it. A cache that lies (wrong bytes, missing blobs) is a miss.

mod fetch;
mod read;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use stave_llb::{Definition, Edge, Vertex};
use stave_oci::{Descriptor, Digest};
use stave_store::{LayerId, Snapshot, Store};

use crate::chains::{Chains, KnownInput, LayerStack, RecordId};
use crate::export::{MAX_OUTPUTS, as_imported};
use crate::key::{ContentPath, OpKeys, output_digest};
use crate::place::Place;

pub use fetch::{FetchError, PassError, Stored};
pub use read::ImportError;

/// Digests of inputs' content, in BuildKit's terms.
pub trait Contents {
    /// The digest of what `paths` pick of input `input`; `None` when it cannot be had.
    fn digest(&self, input: usize, paths: &[ContentPath]) -> Option<Digest>;
}

/// A cache that was read.
#[derive(Debug)]
pub struct ImportedCache {
    name: String,
    place: Place,
    chains: Vec<Chains>,
}

/// The texts that identify each source vertex, by its digest.
pub type SourceKeys = HashMap<Digest, Vec<String>>;

/// Hears of what went wrong without failing the build.
pub type Warn = Box<dyn Fn(String) + Send + Sync>;

/// The imported caches of one build.
pub struct Imports {
    store: Store,
    caches: Vec<ImportedCache>,
    vertices: HashMap<Digest, Known>,
    state: Mutex<State>,
    warn: Warn,
}

/// A vertex that can be matched.
#[derive(Debug)]
struct Known {
    keys: OpKeys,
    inputs: Vec<Edge>,
    /// The outputs somebody uses, counted from 0.
    outputs: u32,
    ignore_cache: bool,
}

/// Which cache, and which of its configs.
type ChainId = (usize, usize);

#[derive(Debug, Default)]
struct State {
    /// Per output, the records of each cache.
    records: HashMap<Edge, HashMap<ChainId, Vec<RecordId>>>,
    /// Content of inputs, once digested; `None` when it could not be.
    contents: HashMap<(Digest, usize), Option<Digest>>,
    /// Stacks whose layers could not be had.
    dead: HashSet<(usize, Vec<Digest>)>,
    /// What was told already.
    told: HashSet<String>,
    /// What was brought here, by vertex, and the layers of each output.
    fetched: HashMap<Digest, (ImportHit, Vec<Vec<LayerId>>)>,
}

/// What caches know of a vertex.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lookup {
    /// Its result.
    Hit(ImportHit),
    /// Its keys alone: what stands on it may have a result.
    Keys,
}

/// A result found in a cache; nothing of it is fetched yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportHit {
    cache: usize,
    vertex: Digest,
    /// Per output.
    stacks: Vec<LayerStack>,
}

impl ImportHit {
    /// The layers of each output, as the cache has them.
    pub fn stacks(&self) -> &[LayerStack] {
        &self.stacks
    }

    /// Whether both are one cache's.
    pub fn is_beside(&self, other: &Self) -> bool {
        self.cache == other.cache
    }
}

impl Imports {
    /// The caches of a build of `definition`, in the order they are asked.
    pub fn new(
        store: Store,
        caches: Vec<ImportedCache>,
        definition: &Definition,
        sources: &SourceKeys,
        warn: Warn,
    ) -> Self {
        let mut outputs: HashMap<&Digest, u32> = HashMap::new();
        let edges =
            definition.vertices().iter().flat_map(|vertex| &vertex.inputs).chain(definition.outputs());
        for edge in edges {
            let count = outputs.entry(&edge.vertex).or_default();
            *count = (*count).max(edge.output.saturating_add(1));
        }
        let known = |vertex: &Vertex| {
            let sources = sources.get(&vertex.digest).map(Vec::as_slice).unwrap_or_default();
            let known = Known {
                keys: OpKeys::of(vertex, sources)?,
                inputs: vertex.inputs.clone(),
                outputs: outputs.get(&vertex.digest).copied().unwrap_or(1).clamp(1, MAX_OUTPUTS),
                ignore_cache: vertex.metadata.ignore_cache,
            };
            Some((vertex.digest.clone(), known))
        };
        let vertices = definition.vertices().iter().filter_map(known).collect();
        Self { store, caches, vertices, state: Mutex::default(), warn }
    }

    /// Looks a vertex up: with `contents` by what its inputs contain, else by the graph and what is known so far.
    /// Content is digested only where it can decide. May block.
    pub fn look_up(&self, vertex: &Digest, contents: Option<&dyn Contents>) -> Option<Lookup> {
        let known = self.vertices.get(vertex)?;
        if known.ignore_cache || known.inputs.is_empty() {
            return None;
        }
        if let Some(contents) = contents {
            self.digest(vertex, known, contents);
        }
        let mut state = self.state();
        self.learn(&mut state, vertex);
        let hit = (0..self.caches.len()).find_map(|cache| {
            let stacks = (0..known.outputs)
                .map(|output| self.stack(&state, cache, vertex, output))
                .collect::<Option<Vec<_>>>()?;
            Some(Lookup::Hit(ImportHit { cache, vertex: vertex.clone(), stacks }))
        });
        let has_keys = || {
            (0..known.outputs).all(|output| {
                let edge = Edge { vertex: vertex.clone(), output };
                state.records.get(&edge).is_some_and(|found| found.values().any(|ids| !ids.is_empty()))
            })
        };
        hit.or_else(|| has_keys().then_some(Lookup::Keys))
    }

    /// Brings the layers of a hit into the store, per output. `None` when they cannot be had: the hit is not
    /// offered again.
    pub async fn fetch(&self, hit: &ImportHit) -> Option<Vec<Vec<LayerId>>> {
        let cache = self.caches.get(hit.cache)?;
        let mut outputs = Vec::with_capacity(hit.stacks.len());
        for stack in &hit.stacks {
            match fetch::stack(&self.store, &cache.place, &cache.name, stack).await {
                Ok(layers) => outputs.push(layers),
                Err(error) => {
                    let text = format!("cache {} cannot be used: {}", cache.name, chain(&error));
                    let is_new = {
                        let mut state = self.state();
                        state.dead.insert((hit.cache, digests(stack)));
                        state.told.insert(text.clone())
                    };
                    if is_new {
                        (self.warn)(text);
                    }
                    return None;
                }
            }
        }
        self.state().fetched.insert(hit.vertex.clone(), (hit.clone(), outputs.clone()));
        Some(outputs)
    }

    /// The hit that a vertex's result was fetched by; `None` when it came from elsewhere.
    pub fn fetched(&self, vertex: &Digest, outputs: &[Snapshot]) -> Option<ImportHit> {
        let state = self.state();
        let (hit, layers) = state.fetched.get(vertex)?;
        outputs.iter().map(Snapshot::layers).eq(layers.iter().map(Vec::as_slice)).then(|| hit.clone())
    }

    /// Takes up what inputs of vertices contain, as whoever builds has digested it by now.
    pub fn learn_of(&self, contents: &HashMap<(Digest, usize), Digest>) {
        let mut state = self.state();
        for (place, content) in contents {
            state.contents.insert(place.clone(), Some(content.clone()));
        }
        // What vertices are known to be is worked out anew.
        state.records.clear();
    }

    /// The result that a cache has for a vertex which nobody looked at, because what stands on it was found. Nothing is
    /// digested for it. One that nobody could unpack is none.
    pub fn unasked(&self, vertex: &Digest) -> Option<ImportHit> {
        match self.look_up(vertex, None)? {
            Lookup::Hit(hit) => hit.stacks.iter().all(|stack| as_imported(stack).is_some()).then_some(hit),
            Lookup::Keys => None,
        }
    }

    /// The records of content (or of a source) by which the hit's cache knows an input of its vertex. Where it may be one of
    /// several results there, only what holds for each of them.
    pub fn known_by(&self, hit: &ImportHit, input: usize) -> Vec<Digest> {
        let mut state = self.state();
        self.learn(&mut state, &hit.vertex);
        let mut known: Option<Vec<Digest>> = None;
        for output in (0..).take(hit.stacks.len()) {
            let Some(found) = state.records.get(&Edge { vertex: hit.vertex.clone(), output }) else {
                return Vec::new();
            };
            for (id, chains) in self.all_chains().filter(|((cache, _), _)| *cache == hit.cache) {
                for record in found.get(&id).into_iter().flatten() {
                    let alone = chains.alone(*record, input);
                    known = Some(match known {
                        Some(known) => {
                            let alone: HashSet<&Digest> = alone.collect();
                            known.into_iter().filter(|record| alone.contains(record)).collect()
                        }
                        None => alone.cloned().collect(),
                    });
                }
            }
        }
        let mut known = known.unwrap_or_default();
        known.sort_unstable();
        known.dedup();
        known
    }

    /// Makes sure that a layer of a hit is at another place, as it is: it is not unpacked, and does not travel where it can
    /// be had otherwise.
    ///
    /// # Errors
    /// [`PassError`].
    pub async fn pass_on(
        &self,
        hit: &ImportHit,
        layer: &Descriptor,
        stored: Stored,
        to: &Place,
    ) -> Result<(), PassError> {
        match self.caches.get(hit.cache) {
            Some(cache) => fetch::pass_on((&self.store, stored), &cache.place, layer, to).await,
            None => Ok(()),
        }
    }

    /// The name of the cache a hit came from.
    pub fn name_of(&self, hit: &ImportHit) -> &str {
        self.caches.get(hit.cache).map_or("", |cache| &cache.name)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn all_chains(&self) -> impl Iterator<Item = (ChainId, &Chains)> {
        let caches = self.caches.iter().enumerate();
        caches.flat_map(|(at, cache)| {
            cache.chains.iter().enumerate().map(move |(inner, chains)| ((at, inner), chains))
        })
    }

    /// Digests the content of inputs, unless no cache knows the operation at all.
    fn digest(&self, vertex: &Digest, known: &Known, contents: &dyn Contents) {
        let outputs: Vec<Digest> = known
            .keys
            .digests
            .iter()
            .flat_map(|digest| (0..known.outputs).map(move |output| output_digest(digest, output)))
            .collect();
        if self.all_chains().all(|(_, chains)| outputs.iter().all(|digest| chains.lacks(digest))) {
            return;
        }
        for (at, input) in known.keys.inputs.iter().enumerate() {
            let Some(paths) = &input.content else { continue };
            let key = (vertex.clone(), at);
            // Not under the lock: files are read meanwhile.
            let is_known = self.state().contents.contains_key(&key);
            if !is_known {
                let digest = contents.digest(at, paths);
                self.state().contents.insert(key, digest);
            }
        }
    }

    /// Works out what a vertex is known to be; inputs nobody asked about yet come first.
    fn learn(&self, state: &mut State, vertex: &Digest) {
        let mut open = vec![(vertex.clone(), false)];
        let mut entered = HashSet::new();
        while let Some((vertex, is_ready)) = open.pop() {
            let Some(known) = self.vertices.get(&vertex) else { continue };
            if is_ready {
                self.match_vertex(state, &vertex, known);
                continue;
            }
            if !entered.insert(vertex.clone()) {
                continue;
            }
            open.push((vertex, true));
            let unasked = known
                .inputs
                .iter()
                .filter(|input| !state.records.contains_key(input))
                .map(|input| input.vertex.clone());
            open.extend(unasked.map(|vertex| (vertex, false)));
        }
    }

    fn match_vertex(&self, state: &mut State, vertex: &Digest, known: &Known) {
        let none = Vec::new();
        for output in 0..known.outputs {
            let mut found: HashMap<ChainId, Vec<RecordId>> = HashMap::new();
            // What must run again hides what it made before, also from its users.
            if !known.ignore_cache {
                for (id, chains) in self.all_chains() {
                    let inputs: Vec<KnownInput<'_>> = known
                        .inputs
                        .iter()
                        .zip(&known.keys.inputs)
                        .enumerate()
                        .map(|(at, (edge, keys))| KnownInput {
                            records: state
                                .records
                                .get(edge)
                                .and_then(|records| records.get(&id))
                                .unwrap_or(&none),
                            selector: keys.selector.as_ref(),
                            content: state.contents.get(&(vertex.clone(), at)).and_then(Option::as_ref),
                        })
                        .collect();
                    for digest in &known.keys.digests {
                        let records = chains.matching(&output_digest(digest, output), &inputs);
                        found.entry(id).or_default().extend(records);
                    }
                }
            }
            state.records.insert(Edge { vertex: vertex.clone(), output }, found);
        }
    }

    fn stack(&self, state: &State, cache: usize, vertex: &Digest, output: u32) -> Option<LayerStack> {
        let records = state.records.get(&Edge { vertex: vertex.clone(), output })?;
        let chains = self.caches.get(cache)?.chains.iter().enumerate();
        let results = chains.flat_map(|(inner, chains)| {
            let ids = records.get(&(cache, inner)).map(Vec::as_slice).unwrap_or_default();
            ids.iter().flat_map(|id| chains.results(*id))
        });
        results
            .filter(|stack| !state.dead.contains(&(cache, digests(stack))))
            .max_by(|a, b| a.created_at.cmp(&b.created_at))
    }
}

impl fmt::Debug for Imports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Imports").field("caches", &self.caches).finish_non_exhaustive()
    }
}

impl ImportedCache {
    /// Reads the cache that lies at `place`, by the name it is shown with. `None` when there is none.
    ///
    /// # Errors
    /// [`ImportError`].
    pub async fn read(place: Place, name: String) -> Result<Option<Self>, ImportError> {
        let Some(chains) = read::chains(&place).await? else { return Ok(None) };
        Ok(Some(Self { name, place, chains }))
    }

    /// How many records it has.
    pub fn records(&self) -> usize {
        self.chains.iter().map(Chains::len).sum()
    }
}

fn digests(stack: &LayerStack) -> Vec<Digest> {
    stack.layers.iter().map(|layer| layer.digest.clone()).collect()
}

/// An error with its causes, in one line.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.map(ToString::to_string).fold(error.to_string(), |text, cause| {
        if text.contains(&cause) { text } else { format!("{text}: {cause}") }
    })
}

#[cfg(test)]
mod tests;
