//! What is attested of an image: in-toto statements, and the manifest that carries them.
//!
//! Owns BuildKit's layout: one manifest beside the image's in its index, for the platform
//! `unknown/unknown`, annotated with the digest it speaks of; or, when asked, an OCI artifact whose
//! subject is the image, which registries list among its referrers. Pure. Must not know what a
//! predicate says.
//!
//! Read [`AttestationManifest`] first.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;
use stave_oci::{Descriptor, Digest, Manifest, Platform, Reference, media_type};

use crate::document::{self, Document};
use crate::error::ExportErrorKind;
use crate::image::{Attestation, AttestedSubject, Image};
use crate::spec::ImageFormat;

/// The version of in-toto statements that BuildKit writes.
const STATEMENT: &str = "https://in-toto.io/Statement/v1";
/// The media type of a statement.
const IN_TOTO: &str = "application/vnd.in-toto+json";
/// What marks a statement's blob with the type of its predicate.
const PREDICATE_TYPE: &str = "in-toto.io/predicate-type";
/// Says what a manifest in an index is to another.
const REFERENCE_TYPE: &str = "vnd.docker.reference.type";
/// Says which manifest it speaks of.
const REFERENCE_DIGEST: &str = "vnd.docker.reference.digest";
/// The type of attestations that refer to their image.
const ARTIFACT: &str = "application/vnd.docker.attestation.manifest.v1+json";
/// `{}` in base64.
const EMPTY_DATA: &str = "e30=";
/// OCI's media type of a config that says nothing.
const EMPTY: &str = "application/vnd.oci.empty.v1+json";

/// The documents of one platform's attestations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AttestationManifest {
    /// Its descriptor is as the image's index names it.
    pub(crate) manifest: Document,
    pub(crate) config: Document,
    pub(crate) statements: Vec<Document>,
}

impl AttestationManifest {
    /// Its blobs, the manifest excepted.
    pub(crate) fn blobs(&self) -> impl Iterator<Item = &Document> {
        self.statements.iter().chain([&self.config])
    }
}

/// Something a statement speaks of.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Subject {
    pub(crate) name: String,
    pub(crate) digest: BTreeMap<String, String>,
}

impl Subject {
    pub(crate) fn new(name: String, digest: &Digest) -> Self {
        let algorithm = digest.as_str().split(':').next().unwrap_or_default();
        Self { name, digest: [(algorithm.to_owned(), digest.hex().to_owned())].into() }
    }
}

#[derive(Serialize)]
struct Statement<'a> {
    #[serde(rename = "_type")]
    kind: &'a str,
    #[serde(rename = "predicateType")]
    predicate_type: &'a str,
    subject: Vec<Subject>,
    predicate: Value,
}

/// The statement of `attestation` on `subjects`, as JSON.
pub(crate) fn statement(attestation: &Attestation, subjects: &[Subject]) -> Result<Vec<u8>, ExportErrorKind> {
    let invalid =
        |source| ExportErrorKind::Predicate { predicate_type: attestation.predicate_type.clone(), source };
    let predicate = match attestation.predicate.as_slice() {
        [] => Value::Null,
        predicate => serde_json::from_slice(predicate).map_err(invalid)?,
    };
    let subject = match attestation.subjects.as_slice() {
        [] => subjects.to_vec(),
        wanted => wanted.iter().flat_map(|wanted| named(wanted, subjects)).collect(),
    };
    Ok(document::json(&Statement {
        kind: STATEMENT,
        predicate_type: &attestation.predicate_type,
        subject,
        predicate,
    }))
}

fn named(wanted: &AttestedSubject, result: &[Subject]) -> Vec<Subject> {
    match wanted {
        AttestedSubject::Result => result.to_vec(),
        AttestedSubject::Other { name, digests } => {
            vec![Subject { name: name.clone(), digest: digests.clone() }]
        }
    }
}

/// The manifest of what is attested of `image`, whose own manifest is `target`; `None` if nothing is.
pub(crate) fn manifest(
    image: &Image,
    target: &Descriptor,
    names: &[Reference],
    format: &ImageFormat,
) -> Result<Option<AttestationManifest>, ExportErrorKind> {
    if image.attestations.is_empty() {
        return Ok(None);
    }
    if target.media_type != media_type::OCI_MANIFEST {
        return Err(ExportErrorKind::AttestationMediaTypes);
    }
    let subject = |name: &Reference| Subject::new(package_url(name, &image.platform), &target.digest);
    let subjects: Vec<Subject> = names.iter().map(subject).collect();
    let mut statements = Vec::new();
    for attestation in &image.attestations {
        let mut document = Document::new(IN_TOTO, statement(attestation, &subjects)?);
        let predicate_type = attestation.predicate_type.clone();
        document.descriptor.annotations.insert(PREDICATE_TYPE.to_owned(), predicate_type);
        statements.push(document);
    }
    let config = if format.artifact_attestations {
        let mut empty = Document::new(EMPTY, b"{}".to_vec());
        empty.descriptor.data = Some(EMPTY_DATA.to_owned());
        empty
    } else {
        Document::new(media_type::OCI_CONFIG, config(&statements))
    };
    let manifest = Manifest {
        schema_version: 2,
        media_type: Some(media_type::OCI_MANIFEST.to_owned()),
        artifact_type: format.artifact_attestations.then(|| ARTIFACT.to_owned()),
        config: config.descriptor.clone(),
        layers: statements.iter().map(|document| document.descriptor.clone()).collect(),
        subject: format
            .artifact_attestations
            .then(|| Descriptor::new(&target.media_type, target.digest.clone(), target.size)),
        annotations: BTreeMap::new(),
    };
    let mut manifest = Document::new(media_type::OCI_MANIFEST, document::json(&manifest));
    manifest.descriptor.platform = Some(Platform::new("unknown", "unknown", None));
    manifest.descriptor.annotations = [
        (REFERENCE_TYPE.to_owned(), "attestation-manifest".to_owned()),
        (REFERENCE_DIGEST.to_owned(), target.digest.to_string()),
    ]
    .into();
    Ok(Some(AttestationManifest { manifest, config, statements }))
}

