//! Everything on disk: layers, blobs, images, leases, garbage collection.
//!
//! Owns the state directory: no other crate knows a path in it. Must not know operations,
//! Dockerfiles or networks. Several processes share one store without a daemon, and any of them may
//! die at any instant.
//!
//! ```text
//! <root>/store.db        what exists (SQLite, WAL); a directory or file without a row is rubbish
//! <root>/journal         what `store.db` says of layers and images, to make it again from
//! <root>/cache.db        the build cache's index (crate `cache` owns its content)
//! <root>/l/<name>/       one overlay-format layer: what an overlay mount's upper directory held
//! <root>/blobs/sha256/   compressed layers and other content, named by digest
//! <root>/builds/         records and logs of builds (crate `engine` owns their content)
//! <root>/mutable/        cache mounts: directories that outlive builds, with their locks
//! <root>/reserve         blocks that are given up when something is removed on a full disk
//! <root>/sessions/<slot> one flock'ed file per open store; not locked and not empty: its owner died
//! <root>/tmp/<slot>/     everything a session has not finished; swept when its owner is dead
//! ```
//!
//! Everything is made under `tmp/`, renamed into place inside the write transaction that inserts its
//! row, and leaves by the same way back. So a kill at any instant leaves either the whole thing or
//! something in `tmp/` (or a file without a row, which the sweep of the dead session removes).
//!
//! Start with [`Store`], [`Snapshot`] and [`Lease`]. What a power cut may take is told in `durability`.

mod apply;
mod blob;
mod cap;
mod clamp;
mod database;
mod diff;
mod doctor;
mod durability;
mod error;
mod explicit;
mod fault;
mod flat;
mod growth;
mod hashing;
mod image;
mod image_set;
mod inside;
mod journal;
mod layer;
mod lease;
mod limits;
mod listing;
mod mutable;
pub mod owner;
mod prune;
mod reaper;
mod reconcile;
mod removal;
mod reserve;
mod session;
mod snapshot;
mod store;
#[cfg(test)]
mod tests;
mod transplant;
mod usage;
mod view;

pub use apply::{AbsoluteNames, AppliedLayer, ApplyOptions, LayerLimits};
pub use blob::BlobWriter;
pub use cap::LayerRoom;
pub use clamp::{LayerTar, context_time, is_context_time, without_mark};
pub use diff::{TarOptions, Timestamps};
pub use doctor::{Finding, FindingKind, FindingState, examine};
pub use error::{DatabaseError, LayerError, LayerErrorKind, StoreError};
pub use flat::{FlatTree, Left, Taking};
pub use growth::{Announcements, Glance, Growth};
pub use image::{ImageLayer, ListedImage, LocalImage, StoredManifest};
pub use image_set::{NamedImages, StoredAttestation, StoredIndex};
pub use inside::open_inside;
pub use layer::ActiveLayer;
pub use lease::Lease;
pub use limits::{DiskPolicy, FilterError, GcRule, KeepLimits, TextTest, UsageFilter};
pub use listing::LayerItem;
pub use mutable::{MutableDir, Sharing};
pub use prune::{ImagePrune, PruneRequest, Pruned};
pub use reserve::{GivenUp, give_up};
pub use snapshot::{LayerId, Snapshot, SnapshotError};
pub use store::{OverlayXattrs, ScratchDir, Store, StoreConfig};
pub use transplant::copy_tree;
pub use usage::{DiskUsage, UsageId, UsageKind, UsageRecord};
pub use view::{MergedEntry, MergedView, Walk};
