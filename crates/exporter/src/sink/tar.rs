//! The root file system as one tar, or as a folder of one.

use std::io::Write;
use std::path::Path;

use stave_store::MergedView;

use crate::error::ExportErrorKind;
use crate::merged::{Visit, walk};
use crate::tar_writer::TarWriter;

/// Writes the merged tree into `folder` of a tar; an empty one is the top.
pub(crate) fn write<W: Write>(
    view: &MergedView,
    folder: &Path,
    tar: &mut TarWriter<W>,
) -> Result<(), ExportErrorKind> {
    walk(view, &mut |visit| match visit {
        Visit::Entry(entry) => tar.entry_below(folder, entry),
        Visit::Leave(_) => Ok(()),
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Read as _;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, XattrFlags};
    use stave_store::Snapshot;

    use super::*;
    use crate::merged::tests::Fixture;

    #[test]
    fn the_tar_says_everything_about_the_tree() {
        let fixture = Fixture::new();
        let long = "n".repeat(150);
        let snapshot = fixture.layer(&Snapshot::scratch(), |root| {
            fs::create_dir(root.join("d")).expect("creates");
            fs::write(root.join("d/f"), "text").expect("writes");
            fs::set_permissions(root.join("d/f"), fs::Permissions::from_mode(0o4755)).expect("sets");
            rustix::fs::setxattr(root.join("d/f"), "user.k", b"v=", XattrFlags::empty()).expect("sets");
            fs::hard_link(root.join("d/f"), root.join("h")).expect("links");
            fs::write(root.join(&long), "").expect("writes");
            symlink("d/f", root.join("s")).expect("links");
            let old = Timespec { tv_sec: 12, tv_nsec: 34 };
            let times = Timestamps { last_access: old, last_modification: old };
            rustix::fs::utimensat(CWD, root.join("d/f"), &times, AtFlags::empty()).expect("sets");
        });
        let whole = || {
            let mut tar = TarWriter::new(Vec::new());
            write(&fixture.view(&snapshot), Path::new(""), &mut tar).expect("writes");
            tar.finish().expect("ends")
        };
        let bytes = whole();
        assert_eq!(bytes, whole());

        let mut archive = tar::Archive::new(&bytes[..]);
        let mut found = Vec::new();
        for entry in archive.entries().expect("a tar") {
            let mut entry = entry.expect("an entry");
            let path = entry.path().expect("a path").display().to_string();
            let link =
                entry.link_name().expect("a link").map(|link| link.display().to_string()).unwrap_or_default();
            let pax: Vec<_> = entry
                .pax_extensions()
                .expect("pax")
                .into_iter()
                .flatten()
                .filter_map(Result::ok)
                .filter(|record| record.key_bytes().starts_with(b"SCHILY"))
                .map(|record| (record.key().expect("UTF-8").to_owned(), record.value_bytes().to_vec()))
                .collect();
            let mut content = String::new();
            entry.read_to_string(&mut content).expect("reads");
            let header = entry.header();
            if path == "d/f" {
                assert_eq!((header.mode().expect("mode"), header.mtime().expect("time")), (0o4755, 12));
                assert_eq!(pax, [("SCHILY.xattr.user.k".to_owned(), b"v=".to_vec())]);
            }
            found.push((path, header.entry_type(), link, content));
        }
        let entry = |path: &str, kind, link: &str, content: &str| {
            (path.to_owned(), kind, link.to_owned(), content.to_owned())
        };
        assert_eq!(
            found,
            [
                entry("d/", tar::EntryType::Directory, "", ""),
                entry("d/f", tar::EntryType::Regular, "", "text"),
                entry("h", tar::EntryType::Link, "d/f", ""),
                entry(&long, tar::EntryType::Regular, "", ""),
                entry("s", tar::EntryType::Symlink, "d/f", ""),
            ]
        );
    }
}
