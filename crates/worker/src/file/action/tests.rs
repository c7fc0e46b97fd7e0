//! File actions on real directories: what they leave behind, and what they refuse.

use super::*;
use crate::context::{Context, ContextFilter};
use crate::mode::ModeChange;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::sync::Arc;

fn rules() -> CopyRules {
    CopyRules { owner: None, mode: ModeChange::Keep, time: None, replace: false, keep_directories: false }
}

/// A copy as the Dockerfile front end asks for it.
fn request(source: &str, destination: &str) -> CopyRequest {
    CopyRequest {
        source: source.into(),
        destination: destination.into(),
        follow_symlinks: true,
        directory_contents: true,
        attempt_unpack: false,
        create_destination: true,
        wildcard: true,
        allow_empty_wildcard: true,
        include: Vec::new(),
        exclude: Vec::new(),
        required: Vec::new(),
        rules: rules(),
    }
}

struct Fixture {
    source: tempfile::TempDir,
    target: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        let fixture = Self {
            source: tempfile::tempdir().expect("tempdir"),
            target: tempfile::tempdir().expect("tempdir"),
        };
        let at = |path: &str| fixture.source.path().join(path);
        std::fs::create_dir_all(at("dir/sub")).expect("mkdir");
        for path in ["file", "dir/one", "dir/sub/two.md", "dir/sub/three"] {
            std::fs::write(at(path), path).expect("write");
        }
        symlink("file", at("link")).expect("symlink");
        symlink("/dir", at("dirlink")).expect("symlink");
        fixture
    }

    fn input(&self) -> Input {
        let context = Context::scan(self.source.path(), &ContextFilter::default(), None).expect("scan");
        Input::Context(Arc::new(context))
    }

    fn root(&self) -> RootDir {
        RootDir::open(self.target.path()).expect("open")
    }

    fn copy(&self, request: &CopyRequest) -> Result<bool, FileError> {
        copy(
            &self.root(),
            &self.input(),
            request,
            Means { reuse: None, room: None, cancel: &CancellationToken::new() },
        )
    }

    fn files(&self) -> Vec<String> {
        let tree =
            crate::tree::scan(&self.root(), Path::new(""), &Filter::all()).expect("scan").expect("root");
        let mut found = Vec::new();
        list(&tree, "", &mut found);
        found
    }
}

fn list(node: &crate::tree::Node, at: &str, found: &mut Vec<String>) {
    for child in node.children() {
        let path = crate::tree::join(at, &child.name);
        if child.children().is_empty() {
            found.push(if child.is_dir() { format!("{path}/") } else { path.clone() });
        }
        list(child, &path, found);
    }
}

#[track_caller]
fn check(change: impl Fn(&mut CopyRequest), source: &str, destination: &str, expected: &[&str]) {
    let fixture = Fixture::new();
    std::fs::create_dir_all(fixture.target.path().join("there")).expect("mkdir");
    let mut request = request(source, destination);
    change(&mut request);
    fixture.copy(&request).expect("copy");
    let found: Vec<String> = fixture.files().into_iter().filter(|path| path != "there/").collect();
    assert_eq!(found, expected);
}

