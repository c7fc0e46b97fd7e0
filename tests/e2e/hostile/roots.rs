//! Images whose links lie in wait for whoever works inside of them: COPY, ADD, WORKDIR, mounts, processes.

use std::fs;
use std::path::Path;

use super::{Site, Tar, one_error, outside, tar};

const ESCAPES: [&str; 3] = ["/etc", "../../../../../../../../../../etc", "/proc/self/root/etc"];
const MADE: &str = "stave-was-here";

/// A site whose `app:1` has `/link` to a directory that this machine has, too.
fn site(target: &str) -> Site {
    let site = Site::new();
    let layer = Tar::default().symlink("link", target).end();
    site.place(&layer, &layer);
    site.world.write("passwd", "honest\n").write(MADE, "honest\n").write("folder/inner", "honest\n");
    site
}

/// Builds upon the image of such a site: it works, inside.
#[track_caller]
fn stays_inside(instructions: &str, inside: &[&str]) {
    for target in ESCAPES {
        let site = site(target);
        let archive = Tar::default().file(&format!("link/{MADE}"), "honest\n").end();
        fs::write(site.world.context().join("archive.tar"), archive).expect("writes");
        site.world.dockerfile(&format!("FROM {}\n{instructions}\n", site.image("app:1")));
        let before = outside(&site.world);
        let outcome = site.world.stave(["build", "-o", "type=local,dest=../out", "."]);
        assert!(!Path::new("/etc").join(MADE).exists(), "{instructions} wrote through {target}");
        if target.starts_with("/proc") {
            // There is no such directory inside; whatever is made of that, it is one error or no harm.
            if outcome.code != Some(0) {
                one_error(outcome, 1, &["link"]);
            }
        } else {
            outcome.success();
            for path in inside {
                assert!(site.world.path("out").join(path).exists(), "{instructions} made no {path}");
            }
        }
        let mut after = outside(&site.world);
        after.retain(|path, _| !path.starts_with("out"));
        assert_eq!(before, after);
    }
}

#[test]
fn files_are_written_inside() {
    let made = format!("etc/{MADE}");
    stays_inside(&format!("COPY {MADE} /link/"), &[&made]);
    stays_inside(&format!("COPY {MADE} /link/{MADE}"), &[&made]);
    stays_inside("COPY folder /link/stave-was-here", &["etc/stave-was-here/inner"]);
    stays_inside(&format!("WORKDIR /link/{MADE}"), &[&made]);
    stays_inside(&format!("WORKDIR /link/{MADE}\nCOPY passwd ."), &[&format!("{made}/passwd")]);
    stays_inside(&format!("COPY <<EOF /link/{MADE}\nhonest\nEOF"), &[&made]);
}

#[test]
fn archives_are_unpacked_inside() {
    for target in ESCAPES {
        let site = site(target);
        let archive = tar::gzip(&Tar::default().file(&format!("link/{MADE}"), "honest\n").end());
        fs::write(site.world.context().join("archive.tar.gz"), archive).expect("writes");
        site.world.dockerfile(&format!("FROM {}\nADD archive.tar.gz /\n", site.image("app:1")));
        let outcome = site.world.build("it");
        assert!(!Path::new("/etc").join(MADE).exists());
        if outcome.code != Some(0) {
            one_error(outcome, 1, &["archive.tar.gz"]);
        }
    }
    let cut = |tar: Tar| tar.file("half", vec![b'x'; 2000]).cut()[..1024].to_vec();
    for (archive, words) in [
        (Tar::default().hard_link("link", "/etc/passwd").end(), "hard link to a file that is not there"),
        (Tar::default().symlink("other", "/etc").hard_link("link", "other/passwd").end(), "hard link"),
        (cut(Tar::default()), ""),
    ] {
        let site = Site::new();
        fs::write(site.world.context().join("archive.tar"), archive).expect("writes");
        site.world.dockerfile("FROM scratch\nADD archive.tar /\n");
        let before = outside(&site.world);
        one_error(site.world.build("it"), 1, &[words, "archive.tar", "Dockerfile:2"]);
        site.is_untouched(&before);
    }
}

/// `..` ends at the directory that the archive is unpacked to, and links at the root.
#[test]
fn archives_are_contained() {
    let site = Site::new();
    let archive = Tar::default().file("../../up", "x").file("/top", "x").symlink("link", "/etc");
    let archive = archive.file("link/stave-was-here", "x").end();
    fs::write(site.world.context().join("archive.tar"), archive).expect("writes");
    site.world.dockerfile("FROM scratch\nADD archive.tar /to/\n");
    site.world.stave(["build", "-o", "type=local,dest=../out", "."]).success();
    let mut found: Vec<_> = super::files(&site.world.path("out")).into_iter().map(|(path, _)| path).collect();
    found.sort();
    let expected =
        ["etc/stave-was-here", "to/link", "to/top", "to/up"].map(|path| site.world.path("out").join(path));
    assert_eq!(found, expected);
    assert!(!Path::new("/etc").join(MADE).exists());
}

#[test]
fn nothing_outside_is_read() {
    for target in ESCAPES {
        let site = site(target);
        let name = site.image("app:1");
        for from in [
            format!("FROM {name} AS it\nFROM scratch\nCOPY --from=it"),
            format!("FROM scratch\nCOPY --from={name}"),
        ] {
            site.world.dockerfile(&format!("{from} /link/passwd /\n"));
            one_error(site.world.build("it"), 1, &["/link/passwd", "not found"]);
        }
    }
}

/// `/proc`, `/dev`, `/sys` and the files that are put over an image's own are links out.
#[test]
fn processes_are_held_inside() {
    for (link, target) in [
        ("proc", "/etc"),
        ("dev", "/etc"),
        ("sys", "../../../../etc"),
        ("etc", "/../../../../etc"),
        ("tmp", "/etc"),
        ("etc/resolv.conf", "../../../../../../etc/passwd"),
        ("etc/hosts", "/proc/self/root/etc/passwd"),
        ("work", "/etc"),
    ] {
        let site = Site::new();
        let layer = Tar::default().symlink(link, target).end();
        site.place(&layer, &layer);
        let name = site.image("app:1");
        let host = |path: &str| fs::read(path).ok();
        let files = ["/etc/passwd", "/etc/hosts", "/etc/resolv.conf"];
        let before = (outside(&site.world), files.map(host), listing("/etc"));
        site.world.dockerfile(&format!(
            "FROM {name}\nCOPY --from=BUSYBOX /bin /bin\nWORKDIR /place/w\n\
             RUN --mount=type=cache,target=/tmp/{MADE} --mount=type=tmpfs,target=/place/{MADE} \
             --mount=type=bind,source=present,target=/dev/{MADE} echo made > /etc/{MADE}; echo x > /etc/hosts; true\n"
        ));
        let outcome = site.world.build("it");
        let mut after = (outside(&site.world), files.map(host), listing("/etc"));
        after.0.remove(Path::new("context/Dockerfile"));
        assert_eq!(before, after, "{link} -> {target} led out");
        match outcome.code {
            Some(0) => {
                let outcome = site.world.stave(["run", "--rm", "it", "cat", "/etc/passwd"]);
                let passwd = fs::read_to_string("/etc/passwd").expect("is readable");
                assert_ne!(outcome.stdout, passwd, "{link} -> {target} shows the machine's file");
            }
            _ => drop(one_error(outcome, 1, &[])),
        }
    }
}

fn listing(folder: &str) -> Vec<std::ffi::OsString> {
    let mut names: Vec<_> =
        fs::read_dir(folder).expect("is readable").flatten().map(|entry| entry.file_name()).collect();
    names.sort();
    names
}
