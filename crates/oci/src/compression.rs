//! How a layer's tar is compressed, and which media types say so.

use serde::{Deserialize, Serialize};

use crate::media_type;

/// The compression of a layer blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// A plain tar.
    #[serde(rename = "uncompressed")]
    None,
    /// RFC 1952, one or several members.
    Gzip,
    /// RFC 8878.
    Zstd,
}

impl Compression {
    /// BuildKit's name for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "uncompressed",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        }
    }

    /// The OCI layer media type for this compression.
    pub fn oci_media_type(self) -> &'static str {
        match self {
            Self::None => media_type::OCI_LAYER,
            Self::Gzip => media_type::OCI_LAYER_GZIP,
            Self::Zstd => media_type::OCI_LAYER_ZSTD,
        }
    }

    /// Docker's layer media type for this compression.
    pub fn docker_media_type(self) -> &'static str {
        match self {
            Self::None => media_type::DOCKER_LAYER,
            Self::Gzip => media_type::DOCKER_LAYER_GZIP,
            Self::Zstd => media_type::DOCKER_LAYER_ZSTD,
        }
    }

    /// The compression that `bytes`, the head of a blob, shows by its magic number.
    /// Archives in the wild lie in their media types; readers go by this.
    pub fn sniff(bytes: &[u8]) -> Self {
        match bytes {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            // Skippable frames open zstd:chunked and some seekable streams.
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            _ => Self::None,
        }
    }
}

/// What a layer's media type says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerMediaType {
    /// How the blob is compressed.
    pub compression: Compression,
    /// A non-distributable layer, to be fetched from the descriptor's URLs.
    pub foreign: bool,
}

/// Reads a layer media type of either family; `None` when it is not a layer's.
pub fn layer_media_type(name: &str) -> Option<LayerMediaType> {
    let (base, compression) = match name {
        media_type::DOCKER_LAYER
        | media_type::DOCKER_LAYER_GZIP
        | media_type::DOCKER_LAYER_ZSTD
        | media_type::DOCKER_FOREIGN_LAYER
        | media_type::DOCKER_FOREIGN_LAYER_GZIP => {
            let compression = match name.rsplit('.').next() {
                Some("gzip") => Compression::Gzip,
                Some("zstd") => Compression::Zstd,
                _ => Compression::None,
            };
            let foreign = name.starts_with(media_type::DOCKER_FOREIGN_LAYER);
            return Some(LayerMediaType { compression, foreign });
        }
        _ => match name.split_once('+') {
            None => (name, Compression::None),
            Some((base, "gzip")) => (base, Compression::Gzip),
            Some((base, "zstd")) => (base, Compression::Zstd),
            Some(_) => return None,
        },
    };
    match base {
        media_type::OCI_LAYER => Some(LayerMediaType { compression, foreign: false }),
        "application/vnd.oci.image.layer.nondistributable.v1.tar" => {
            Some(LayerMediaType { compression, foreign: true })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_written_media_type_reads_back() {
        for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
            for name in [compression.oci_media_type(), compression.docker_media_type()] {
                let expected = Some(LayerMediaType { compression, foreign: false });
                assert_eq!(layer_media_type(name), expected, "{name}");
            }
        }
        let foreign = layer_media_type("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip");
        assert_eq!(foreign, Some(LayerMediaType { compression: Compression::Gzip, foreign: true }));
        let foreign = [
            (media_type::DOCKER_FOREIGN_LAYER, Compression::None),
            (media_type::DOCKER_FOREIGN_LAYER_GZIP, Compression::Gzip),
        ];
        for (name, compression) in foreign {
            assert_eq!(layer_media_type(name), Some(LayerMediaType { compression, foreign: true }), "{name}");
        }
        assert_eq!(layer_media_type(media_type::OCI_CONFIG), None);
        assert_eq!(layer_media_type("application/vnd.oci.image.layer.v1.tar+xz"), None);
    }

    #[test]
    fn magic_numbers() {
        assert_eq!(Compression::sniff(&[0x1f, 0x8b, 8]), Compression::Gzip);
        assert_eq!(Compression::sniff(&[0x28, 0xb5, 0x2f, 0xfd]), Compression::Zstd);
        assert_eq!(Compression::sniff(b"etc/"), Compression::None);
        assert_eq!(Compression::sniff(b""), Compression::None);
    }
}
