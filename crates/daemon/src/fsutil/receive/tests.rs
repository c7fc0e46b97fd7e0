//! Trees that arrive as packets: honest ones, and those that would lead out.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use super::*;
use crate::fsutil::PACKETS;

const DIR: u32 = 1 << 31;
const SYMLINK: u32 = 1 << 27;

/// What a scripted sender has: path, mode, link target, content.
type Tree = &'static [(&'static str, u32, &'static str, &'static str)];

fn stat(path: &str, mode: u32, link: &str, content: &str, time: i64) -> Stat {
    Stat {
        path: path.to_owned(),
        mode,
        linkname: link.to_owned(),
        size: i64::try_from(content.len()).expect("small"),
        mod_time: time,
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        ..Stat::default()
    }
}

fn stat_packet(stat: Option<Stat>) -> Packet {
    Packet { stat, ..packet(PacketType::PacketStat, 0) }
}

/// Receives from a sender that keeps to the protocol; returns the paths that were asked for.
fn transfer(directory: &Path, tree: Tree, time: i64) -> (Result<Received, ReceiveError>, Vec<String>) {
    transfer_as(directory, Manner::default(), tree, time)
}

fn transfer_as(
    directory: &Path,
    manner: Manner,
    tree: Tree,
    time: i64,
) -> (Result<Received, ReceiveError>, Vec<String>) {
    let (to_receiver, mut packets) = mpsc::channel(PACKETS);
    let (requests, mut from_receiver) = mpsc::channel::<Packet>(PACKETS);
    let sender = std::thread::spawn(move || {
        for (path, mode, link, content) in tree {
            if to_receiver.blocking_send(stat_packet(Some(stat(path, *mode, link, content, time)))).is_err() {
                return Vec::new();
            }
        }
        to_receiver.blocking_send(stat_packet(None)).ok();
        let mut asked = Vec::new();
        while let Some(request) = from_receiver.blocking_recv() {
            if request.r#type() != PacketType::PacketReq {
                break;
            }
            let (path, _, _, content) = tree[request.id as usize];
            asked.push(path.to_owned());
            for part in content.as_bytes().chunks(3).chain([&b""[..]]) {
                let data = Packet { data: part.to_vec(), ..packet(PacketType::PacketData, request.id) };
                to_receiver.blocking_send(data).ok();
            }
        }
        asked
    });
    let outcome = receive(directory, manner, &mut packets, &requests, &|_| {});
    drop((packets, requests));
    (outcome, sender.join().expect("the sender ends"))
}

#[test]
fn only_what_differs_travels() {
    let folder = tempfile::tempdir().expect("a folder");
    let first: Tree = &[
        ("a", DIR | 0o755, "", ""),
        ("a/one", 0o644, "", "content"),
        ("a/two", 0o600, "", ""),
        ("b", SYMLINK | 0o777, "/etc/passwd", ""),
        ("c", 0o644, "a/one", ""),
        ("d", DIR | 0o700, "", ""),
        ("d/gone", 0o644, "", "x"),
    ];
    let (outcome, asked) = transfer(folder.path(), first, 1_500_000_000_123_456_789);
    assert_eq!(outcome.expect("received"), Received { entries: 7, files: 3, bytes: 8 });
    assert_eq!(asked, ["a/one", "a/two", "d/gone"]);
    let one = std::fs::metadata(folder.path().join("a/one")).expect("is there");
    assert_eq!((one.mtime(), one.mtime_nsec(), one.nlink()), (1_500_000_000, 123_456_789, 2));
    let a = std::fs::metadata(folder.path().join("a")).expect("is there");
    assert_eq!((a.mtime(), a.permissions().mode() & 0o7777), (1_500_000_000, 0o755));

    let (outcome, asked) = transfer(folder.path(), first, 1_500_000_000_123_456_789);
    assert_eq!(outcome.expect("received").files, 0);
    assert!(asked.is_empty(), "{asked:?}");

    let second: Tree = &[("a", 0o644, "", "now a file"), ("b", DIR | 0o755, "", ""), ("b/x", 0o644, "", "y")];
    let (outcome, _) = transfer(folder.path(), second, 1_500_000_000_123_456_789);
    assert_eq!(outcome.expect("received").files, 2);
    let left: BTreeMap<_, _> = std::fs::read_dir(folder.path())
        .expect("lists")
        .map(|entry| entry.expect("reads"))
        .map(|entry| (entry.file_name(), entry.file_type().expect("known").is_dir()))
        .collect();
    assert_eq!(left, [("a".into(), false), ("b".into(), true)].into());
    assert_eq!(std::fs::read_to_string(folder.path().join("b/x")).expect("reads"), "y");
}

