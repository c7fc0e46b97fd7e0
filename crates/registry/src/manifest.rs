//! Names to manifests: what a tag or digest stands for, and the image in it for one platform.

use bytes::Bytes;
use reqwest::Method;
use reqwest::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, ETAG, HeaderMap, HeaderValue};
use stave_oci::{
    Descriptor, Digest, Hasher, ImageConfig, Index, Manifest, ManifestOrIndex, Platform, Reference,
    media_type,
};

use crate::answer::Answer;
use crate::auth::ScopeSet;
use crate::client::Subject;
use crate::config::Capability;
use crate::endpoint::endpoints;
use crate::error::{Action, ErrorKind, MirrorFailure};
use crate::limits::{MAX_INDEX_DEPTH, MAX_MANIFEST_BYTES};
use crate::request::{Call, Exchange};
use crate::{Client, RegistryError};

/// The document types asked for. Schema 1 is left out: a registry must not convert to it.
const ACCEPTED: [&str; 4] =
    [media_type::OCI_INDEX, media_type::DOCKER_INDEX, media_type::OCI_MANIFEST, media_type::DOCKER_MANIFEST];

/// A manifest or index as the registry sent it, verified against its digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchedManifest {
    /// Media type, digest and size. Invariant: those of `bytes`.
    pub descriptor: Descriptor,
    /// The document, byte for byte.
    pub bytes: Bytes,
}

/// One platform's image: its manifest and configuration, with what led to it.
#[derive(Debug, Clone, PartialEq)]
pub struct ResolvedImage {
    /// What the name stands for: the index if there is one, else the manifest. Pin to its digest.
    pub root: FetchedManifest,
    /// The image's own manifest; equals `root` when there is no index.
    pub manifest: FetchedManifest,
    /// `manifest`, parsed.
    pub parsed: Manifest,
    /// The image configuration's bytes, verified against `parsed.config`.
    pub config: Bytes,
}

impl ResolvedImage {
    /// The configuration, parsed.
    ///
    /// # Errors
    /// When the bytes are not an image configuration (an artifact's are not).
    pub fn image_config(&self) -> Result<ImageConfig, serde_json::Error> {
        serde_json::from_slice(&self.config)
    }
}

impl Client {
    /// Asks what a name stands for, without fetching it (`HEAD`).
    ///
    /// # Errors
    /// [`RegistryError`] with its kinds for names that are not there, may not be read, or cannot be reached.
    pub async fn resolve_digest(&self, reference: &Reference) -> Result<Descriptor, RegistryError> {
        Ok(self.ask_in_turn(reference, Ask::Descriptor).await?.descriptor)
    }

    /// Fetches what a name stands for: a manifest or an index.
    ///
    /// # Errors
    /// As [`Client::resolve_digest`], and for documents that are too large or not what their digest says.
    pub async fn fetch_manifest(&self, reference: &Reference) -> Result<FetchedManifest, RegistryError> {
        self.ask_in_turn(reference, Ask::Document).await
    }

    /// Fetches the manifest and configuration of the image for `platform`; of an index, only that one.
    /// A name that stands for a single manifest gives that, whatever its platform: its configuration says which.
    ///
    /// # Errors
    /// As [`Client::fetch_manifest`]; [`crate::ErrorKind::PlatformNotFound`] with what the index has instead.
    pub async fn resolve(
        &self,
        reference: &Reference,
        platform: &Platform,
    ) -> Result<ResolvedImage, RegistryError> {
        let subject = Subject::of(Action::Resolve, reference);
        let at_home = |kind| subject.error(reference.registry(), kind);
        let root = self.fetch_manifest(reference).await?;
        let mut manifest = root.clone();
        for _ in 0..MAX_INDEX_DEPTH {
            let parsed = ManifestOrIndex::parse(&manifest.bytes, Some(&manifest.descriptor.media_type))
                .map_err(|error| at_home(ErrorKind::Manifest(error)))?;
            match parsed {
                ManifestOrIndex::Manifest(parsed) => {
                    let config = self.fetch_small_blob(reference, &parsed.config).await?;
                    return Ok(ResolvedImage { root, manifest, parsed: *parsed, config });
                }
                ManifestOrIndex::Index(index) => {
                    let chosen = choose(&index, platform).map_err(at_home)?;
                    manifest = self.fetch_manifest(&reference.pinned(chosen.digest.clone())).await?;
                    if manifest.descriptor.size != chosen.size {
                        return Err(at_home(size_mismatch(&chosen, manifest.descriptor.size)));
                    }
                }
            }
        }
        Err(at_home(ErrorKind::IndexDepth(MAX_INDEX_DEPTH)))
    }

