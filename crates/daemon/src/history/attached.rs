//! What hangs on the record of a build: the error as it was told, the trace, what is said of the result, what `Status`
//! said. Found by digest, as content.
//!
//! Owns the files `<root>/builds/<id>/blobs/<hex>`, which go with their record. Start with [`Attachment::write`] and
//! [`Archive::content`].

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use bollard_buildkit_proto::moby::buildkit::v1::{BuildHistoryRecord, Descriptor};
use stave_oci::Digest;

use super::{Archive, STATUS_FILE};
use crate::tenants::Caller;

const BLOBS: &str = "blobs";

/// Something that is to hang on a record.
#[derive(Debug, Clone)]
pub(crate) struct Attachment {
    pub(crate) media_type: &'static str,
    pub(crate) annotations: HashMap<String, String>,
    pub(crate) bytes: Vec<u8>,
}

impl Attachment {
    pub(crate) fn new(media_type: &'static str, bytes: Vec<u8>) -> Self {
        Self { media_type, annotations: HashMap::new(), bytes }
    }

    /// Writes it beside the record at `place`.
    pub(super) fn write(self, place: &Path) -> io::Result<Descriptor> {
        let digest = Digest::sha256(&self.bytes);
        let folder = place.join(BLOBS);
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join(digest.hex()), &self.bytes)?;
        Ok(Descriptor {
            media_type: self.media_type.to_owned(),
            digest: digest.to_string(),
            size: i64::try_from(self.bytes.len()).unwrap_or(i64::MAX),
            annotations: self.annotations,
        })
    }
}

/// One content of a record.
#[derive(Debug, Clone)]
pub(crate) struct Content {
    pub(crate) digest: String,
    /// Bytes.
    pub(crate) size: i64,
    pub(crate) created: SystemTime,
    path: PathBuf,
    is_compressed: bool,
}

impl Content {
    /// Its bytes.
    pub(crate) fn open(&self) -> io::Result<Box<dyn Read + Send>> {
        let file = BufReader::new(File::open(&self.path)?);
        Ok(match self.is_compressed {
            true => Box::new(zstd::Decoder::with_buffer(file)?),
            false => Box::new(file),
        })
    }
}

impl Archive {
    /// The contents of the builds that are over, those of the newest first. Blocks.
    pub(crate) fn content(&self, caller: &Caller) -> Vec<Content> {
        let mut found = Vec::new();
        for (id, record) in self.over(caller) {
            let place = self.history.place(&id);
            for (descriptor, is_log) in attached(&record) {
                let named = path(&place, &descriptor.digest);
                let path = if is_log { Some(place.join(STATUS_FILE)) } else { named };
                let Some(path) = path else { continue };
                let Ok(metadata) = path.metadata() else { continue };
                found.push(Content {
                    digest: descriptor.digest.clone(),
                    size: descriptor.size,
                    created: metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH),
                    path,
                    is_compressed: is_log,
                });
            }
        }
        found
    }
}

/// Where what hangs on the record at `place` lies; `None` for what is no digest.
pub(super) fn path(place: &Path, digest: &str) -> Option<PathBuf> {
    let name = digest.strip_prefix("sha256:")?;
    // Only a digest is the name of a file here.
    let is_hex = name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_hex.then(|| place.join(BLOBS).join(name))
}

/// The descriptors of a record, and whether each is that of what `Status` said.
fn attached(record: &BuildHistoryRecord) -> impl Iterator<Item = (&Descriptor, bool)> {
    let logs = record.logs.iter().map(|logs| (logs, true));
    let one = record.external_error.iter().chain(&record.trace);
    let said = record.result.iter().flat_map(|result| &result.attestations);
    let by_platform = record.results.values().flat_map(|result| &result.attestations);
    logs.chain(one.chain(said).chain(by_platform).map(|descriptor| (descriptor, false)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_hangs_on_a_record_lies_under_its_digest() {
        let place = tempfile::tempdir().expect("a folder");
        let written = Attachment::new("text/plain", b"abc".to_vec()).write(place.path()).expect("writes");
        assert_eq!((written.media_type.as_str(), written.size), ("text/plain", 3));
        assert_eq!(written.digest, Digest::sha256(b"abc").to_string());
        let path = place.path().join(BLOBS).join(Digest::sha256(b"abc").hex());
        assert_eq!(std::fs::read(path).expect("is there"), b"abc");
        let record = BuildHistoryRecord {
            trace: Some(written.clone()),
            logs: Some(Descriptor::default()),
            ..BuildHistoryRecord::default()
        };
        let all: Vec<_> = attached(&record).map(|(one, is_log)| (one.clone(), is_log)).collect();
        assert_eq!(all, [(Descriptor::default(), true), (written, false)]);
    }
}
