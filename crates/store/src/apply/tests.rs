//! Archives as they come, and as attackers make them.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use stave_oci::{Compression, Digest};

use crate::tests::{TestStore, count};
use crate::{AbsoluteNames, ApplyOptions, LayerLimits, Snapshot, StoreError};

/// An archive built entry by entry, names taken as they are.
#[derive(Default)]
struct Tar(Vec<u8>);

impl Tar {
    fn raw(mut self, flag: u8, name: &str, link: &str, data: &[u8], change: impl Fn(&mut [u8])) -> Self {
        let mut block = [0u8; 512];
        block[..name.len()].copy_from_slice(name.as_bytes());
        block[100..107].copy_from_slice(b"0000755");
        block[124..135].copy_from_slice(format!("{:011o}", data.len()).as_bytes());
        block[136..147].copy_from_slice(b"00000001750");
        block[156] = flag;
        block[157..157 + link.len()].copy_from_slice(link.as_bytes());
        block[257..265].copy_from_slice(b"ustar\x0000");
        change(&mut block);
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        self.0.extend_from_slice(&block);
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn file(self, name: &str, data: &str) -> Self {
        self.raw(b'0', name, "", data.as_bytes(), |_| {})
    }

    fn dir(self, name: &str) -> Self {
        self.raw(b'5', name, "", b"", |_| {})
    }

    fn symlink(self, name: &str, target: &str) -> Self {
        self.raw(b'2', name, target, b"", |_| {})
    }

    fn link(self, name: &str, target: &str) -> Self {
        self.raw(b'1', name, target, b"", |_| {})
    }

    fn pax(self, records: &[(&str, &str)]) -> Self {
        let record = |(key, value): &(&str, &str)| {
            let rest = key.len() + value.len() + 3;
            let length = (rest..).find(|total| *total == rest + total.to_string().len()).expect("a length");
            format!("{length} {key}={value}\n")
        };
        let body: String = records.iter().map(record).collect();
        self.raw(b'x', "pax", "", body.as_bytes(), |_| {})
    }

    fn end(mut self) -> Vec<u8> {
        self.0.extend_from_slice(&[0; 1024]);
        self.0
    }
}

fn apply(test: &TestStore, tar: &[u8], options: &ApplyOptions) -> Result<PathBuf, StoreError> {
    let applied = test.store.apply_layer(tar, options)?;
    Ok(test.store.layer_paths(&Snapshot::new(vec![applied.layer]))?.remove(0))
}

/// The archive unpacks; `look` sees the directory.
#[track_caller]
fn check(tar: Tar, look: impl Fn(PathBuf)) {
    let test = TestStore::new();
    look(apply(&test, &tar.end(), &ApplyOptions::default()).expect("a good archive"));
}

/// The archive is refused with this text, and nothing of it stays.
#[track_caller]
fn refuse(tar: Tar, expected: &str) {
    refuse_with(&tar.end(), &ApplyOptions::default(), expected);
}

#[track_caller]
fn refuse_with(tar: &[u8], options: &ApplyOptions, expected: &str) {
    let test = TestStore::new();
    let outside = test.root().join("passwd");
    fs::write(&outside, "outside").expect("a file");
    match apply(&test, tar, options) {
        Err(StoreError::Layer(error)) => assert_eq!(error.to_string(), expected),
        other => panic!("{other:?}"),
    }
    assert_eq!(count(&test.root().join("l")), 0);
    assert_eq!(count(&test.root().join("tmp").join(test.store.inner.session.slot())), 0);
    assert_eq!(fs::read_to_string(outside).expect("untouched"), "outside");
}

fn is_whiteout(path: PathBuf) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_char_device() && found.rdev() == 0)
}

fn is_opaque(path: PathBuf) -> bool {
    let mut value = [0; 4];
    rustix::fs::lgetxattr(path, "trusted.overlay.opaque", &mut value)
        .is_ok_and(|length| &value[..length] == b"y")
}

