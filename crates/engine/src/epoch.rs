//! The one time that everything a build makes carries.
//!
//! Owns its order: `SOURCE_DATE_EPOCH`, else the commit time of a clean git checkout of the context,
//! else the newest `created` among the base images, else a fixed date. Equal inputs so give equal images,
//! whenever and wherever they are built. [`Timestamps::Preserve`] is how docker does it: the clock.
//!
//! Start with [`Dating`].

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use jiff::Timestamp;
use stave_frontend_dockerfile::ContextSource;
use stave_oci::ImageConfig;
use tokio::process::Command;
use tokio_util::task::AbortOnDropHandle;

use crate::BuildRequest;

/// The time of images that nothing else dates, in seconds since the epoch: 2000-01-01.
pub(crate) const FIXED: i64 = 946_684_800;
/// How long git may take; a build does not wait longer to know its time.
pub(crate) const GIT_PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of git's answers that are read.
const MAX_ANSWER: usize = 1 << 20;

/// What becomes of times in the result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Timestamps {
    /// Nothing made here is later than the build's epoch.
    #[default]
    Reproducible,
    /// Files keep their times, and the image has the time of its build unless `SOURCE_DATE_EPOCH` is set.
    Preserve,
}

/// The times of one build's result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dating {
    /// The image's `created` and that of new history lines, in seconds since the epoch.
    pub created: i64,
    /// The latest time of files in new layers.
    pub clamp: Option<i64>,
}

impl Dating {
    /// Begins to find out, beside everything else, which times the result of `request` carries. `bases`
    /// are the configs of all its base images; `quiet` comes when most of it may take a processor.
    pub(crate) fn begin<Q: Future<Output = ()> + Send + 'static>(
        request: &BuildRequest,
        asked: Option<i64>,
        bases: Vec<ImageConfig>,
        quiet: Q,
    ) -> impl Future<Output = Self> + Send + use<Q> {
        let timestamps = request.timestamps;
        let is_local = request.plan.context == ContextSource::Local;
        let is_needed = is_local && timestamps == Timestamps::Reproducible && asked.is_none();
        let context = is_needed.then(|| request.context.clone());
        let commit =
            context.map(|context| AbortOnDropHandle::new(tokio::spawn(checkout_time(context, quiet))));
        async move {
            let commit = match commit {
                Some(commit) => commit.await.ok().flatten(),
                None => None,
            };
            Self::new(timestamps, asked, commit, &bases)
        }
    }

    /// Settles the times from what is known: the epoch asked for, the checkout's commit time, and the
    /// configs of the base images.
    pub(crate) fn new<'a>(
        timestamps: Timestamps,
        asked: Option<i64>,
        commit: Option<i64>,
        bases: impl IntoIterator<Item = &'a ImageConfig>,
    ) -> Self {
        match timestamps {
            Timestamps::Preserve => Self { created: asked.unwrap_or_else(now), clamp: None },
            Timestamps::Reproducible => {
                let newest = || bases.into_iter().filter_map(created).max();
                let epoch = asked.or(commit).or_else(newest).unwrap_or(FIXED);
                Self { created: epoch, clamp: Some(epoch) }
            }
        }
    }
}

fn now() -> i64 {
    Timestamp::now().as_second()
}

/// The newest time a config names.
fn created(config: &ImageConfig) -> Option<i64> {
    let history = config.history.iter().filter_map(|entry| entry.created.as_deref());
    let known = config.created.as_deref().into_iter().chain(history);
    known.filter_map(|text| text.parse::<Timestamp>().ok()).map(Timestamp::as_second).max()
}

/// The commit time of the git checkout that `context` lies in, if nothing below `context` differs from
/// that commit. Anything that goes wrong means that there is no such time.
pub(crate) async fn checkout_time(context: PathBuf, quiet: impl Future<Output = ()>) -> Option<i64> {
    if !context.ancestors().any(|directory| directory.join(".git").exists()) {
        return None;
    }
    tokio::time::timeout(GIT_PATIENCE, commit_time(&context, quiet)).await.ok().flatten()
}

