//! Annotations as options: which document of which platform, and what to write there.
//!
//! Owns both spellings: the exporter's keys (`annotation-index.NAME=VALUE`) and docker's
//! `--annotation [TYPE[,TYPE…][PLATFORM]:]NAME=VALUE`. Pure.

use std::collections::BTreeMap;
use std::str::FromStr;

use stave_oci::Platform;

use super::Annotations;

/// One annotation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Annotation {
    /// The documents it goes on; never empty.
    pub levels: Vec<(AnnotationLevel, Option<Platform>)>,
    /// Its name.
    pub key: String,
    /// Its value.
    pub value: String,
}

/// The document an annotation goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AnnotationLevel {
    /// The image manifest.
    Manifest,
    /// The manifest's descriptor in the index.
    ManifestDescriptor,
    /// The index.
    Index,
    /// The index's descriptor in an image layout.
    IndexDescriptor,
}

/// Text that is no annotation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AnnotationError {
    /// No `=`, or no name before it.
    #[error("invalid annotation {0:?}: expected `[TYPE[PLATFORM]:]NAME=VALUE`")]
    Form(String),
    /// A type nobody knows.
    #[error(
        "unknown annotation type {0:?}: expected `manifest`, `index`, `manifest-descriptor` or `index-descriptor`"
    )]
    Type(String),
    /// Not a platform.
    #[error("invalid platform {0:?} in an annotation")]
    Platform(String),
}

impl AnnotationLevel {
    fn parse(text: &str) -> Option<Self> {
        match text {
            "manifest" => Some(Self::Manifest),
            "manifest-descriptor" => Some(Self::ManifestDescriptor),
            "index" => Some(Self::Index),
            "index-descriptor" => Some(Self::IndexDescriptor),
            _ => None,
        }
    }
}

impl FromStr for Annotation {
    type Err = AnnotationError;

    fn from_str(text: &str) -> Result<Self, AnnotationError> {
        let form = || AnnotationError::Form(text.to_owned());
        let (name, value) = text.split_once('=').ok_or_else(form)?;
        // A platform in brackets may hold no colon; a name may: only a known type is one.
        let (levels, key) = match name.split_once(':') {
            Some((types, key)) if is_typed(types) => (levels(types)?, key),
            _ => (vec![(AnnotationLevel::Manifest, None)], name),
        };
        if key.is_empty() {
            return Err(form());
        }
        Ok(Self { levels, key: key.to_owned(), value: value.to_owned() })
    }
}

fn is_typed(text: &str) -> bool {
    ["manifest", "index"].iter().any(|kind| text.starts_with(kind))
}

fn levels(types: &str) -> Result<Vec<(AnnotationLevel, Option<Platform>)>, AnnotationError> {
    types.split(',').map(level).collect()
}

fn level(text: &str) -> Result<(AnnotationLevel, Option<Platform>), AnnotationError> {
    let (kind, platform) = match text.split_once('[') {
        None => (text, None),
        Some((kind, rest)) => {
            let wrong = || AnnotationError::Platform(text.to_owned());
            let platform = rest.strip_suffix(']').ok_or_else(wrong)?;
            (kind, Some(platform.parse::<Platform>().map_err(|_| wrong())?))
        }
    };
    let level = AnnotationLevel::parse(kind).ok_or_else(|| AnnotationError::Type(kind.to_owned()))?;
    Ok((level, platform))
}

/// An exporter's key (`annotation-manifest[linux/arm64].NAME`) and its value.
pub(super) fn from_key(key: &str, value: &str) -> Option<Annotation> {
    let rest = key.strip_prefix("annotation")?;
    let (kind, name) = match rest.find(['[', '.'])? {
        0 if rest.starts_with('.') => ("manifest".to_owned(), &rest[1..]),
        _ => {
            // Platforms hold no dot; the first one after the bracket, if there is one, ends the type.
            let after = rest.find(']').unwrap_or(0);
            let dot = after + rest[after..].find('.')?;
            let kind = rest[..dot]
                .strip_prefix('-')
                .map_or_else(|| format!("manifest{}", &rest[..dot]), str::to_owned);
            (kind, &rest[dot + 1..])
        }
    };
    if name.is_empty() {
        return None;
    }
    Some(Annotation { levels: vec![level(&kind).ok()?], key: name.to_owned(), value: value.to_owned() })
}

