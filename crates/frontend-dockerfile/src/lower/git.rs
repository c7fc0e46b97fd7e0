//! Repositories as sources of `ADD`.
//!
//! Owns which texts name a repository and what they say about it. Start with [`parse`].

use std::collections::BTreeMap;

use stave_llb::SourceOp;

use super::path;

/// A repository as `ADD` names it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct GitRef {
    /// The address without fragment.
    remote: String,
    host: String,
    path: String,
    revision: String,
    subdir: String,
    ssh: bool,
}

/// Why a repository's address is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum GitError {
    #[error("not supported yet: options in the query of a git address")]
    Query,
}

/// Reads a repository's address; `None` for what is a path or a download.
pub(super) fn parse(text: &str) -> Result<Option<GitRef>, GitError> {
    let (address, fragment) = text.split_once('#').unwrap_or((text, ""));
    let (address, query) = address.split_once('?').unwrap_or((address, ""));
    let parsed = match address.split_once("://") {
        Some((scheme, rest)) => with_scheme(&scheme.to_ascii_lowercase(), rest),
        None => scp_style(address),
    };
    let Some((host, repository, ssh)) = parsed else { return Ok(None) };
    if !query.is_empty() {
        return Err(GitError::Query);
    }
    let (revision, subdir) = fragment.split_once(':').unwrap_or((fragment, ""));
    let subdir = path::join("/", subdir);
    Ok(Some(GitRef {
        remote: address.to_owned(),
        host,
        path: repository,
        revision: revision.to_owned(),
        subdir: subdir.trim_start_matches('/').to_owned(),
        ssh,
    }))
}

/// Host, path and whether it is reached over ssh.
fn with_scheme(scheme: &str, rest: &str) -> Option<(String, String, bool)> {
    let (authority, repository) = rest.split_once('/').unwrap_or((rest, ""));
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let is_repository = match scheme {
        "git" | "ssh" => true,
        // Anything else behind these is a download.
        "http" | "https" => repository.ends_with(".git"),
        _ => false,
    };
    is_repository.then(|| (host.to_owned(), format!("/{repository}"), scheme == "ssh"))
}

/// `user@host:path`
fn scp_style(text: &str) -> Option<(String, String, bool)> {
    let (user, rest) = text.split_once('@')?;
    let (host, repository) = rest.split_once(':')?;
    let word = |text: &str, more: &str| {
        !text.is_empty() && text.chars().all(|letter| letter.is_ascii_alphanumeric() || more.contains(letter))
    };
    (word(user, "-_") && word(host, "-.")).then(|| (host.to_owned(), repository.to_owned(), true))
}

impl GitRef {
    /// The source operation.
    pub(super) fn source(&self, keep_git_dir: bool, checksum: &str) -> SourceOp {
        let mut identifier = format!("git://{}{}", self.host, path::join("/", &self.path));
        if !self.revision.is_empty() || !self.subdir.is_empty() {
            identifier = format!("{identifier}#{}", self.revision);
        }
        if !self.subdir.is_empty() {
            identifier = format!("{identifier}:{}", self.subdir);
        }
        let mut attrs = BTreeMap::new();
        let mut set = |name: &str, value: &str| drop(attrs.insert(name.to_owned(), value.to_owned()));
        set("git.fullurl", &self.remote);
        set("git.authtokensecret", "GIT_AUTH_TOKEN");
        set("git.authheadersecret", "GIT_AUTH_HEADER");
        if keep_git_dir {
            set("git.keepgitdir", "true");
        }
        if self.ssh {
            set("git.mountsshsock", "default");
        }
        if !checksum.is_empty() {
            set("git.checksum", checksum);
        }
        SourceOp::new(identifier, attrs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Option<&str>) {
        let found = parse(text).expect("readable").map(|git| git.source(false, "").raw);
        assert_eq!(found.as_deref(), expected);
    }

    #[test]
    fn what_is_a_repository() {
        check("https://a.test/b/c.git", Some("git://a.test/b/c.git"));
        check("https://me@a.test/c.git#v1:d/e", Some("git://a.test/c.git#v1:d/e"));
        check("git@a.test:b/c.git#main", Some("git://a.test/b/c.git#main"));
        check("git://a.test/c", Some("git://a.test/c"));
        check("https://a.test/c.tar.gz", None);
        check("a/b", None);
        check("./a@b:c", None);
        check("github.com/a/b", None);
        assert_eq!(parse("https://a.test/c.git?ref=x"), Err(GitError::Query));
    }
}
