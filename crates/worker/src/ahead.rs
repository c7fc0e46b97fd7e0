//! Digests made ahead: a layer that the image will have is read and hashed while the next step runs.
//!
//! Owns which vertices' layers are wanted and the one task that hashes at a time, so that steps keep their
//! processors. Whoever needs a digest sooner makes it, or waits for the one who is at it: that is the store's
//! affair. Must not know images. Start with [`HashAhead`].

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use stave_oci::Digest;
use stave_store::{LayerTar, Snapshot, Store};
use tokio::sync::{Semaphore, watch};

/// Layers hashed at the same time.
const AT_ONCE: usize = 1;

/// What is wanted of one build. Its drop ends the wish; what runs already ends by itself.
#[derive(Debug)]
pub struct HashAhead {
    wishes: Arc<Wishes>,
    vertices: BTreeSet<Digest>,
    clamp: watch::Sender<Option<Option<i64>>>,
}

/// The wishes of all builds of a worker.
#[derive(Debug)]
pub(crate) struct Wishes {
    by_vertex: Mutex<HashMap<Digest, watch::Receiver<Option<Option<i64>>>>>,
    turns: Arc<Semaphore>,
}

impl Default for Wishes {
    fn default() -> Self {
        Self { by_vertex: Mutex::default(), turns: Arc::new(Semaphore::new(AT_ONCE)) }
    }
}

impl HashAhead {
    pub(crate) fn new(wishes: &Arc<Wishes>, vertices: BTreeSet<Digest>) -> Self {
        let (clamp, wanted) = watch::channel(None);
        let mut by_vertex = wishes.lock();
        by_vertex.extend(vertices.iter().map(|vertex| (vertex.clone(), wanted.clone())));
        drop(by_vertex);
        Self { wishes: Arc::clone(wishes), vertices, clamp }
    }

    /// Says to which time the tars' times are clamped; nothing is hashed before that is known.
    pub fn clamped_to(&self, clamp: Option<i64>) {
        self.clamp.send_replace(Some(clamp));
    }
}

impl Drop for HashAhead {
    fn drop(&mut self) {
        let mut by_vertex = self.wishes.lock();
        for vertex in &self.vertices {
            by_vertex.remove(vertex);
        }
    }
}

impl Wishes {
    pub(crate) fn count(&self) -> usize {
        self.lock().len()
    }

    /// A vertex has made these layers.
    pub(crate) fn made(&self, store: &Store, vertex: &Digest, snapshot: &Snapshot) {
        let (Some(mut clamp), Some(layer)) = (self.lock().get(vertex).cloned(), snapshot.top()) else {
            return;
        };
        let (store, turns) = (store.clone(), Arc::clone(&self.turns));
        tokio::spawn(async move {
            let Ok(clamp) = clamp.wait_for(Option::is_some).await.map(|known| known.flatten()) else {
                return;
            };
            let Ok(_turn) = turns.acquire().await else { return };
            let hashed =
                tokio::task::spawn_blocking(move || store.tar_diff_id(LayerTar { layer, clamp })).await;
            if let Ok(Err(error)) = hashed {
                // Whoever needs it meets the same error, or none.
                tracing::debug!(%error, "a layer was not hashed ahead");
            }
        });
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Digest, watch::Receiver<Option<Option<i64>>>>> {
        self.by_vertex.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wanted_is_hashed_once_its_clamp_is_known_and_nothing_else() {
        let place = tempfile::tempdir().expect("a directory");
        let store = Store::open(place.path()).expect("a store");
        let layer = |name: &str| {
            let layer = store.prepare(&Snapshot::scratch()).expect("a layer");
            std::fs::write(layer.upper().join(name), name).expect("a file");
            layer.commit().expect("a commit")
        };
        let (wanted, other) = (layer("wanted"), layer("other"));
        let vertex = |name: &str| Digest::sha256(name.as_bytes());
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().expect("a runtime");
        runtime.block_on(async {
            let wishes = Arc::new(Wishes::default());
            let ahead = HashAhead::new(&wishes, BTreeSet::from([vertex("wanted")]));
            wishes.made(&store, &vertex("wanted"), &wanted);
            wishes.made(&store, &vertex("other"), &other);
            let known = |snapshot: &Snapshot| {
                store.known_diff_id(snapshot.top().expect("a layer")).expect("an answer")
            };
            assert_eq!(known(&wanted), None);
            ahead.clamped_to(None);
            while known(&wanted).is_none() {
                tokio::task::yield_now().await;
            }
            assert_eq!(known(&other), None);
            drop(ahead);
            assert!(wishes.lock().is_empty());
        });
    }
}
