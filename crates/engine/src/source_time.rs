//! The time that a source has of its own, for a `SOURCE_DATE_EPOCH` that names one.
//!
//! Owns which file says it: any of a commit's (the graph asks that all have the commit's time), a download's own
//! (`Last-Modified`), and for a download without, the newest file of the archive that it is. Must not know where the
//! graph comes from; that is the front end's. Start with [`Engine::source_time`].

use std::io::{BufReader, Read as _};
use std::path::Path;

use stave_frontend_dockerfile::{Dockerfile, PlanRequest, Source, plan};
use stave_llb::{Definition, Op, SourceIdentifier};
use stave_store::{MergedEntry, MergedView, Snapshot, Store, StoreError};
use stave_worker::decompressed;
use tokio_util::sync::CancellationToken;

use crate::build::read_text;
use crate::event::Steps;
use crate::{BuildError, BuildRequest, Engine};

/// Most bytes of an archive that are read for its newest file.
const MAX_ARCHIVE: u64 = 4 << 30;
/// Most entries of one.
const MAX_ENTRIES: usize = 1_000_000;

/// What a build has to solve to learn its time, if its `SOURCE_DATE_EPOCH` names a source. A Dockerfile that
/// cannot be planned has none; planning it says why.
pub fn epoch_source(source: &Source, request: &PlanRequest) -> Option<Definition> {
    of_dockerfile(&read_text(source).ok()?, request)
}

fn of_dockerfile(dockerfile: &Dockerfile, request: &PlanRequest) -> Option<Definition> {
    plan(dockerfile, request).ok()?.epoch_source
}

impl Engine {
    /// The time of a source that [`epoch_source`] named and that was solved; `None` where it has none.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn source_time(
        &self,
        source: &Definition,
        snapshot: &Snapshot,
    ) -> Result<Option<i64>, BuildError> {
        let mut ops = source.vertices().iter().map(|vertex| &vertex.op);
        let is_http =
            |op: &Op| matches!(op, Op::Source(op) if matches!(op.identifier, SourceIdentifier::Http { .. }));
        let (is_download, store, snapshot) = (ops.any(is_http), self.store.clone(), snapshot.clone());
        let found = tokio::task::spawn_blocking(move || time_of(&store, &snapshot, is_download)).await;
        Ok(found.map_err(|_| BuildError::NoFileSystem)??)
    }

    /// The requests with the time that their `SOURCE_DATE_EPOCH` names in its place.
    pub(crate) async fn dated(
        &self,
        wanted: Vec<PlanRequest>,
        dockerfile: &Dockerfile,
        request: &BuildRequest,
        (steps, cancel): (&Steps, &CancellationToken),
    ) -> Result<Vec<PlanRequest>, BuildError> {
        let mut dated = Vec::with_capacity(wanted.len());
        for plan in wanted {
            let Some(source) = of_dockerfile(dockerfile, &plan) else {
                dated.push(plan);
                continue;
            };
            let source = request.policy.apply(&source)?;
            let session = self.local_session(request, crate::resolve::Resolved::default());
            let (snapshot, _) = self.solve(&source, session, steps, cancel).await?;
            dated.push(plan.with_epoch(self.source_time(&source, &snapshot).await?));
        }
        Ok(dated)
    }
}

fn time_of(store: &Store, snapshot: &Snapshot, is_download: bool) -> Result<Option<i64>, StoreError> {
    let view = store.view(snapshot)?;
    let names = view.read_dir(Path::new(""))?.unwrap_or_default();
    let Some(name) = names.first().map(Path::new) else { return Ok(None) };
    let time = view.symlink_metadata(name)?.as_ref().map(seconds);
    match time {
        // A file is of 1970 where the server did not say when it changed.
        Some(0) if is_download => newest_in(&view, name),
        time => Ok(time),
    }
}

fn seconds(entry: &MergedEntry) -> i64 {
    entry.mtime().0
}

/// The newest regular file of an archive; `None` for what is no archive.
fn newest_in(view: &MergedView, name: &Path) -> Result<Option<i64>, StoreError> {
    let Some(file) = view.open(name)? else { return Ok(None) };
    let mut stream = BufReader::with_capacity(1 << 16, file);
    // What cannot be read as an archive is none.
    let Ok(head) = std::io::BufRead::fill_buf(&mut stream).map(<[u8]>::to_vec) else { return Ok(None) };
    let Ok(stream) = decompressed(&head, stream) else { return Ok(None) };
    Ok(newest_of(tar::Archive::new(stream.take(MAX_ARCHIVE))))
}

fn newest_of(mut archive: tar::Archive<impl std::io::Read>) -> Option<i64> {
    let mut newest = None;
    for entry in archive.entries().ok()?.take(MAX_ENTRIES) {
        let entry = entry.ok()?;
        if entry.header().entry_type().is_file() {
            let time = entry.header().mtime().ok().and_then(|time| i64::try_from(time).ok());
            newest = newest.max(time);
        }
    }
    newest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(times: &[u64]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (at, time) in times.iter().enumerate() {
            let mut header = tar::Header::new_gnu();
            header.set_size(0);
            header.set_mode(0o644);
            header.set_mtime(*time);
            builder.append_data(&mut header, format!("f{at}"), std::io::empty()).expect("appends");
        }
        builder.into_inner().expect("is whole")
    }

    #[test]
    fn the_newest_file_dates_an_archive() {
        let newest = |bytes: &[u8]| newest_of(tar::Archive::new(bytes));
        assert_eq!(newest(&archive(&[7, 9, 8])), Some(9));
        assert_eq!(newest(&archive(&[])), None);
        assert_eq!(
            newest(b"no archive, but as long as a header would have to be".repeat(20).as_slice()),
            None
        );
    }

    #[test]
    fn a_file_or_what_is_in_it_dates_a_source() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::open(folder.path()).expect("opens");
        let time = |content: &[u8], modified: u64, is_download| {
            let layer = store.prepare(&Snapshot::scratch()).expect("prepares");
            let path = layer.upper().join("f");
            std::fs::write(&path, content).expect("writes");
            let file = std::fs::File::options().append(true).open(&path).expect("opens");
            file.set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(modified))
                .expect("sets");
            time_of(&store, &layer.commit().expect("commits"), is_download).expect("reads")
        };
        assert_eq!(time(b"", 5, false), Some(5));
        assert_eq!(time(&archive(&[7]), 5, true), Some(5));
        assert_eq!(time(&archive(&[7]), 0, true), Some(7));
        assert_eq!(time(b"text", 0, true), None);
        assert_eq!(time_of(&store, &Snapshot::scratch(), true).expect("reads"), None);
    }
}