    /// Asks each endpoint in turn until one serves: mirrors, then the registry itself.
    async fn ask_in_turn(&self, reference: &Reference, ask: Ask) -> Result<FetchedManifest, RegistryError> {
        let subject = Subject::of(Action::Resolve, reference);
        let wanted = if reference.digest().is_some() { Capability::Pull } else { Capability::Resolve };
        let mut mirrors = Vec::new();
        let mut hosts =
            endpoints(&self.shared.config.registries, reference.registry(), wanted).into_iter().peekable();
        while let Some(endpoint) = hosts.next() {
            let host = endpoint.host.clone();
            let scope = ScopeSet::pull(reference.repository());
            let result = match Exchange::open(&self.shared, endpoint, scope).await {
                Ok(exchange) => ask.of(&exchange, reference).await,
                Err(kind) => Err(kind),
            };
            match result {
                Ok(found) => return Ok(found),
                Err(kind) if hosts.peek().is_some() => {
                    tracing::debug!(host, reason = %kind, "mirror does not serve");
                    mirrors.push(MirrorFailure { host, kind });
                }
                Err(kind) => return Err(subject.error_after(&host, kind, mirrors)),
            }
        }
        let registry = reference.registry();
        Err(subject.error(registry, ErrorKind::NoEndpoint(registry.to_owned())))
    }
}

/// How much of a manifest is wanted.
#[derive(Debug, Clone, Copy)]
enum Ask {
    /// Its descriptor; the bytes are left empty where a `HEAD` tells enough.
    Descriptor,
    Document,
}

impl Ask {
    async fn of(self, exchange: &Exchange, reference: &Reference) -> Result<FetchedManifest, ErrorKind> {
        if matches!(self, Self::Document) {
            return download(exchange, reference).await;
        }
        let answer = request_manifest(exchange, reference, Method::HEAD).await?;
        let size = answer.header(CONTENT_LENGTH.as_str()).and_then(|text| text.parse().ok());
        match (answer.digest_header()?, size) {
            (Some(digest), Some(size)) if reference.digest().is_none_or(|pinned| *pinned == digest) => {
                let media_type = essence(answer.header(CONTENT_TYPE.as_str()).unwrap_or_default());
                Ok(FetchedManifest {
                    descriptor: Descriptor::new(media_type, digest, size),
                    bytes: Bytes::new(),
                })
            }
            // Neither header is a must. The document tells.
            _ => download(exchange, reference).await,
        }
    }
}

async fn request_manifest(
    exchange: &Exchange,
    reference: &Reference,
    method: Method,
) -> Result<Answer, ErrorKind> {
    let wanted = match (reference.digest(), reference.tag()) {
        (Some(digest), _) => digest.as_str(),
        (None, tag) => tag.unwrap_or("latest"),
    };
    let url = exchange.url(&format!("{}/manifests/{wanted}", reference.repository()))?;
    let mut call = Call::new(method, url);
    call.headers = HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(accept_header()))]);
    call.is_verified = reference.digest().is_some();
    let answer = exchange.send(&call).await?;
    if answer.response.status().is_success() { Ok(answer) } else { Err(answer.fault().await.kind) }
}

fn accept_header() -> &'static str {
    static TEXT: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    TEXT.get_or_init(|| format!("{}, */*;q=0.1", ACCEPTED.join(", ")))
}

pub(crate) async fn download(
    exchange: &Exchange,
    reference: &Reference,
) -> Result<FetchedManifest, ErrorKind> {
    download_tagged(exchange, reference).await.map(|(found, _)| found)
}

/// The same with its entity tag (RFC 9110 section 8.8.3), if the registry gives one.
pub(crate) async fn download_tagged(
    exchange: &Exchange,
    reference: &Reference,
) -> Result<(FetchedManifest, Option<String>), ErrorKind> {
    let mut attempt = 1;
    loop {
        let answer = request_manifest(exchange, reference, Method::GET).await?;
        let expected = match reference.digest() {
            Some(pinned) => Some(pinned.clone()),
            None => answer.digest_header()?,
        };
        let media_type = answer.header(CONTENT_TYPE.as_str()).map(essence).unwrap_or_default().to_owned();
        let entity_tag = answer.header(ETAG.as_str()).map(str::to_owned);
        match answer.body("manifest", MAX_MANIFEST_BYTES).await {
            Ok(bytes) => return Ok((verified(bytes, &media_type, expected)?, entity_tag)),
            // A manifest is small: it is asked for again as a whole.
            Err(kind) => exchange.pause(&mut attempt, kind.into()).await?,
        }
    }
}

fn verified(bytes: Bytes, media_type: &str, expected: Option<Digest>) -> Result<FetchedManifest, ErrorKind> {
    let expected = expected.unwrap_or_else(|| Digest::sha256(&bytes));
    let mut hasher = Hasher::new(expected.algorithm());
    hasher.update(&bytes);
    let actual = hasher.finish();
    if actual != expected {
        return Err(ErrorKind::DigestMismatch { expected, actual });
    }
    // Where the server's word and the document's differ, parsing refuses; where both are silent, its form tells.
    let served = Some(media_type).filter(|name| !name.is_empty());
    let parsed = ManifestOrIndex::parse(&bytes, served).map_err(ErrorKind::Manifest)?;
    let (own, fallback) = match parsed {
        ManifestOrIndex::Manifest(manifest) => (manifest.media_type, media_type::OCI_MANIFEST),
        ManifestOrIndex::Index(index) => (index.media_type, media_type::OCI_INDEX),
    };
    let is_known = |name: &&str| media_type::is_index(name) || media_type::is_manifest(name);
    let name = own.as_deref().or(served.filter(is_known)).unwrap_or(fallback);
    Ok(FetchedManifest { descriptor: Descriptor::new(name, actual, bytes.len() as u64), bytes })
}

