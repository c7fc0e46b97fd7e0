//! Image references with docker's normalisation.
//!
//! The grammar is the distribution specification's, and what docker users expect on top: familiar
//! names, `:latest`, and comparison of what is meant. It is matched by hand: the usual regular
//! expression takes longer to compile than a whole build without changes takes to run.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{Digest, DigestError};

/// The registry of names without a host.
const DEFAULT_REGISTRY: &str = "docker.io";
/// The tag of names without a tag or digest.
const DEFAULT_TAG: &str = "latest";
/// Longest repository, in bytes.
const MAX_REPOSITORY: usize = 255;
/// Fewest hex digits of anything that may be a digest.
const MIN_HEX: usize = 32;
/// Longest tag, in bytes.
const MAX_TAG: usize = 128;

/// A normalised image reference: registry, repository, and a tag or digest (or both).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Text that is not an image reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// Breaks the grammar.
    #[error("invalid reference format")]
    Form,
    /// Upper case in the path.
    #[error("invalid reference format: repository name ({0}) must be lowercase")]
    Uppercase(String),
    /// The path is longer than registries take.
    #[error("repository name must not be more than {MAX_REPOSITORY} characters")]
    TooLong,
    /// 64 hex digits could be an id and are never a name.
    #[error("invalid repository name ({0}), cannot specify 64-byte hexadecimal strings")]
    LooksLikeId(String),
    /// The part after `@` is no digest we can verify.
    #[error("{}", complaint(.0))]
    Digest(#[source] DigestError),
}

impl Reference {
    /// The registry's host, with its port if one was given.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The path within the registry; official images are under `library/`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag. A reference without a digest always has one.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, if the reference pins one.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// `registry/repository`, without tag and digest.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// The name as docker shows it: `busybox`, `me/app`, `host:5000/app`.
    pub fn familiar_name(&self) -> String {
        if self.registry != DEFAULT_REGISTRY {
            return self.name();
        }
        let repository = self.repository.strip_prefix("library/").filter(|rest| !rest.contains('/'));
        repository.unwrap_or(&self.repository).to_owned()
    }

    /// The whole reference as docker shows it.
    pub fn familiar(&self) -> String {
        self.with_suffix(self.familiar_name())
    }

    /// The whole reference, nothing left out.
    pub fn canonical(&self) -> String {
        self.with_suffix(self.name())
    }

    fn with_suffix(&self, mut text: String) -> String {
        if let Some(tag) = &self.tag {
            text.push(':');
            text.push_str(tag);
        }
        if let Some(digest) = &self.digest {
            text.push('@');
            text.push_str(digest.as_str());
        }
        text
    }

    /// The same image pinned to `digest`, its tag kept.
    #[must_use]
    pub fn pinned(&self, digest: Digest) -> Self {
        Self { digest: Some(digest), ..self.clone() }
    }

    /// The tag alone, without the digest; `None` for a reference that has no tag.
    pub fn tagged(&self) -> Option<Self> {
        self.tag.is_some().then(|| Self { digest: None, ..self.clone() })
    }

    /// Another tag in the same repository.
    #[must_use]
    pub fn with_tag(&self, tag: &str) -> Self {
        Self { tag: Some(tag.to_owned()), digest: None, ..self.clone() }
    }
}

/// The first path component is a host if it looks like one (docker's rule).
fn splits_host(name: &str) -> Option<(&str, &str)> {
    let (first, rest) = name.split_once('/')?;
    let is_host = first == "localhost"
        || first.contains(['.', ':'])
        || first.chars().any(|letter| letter.is_ascii_uppercase());
    is_host.then_some((first, rest))
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        if text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
            return Err(ReferenceError::LooksLikeId(text.to_owned()));
        }
        let (host, path) = splits_host(text).unwrap_or((DEFAULT_REGISTRY, text));
        let name = path.split(':').next().unwrap_or_default();
        if name.to_lowercase() != name {
            let is_official = is_default(host) && !path.contains('/');
            let prefix = if is_official { "library/" } else { "" };
            return Err(ReferenceError::Uppercase(format!("{prefix}{name}")));
        }
        let (bare, digest) = match text.split_once('@') {
            Some((_, digest)) if !is_digest(digest) => return Err(ReferenceError::Form),
            Some((bare, digest)) => (bare, Some(digest)),
            None => (text, None),
        };
        // A colon before a slash begins a port.
        let (name, tag) = match bare.rsplit_once(':').filter(|(_, tag)| !tag.contains('/')) {
            Some((name, tag)) => (name, Some(tag)),
            None => (bare, None),
        };
        let (host, path) = splits_host(name).map_or((None, name), |(host, path)| (Some(host), path));
        let is_valid =
            host.is_none_or(is_host) && path.split('/').all(is_component) && tag.is_none_or(is_tag);
        let registry = host.filter(|host| !is_default(host)).unwrap_or(DEFAULT_REGISTRY);
        let repository = if registry == DEFAULT_REGISTRY && !path.contains('/') {
            format!("library/{path}")
        } else {
            path.to_owned()
        };
        if !is_valid {
            return Err(ReferenceError::Form);
        }
        if repository.len() > MAX_REPOSITORY {
            return Err(ReferenceError::TooLong);
        }
        let digest = digest.map(str::parse).transpose().map_err(ReferenceError::Digest)?;
        // A digest alone pins; inventing `latest` beside it would name something else.
        let tag = tag.or(digest.is_none().then_some(DEFAULT_TAG)).map(str::to_owned);
        Ok(Self { registry: registry.to_owned(), repository, tag, digest })
    }
}

