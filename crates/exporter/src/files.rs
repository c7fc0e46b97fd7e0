//! Root file systems as files: a directory or a tar, for one platform or several, with what is attested
//! of them beside.
//!
//! Owns the folders of platforms, the names of attestations' files and what happens to other files of a
//! directory. Must not know how one tree is written (the sinks do).
//!
//! Read [`directory`] and [`tar`] first.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Timespec, Timestamps, futimens};
use stave_oci::{Platform, Sha256Writer};
use stave_store::MergedView;

use crate::attestation::{self, Subject};
use crate::error::ExportErrorKind;
use crate::exporter::Context;
use crate::image::Image;
use crate::merged::{Kind, Visit, walk};
use crate::sink;
use crate::spec::{FilesOptions, LocalMode};
use crate::tar_writer::TarWriter;

/// The mode of attestations' files, as BuildKit has it.
const ATTESTATION_MODE: u32 = 0o600;

/// One platform's files.
struct Tree<'a> {
    image: &'a Image,
    view: MergedView,
    /// The folder it goes into; empty for none.
    folder: PathBuf,
}

/// A file that says something about a tree.
struct Statement {
    path: PathBuf,
    bytes: Vec<u8>,
}

/// Writes the trees of `images` into `dest`. Returns bytes of files.
pub(crate) fn directory(
    context: &Context,
    images: &[Image],
    dest: &Path,
    options: &FilesOptions,
) -> Result<u64, ExportErrorKind> {
    let trees = trees(context, images, options)?;
    let mut kept = check_conflicts(&trees)?;
    let mut size = 0;
    for tree in &trees {
        let folder = dest.join(&tree.folder);
        if !tree.folder.as_os_str().is_empty() {
            settle(dest, &folder)?;
        }
        size += sink::local::write(&tree.view, &folder, options.time.epoch(), &context.cancel)?;
        for statement in statements(tree, &trees, options)? {
            size += statement.bytes.len() as u64;
            put(&dest.join(&statement.path), &statement.bytes, options.time.epoch())?;
            kept.insert(statement.path);
        }
        if let Some(epoch) = options.time.epoch().filter(|_| !tree.folder.as_os_str().is_empty()) {
            date(&folder, epoch)?;
        }
    }
    if options.mode == LocalMode::Delete {
        delete_others(dest, Path::new(""), &kept)?;
    }
    Ok(size)
}

/// Writes the trees of `images` as one tar.
pub(crate) fn tar(
    context: &Context,
    images: &[Image],
    output: &mut dyn Write,
    options: &FilesOptions,
) -> Result<(), ExportErrorKind> {
    let trees = trees(context, images, options)?;
    check_conflicts(&trees)?;
    let mut tar = TarWriter::new(output).dated(options.time.epoch());
    for tree in &trees {
        let folder = tree.folder.display().to_string();
        if !folder.is_empty() {
            tar.directory(&format!("{folder}/"))?;
        }
        sink::tar::write(&tree.view, &tree.folder, &mut tar)?;
        for statement in statements(tree, &trees, options)? {
            tar.bytes(&statement.path.display().to_string(), &statement.bytes)?;
        }
    }
    tar.finish()?;
    Ok(())
}

fn trees<'a>(
    context: &Context,
    images: &'a [Image],
    options: &FilesOptions,
) -> Result<Vec<Tree<'a>>, ExportErrorKind> {
    let split = options.platform_split.unwrap_or(images.len() > 1);
    let tree = |image: &'a Image| {
        let folder = if split { folder(&image.platform) } else { String::new() };
        Ok(Tree { image, view: context.store.view(&image.snapshot())?, folder: PathBuf::from(folder) })
    };
    images.iter().map(tree).collect()
}

/// `linux_arm64_v8`: names of platforms come from manifests and are no paths.
fn folder(platform: &Platform) -> String {
    platform.to_string().replace(['/', '\0'], "_").replace("..", "__")
}

