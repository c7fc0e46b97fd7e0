//! What one build may use of the machine and its owner: directories, secrets, registries.
//! Plain data. Nothing here enters a digest, a snapshot, a record or an event. Read [`Session`] first.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use stave_oci::Digest;
use stave_registry::{Client, ResolvedImage};

use crate::confinement::Confinement;
use crate::namespace::Namespace;
use crate::remote::ContextProvider;
use crate::source::pins::Pins;
use crate::ssh::SshAgent;
use crate::travel::Travel;

/// What one build may use.
#[derive(Clone)]
pub struct Session {
    /// What becomes of the modes of files in local contexts.
    pub context_modes: ContextModes,
    /// Local build contexts by name (`context`, `dockerfile`, …): directories of this machine.
    pub contexts: BTreeMap<String, PathBuf>,
    /// Gives the local contexts that are not in `contexts`: those of a client elsewhere.
    pub remote: Option<Arc<dyn ContextProvider>>,
    /// OCI image layouts by name: directories of this machine.
    pub layouts: BTreeMap<String, PathBuf>,
    /// ssh agents by id.
    pub ssh: BTreeMap<String, SshAgent>,
    /// Host keys that the build's owner trusts, in the form of `known_hosts`.
    pub known_hosts: Option<String>,
    /// What moving sources turned out to be.
    pub pins: Pins,
    /// Secret values by id.
    pub secrets: BTreeMap<String, Secret>,
    /// Registries, with credentials.
    pub registry: Client,
    /// Whether a registry is asked what a tag stands for before the store is.
    pub asks_for_tags: bool,
    /// Images that were resolved before the build, by the digest they are pinned to. They are not asked for again.
    pub resolved: BTreeMap<Digest, ResolvedImage>,
    /// Caches this build brings from elsewhere and makes for elsewhere.
    pub travel: Option<Arc<Travel>>,
    /// How far steps may go.
    pub confinement: Confinement,
    /// Whose directories, images and records it may find again.
    pub namespace: Namespace,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let secrets: Vec<&String> = self.secrets.keys().collect();
        f.debug_struct("Session")
            .field("contexts", &self.contexts)
            .field("secrets", &secrets)
            .finish_non_exhaustive()
    }
}

/// What becomes of the modes of files in local contexts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ContextModes {
    /// They stay as they are, as docker has it.
    #[default]
    Kept,
    /// As git keeps them: 0755 for directories and what its owner may execute, 0644 for the rest. Two machines with
    /// other umasks then agree.
    Git,
}

/// The network a step gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub enum StepNetwork {
    /// The host's.
    #[default]
    Host,
    /// Loopback only.
    None,
    /// One of its own on a bridge with NAT; where the kernel lets an ordinary user make none, one that a program in user
    /// space connects to the host's.
    Bridge,
    /// One of its own that this program connects to the host's.
    User(stave_sandbox::UserNetworkProgram),
}

/// Where a secret's value is.
#[derive(Clone, PartialEq, Eq)]
pub enum Secret {
    /// In memory.
    Value(Vec<u8>),
    /// In a file, read when a step asks for it.
    File(PathBuf),
}

/// Never shows a value.
impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Value(_) => f.write_str("Value(…)"),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
        }
    }
}