/// A media type without its parameters.
fn essence(content_type: &str) -> &str {
    content_type.split(';').next().unwrap_or(content_type).trim()
}

fn size_mismatch(expected: &Descriptor, actual: u64) -> ErrorKind {
    ErrorKind::SizeMismatch {
        digest: expected.digest.clone(),
        expected: expected.size,
        actual,
        at_least: false,
    }
}

/// The entry of an index for a platform: the best that the platform can run.
fn choose(index: &Index, wanted: &Platform) -> Result<Descriptor, ErrorKind> {
    let images = || {
        let is_image = |entry: &&Descriptor| {
            media_type::is_manifest(&entry.media_type) || media_type::is_index(&entry.media_type)
        };
        index.manifests.iter().filter(is_image)
    };
    for candidate in runnable(wanted) {
        let fits = |entry: &&Descriptor| entry.platform.as_ref().is_some_and(|made| made.matches(&candidate));
        if let Some(found) = images().find(fits) {
            return Ok(found.clone());
        }
    }
    let mut unnamed = images().filter(|entry| entry.platform.is_none());
    if let (Some(only), None) = (unnamed.next(), unnamed.next()) {
        return Ok(only.clone());
    }
    // Attestations are listed as images for an unknown platform.
    let available =
        images().filter_map(|entry| entry.platform.clone()).filter(|made| made.os != "unknown").collect();
    Err(ErrorKind::PlatformNotFound { wanted: Box::new(wanted.clone()), available })
}

/// What a platform can run, best first (containerd's platform vector): variants are downward compatible.
fn runnable(wanted: &Platform) -> Vec<Platform> {
    let ladder: &[&str] = match wanted.architecture.as_str() {
        "amd64" => &["v4", "v3", "v2", ""],
        "arm" => &["v8", "v7", "v6", "v5"],
        _ => return vec![wanted.clone()],
    };
    let own = wanted.variant.as_deref().unwrap_or_default();
    let Some(start) = ladder.iter().position(|variant| *variant == own) else { return vec![wanted.clone()] };
    let variant = |name: &&str| Platform {
        variant: Some((*name).to_owned()).filter(|name| !name.is_empty()),
        ..wanted.clone()
    };
    ladder[start..].iter().map(variant).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(platforms: &[&str]) -> Index {
        let entry = |name: &&str| {
            let mut entry = Descriptor::of(media_type::OCI_MANIFEST, name.as_bytes());
            entry.platform = (!name.is_empty()).then(|| name.parse().expect("a platform"));
            entry
        };
        Index {
            schema_version: 2,
            media_type: None,
            artifact_type: None,
            manifests: platforms.iter().map(entry).collect(),
            subject: None,
            annotations: Default::default(),
        }
    }

    #[track_caller]
    fn check(platforms: &[&str], wanted: &str, expected: Result<&str, &str>) {
        let found = choose(&index(platforms), &wanted.parse().expect("a platform"));
        let found = found.map(|entry| entry.digest).map_err(|error| error.to_string());
        assert_eq!(found, expected.map(|name| Digest::sha256(name.as_bytes())).map_err(str::to_owned));
    }

    #[test]
    fn chooses_the_best_image_that_runs() {
        check(&["linux/amd64", "linux/arm64"], "linux/arm64", Ok("linux/arm64"));
        check(&["linux/arm64/v8"], "linux/arm64", Ok("linux/arm64/v8"));
        check(&["linux/arm/v5", "linux/arm/v6"], "linux/arm/v7", Ok("linux/arm/v6"));
        check(&["linux/amd64", "linux/amd64/v2"], "linux/amd64/v3", Ok("linux/amd64/v2"));
        check(
            &["linux/amd64/v3"],
            "linux/amd64",
            Err("no match for platform linux/amd64: the image has linux/amd64/v3"),
        );
        check(
            &["linux/amd64", "unknown/unknown", "windows/amd64"],
            "linux/s390x",
            Err("no match for platform linux/s390x: the image has linux/amd64, windows/amd64"),
        );
        check(&[""], "linux/s390x", Ok(""));
        check(&[], "linux/s390x", Err("no match for platform linux/s390x"));
    }

    #[test]
    fn a_document_must_be_what_it_is_served_as() {
        let manifest =
            br#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#;
        let bytes = Bytes::from_static(manifest);
        let found =
            verified(bytes.clone(), "application/json", None).expect("a vague type is no contradiction");
        assert_eq!(found.descriptor.media_type, media_type::OCI_INDEX);
        assert!(matches!(
            verified(bytes.clone(), media_type::OCI_MANIFEST, None),
            Err(ErrorKind::Manifest(_))
        ));
        let other = Some(Digest::sha256(b"other"));
        assert!(matches!(verified(bytes, "", other), Err(ErrorKind::DigestMismatch { .. })));
    }
}
