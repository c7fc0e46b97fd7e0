//! What `Status` said of a build, on disk. Start with [`write()`] and [`Replay`].

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write as _};
use std::path::Path;
use std::sync::Arc;

use bollard_buildkit_proto::moby::buildkit::v1::{Descriptor, StatusResponse};
use prost::Message as _;
use stave_oci::{Algorithm, Hasher};

/// What BuildKit calls this form.
const MEDIA_TYPE: &str = "application/vnd.buildkit.status.v0";
/// The longest message that is read.
const MAX_MESSAGE: u32 = 16 << 20;
/// zstd's level: output is written once, while nobody waits for long.
const LEVEL: i32 = 3;

/// Writes all messages, each after its length; returns what they are before they are compressed.
pub(super) fn write(path: &Path, entries: &[Arc<StatusResponse>]) -> io::Result<Descriptor> {
    let mut file = zstd::Encoder::new(BufWriter::new(File::create(path)?), LEVEL)?;
    let mut hasher = Hasher::new(Algorithm::Sha256);
    let mut size: i64 = 0;
    for entry in entries {
        let bytes = entry.encode_to_vec();
        let Ok(length) = u32::try_from(bytes.len()) else { continue };
        for part in [&length.to_le_bytes()[..], &bytes] {
            hasher.update(part);
            file.write_all(part)?;
        }
        size += i64::from(length) + 4;
    }
    file.finish()?.flush()?;
    Ok(Descriptor {
        media_type: MEDIA_TYPE.to_owned(),
        digest: hasher.finish().to_string(),
        size,
        annotations: HashMap::new(),
    })
}

/// The messages of a build that is over, one after the other.
pub(crate) struct Replay {
    file: Box<dyn Read + Send>,
}

impl Replay {
    /// A build of which nothing was said has no messages.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        match File::open(path) {
            Ok(file) => Ok(Self { file: Box::new(zstd::Decoder::with_buffer(BufReader::new(file))?) }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self { file: Box::new(io::empty()) }),
            Err(error) => Err(error),
        }
    }
}

impl Iterator for Replay {
    type Item = io::Result<StatusResponse>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut length = [0; 4];
        match self.file.read_exact(&mut length) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return None,
            Err(error) => return Some(Err(error)),
            Ok(()) => {}
        }
        let length = u32::from_le_bytes(length);
        if length > MAX_MESSAGE {
            return Some(Err(io::ErrorKind::InvalidData.into()));
        }
        let mut bytes = vec![0; length as usize];
        let read = self.file.read_exact(&mut bytes);
        Some(read.and_then(|()| Ok(StatusResponse::decode(bytes.as_slice())?)))
    }
}

impl std::fmt::Debug for Replay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Replay")
    }
}

#[cfg(test)]
mod tests {
    use bollard_buildkit_proto::moby::buildkit::v1::VertexLog;

    use stave_oci::Digest;

    use super::*;

    #[test]
    fn what_was_written_is_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("status");
        let entry = |text: &str| {
            let log = VertexLog { msg: text.as_bytes().to_vec(), ..VertexLog::default() };
            Arc::new(StatusResponse { logs: vec![log], ..StatusResponse::default() })
        };
        let entries = [entry("a"), entry("b"), Arc::default()];
        let logs = write(&path, &entries).expect("writes");
        let read: Vec<_> = Replay::open(&path).expect("opens").map(|entry| entry.expect("reads")).collect();
        assert_eq!(read, entries.iter().map(|entry| (**entry).clone()).collect::<Vec<_>>());
        let bytes: Vec<u8> = (entries.iter())
            .flat_map(|entry| [(entry.encoded_len() as u32).to_le_bytes().to_vec(), entry.encode_to_vec()])
            .flatten()
            .collect();
        assert_eq!(logs.size, bytes.len() as i64);
        assert_eq!(logs.digest, Digest::sha256(&bytes).to_string());
        assert_eq!(Replay::open(&folder.path().join("none")).expect("opens").count(), 0);
    }
}
