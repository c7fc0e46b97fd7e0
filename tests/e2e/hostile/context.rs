//! Build contexts from a stream that want to write or read elsewhere.

use std::fs;

use super::{MARK, Site, Tar, one_error, outside, tar};

const COPY_ALL: &str = "FROM scratch\nCOPY . /\n";

#[track_caller]
fn refuse_bytes(archive: &[u8], words: &[&str]) {
    let site = Site::new();
    fs::write(site.world.path("victim"), "untouched").expect("writes");
    let before = outside(&site.world);
    one_error(site.world.stave_with_input(&["build", "-t", "hostile", "-"], archive), 1, words);
    site.is_untouched(&before);
}

#[track_caller]
fn refuse(archive: Tar, words: &[&str]) {
    refuse_bytes(&archive.file("Dockerfile", COPY_ALL).end(), words);
}

#[test]
fn names_that_lead_out() {
    refuse(Tar::default().file("../x", MARK), &["`../x`", "leads out of the archive"]);
    refuse(Tar::default().file("a/../../x", MARK), &["`a/../../x`", "leads out of the archive"]);
    let site = Site::new();
    let before = outside(&site.world);
    let archive = Tar::default().file("/stave-was-here", "x").file("Dockerfile", COPY_ALL).end();
    // A leading slash is the context's root, for docker, too.
    site.world.stave_with_input(&["build", "-o", "type=tar,dest=out.tar", "-"], &archive).success();
    assert!(!std::path::Path::new("/stave-was-here").exists());
    fs::remove_file(site.world.context().join("out.tar")).expect("was written");
    assert_eq!(before, outside(&site.world));
}

#[test]
fn links_that_lead_out() {
    for target in ["/etc", "../../../../../../../../../../etc", "/proc/self/root/etc"] {
        let archive = Tar::default().symlink("link", target).file("link/stave-was-here", MARK);
        refuse(archive, &["`link/stave-was-here`", "leads out of the archive"]);
    }
    refuse(Tar::default().hard_link("link", "/etc/passwd"), &["`link`"]);
    refuse(Tar::default().hard_link("link", "../../victim"), &["`link`", "leads out of the archive"]);
    refuse(
        Tar::default().symlink("etc", "/etc").hard_link("link", "etc/passwd"),
        &["`link`", "leads out of the archive"],
    );
    assert!(!std::path::Path::new("/etc/stave-was-here").exists());
}

#[test]
fn nodes_of_other_kinds() {
    refuse(Tar::default().device(b'3', "zero", (1, 5)), &["`zero`", "device or pipe"]);
    refuse(Tar::default().device(b'4', "disk", (8, 0)), &["`disk`", "device or pipe"]);
    refuse(Tar::default().fifo("pipe"), &["`pipe`", "device or pipe"]);
}

#[test]
fn archives_that_are_none() {
    let whole = Tar::default().file("Dockerfile", COPY_ALL).file("file", vec![b'x'; 5000]).end();
    refuse_bytes(&whole[..whole.len() - 4096], &["archive is cut short"]);
    let packed = tar::gzip(&whole);
    refuse_bytes(&packed[..packed.len() / 2], &["context"]);
    let mut noise = vec![0x1F, 0x8B, 8, 0];
    noise.extend((0..4096_u32).map(|number| (number.wrapping_mul(0x9E37_79B9) >> 24) as u8));
    refuse_bytes(&noise, &["context"]);
    refuse_bytes(&tar::gzip(b"no tar"), &["context"]);
    refuse_bytes(b"BZh91AY&SY", &["context", "decompression not finished"]);
    refuse_bytes(&Tar::default().file("file", "x").end(), &["open Dockerfile: no such file"]);
}

/// Links that lead out may be there; nothing is read through them.
#[test]
fn nothing_is_read_through_links() {
    for target in ["/etc", "../../../../../../../../etc"] {
        let site = Site::new();
        let dockerfile = "FROM scratch\nCOPY link/passwd /\n";
        let archive = Tar::default().symlink("link", target).file("Dockerfile", dockerfile).end();
        let before = outside(&site.world);
        let outcome = site.world.stave_with_input(&["build", "-t", "hostile", "-"], &archive);
        one_error(outcome, 1, &["/link/passwd", "not found"]);
        site.is_untouched(&before);
    }
    let build = |archive: Tar| {
        let site = Site::new();
        site.world.stave_with_input(&["build", "-t", "hostile", "-"], &archive.end()).never_says("root:")
    };
    for target in ["/etc/passwd", "../../../../../../../../etc/passwd", "/proc/self/root/etc/passwd"] {
        let outcome = build(Tar::default().symlink("Dockerfile", target));
        one_error(outcome, 1, &["open Dockerfile: no such file"]);
    }
    // Inside of the archive there is no such file: nothing is ignored.
    let ignored = Tar::default().symlink(".dockerignore", "/etc/passwd").file("file", "x");
    build(ignored.file("Dockerfile", "FROM scratch\nCOPY file /\n")).success();
}
