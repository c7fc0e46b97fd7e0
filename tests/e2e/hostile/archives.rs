//! Archives of images made to mislead `load`.

use std::fs;
use std::os::unix::fs::symlink;

use serde_json::{Value, json};
use stave_oci::{Descriptor, Digest, media_type};

use super::{MARK, Site, Tar, config, one_error, outside, tar};

/// The archive is refused in these words, from a file and from a stream, and leaves nothing.
#[track_caller]
fn refuse(archive: &[u8], words: &[&str]) {
    let site = Site::new();
    let file = site.world.path("archive.tar");
    fs::write(&file, archive).expect("writes");
    let before = outside(&site.world);
    one_error(site.world.stave(["load", "-i", &file.display().to_string()]), 1, words).says("archive.tar");
    site.is_untouched(&before);
    one_error(site.world.stave_with_input(&["load"], archive), 1, words);
    site.is_untouched(&before);
    assert_eq!(site.world.stave(["images", "-q"]).success().stdout, "");
}

fn layer() -> Vec<u8> {
    Tar::default().file("file", MARK).end()
}

/// A docker archive whose description and files the caller may change.
fn docker(config_path: &str, layer_path: &str, files: impl Fn(Tar) -> Tar) -> Vec<u8> {
    let manifest = json!([{ "Config": config_path, "RepoTags": ["loaded:1"], "Layers": [layer_path] }]);
    files(Tar::default().file("manifest.json", manifest.to_string())).end()
}