/// A config by which readers that know nothing of attestations see an image for no platform.
fn config(statements: &[Document]) -> Vec<u8> {
    let diff_ids: Vec<&Digest> = statements.iter().map(|document| &document.descriptor.digest).collect();
    document::json(&serde_json::json!({
        "architecture": "unknown",
        "os": "unknown",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    }))
}

/// `pkg:docker/name@tag?platform=linux%2Famd64` (package-url's `docker` type).
pub fn package_url(name: &Reference, platform: &Platform) -> String {
    url_of(name, &format!("platform={}", escaped(&platform.to_string())))
}

/// The package URL of a single blob in a repository.
pub fn blob_url(name: &Reference) -> String {
    url_of(name, "ref_type=blob")
}

/// The same of a blob in a layout whose name is no image's.
pub fn layout_blob_url(name: &str, digest: &Digest) -> String {
    format!("pkg:oci/{}?digest={}&ref_type=blob", escaped_path(name), escaped(digest.as_str()))
}

fn url_of(name: &Reference, last: &str) -> String {
    let path = escaped_path(&name.familiar_name());
    let version = name.tag().map(|tag| format!("@{}", escaped(tag))).unwrap_or_default();
    let digest =
        name.digest().map(|digest| format!("digest={}&", escaped(digest.as_str()))).unwrap_or_default();
    format!("pkg:docker/{path}{version}?{digest}{last}")
}

/// Of a name the colon before a port is escaped, too.
fn escaped_path(name: &str) -> String {
    let parts: Vec<String> = name.split('/').map(|part| escaped(part).replace(':', "%3A")).collect();
    parts.join("/")
}

/// Percent-encoding of everything but what a URL never needs to quote.
fn escaped(text: &str) -> String {
    let mut found = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~:".contains(&byte) {
            found.push(char::from(byte));
        } else {
            found.push_str(&format!("%{byte:02X}"));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_of_statements() {
        let image = [Subject::new("image".to_owned(), &Digest::sha256(b"i"))];
        let named = |subjects: Vec<AttestedSubject>, predicate: &[u8]| {
            let attestation = Attestation {
                predicate_type: "t".to_owned(),
                predicate: predicate.to_vec(),
                subjects,
                ..Attestation::default()
            };
            let bytes = statement(&attestation, &image).expect("a statement");
            let value: Value = serde_json::from_slice(&bytes).expect("JSON");
            let names =
                value["subject"].as_array().expect("a list").iter().map(|one| one["name"].to_string());
            (names.collect::<Vec<_>>().join(","), value["predicate"].clone())
        };
        let other = || AttestedSubject::Other { name: "o".to_owned(), digests: BTreeMap::new() };
        assert_eq!(named(Vec::new(), b"1"), ("\"image\"".to_owned(), 1.into()));
        assert_eq!(named(vec![other()], b""), ("\"o\"".to_owned(), Value::Null));
        assert_eq!(named(vec![AttestedSubject::Result, other()], b"[]").0, "\"image\",\"o\"");
    }

    #[track_caller]
    fn check(name: &str, expected: &str) {
        let name: Reference = name.parse().expect("a name");
        assert_eq!(package_url(&name, &Platform::new("linux", "arm", Some("v7"))), expected);
    }

    #[test]
    fn package_urls() {
        check("app:1", "pkg:docker/app@1?platform=linux%2Farm%2Fv7");
        check(
            "localhost:5000/team/app",
            "pkg:docker/localhost%3A5000/team/app@latest?platform=linux%2Farm%2Fv7",
        );
        let digest = Digest::sha256(b"x");
        let blob: Reference = format!("localhost:5000/app@{digest}").parse().expect("a name");
        let expected = format!("pkg:docker/localhost%3A5000/app?digest={digest}&ref_type=blob");
        assert_eq!(blob_url(&blob), expected);
        let expected = format!("pkg:oci/My%20Store/a%3Ab?digest={digest}&ref_type=blob");
        assert_eq!(layout_blob_url("My Store/a:b", &digest), expected);
    }
}