async fn commit_time(context: &Path, quiet: impl Future<Output = ()>) -> Option<i64> {
    if names_programs(context).await {
        return None;
    }
    quiet.await;
    // Not `log`, which verifies signatures with a program that the configuration names.
    let commit = ["rev-list", "-1", "--timestamp", "HEAD"];
    let (clean, commit) = tokio::join!(clean_commit(context), git(context, &commit));
    time_of(&commit?, &clean?)
}

/// The time in a line of `rev-list --timestamp` about the commit `clean`. When another one was made between the two
/// questions, its time says nothing of the files that were looked at.
fn time_of(commit: &str, clean: &str) -> Option<i64> {
    let (time, id) = commit.trim_end().split_once(' ')?;
    (id == clean).then(|| time.parse().ok()).flatten().filter(|time| stave_oci::is_date(*time))
}

/// Whether nothing below `context` is known to differ from the checkout's commit.
pub(crate) async fn is_clean(context: &Path) -> bool {
    !names_programs(context).await && clean_commit(context).await.is_some()
}

/// Whether the checkout's own configuration names programs that `status` runs on files, or is not known: a build of a
/// directory must run nothing of it outside its sandbox.
async fn names_programs(context: &Path) -> bool {
    let settings = git(context, &["config", "--list", "--show-scope", "--name-only"]).await;
    settings.is_none_or(|settings| settings.lines().any(is_program))
}

/// The commit that nothing below `context` differs from. Looks at the files.
async fn clean_commit(context: &Path) -> Option<String> {
    let mut status = vec!["status", "--porcelain=v2", "--branch", "--no-ahead-behind"];
    status.extend(["--ignore-submodules=dirty", "--untracked-files=normal", "--", "."]);
    clean_commit_of(&git(context, &status).await?).map(str::to_owned)
}

/// The commit that a status is about, if it lists no differences.
fn clean_commit_of(status: &str) -> Option<&str> {
    if status.lines().any(|line| !line.starts_with("# ")) {
        return None;
    }
    status.lines().find_map(|line| line.strip_prefix("# branch.oid "))
}

/// Whether a line of `git config --show-scope` is a setting of the checkout's that makes `status` run a program.
fn is_program(line: &str) -> bool {
    let (scope, name) = line.split_once(char::is_whitespace).unwrap_or_default();
    let own = matches!(scope, "local" | "worktree");
    let name = name.to_ascii_lowercase();
    own && (name.starts_with("filter.") || name == "core.attributesfile")
}

