//! Repositories as sources of `ADD`.
//!
//! Owns which texts name a repository and what fragment and query say about it. Start with [`parse`].

use std::collections::BTreeMap;

use stave_llb::SourceOp;

use crate::{boolean, path, quote::quote, url::decoded};

/// Where repositories need no scheme to be known as such.
const HOSTED: &str = "github.com/";

/// A repository as `ADD` names it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct GitRef {
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
    /// Which times files get, if that is said. `ADD` does not look at it, in the reference, too.
    times: String,
}

/// Why a repository's address is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum GitError {
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

/// Reads a repository's address as `ADD` takes it; `None` for what is a path or a download.
pub(crate) fn parse(text: &str) -> Result<Option<GitRef>, GitError> {
    let Some((address, rest)) = address(text) else { return Ok(None) };
    let (query, fragment) = rest;
    let (revision, subdir) = fragment.split_once(':').unwrap_or((&fragment, ""));
    let mut git = GitRef { revision: revision.to_owned(), subdir: relative(subdir), ..address };
    git.query(query)?;
    Ok(Some(git))
}

/// As [`parse`], but a name below `github.com/` is a repository, too: so build contexts have it.
pub(crate) fn parse_context(text: &str) -> Result<Option<GitRef>, GitError> {
    match text.starts_with(HOSTED) {
        true => parse(&format!("https://{text}")).map(|git| git.or_else(|| hosted(text))),
        false => parse(text),
    }
}

/// A repository without `.git` at its end.
fn hosted(text: &str) -> Option<GitRef> {
    let (address, fragment) = text.split_once('#').unwrap_or((text, ""));
    let (address, query) = address.split_once('?').unwrap_or((address, ""));
    let (host, path) = address.split_once('/')?;
    let fragment = decoded(fragment)?;
    let (revision, subdir) = fragment.split_once(':').unwrap_or((&fragment, ""));
    let mut git = GitRef {
        remote: format!("https://{address}"),
        host: host.to_owned(),
        path: format!("/{}", decoded(path)?),
        revision: revision.to_owned(),
        subdir: relative(subdir),
        ..GitRef::default()
    };
    git.query(query).ok()?;
    Some(git)
}

/// The address proper, then query and fragment.
fn address(text: &str) -> Option<(GitRef, (&str, String))> {
    if text.starts_with("./") || text.starts_with("../") {
        return None;
    }
    let (address, fragment) = text.split_once('#').unwrap_or((text, ""));
    let (address, query) = address.split_once('?').unwrap_or((address, ""));
    // Only addresses proper have a text to decode.
    if let Some((scheme, rest)) = address.split_once("://").filter(|(scheme, _)| is_word(scheme, "")) {
        let scheme = scheme.to_ascii_lowercase();
        let (host, path, ssh) = with_scheme(&scheme, rest)?;
        let remote = format!("{scheme}://{rest}");
        return Some((GitRef { remote, host, path, ssh, ..GitRef::default() }, (query, decoded(fragment)?)));
    }
    let (host, path, ssh) = scp_style(address).filter(|_| pairs(query).all(|pair| pair.is_some()))?;
    let git = GitRef { remote: address.to_owned(), host, path, ssh, ..GitRef::default() };
    Some((git, (query, fragment.to_owned())))
}

/// Host, path and whether it is reached over ssh.
fn with_scheme(scheme: &str, rest: &str) -> Option<(String, String, bool)> {
    let (authority, repository) = rest.split_once('/').unwrap_or((rest, ""));
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let repository = decoded(repository)?;
    let is_repository = match scheme {
        "git" | "ssh" => true,
        // Anything else behind these is a download.
        "http" | "https" => repository.ends_with(".git"),
        _ => false,
    };
    is_repository.then(|| (host.to_owned(), format!("/{repository}"), scheme == "ssh"))
}

fn is_word(text: &str, more: &str) -> bool {
    !text.is_empty() && text.chars().all(|letter| letter.is_ascii_alphanumeric() || more.contains(letter))
}

/// `user@host:path`
fn scp_style(text: &str) -> Option<(String, String, bool)> {
    let (user, rest) = text.split_once('@')?;
    let (host, repository) = rest.split_once(':')?;
    (is_word(user, "-_") && is_word(host, "-.")).then(|| (host.to_owned(), repository.to_owned(), true))
}

/// A directory in a repository, without a leading slash.
fn relative(subdir: &str) -> String {
    path::join("/", subdir).trim_start_matches('/').to_owned()
}

/// The sound pairs of a query.
fn pairs(query: &str) -> impl Iterator<Item = Option<(String, String)>> {
    query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let plain = |text: &str| decoded(&text.replace('+', " "));
        Some((plain(name)?, plain(value)?)).filter(|_| !pair.contains(';'))
    })
}

/// The pairs by name, each name once; others than sound ones do not count, as Go has it.
fn by_name(query: &str) -> Result<BTreeMap<String, String>, GitError> {
    let mut named = BTreeMap::new();
    for (name, value) in pairs(query).flatten() {
        if named.insert(name.clone(), value).is_some() {
            return Err(GitError::ManyValues(name));
        }
    }
    Ok(named)
}

