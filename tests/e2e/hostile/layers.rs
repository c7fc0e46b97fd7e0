//! Layers that want to write elsewhere, or are no layers.

use std::fs;

use stave_oci::Digest;

use crate::environment::is_privileged;

use super::{MARK, Site, Tar, Way, config, tar};

/// The layer is refused in every way, with these words, and a file beside the state directory is untouched.
#[track_caller]
fn refuse_bytes(layer: &[u8], plain: &[u8], words: &[&str]) {
    for way in Way::ALL {
        let site = Site::new();
        fs::write(site.world.path("victim"), "untouched").expect("writes");
        let digest = site.place(layer, plain).layers.remove(0).digest;
        site.refuses(way, words).says(&site.image("app:1")).says(digest.as_str());
    }
}

#[track_caller]
fn refuse(layer: Tar, words: &[&str]) {
    let bytes = layer.end();
    refuse_bytes(&bytes, &bytes, words);
}

#[test]
fn names_that_lead_out() {
    refuse(Tar::default().file("../x", MARK), &["`../x`", "leads out of the layer"]);
    refuse(Tar::default().file("a/../../x", MARK), &["`a/../../x`", "leads out of the layer"]);
    refuse(Tar::default().file("/etc/stave-was-here", MARK), &["`/etc/stave-was-here`", "absolute"]);
    let long = "../".repeat(30) + "x";
    refuse(Tar::default().pax("path", &long).file("x", MARK), &["../../x`", "leads out of the layer"]);
    assert!(!std::path::Path::new("/etc/stave-was-here").exists());
}

#[test]
fn links_that_lead_out() {
    let through = "not a directory of the layer";
    for target in ["/etc", "../../../../../../../../../../etc", "/proc/self/root/etc"] {
        let layer = Tar::default().symlink("link", target).file("link/stave-was-here", MARK);
        refuse(layer, &["`link/stave-was-here`", through]);
    }
    refuse(Tar::default().hard_link("link", "/etc/passwd"), &["`link`", "/etc/passwd"]);
    refuse(Tar::default().hard_link("link", "../../victim"), &["`link`", "leads out of the layer"]);
    let via = Tar::default().symlink("etc", "/etc").hard_link("link", "etc/passwd");
    refuse(via, &["`link`", "etc/passwd"]);
    assert!(!std::path::Path::new("/etc/stave-was-here").exists());
}

#[test]
fn whiteouts_of_what_is_not_theirs() {
    for name in [".wh..", ".wh...", "a/.wh...", ".wh."] {
        refuse(Tar::default().file(name, ""), &[&format!("`{name}`"), "invalid whiteout"]);
    }
    refuse(Tar::default().file("../.wh.victim", ""), &["leads out of the layer"]);
    let via = Tar::default().symlink("link", "/etc").file("link/.wh.passwd", "");
    refuse(via, &["`link/.wh.passwd`", "not a directory of the layer"]);
}

#[test]
fn archives_that_are_none() {
    let noise: Vec<u8> = (0..4096_u32).map(|number| (number.wrapping_mul(0x9E37_79B9) >> 24) as u8).collect();
    refuse_bytes(&noise, &noise, &["damaged header"]);
    let cut = Tar::default().file("whole", "text").file("half", vec![b'x'; 2000]).cut();
    let cut = &cut[..cut.len() - 1024];
    refuse_bytes(cut, cut, &["`half`", "cut short"]);
    let huge = Tar::default().raw(b'0', "huge", "", b"", |block| {
        block[124] = 0x80;
        block[125..136].copy_from_slice(&[0, 0, 0, 0x0F, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF]);
    });
    refuse(huge, &["`huge`"]);
    let giant =
        Tar::default().raw(b'x', "pax", "", b"", |block| block[124..135].copy_from_slice(b"77777777777"));
    refuse(giant, &["extended header is larger"]);
    refuse(Tar::default().pax("path", &"x/".repeat(5000)).file("x", MARK), &["longer than"]);
    refuse(Tar::default().raw(b'Z', "what", "", b"", |_| {}), &["`what`", "not supported"]);
}

#[test]
fn streams_that_are_damaged() {
    let plain = Tar::default().file("file", vec![b'x'; 200_000]).end();
    let packed = tar::gzip(&plain);
    refuse_bytes(&packed[..packed.len() / 2], &plain, &["`file`", "cut short"]);
    let mut spoilt = packed.clone();
    let end = spoilt.len() - 6;
    spoilt[end] ^= 0xFF;
    refuse_bytes(&spoilt, &plain, &["cannot read the stream"]);
    let trailing = [packed, b"and then some".to_vec()].concat();
    refuse_bytes(&trailing, &plain, &["cannot read the stream"]);
}

