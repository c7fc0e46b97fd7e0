//! Caches that travel: what one machine built, found by another.
//!
//! Owns BuildKit's cache formats: its keys ([`key`]), its records ([`config`], [`chains`], [`builder`]), the
//! options of `--cache-to` and `--cache-from` ([`spec`]), and the places caches lie in ([`place`]). Must not know
//! how operations run, snapshots' content, or the keys of the local cache.
//!
//! Start with [`chains::Chains`].

pub mod builder;
pub mod chains;
pub mod config;
pub mod export;
pub mod import;
pub mod key;
pub mod mounts;
pub mod place;
pub mod spec;
