//! The cache config of BuildKit's cache format 0 (`cache/remotecache/v1/types/spec.go`): layers, and records
//! that chain cache keys. Plain data with the field names and omissions of the wire.
//! Start with [`CacheConfig`].

use serde::{Deserialize, Serialize};
use stave_oci::Digest;

/// Media type of a cache config.
pub const CACHE_CONFIG: &str = "application/vnd.buildkit.cacheconfig.v0";

/// The annotation with the digest of a layer's uncompressed tar.
pub const UNCOMPRESSED: &str = "containerd.io/uncompressed";

/// The annotation with the time a layer was made.
pub const CREATED_AT: &str = "buildkit/createdat";

/// Go's zero time, which stands for none.
pub const NO_TIME: &str = "0001-01-01T00:00:00Z";

/// A cache: which layers there are and which keys lead to them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CacheConfig {
    /// The layers; records and layers name them by position.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub layers: Vec<CacheLayer>,
    /// The records; they name each other by position.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub records: Vec<CacheRecord>,
}

/// One layer on another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheLayer {
    /// The blob.
    pub blob: Digest,
    /// Position of the layer below; -1 for none.
    #[serde(default, rename = "parent", skip_serializing_if = "is_zero")]
    pub parent: i64,
    /// What the manifest says of a layer elsewhere; only in caches without a manifest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<LayerAnnotations>,
}

/// What is to be known of a layer beside its digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LayerAnnotations {
    /// The blob's media type.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub media_type: String,
    /// Digest of the uncompressed tar.
    #[serde(default, rename = "diffID", skip_serializing_if = "Option::is_none")]
    pub diff_id: Option<Digest>,
    /// The blob's size in bytes.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub size: i64,
    /// When it was made.
    #[serde(default)]
    pub created_at: String,
}

/// A cache key: what it is made of, and what it leads to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheRecord {
    /// Results as a top layer with all its parents.
    #[serde(
        default,
        rename = "layers",
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "nullable"
    )]
    pub results: Vec<CacheResult>,
    /// Results as lists of layers without their parents.
    #[serde(
        default,
        rename = "chains",
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "nullable"
    )]
    pub chains: Vec<ChainedResult>,
    /// The operation's own part.
    pub digest: Digest,
    /// Per input, the records it may be.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub inputs: Vec<Vec<CacheInput>>,
}

/// A result with all layers below it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheResult {
    /// Position of the top layer.
    pub layer: i64,
    /// When it was made.
    #[serde(default, rename = "createdAt")]
    pub created_at: String,
}

/// A result by its layers, bottom first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainedResult {
    /// Positions of the layers.
    pub layers: Vec<i64>,
    /// When it was made.
    #[serde(default, rename = "createdAt")]
    pub created_at: String,
}

/// One record an input may be.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct CacheInput {
    /// The part of it that is used.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub selector: String,
    /// Position of the record.
    pub link: i64,
}

fn is_zero(number: &i64) -> bool {
    *number == 0
}

/// Go writes `null` for an empty list.
fn nullable<'de, D: serde::Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Vec<T>, D::Error> {
    Ok(Option::<Vec<T>>::deserialize(from)?.unwrap_or_default())
}