/// All paths that will be written; a file that two trees have is an error.
fn check_conflicts(trees: &[Tree<'_>]) -> Result<BTreeSet<PathBuf>, ExportErrorKind> {
    let mut all: BTreeMap<PathBuf, &Platform> = BTreeMap::new();
    for tree in trees {
        let platform = &tree.image.platform;
        if !tree.folder.as_os_str().is_empty() {
            all.insert(tree.folder.clone(), platform);
        }
        let mut own = Vec::new();
        walk(&tree.view, &mut |visit| {
            if let Visit::Entry(entry) = visit {
                let path = tree.folder.join(entry.path());
                if let Some(&other) = all.get(&path).filter(|_| entry.kind != Kind::Directory) {
                    let platforms = Box::new([other.clone(), platform.clone()]);
                    return Err(ExportErrorKind::PlatformConflict { path, platforms });
                }
                own.push((path, platform));
            }
            Ok(())
        })?;
        all.extend(own);
    }
    Ok(all.into_keys().collect())
}

fn statements(
    tree: &Tree<'_>,
    trees: &[Tree<'_>],
    options: &FilesOptions,
) -> Result<Vec<Statement>, ExportErrorKind> {
    if tree.image.attestations.iter().all(|one| one.images_only) {
        return Ok(Vec::new());
    }
    let mut subjects = Vec::new();
    walk(&tree.view, &mut |visit| {
        if let Visit::Entry(entry) = visit
            && entry.kind == Kind::File
        {
            let mut hash = Sha256Writer::new(io::sink());
            io::copy(&mut entry.open()?, &mut hash)?;
            subjects.push(Subject::new(entry.path().display().to_string(), &hash.finish().1));
        }
        Ok(())
    })?;
    let shares_folder = trees.len() > 1 && tree.folder.as_os_str().is_empty();
    let name = |file: &str| {
        let named = if shares_folder {
            let (stem, extension) = file.rsplit_once('.').unwrap_or((file, "json"));
            format!("{stem}.{}.{extension}", folder(&tree.image.platform))
        } else {
            file.to_owned()
        };
        // Neither the prefix nor the name is to lead anywhere else.
        format!("{}{named}", options.attestation_prefix).replace('/', "_")
    };
    let statement = |one: &crate::image::Attestation| {
        let path = tree.folder.join(name(&one.file_name));
        Ok(Statement { path, bytes: attestation::statement(one, &subjects)? })
    };
    tree.image.attestations.iter().filter(|one| !one.images_only).map(statement).collect()
}

/// Makes the folder of a platform. An earlier result may have left a link by that name, which is not followed.
fn settle(dest: &Path, folder: &Path) -> Result<(), ExportErrorKind> {
    let failed = |source| ExportErrorKind::Io { action: "create", path: folder.to_owned(), source };
    std::fs::create_dir_all(dest).map_err(failed)?;
    match std::fs::symlink_metadata(folder) {
        Ok(found) if found.is_dir() => return Ok(()),
        Ok(_) => std::fs::remove_file(folder).map_err(failed)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    std::fs::create_dir(folder).map_err(failed)
}

/// Gives the folder of a platform the time that everything in it has.
fn date(folder: &Path, epoch: i64) -> Result<(), ExportErrorKind> {
    let failed = |source| ExportErrorKind::Io { action: "write", path: folder.to_owned(), source };
    let folder = std::fs::File::open(folder).map_err(failed)?;
    futimens(&folder, &times(epoch, 0)).map_err(|error| failed(error.into()))
}

fn times(tv_sec: i64, tv_nsec: i64) -> Timestamps {
    let time = Timespec { tv_sec, tv_nsec };
    Timestamps { last_access: time, last_modification: time }
}

fn put(path: &Path, bytes: &[u8], epoch: Option<i64>) -> Result<(), ExportErrorKind> {
    let failed = |source| ExportErrorKind::Io { action: "write", path: path.to_owned(), source };
    // What an earlier result left there may be a link.
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(ATTESTATION_MODE).open(path).map_err(failed)?;
    file.write_all(bytes).map_err(failed)?;
    if let Some(epoch) = epoch {
        futimens(&file, &times(epoch, 0)).map_err(|error| failed(error.into()))?;
    }
    Ok(())
}

/// Removes what is below `dest` and not among `kept`. Links are removed, never followed.
fn delete_others(dest: &Path, below: &Path, kept: &BTreeSet<PathBuf>) -> Result<(), ExportErrorKind> {
    let mut pending = vec![below.to_owned()];
    while let Some(below) = pending.pop() {
        let directory = dest.join(&below);
        let failed = |source| ExportErrorKind::Io { action: "clean", path: directory.clone(), source };
        let opened = std::fs::File::open(&directory).map_err(failed)?;
        let before = rustix::fs::fstat(&opened).map_err(|error| failed(error.into()))?;
        let mut removes = false;
        for entry in std::fs::read_dir(&directory).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let path = below.join(entry.file_name());
            let is_directory = entry.file_type().map_err(failed)?.is_dir();
            removes |= !kept.contains(&path);
            match (kept.contains(&path), is_directory) {
                (true, true) => pending.push(path),
                (true, false) => {}
                (false, true) => std::fs::remove_dir_all(dest.join(&path)).map_err(failed)?,
                (false, false) => std::fs::remove_file(dest.join(&path)).map_err(failed)?,
            }
        }
        if removes && !below.as_os_str().is_empty() {
            // The result's own time, not that of the cleaning.
            let own = times(before.st_mtime, i64::try_from(before.st_mtime_nsec).unwrap_or(0));
            futimens(&opened, &own).map_err(|error| failed(error.into()))?;
        }
    }
    Ok(())
}