/// A switch that is on where it has no value.
fn switch(name: &'static str, value: &str) -> Result<bool, GitError> {
    let bad = || GitError::Value { name, value: value.to_owned() };
    if value.is_empty() { Ok(true) } else { boolean::parse(value).ok_or_else(bad) }
}

impl GitRef {
    fn query(&mut self, query: &str) -> Result<(), GitError> {
        let mut tag = None;
        let mut branch = None;
        for (name, value) in by_name(query)? {
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
                "subdir" => self.subdir = value,
                "checksum" | "commit" => self.checksum = value,
                "keep-git-dir" => self.keep_git_dir = Some(switch("keep-git-dir", &value)?),
                "submodules" => self.without_submodules = !switch("submodules", &value)?,
                "fetch-by-commit" => self.fetch_by_commit = switch("fetch-by-commit", &value)?,
                "mtime" if matches!(value.as_str(), "checkout" | "commit") => self.times = value,
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
    pub(crate) fn source(&self, keep_git_dir: Option<bool>, checksum: &str) -> Result<SourceOp, GitError> {
        if matches!((keep_git_dir, self.keep_git_dir), (Some(flag), Some(query)) if flag != query) {
            return Err(GitError::KeepGitDir);
        }
        if !checksum.is_empty() && !self.checksum.is_empty() && checksum != self.checksum {
            return Err(GitError::Checksum(checksum.to_owned(), self.checksum.clone()));
        }
        let checksum = if checksum.is_empty() { &self.checksum } else { checksum };
        let keep = keep_git_dir.or(self.keep_git_dir) == Some(true);
        Ok(self.op(keep, checksum, ""))
    }

    /// The source operation of a build context or a named one.
    pub(crate) fn context_source(&self, keep_git_dir: bool, commit_times: bool) -> SourceOp {
        let keep = keep_git_dir || self.keep_git_dir == Some(true);
        let times = match (self.times.as_str(), commit_times) {
            ("", true) => "commit",
            (times, _) => times,
        };
        self.op(keep, &self.checksum, times)
    }

    /// What it says about keeping `.git`.
    pub(crate) fn keeps_git_dir(&self) -> Option<bool> {
        self.keep_git_dir
    }

    /// The commit it says it is; empty if it says none.
    pub(crate) fn checksum(&self) -> &str {
        &self.checksum
    }

    fn op(&self, keep: bool, checksum: &str, times: &str) -> SourceOp {
        let mut identifier = format!("git://{}{}", self.host, path::join("/", &self.path));
        if !self.revision.is_empty() || !self.subdir.is_empty() {
            identifier = format!("{identifier}#{}", self.revision);
        }
        if !self.subdir.is_empty() {
            identifier = format!("{identifier}:{}", self.subdir);
        }
        let attrs = [
            (true, "git.fullurl", self.remote.as_str()),
            (true, "git.authtokensecret", "GIT_AUTH_TOKEN"),
            (true, "git.authheadersecret", "GIT_AUTH_HEADER"),
            (keep, "git.keepgitdir", "true"),
            (self.ssh, "git.mountsshsock", "default"),
            (!checksum.is_empty(), "git.checksum", checksum),
            (self.without_submodules, "git.skipsubmodules", "true"),
            (!times.is_empty(), "git.mtime", times),
            (self.fetch_by_commit, "git.fetchbycommit", "true"),
        ];
        let attrs = attrs.into_iter().filter(|(given, ..)| *given);
        let attrs = attrs.map(|(_, name, value)| (name.to_owned(), value.to_owned())).collect();
        SourceOp::new(identifier, attrs)
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
        check("https://a.test/c%20d.git#a%3Ab", Some("git://a.test/c d.git#a:b"));
        let hosted = parse_context("github.com/a/b#v1:c").expect("readable").expect("one");
        let source = hosted.context_source(false, true);
        assert_eq!(source.raw, "git://github.com/a/b#v1:c");
        assert_eq!(source.attrs["git.fullurl"], "https://github.com/a/b");
        assert_eq!(source.attrs["git.mtime"], "commit");
    }

    #[test]
    fn queries() {
        check("https://a.test/c.git?ref=x&subdir=d%2Fe", Some("git://a.test/c.git#x:d/e"));
        check("https://a.test/c.git?tag=v1", Some("git://a.test/c.git#refs/tags/v1"));
        check("https://a.test/c.git?branch=refs/heads/b", Some("git://a.test/c.git#refs/heads/b"));
        check_error("https://a.test/c.git?ref=", "query \"ref\" has no value");
        check_error("https://a.test/c.git?ref=a&ref=b", "query \"ref\" has multiple values");
        check("https://a.test/c.git?x%zz=1&ref=y", Some("git://a.test/c.git#y"));
        check("git@a.test:b/c.git?x%zz=1", None);
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
