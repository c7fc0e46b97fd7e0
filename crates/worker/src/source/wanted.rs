//! What the attributes of an image source ask beside its name: how it is looked for, what its digest must be, how many
//! of its layers. Must not know registries. Read [`ImageWanted`] first.

use stave_llb::SourceOp;
use stave_oci::{Digest, Reference};
use stave_store::{LocalImage, Snapshot};

use super::{ImageFault, SourceError};

/// Attributes of an image source.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct ImageWanted {
    /// What the name must stand for.
    pub(crate) checksum: Option<Digest>,
    /// As many layers from the bottom.
    layers: Option<usize>,
    /// Whether the store comes first.
    is_local_first: bool,
}

impl ImageWanted {
    /// Reads `image.checksum`, `image.layerlimit` and `image.resolvemode`.
    pub(crate) fn new(op: &SourceOp) -> Result<Self, SourceError> {
        let text = |name: &str| op.attrs.get(name).filter(|value| !value.is_empty());
        let invalid = |what, value: &str| SourceError::ImageAttribute { what, value: value.to_owned() };
        let checksum = text("image.checksum");
        let checksum =
            checksum.map(|value| value.parse().map_err(|_| invalid("image checksum", value))).transpose()?;
        let limit = |value: &String| match value.parse::<usize>() {
            Ok(limit) if limit > 0 => Ok(limit),
            _ => Err(invalid("layer limit", value)),
        };
        let layers = op.attrs.get("image.layerlimit").map(limit).transpose()?;
        let is_local_first = text("image.resolvemode").is_some_and(|mode| mode == "local");
        Ok(Self { checksum, layers, is_local_first })
    }

    /// Whether a registry is asked although the store may have something of this name.
    pub(crate) fn asks(&self, name: &Reference, asks_for_tags: bool) -> bool {
        self.checksum.is_some() || (asks_for_tags && name.digest().is_none() && !self.is_local_first)
    }

    /// Refuses another image than the one that was asked for.
    pub(crate) fn check(&self, name: &Reference, found: &Digest) -> Result<(), SourceError> {
        match &self.checksum {
            Some(expected) if expected != found => {
                let fault = ImageFault::Checksum {
                    found: found.clone(),
                    image: name.canonical(),
                    expected: expected.clone(),
                };
                Err(SourceError::Image { image: name.clone(), fault: Box::new(fault) })
            }
            _ => Ok(()),
        }
    }

    /// The layers that are wanted of an image.
    pub(crate) fn layers_of(&self, name: &Reference, image: &LocalImage) -> Result<Snapshot, SourceError> {
        let whole = image.snapshot();
        match self.layers {
            None => Ok(whole),
            Some(limit) => match whole.layers().get(..limit) {
                Some(layers) => Ok(Snapshot::new(layers.to_vec())),
                None => {
                    let fault = ImageFault::LayerLimit { limit, layers: whole.layers().len() };
                    Err(SourceError::Image { image: name.clone(), fault: Box::new(fault) })
                }
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(attrs: &[(&str, &str)]) -> Result<ImageWanted, String> {
        let attrs = attrs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        ImageWanted::new(&SourceOp::new("docker-image://a.b/c:1", attrs)).map_err(|error| error.to_string())
    }

    #[test]
    fn attributes() {
        let (tag, pin): (Reference, _) = ("a.b/c:1".parse().expect("valid"), Digest::sha256(b"x"));
        let plain = wanted(&[]).expect("valid");
        assert!(
            plain.asks(&tag, true) && !plain.asks(&tag, false) && !plain.asks(&tag.pinned(pin.clone()), true)
        );
        assert!(!wanted(&[("image.resolvemode", "local")]).expect("valid").asks(&tag, true));
        let checked = wanted(&[("image.checksum", pin.as_str())]).expect("valid");
        assert!(checked.asks(&tag, false) && checked.check(&tag, &pin).is_ok());
        let other = Digest::sha256(b"y");
        let error = checked.check(&tag, &other).expect_err("another image").to_string();
        let expected = format!("image digest {other} for a.b/c:1 does not match expected checksum {pin}");
        assert!(error.ends_with(&expected), "{error}");
        for limit in ["0", "-1", "x", ""] {
            let error = wanted(&[("image.layerlimit", limit)]).expect_err("no limit");
            assert_eq!(error, format!("invalid layer limit {limit}"));
        }
        assert_eq!(wanted(&[("image.checksum", "x")]).expect_err("no digest"), "invalid image checksum x");
    }
}
