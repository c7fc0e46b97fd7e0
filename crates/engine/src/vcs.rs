//! The git checkout that a build's context lies in, as buildx tells of it: for provenance and, where asked for, labels.
//!
//! Owns what is asked of git. No credential of an address is kept. Start with [`Checkout::of`].

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use stave_frontend_dockerfile::ContextSource;

use crate::BuildRequest;
use crate::epoch::{GIT_PATIENCE, git, is_clean};
use crate::names::without_credentials;

/// What the provenance of a build says of its checkout; nothing where none is asked for.
pub(crate) async fn facts(request: &BuildRequest) -> BTreeMap<String, String> {
    if request.attest.provenance.is_none() || request.plan.context != ContextSource::Local {
        return BTreeMap::new();
    }
    match Checkout::of(&request.context, false).await {
        Some(checkout) => checkout.facts(&[("context", &request.context)]),
        None => BTreeMap::new(),
    }
}

/// A commit and where it is from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkout {
    /// Its top directory.
    root: PathBuf,
    /// The commit; none before the first.
    revision: Option<String>,
    /// The address of the repository that it follows, without credentials.
    source: Option<String>,
}

impl Checkout {
    /// The checkout that `context` lies in. Anything that goes wrong means that there is none. With `mark_dirty`, a
    /// commit that `context` differs from ends in `-dirty`.
    pub async fn of(context: &Path, mark_dirty: bool) -> Option<Self> {
        let context = std::fs::canonicalize(context).ok()?;
        if !context.ancestors().any(|directory| directory.join(".git").exists()) {
            return None;
        }
        tokio::time::timeout(GIT_PATIENCE, Self::ask(&context, mark_dirty)).await.ok().flatten()
    }

    async fn ask(context: &Path, mark_dirty: bool) -> Option<Self> {
        let root = git(context, &["rev-parse", "--show-toplevel"]).await?;
        let revision = git(context, &["rev-parse", "--verify", "--quiet", "HEAD^{commit}"]).await;
        let mut revision = revision.map(|text| text.trim().to_owned()).filter(|text| !text.is_empty());
        if let Some(revision) = revision.as_mut().filter(|_| mark_dirty)
            && !is_clean(context).await
        {
            revision.push_str("-dirty");
        }
        let source = source(context).await.map(|url| without_credentials(&url).replace("://xxxxx@", "://"));
        Some(Self { root: PathBuf::from(root.trim_end_matches('\n')), revision, source })
    }

    /// What provenance says, by buildx's names. `directories` are those read by the build, with their names there.
    pub fn facts(&self, directories: &[(&str, &Path)]) -> BTreeMap<String, String> {
        let known = [("revision", &self.revision), ("source", &self.source)];
        let mut facts: BTreeMap<String, String> =
            known.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value.clone()?))).collect();
        for (name, directory) in directories {
            facts.extend(self.below(directory).map(|below| (format!("localdir:{name}"), below)));
        }
        facts
    }

    /// The labels that buildx sets where `BUILDX_GIT_LABELS` asks for them.
    pub fn labels(&self, dockerfile: &Path) -> BTreeMap<String, String> {
        let known = [
            ("org.opencontainers.image.revision", self.revision.clone()),
            ("org.opencontainers.image.source", self.source.clone()),
            ("com.docker.image.source.entrypoint", self.below(dockerfile)),
        ];
        known.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
    }

    /// A path as seen from the top directory, if it is below that.
    fn below(&self, path: &Path) -> Option<String> {
        let path = std::fs::canonicalize(path).ok()?;
        let below = path.strip_prefix(&self.root).ok()?.to_str()?;
        Some(if below.is_empty() { ".".to_owned() } else { below.to_owned() })
    }
}

/// The remote that the branch follows, else `origin`, else `upstream`: buildx's order.
async fn source(context: &Path) -> Option<String> {
    let followed = git(context, &["rev-parse", "--abbrev-ref", "--symbolic-full-name", "@{upstream}"]).await;
    let followed = followed.and_then(|text| text.trim().split_once('/').map(|(remote, _)| remote.to_owned()));
    for remote in followed.into_iter().chain(["origin", "upstream"].map(str::to_owned)) {
        let url = git(context, &["remote", "get-url", "--", &remote]).await;
        if let Some(url) = url.map(|url| url.trim().to_owned()).filter(|url| !url.is_empty()) {
            return Some(url);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(directory: &Path, arguments: &[&str]) {
        let mut command = std::process::Command::new("git");
        command.arg("-C").arg(directory).args(["-c", "user.name=n", "-c", "user.email=e@x"]).args(arguments);
        let output = command.env("GIT_CONFIG_GLOBAL", "/dev/null").output().expect("git");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    #[tokio::test]
    async fn a_checkout_says_where_it_is_from() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let root = directory.path();
        let context = root.join("app");
        std::fs::create_dir(&context).expect("creates");
        assert_eq!(Checkout::of(&context, false).await, None);
        run(root, &["init", "-q"]);
        let before = Checkout::of(&context, false).await.expect("is one");
        assert_eq!(before.facts(&[]), BTreeMap::new());
        std::fs::write(context.join("Dockerfile"), "FROM scratch\n").expect("writes");
        run(root, &["add", "."]);
        run(root, &["commit", "-q", "-m", "one"]);
        run(root, &["remote", "add", "origin", "https://user:secret@git.example/team/app.git"]);
        let checkout = Checkout::of(&context, true).await.expect("is one");
        let facts = checkout.facts(&[("context", &context), ("top", root), ("other", Path::new("/"))]);
        let revision = facts["revision"].clone();
        assert_eq!((revision.len(), facts["source"].as_str()), (40, "https://git.example/team/app.git"));
        assert_eq!((facts["localdir:context"].as_str(), facts["localdir:top"].as_str()), ("app", "."));
        assert_eq!(facts.len(), 4, "{facts:?}");
        let labels = checkout.labels(&context.join("Dockerfile"));
        assert_eq!(labels["com.docker.image.source.entrypoint"], "app/Dockerfile");
        assert_eq!(labels["org.opencontainers.image.revision"], revision);
        std::fs::write(context.join("Dockerfile"), "FROM scratch AS x\n").expect("writes");
        let dirty = Checkout::of(&context, true).await.expect("is one").revision;
        assert_eq!(dirty, Some(format!("{revision}-dirty")));
        assert_eq!(Checkout::of(&context, false).await.expect("is one").revision, Some(revision));
    }
}
