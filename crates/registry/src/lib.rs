//! The distribution client: names become manifests and verified byte streams, and back.
//!
//! Owns resolving, pulling and pushing over the OCI distribution protocol, with authentication, mirrors,
//! retries and resumption; the credential store of `docker login`; and the registry part of the configuration.
//! Must not know: snapshots, stores, Dockerfiles, terminals, environment variables of our own.
//!
//! Start with [`Client`]; then [`ResolvedImage`], [`BlobStream`], [`Keychain`] and [`RegistryError`].

mod ahead;
mod answer;
mod auth;
mod blob;
mod client;
mod config;
mod endpoint;
mod error;
mod insecure;
mod keychain;
mod limits;
mod loaded;
mod login;
mod manifest;
mod push;
mod referrers;
mod request;
mod tags;
mod transport;
mod upload;

pub use ahead::UploadAhead;
pub use blob::BlobStream;
pub use client::{Client, ClientConfig};
pub use config::{Capability, ConfigError, KeyPair, RegistryConfig, RegistryTables};
pub use error::{
    Action, AuthFault, ErrorKind, MirrorFailure, RedirectFault, RegistryError, ResponseFault, StatusFault,
    TlsError,
};
pub use keychain::{Credential, CredentialSource, Keychain, KeychainError, Secret, StoredIn};
pub use limits::Limits;
pub use manifest::{FetchedManifest, ResolvedImage};
pub use push::{BlobContent, BlobPush, BlobSource, Progress};
