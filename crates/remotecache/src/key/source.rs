//! What identifies a source: an image by its manifest and by its layers, a download by its checksum.

use stave_oci::{Digest, Platform};

use super::json::{Object, go_text};
use super::platform_of;

/// The texts that identify an image (BuildKit `source/containerimage/pull.go`): by what its name is pinned to
/// and the platform, and by the chain of its layers, so that a retagged or re-signed image is the same.
pub fn image_source(root: &Digest, platform: Option<&Platform>, diff_ids: &[Digest]) -> Vec<String> {
    let platform = platform_of(platform);
    let manifest = Object::new()
        .always("Digest", root.as_str())
        .always("OS", &platform.os)
        .always("Arch", &platform.architecture)
        .text("Variant", platform.variant.as_deref().unwrap_or_default())
        .text("OSVersion", platform.os_version.as_deref().unwrap_or_default())
        .texts("OSFeatures", &platform.os_features);
    let mut keys = vec![Digest::sha256(go_text(&manifest).as_bytes()).to_string()];
    keys.extend(chain_id(diff_ids).map(|chain| chain.to_string()));
    keys
}

/// The identity of a stack of layers (OCI image spec, config.md, "Layer ChainID"); `None` for no layer.
pub fn chain_id(diff_ids: &[Digest]) -> Option<Digest> {
    let (first, rest) = diff_ids.split_first()?;
    let next = |chain: Digest, layer: &Digest| Digest::sha256(format!("{chain} {layer}").as_bytes());
    Some(rest.iter().fold(first.clone(), next))
}

/// The text that identifies a download whose checksum is pinned (BuildKit `source/http/source.go`).
pub fn http_source(filename: &str, mode: u32, owner: (u32, u32), checksum: &Digest) -> String {
    let object = Object::new()
        .always("Filename", filename)
        .number_always("Perm", mode.into())
        .number_always("UID", owner.0.into())
        .number_always("GID", owner.1.into())
        .always("Checksum", checksum.as_str());
    Digest::sha256(go_text(&object).as_bytes()).to_string()
}