impl Annotations {
    /// Adds one; those of an index are for all platforms.
    pub fn add(&mut self, annotation: Annotation) {
        let Annotation { levels, key, value } = annotation;
        for (level, platform) in levels {
            let slot: &mut BTreeMap<String, String> = match (level, platform) {
                (AnnotationLevel::Index, _) => &mut self.index,
                (AnnotationLevel::IndexDescriptor, _) => &mut self.index_descriptor,
                (AnnotationLevel::Manifest, None) => &mut self.manifest,
                (AnnotationLevel::ManifestDescriptor, None) => &mut self.manifest_descriptor,
                (AnnotationLevel::Manifest, Some(platform)) => {
                    &mut self.platforms.entry(platform.to_string()).or_default().manifest
                }
                (AnnotationLevel::ManifestDescriptor, Some(platform)) => {
                    &mut self.platforms.entry(platform.to_string()).or_default().manifest_descriptor
                }
            };
            slot.insert(key.clone(), value.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use AnnotationLevel::{Index, Manifest, ManifestDescriptor};

    #[track_caller]
    fn check(text: &str, levels: &[(AnnotationLevel, Option<&str>)], key: &str, value: &str) {
        let platform = |text: &&str| text.parse::<Platform>().expect("a platform");
        let levels = levels.iter().map(|(level, on)| (*level, on.as_ref().map(platform))).collect();
        let expected = Annotation { levels, key: key.to_owned(), value: value.to_owned() };
        assert_eq!(text.parse(), Ok(expected), "{text}");
    }

    #[test]
    fn dockers_flag() {
        check("a=b", &[(Manifest, None)], "a", "b");
        check("org.x:y=b=c", &[(Manifest, None)], "org.x:y", "b=c");
        check("index:a=b", &[(Index, None)], "a", "b");
        check("index,manifest:a=", &[(Index, None), (Manifest, None)], "a", "");
        check("manifest[linux/arm64]:a=b", &[(Manifest, Some("linux/arm64"))], "a", "b");
        check(
            "manifest-descriptor[linux/amd64],manifest:a=b",
            &[(ManifestDescriptor, Some("linux/amd64")), (Manifest, None)],
            "a",
            "b",
        );
        for wrong in ["a", "=b", "index:=b", "manifest[linux:a=b", "indexes:a=b"] {
            assert!(wrong.parse::<Annotation>().is_err(), "{wrong}");
        }
    }

    #[track_caller]
    fn check_key(key: &str, expected: Option<(AnnotationLevel, Option<&str>, &str)>) {
        let found = from_key(key, "v").map(|mut found| {
            let (level, platform) = found.levels.remove(0);
            (level, platform.map(|platform| platform.to_string()), found.key)
        });
        let expected = expected.map(|(level, on, key)| (level, on.map(str::to_owned), key.to_owned()));
        assert_eq!(found, expected, "{key}");
    }

    #[test]
    fn exporters_keys() {
        check_key("annotation.org.x", Some((Manifest, None, "org.x")));
        check_key("annotation-manifest.x", Some((Manifest, None, "x")));
        check_key("annotation-manifest-descriptor.x", Some((ManifestDescriptor, None, "x")));
        check_key("annotation-index.x.y", Some((Index, None, "x.y")));
        check_key("annotation[linux/arm64].x", Some((Manifest, Some("linux/arm64"), "x")));
        check_key(
            "annotation-manifest-descriptor[linux/arm/v7].x",
            Some((ManifestDescriptor, Some("linux/arm/v7"), "x")),
        );
        for wrong in ["annotation", "annotation.", "annotation-x.y", "annotations.y", "annotation[q"] {
            check_key(wrong, None);
        }
    }
}
