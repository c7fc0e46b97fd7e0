//! Files of results. Paths are resolved inside the result, whatever its symlinks say.

use std::io::{ErrorKind, Read as _, Seek as _, SeekFrom};
use std::path::{Component, Path};

use bollard_buildkit_proto::fsutil::types::Stat;
use bollard_buildkit_proto::moby::buildkit::v1::frontend::{
    FileRange, ReadDirRequest, ReadDirResponse, ReadFileRequest, ReadFileResponse, StatFileRequest,
    StatFileResponse,
};
use rustix::fs::FileType;
use stave_llb::pattern::Glob;
use stave_store::{MergedEntry, MergedView};
use stave_worker::{Container, ContainerEntry};
use tonic::Request;

use super::{Gateway, containers};
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
    let is_file = file.metadata().is_ok_and(|metadata| metadata.is_file());
    if !is_file {
        return Err(Failure::Value(format!("read {path}: not a regular file")));
    }
    Ok(ReadFileResponse { data: part(&mut file, request.range).map_err(|error| error.at(path))? })
}

/// Why no part of a file could be read.
enum PartError {
    Value(&'static str),
    Io(std::io::Error),
}

impl PartError {
    fn at(self, path: &str) -> Failure {
        match self {
            Self::Value(text) => Failure::Value(text.to_owned()),
            Self::Io(error) => Failure::NotFound(format!("open {path}: {error}")),
        }
    }
}

/// The part of a file that is asked for, as far as one message holds it.
fn part(file: &mut std::fs::File, range: Option<FileRange>) -> Result<Vec<u8>, PartError> {
    let (offset, length) = range.map_or((0, 0), |range| (range.offset, range.length));
    let offset = u64::try_from(offset).map_err(|_| PartError::Value("negative offset"))?;
    let limit = match u64::try_from(length) {
        Ok(0) => MAX_MESSAGE as u64,
        Ok(length) => length.min(MAX_MESSAGE as u64),
        Err(_) => return Err(PartError::Value("negative length")),
    };
    let mut data = Vec::new();
    let read = file.seek(SeekFrom::Start(offset)).and_then(|_| file.take(limit).read_to_end(&mut data));
    read.map_err(PartError::Io)?;
    Ok(data)
}

pub(super) async fn read_dir(
    gateway: &Gateway,
    request: Request<ReadDirRequest>,
) -> Result<ReadDirResponse, Failure> {
    let view = view(gateway, request.metadata(), &request.get_ref().r#ref).await?;
    let request = request.into_inner();
    let folder = Path::new(&request.dir_path);
    let names = match view.read_dir_first(folder, MAX_LISTED)? {
        // The root of a result without any file is a directory, too.
        None if is_root(folder) => Some(Vec::new()),
        names => names,
    };
    let missing = || Failure::NotFound(format!("open {}: no such file or directory", request.dir_path));
    let mut entries = Vec::new();
    let wanted = pattern(&request.include_pattern)?;
    for name in names.ok_or_else(missing)? {
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

fn is_root(path: &Path) -> bool {
    path.components().all(|part| !matches!(part, Component::Normal(_)))
}

/// What a client is told of a container's mount that does not give what is asked.
fn refused(call: &str, path: &str, error: &std::io::Error) -> Failure {
    let text = match error.kind() {
        ErrorKind::NotFound => format!("{call} {path}: no such file or directory"),
        _ => format!("{call} {path}: {error}"),
    };
    match error.kind() {
        ErrorKind::NotFound | ErrorKind::NotADirectory => Failure::NotFound(text),
        _ => Failure::Value(text),
    }
}

/// Runs what reads files of a container, which may take its time.
async fn in_container<T: Send + 'static>(
    (gateway, headers): (&Gateway, &tonic::metadata::MetadataMap),
    (id, mount): (&str, i32),
    read: impl FnOnce(&Container, usize) -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    let container = containers::opened(gateway, headers, id).await?;
    let mount = usize::try_from(mount).map_err(|_| Failure::Value(format!("invalid mount index {mount}")))?;
    let done = tokio::task::spawn_blocking(move || read(&container, mount)).await;
    done.unwrap_or_else(|error| Err(Failure::Value(error.to_string())))
}

pub(super) async fn read_file_container(
    gateway: &Gateway,
    request: Request<ReadFileRequest>,
) -> Result<ReadFileResponse, Failure> {
    let (headers, _, request) = request.into_parts();
    let at = (request.r#ref.clone(), request.mount_index);
    let read = move |container: &Container, mount| {
        let path = &request.file_path;
        let file = container.open_file(mount, Path::new(path));
        let mut file = file.map_err(|error| refused("open", path, &error))?;
        Ok(ReadFileResponse { data: part(&mut file, request.range).map_err(|error| error.at(path))? })
    };
    in_container((gateway, &headers), (&at.0, at.1), read).await
}

pub(super) async fn read_dir_container(
    gateway: &Gateway,
    request: Request<ReadDirRequest>,
) -> Result<ReadDirResponse, Failure> {
    let (headers, _, request) = request.into_parts();
    let at = (request.r#ref.clone(), request.mount_index);
    let wanted = pattern(&request.include_pattern)?;
    let read = move |container: &Container, mount| {
        let path = &request.dir_path;
        let entries = container.list_files(mount, Path::new(path), MAX_LISTED);
        let entries = entries.map_err(|error| refused("open", path, &error))?;
        let told = entries.into_iter().map(|entry| (entry.name.to_string_lossy().into_owned(), entry));
        let told = told.filter(|(name, _)| wanted.as_ref().is_none_or(|pattern| pattern.matches(name)));
        Ok(ReadDirResponse { entries: told.map(|(name, entry)| described(&entry, name)).collect() })
    };
    in_container((gateway, &headers), (&at.0, at.1), read).await
}

pub(super) async fn stat_file_container(
    gateway: &Gateway,
    request: Request<StatFileRequest>,
) -> Result<StatFileResponse, Failure> {
    let (headers, _, request) = request.into_parts();
    let at = (request.r#ref.clone(), request.mount_index);
    let read = move |container: &Container, mount| {
        let path = &request.path;
        let entry = container.stat_file(mount, Path::new(path));
        let entry = entry.map_err(|error| refused("lstat", path, &error))?;
        let name = match entry.name.to_string_lossy().into_owned() {
            name if name.is_empty() => "/".to_owned(),
            name => name,
        };
        Ok(StatFileResponse { stat: Some(described(&entry, name)) })
    };
    in_container((gateway, &headers), (&at.0, at.1), read).await
}

fn described(entry: &ContainerEntry, path: String) -> Stat {
    let here = &entry.stat;
    let is_file = FileType::from_raw_mode(here.st_mode) == FileType::RegularFile;
    let nanoseconds = i64::try_from(here.st_mtime_nsec).unwrap_or_default();
    Stat {
        path,
        mode: FileMode::from_raw(here.st_mode).0,
        uid: here.st_uid,
        gid: here.st_gid,
        size: if is_file { here.st_size } else { 0 },
        mod_time: here.st_mtime.saturating_mul(1_000_000_000).saturating_add(nanoseconds),
        linkname: entry.link.as_ref().map_or_else(String::new, |link| link.to_string_lossy().into_owned()),
        ..Stat::default()
    }
}

fn pattern(text: &str) -> Result<Option<Glob>, Failure> {
    match text {
        "" => Ok(None),
        pattern => Glob::new(pattern).map(Some).map_err(|error| Failure::Value(error.to_string())),
    }
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