#[test]
fn entries_are_whose_they_are_to_be() {
    let own = |folder: &Path| {
        let of = |name| std::fs::symlink_metadata(folder.join(name)).map(|stat| (stat.uid(), stat.gid()));
        ["f", "d", "l"].map(|name| of(name).expect("is there"))
    };
    let tree: Tree = &[("d", DIR | 0o755, "", ""), ("f", 0o644, "", "x"), ("l", SYMLINK | 0o777, "f", "")];
    let folder = tempfile::tempdir().expect("a folder");
    // Only root gives files away, and in a user namespace only to whom that has.
    let probe = tempfile::NamedTempFile::new().expect("a file");
    let gives = std::os::unix::fs::fchown(probe.as_file(), Some(7), Some(8)).is_ok();
    let owner = if gives { (7, 8) } else { own_ids() };
    let manner = Manner { owner: Some(owner), ..Manner::default() };
    transfer_as(folder.path(), manner, tree, 7).0.expect("received");
    assert_eq!(own(folder.path()), [owner; 3]);
}

fn own_ids() -> (u32, u32) {
    (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw())
}

#[test]
fn all_travels_where_times_do_not_count() {
    let folder = tempfile::tempdir().expect("a folder");
    let all = || Manner { is_all: true, ..Manner::default() };
    let before: Tree =
        &[("a", DIR | 0o755, "", ""), ("a/f", 0o644, "", "foo"), ("l", SYMLINK | 0o777, "a", "")];
    let after: Tree =
        &[("a", DIR | 0o755, "", ""), ("a/f", 0o644, "", "bar"), ("l", SYMLINK | 0o777, "a", "")];
    transfer(folder.path(), before, 7).0.expect("received");
    // Nothing tells these two apart but what is in them.
    let (_, asked) = transfer(folder.path(), after, 7);
    assert!(asked.is_empty(), "{asked:?}");
    let (_, asked) = transfer_as(folder.path(), all(), after, 7);
    assert_eq!(asked, ["a/f"]);
    assert_eq!(std::fs::read_to_string(folder.path().join("a/f")).expect("reads"), "bar");
}

/// What a directory's file tells, in order.
fn told(folder: &Path) -> Vec<String> {
    use prost::Message as _;
    let text = std::fs::read(folder.join(metadata::FILE)).expect("is there");
    let (mut rest, mut paths) = (text.as_slice(), Vec::new());
    while let Some((length, behind)) = rest.split_first_chunk::<4>() {
        let (stat, behind) = behind.split_at(u32::from_le_bytes(*length) as usize);
        paths.push(Stat::decode(stat).expect("decodes").path);
        rest = behind;
    }
    paths
}

#[test]
fn of_what_no_pattern_selects_only_metadata_comes() {
    let folder = tempfile::tempdir().expect("a folder");
    let metadata = || {
        let but = PatternMatcher::new(["dir/**/*1", "foo", "link"]).expect("patterns");
        Manner { metadata_but: Some(but), ..Manner::default() }
    };
    let tree: Tree = &[
        (".fsutil-metadata", 0o600, "", "the sender's own"),
        ("data", 0o600, "", "contents"),
        ("dir", DIR | 0o700, "", ""),
        ("dir/file1", 0o600, "", "file1"),
        ("dir/file2", 0o600, "", "file2"),
        ("dir/sub", DIR | 0o700, "", ""),
        ("dir/sub/bar1", 0o600, "", "bar1"),
        ("dir/sub2", DIR | 0o700, "", ""),
        ("dir/sub2/bar3", 0o600, "", "bar3"),
        ("foo", 0o602, "", "foo"),
        ("link", 0o600, "data", "contents"),
    ];
    let (outcome, asked) = transfer_as(folder.path(), metadata(), tree, 7);
    assert_eq!((outcome.expect("received").entries, asked.len()), (11, 4));
    assert_eq!(asked, ["dir/file1", "dir/sub/bar1", "foo", "link"]);
    let all: Vec<_> = tree.iter().skip(1).map(|entry| entry.0).collect();
    assert_eq!(told(folder.path()), all);
    assert_eq!(std::fs::read_to_string(folder.path().join("dir/sub/bar1")).expect("reads"), "bar1");
    for absent in ["data", "dir/file2", "dir/sub2"] {
        assert!(!folder.path().join(absent).exists(), "{absent}");
    }

    // What is no longer selected, or there, goes.
    let fewer: Tree = &[("dir", DIR | 0o700, "", ""), ("dir/file1", 0o600, "", "file1")];
    let (_, asked) = transfer_as(folder.path(), metadata(), fewer, 7);
    assert!(asked.is_empty(), "{asked:?}");
    assert_eq!(told(folder.path()), ["dir", "dir/file1"]);
    assert!(!folder.path().join("foo").exists() && !folder.path().join("dir/sub").exists());
}

