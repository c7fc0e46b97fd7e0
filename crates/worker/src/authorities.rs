//! Certificates that programs in a step trust beside the image's own.
//!
//! Every bundle the image has at a place where programs look is shown with the additional certificates behind its own,
//! and variables name one for programs that look nowhere. All of it is mounted: nothing enters a layer or a key.
//! Must not know steps. Read [`bundles`] first.

use std::path::{Path, PathBuf};

use crate::base::Look;
use crate::root::Last;

/// Where programs look for a bundle: Debian and Alpine, Fedora (twice), openSUSE, LibreSSL and macOS habits.
const BUNDLES: [&str; 6] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/tls/cacert.pem",
    "/etc/ssl/cert.pem",
];

/// Where the bundle lies for programs that are told.
pub(crate) const OWN: &str = "/run/stave/ca-certificates.crt";

/// Variables by which programs are told where the bundle is.
const VARIABLES: [&str; 8] = [
    "SSL_CERT_FILE",
    "CURL_CA_BUNDLE",
    "REQUESTS_CA_BUNDLE",
    "GIT_SSL_CAINFO",
    "CARGO_HTTP_CAINFO",
    "PIP_CERT",
    "AWS_CA_BUNDLE",
    "NODE_EXTRA_CA_CERTS",
];

/// Bytes of the largest bundle of an image.
const MAX_BUNDLE: u64 = 16 << 20;

/// A file to show and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bundle {
    /// Absolute, inside.
    pub target: PathBuf,
    /// What it holds.
    pub contents: Vec<u8>,
}

/// The bundles of an image with `additional` certificates, and one at [`OWN`].
pub(crate) fn bundles(root: &impl Look, additional: &[u8]) -> Vec<Bundle> {
    let mut bundles: Vec<Bundle> = Vec::new();
    for place in BUNDLES {
        // Several names may lead to one file; it is covered once, where it really is.
        let Ok(real) = root.resolve(Path::new(place), Last::Follow) else { continue };
        let target = Path::new("/").join(&real);
        if bundles.iter().any(|known| known.target == target) {
            continue;
        }
        if let Ok(own) = root.read_file(&real, MAX_BUNDLE) {
            bundles.push(Bundle { target, contents: joined(own, additional) });
        }
    }
    let all = bundles.first().map_or_else(|| additional.to_vec(), |first| first.contents.clone());
    bundles.push(Bundle { target: OWN.into(), contents: all });
    bundles
}

/// `NAME=value` for programs that look nowhere, unless the step says otherwise.
pub(crate) fn variables() -> impl Iterator<Item = (&'static str, String)> {
    VARIABLES.iter().map(|name| (*name, OWN.to_owned()))
}

fn joined(mut own: Vec<u8>, additional: &[u8]) -> Vec<u8> {
    if own.last().is_some_and(|last| *last != b'\n') {
        own.push(b'\n');
    }
    own.extend_from_slice(additional);
    own
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::root::RootDir;

    #[test]
    fn every_bundle_of_the_image_is_covered_once() {
        let image = tempfile::tempdir().expect("a folder");
        let path = |name: &str| image.path().join(name);
        std::fs::create_dir_all(path("etc/ssl/certs")).expect("creates");
        std::fs::write(path("etc/ssl/certs/ca-certificates.crt"), "own").expect("writes");
        std::os::unix::fs::symlink("certs/ca-certificates.crt", path("etc/ssl/cert.pem")).expect("links");
        let root = RootDir::open(image.path()).expect("opens");
        let bundle = |target: &str, contents: &str| Bundle {
            target: target.into(),
            contents: contents.as_bytes().to_vec(),
        };
        let debian = bundle("/etc/ssl/certs/ca-certificates.crt", "own\nmore\n");
        assert_eq!(bundles(&root, b"more\n"), [debian, bundle(OWN, "own\nmore\n")]);
        let empty = tempfile::tempdir().expect("a folder");
        let root = RootDir::open(empty.path()).expect("opens");
        assert_eq!(bundles(&root, b"more\n"), [bundle(OWN, "more\n")]);
    }
}
