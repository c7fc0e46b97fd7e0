//! Bringing files in.
//!
//! Owns [`SourceOp`] and the reading of its identifier. Must not fetch anything. Start with
//! [`SourceIdentifier`].

use std::collections::BTreeMap;

use stave_oci::Reference;

/// Where files come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceOp {
    /// The identifier, understood.
    pub identifier: SourceIdentifier,
    /// The identifier as it stands on the wire.
    pub raw: String,
    /// Options, such as `local.followpaths`.
    pub attrs: BTreeMap<String, String>,
}

/// An identifier's meaning, by its scheme.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceIdentifier {
    /// `docker-image://`: an image at a registry.
    DockerImage {
        /// Which one.
        reference: Reference,
    },
    /// `local://`: a directory of the session.
    Local {
        /// Its name in the session.
        name: String,
    },
    /// `git://`
    Git(GitSource),
    /// `http://` or `https://`
    Http {
        /// The address.
        url: String,
    },
    /// `oci-layout://`: an image in a store of the session.
    OciLayout {
        /// The image, as the session knows it.
        reference: String,
    },
    /// `docker-image+blob://` or `oci-layout+blob://`: one blob.
    Blob {
        /// The identifier after its scheme: a name and a digest.
        reference: String,
        /// Where it is.
        place: BlobPlace,
    },
    /// Another scheme.
    Unknown {
        /// The scheme, empty if there is none.
        scheme: String,
    },
}

/// Where single blobs are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlobPlace {
    /// `docker-image+blob://`: in a registry's repository.
    Registry,
    /// `oci-layout+blob://`: in a store of the session.
    Layout,
}

/// A repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GitSource {
    /// Host and path, without protocol; the full address is in the attribute `git.fullurl`.
    pub remote: String,
    /// Branch, tag or commit; empty for the default branch.
    pub revision: String,
    /// The directory in it; empty for the root.
    pub subdir: String,
}

impl SourceOp {
    /// A source of this identifier; one that is malformed for its scheme is [`SourceIdentifier::Unknown`].
    pub fn new(raw: impl Into<String>, attrs: BTreeMap<String, String>) -> Self {
        let raw = raw.into();
        Self { identifier: SourceIdentifier::parse(&raw), raw, attrs }
    }

    /// Its identifier for messages: without the credentials that an address may hold.
    pub fn shown(&self) -> String {
        let plain = || self.raw.clone();
        // The `@` of an image stands before its digest.
        let is_address = !matches!(
            self.identifier,
            SourceIdentifier::DockerImage { .. }
                | SourceIdentifier::OciLayout { .. }
                | SourceIdentifier::Blob { .. }
        );
        let Some((scheme, rest)) = self.raw.split_once("://").filter(|_| is_address) else { return plain() };
        let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        match authority.rsplit_once('@') {
            Some((_, host)) => format!("{scheme}://{host}{path}"),
            None => plain(),
        }
    }
}

impl SourceIdentifier {
    /// Reads an identifier as it stands on the wire.
    pub fn parse(raw: &str) -> Self {
        let Some((scheme, rest)) = raw.split_once("://") else {
            return Self::Unknown { scheme: String::new() };
        };
        match scheme {
            "docker-image" => match rest.parse() {
                Ok(reference) => Self::DockerImage { reference },
                Err(_) => Self::Unknown { scheme: scheme.to_owned() },
            },
            "local" => Self::Local { name: rest.to_owned() },
            "git" => Self::Git(GitSource::parse(rest)),
            "http" | "https" => Self::Http { url: raw.to_owned() },
            "oci-layout" => Self::OciLayout { reference: rest.to_owned() },
            "docker-image+blob" => Self::Blob { reference: rest.to_owned(), place: BlobPlace::Registry },
            "oci-layout+blob" => Self::Blob { reference: rest.to_owned(), place: BlobPlace::Layout },
            _ => Self::Unknown { scheme: scheme.to_owned() },
        }
    }
}

impl GitSource {
    fn parse(rest: &str) -> Self {
        let (remote, fragment) = rest.split_once('#').unwrap_or((rest, ""));
        let (revision, subdir) = fragment.split_once(':').unwrap_or((fragment, ""));
        Self { remote: remote.to_owned(), revision: revision.to_owned(), subdir: subdir.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(raw: &str, expected: &SourceIdentifier) {
        assert_eq!(&SourceIdentifier::parse(raw), expected);
    }

    #[test]
    fn messages_show_no_credentials() {
        let shown = |raw: &str| SourceOp::new(raw, BTreeMap::new()).shown();
        assert_eq!(shown("https://me:secret@a.test/b@c"), "https://a.test/b@c");
        assert_eq!(shown("git://token@a.test/b.git#v1:d"), "git://a.test/b.git#v1:d");
        assert_eq!(shown("https://a.test?x=@y"), "https://a.test?x=@y");
        let image = format!("docker-image://busybox@sha256:{}", "0".repeat(64));
        assert_eq!(shown(&image), image);
        assert_eq!(shown("local://context"), "local://context");
    }

    #[test]
    fn identifiers_by_scheme() {
        check("local://context", &SourceIdentifier::Local { name: "context".into() });
        check("https://a.test/b", &SourceIdentifier::Http { url: "https://a.test/b".into() });
        let git = GitSource { remote: "a.test/b.git".into(), revision: "v1".into(), subdir: "d".into() };
        check("git://a.test/b.git#v1:d", &SourceIdentifier::Git(git));
        let blob = |place| SourceIdentifier::Blob { reference: "a.test/b@sha256:0".into(), place };
        check("docker-image+blob://a.test/b@sha256:0", &blob(BlobPlace::Registry));
        check("oci-layout+blob://a.test/b@sha256:0", &blob(BlobPlace::Layout));
        check("ftp://x", &SourceIdentifier::Unknown { scheme: "ftp".into() });
        check("nothing", &SourceIdentifier::Unknown { scheme: String::new() });
        check("docker-image://", &SourceIdentifier::Unknown { scheme: "docker-image".into() });
        let image = SourceIdentifier::parse("docker-image://docker.io/library/busybox:latest");
        assert!(
            matches!(image, SourceIdentifier::DockerImage { reference } if reference.tag() == Some("latest"))
        );
    }
}
