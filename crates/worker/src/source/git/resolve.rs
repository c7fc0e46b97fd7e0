//! Which commit a revision is: one question to the remote.
//! Owns the reading of `git ls-remote`. Read [`ask`] first.

use super::cli::Git;
use super::error::GitError;
use super::remote::Remote;
use super::{GitPin, is_commit};

/// Asks the remote what `revision` is now; an empty one is the default branch.
pub(super) async fn ask(git: &Git, remote: &Remote, revision: &str) -> Result<GitPin, GitError> {
    if revision.is_empty() {
        let output = git.run(&["ls-remote", "--symref", "--", remote.address(), "HEAD"]).await;
        let output = output.map_err(|error| {
            error.because(|source| GitError::DefaultBranch { remote: shown(remote), source })
        })?;
        return default_branch(&output, remote.shown());
    }
    let peeled = format!("{revision}^{{}}");
    let output = git.run(&["ls-remote", "--", remote.address(), revision, &peeled]).await;
    let output =
        output.map_err(|error| error.because(|source| GitError::Fetch { remote: shown(remote), source }))?;
    find(&output, revision)
}

fn shown(remote: &Remote) -> String {
    remote.shown().to_owned()
}

/// The commit of `HEAD` and the branch that it is.
fn default_branch(output: &str, remote: &str) -> Result<GitPin, GitError> {
    let none = || GitError::NoDefaultBranch(remote.to_owned());
    let mut branch = None;
    let mut object = None;
    for line in output.lines() {
        let Some((target, "HEAD")) = line.split_once('\t') else { continue };
        match target.strip_prefix("ref: ") {
            Some(name) => branch = Some(name.to_owned()),
            None => object = Some(target.to_owned()),
        }
    }
    let reference = branch.filter(|name| name.starts_with("refs/heads/")).ok_or_else(none)?;
    if !is_plain(&reference) {
        return Err(GitError::Reference(reference));
    }
    let object = object.ok_or_else(none)?;
    if !is_commit(&object) {
        return Err(GitError::CommitForm(object));
    }
    Ok(GitPin { reference, object, peeled: None })
}

/// Picks what git itself would check out: a full name, then a branch, then a tag.
fn find(output: &str, revision: &str) -> Result<GitPin, GitError> {
    let named = |prefix: &str| format!("{prefix}{}", revision.strip_prefix(prefix).unwrap_or(revision));
    let (partial, head, tag) = (named("refs/"), named("refs/heads/"), named("refs/tags/"));
    let peeled_tag = format!("{tag}^{{}}");
    let hash = |name: &str| {
        let lines = output.lines().filter_map(|line| line.split_once('\t'));
        lines.rev().find(|(_, found)| *found == name).map(|(hash, _)| hash.to_owned())
    };
    // A full name of a tag is both: then its commit counts as well.
    let full = if partial == tag { None } else { hash(&partial).map(|hash| (partial, hash)) };
    let branch = || hash(&head).map(|hash| (head.clone(), hash));
    let (reference, object, peeled) = match full.or_else(branch) {
        Some((reference, object)) => (reference, object, None),
        None => match hash(&tag) {
            Some(object) => (tag, object, hash(&peeled_tag)),
            None => {
                let revision = revision.to_owned();
                return Err(GitError::NoReference { revision, output: output.to_owned() });
            }
        },
    };
    if !is_plain(&reference) {
        return Err(GitError::Reference(reference));
    }
    for hash in [Some(&object), peeled.as_ref()].into_iter().flatten() {
        if !is_commit(hash) {
            return Err(GitError::CommitForm(hash.clone()));
        }
    }
    Ok(GitPin { reference, object, peeled })
}

/// A name without anything that means something in a refspec or a revision.
fn is_plain(reference: &str) -> bool {
    reference.chars().all(|letter| !letter.is_control() && !" :^~?*[\\".contains(letter))
        && !reference.contains("..")
        && !reference.contains("@{")
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

    #[track_caller]
    fn check(lines: &[(&str, &str)], revision: &str, expected: Option<(&str, &str, Option<&str>)>) {
        let output: String = lines.iter().map(|(hash, name)| format!("{hash}\t{name}\n")).collect();
        let found = find(&output, revision).ok();
        let found = found.as_ref().map(|pin| (&*pin.reference, &*pin.object, pin.peeled.as_deref()));
        assert_eq!(found, expected);
    }

    #[test]
    fn a_full_name_then_a_branch_then_a_tag() {
        let both = [(A, "refs/heads/x"), (B, "refs/tags/x")];
        check(&both, "x", Some(("refs/heads/x", A, None)));
        check(&both, "refs/tags/x", Some(("refs/tags/x", B, None)));
        check(&both, "heads/x", Some(("refs/heads/x", A, None)));
        let tag = [(A, "refs/tags/v1"), (B, "refs/tags/v1^{}")];
        check(&tag, "v1", Some(("refs/tags/v1", A, Some(B))));
        check(&tag, "refs/tags/v1", Some(("refs/tags/v1", A, Some(B))));
        check(&[(A, "refs/pull/7/head")], "refs/pull/7/head", Some(("refs/pull/7/head", A, None)));
        check(&[(A, "refs/pull/7/head")], "pull/7/head", Some(("refs/pull/7/head", A, None)));
    }

    #[test]
    fn what_only_looks_alike_is_not_taken() {
        check(&[(A, "refs/heads/other/x")], "x", None);
        check(&[("short", "refs/heads/x")], "x", None);
        check(&[(A, "refs/heads/*")], "*", None);
        let error = find("", "gone").expect_err("nothing there");
        assert_eq!(error.to_string(), "repository does not contain ref gone, output: \"\"");
    }

    #[test]
    fn the_default_branch() {
        let output = format!("ref: refs/heads/main\tHEAD\n{A}\tHEAD\n{B}\trefs/remotes/x/HEAD\n");
        let pin = default_branch(&output, "https://a.test/b").expect("there");
        assert_eq!((&*pin.reference, &*pin.object), ("refs/heads/main", A));
        let error = default_branch(&format!("{A}\tHEAD\n"), "https://a.test/b").expect_err("detached");
        assert_eq!(error.to_string(), "could not find default branch for repository: https://a.test/b");
    }
}