#[test]
fn where_things_land() {
    check(|_| {}, "/file", "/new", &["new"]);
    check(|_| {}, "/file", "/there", &["there/file"]);
    check(|_| {}, "/file", "/new/", &["new/file"]);
    check(|_| {}, "/file", "/a/b/c", &["a/b/c"]);
    check(|_| {}, "/file", "/", &["file"]);
    check(|_| {}, "/file", "/there/.", &["there/file"]);
    check(|_| {}, "/link", "/new", &["new"]);
    check(|_| {}, "/dir", "/there", &["there/one", "there/sub/three", "there/sub/two.md"]);
    check(|_| {}, "/dir", "/new", &["new/one", "new/sub/three", "new/sub/two.md"]);
    check(|_| {}, "/dir/", "/", &["one", "sub/three", "sub/two.md"]);
    check(|_| {}, "/dirlink", "/new/", &["new/one", "new/sub/three", "new/sub/two.md"]);
    check(|_| {}, "/f*", "/new/", &["new/file"]);
    check(|_| {}, "/dir/s?b/*.md", "/new/", &["new/two.md"]);
    check(|_| {}, "/none*", "/new/", &[]);
    check(
        |request| request.directory_contents = false,
        "/dir",
        "/there",
        &["there/dir/one", "there/dir/sub/three", "there/dir/sub/two.md"],
    );
    check(
        |request| request.exclude = vec!["sub/*.md".into()],
        "/dir",
        "/new/",
        &["new/one", "new/sub/three"],
    );
    check(|request| request.include = vec!["**/*.md".into()], "/dir", "/new/", &["new/sub/two.md"]);
    check(|request| request.follow_symlinks = false, "/link", "/new", &["new"]);
    let required = |request: &mut CopyRequest| {
        (request.include, request.required) = (vec!["sub/two.md".into()], vec!["/dir/sub/two.md".into()]);
    };
    check(required, "/dir", "/new/", &["new/sub/two.md"]);
}

#[test]
fn local_files_become_roots_and_keep_mode_and_time() {
    let fixture = Fixture::new();
    let source = fixture.source.path().join("file");
    std::os::unix::fs::chown(&source, Some(1234), Some(1234)).expect("chown needs root");
    std::fs::set_permissions(&source, std::fs::Permissions::from_mode(0o4751)).expect("chmod");
    let time = std::time::UNIX_EPOCH + std::time::Duration::new(1_000_000, 123_456_789);
    std::fs::File::options().write(true).open(&source).expect("open").set_modified(time).expect("touch");
    fixture.copy(&request("/file", "/plain")).expect("copy");
    let status = std::fs::metadata(fixture.target.path().join("plain")).expect("stat");
    assert_eq!((status.uid(), status.gid(), status.mode() & 0o7777), (0, 0, 0o4751));
    // Its own to the microsecond, and known as a context's.
    let nanoseconds = u32::try_from(status.mtime_nsec()).expect("less than a second");
    assert_eq!((status.mtime(), nanoseconds / 1000), (1_000_000, 123_456));
    assert!(stave_store::is_context_time((status.mtime(), nanoseconds)));
    let mut chosen = request("/file", "/made/owned");
    chosen.rules =
        CopyRules { owner: Some((7, 8)), mode: ModeChange::Set(0o640), time: Some((9, 0)), ..rules() };
    fixture.copy(&chosen).expect("copy");
    let status = std::fs::metadata(fixture.target.path().join("made/owned")).expect("stat");
    assert_eq!((status.uid(), status.gid(), status.mode() & 0o7777, status.mtime()), (7, 8, 0o640, 9));
    let parent = std::fs::metadata(fixture.target.path().join("made")).expect("stat");
    // As in the reference, a numeric mode is that of parents that are made for the copy, too.
    assert_eq!((parent.uid(), parent.mode() & 0o7777), (7, 0o640));
}

#[test]
fn hard_links_holes_attributes_and_special_files_survive() {
    let fixture = Fixture::new();
    let at = |path: &str| fixture.source.path().join("dir").join(path);
    std::fs::hard_link(at("one"), at("sub/same")).expect("link");
    let sparse = std::fs::File::create(at("sparse")).expect("create");
    sparse.set_len(64 << 20).expect("grow");
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"end", 32 << 20).expect("write");
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(at("one"), "user.colour", b"blue", flags).expect("xattr");
    let mode = Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, at("pipe"), FileType::Fifo, mode, 0).expect("fifo");
    fixture.copy(&request("/dir", "/d")).expect("copy");
    let to = |path: &str| fixture.target.path().join("d").join(path);
    let status = |path: &str| std::fs::symlink_metadata(to(path)).expect("stat");
    assert_eq!(status("one").ino(), status("sub/same").ino());
    assert_eq!(status("sparse").len(), 64 << 20);
    assert!(status("sparse").blocks() * 512 < 1 << 20, "{} blocks", status("sparse").blocks());
    assert_eq!(std::fs::read(to("sparse")).expect("read")[32 << 20..][..3], *b"end");
    let mut value = [0; 16];
    let length = rustix::fs::getxattr(to("one"), "user.colour", &mut value[..]).expect("xattr");
    assert_eq!(&value[..length], b"blue");
    assert_eq!(FileType::from_raw_mode(status("pipe").mode()), FileType::Fifo);
}

