//! What a front end wants to know of sources before it makes a graph of them.

use bollard_buildkit_proto::moby::buildkit::v1::frontend::{
    ResolveImageConfigRequest, ResolveImageConfigResponse, ResolveSourceImageResponse,
    ResolveSourceMetaRequest, ResolveSourceMetaResponse,
};
use bollard_buildkit_proto::pb;
use stave_engine::PullPolicy;
use stave_oci::{Digest, Platform, Reference};
use tonic::Request;

use super::Gateway;
use crate::build::Build;
use crate::failure::Failure;

pub(super) async fn image_config(
    gateway: &Gateway,
    request: Request<ResolveImageConfigRequest>,
) -> Result<ResolveImageConfigResponse, Failure> {
    let build = gateway.build(request.metadata()).await?;
    let request = request.into_inner();
    if request.resolver_type != 0 {
        return Err(Failure::Unsupported("images in layouts of a client".to_owned()));
    }
    let (reference, digest, config) =
        resolve(&build, &request.r#ref, request.platform.as_ref(), &request.resolve_mode).await?;
    Ok(ResolveImageConfigResponse { digest: digest.to_string(), config, r#ref: reference.canonical() })
}

pub(super) async fn metadata(
    gateway: &Gateway,
    request: Request<ResolveSourceMetaRequest>,
) -> Result<ResolveSourceMetaResponse, Failure> {
    let build = gateway.build(request.metadata()).await?;
    let request = request.into_inner();
    let mut source = request.source.ok_or_else(|| Failure::Value("no source in the request".to_owned()))?;
    let Some(name) = source.identifier.strip_prefix("docker-image://").map(str::to_owned) else {
        return match source.identifier.split_once("://").map(|(scheme, _)| scheme) {
            // Nothing is known of a directory before it is fetched.
            Some("local") => Ok(ResolveSourceMetaResponse { source: Some(source), ..Default::default() }),
            _ => Err(Failure::Unsupported(format!("metadata of `{}`", source.identifier))),
        };
    };
    let (reference, digest, config) =
        resolve(&build, &name, request.platform.as_ref(), &request.resolve_mode).await?;
    let no_config = request.image.is_some_and(|image| image.no_config);
    let pinned = match reference.digest() {
        Some(_) => reference.canonical(),
        None => format!("{}@{digest}", reference.canonical()),
    };
    source.identifier = format!("docker-image://{pinned}");
    let config = if no_config { Vec::new() } else { config };
    let image = ResolveSourceImageResponse { digest: digest.to_string(), config, attestation_chain: None };
    Ok(ResolveSourceMetaResponse { source: Some(source), image: Some(image), ..Default::default() })
}

async fn resolve(
    build: &Build,
    name: &str,
    platform: Option<&pb::Platform>,
    mode: &str,
) -> Result<(Reference, Digest, Vec<u8>), Failure> {
    let invalid =
        |error: stave_oci::ReferenceError| Failure::Value(format!("failed to parse `{name}`: {error}"));
    let reference: Reference = name.parse().map_err(invalid)?;
    let platform = platform.map_or_else(Platform::host, |platform| {
        let variant = Some(platform.variant.as_str()).filter(|variant| !variant.is_empty());
        Platform::new(&platform.os, &platform.architecture, variant)
    });
    let pull = match mode {
        "pull" => PullPolicy::Always,
        _ => PullPolicy::Missing,
    };
    let (digest, config) = build.parts(None).resolve(&reference, &platform, pull).await?;
    Ok((reference, digest, config))
}
