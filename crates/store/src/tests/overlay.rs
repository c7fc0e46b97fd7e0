//! The kernel's overlayfs as the judge: what it leaves in an upper directory, and what it shows.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Command;

use rustix::fs::{FileType, XattrFlags, lsetxattr};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::TestStore;
use crate::{ApplyOptions, MergedView, Snapshot, Store, TarOptions, Timestamps};

const EXACT: TarOptions = TarOptions { timestamps: Timestamps::Nanoseconds, clamp: None };

#[test]
fn the_view_and_the_archives_agree_with_the_kernel() {
    let output = Command::new("unshare")
        .args(["--mount", "--propagation", "private"])
        .arg(std::env::current_exe().expect("this binary"))
        .args(["--exact", "tests::overlay::child", "--nocapture"])
        .env("STORE_OVERLAY", "1")
        .output()
        .expect("a child in a mount namespace of its own");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Does nothing unless started by the test above.
#[test]
fn child() {
    if std::env::var_os("STORE_OVERLAY").is_none() {
        return;
    }
    let [here, there] = [TestStore::new(), TestStore::new()];
    let (mut original, mut copy) = (Snapshot::scratch(), Snapshot::scratch());
    for step in [first_step, second_step, third_step] {
        let expected = run(&here.store, &mut original, step);
        assert_eq!(describe_view(&here.store.view(&original).expect("a view")), expected);
        // The same layer through an archive into another store.
        let mut tar = Vec::new();
        let layer = original.top().expect("a layer");
        here.store.write_layer_tar(layer, &mut tar, &EXACT).expect("an archive");
        let applied = there.store.apply_layer(&tar[..], &ApplyOptions::default()).expect("a layer");
        copy = copy.push(applied.layer);
        assert_eq!(describe_view(&there.store.view(&copy).expect("a view")), expected);
        assert_eq!(run(&there.store, &mut copy.clone(), |_| {}), expected);
    }
}

/// Mounts the snapshot, lets `step` change it, commits. Gives what the mount showed at the end.
fn run(store: &Store, snapshot: &mut Snapshot, step: fn(&Path)) -> Vec<String> {
    let empty = store.scratch_dir().expect("a directory");
    let at = store.scratch_dir().expect("a directory");
    let active = store.prepare(snapshot).expect("a layer");
    let mut lowers: Vec<String> = active.lowers().iter().map(|path| path.display().to_string()).collect();
    lowers.push(empty.path().display().to_string());
    let options = format!(
        "lowerdir={},upperdir={},workdir={},redirect_dir=off,metacopy=off,index=off",
        lowers.join(":"),
        active.upper().display(),
        active.work().display()
    );
    let options = std::ffi::CString::new(options).expect("no NUL in paths");
    mount("overlay", at.path(), "overlay", MountFlags::empty(), options.as_c_str())
        .expect("an overlay mount");
    step(at.path());
    let shown = describe_mount(at.path());
    unmount(at.path(), UnmountFlags::empty()).expect("an unmount");
    *snapshot = active.commit().expect("a commit");
    shown
}

fn first_step(root: &Path) {
    fs::create_dir_all(root.join("usr/lib/deep")).expect("a directory");
    fs::create_dir_all(root.join("cache/old")).expect("a directory");
    fs::write(root.join("usr/lib/so"), "library").expect("a file");
    fs::write(root.join("usr/lib/deep/x"), "1").expect("a file");
    fs::write(root.join("cache/old/entry"), "1").expect("a file");
    fs::write(root.join("tool"), "tool").expect("a file");
    fs::hard_link(root.join("tool"), root.join("tool2")).expect("a link");
    fs::set_permissions(root.join("tool"), fs::Permissions::from_mode(0o4755)).expect("a mode");
    lsetxattr(root.join("tool"), "user.k", b"v", XattrFlags::empty()).expect("an attribute");
    symlink("usr/lib", root.join("lib")).expect("a symlink");
}

fn second_step(root: &Path) {
    fs::remove_file(root.join("usr/lib/so")).expect("a removal");
    fs::remove_dir_all(root.join("cache")).expect("a removal");
    fs::create_dir(root.join("cache")).expect("an opaque directory");
    fs::write(root.join("cache/new"), "2").expect("a file");
    fs::remove_file(root.join("lib")).expect("a removal");
    fs::create_dir(root.join("lib")).expect("a directory for a symlink");
    fs::write(root.join("tool"), "changed").expect("a file");
    fs::rename(root.join("usr/lib/deep/x"), root.join("moved")).expect("a rename");
}

fn third_step(root: &Path) {
    fs::remove_dir_all(root.join("usr")).expect("a removal");
    fs::write(root.join("usr"), "a file for a directory").expect("a file");
    fs::create_dir_all(root.join("cache/old")).expect("a directory over a hidden one");
    fs::remove_dir(root.join("lib")).expect("a removal");
    fs::set_permissions(root.join("cache"), fs::Permissions::from_mode(0o700)).expect("a mode");
}

fn line(name: &Path, facts: &rustix::fs::Stat, content: &str) -> String {
    let (mode, time) = (facts.st_mode, (facts.st_mtime, facts.st_mtime_nsec));
    format!("{} {mode:o} {}:{} {time:?} {content}", name.display(), facts.st_uid, facts.st_gid)
}

fn describe_mount(root: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut pending = vec![root.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(directory).expect("a directory") {
            let path = entry.expect("an entry").path();
            let facts = rustix::fs::lstat(&path).expect("an entry");
            let content = match FileType::from_raw_mode(facts.st_mode) {
                FileType::RegularFile => fs::read_to_string(&path).expect("text"),
                FileType::Symlink => fs::read_link(&path).expect("a link").display().to_string(),
                _ => {
                    pending.push(path.clone());
                    String::new()
                }
            };
            lines.push(line(path.strip_prefix(root).expect("below the root"), &facts, &content));
        }
    }
    lines.sort();
    lines
}

fn describe_view(view: &MergedView) -> Vec<String> {
    let entries = view.walk().map(|entry| entry.expect("an entry"));
    let below = entries.filter(|entry| !entry.path().as_os_str().is_empty());
    let mut lines: Vec<String> = below
        .map(|entry| {
            let content = match entry.file_type() {
                FileType::RegularFile => {
                    std::io::read_to_string(entry.open().expect("a file")).expect("text")
                }
                FileType::Symlink => entry.read_link().expect("a link").display().to_string(),
                _ => String::new(),
            };
            line(entry.path(), entry.stat(), &content)
        })
        .collect();
    lines.sort();
    lines
}