#[track_caller]
fn check(tree: Tree, expected: &str) {
    let outer = tempfile::tempdir().expect("a folder");
    let inner = outer.path().join("inner");
    std::fs::create_dir(&inner).expect("made");
    std::fs::write(outer.path().join("victim"), "safe").expect("written");
    let (outcome, _) = transfer(&inner, tree, 0);
    assert_eq!(outcome.expect_err("is refused").to_string(), expected);
    assert_eq!(std::fs::read_to_string(outer.path().join("victim")).expect("is there"), "safe");
    assert_eq!(std::fs::read_dir(outer.path()).expect("lists").count(), 2);
}

#[test]
fn hostile_trees_stay_inside() {
    check(&[("../victim", 0o644, "", "bad")], "invalid path `../victim`");
    check(&[("/victim", 0o644, "", "bad")], "invalid path `/victim`");
    check(
        &[("l", SYMLINK, "..", ""), ("l/victim", 0o644, "", "bad")],
        "path `l/victim` has no parent directory",
    );
    check(&[("b", 0o644, "", ""), ("a", 0o644, "", "")], "path `a` is out of order");
    check(
        &[("x", 0o644, "../victim", "")],
        "`x` is a link to `../victim`, which is no file of the directory",
    );
    check(
        &[("x", 0o644, "later", ""), ("z", 0o644, "", "")],
        "`x` is a link to `later`, which is no file of the directory",
    );
    check(&[("dev", 1 << 26, "", "")], "`dev` is a device or socket");
}

#[test]
fn a_symlink_left_behind_is_not_followed() {
    let outer = tempfile::tempdir().expect("a folder");
    let inner = outer.path().join("inner");
    std::fs::create_dir(&inner).expect("made");
    std::fs::create_dir(outer.path().join("outside")).expect("made");
    std::os::unix::fs::symlink("../outside", inner.join("d")).expect("linked");
    let (outcome, _) = transfer(&inner, &[("d", DIR | 0o755, "", ""), ("d/f", 0o644, "", "x")], 0);
    outcome.expect("received");
    assert!(inner.join("d/f").is_file() && !inner.join("d").is_symlink());
    assert_eq!(std::fs::read_dir(outer.path().join("outside")).expect("lists").count(), 0);
}

#[track_caller]
fn check_packets(sent: Vec<Packet>, expected: &str) {
    let folder = tempfile::tempdir().expect("a folder");
    let (to_receiver, mut packets) = mpsc::channel(PACKETS);
    let (requests, _kept) = mpsc::channel::<Packet>(PACKETS);
    for packet in sent {
        to_receiver.try_send(packet).expect("there is room");
    }
    drop(to_receiver);
    let outcome = receive(folder.path(), Manner::default(), &mut packets, &requests, &|_| {});
    assert_eq!(outcome.expect_err("is refused").to_string(), expected);
}

#[test]
fn packets_that_make_no_sense() {
    let data = |id, data: &[u8]| Packet { data: data.to_vec(), ..packet(PacketType::PacketData, id) };
    let file = || stat_packet(Some(stat("f", 0o644, "", "abc", 0)));
    check_packets(vec![], "the sender went away in the middle of a transfer");
    check_packets(vec![data(0, b"x")], "unexpected packet: content before the list of files");
    check_packets(
        vec![file(), stat_packet(None), data(7, b"x")],
        "unexpected packet: content nobody asked for",
    );
    check_packets(
        vec![file(), stat_packet(None), data(0, b"x")],
        "the sender went away in the middle of a transfer",
    );
    check_packets(
        vec![Packet { data: b"no such directory".to_vec(), ..packet(PacketType::PacketErr, 0) }],
        "error from sender: no such directory",
    );
}