#[test]
fn paths_that_lead_out_are_refused() {
    refuse(Tar::default().file("../passwd", "x"), "layer entry `../passwd`: the path leads out of the layer");
    refuse(
        Tar::default().file("a/../../passwd", "x"),
        "layer entry `a/../../passwd`: the path leads out of the layer",
    );
    refuse(Tar::default().file("/etc/passwd", "x"), "layer entry `/etc/passwd`: the path is absolute");
    let through = "the path goes through something that is not a directory of the layer";
    for target in ["/", "/etc", "..", "../../../../etc", "/proc/self/root/etc", "a"] {
        let tar = Tar::default().symlink("a", target).file("a/b/passwd", "x");
        // The root of the layer is a directory of the layer: `a -> /` and `a -> ..` stay inside.
        if matches!(target, "/" | "..") {
            check(tar, |path| assert!(path.join("b/passwd").is_file()));
        } else {
            refuse(tar, &format!("layer entry `a/b/passwd`: {through}"));
        }
    }
    let replaced = Tar::default().dir("d").symlink("d", "/etc").file("d/passwd", "x");
    refuse(replaced, &format!("layer entry `d/passwd`: {through}"));
    refuse(Tar::default().file("f", "x").file("f/g", "x"), &format!("layer entry `f/g`: {through}"));
}

#[test]
fn hard_links_stay_in_the_layer() {
    let refused =
        |target: &str| format!("layer entry `l`: hard link to `{target}`, which is not a file of the layer");
    refuse(Tar::default().link("l", "/etc/passwd"), &refused("/etc/passwd"));
    refuse(Tar::default().link("l", "../../passwd"), "layer entry `l`: the path leads out of the layer");
    refuse(Tar::default().dir("d").link("l", "d"), &refused("d"));
    refuse(Tar::default().symlink("s", "/etc").link("l", "s/passwd"), &refused("s/passwd"));
    refuse(Tar::default().file(".wh.f", "").link("l", "f"), &refused("f"));
    // A link to a symlink is a second name for the symlink.
    check(Tar::default().symlink("s", "/etc/passwd").link("l", "s").file("l", "mine"), |path| {
        assert_eq!(fs::read_link(path.join("s")).expect("a link"), PathBuf::from("/etc/passwd"));
        assert_eq!(fs::read_to_string(path.join("l")).expect("a file"), "mine");
    });
    check(Tar::default().file("a", "1").link("b", "a").link("b", "a").link("a", "a"), |path| {
        let [a, b] = ["a", "b"].map(|name| fs::metadata(path.join(name)).expect("a file"));
        assert_eq!((a.ino(), a.nlink()), (b.ino(), 2));
    });
}

#[test]
fn later_entries_replace_earlier_ones_without_following_them() {
    check(Tar::default().symlink("s", "/etc/passwd").file("s", "mine"), |path| {
        assert!(fs::symlink_metadata(path.join("s")).expect("an entry").is_file());
    });
    check(Tar::default().dir("d").file("d/x", "1").file("d", "now a file"), |path| {
        assert_eq!(fs::read_to_string(path.join("d")).expect("a file"), "now a file");
    });
    check(Tar::default().file("d", "1").dir("d").file("d/x", "2"), |path| {
        assert_eq!(fs::read_to_string(path.join("d/x")).expect("a file"), "2");
    });
    check(Tar::default().dir("d").file("d/x", "1").dir("d").dir("./d/"), |path| {
        assert!(path.join("d/x").is_file(), "a directory twice keeps its content");
    });
    check(Tar::default().dir("real").symlink("lib", "real").file("lib/x", "1"), |path| {
        assert!(path.join("real/x").is_file(), "a symlink within the layer is followed within it");
    });
}

#[test]
fn whiteouts_hide_lower_layers_only() {
    check(Tar::default().dir("d").file("d/.wh.gone", "").file("d/.wh..wh..opq", ""), |path| {
        assert!(is_whiteout(path.join("d/gone")));
        assert!(is_opaque(path.join("d")));
    });
    for [first, second] in [["x/y", ".wh.x"], [".wh.x", "x/y"]] {
        check(Tar::default().file(first, "").file(second, ""), |path| {
            assert!(path.join("x/y").is_file(), "{first}");
            assert!(is_opaque(path.join("x")), "{first}");
        });
    }
    check(Tar::default().file(".wh.x", "").file("x", "1"), |path| assert!(path.join("x").is_file()));
    check(Tar::default().file("x", "1").file(".wh.x", ""), |path| assert!(path.join("x").is_file()));
    check(Tar::default().file(".wh..wh.plnk", ""), |path| assert_eq!(count(&path), 0));
    for bad in [".wh.", ".wh..", ".wh..."] {
        refuse(Tar::default().file(bad, ""), &format!("layer entry `{bad}`: invalid whiteout"));
    }
}

