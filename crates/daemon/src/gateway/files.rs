//! Files of results. Paths are resolved inside the result, whatever its symlinks say.

use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;

use bollard_buildkit_proto::fsutil::types::Stat;
use bollard_buildkit_proto::moby::buildkit::v1::frontend::{
    ReadDirRequest, ReadDirResponse, ReadFileRequest, ReadFileResponse, StatFileRequest, StatFileResponse,
};
use rustix::fs::FileType;
use stave_llb::pattern::Glob;
use stave_store::{MergedEntry, MergedView};
use tonic::Request;

use super::Gateway;
use crate::failure::Failure;
use crate::fsutil::mode::FileMode;
use crate::session::MAX_MESSAGE;

/// Most entries of one directory that a client is told.
const MAX_LISTED: usize = 100_000;

async fn view(
    gateway: &Gateway,
    headers: &tonic::metadata::MetadataMap,
    id: &str,
) -> Result<MergedView, Failure> {
    let (build, target) = gateway.target(headers, id).await?;
    let solved = build.solve(&target).await;
    let snapshot = build.settle(solved).await?;
    Ok(build.engine().store().view(&snapshot)?)
}

pub(super) async fn read_file(
    gateway: &Gateway,
    request: Request<ReadFileRequest>,
) -> Result<ReadFileResponse, Failure> {
    let view = view(gateway, request.metadata(), &request.get_ref().r#ref).await?;
    let request = request.into_inner();
    let path = &request.file_path;
    let failed = |error: &dyn std::fmt::Display| Failure::NotFound(format!("open {path}: {error}"));
    let Some(mut file) = view.open(Path::new(path))? else {
        return Err(failed(&"no such file or directory"));
    };
    let (offset, length) = request.range.map_or((0, 0), |range| (range.offset, range.length));
    let offset = u64::try_from(offset).map_err(|_| Failure::Value("negative offset".to_owned()))?;
    let limit = match u64::try_from(length) {
        Ok(0) => MAX_MESSAGE as u64,
        Ok(length) => length.min(MAX_MESSAGE as u64),
        Err(_) => return Err(Failure::Value("negative length".to_owned())),
    };
    let mut data = Vec::new();
    let is_file = file.metadata().is_ok_and(|metadata| metadata.is_file());
    if !is_file {
        return Err(Failure::Value(format!("read {path}: not a regular file")));
    }
    file.seek(SeekFrom::Start(offset))
        .and_then(|_| file.take(limit).read_to_end(&mut data))
        .map_err(|error| failed(&error))?;
    Ok(ReadFileResponse { data })
}

pub(super) async fn read_dir(
    gateway: &Gateway,
    request: Request<ReadDirRequest>,
) -> Result<ReadDirResponse, Failure> {
    let view = view(gateway, request.metadata(), &request.get_ref().r#ref).await?;
    let request = request.into_inner();
    let folder = Path::new(&request.dir_path);
    let names = view.read_dir(folder)?;
    let missing = || Failure::NotFound(format!("open {}: no such file or directory", request.dir_path));
    let mut entries = Vec::new();
    let wanted = match request.include_pattern.as_str() {
        "" => None,
        pattern => Some(Glob::new(pattern).map_err(|error| Failure::Value(error.to_string()))?),
    };
    for name in names.ok_or_else(missing)?.into_iter().take(MAX_LISTED) {
        let shown = name.to_string_lossy().into_owned();
        if wanted.as_ref().is_some_and(|pattern| !pattern.matches(&shown)) {
            continue;
        }
        if let Some(entry) = view.symlink_metadata(&folder.join(&name))? {
            entries.push(describe(&entry, shown)?);
        }
    }
    Ok(ReadDirResponse { entries })
}

pub(super) async fn stat_file(
    gateway: &Gateway,
    request: Request<StatFileRequest>,
) -> Result<StatFileResponse, Failure> {
    let view = view(gateway, request.metadata(), &request.get_ref().r#ref).await?;
    let path = request.into_inner().path;
    let missing = || Failure::NotFound(format!("lstat {path}: no such file or directory"));
    let entry = view.symlink_metadata(Path::new(&path))?.ok_or_else(missing)?;
    let name = Path::new(&path).file_name().map(|name| name.to_string_lossy().into_owned());
    Ok(StatFileResponse { stat: Some(describe(&entry, name.unwrap_or_else(|| "/".to_owned()))?) })
}

fn describe(entry: &MergedEntry, path: String) -> Result<Stat, Failure> {
    let here = entry.stat();
    let (seconds, nanoseconds) = entry.mtime();
    let linkname = match entry.file_type() {
        FileType::Symlink => entry.read_link()?.to_string_lossy().into_owned(),
        _ => String::new(),
    };
    Ok(Stat {
        path,
        mode: FileMode::from_raw(here.st_mode).0,
        uid: here.st_uid,
        gid: here.st_gid,
        size: if entry.file_type() == FileType::RegularFile { here.st_size } else { 0 },
        mod_time: seconds.saturating_mul(1_000_000_000).saturating_add(i64::from(nanoseconds)),
        linkname,
        ..Stat::default()
    })
}
