//! The destinations that are not archives: the local store, a directory tree, one tar.

pub(crate) mod local;
pub(crate) mod store;
pub(crate) mod tar;