pub(crate) async fn git(context: &Path, arguments: &[&str]) -> Option<String> {
    let mut command = Command::new("git");
    command.arg("-C").arg(context).args(["--no-optional-locks", "-c", "core.fsmonitor=false"]);
    // What a user ignores everywhere must not decide which time an image carries.
    command.args(["-c", "core.hooksPath=/dev/null", "-c", "core.excludesFile=/dev/null"]).args(arguments);
    // Objects that a partial clone lacks would be fetched, by a program that its configuration names.
    command.env("GIT_NO_LAZY_FETCH", "1").env("GIT_ALLOW_PROTOCOL", "none");
    for variable in ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX"] {
        command.env_remove(variable);
    }
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true).output().await.ok()?;
    if !output.status.success() || output.stdout.len() > MAX_ANSWER {
        return None;
    }
    String::from_utf8(output.stdout).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::ready;

    #[track_caller]
    fn check(asked: Option<i64>, commit: Option<i64>, bases: &[&str], expected: i64) {
        let config =
            |time: &&str| ImageConfig { created: Some((*time).to_owned()), ..ImageConfig::default() };
        let bases: Vec<ImageConfig> = bases.iter().map(config).collect();
        let found = Dating::new(Timestamps::Reproducible, asked, commit, &bases);
        assert_eq!(found, Dating { created: expected, clamp: Some(expected) });
    }

    #[test]
    fn the_first_that_is_known_dates_a_build() {
        let bases = ["1970-01-01T00:01:00Z", "1970-01-01T00:02:00.5Z", "nonsense"];
        check(Some(7), Some(8), &bases, 7);
        check(None, Some(8), &bases, 8);
        check(None, None, &bases, 120);
        check(None, None, &["nonsense"], FIXED);
        check(None, None, &[], FIXED);
    }

    #[test]
    fn preserved_times_are_the_clocks_or_the_ones_asked_for() {
        let preserved = |asked| Dating::new(Timestamps::Preserve, asked, Some(8), &[]);
        assert_eq!(preserved(Some(7)), Dating { created: 7, clamp: None });
        assert!(preserved(None).created > 1_700_000_000);
        assert_eq!(preserved(None).clamp, None);
    }

    #[test]
    fn programs_of_a_checkout_are_found() {
        for line in ["local\tfilter.x.clean", "worktree\tFilter.lfs.process", "local\tcore.attributesFile"] {
            assert!(is_program(line), "{line}");
        }
        for line in ["global\tfilter.lfs.clean", "local\tcore.bare", "", "local"] {
            assert!(!is_program(line), "{line}");
        }
    }

    #[test]
    fn a_status_names_the_commit_it_is_about() {
        let head =
            "# branch.oid 12ab\n# branch.head main\n# branch.upstream origin/main\n# branch.ab +? -?\n";
        assert_eq!(clean_commit_of(head), Some("12ab"));
        for line in ["? new", "1 .M N... 100644 100644 100644 12 12 f", "u UU"] {
            assert_eq!(clean_commit_of(&format!("{head}{line}\n")), None, "{line}");
        }
        assert_eq!(clean_commit_of(""), None);
        assert_eq!(time_of("7 12ab\n", "12ab"), Some(7));
        assert_eq!(time_of("7 12ab\n", "34cd"), None, "another was made meanwhile");
    }

    fn run(directory: &Path, arguments: &[&str]) {
        run_at(1_234_567_890, directory, arguments);
    }

    fn run_at(time: i64, directory: &Path, arguments: &[&str]) {
        let mut command = std::process::Command::new("git");
        command.arg("-C").arg(directory).args(["-c", "user.name=n", "-c", "user.email=e@x"]).args(arguments);
        command.env("GIT_COMMITTER_DATE", format!("{time} +0000")).env("GIT_CONFIG_GLOBAL", "/dev/null");
        let output = command.output().expect("git");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    #[tokio::test]
    async fn a_clean_checkout_has_its_commits_time() {
        if std::process::Command::new("git").arg("--version").output().is_err() {
            return;
        }
        let directory = tempfile::tempdir().expect("a temporary directory");
        let root = directory.path();
        let context = root.join("context");
        std::fs::create_dir(&context).expect("creates");
        let time = async || checkout_time(context.clone(), ready(())).await;
        assert_eq!(time().await, None);
        std::fs::write(context.join("f"), "1").expect("writes");
        run(root, &["init", "-q"]);
        run(root, &["add", "."]);
        run(root, &["commit", "-q", "-m", "one"]);
        assert_eq!(time().await, Some(1_234_567_890));
        // What lies outside of the context does not matter; what lies inside does.
        std::fs::write(root.join("elsewhere"), "").expect("writes");
        assert_eq!(time().await, Some(1_234_567_890));
        std::fs::write(context.join("f"), "2").expect("writes");
        assert_eq!(time().await, None);
        run(root, &["checkout", "-q", "context"]);
        std::fs::write(context.join("untracked"), "").expect("writes");
        assert_eq!(time().await, None);
        std::fs::remove_file(context.join("untracked")).expect("removes");
        // What is committed until the files are looked at has the time of that commit.
        let quiet = async {
            run_at(1_234_567_900, root, &["commit", "-q", "--allow-empty", "-m", "two"]);
        };
        assert_eq!(checkout_time(context.clone(), quiet).await, Some(1_234_567_900));
        // A program that the checkout names is never run.
        let marker = root.join("ran");
        run(root, &["config", "filter.x.clean", &format!("touch {}", marker.display())]);
        std::fs::write(root.join(".git/info/attributes"), "* filter=x\n").expect("writes");
        std::fs::write(context.join("f"), "1").expect("writes");
        assert_eq!(time().await, None);
        assert!(!marker.exists());
    }

    /// A checkout of one commit, and a program beside it that leaves a marker.
    fn checkout(root: &Path) -> (PathBuf, PathBuf, PathBuf) {
        use std::os::unix::fs::PermissionsExt as _;
        let (context, program, marker) = (root.join("context"), root.join("program"), root.join("ran"));
        std::fs::create_dir(&context).expect("creates");
        std::fs::write(&program, format!("#!/bin/sh\ntouch {}\nexit 1\n", marker.display())).expect("writes");
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).expect("sets");
        std::fs::write(context.join("f"), "1").expect("writes");
        run(&context, &["init", "-q"]);
        run(&context, &["add", "."]);
        run(&context, &["commit", "-q", "-m", "one"]);
        (context, program, marker)
    }

    #[tokio::test]
    async fn no_signature_is_verified_and_no_object_fetched() {
        if std::process::Command::new("git").arg("--version").output().is_err() {
            return;
        }
        let directory = tempfile::tempdir().expect("a temporary directory");
        let (context, program, marker) = checkout(directory.path());
        let named = program.display().to_string();
        run(&context, &["config", "gpg.program", &named]);
        run(&context, &["config", "log.showSignature", "true"]);
        let signed = std::fs::read_to_string(context.join(".git/HEAD")).expect("reads");
        let reference = context.join(".git").join(signed.trim().trim_start_matches("ref: "));
        let commit = std::process::Command::new("git")
            .arg("-C")
            .arg(&context)
            .args(["cat-file", "commit", "HEAD"])
            .output()
            .expect("git");
        let commit = String::from_utf8(commit.stdout).expect("text");
        let lines = "\ngpgsig -----BEGIN PGP SIGNATURE-----\n \n iQ==\n -----END PGP SIGNATURE-----\n\n";
        std::fs::write(directory.path().join("commit"), commit.replacen("\n\n", lines, 1)).expect("writes");
        let object = std::process::Command::new("git")
            .arg("-C")
            .arg(&context)
            .args(["hash-object", "-t", "commit", "-w"])
            .arg(directory.path().join("commit"))
            .output()
            .expect("git");
        std::fs::write(&reference, object.stdout).expect("writes");
        assert_eq!(checkout_time(context.clone(), ready(())).await, Some(1_234_567_890));
        assert!(!marker.exists(), "the signature was verified");

        // A partial clone whose tree is missing.
        let tree = std::process::Command::new("git")
            .arg("-C")
            .arg(&context)
            .args(["rev-parse", "HEAD^{tree}"])
            .output()
            .expect("git");
        let tree = String::from_utf8(tree.stdout).expect("text");
        let object = context.join(".git/objects").join(&tree[..2]).join(tree[2..].trim());
        std::fs::remove_file(object).expect("removes");
        for (key, value) in [
            ("core.repositoryformatversion", "1"),
            ("extensions.partialClone", "origin"),
            ("remote.origin.url", "/"),
            ("remote.origin.promisor", "true"),
            ("remote.origin.uploadpack", named.as_str()),
        ] {
            run(&context, &["config", key, value]);
        }
        assert_eq!(checkout_time(context.clone(), ready(())).await, None);
        assert!(!marker.exists(), "the tree was fetched");
    }
}
