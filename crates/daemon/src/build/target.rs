//! The results of a build, each a graph.
//!
//! They are lazy: a graph is solved when somebody first needs its files. Must not know who asks. Start with [`Target`].

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use bollard_buildkit_proto::pb;
use stave_engine::ImageLayers;
use stave_engine::attest::{Asked, Material};
use stave_llb::Definition;
use stave_oci::Digest;
use stave_registry::ResolvedImage;
use stave_store::Snapshot;
use stave_worker::Session;
use tokio::sync::OnceCell;

use crate::failure::Failure;

/// One result: a graph, and its files once somebody needed them.
#[derive(Debug)]
pub(crate) struct Target {
    /// What the client calls it; hard to guess.
    pub(crate) id: String,
    /// The graph.
    pub(crate) definition: Definition,
    /// The graph as clients get it back.
    pub(crate) message: pb::Definition,
    /// The time its files are to carry.
    pub(crate) epoch: Option<i64>,
    /// How it came about.
    pub(crate) origin: Origin,
    pub(super) resolved: BTreeMap<Digest, ResolvedImage>,
    pub(super) session: OnceLock<Arc<Session>>,
    pub(super) solved: OnceCell<Result<Snapshot, Failure>>,
}

/// How a graph came about.
#[derive(Debug, Default)]
pub(crate) struct Origin {
    /// What was asked for.
    pub(crate) asked: Asked,
    /// The images that went in; `None` where only the graph tells.
    pub(crate) materials: Option<Vec<Material>>,
    /// The layers of these images, as caches know them.
    pub(crate) layers: ImageLayers,
    /// What a bill of materials looks at beside the result, by name.
    pub(crate) scanned: BTreeMap<String, Definition>,
}

impl Target {
    /// What its steps used, once they have run.
    pub(crate) fn session(&self) -> Option<&Arc<Session>> {
        self.session.get()
    }
}