#[test]
fn files_larger_than_anything() {
    let bomb = Tar::default().pax("GNU.sparse.map", "0,0").pax("GNU.sparse.size", "1125899906842624");
    refuse(bomb.file("bomb", ""), &["`bomb`", "more than 1099511627776 bytes"]);
}

#[test]
fn another_diff_id() {
    let plain = Tar::default().file("file", MARK).end();
    let other = Tar::default().file("other", MARK).end();
    let (found, expected) = (Digest::sha256(&plain), Digest::sha256(&other));
    refuse_bytes(&plain, &other, &["diff id", found.as_str(), expected.as_str()]);
}

/// One bad layer between good ones: the good ones are no harm, and the image still does not exist.
#[test]
fn one_bad_layer_of_three() {
    let site = Site::new();
    let good: Vec<Vec<u8>> = ["a", "b"].iter().map(|name| Tar::default().file(name, "good").end()).collect();
    let bad = Tar::default().file("../x", MARK).end();
    let layers = [&good[0], &bad, &good[1]];
    let diff_ids: Vec<Digest> = layers.iter().map(|layer| Digest::sha256(layer)).collect();
    let layers: Vec<&[u8]> = layers.iter().map(|layer| layer.as_slice()).collect();
    site.registry.put_image("app", "1", &config(&diff_ids), &layers);
    let outcome = super::one_error(site.ask(Way::Pull), 1, &["`../x`", "leads out of the layer"]);
    assert!(outcome.stderr.contains(Digest::sha256(&bad).as_str()), "{}", outcome.stderr);
    site.world.stave(["inspect", &site.image("app:1")]).exits(1);
    site.world.stave(["prune", "--all", "--force"]).success();
    assert_eq!(site.world.stave(["du", "--format", "json"]).success().stdout, "");
}

/// Devices and pipes are nodes like any other, and no process of ours can use the devices.
#[test]
fn devices_are_never_usable() {
    let site = Site::new();
    let layer = Tar::default()
        .device(b'3', "memory", (1, 1))
        .device(b'3', "zero", (1, 5))
        .device(b'4', "disk", (8, 0))
        .fifo("pipe")
        .end();
    site.place(&layer, &layer);
    let name = site.image("app:1");
    // Who may make no nodes has empty files in their place.
    let script = match is_privileged() {
        true => {
            "RUN test -c /memory && test -c /zero && test -b /disk && test -p /pipe\n\
             RUN for node in /memory /zero /disk; do if head -c 1 $node; then exit 1; fi; done\n\
             RUN for node in /memory /zero /disk; do if echo x 1<>$node; then exit 1; fi; done\n"
        }
        false => {
            "RUN for node in /memory /zero /disk; do test -f $node && test ! -s $node || exit 1; done; test -p /pipe\n"
        }
    };
    let busybox = "COPY --from=BUSYBOX / /\n";
    site.world.dockerfile(&format!("FROM {name}\n{busybox}{script}"));
    site.world.build("nodes").success();
    let read = site.world.stave(["run", "--rm", "nodes", "head", "-c", "1", "/zero"]);
    match is_privileged() {
        true => drop(read.exits(1).says("/zero")),
        false => assert_eq!(read.success().stdout, ""),
    }
    site.world.dockerfile(&format!("FROM BUSYBOX\nCOPY --from={name} / /\n{script}"));
    site.world.build("copied").success();
    // Nobody waits for the pipe's other end, nor reads a device.
    site.world.dockerfile(&format!("FROM {name}\nFROM scratch\nCOPY --from={name} /pipe /zero /nodes/\n"));
    site.world.build("nodes-only").success();
    site.world
        .stave(["save", "-o", &site.world.path("out.tar").display().to_string(), "nodes-only"])
        .success();
}

#[test]
fn several_members_are_one_stream() {
    let site = Site::new();
    let plain = super::honest_layer();
    let (first, second) = plain.split_at(plain.len() / 3);
    let members = [tar::gzip(first), tar::gzip(b""), tar::gzip(second)].concat();
    site.place(&members, &plain);
    site.ask(Way::Pull).success();
    let layers = site.world.stave(["image", "layers", "--json", &site.image("app:1")]).success().stdout;
    assert!(layers.contains("\"Files\":1"), "{layers}");
}
