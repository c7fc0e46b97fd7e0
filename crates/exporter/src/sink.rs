//! The destinations that are not archives: the local store, other engines, a directory tree, one tar.

pub(crate) mod engine;
pub(crate) mod local;
pub(crate) mod store;
pub(crate) mod tar;
