//! Repositories as one file, git's bundles: one that stands in for a remote, and one that is made of a commit.
//! Owns where the first lies and how the second is made. Must not know graphs. Read [`Bundle`] and [`write`] first.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use stave_llb::{SourceIdentifier, SourceOp};
use stave_solver::JobContext;
use stave_store::ScratchDir;

use super::cli::{Git, Place, RunError};
use super::error::GitError;
use super::repository::{Repository, local, own_name};
use super::{GitPin, is_commit};
use crate::session::Session;
use crate::source::SourceError;
use crate::source::blob::BlobSource;
use crate::source::image::blocking;
use crate::worker::Shared;

/// The attribute that says where a bundle lies.
pub(super) const PLACE: &str = "git.bundle";
/// The attribute that asks for a bundle instead of files.
pub(super) const WANTED: &str = "git.checkoutbundle";

/// The one file of a commit that is taken as a bundle.
const FILE: &str = "bundle";
/// What a commit is called in its bundle if nobody gave it a name: nothing is found in a bundle that has none.
const NAMELESS: &str = "refs/heads/main";
/// Bytes of a bundle.
const SIZE_LIMIT: u64 = 64 << 30;

/// A bundle that stands in for a remote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bundle {
    place: String,
    blob: BlobSource,
}

/// A bundle on this machine, as long as this lives.
#[derive(Debug)]
pub(super) struct BundleFile {
    path: PathBuf,
    _scratch: ScratchDir,
}

impl Bundle {
    /// Reads the attribute of a source op, if it has one. A layout that is not named goes by the reference's name.
    pub(super) fn of(op: &SourceOp) -> Result<Option<Self>, GitError> {
        let Some(place) = op.attrs.get(PLACE).filter(|place| !place.is_empty()) else { return Ok(None) };
        let malformed = || GitError::BundlePlace(place.clone());
        let mut source = SourceOp::new(place, op.attrs.clone());
        let SourceIdentifier::Blob { reference, place: kind } = source.identifier.clone() else {
            return Err(malformed());
        };
        let (name, _) = reference.rsplit_once("@sha256:").ok_or_else(malformed)?;
        source.attrs.entry("oci.store".to_owned()).or_insert_with(|| name.to_owned());
        let blob = BlobSource::new(&reference, kind, &source).map_err(|_| malformed())?;
        Ok(Some(Self { place: place.clone(), blob }))
    }

    /// Where it lies, as the definition says.
    pub(super) fn place(&self) -> &str {
        &self.place
    }

    /// Brings it here.
    pub(super) async fn bring(
        &self,
        shared: &Arc<Shared>,
        cx: &JobContext<Session>,
    ) -> Result<BundleFile, SourceError> {
        let store = Arc::clone(shared);
        let scratch = blocking(move || store.store.scratch_dir()).await?;
        let path = scratch.path().join(FILE);
        self.blob.save(&path, SIZE_LIMIT, (shared, cx)).await?;
        Ok(BundleFile { path, _scratch: scratch })
    }
}

impl BundleFile {
    /// Its path, as git takes it for a remote's address.
    pub(super) fn address(&self) -> String {
        self.path.display().to_string()
    }
}

/// Writes the bundle of a commit into `upper`. The name of its one reference is that which it was asked for by, so that
/// it reads as if the remote had made it.
pub(super) async fn write(
    (revision, pin): (&str, &GitPin),
    repository: &Repository,
    git: &Git,
    (shared, upper): (&Arc<Shared>, &Path),
) -> Result<(), SourceError> {
    let store = Arc::clone(shared);
    let scratch = blocking(move || store.store.scratch_dir()).await?;
    let own = scratch.path().join("repository");
    std::fs::create_dir(&own).map_err(GitError::Run)?;
    let place = Place { git_dir: Some(&own), ..Place::default() };
    let run = async |place: Place<'_>, words: &[&str]| {
        git.run_in(place, words).await.map(drop).map_err(|error: RunError| {
            let command = words.iter().find(|word| !word.starts_with('-') && !word.contains('='));
            local(error, command.copied().unwrap_or_default())
        })
    };
    let format = if repository.is_sha256() { "--object-format=sha256" } else { "--object-format=sha1" };
    run(place, &["init", "--bare", "--quiet", "--template=", format]).await?;
    // By way of a repository that has nothing else: a bundle names references as they are called where it is made.
    let from = repository.address();
    let near = Place { local: true, ..place };
    run(near, &["fetch", "--no-tags", "--", &from, &own_name(&pin.reference)]).await?;
    let name = name_for(revision);
    // A branch is a commit's; what an annotated tag says goes with the tag's own name only.
    let object = if name.starts_with("refs/tags/") { &pin.object } else { pin.hash() };
    run(place, &["update-ref", &name, object]).await?;
    let file = upper.join(FILE).display().to_string();
    // With one thread, the same commit gives the same bytes.
    run(place, &["-c", "pack.threads=1", "bundle", "create", "--quiet", &file, &name]).await?;
    drop(scratch);
    Ok(())
}

/// What a revision is called in its bundle, as BuildKit has it: a branch, unless it says that it is a tag.
fn name_for(revision: &str) -> String {
    if revision.is_empty() || is_commit(revision) {
        return NAMELESS.to_owned();
    }
    if revision.starts_with("refs/tags/") {
        return revision.to_owned();
    }
    let name = revision.strip_prefix("refs/").unwrap_or(revision);
    format!("refs/heads/{}", name.strip_prefix("heads/").unwrap_or(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_a_bundle() {
        let check = |revision: &str, expected: &str| assert_eq!(name_for(revision), expected);
        check("", "refs/heads/main");
        check(&"0".repeat(40), "refs/heads/main");
        check("v1", "refs/heads/v1");
        check("heads/a/b", "refs/heads/a/b");
        check("refs/heads/a", "refs/heads/a");
        check("refs/tags/v1", "refs/tags/v1");
    }
}
