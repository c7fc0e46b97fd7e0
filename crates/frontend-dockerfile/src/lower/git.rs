//! Repositories as sources of `ADD`.
//!
//! Owns which texts name a repository and what fragment and query say about it. Start with [`parse`].

use std::collections::BTreeMap;

use stave_llb::SourceOp;

use super::path;
use crate::quote::quote;

/// A repository as `ADD` names it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct GitRef {
    /// The address without query and fragment.
    remote: String,
    host: String,
    path: String,
    revision: String,
    subdir: String,
    ssh: bool,
    checksum: String,
    keep_git_dir: Option<bool>,
    without_submodules: bool,
    fetch_by_commit: bool,
}

/// Why a repository's address is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum GitError {
    #[error("query {} has no value", quote(.0))]
    NoValue(String),
    #[error("query {} has multiple values", quote(.0))]
    ManyValues(String),
    #[error("unexpected query {}", quote(.0))]
    Unknown(String),
    #[error("invalid {name} value: {}", quote(.value))]
    Value { name: &'static str, value: String },
    #[error("invalid mtime value: {} (must be \"checkout\" or \"commit\")", quote(.0))]
    Time(String),
    #[error("{what} conflicts: {} vs {}", quote(.one), quote(.other))]
    Conflict { what: &'static str, one: String, other: String },
    #[error("branch conflicts with tag")]
    BranchAndTag,
    #[error("inconsistent keep-git-dir configuration")]
    KeepGitDir,
    #[error("checksum mismatch {} != {}", quote(.0), quote(.1))]
    Checksum(String, String),
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
    let (revision, subdir) = fragment.split_once(':').unwrap_or((fragment, ""));
    let mut git = GitRef {
        remote: address.to_owned(),
        host,
        path: repository,
        revision: revision.to_owned(),
        subdir: relative(subdir),
        ssh,
        ..GitRef::default()
    };
    git.query(query)?;
    Ok(Some(git))
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

/// A directory in a repository, without a leading slash.
fn relative(subdir: &str) -> String {
    path::join("/", subdir).trim_start_matches('/').to_owned()
}

/// The pairs of a query by name, each name once.
fn pairs(query: &str) -> Result<BTreeMap<String, String>, GitError> {
    let mut pairs = BTreeMap::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let plain =
            |text: &str| super::url::decoded(&text.replace('+', " ")).unwrap_or_else(|| text.to_owned());
        if pairs.insert(plain(name), plain(value)).is_some() {
            return Err(GitError::ManyValues(plain(name)));
        }
    }
    Ok(pairs)
}

fn switch(name: &'static str, value: &str) -> Result<bool, GitError> {
    match value {
        "" | "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(GitError::Value { name, value: value.to_owned() }),
    }
}

impl GitRef {
    fn query(&mut self, query: &str) -> Result<(), GitError> {
        let mut tag = None;
        let mut branch = None;
        for (name, value) in pairs(query)? {
            let is_switch = matches!(name.as_str(), "submodules" | "keep-git-dir" | "fetch-by-commit");
            if value.is_empty() && !is_switch {
                return Err(GitError::NoValue(name));
            }
            match name.as_str() {
                "ref" => self.set_revision(value)?,
                "tag" => tag = Some(prefixed("refs/tags/", &value)),
                "branch" => branch = Some(prefixed("refs/heads/", &value)),
                "subdir" if !self.subdir.is_empty() && self.subdir != value => {
                    let one = self.subdir.clone();
                    return Err(GitError::Conflict { what: "subdir", one, other: value });
                }
                "subdir" => self.subdir = relative(&value),
                "checksum" | "commit" => self.checksum = value,
                "keep-git-dir" => self.keep_git_dir = Some(switch("keep-git-dir", &value)?),
                "submodules" => self.without_submodules = !switch("submodules", &value)?,
                "fetch-by-commit" => self.fetch_by_commit = switch("fetch-by-commit", &value)?,
                // `ADD` takes the checkout's times whatever it says, in the reference, too.
                "mtime" if matches!(value.as_str(), "checkout" | "commit") => {}
                "mtime" => return Err(GitError::Time(value)),
                _ => return Err(GitError::Unknown(name)),
            }
        }
        if tag.is_some() && branch.is_some() {
            return Err(GitError::BranchAndTag);
        }
        tag.or(branch).map_or(Ok(()), |revision| self.set_revision(revision))
    }

    fn set_revision(&mut self, revision: String) -> Result<(), GitError> {
        if !self.revision.is_empty() && self.revision != revision {
            return Err(GitError::Conflict { what: "ref", one: self.revision.clone(), other: revision });
        }
        self.revision = revision;
        Ok(())
    }

    /// The source operation, with what `ADD`'s own flags say.
    pub(super) fn source(&self, keep_git_dir: Option<bool>, checksum: &str) -> Result<SourceOp, GitError> {
        if matches!((keep_git_dir, self.keep_git_dir), (Some(flag), Some(query)) if flag != query) {
            return Err(GitError::KeepGitDir);
        }
        if !checksum.is_empty() && !self.checksum.is_empty() && checksum != self.checksum {
            return Err(GitError::Checksum(checksum.to_owned(), self.checksum.clone()));
        }
        let checksum = if checksum.is_empty() { &self.checksum } else { checksum };
        let mut identifier = format!("git://{}{}", self.host, path::join("/", &self.path));
        if !self.revision.is_empty() || !self.subdir.is_empty() {
            identifier = format!("{identifier}#{}", self.revision);
        }
        if !self.subdir.is_empty() {
            identifier = format!("{identifier}:{}", self.subdir);
        }
        let keep = keep_git_dir.or(self.keep_git_dir) == Some(true);
        let attrs = [
            (true, "git.fullurl", self.remote.as_str()),
            (true, "git.authtokensecret", "GIT_AUTH_TOKEN"),
            (true, "git.authheadersecret", "GIT_AUTH_HEADER"),
            (keep, "git.keepgitdir", "true"),
            (self.ssh, "git.mountsshsock", "default"),
            (!checksum.is_empty(), "git.checksum", checksum),
            (self.without_submodules, "git.skipsubmodules", "true"),
            (self.fetch_by_commit, "git.fetchbycommit", "true"),
        ];
        let attrs = attrs.into_iter().filter(|(given, ..)| *given);
        let attrs = attrs.map(|(_, name, value)| (name.to_owned(), value.to_owned())).collect();
        Ok(SourceOp::new(identifier, attrs))
    }
}

fn prefixed(prefix: &str, name: &str) -> String {
    if name.starts_with(prefix) { name.to_owned() } else { format!("{prefix}{name}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Option<&str>) {
        let found = parse(text).expect("readable");
        let found = found.map(|git| git.source(None, "").expect("consistent").raw);
        assert_eq!(found.as_deref(), expected);
    }

    #[track_caller]
    fn check_error(text: &str, expected: &str) {
        assert_eq!(parse(text).expect_err(text).to_string(), expected);
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
    }

    #[test]
    fn queries() {
        check("https://a.test/c.git?ref=x&subdir=d%2Fe", Some("git://a.test/c.git#x:d/e"));
        check("https://a.test/c.git?tag=v1", Some("git://a.test/c.git#refs/tags/v1"));
        check("https://a.test/c.git?branch=refs/heads/b", Some("git://a.test/c.git#refs/heads/b"));
        check_error("https://a.test/c.git?ref=", "query \"ref\" has no value");
        check_error("https://a.test/c.git?ref=a&ref=b", "query \"ref\" has multiple values");
        check_error("https://a.test/c.git?x=1", "unexpected query \"x\"");
        check_error("https://a.test/c.git?ref=a#b", "ref conflicts: \"b\" vs \"a\"");
        check_error("https://a.test/c.git?tag=a&branch=b", "branch conflicts with tag");
        check_error("https://a.test/c.git?submodules=x", "invalid submodules value: \"x\"");
    }

    #[test]
    fn flags_and_query_must_agree() {
        let git = parse("https://a.test/c.git?keep-git-dir&commit=abc").expect("readable").expect("one");
        assert_eq!(git.source(Some(false), ""), Err(GitError::KeepGitDir));
        assert_eq!(git.source(None, "abd"), Err(GitError::Checksum("abd".into(), "abc".into())));
        let attrs = git.source(None, "").expect("consistent").attrs;
        assert_eq!(attrs["git.keepgitdir"], "true");
        assert_eq!(attrs["git.checksum"], "abc");
    }
}