#[test]
fn attributes_are_kept() {
    let tar = Tar::default()
        .pax(&[
            ("mtime", "1000.000000007"),
            ("uid", "70000"),
            ("gid", "4000000000"),
            ("SCHILY.xattr.user.k", "v"),
            ("SCHILY.xattr.trusted.overlay.redirect", "/etc"),
            ("SCHILY.xattr.user.overlay.opaque", "y"),
        ])
        .raw(b'0', "f", "", b"x", |block| block[100..107].copy_from_slice(b"0004755"))
        .raw(b'5', "d/", "", b"", |block| block[100..107].copy_from_slice(b"0001777"))
        .file("d/later", "changes the time of d")
        .file("no/such/parent", "x");
    check(tar, |path| {
        let file = fs::metadata(path.join("f")).expect("a file");
        assert_eq!((file.mode() & 0o7777, file.uid(), file.gid()), (0o4755, 70_000, 4_000_000_000));
        assert_eq!((file.mtime(), file.mtime_nsec()), (1000, 7));
        let mut names = [0; 256];
        let length = rustix::fs::llistxattr(path.join("f"), &mut names[..]).expect("attributes");
        assert_eq!(&names[..length], b"user.k\0", "overlay's own are not for archives to set");
        let directory = fs::metadata(path.join("d")).expect("a directory");
        assert_eq!((directory.mode() & 0o7777, directory.mtime()), (0o1777, 0o1750));
        let made = fs::metadata(path.join("no/such")).expect("a directory");
        assert_eq!((made.mode() & 0o7777, made.uid()), (0o755, 0));
    });
}

#[test]
fn special_files_are_made_and_never_opened() {
    let device = |block: &mut [u8]| {
        block[329..336].copy_from_slice(b"0000001");
        block[337..344].copy_from_slice(b"0000003");
    };
    check(Tar::default().raw(b'3', "null", "", b"", device).raw(b'6', "fifo", "", b"", |_| {}), |path| {
        let null = fs::symlink_metadata(path.join("null")).expect("a device");
        assert!(null.file_type().is_char_device());
        assert_eq!(null.rdev(), rustix::fs::makedev(1, 3));
        assert!(fs::symlink_metadata(path.join("fifo")).expect("a fifo").file_type().is_fifo());
    });
    let twice = Tar::default().raw(b'3', "null", "", b"", device).file("null", "not written to the device");
    check(twice, |path| assert!(fs::symlink_metadata(path.join("null")).expect("a file").is_file()));
    refuse(
        Tar::default().raw(b'V', "v", "", b"", |_| {}),
        "layer entry `v`: entry type `V` is not supported",
    );
}

#[test]
fn long_names_come_in_every_form() {
    let long = format!("{}/{}", "d".repeat(120), "n".repeat(120));
    let gnu = Tar::default().raw(b'L', "././@LongLink", "", format!("{long}\0").as_bytes(), |_| {});
    check(gnu.file("cut", "1"), |path| assert!(path.join(&long).is_file()));
    check(Tar::default().pax(&[("path", &long)]).file("cut", "1"), |path| {
        assert!(path.join(&long).is_file());
    });
    let prefix = "p".repeat(150);
    let split = Tar::default().raw(b'0', "name", "", b"1", |block| {
        block[345..495].copy_from_slice(prefix.as_bytes());
    });
    check(split, |path| assert!(path.join(&prefix).join("name").is_file()));
    let link = Tar::default().raw(b'K', "././@LongLink", "", long.as_bytes(), |_| {}).symlink("s", "cut");
    check(link, |path| assert_eq!(fs::read_link(path.join("s")).expect("a link"), PathBuf::from(&long)));
}