#[test]
fn directories_copied_beside_each_other_share_hard_links() {
    const DIRECTORIES: usize = 40;
    let fixture = Fixture::new();
    let first = fixture.source.path().join("file");
    for number in 0..DIRECTORIES {
        let directory = fixture.source.path().join(format!("many/{number}/deep"));
        std::fs::create_dir_all(&directory).expect("mkdir");
        for name in ["a", "b"] {
            std::fs::hard_link(&first, directory.join(name)).expect("link");
        }
        std::fs::write(directory.join("own"), number.to_string()).expect("write");
    }
    fixture.copy(&request("/many", "/many")).expect("copy");
    let at = |number: usize, name: &str| fixture.target.path().join(format!("many/{number}/deep/{name}"));
    let shared = std::fs::metadata(at(0, "a")).expect("stat");
    assert_eq!(shared.nlink(), 2 * DIRECTORIES as u64);
    for number in 0..DIRECTORIES {
        assert_eq!(std::fs::metadata(at(number, "b")).expect("stat").ino(), shared.ino());
        assert_eq!(std::fs::read_to_string(at(number, "own")).expect("read"), number.to_string());
    }
}

#[track_caller]
fn check_error(prepare: impl Fn(&Fixture), request: &CopyRequest, expected: &str) {
    let fixture = Fixture::new();
    prepare(&fixture);
    let error = fixture.copy(request).expect_err("must fail");
    assert_eq!(error.to_string(), expected);
}

#[test]
fn what_cannot_be_copied() {
    let nothing = |_: &Fixture| {};
    check_error(nothing, &request("/absent", "/x"), "failed to compute cache key: \"/absent\": not found");
    let mut strict = request("/none*", "/x");
    strict.allow_empty_wildcard = false;
    check_error(nothing, &strict, "failed to compute cache key: \"/none*\": not found");
    let mut required = request("/dir", "/x/");
    (required.include, required.required) = (vec!["two".into()], vec!["/dir/two".into()]);
    check_error(nothing, &required, "failed to compute cache key: \"/dir/two\": not found");
    let mut parentless = request("/file", "/a/b");
    parentless.create_destination = false;
    check_error(nothing, &parentless, "the parent directory of `/a/b` does not exist");
    let file_there = |fixture: &Fixture| {
        std::fs::create_dir(fixture.target.path().join("d")).expect("mkdir");
        std::fs::write(fixture.target.path().join("d/sub"), "").expect("write");
    };
    check_error(file_there, &request("/dir", "/d"), "cannot copy to non-directory: `/d/sub`");
    let directory_there = |fixture: &Fixture| {
        std::fs::create_dir_all(fixture.target.path().join("d/one")).expect("mkdir");
    };
    check_error(directory_there, &request("/dir", "/d"), "cannot replace to directory `/d/one` with file");
    let fixture = Fixture::new();
    directory_there(&fixture);
    let mut replacing = request("/dir", "/d");
    replacing.rules.replace = true;
    fixture.copy(&replacing).expect("replaces");
    assert!(fixture.target.path().join("d/one").is_file());
}

