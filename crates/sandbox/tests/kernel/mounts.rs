//! Binds, file systems in memory, mount points, stubs, overlays.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::{Path, PathBuf};

use stave_sandbox::{
    MountSpec, OverlayLayers, RootFs, SandboxSpec, SetupStep, SpawnError, mount_overlay, remove_mount_points,
};

use crate::Test;
use crate::fixture::{Place, bind, run, start, try_run};

pub(crate) const TESTS: &[Test] = &[
    ("mounts::changes_go_to_upper", changes_go_to_upper),
    ("mounts::mount_points_stay_out_of_upper", mount_points_stay_out_of_upper),
    ("mounts::made_mount_points_are_reported_and_removed", made_mount_points_are_reported_and_removed),
    ("mounts::binds", binds),
    ("mounts::readonly_reaches_mounts_below", readonly_reaches_mounts_below),
    ("mounts::files_in_memory", files_in_memory),
    ("mounts::tmpfs", tmpfs),
    ("mounts::links_in_targets_stay_inside", links_in_targets_stay_inside),
    ("mounts::readonly_root", readonly_root),
    ("mounts::directory_root", directory_root),
    ("mounts::a_missing_source_is_named", a_missing_source_is_named),
    ("mounts::many_layers", many_layers),
    ("mounts::overlay_guards", overlay_guards),
];

fn changes_go_to_upper() {
    let place = Place::new();
    place.output("echo new > /file; busybox mkdir -m 700 /made; busybox rm /bin/sh");
    assert_eq!(place.changes(), ["bin", "file", "made"]);
    assert_eq!(fs::read_to_string(place.path("upper/file")).expect("a file"), "new\n");
    let whiteout = fs::symlink_metadata(place.path("upper/bin/sh")).expect("a whiteout");
    assert_eq!((whiteout.mode() & libc::S_IFMT, whiteout.rdev()), (libc::S_IFCHR, 0));
    assert!(place.path("root/bin/sh").exists());
}

fn many_kinds(place: &Place, script: &str) -> SandboxSpec {
    let source = place.write("source", "bound\n");
    let mut spec = place.script(script);
    spec.mounts.push(bind(&source, "/etc/resolv.conf", true));
    spec.mounts.push(bind(&place.path("root"), "/mnt/deep/er", true));
    spec.mounts.push(MountSpec::Tmpfs { target: "/scratch".into(), size: None, mode: 0o755 });
    spec.mounts.push(MountSpec::File {
        target: "/run/secrets/key".into(),
        contents: b"secret".to_vec(),
        mode: 0o400,
        uid: 0,
        gid: 0,
    });
    spec
}

fn mount_points_stay_out_of_upper() {
    let place = Place::new();
    let spec = many_kinds(&place, "busybox cat /etc/resolv.conf /run/secrets/key; busybox ls /mnt/deep/er");
    let (mut sandbox, stdout, _stderr) = start(&spec).expect("a sandbox");
    assert_eq!(crate::fixture::read(stdout), "bound\nsecretbin\n");
    assert!(sandbox.wait().expect("an end").status.success());
    assert_eq!(sandbox.created_mount_points(), &[] as &[PathBuf]);
    assert_eq!(place.changes(), [] as [&str; 0]);
}

fn made_mount_points_are_reported_and_removed() {
    let place = Place::new();
    let mut spec = many_kinds(&place, "echo mine > /run/other");
    if let RootFs::Overlay(root) = &mut spec.rootfs {
        root.stubs = None;
    }
    let (mut sandbox, _stdout, _stderr) = start(&spec).expect("a sandbox");
    assert!(sandbox.wait().expect("an end").status.success());
    let created = sandbox.created_mount_points().to_vec();
    assert!(
        created.contains(&"/mnt/deep/er".into()) && created.contains(&"/run/secrets/key".into()),
        "{created:?}"
    );
    assert_eq!(place.changes(), ["dev", "etc", "mnt", "proc", "run", "scratch", "sys"]);
    // A hostile program may have replaced a parent by a link to somewhere else.
    let elsewhere = place.path("elsewhere");
    fs::create_dir_all(elsewhere.join("deep/er")).expect("directories");
    fs::remove_dir_all(place.path("upper/mnt"))
        .and_then(|()| symlink(&elsewhere, place.path("upper/mnt")))
        .expect("a link");
    let changed = || fs::metadata(place.path("upper/run")).and_then(|run| run.modified()).expect("a time");
    let before = changed();
    remove_mount_points(&place.path("upper"), &created).expect("an upper directory");
    assert_eq!(changed(), before, "the last change is the process's");
    assert_eq!(place.changes(), ["mnt", "run"], "what the process changed stays");
    assert_eq!(fs::read_dir(place.path("upper/run")).expect("entries").count(), 1);
    assert!(elsewhere.join("deep/er").is_dir());
}