#[test]
fn sparse_files_keep_their_holes() {
    let look = |path: PathBuf| {
        let content = fs::read(path.join("f")).expect("a file");
        let mut expected = vec![0; 1 << 20];
        expected[65_536..65_540].copy_from_slice(b"data");
        expected[(1 << 20) - 2..].copy_from_slice(b"en");
        assert!(content == expected);
        assert!(fs::metadata(path.join("f")).expect("a file").blocks() < 100, "holes are not written");
    };
    let old = Tar::default().raw(b'S', "f", "", b"dataen", |block| {
        let numbers = [65_536u64, 4, (1 << 20) - 2, 2];
        for (index, number) in numbers.into_iter().enumerate() {
            block[386 + index * 12..][..11].copy_from_slice(format!("{number:011o}").as_bytes());
        }
        block[257..265].copy_from_slice(b"ustar  \0");
        block[483..494].copy_from_slice(format!("{:011o}", 1 << 20).as_bytes());
    });
    check(old, look);
    let map = format!("2\n65536\n4\n{}\n2\n", (1 << 20) - 2);
    let mut data = map.into_bytes();
    data.resize(512, 0);
    data.extend_from_slice(b"dataen");
    let head = [("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"), ("GNU.sparse.name", "f")];
    let head = [&head[..], &[("GNU.sparse.realsize", "1048576")]].concat();
    check(Tar::default().pax(&head).raw(b'0', "GNUSparseFile.0/f", "", &data, |_| {}), look);
    let head = [("GNU.sparse.size", "1048576"), ("GNU.sparse.map", "65536,4,1048574,2")];
    check(Tar::default().pax(&head).raw(b'0', "f", "", b"dataen", |_| {}), look);
    let overlapping = [("GNU.sparse.size", "100"), ("GNU.sparse.map", "0,4,2,2")];
    refuse(
        Tar::default().pax(&overlapping).raw(b'0', "f", "", b"dataen", |_| {}),
        "layer entry `f`: damaged header: sparse map out of order",
    );
}

#[test]
fn limits_are_named() {
    let limits = LayerLimits { entries: 2, path_bytes: 20, total_bytes: 10_000 };
    let options = ApplyOptions { limits, ..ApplyOptions::default() };
    let three = Tar::default().file("a", "").file("b", "").file("c", "").end();
    refuse_with(&three, &options, "layer entry `c`: more than 2 entries");
    let long = Tar::default().file(&"n".repeat(21), "").end();
    refuse_with(&long, &options, "layer entry `nnnnnnnnnnnnnnnnnnnnn`: a path is longer than 20 bytes");
    let big = Tar::default().raw(b'0', "big", "", &[0; 20_000], |_| {}).end();
    refuse_with(&big, &options, "layer entry `big`: more than 10000 bytes when unpacked");
    let mut bomb = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    bomb.write_all(&Tar::default().file("a", "x").end()).expect("memory");
    bomb.write_all(&vec![0; 1 << 20]).expect("memory");
    let bomb = bomb.finish().expect("memory");
    refuse_with(&bomb, &options, "layer entry `(end)`: more than 10000 bytes when unpacked");
    let sparse = [("GNU.sparse.size", "999999999999"), ("GNU.sparse.map", "0,1")];
    let hole = Tar::default().pax(&sparse).raw(b'0', "hole", "", b"x", |_| {}).end();
    refuse_with(&hole, &options, "layer entry `hole`: more than 10000 bytes when unpacked");
    let header = Tar::default().raw(b'x', "pax", "", b"", |block| {
        block[124..135].copy_from_slice(b"77777777777");
    });
    refuse(header, "layer entry `pax`: an extended header is larger than 1048576 bytes");
}

#[test]
fn damage_is_reported() {
    let good = Tar::default().file("f", &"x".repeat(1000)).end();
    refuse_with(&good[..700], &ApplyOptions::default(), "layer entry `f`: the archive is cut short");
    refuse_with(&good[..300], &ApplyOptions::default(), "layer entry `(number 1)`: the archive is cut short");
    let mut bad = good.clone();
    bad[0] = b'g';
    refuse_with(&bad, &ApplyOptions::default(), "layer entry `(number 1)`: damaged header: checksum");
    let options = ApplyOptions { diff_id: Some(Digest::sha256(b"other")), ..ApplyOptions::default() };
    let (expected, found) = (Digest::sha256(b"other"), Digest::sha256(&good));
    let text = format!("layer entry `(end)`: the layer has diff id `{found}`, expected `{expected}`");
    refuse_with(&good, &options, &text);
    let gzip = ApplyOptions { compression: Some(Compression::Gzip), ..ApplyOptions::default() };
    refuse_with(&good, &gzip, "layer entry `(number 1)`: cannot read the stream");
}