#[test]
fn a_destination_symlink_stays_inside_the_root() {
    let fixture = Fixture::new();
    let outside = tempfile::tempdir().expect("tempdir");
    symlink(outside.path(), fixture.target.path().join("out")).expect("symlink");
    symlink("../../../etc", fixture.target.path().join("up")).expect("symlink");
    fixture.copy(&request("/file", "/out/x")).expect("copy");
    fixture.copy(&request("/file", "/up/y")).expect("copy");
    assert_eq!(std::fs::read_dir(outside.path()).expect("list").count(), 0);
    assert!(fixture.target.path().join("etc/y").is_file());
    assert!(!Path::new("/etc/y").exists());
}

#[test]
fn a_source_symlink_stays_inside_the_context() {
    let fixture = Fixture::new();
    symlink("/etc/passwd", fixture.source.path().join("escape")).expect("symlink");
    let error = fixture.copy(&request("/escape", "/x")).expect_err("not in the context");
    assert!(matches!(error, FileError::NotFound(_)), "{error}");
}

#[test]
fn the_other_actions() {
    let fixture = Fixture::new();
    let root = fixture.root();
    let stamp = Stamp { owner: Some((3, 4)), time: Some((5, 0)) };
    mkdir(&root, "/a/b", 0o700, true, &stamp).expect("mkdir");
    mkdir(&root, "/a/b", 0o755, false, &stamp).expect("again");
    assert!(matches!(mkdir(&root, "/no/way", 0o755, false, &stamp), Err(FileError::NoParent(_))));
    mkfile(&root, "/a/f", 0o640, b"one", &stamp).expect("mkfile");
    mkfile(&root, "/a/f", 0o600, b"two", &stamp).expect("replace");
    symlink_action(&root, "f", "/a/l", &stamp);
    let status = std::fs::symlink_metadata(fixture.target.path().join("a/l")).expect("stat");
    assert_eq!((status.uid(), status.mtime()), (3, 5));
    assert_eq!(std::fs::read(fixture.target.path().join("a/l")).expect("read"), b"two");
    let status = std::fs::metadata(fixture.target.path().join("a/b")).expect("stat");
    assert_eq!((status.uid(), status.gid(), status.mode() & 0o7777), (3, 4, 0o700));
    remove(&root, "/a/f*", true, false).expect("rm");
    assert!(matches!(remove(&root, "/a/f", false, false), Err(FileError::NothingToRemove(_))));
    remove(&root, "/a/f", false, true).expect("absent is allowed");
    assert!(matches!(remove(&root, "/x/..", false, true), Err(FileError::Root(_))));
    remove(&root, "/a", false, false).expect("rm");
    assert_eq!(fixture.files(), Vec::<String>::new());
}

fn symlink_action(root: &RootDir, target: &str, path: &str, stamp: &Stamp) {
    super::symlink(root, target, path, stamp).expect("symlink");
}

fn archive(entries: &[(&str, tar::EntryType, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, kind, content) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(*kind);
        header.set_mode(0o644);
        header.set_uid(11);
        header.set_gid(12);
        header.set_mtime(1000);
        // Straight into the field: the library refuses hostile names.
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        let body = match kind {
            tar::EntryType::Symlink | tar::EntryType::Link => {
                header.as_old_mut().linkname[..content.len()].copy_from_slice(content.as_bytes());
                ""
            }
            _ => content,
        };
        header.set_size(body.len() as u64);
        header.set_cksum();
        builder.append(&header, body.as_bytes()).expect("append");
    }
    builder.into_inner().expect("tar")
}

fn add(fixture: &Fixture, bytes: &[u8]) -> Result<bool, FileError> {
    std::fs::write(fixture.source.path().join("archive"), bytes).expect("write");
    let mut request = request("/archive", "/to/");
    request.attempt_unpack = true;
    fixture.copy(&request)
}