/// Docker's registry under either of its names.
fn is_default(host: &str) -> bool {
    matches!(host, DEFAULT_REGISTRY | "index.docker.io")
}

/// The form of any digest, whatever its algorithm: words with separators, a colon, hex digits.
fn is_digest(text: &str) -> bool {
    let Some((algorithm, hex)) = text.split_once(':') else { return false };
    let is_word = |word: &str| {
        word.bytes().next().is_some_and(|byte| byte.is_ascii_alphabetic())
            && word.bytes().all(|byte| byte.is_ascii_alphanumeric())
    };
    algorithm.split(['-', '_', '+', '.']).all(is_word)
        && hex.len() >= MIN_HEX
        && hex.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// What docker says about a digest that nobody can verify.
fn complaint(error: &DigestError) -> &'static str {
    match error {
        DigestError::Form(_) => "invalid checksum digest format",
        DigestError::Algorithm(_) => "unsupported digest algorithm",
        DigestError::Hex(text, digits) => match text.split_once(':') {
            Some((_, hex)) if hex.len() == *digits => "invalid checksum digest format",
            _ => "invalid checksum digest length",
        },
    }
}

/// Labels of letters, digits and inner hyphens with dots between them, and perhaps a port.
fn is_host(host: &str) -> bool {
    let (address, rest) = host.strip_prefix('[').and_then(|rest| rest.split_once(']')).unzip();
    let (name, port) = match rest {
        Some(rest) => ("", (!rest.is_empty()).then(|| rest.strip_prefix(':').unwrap_or_default())),
        None => host.split_once(':').map_or((host, None), |(name, port)| (name, Some(port))),
    };
    let is_label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let is_port = |port: &str| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    let is_address =
        |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b':');
    address.map_or_else(|| name.split('.').all(is_label), is_address) && port.is_none_or(is_port)
}

/// Lower-case letters and digits, with separators between them: a dot, one or two underscores, hyphens.
fn is_component(component: &str) -> bool {
    let is_separator = |byte: u8| matches!(byte, b'.' | b'_' | b'-');
    let is_text = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = component.as_bytes();
    let ends_in_text =
        bytes.first().copied().is_some_and(is_text) && bytes.last().copied().is_some_and(is_text);
    ends_in_text
        && bytes.iter().all(|byte| is_text(*byte) || is_separator(*byte))
        && bytes
            .split(|byte| is_text(*byte))
            .all(|run| matches!(run, b"" | b"." | b"_" | b"__") || run.iter().all(|byte| *byte == b'-'))
}

fn is_tag(tag: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    tag.len() <= MAX_TAG
        && tag.bytes().next().is_some_and(is_word)
        && tag.bytes().all(|byte| is_word(byte) || matches!(byte, b'.' | b'-'))
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.canonical())
    }
}

impl Serialize for Reference {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Reference {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[track_caller]
    fn check(text: &str, expected: Result<(&str, &str), &str>) {
        let found = text.parse::<Reference>().map(|r| (r.canonical(), r.familiar()));
        let found = found.as_ref().map(|(a, b)| (a.as_str(), b.as_str())).map_err(ToString::to_string);
        assert_eq!(found, expected.map_err(str::to_owned), "{text}");
    }

