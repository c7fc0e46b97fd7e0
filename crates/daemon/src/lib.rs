//! BuildKit's gRPC API over the engine: what `buildctl`, `docker buildx` and their like drive.
//!
//! Owns the protocol: the services, the sessions in which clients serve their files, credentials, secrets and agents,
//! fsutil, and the life of a client's build. Must not know how anything is built, stored or fetched: that is the
//! engine's; nor flags and terminals. Everything a client sends is taken for hostile and bounded.
//!
//! Start with [`Daemon`]; behind it `control` is the service clients talk to first, and `control::solve` a build from
//! top to bottom.

mod audit;
mod build;
mod caps;
pub mod client;
pub mod config;
mod content;
mod control;
mod export;
mod failure;
mod frontend;
mod fsutil;
mod gateway;
mod health;
mod history;
mod holdings;
mod identity;
mod metrics;
mod monitor;
mod outcome;
mod policy;
mod progress;
mod server;
mod session;
mod settings;
mod state;
mod statements;
mod supervisor;
mod tenants;
mod traces;
mod wanted;
mod web;
mod workers;

pub use config::{
    Address, AddressError, DaemonConfig, FileConfig, FrontEndTables, FrontEnds, InheritedSocket, Listener,
    Reload, Reloaded, TlsIdentity, WebPage, WorkerConfig,
};
pub use server::{Daemon, DaemonError};
pub use tenants::{Quota, Tenancy, TenancyConfig, TenancyError};
pub use web::page_of;