/// A name that would fill memory: few bytes when compressed, and read before anything is known of the entry.
#[test]
fn headers_of_archives_are_bounded() {
    use std::io::Write as _;
    let mut name = tar::Header::new_gnu();
    name.set_entry_type(tar::EntryType::GNULongName);
    name.set_size(64 << 20);
    name.set_cksum();
    let mut after_a_file = archive(&[("f", tar::EntryType::Regular, "content")]);
    after_a_file.truncate(1024);
    for (start, expected) in [(Vec::new(), None), (after_a_file, Some("longer than 4194304 bytes"))] {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&start).expect("gzip");
        gzip.write_all(name.as_bytes()).expect("gzip");
        (0..64).for_each(|_| gzip.write_all(&[b'a'; 1 << 20]).expect("gzip"));
        let fixture = Fixture::new();
        let added = add(&fixture, &gzip.finish().expect("gzip"));
        match expected {
            // What cannot be read as an archive is copied.
            None => assert_eq!(fixture.files(), ["to/archive"]),
            Some(expected) => {
                let error = added.expect_err("too long");
                let cause = std::error::Error::source(&error).expect("a cause").to_string();
                assert!(cause.contains(expected), "{error:?}");
            }
        }
    }
}

#[test]
fn archives_are_unpacked_whatever_their_compression() {
    use std::io::Write as _;
    use tar::EntryType::{Directory, Regular, Symlink};
    let plain = archive(&[("d/", Directory, ""), ("d/f", Regular, "content"), ("d/l", Symlink, "f")]);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&plain).expect("gzip");
    let mut bzip2 = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
    bzip2.write_all(&plain).expect("bzip2");
    let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
    xz.write_all(&plain).expect("xz");
    let zstd = zstd::encode_all(plain.as_slice(), 1).expect("zstd");
    let all =
        [plain, gzip.finish().expect("gzip"), bzip2.finish().expect("bzip2"), xz.finish().expect("xz"), zstd];
    for (index, bytes) in all.iter().enumerate() {
        let fixture = Fixture::new();
        add(&fixture, bytes).expect("unpack");
        assert_eq!(fixture.files(), ["to/d/f", "to/d/l"], "form {index}");
        let status = std::fs::metadata(fixture.target.path().join("to/d/l")).expect("stat");
        assert_eq!((status.uid(), status.gid(), status.mtime(), status.len()), (11, 12, 1000, 7));
    }
    let fixture = Fixture::new();
    add(&fixture, b"not an archive").expect("copies");
    assert_eq!(fixture.files(), ["to/archive"]);
}

#[test]
fn hostile_archives_stay_inside() {
    use tar::EntryType::{Directory, Link, Regular, Symlink};
    let outside = tempfile::tempdir().expect("tempdir");
    std::fs::write(outside.path().join("secret"), "secret").expect("write");
    let out = outside.path().to_str().expect("utf-8");
    let fixture = Fixture::new();
    let bytes = archive(&[
        ("../../up", Regular, "x"),
        ("/absolute", Regular, "x"),
        ("out", Symlink, out),
        ("out/planted", Regular, "x"),
        ("out", Directory, ""),
        ("real", Regular, "x"),
        ("hard", Link, "real"),
    ]);
    add(&fixture, &bytes).expect("unpack");
    assert_eq!(std::fs::read_dir(outside.path()).expect("list").count(), 1);
    let files = fixture.files();
    for expected in ["to/up", "to/absolute", "to/real", "to/hard"] {
        assert!(files.iter().any(|file| file == expected), "{expected} in {files:?}");
    }
    let fixture = Fixture::new();
    let steal = archive(&[("stolen", Link, &format!("{out}/secret"))]);
    let error = add(&fixture, &steal).expect_err("a hard link to the host");
    assert!(matches!(error, FileError::Unpack(UnpackError::Entry { .. })), "{error}");
    let fixture = Fixture::new();
    let mut cut = archive(&[("a", Regular, "content")]);
    cut.truncate(515);
    let error = add(&fixture, &cut).expect_err("cut short");
    assert!(matches!(error, FileError::Unpack(UnpackError::Archive { .. })), "{error}");
}
