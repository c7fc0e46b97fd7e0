//! The ways in which one source can be written: rules are held against what is fetched, however it is spelt.
//!
//! Owns what counts as the same source: the full name of an image, the address that git is told. Revisions, and what a
//! registry or a git host takes for the same by itself, are compared as they are written. Must not know rules. Start
//! with [`Spellings::of`].

use stave_oci::Reference;

use crate::source::{BlobPlace, GitSource, SourceIdentifier, SourceOp};

/// The attribute that holds the address of a repository, if the identifier does not.
const FULL_URL: &str = "git.fullurl";

/// The identifiers of a source.
#[derive(Debug)]
pub(super) struct Spellings {
    /// What is fetched.
    meant: Vec<String>,
    /// What it is called, if that is not what is fetched.
    written: Option<String>,
}

impl Spellings {
    pub(super) fn of(source: &SourceOp) -> Self {
        let mut meant = match &source.identifier {
            SourceIdentifier::DockerImage { reference } => {
                vec![format!("docker-image://{}", reference.canonical())]
            }
            SourceIdentifier::Blob { reference, place: BlobPlace::Registry } => of_blob(reference),
            SourceIdentifier::Git(git) => of_git(git, address(source).unwrap_or(&git.remote)),
            _ => vec![source.raw.clone()],
        };
        if meant.is_empty() {
            meant.push(source.raw.clone());
        }
        meant.dedup();
        let written = Some(source.raw.clone()).filter(|raw| !meant.contains(raw));
        Self { meant, written }
    }

    /// For rules that let something through.
    pub(super) fn meant(&self) -> impl Iterator<Item = &str> {
        self.meant.iter().map(String::as_str)
    }

    /// For rules that keep something out: nothing evades them by another name.
    pub(super) fn all(&self) -> impl Iterator<Item = &str> {
        self.meant().chain(self.written.as_deref())
    }
}

/// The longest text that says where a source is, in bytes.
pub(super) fn length(source: &SourceOp) -> usize {
    source.raw.len().max(address(source).map_or(0, str::len))
}

/// The address of a repository, where it is none of the identifier.
fn address(source: &SourceOp) -> Option<&str> {
    source.attrs.get(FULL_URL).map(String::as_str).filter(|address| !address.is_empty())
}

/// With its tag, which changes nothing about a blob, and without; nothing if the name is none.
fn of_blob(reference: &str) -> Vec<String> {
    let Ok(name) = reference.parse::<Reference>() else { return Vec::new() };
    let untagged = name.digest().map(|digest| format!("{}@{digest}", name.name()));
    let named = |name: String| format!("docker-image+blob://{name}");
    std::iter::once(name.canonical()).chain(untagged).map(named).collect()
}

/// With and without the name of a user, who changes nothing about what is there.
fn of_git(git: &GitSource, address: &str) -> Vec<String> {
    let (scheme, rest) = match address.split_once("://") {
        Some((scheme, rest)) => (scheme.to_ascii_lowercase(), rest.to_owned()),
        None => match as_scp(address) {
            Some((place, path)) => ("ssh".to_owned(), format!("{place}/{path}")),
            None => ("https".to_owned(), address.to_owned()),
        },
    };
    let (authority, path) = rest.split_once('/').unwrap_or((&rest, ""));
    let (login, host) = match authority.rsplit_once('@') {
        Some((login, host)) => (Some(login), host),
        None => (None, authority),
    };
    let usual = match scheme.as_str() {
        "http" => ":80",
        "ssh" => ":22",
        "git" => ":9418",
        _ => ":443",
    };
    let host = host.to_ascii_lowercase();
    let host = host.strip_suffix(usual).unwrap_or(&host).trim_end_matches('.');
    let (path, subdir) = (clean(&decoded(path)), clean(&git.subdir));
    let fragment = match (git.revision.as_str(), subdir.as_str()) {
        ("", "") => String::new(),
        (revision, "") => format!("#{revision}"),
        (revision, subdir) => format!("#{revision}:{subdir}"),
    };
    let user = login.map(|login| login.split(':').next().unwrap_or(login));
    let named = |user: String| format!("git://{user}{host}/{path}{fragment}");
    let with_user = user.map(|user| named(format!("{user}@")));
    std::iter::once(named(String::new())).chain(with_user).collect()
}

/// `user@host:path` as place and path.
fn as_scp(address: &str) -> Option<(&str, &str)> {
    let (place, path) = address.split_once(':')?;
    (place.contains('@') && !place.contains('/')).then(|| (place, path.trim_start_matches('/')))
}

/// A path without what leads nowhere.
fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// A path as servers read it: `%61` is `a`.
fn decoded(path: &str) -> String {
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((before, after)) = rest.split_once('%') {
        bytes.extend(before.as_bytes());
        let byte = after.get(..2).filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()));
        match byte.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = after.get(2..).unwrap_or_default();
            }
            None => {
                bytes.push(b'%');
                rest = after;
            }
        }
    }
    bytes.extend(rest.as_bytes());
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(raw: &str, address: &str, expected: &[&str]) {
        let attrs = [(FULL_URL.to_owned(), address.to_owned())].into();
        let spellings = Spellings::of(&SourceOp::new(raw, attrs));
        assert_eq!(spellings.all().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn one_source_written_in_several_ways() {
        check(
            "docker-image://alpine",
            "",
            &["docker-image://docker.io/library/alpine:latest", "docker-image://alpine"],
        );
        check("https://a.test/b", "", &["https://a.test/b"]);
        let digest = format!("sha256:{}", "a".repeat(64));
        let (full, tagged) = (
            format!("docker-image+blob://docker.io/library/alpine@{digest}"),
            format!("docker-image+blob://docker.io/library/alpine:1@{digest}"),
        );
        check(&full, "", &[&full]);
        for name in ["alpine", "library/alpine", "docker.io/alpine", "index.docker.io/library/alpine"] {
            let raw = format!("docker-image+blob://{name}@{digest}");
            check(&raw, "", &[&full, &raw]);
        }
        let raw = format!("docker-image+blob://alpine:1@{digest}");
        check(&raw, "", &[&tagged, &full, &raw]);
        check("docker-image+blob://A@b", "", &["docker-image+blob://A@b"]);
        let plain = "git://a.test/b.git";
        check(plain, "", &[plain]);
        check(plain, "https://a.test/b.git", &[plain]);
        check(plain, "HTTPS://A.test.:443//x/../%62.git", &[plain]);
        check(plain, "git@a.test:b.git", &[plain, "git://git@a.test/b.git"]);
        check(plain, "ssh://git@a.test:22/b.git", &[plain, "git://git@a.test/b.git"]);
        // What is fetched is another repository than the one that is named.
        check(plain, "https://other.test/c", &["git://other.test/c", plain]);
        let below = "git://a.test/b.git#v1:d/e";
        check(below, "", &[below]);
        check("git://a.test/b.git#v1:/d//x/../e/", "", &[below, "git://a.test/b.git#v1:/d//x/../e/"]);
        check("git://a.test/b.git#:d", "", &["git://a.test/b.git#:d"]);
        check("git://a.test/b.git#v1:.", "", &["git://a.test/b.git#v1", "git://a.test/b.git#v1:."]);
        check("git://a.test/%zz%", "", &["git://a.test/%zz%"]);
    }
}
