//! What a build says of its result: how it was made (SLSA provenance) and what is in it (an SBOM).
//!
//! Owns what can be asked for. Must not know how statements travel: the exporter does. Start with
//! [`Attest`]; `provenance` makes predicates, `sbom` runs scanners.

mod provenance;
mod sbom;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};
use stave_llb::SourceOp;
use stave_oci::Reference;

pub(crate) use provenance::Facts;
pub use provenance::{Material, redacted};
pub(crate) use sbom::{SPDX, Scanned, read, scan};

/// The scanner of `--sbom=true`, as BuildKit's.
pub const DEFAULT_SCANNER: &str = "docker/buildkit-syft-scanner:stable-1";

/// The front end that reads Dockerfiles, as BuildKit names it.
pub const FRONTEND: &str = "dockerfile.v0";

/// What was asked of which front end.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Asked {
    /// Its name; empty where somebody brought a graph.
    pub frontend: String,
    /// Its options, by BuildKit's names. Credentials in addresses are made unreadable.
    pub args: BTreeMap<String, String>,
    /// The address of the context that the Dockerfile came from, where that is one.
    pub context: Option<String>,
    /// The Dockerfile's path.
    pub filename: Option<String>,
    /// Directories that were read beside those in the graph.
    pub locals: BTreeSet<String>,
    /// Sources that were read beside those in the graph.
    pub sources: Vec<SourceOp>,
    /// What the client says of its repository.
    pub vcs: BTreeMap<String, String>,
    /// What the builder's owner says of it.
    pub environment: Map<String, Value>,
    /// The version of the Dockerfile language.
    pub language: Option<String>,
    /// What made the graphs that went in, by their names.
    pub inputs: BTreeMap<String, Self>,
    /// What the client asked for that asked for this.
    pub root: Option<Box<Self>>,
}

/// What is to be attested; by default nothing is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Attest {
    /// How the result was made.
    pub provenance: Option<Provenance>,
    /// What is in it.
    pub sbom: Option<Sbom>,
}

/// A provenance attestation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Provenance {
    /// How much it tells.
    pub mode: ProvenanceMode,
    /// The version of the predicate.
    pub version: SlsaVersion,
    /// Who built; empty for nobody in particular.
    pub builder_id: String,
    /// Whether the owner says that the build can be done again with the same result.
    pub reproducible: bool,
    /// Whether a build with inputs that cannot be named must fail.
    pub complete_materials: bool,
}

/// How much a provenance attestation tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ProvenanceMode {
    /// Sources and times; no build arguments, no steps.
    Min,
    /// Everything, with the steps and the Dockerfile.
    #[default]
    Max,
}

/// A version of SLSA's provenance predicate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SlsaVersion {
    /// `v0.2`.
    V02,
    /// `v1`.
    #[default]
    V1,
}

/// A bill of materials, made by a scanner image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sbom {
    /// The scanner image.
    pub generator: Reference,
    /// `BUILDKIT_SCAN_<NAME>` variables for it.
    pub parameters: BTreeMap<String, String>,
}

/// Why a result could not be attested.
#[derive(Debug, thiserror::Error)]
pub enum AttestError {
    /// The scanner image says nothing about what to run.
    #[error("scanner {0} does not have cmd")]
    NoCommand(Reference),
    /// The scanner image's config is not one.
    #[error("malformed config of scanner {scanner}")]
    Config {
        /// The image.
        scanner: Reference,
        /// What is wrong.
        #[source]
        source: serde_json::Error,
    },
    /// What the scanner wrote is not a statement.
    #[error("cannot decode in-toto statement `{file}`")]
    Statement {
        /// Its file.
        file: String,
        /// What is wrong.
        #[source]
        source: serde_json::Error,
    },
    /// A statement of another type than asked for.
    #[error("bundle entry {found} does not match required predicate type {expected}")]
    PredicateType {
        /// As written.
        found: String,
        /// As asked for.
        expected: &'static str,
    },
    /// The scanner wrote something that is no file, or too much.
    #[error("`{file}` of the scanner is not a regular file of at most {limit} bytes")]
    File {
        /// Which.
        file: String,
        /// The limit.
        limit: u64,
    },
    /// The scanner wrote nothing.
    #[error("scanner {0} wrote no statement")]
    Nothing(Reference),
    /// Inputs that cannot be named, where all must be.
    #[error("provenance with complete materials was requested, but the build reads the local source `{0}`")]
    IncompleteMaterials(String),
    /// Reading the scanner's files failed.
    #[error("failed to read what the scanner wrote")]
    Read(#[from] std::io::Error),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] stave_store::StoreError),
}
