//! What refers to a manifest: signatures, statements and other artifacts whose `subject` it is.
//!
//! Owns the referrers end point of the distribution specification and the tag that stands in for it at registries
//! without one (`sha256-<hex>`, an index). Must not know what any artifact says. Start with [`Client::referrers`].

use bytes::Bytes;
use reqwest::StatusCode;
use reqwest::header::{ACCEPT, HeaderMap, HeaderValue};
use stave_oci::{Descriptor, Digest, Index, ManifestError, ManifestOrIndex, Reference, media_type};

use crate::auth::ScopeSet;
use crate::client::Subject;
use crate::config::Capability;
use crate::endpoint::endpoints;
use crate::error::{Action, ErrorKind};
use crate::limits::{MAX_MANIFEST_BYTES, MAX_REFERRER_BYTES, MAX_REFERRER_PAGES};
use crate::manifest::{download, download_tagged};
use crate::request::{Call, Exchange};
use crate::tags::next_page;
use crate::{Client, RegistryError};

/// The answer's header by which a registry says that it lists referrers itself.
pub(crate) const SUBJECT_HEADER: &str = "oci-subject";

impl Client {
    /// The manifests whose subject is `subject` in a name's repository, of one artifact type or of all. Mirrors
    /// are not asked: what refers to an image changes.
    ///
    /// # Errors
    /// [`RegistryError`], save that nothing referring to it is an answer.
    pub async fn referrers(
        &self,
        name: &Reference,
        subject: &Digest,
        artifact_type: Option<&str>,
    ) -> Result<Vec<Descriptor>, RegistryError> {
        let about = Subject::of(Action::Resolve, name);
        let registry = name.registry();
        let Some(endpoint) = endpoints(&self.shared.config.registries, registry, Capability::Resolve).pop()
        else {
            return Err(about.error(registry, ErrorKind::NoEndpoint(registry.to_owned())));
        };
        let host = endpoint.host.clone();
        let listed = async {
            let scope = ScopeSet::pull(name.repository());
            let exchange = Exchange::open(&self.shared, endpoint, scope).await?;
            match listed_by_api(&exchange, name, subject).await? {
                Some(listed) => Ok(listed),
                None => Ok(listed_by_tag(&exchange, name, subject).await?.manifests),
            }
        };
        let mut listed = listed.await.map_err(|kind| about.error(&host, kind))?;
        listed.retain(|found| artifact_type.is_none() || found.artifact_type.as_deref() == artifact_type);
        Ok(listed)
    }
}

/// What a document refers to, and how a list of referrers describes it; `None` for documents without a subject.
pub(crate) fn referrer(bytes: &[u8], media_type: &str) -> Option<(Digest, Descriptor)> {
    let parsed = ManifestOrIndex::parse(bytes, Some(media_type)).ok()?;
    let (subject, artifact_type, annotations) = match parsed {
        ManifestOrIndex::Manifest(manifest) => {
            let named = manifest.artifact_type.filter(|name| !name.is_empty());
            let kind = named.unwrap_or(manifest.config.media_type);
            (manifest.subject, Some(kind), manifest.annotations)
        }
        ManifestOrIndex::Index(index) => (index.subject, index.artifact_type, index.annotations),
    };
    let mut descriptor = Descriptor::of(media_type, bytes);
    descriptor.artifact_type = artifact_type;
    descriptor.annotations = annotations;
    Some((subject?.digest, descriptor))
}

/// The list to put where a registry keeps none itself.
pub(crate) struct NewList {
    /// Its tag.
    pub(crate) tag: Reference,
    pub(crate) bytes: Bytes,
    /// The entity tag of the list it replaces, where the registry gave one.
    pub(crate) replaces: Option<String>,
}