/// An OCI layout; `change` gets the index, the manifest and the files by path before they are written.
fn oci(change: impl Fn(&mut Value, &mut Value, &mut Vec<(String, Vec<u8>)>)) -> Vec<u8> {
    let (layer, config) = (layer(), config(&[Digest::sha256(&layer())]));
    let path = |digest: &Digest| format!("blobs/sha256/{}", digest.hex());
    let mut files = Vec::new();
    let mut place = |kind: &str, bytes: &[u8]| {
        let descriptor = Descriptor::of(kind, bytes);
        files.push((path(&descriptor.digest), bytes.to_vec()));
        serde_json::to_value(descriptor).expect("has a JSON form")
    };
    let (layer, config) = (place(media_type::OCI_LAYER, &layer), place(media_type::OCI_CONFIG, &config));
    let mut manifest: Value = serde_json::from_slice(&super::manifest(&config, &layer)).expect("is JSON");
    let mut extra = json!({});
    change(&mut extra, &mut manifest, &mut files);
    let manifest = manifest.to_string().into_bytes();
    let mut descriptor =
        serde_json::to_value(Descriptor::of(media_type::OCI_MANIFEST, &manifest)).expect("has a JSON form");
    files.push((path(&Digest::sha256(&manifest)), manifest));
    for (key, value) in extra.as_object().into_iter().flatten() {
        descriptor[key] = value.clone();
    }
    let index = json!({ "schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": [descriptor] });
    let archive = Tar::default()
        .file("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#)
        .file("index.json", index.to_string());
    files.iter().fold(archive, |archive, (path, bytes)| archive.file(path, bytes)).end()
}

#[test]
fn honest_archives_load() {
    let site = Site::new();
    let config = config(&[Digest::sha256(&layer())]);
    let archive = docker("c.json", "l.tar", |tar| tar.file("c.json", &config).file("l.tar", layer()));
    site.world.stave_with_input(&["load"], &archive).success();
    site.world.stave(["inspect", "loaded:1"]).success();
    let site = Site::new();
    site.world.stave_with_input(&["load"], &oci(|_, _, _| {})).success();
    assert_ne!(site.world.stave(["images", "-q"]).success().stdout, "");
}

#[test]
fn paths_that_lead_out() {
    let config = config(&[Digest::sha256(&layer())]);
    for path in ["../../../../etc/passwd", "/etc/passwd", "a/../../x"] {
        let archive = docker("c.json", path, |tar| tar.file("c.json", &config));
        refuse(&archive, &[path, "leads out of the archive"]);
        refuse(&docker(path, "l.tar", |tar| tar), &[path, "leads out of the archive"]);
    }
    for target in ["/etc/passwd", "../../../../etc/passwd"] {
        let archive = docker("c.json", "l.tar", |tar| tar.file("c.json", &config).symlink("l.tar", target));
        refuse(&archive, &[target, "leads out of the archive"]);
        let archive = docker("c.json", "l.tar", |tar| tar.file("c.json", &config).hard_link("l.tar", target));
        refuse(&archive, &[target, "leads out of the archive"]);
    }
    let archive =
        docker("c.json", "a", |tar| tar.file("c.json", &config).symlink("a", "b").symlink("b", "a"));
    refuse(&archive, &["links"]);
    let archive = docker("c.json", "l.tar", |tar| tar.file("c.json", &config).device(b'3', "l.tar", (1, 5)));
    refuse(&archive, &["l.tar"]);
}

#[test]
fn layers_that_lead_out() {
    let bad = Tar::default().file("../x", MARK).end();
    let config = config(&[Digest::sha256(&bad)]);
    let archive = docker("c.json", "l.tar", |tar| tar.file("c.json", &config).file("l.tar", &bad));
    refuse(&archive, &["l.tar", "`../x`", "leads out of the layer"]);
}

#[test]
fn what_is_missing() {
    let config = config(&[Digest::sha256(&layer())]);
    refuse(&docker("c.json", "l.tar", |tar| tar), &["`c.json` is missing"]);
    refuse(&docker("c.json", "l.tar", |tar| tar.file("c.json", &config)), &["`l.tar` is missing"]);
    for index in 0..2 {
        refuse(&oci(|_, _, files| drop(files.remove(index))), &["is missing from the archive"]);
    }
    refuse(&Tar::default().file("readme", "hello").end(), &["not an image archive"]);
    refuse(b"", &["archive"]);
}

#[test]
fn what_does_not_fit() {
    let other = config(&[Digest::sha256(b"other")]);
    let archive = docker("c.json", "l.tar", |tar| tar.file("c.json", &other).file("l.tar", layer()));
    refuse(&archive, &["l.tar", "diff id"]);
    let none = config(&[]);
    let archive = docker("c.json", "l.tar", |tar| tar.file("c.json", &none).file("l.tar", layer()));
    refuse(&archive, &["lists 0 layers, its manifest 1"]);
    refuse(&docker("c.json", "l.tar", |tar| tar.file("c.json", "{")), &["malformed `c.json`"]);
    refuse(&Tar::default().file("manifest.json", "{}").end(), &["malformed `manifest.json`"]);

    refuse(&oci(|_, _, files| files[0].1[600] ^= 1), &["blobs/sha256/", "expected `sha256:"]);
    refuse(&oci(|_, _, files| files[1].1[5] ^= 1), &["blobs/sha256/", "has the digest"]);
    refuse(&oci(|_, manifest, _| manifest["layers"][0]["size"] = 7.into()), &["bytes long, not 7"]);
    refuse(&oci(|_, manifest, _| manifest["config"]["size"] = 7.into()), &["bytes long, not 7"]);
    refuse(&oci(|index, _, _| index["size"] = 7.into()), &["bytes long, not 7"]);
    let platform = json!({ "os": "linux", "architecture": "s390x" });
    refuse(
        &oci(|index, _, _| index["platform"] = platform.clone()),
        &["no image for platform", "linux/s390x"],
    );
    let traversal = "sha256:../../../../../../etc/passwd";
    refuse(&oci(|index, _, _| index["digest"] = traversal.into()), &["index.json"]);
    refuse(&oci(|_, manifest, _| manifest["layers"][0]["mediaType"] = "text/html".into()), &["text/html"]);
}

#[test]
fn archives_that_are_none() {
    let noise: Vec<u8> = (0..4096_u32).map(|number| (number.wrapping_mul(0x9E37_79B9) >> 24) as u8).collect();
    refuse(&noise, &["not a tar archive"]);
    let whole = oci(|_, _, _| {});
    refuse(&whole[..whole.len() - 1500], &["archive"]);
    let packed = tar::gzip(&whole);
    refuse(&packed[..packed.len() / 2], &["archive"]);
    refuse(&tar::gzip(&noise), &["not a tar archive"]);
}

#[test]
fn directories_do_not_lead_out() {
    let site = Site::new();
    let folder = site.world.path("layout");
    fs::create_dir(&folder).expect("creates");
    let config = config(&[Digest::sha256(&layer())]);
    fs::write(folder.join("c.json"), config).expect("writes");
    fs::write(site.world.path("victim"), layer()).expect("writes");
    symlink("../victim", folder.join("l.tar")).expect("links");
    let manifest = json!([{ "Config": "c.json", "RepoTags": ["loaded:1"], "Layers": ["l.tar"] }]);
    fs::write(folder.join("manifest.json"), manifest.to_string()).expect("writes");
    let before = outside(&site.world);
    let outcome = site.world.stave(["load", "-i", &folder.display().to_string()]);
    one_error(outcome, 1, &["l.tar"]);
    site.is_untouched(&before);
}