    #[test]
    fn names_are_normalised_as_docker_does() {
        check("busybox", Ok(("docker.io/library/busybox:latest", "busybox:latest")));
        check("busybox:1.36", Ok(("docker.io/library/busybox:1.36", "busybox:1.36")));
        check("me/app", Ok(("docker.io/me/app:latest", "me/app:latest")));
        check("docker.io/busybox", Ok(("docker.io/library/busybox:latest", "busybox:latest")));
        check("index.docker.io/me/app:2", Ok(("docker.io/me/app:2", "me/app:2")));
        check("localhost/app", Ok(("localhost/app:latest", "localhost/app:latest")));
        check("localhost:5000/a/b:c", Ok(("localhost:5000/a/b:c", "localhost:5000/a/b:c")));
        check("127.0.0.1:5050/gcc", Ok(("127.0.0.1:5050/gcc:latest", "127.0.0.1:5050/gcc:latest")));
        let pinned = format!("docker.io/library/busybox@{DIGEST}");
        check(&format!("busybox@{DIGEST}"), Ok((&pinned, &format!("busybox@{DIGEST}"))));
        let both = format!("docker.io/library/busybox:1@{DIGEST}");
        check(&format!("busybox:1@{DIGEST}"), Ok((&both, &format!("busybox:1@{DIGEST}"))));
    }

    #[test]
    fn what_is_no_reference_is_refused() {
        for text in ["", ":", "a:", "a//b", "-a", "a:b:c", "a@sha256:12", "../a", "a b", "http://a/b"] {
            assert!(text.parse::<Reference>().is_err(), "{text}");
        }
        check(
            "Busybox",
            Err("invalid reference format: repository name (library/Busybox) must be lowercase"),
        );
        check("a.b/C", Err("invalid reference format: repository name (C) must be lowercase"));
        check("a@sha256:12", Err("invalid reference format"));
        check(&format!("a@sha256:{}", "a".repeat(40)), Err("invalid checksum digest length"));
        check(&format!("a@sha256:{}", "A".repeat(64)), Err("invalid checksum digest format"));
        check(&format!("a@md5:{}", "a".repeat(32)), Err("unsupported digest algorithm"));
        check(&"a".repeat(300), Err("repository name must not be more than 255 characters"));
        check("[::1]:5000/x", Ok(("[::1]:5000/x:latest", "[::1]:5000/x:latest")));
        for text in ["[::1/x", "[]:1/x", "[::1]:/x", "[::1]5/x", "[g.]/x"] {
            check(text, Err("invalid reference format"));
        }
        let id = &DIGEST[7..];
        check(
            id,
            Err(&format!("invalid repository name ({id}), cannot specify 64-byte hexadecimal strings")),
        );
    }

    /// The specification's regular expression, as another implementation has it.
    fn is_in_the_grammar(text: &str) -> bool {
        oci_spec::distribution::Reference::try_from(text).is_ok()
    }

    #[test]
    fn separators_and_lengths_are_the_specifications() {
        let long = |length: usize| format!("a/{}", "b".repeat(length - 2));
        let tag = |length: usize| format!("a:{}", "b".repeat(length));
        for text in
            ["a.b/c", "a-b/c_d", "a__b", "a--b", "a---b/c", "A.b:1/c", "localhost:1", "a:-b", "a___b", "a..b"]
        {
            assert_eq!(text.parse::<Reference>().is_ok(), is_in_the_grammar(text), "{text}");
        }
        for text in ["a._b", "a-", "a/_b", "x-.y/c", "a:b.", "a:.b", "a.b:/c", "a.b:x/c", "a:Ünd"] {
            assert_eq!(text.parse::<Reference>().is_ok(), text == "a:b.", "{text}");
        }
        assert!(long(255).parse::<Reference>().is_ok() && long(256).parse::<Reference>().is_err());
        assert!(tag(128).parse::<Reference>().is_ok() && tag(129).parse::<Reference>().is_err());
    }

    proptest! {
        #[test]
        fn the_grammar_is_the_specifications(text in "([a-zB0-9.:-]{1,8}/)?[a-z0-9/._-]{1,12}(:[a-zA-Z0-9._-]{0,5})?") {
            // A host-like first component with an underscore is taken for a path there, and is nothing here.
            let first = text.split('/').next().unwrap_or_default();
            prop_assume!(text.len() < 64 && !(text.contains('/') && first.contains('_')));
            prop_assert_eq!(text.parse::<Reference>().is_ok(), is_in_the_grammar(&text));
        }

        #[test]
        fn never_panics_and_is_stable(text in "[a-z0-9A-Z./:@_-]{0,40}") {
            if let Ok(reference) = text.parse::<Reference>() {
                prop_assert_eq!(&reference.canonical().parse::<Reference>().unwrap(), &reference);
                prop_assert_eq!(&reference.familiar().parse::<Reference>().unwrap(), &reference);
            }
        }
    }
}