fn binds() {
    let place = Place::new();
    fs::create_dir(place.path("shared")).expect("a directory");
    let file = place.write("only-file", "before");
    let mut spec =
        place.script("echo inside > /rw/new; (echo x > /ro/new) 2>&1; echo after > /file; busybox cat /file");
    spec.mounts = vec![
        bind(&place.path("shared"), "/rw", false),
        bind(&place.path("shared"), "/ro", true),
        bind(&file, "/file", false),
    ];
    let outcome = run(&spec);
    assert!(
        outcome.stdout.contains("Read-only file system") && outcome.stdout.ends_with("after\n"),
        "{outcome:?}"
    );
    assert_eq!(fs::read_to_string(place.path("shared/new")).expect("a file"), "inside\n");
    assert_eq!(fs::read_to_string(file).expect("a file"), "after\n");
}

fn readonly_reaches_mounts_below() {
    let place = Place::new();
    fs::create_dir_all(place.path("outer/inner")).expect("directories");
    fs::create_dir(place.path("data")).expect("a directory");
    let layers = OverlayLayers { lower: vec![place.path("root")], upper: None, volatile: false };
    let guard = mount_overlay(&layers, &place.path("data")).expect("a mount");
    let writable = OverlayLayers {
        lower: vec![place.path("root")],
        upper: Some((place.path("upper2"), place.path("work2"))),
        volatile: true,
    };
    fs::create_dir(place.path("upper2"))
        .and_then(|()| fs::create_dir(place.path("work2")))
        .expect("directories");
    let below = mount_overlay(&writable, &place.path("outer/inner")).expect("a mount");
    let mut spec = place.script("busybox ls /all/inner; (echo x > /all/inner/y) 2>&1; true");
    spec.mounts.push(bind(&place.path("outer"), "/all", true));
    let outcome = run(&spec);
    assert!(outcome.stdout.starts_with("bin\n") && outcome.stdout.contains("Read-only"), "{outcome:?}");
    spec.mounts = vec![MountSpec::Bind {
        source: place.path("outer"),
        target: "/all".into(),
        readonly: true,
        recursive: false,
    }];
    let outcome = run(&spec);
    assert!(!outcome.stdout.starts_with("bin"), "only the outer mount was asked for: {outcome:?}");
    drop((guard, below));
}

fn files_in_memory() {
    let place = Place::new();
    let mut spec =
        place.script("busybox stat -c '%a %u:%g' /a /b/c; busybox cat /a /b/c; (echo x >> /a) 2>&1; true");
    for (target, mode, uid) in [("/a", 0o644, 0), ("/b/c", 0o400, 1000)] {
        let contents = format!("contents of {target}\n").into_bytes();
        spec.mounts.push(MountSpec::File { target: target.into(), contents, mode, uid, gid: 5 });
    }
    let stdout = run(&spec).stdout;
    assert!(stdout.starts_with("644 0:5\n400 1000:5\ncontents of /a\ncontents of /b/c\n"), "{stdout}");
    assert!(stdout.contains("Read-only file system"), "{stdout}");
}

fn tmpfs() {
    let place = Place::new();
    let mut spec = place.script(
        "busybox stat -c %a /t; busybox df -k /t | busybox tail -1 | busybox awk '{print $2}'; echo x > /t/file; \
         busybox df -k /dev/shm | busybox tail -1 | busybox awk '{print $2}'",
    );
    spec.shm_size = 3 << 20;
    spec.mounts.push(MountSpec::Tmpfs { target: "/t".into(), size: Some(1 << 20), mode: 0o1777 });
    assert_eq!(run(&spec).stdout, "1777\n1024\n3072\n");
    let mut spec = place.script(
        "cp /bin/busybox /dev/shm/busybox; /dev/shm/busybox echo runs; busybox grep -c /dev/shm /proc/mounts",
    );
    spec.mounts.push(MountSpec::Tmpfs { target: "/dev/shm".into(), size: None, mode: 0o1777 });
    assert_eq!(run(&spec).stdout, "runs\n1\n", "in place of the usual one, and for programs too");
}

