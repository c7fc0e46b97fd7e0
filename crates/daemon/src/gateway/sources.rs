//! What a front end wants to know of sources before it makes a graph of them: after the rules of the build, which may put
//! another source in the place of one. Start with [`metadata`].

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::Path;

use bollard_buildkit_proto::google::protobuf::Timestamp;
use bollard_buildkit_proto::moby::buildkit::v1::frontend::checksum_request::ChecksumAlgo;
use bollard_buildkit_proto::moby::buildkit::v1::frontend::{
    ChecksumRequest, ChecksumResponse, ResolveImageConfigRequest, ResolveImageConfigResponse,
    ResolveSourceGitResponse, ResolveSourceHttpResponse, ResolveSourceImageRequest,
    ResolveSourceImageResponse, ResolveSourceMetaRequest, ResolveSourceMetaResponse,
};
use bollard_buildkit_proto::pb;
use sha2::{Digest as _, Sha384};
use stave_engine::PullPolicy;
use stave_llb::policy::SourcePolicies;
use stave_llb::{SourceIdentifier, SourceOp};
use stave_oci::{Algorithm, Digest, Hasher, Platform, Reference};
use stave_worker::{GitObjects, GitPin, HttpPin, SourceFacts};
use tonic::Request;

use super::Gateway;
use super::attested;
use crate::build::Build;
use crate::failure::Failure;
use crate::policy::of_messages;

/// The kind of [`ResolveImageConfigRequest`] that asks for an image in a layout of a client.
const OCI_LAYOUT: i32 = 1;
/// Most bytes that may be put behind a download before it is digested.
const MAX_SUFFIX: usize = 1 << 20;
/// Bytes of a download read at once.
const BUFFER: usize = 256 << 10;

