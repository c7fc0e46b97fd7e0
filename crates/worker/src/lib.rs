//! Turns one LLB op and its inputs into snapshots: sources, file operations, processes, content digests.
//!
//! [`LocalWorker`] implements the solver's `Worker` on this machine: it owns how each op runs, what a local build
//! context is, how content is digested and how an image becomes layers of the store. It must not know Dockerfiles,
//! scheduling, cache lookup order or terminals. A [`Session`] carries what one build may use.
//!
//! Start with [`LocalWorker`], then [`Ref`] (what ops consume and produce) and [`Executor`].

mod context;
mod digest;
mod dispatch;
mod exec;
mod file;
mod filter;
mod input;
mod mode;
mod root;
mod rootfs;
mod run;
mod session;
mod source;
mod step;
mod tree;
mod users;
mod view;
mod worker;
mod xattr;

pub use context::{Context, ContextError};
pub use dispatch::LayersError;
pub use exec::{ExecError, Executor, Finished, MountSet, ProcessIo, ProcessSpec, SandboxExecutor};
pub use file::action::FileError;
pub use file::copy::CopyError;
pub use file::unpack::{EntryFault, UnpackError};
pub use input::SelectError;
pub use mode::ModeError;
pub use root::IoAt;
pub use rootfs::RootError;
pub use run::{Bind, RunError, RunSpec, Running};
pub use session::{Entitlements, Secret, Session, StepNetwork};
pub use source::http::HttpError;
pub use source::image::{PullProgress, Puller};
pub use source::{ImageFault, SourceError};
pub use step::{SecretFault, StepError};
pub use users::{Identity, UserError};
pub use view::ViewError;
pub use worker::{DigestError, LocalWorker, LocalWorkerConfig, MountError, Ref};