#[test]
fn every_compression_gives_the_same_layer_once() {
    let test = TestStore::new();
    let tar = [Tar::default().file("f", "1").end(), vec![0; 10_240]].concat();
    let mut gzip = Vec::new();
    // Two members, as parallel compressors write them.
    for half in [&tar[..600], &tar[600..]] {
        let mut encoder = flate2::write::GzEncoder::new(&mut gzip, flate2::Compression::fast());
        encoder.write_all(half).expect("memory");
        encoder.finish().expect("memory");
    }
    let zstd = zstd::encode_all(&tar[..], 1).expect("memory");
    let options = ApplyOptions { diff_id: Some(Digest::sha256(&tar)), ..ApplyOptions::default() };
    let all = [&tar, &gzip, &zstd].map(|blob| test.store.apply_layer(&blob[..], &options).expect("a layer"));
    assert_eq!((all[0].size, &all[0].diff_id), (tar.len() as u64, &Digest::sha256(&tar)));
    assert_eq!(all[0], all[1]);
    assert_eq!(all[0], all[2]);
    assert_eq!(count(&test.root().join("l")), 1);
    assert_eq!(test.store.layer_by_diff_id(&all[0].diff_id).expect("an answer"), Some(all[0].layer));
    assert_eq!(test.store.diff_id(all[0].layer).expect("a digest"), all[0].diff_id);
}

#[test]
fn a_layer_has_the_time_it_is_said_to_be_from() {
    let test = TestStore::new();
    let made = |name: &str, at: SystemTime| {
        let tar = Tar::default().file(name, "x").end();
        let options = ApplyOptions { made: Some(at), ..ApplyOptions::default() };
        let layer = test.store.apply_layer(&tar[..], &options).expect("a layer").layer;
        test.store.layer_created(layer).expect("an answer").expect("is there")
    };
    let long_ago = SystemTime::UNIX_EPOCH + Duration::from_millis(1_234_567);
    assert_eq!(made("old", long_ago), long_ago);
    // Not one that nobody can have made yet.
    let to_come = SystemTime::now() + Duration::from_secs(1 << 20);
    assert!(made("new", to_come) < to_come);
}

#[test]
fn absolute_names_can_be_contained() {
    let test = TestStore::new();
    let options = ApplyOptions { absolute_names: AbsoluteNames::Contain, ..ApplyOptions::default() };
    let path =
        apply(&test, &Tar::default().dir("/").file("/etc/passwd", "x").end(), &options).expect("a layer");
    assert!(path.join("etc/passwd").is_file());
}

#[test]
fn a_full_disk_is_its_own_error() {
    let test = TestStore::new();
    let active = test.store.prepare(&Snapshot::scratch()).expect("a layer");
    let source = std::io::Error::from(std::io::ErrorKind::StorageFull);
    let kind = crate::LayerErrorKind::Io { action: "write the file", source };
    let error = super::at(b"etc/passwd", kind, &active);
    assert!(
        matches!(&error, StoreError::StorageFull { path, .. } if path.ends_with("etc/passwd")),
        "{error}"
    );
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]

    /// Whatever the bytes, the answer is a layer or a typed error, and the store stays whole.
    #[test]
    fn arbitrary_damage_never_panics(position in 0usize..4096, value: u8, cut in 0usize..4096) {
        let test = TestStore::new();
        let mut tar = Tar::default()
            .dir("d")
            .pax(&[("path", "d/f"), ("mtime", "1.5")])
            .file("f", "content")
            .link("l", "d/f")
            .symlink("s", "d")
            .end();
        let position = position % tar.len();
        tar[position] = value;
        tar.truncate(tar.len() - cut % tar.len());
        let applied = test.store.apply_layer(&tar[..], &ApplyOptions::default());
        proptest::prop_assert_eq!(count(&test.root().join("l")), usize::from(applied.is_ok()));
    }
}
