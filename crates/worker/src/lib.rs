//! Turns one LLB op and its inputs into snapshots: sources, file operations, processes, content digests.
//!
//! [`LocalWorker`] implements the solver's `Worker` on this machine: it owns how each op runs, what a local build
//! context is, how content is digested and how an image becomes layers of the store. It must not know Dockerfiles,
//! scheduling, cache lookup order or terminals. A [`Session`] carries what one build may use.
//!
//! Start with [`LocalWorker`], then [`Ref`] (what ops consume and produce) and [`Executor`].

mod abandon;
mod admission;
mod ahead;
mod authorities;
mod base;
mod cdi;
mod confinement;
mod contenthash;
mod context;
mod digest;
mod dispatch;
mod exec;
mod file;
mod filter;
mod holdings;
mod input;
pub mod keyed;
mod layer_place;
pub mod manifest;
mod mode;
mod namespace;
mod networks;
mod reading;
mod recent;
mod redact;
mod remote;
mod root;
mod rootfs;
mod run;
mod scratch;
mod secret_scan;
mod session;
mod source;
mod ssh;
mod starts;
mod step;
mod travel;
mod tree;
mod users;
mod view;
mod watch;
mod worker;
mod xattr;

pub use ahead::HashAhead;
pub use cdi::{DeviceError, SPEC_DIRECTORIES};
pub use confinement::{Confinement, DeviceGrant, EntitlementError, Entitlements};
pub use context::{Context, ContextError};
pub use dispatch::{LayersError, snapshots_of};
pub use exec::{
    ExecError, Executor, Finished, LocalExecutor, MountSet, ProcessIo, ProcessSpec, ProcessUsage,
    RuntimeError, RuntimeExecutor, SandboxExecutor, StepLog, TreeError,
};
pub use file::action::FileError;
pub use file::copy::CopyError;
pub use file::decoder::{decompressed, is_compressed};
pub use file::unpack::{EntryFault, UnpackError};
pub use holdings::WorkerHoldings;
pub use input::SelectError;
pub use mode::ModeError;
pub use namespace::{CLIENT_DIRECTORY, Namespace, is_cache_mount_id};
pub use networks::NetworkError;
pub use reading::{Extent, ReadError};
pub use remote::{ContextFetchError, ContextProvider, ContextRequest, Differ, FetchedContext};
pub use root::IoAt;
pub use rootfs::RootError;
pub use run::{Bind, RunError, RunSpec, Running};
pub use secret_scan::{KnownSecrets, SecretLeak};
pub use session::{ContextModes, Secret, Session, StepNetwork};
pub use source::describe::SourceFacts;
pub use source::git::{GitError, GitFailure, GitObjects, GitPin};
pub use source::http::{HttpError, HttpPin, host_secrets};
pub use source::image::{PullProgress, Puller};
pub use source::index::IndexSurvey;
pub use source::layout::{LayoutError, LayoutImage, OciLayout};
pub use source::pins::{Pinned, Pins};
pub use source::{ImageFault, SourceError};
pub use ssh::{AgentConnector, AgentStream, DEFAULT_AGENT, KeyError, SshAgent, SshKeys};
pub use stave_sandbox::{ExitStatus, Stdio, TerminalSize};
pub use step::container::{Container, ContainerEntry, ContainerProcess, ContainerSpec};
pub use step::failed::{Enter, FailedStep};
pub use step::{SecretFault, StepError};
pub use travel::{Listener, Travel, TravelResult, is_cache_mount};
pub use users::{Identity, UserError};
pub use view::ViewError;
pub use worker::{DigestError, LocalWorker, LocalWorkerConfig, MountError, Ref};