/// The tag under which referrers are listed where a registry does not do it, with `referrer` among them; `None` if it
/// is there already.
pub(crate) async fn with_referrer(
    exchange: &Exchange,
    name: &Reference,
    subject: &Digest,
    referrer: &Descriptor,
) -> Result<Option<NewList>, ErrorKind> {
    let tag = fallback_tag(name, subject)?;
    let (mut index, replaces) = match download_tagged(exchange, &tag).await {
        Ok((found, entity_tag)) => (index(&found.bytes, &found.descriptor.media_type)?, entity_tag),
        Err(ErrorKind::NotFound) => (empty(), None),
        Err(kind) => return Err(kind),
    };
    if index.manifests.iter().any(|known| known.digest == referrer.digest) {
        return Ok(None);
    }
    index.manifests.push(referrer.clone());
    let bytes = serde_json::to_vec(&index).map_err(|source| {
        ErrorKind::Manifest(ManifestError::Json { media_type: media_type::OCI_INDEX.to_owned(), source })
    })?;
    Ok(Some(NewList { tag, bytes: bytes.into(), replaces }))
}

fn fallback_tag(name: &Reference, subject: &Digest) -> Result<Reference, ErrorKind> {
    // The specification cuts both parts to what a tag may be.
    let (algorithm, hex) = subject.as_str().split_once(':').unwrap_or_default();
    let text = format!("{}:{algorithm:.32}-{hex:.64}", name.name());
    text.parse().map_err(|_| ErrorKind::Address(text))
}

async fn listed_by_tag(exchange: &Exchange, name: &Reference, subject: &Digest) -> Result<Index, ErrorKind> {
    let found = match download(exchange, &fallback_tag(name, subject)?).await {
        Ok(found) => found,
        Err(ErrorKind::NotFound) => return Ok(empty()),
        Err(kind) => return Err(kind),
    };
    index(&found.bytes, &found.descriptor.media_type)
}

fn index(bytes: &[u8], served: &str) -> Result<Index, ErrorKind> {
    match ManifestOrIndex::parse(bytes, Some(served)).map_err(ErrorKind::Manifest)? {
        ManifestOrIndex::Index(index) => Ok(*index),
        // Somebody else's tag by that name: writing over it would lose theirs.
        ManifestOrIndex::Manifest(_) => Err(ErrorKind::Manifest(ManifestError::MediaType(served.to_owned()))),
    }
}

fn empty() -> Index {
    Index {
        schema_version: 2,
        media_type: Some(media_type::OCI_INDEX.to_owned()),
        artifact_type: None,
        manifests: Vec::new(),
        subject: None,
        annotations: std::collections::BTreeMap::new(),
    }
}

/// What the end point lists, page by page; `None` where there is no such end point.
async fn listed_by_api(
    exchange: &Exchange,
    name: &Reference,
    subject: &Digest,
) -> Result<Option<Vec<Descriptor>>, ErrorKind> {
    let mut url = exchange.url(&format!("{}/referrers/{subject}", name.repository()))?;
    let (mut listed, mut read) = (Vec::new(), 0);
    for _ in 0..MAX_REFERRER_PAGES {
        let mut call = Call::get(url);
        call.headers = HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(media_type::OCI_INDEX))]);
        let answer = exchange.send(&call).await?;
        match answer.response.status() {
            status if status.is_success() => {}
            // What registries without it say of a path they do not know.
            StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED | StatusCode::BAD_REQUEST => {
                return Ok(None);
            }
            _ => return Err(answer.fault().await.kind),
        }
        let next = next_page(&answer);
        let bytes = answer.body("list of referrers", MAX_MANIFEST_BYTES).await?;
        read += bytes.len() as u64;
        if read > MAX_REFERRER_BYTES {
            break;
        }
        listed.extend(index(&bytes, media_type::OCI_INDEX)?.manifests);
        match next {
            Some(next) => url = next,
            None => return Ok(Some(listed)),
        }
    }
    Err(ErrorKind::TooLarge { what: "list of referrers", limit: MAX_REFERRER_BYTES })
}