pub(super) async fn image_config(
    gateway: &Gateway,
    request: Request<ResolveImageConfigRequest>,
) -> Result<ResolveImageConfigResponse, Failure> {
    let build = gateway.build(request.metadata()).await?;
    let request = request.into_inner();
    let policies = build.policies(of_messages(request.source_policies)?)?;
    let (name, wanted) = (&request.r#ref, platform(request.platform.as_ref()));
    if request.resolver_type == OCI_LAYOUT {
        let (digest, config) = in_layout(&build, name, &request.store_id, &wanted).await?;
        return Ok(ResolveImageConfigResponse { digest: digest.to_string(), config, r#ref: name.clone() });
    }
    let reference = image_under(&policies, &named(name)?)?;
    let reference = verified_image(&build, reference, &wanted, &policies).await?;
    let (digest, config) = resolve(&build, &reference, &wanted, &request.resolve_mode).await?;
    Ok(ResolveImageConfigResponse { digest: digest.to_string(), config, r#ref: reference.canonical() })
}

pub(super) async fn metadata(
    gateway: &Gateway,
    request: Request<ResolveSourceMetaRequest>,
) -> Result<ResolveSourceMetaResponse, Failure> {
    let build = gateway.build(request.metadata()).await?;
    let mut request = request.into_inner();
    let policies = build.policies(of_messages(std::mem::take(&mut request.source_policies))?)?;
    let source = request.source.take();
    let source = source.ok_or_else(|| Failure::Value("no source in the request".to_owned()))?;
    let source = SourceOp::new(source.identifier, source.attrs);
    let source = policies.evaluate(&source).map_err(Failure::PolicyOfImage)?.unwrap_or(source);
    let wanted = platform(request.platform.as_ref());
    let source = build.verified(&source, Some(&wanted), &policies).await?;
    about(&build, source, request).await
}

/// What is known of a source, whatever the rules say.
pub(super) async fn about(
    build: &Build,
    source: SourceOp,
    request: ResolveSourceMetaRequest,
) -> Result<ResolveSourceMetaResponse, Failure> {
    let wanted = platform(request.platform.as_ref());
    let mut answer = ResolveSourceMetaResponse::default();
    let mut identifier = source.raw.clone();
    match &source.identifier {
        SourceIdentifier::DockerImage { reference } => {
            let asked = request.image.unwrap_or_default();
            // As the rules have it; the digest is told beside it.
            identifier = format!("docker-image://{}", reference.canonical());
            answer.image = Some(if asked.attestation_chain || !asked.resolve_attestations.is_empty() {
                attested_image(build, reference, &wanted, &asked).await?
            } else {
                let (digest, config) = resolve(build, reference, &wanted, &request.resolve_mode).await?;
                image(&digest, if asked.no_config { Vec::new() } else { config })
            });
        }
        SourceIdentifier::OciLayout { reference } => {
            let store = source.attrs.get("oci.store").map_or("", String::as_str);
            let (digest, config) = in_layout(build, reference, store, &wanted).await?;
            let no_config = request.image.is_some_and(|image| image.no_config);
            answer.image = Some(image(&digest, if no_config { Vec::new() } else { config }));
        }
        SourceIdentifier::Git(_) => {
            answer.git = match request.git.is_some_and(|git| git.return_object) {
                true => objects(build, &source).await?.map(|found| ResolveSourceGitResponse {
                    commit_object: found.commit,
                    tag_object: found.tag.unwrap_or_default(),
                    ..commit(&found.pin)
                }),
                false => match facts(build, &source).await? {
                    Some(SourceFacts::Git(pin)) => Some(commit(&pin)),
                    _ => None,
                },
            };
        }
        SourceIdentifier::Http { .. } => {
            if let Some(SourceFacts::Http(pin)) = facts(build, &source).await? {
                let asked = request.http.and_then(|http| http.checksum_request);
                answer.http = Some(download(build, pin, asked).await?);
            }
        }
        // Nothing is known of a directory before it is fetched, and of a blob no more than its digest.
        SourceIdentifier::Local { .. } | SourceIdentifier::Blob { .. } => {}
        SourceIdentifier::Unknown { .. } => {
            return Err(Failure::Unsupported(format!("metadata of `{}`", source.shown())));
        }
    }
    answer.source = Some(pb::SourceOp { identifier, attrs: source.attrs });
    Ok(answer)
}

fn image(digest: &Digest, config: Vec<u8>) -> ResolveSourceImageResponse {
    ResolveSourceImageResponse { digest: digest.to_string(), config, attestation_chain: None }
}

/// An image with what vouches for it. Its configuration is of the very image that this is about.
async fn attested_image(
    build: &Build,
    reference: &Reference,
    wanted: &Platform,
    asked: &ResolveSourceImageRequest,
) -> Result<ResolveSourceImageResponse, Failure> {
    let predicates = &asked.resolve_attestations;
    let (digest, chain) = attested::chain(&build.registry, reference, wanted, predicates).await?;
    let config = match asked.no_config {
        true => Vec::new(),
        false => resolve(build, &reference.pinned(digest.clone()), wanted, "").await?.1,
    };
    Ok(ResolveSourceImageResponse { attestation_chain: chain, ..image(&digest, config) })
}

fn commit(pin: &GitPin) -> ResolveSourceGitResponse {
    ResolveSourceGitResponse {
        checksum: pin.object.clone(),
        r#ref: pin.reference.clone(),
        commit_checksum: pin.peeled.clone().unwrap_or_default(),
        ..ResolveSourceGitResponse::default()
    }
}

async fn download(
    build: &Build,
    pin: HttpPin,
    asked: Option<ChecksumRequest>,
) -> Result<ResolveSourceHttpResponse, Failure> {
    let (checksum, filename) = (pin.digest.to_string(), pin.filename.clone());
    let last_modified = pin.modified.map(|seconds| Timestamp { seconds, nanos: 0 });
    let checksum_response = match asked {
        None => None,
        Some(asked) => {
            let store = build.engine().store().clone();
            let digested = tokio::task::spawn_blocking(move || checksum_of(&store, &pin, asked)).await;
            Some(digested.map_err(|_| Failure::Cancelled)??)
        }
    };
    Ok(ResolveSourceHttpResponse { checksum, filename, last_modified, checksum_response })
}

/// The digest of a download with something behind it, as signatures are made over it.
fn checksum_of(
    store: &stave_store::Store,
    pin: &HttpPin,
    asked: ChecksumRequest,
) -> Result<ChecksumResponse, Failure> {
    if asked.suffix.len() > MAX_SUFFIX {
        return Err(Failure::Value(format!("more than {MAX_SUFFIX} bytes of suffix")));
    }
    let mut sum = match ChecksumAlgo::try_from(asked.algo) {
        Ok(algorithm) => Sum::new(algorithm),
        Err(_) => return Err(Failure::Value(format!("unknown checksum algorithm {}", asked.algo))),
    };
    let failed = |error: &dyn std::fmt::Display| Failure::NotFound(format!("open {}: {error}", pin.filename));
    let file = store.view(&pin.snapshot)?.open(Path::new(&pin.filename))?;
    let mut file = file.ok_or_else(|| failed(&"no such file or directory"))?;
    let mut buffer = vec![0; BUFFER];
    loop {
        match file.read(&mut buffer).map_err(|error| failed(&error))? {
            0 => break,
            length => sum.update(&buffer[..length]),
        }
    }
    sum.update(&asked.suffix);
    Ok(ChecksumResponse { digest: sum.finish(), suffix: asked.suffix })
}

/// A digest on its way. No document of an image is named by SHA-384, but signatures are made over it.
enum Sum {
    Named(Hasher),
    Sha384(Sha384),
}

impl Sum {
    fn new(algorithm: ChecksumAlgo) -> Self {
        match algorithm {
            ChecksumAlgo::Sha256 => Self::Named(Hasher::new(Algorithm::Sha256)),
            ChecksumAlgo::Sha512 => Self::Named(Hasher::new(Algorithm::Sha512)),
            ChecksumAlgo::Sha384 => Self::Sha384(Sha384::new()),
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Named(hasher) => hasher.update(bytes),
            Self::Sha384(hasher) => hasher.update(bytes),
        }
    }

    fn finish(self) -> String {
        match self {
            Self::Named(hasher) => hasher.finish().to_string(),
            Self::Sha384(hasher) => format!("sha384:{:x}", hasher.finalize()),
        }
    }
}

async fn facts(build: &Build, source: &SourceOp) -> Result<Option<SourceFacts>, Failure> {
    let session = build.session_for_source(source).await?;
    let facts = build.parts(None).facts_of(source, session).await;
    facts.map_err(|error| Failure::Value(crate::failure::one_line(&error)))
}

async fn objects(build: &Build, source: &SourceOp) -> Result<Option<GitObjects>, Failure> {
    let session = build.session_for_source(source).await?;
    let objects = build.parts(None).git_objects_of(source, session).await;
    objects.map_err(|error| Failure::Value(crate::failure::one_line(&error)))
}

/// An image in a layout of the client, which is known by its digest.
async fn in_layout(
    build: &Build,
    reference: &str,
    store: &str,
    wanted: &Platform,
) -> Result<(Digest, Vec<u8>), Failure> {
    let (name, digest) = reference.rsplit_once('@').unwrap_or((reference, ""));
    let store = if store.is_empty() { name } else { store };
    let digest: Digest = digest
        .parse()
        .map_err(|_| Failure::Value(format!("an image of an OCI layout without a digest: {reference}")))?;
    build.layouts.bring(store, &digest, wanted).await?;
    let parts = build.parts(None).with_layouts(build.layouts.directories());
    let config = parts.config_in_layout((store, &digest), wanted);
    Ok((digest, config.map_err(|error| Failure::Value(crate::failure::one_line(&error)))?))
}

fn named(name: &str) -> Result<Reference, Failure> {
    name.parse().map_err(|error| Failure::Value(format!("failed to parse `{name}`: {error}")))
}

fn platform(wanted: Option<&pb::Platform>) -> Platform {
    wanted.map_or_else(Platform::host, |platform| {
        let variant = Some(platform.variant.as_str()).filter(|variant| !variant.is_empty());
        Platform::new(&platform.os, &platform.architecture, variant)
    })
}

async fn resolve(
    build: &Build,
    reference: &Reference,
    platform: &Platform,
    mode: &str,
) -> Result<(Digest, Vec<u8>), Failure> {
    let pull = match mode {
        "pull" => PullPolicy::Always,
        _ => PullPolicy::Missing,
    };
    Ok(build.parts(None).resolve(reference, platform, pull).await?)
}

/// The image that the client's session lets be used in the place of another.
async fn verified_image(
    build: &Build,
    reference: Reference,
    wanted: &Platform,
    policies: &SourcePolicies,
) -> Result<Reference, Failure> {
    let source = SourceOp::new(format!("docker-image://{}", reference.canonical()), BTreeMap::new());
    match build.verified(&source, Some(wanted), policies).await?.identifier {
        SourceIdentifier::DockerImage { reference } => Ok(reference),
        _ => Err(Failure::Value(format!("what takes the place of `{}` is no image", reference.canonical()))),
    }
}

/// The image that the rules of the build allow in the place of the one that is named.
pub(super) fn allowed_image(build: &Build, reference: &Reference) -> Result<Reference, Failure> {
    image_under(&build.policies(Vec::new())?, reference)
}

fn image_under(policies: &SourcePolicies, reference: &Reference) -> Result<Reference, Failure> {
    let source = SourceOp::new(format!("docker-image://{}", reference.canonical()), BTreeMap::new());
    match policies.evaluate(&source).map_err(Failure::PolicyOfImage)? {
        None => Ok(reference.clone()),
        Some(SourceOp { identifier: SourceIdentifier::DockerImage { reference }, .. }) => Ok(reference),
        Some(other) => Err(Failure::Value(format!("`{}` is no image", other.shown()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_of_signatures() {
        let check = |algorithm, expected: &str| {
            let mut sum = Sum::new(algorithm);
            sum.update(b"a");
            sum.update(b"bc");
            let found = sum.finish();
            assert!(found.starts_with(expected), "{found}");
        };
        // FIPS 180-2's example.
        check(
            ChecksumAlgo::Sha256,
            "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        );
        check(
            ChecksumAlgo::Sha384,
            "sha384:cb00753f45a35e8bb5a03d699ac65007272c32ab0eded1631a8b605a43ff5bed",
        );
        check(
            ChecksumAlgo::Sha512,
            "sha512:ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a",
        );
    }
}