fn links_in_targets_stay_inside() {
    let place = Place::new();
    let outside = place.path("outside");
    fs::create_dir(&outside).expect("a directory");
    symlink(&outside, place.path("root/absolute")).expect("a link");
    symlink("../../../../../../../../tmp", place.path("root/upwards")).expect("a link");
    fs::create_dir(place.path("root/etc")).expect("a directory");
    symlink("../run/real/resolv.conf", place.path("root/etc/resolv.conf")).expect("a link");
    symlink("loop", place.path("root/loop")).expect("a link");
    let mut spec = place.script("busybox cat /absolute/x /upwards/y /etc/resolv.conf");
    let source = place.write("source", "s");
    spec.mounts =
        ["/absolute/x", "/upwards/y", "/etc/resolv.conf"].map(|target| bind(&source, target, true)).to_vec();
    let (mut sandbox, stdout, _stderr) = start(&spec).expect("a sandbox");
    assert_eq!(crate::fixture::read(stdout), "sss");
    assert!(sandbox.wait().expect("an end").status.success());
    let inside = outside.join("x");
    assert!(sandbox.created_mount_points().contains(&inside), "{:?}", sandbox.created_mount_points());
    assert!(!inside.exists() && !Path::new("/tmp/y").exists());
    spec.mounts = vec![bind(&source, "/loop/x", true)];
    let error = try_run(&spec).expect_err("a loop of links");
    assert!(matches!(error, SpawnError::Setup { step: SetupStep::MountPoint, .. }), "{error:?}");
}

fn readonly_root() {
    let place = Place::new();
    let mut spec =
        place.script("(echo x > /file) 2>&1; echo x > /t/file && echo x > /dev/shm/file && echo fine");
    spec.readonly_root = true;
    spec.mounts.push(MountSpec::Tmpfs { target: "/t".into(), size: None, mode: 0o755 });
    let stdout = run(&spec).stdout;
    assert!(stdout.contains("Read-only file system") && stdout.ends_with("fine\n"), "{stdout}");
    assert_eq!(place.changes(), [] as [&str; 0]);
}

fn directory_root() {
    let place = Place::new();
    let mut spec = place.script("echo here > /file; echo $$");
    spec.rootfs = RootFs::Directory { path: place.path("root") };
    assert_eq!(run(&spec).stdout, "1\n");
    assert_eq!(fs::read_to_string(place.path("root/file")).expect("a file"), "here\n");
}

fn a_missing_source_is_named() {
    let place = Place::new();
    let mut spec = place.script("true");
    spec.mounts.push(bind(Path::new("/no/such/source"), "/x", true));
    let error = try_run(&spec).expect_err("no source");
    assert_eq!(error.to_string(), "cannot open the bind source `/no/such/source`");
    assert_eq!(error.exit_code(), 125);
    let SpawnError::Setup { source, .. } = error else { panic!("{error:?}") };
    assert_eq!(source.raw_os_error(), Some(libc::ENOENT));
}

/// `count` directories, each with a file of its name.
fn layers(place: &Place, count: usize) -> Vec<PathBuf> {
    let long = "a-directory-with-a-long-name-".repeat(8);
    let layer = |number: usize| {
        place.write(&format!("{long}/{number}/file-{number}"), "");
        place.path(&format!("{long}/{number}"))
    };
    (0..count).map(layer).collect()
}

fn many_layers() {
    let place = Place::new();
    let mut spec = place.script("busybox ls / | busybox grep -c file-");
    if let RootFs::Overlay(root) = &mut spec.rootfs {
        root.lower.extend(layers(&place, 498));
    }
    assert_eq!(run(&spec).stdout, "498\n");
    if let RootFs::Overlay(root) = &mut spec.rootfs {
        root.lower.push(place.path("root"));
    }
    let error = try_run(&spec).expect_err("too many layers");
    assert!(matches!(error, SpawnError::Setup { step: SetupStep::MountRoot, .. }), "{error:?}");
}

fn overlay_guards() {
    let place = Place::new();
    let at = place.path("at");
    fs::create_dir(&at).expect("a directory");
    let names = || fs::read_dir(&at).expect("entries").count();
    let lower = layers(&place, 500);
    for count in [1, 2, 500] {
        let layers = OverlayLayers { lower: lower[..count].to_vec(), upper: None, volatile: false };
        let guard = mount_overlay(&layers, &at).expect("a mount");
        assert_eq!((guard.path(), names()), (at.as_path(), count));
        assert_eq!(fs::write(at.join("x"), "").expect_err("read-only").raw_os_error(), Some(libc::EROFS));
        drop(guard);
        assert_eq!(names(), 0);
    }
    let upper = Some((place.path("upper"), place.path("work")));
    let guard = mount_overlay(&OverlayLayers { lower, upper, volatile: true }, &at).expect("a mount");
    fs::write(at.join("x"), "").expect("writable");
    drop(guard);
    assert_eq!(place.changes(), ["x"]);
    let none = OverlayLayers { lower: Vec::new(), upper: None, volatile: false };
    assert!(mount_overlay(&none, &at).is_err());
}
