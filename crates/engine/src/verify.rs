//! Building once more without the cache, to see whether the same comes out.
//!
//! Owns the comparison: layer by layer, then the first file that differs, and the instruction that made
//! it. Must not export anything. Start with [`Engine::verify`].

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use stave_exporter::contents::{Difference, LayerContents};
use stave_exporter::{ConfigDocument, ExportTarget, Image};
use stave_frontend_dockerfile::PlanRequest;
use stave_frontend_dockerfile::request::NoCache;
use stave_store::{LayerTar, Store, StoreError};
use tokio_util::sync::CancellationToken;

use crate::event::Observer;
use crate::{BuildError, BuildRequest, Engine};

/// What a second build had to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verified {
    /// The same image.
    Same,
    /// Another one; this is the first thing that differs.
    Differs(Box<Deviation>),
}

/// The first thing that two builds of the same differ in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Deviation {
    /// A file.
    File {
        /// Which, from the root.
        path: PathBuf,
        /// How: only one build has it where this is empty.
        how: Vec<Difference>,
        /// The instruction that made it, as the history has it.
        instruction: Option<String>,
        /// How many more files of the same layer differ.
        others: usize,
    },
    /// The number of layers.
    Layers {
        /// In the first build.
        first: usize,
        /// In the second.
        second: usize,
    },
    /// The image config.
    Config,
}

impl Engine {
    /// Builds `request` once more without the cache, exporting nothing, and compares with `images`, which
    /// a build of it made.
    ///
    /// # Errors
    /// [`BuildError`] of the second build.
    pub async fn verify(
        &self,
        request: &BuildRequest,
        images: &[Image],
        observer: Observer,
        cancel: &CancellationToken,
    ) -> Result<Verified, BuildError> {
        let lease = self.store.lease()?;
        let again = BuildRequest {
            plan: PlanRequest { no_cache: NoCache::Everything, ..request.plan.clone() },
            exports: vec![ExportTarget::CacheOnly],
            stages: Vec::new(),
            attest: crate::attest::Attest::default(),
            ..request.clone()
        };
        let second = self.build(&again, observer, cancel).await?;
        let (store, first) = (self.store.clone(), images.to_vec());
        let compared = tokio::task::spawn_blocking(move || {
            for (first, second) in first.iter().zip(&second.images) {
                if let Some(deviation) = compare(&store, first, second)? {
                    return Ok(Verified::Differs(Box::new(deviation)));
                }
            }
            Ok(Verified::Same)
        });
        let verified = compared.await.unwrap_or(Ok::<_, StoreError>(Verified::Same));
        drop(lease);
        Ok(verified?)
    }
}

fn compare(store: &Store, first: &Image, second: &Image) -> Result<Option<Deviation>, StoreError> {
    if first.layers.len() != second.layers.len() {
        return Ok(Some(Deviation::Layers { first: first.layers.len(), second: second.layers.len() }));
    }
    for (index, (one, other)) in first.layers.iter().zip(&second.layers).enumerate() {
        if one.layer == other.layer {
            continue;
        }
        let digest = |image: &Image, layer| store.tar_diff_id(LayerTar { layer, clamp: image.epoch });
        if digest(first, one.layer)? == digest(second, other.layer)? {
            continue;
        }
        let contents = |layer| LayerContents::of(store, layer, true);
        let (one, other) = (contents(one.layer)?, contents(other.layer)?);
        if let Some(mut deviation) = first_difference(&one, &other, first.epoch) {
            if let Deviation::File { instruction, .. } = &mut deviation {
                *instruction = instruction_of(first, index);
            }
            return Ok(Some(deviation));
        }
    }
    Ok(match (&first.config, &second.config) {
        (ConfigDocument::Built(one), ConfigDocument::Built(other)) if one != other => Some(Deviation::Config),
        _ => None,
    })
}

/// The first path, in byte order, at which two layers differ. Files come before the directories they
/// lie in: a directory's time follows from what was done in it.
fn first_difference(one: &LayerContents, other: &LayerContents, clamp: Option<i64>) -> Option<Deviation> {
    let paths: BTreeSet<&PathBuf> = one.entries.keys().chain(other.entries.keys()).collect();
    let differing: Vec<(&PathBuf, Vec<Difference>)> = paths
        .into_iter()
        .filter_map(|path| match (one.entries.get(path), other.entries.get(path)) {
            (Some(a), Some(b)) => Some((path, a.differs(b, clamp))).filter(|(_, how)| !how.is_empty()),
            _ => Some((path, Vec::new())),
        })
        .collect();
    let only_time = |how: &[Difference]| how == [Difference::Mtime];
    let found = differing.iter().find(|(_, how)| !only_time(how)).or(differing.first());
    let others = differing.len().saturating_sub(1);
    if let Some((path, how)) = found {
        let path = Path::new("/").join(path);
        return Some(Deviation::File { path, how: how.clone(), instruction: None, others });
    }
    let hidden = |contents: &LayerContents| contents.whiteouts.iter().cloned().collect::<BTreeSet<_>>();
    let (one, other) = (hidden(one), hidden(other));
    let path = one.symmetric_difference(&other).next()?;
    Some(Deviation::File { path: Path::new("/").join(path), how: Vec::new(), instruction: None, others: 0 })
}

/// What made the layer at `index`, by the history.
fn instruction_of(image: &Image, index: usize) -> Option<String> {
    let ConfigDocument::Built(config) = &image.config else { return None };
    let mut lines = config.history.iter().filter(|line| !line.empty_layer);
    lines.nth(index).map(|line| line.created_by.clone())
}

#[cfg(test)]
mod tests {
    use stave_exporter::contents::{FileFacts, FileKind};
    use stave_oci::Digest;

    use super::*;

    fn contents(files: &[(&str, &str, i64)]) -> LayerContents {
        let facts = |text: &str, mtime| FileFacts {
            kind: FileKind::File,
            size: text.len() as u64,
            mode: 0o644,
            owner: (0, 0),
            mtime,
            of_context: false,
            target: None,
            digest: Some(Digest::sha256(text.as_bytes())),
        };
        let entries = files.iter().map(|(path, text, mtime)| (PathBuf::from(path), facts(text, *mtime)));
        LayerContents { entries: entries.collect(), ..LayerContents::default() }
    }

    #[track_caller]
    fn check(
        second: &[(&str, &str, i64)],
        clamp: Option<i64>,
        expected: Option<(&str, &[Difference], usize)>,
    ) {
        let first = contents(&[("a", "1", 10), ("b", "2", 10)]);
        let found = first_difference(&first, &contents(second), clamp).map(|deviation| match deviation {
            Deviation::File { path, how, others, .. } => (path.display().to_string(), how, others),
            other => panic!("{other:?}"),
        });
        let expected = expected.map(|(path, how, others)| (path.to_owned(), how.to_vec(), others));
        assert_eq!(found, expected);
    }

    #[test]
    fn the_first_file_that_differs_is_named() {
        check(&[("a", "1", 10), ("b", "2", 10)], None, None);
        check(&[("a", "1", 11), ("b", "3", 10)], None, Some(("/b", &[Difference::Content], 1)));
        check(&[("a", "1", 11), ("b", "2", 10)], None, Some(("/a", &[Difference::Mtime], 0)));
        check(&[("a", "1", 11), ("b", "2", 10)], Some(5), None);
        check(&[("a", "1", 10)], None, Some(("/b", &[], 0)));
    }
}
