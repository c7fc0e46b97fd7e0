//! Keys against digests that BuildKit 0.32 wrote into a cache of the same operations.

use std::collections::BTreeMap;

use stave_llb::{
    ContentCache, CopyAction, Edge, ExecOp, FileAction, FileActionKind, FileInput, FileOp, MkdirAction,
    Mount, Sharing, SourceOp, VertexMetadata,
};

use super::*;

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

fn vertex(op: Op, inputs: usize) -> Vertex {
    let input = |at: usize| Edge { vertex: Digest::sha256(at.to_string().as_bytes()), output: 0 };
    Vertex {
        digest: Digest::sha256(b"vertex"),
        op,
        inputs: (0..inputs).map(input).collect(),
        platform: Some(Platform::new("linux", "amd64", None)),
        constraints: None,
        metadata: VertexMetadata::default(),
    }
}

#[track_caller]
fn keys(op: Op, inputs: usize) -> OpKeys {
    OpKeys::of(&vertex(op, inputs), &[]).expect("an operation with keys")
}

#[track_caller]
fn check(op: Op, inputs: usize, record: &str) -> OpKeys {
    let keys = keys(op, inputs);
    assert_eq!(output_digest(&keys.digests[0], 0).to_string(), format!("sha256:{record}"));
    keys
}

fn root(input: u32) -> Mount {
    Mount::Bind {
        target: "/".into(),
        input: Some(input),
        selector: String::new(),
        readonly: false,
        output: Some(0),
        content_cache: ContentCache::Default,
    }
}

fn shell(command: &str) -> ExecOp {
    ExecOp {
        args: vec!["/bin/sh".into(), "-c".into(), command.into()],
        env: vec![PATH.into()],
        cwd: "/app".into(),
        remove_mount_stubs: true,
        mounts: vec![root(0)],
        ..ExecOp::default()
    }
}

fn action(kind: FileActionKind, secondary: FileInput) -> Op {
    let action = FileAction { input: FileInput::Input(0), secondary, output: Some(0), kind };
    Op::File(FileOp { actions: vec![action] })
}

fn copy(src: &str, dest: &str) -> CopyAction {
    CopyAction {
        src: src.into(),
        dest: dest.into(),
        follow_symlink: true,
        dir_copy_contents: true,
        create_dest_path: true,
        allow_wildcard: true,
        allow_empty_wildcard: true,
        ..CopyAction::default()
    }
}

#[test]
fn a_step_with_its_root_alone() {
    let op = Op::Exec(shell("echo \"one & <two>\" > /app/one"));
    let keys = check(op, 1, "b50f62a917edd940ab70aa5d89399fa8d32610b7f771a805af9d58ad68ce2d78");
    // The selector of every root: the digest of `/`.
    let selector = "sha256:8a5edab282632443219e051e4ade2d1d5bbc671c781051bf1437897cbdfea0f1";
    assert_eq!(keys.inputs[0].selector.as_ref().map(Digest::as_str), Some(selector));
    assert_eq!(keys.inputs[0].content, None, "a root counts by how it was made");
}

#[test]
fn a_directory_and_a_copy() {
    let mkdir =
        MkdirAction { path: "/app".into(), mode: 0o755, make_parents: true, ..MkdirAction::default() };
    let op = action(FileActionKind::Mkdir(mkdir), FileInput::Scratch);
    check(op, 1, "807b3e8722c68572736f54d83fd741a5b1d69ccbef218fae52b4149a56d232ce");
    let op = action(FileActionKind::Copy(copy("/a.txt", "/app/")), FileInput::Input(1));
    let keys = check(op, 2, "4246240add2be28e0b1ac58c7fd911a09797ac0790227da9a9e580067e8a53ce");
    assert_eq!(keys.inputs[0], InputKeys::default());
    let path = ContentPath { path: "/a.txt".into(), follow_links: true, ..ContentPath::default() };
    assert_eq!(keys.inputs[1].content, Some(vec![path]));
}

#[test]
fn inputs_that_are_handed_on() {
    let pass = |outputs: &[u32]| {
        let op = stave_llb::PassthroughOp { id: "a.b".into(), outputs: outputs.to_vec() };
        keys(Op::Passthrough(op), 2)
    };
    let text = r#"{"Type":"buildkit.passthrough.v0","Passthrough":{"id":"a.b","outputs":[1,0]}}"#;
    assert_eq!(pass(&[1, 0]).digests, [Digest::sha256(text.as_bytes())]);
    assert_eq!(pass(&[0]).inputs, vec![InputKeys::default(); 2], "all of them count");
}

#[test]
fn what_says_how_and_not_what_stays_out() {
    let plain = keys(Op::Exec(shell("true")), 1);
    let with = |change: fn(&mut ExecOp)| {
        let mut op = shell("true");
        change(&mut op);
        keys(Op::Exec(op), 1)
    };
    let proxy = |op: &mut ExecOp| op.proxy_env = Some(stave_llb::ProxyEnv::default());
    assert_eq!(with(proxy), plain);
    let host = |ip: &str| stave_llb::HostIp { host: "h".into(), ip: ip.into() };
    let mut one = shell("true");
    one.extra_hosts = vec![host("1.2.3.4")];
    let mut other = shell("true");
    other.extra_hosts = vec![host("5.6.7.8")];
    assert_eq!(keys(Op::Exec(one.clone()), 1), keys(Op::Exec(other), 1));
    assert_ne!(keys(Op::Exec(one), 1), plain);
}

#[test]
fn mounts_that_cannot_leak_count_by_content() {
    let mut op = shell("true");
    op.mounts.push(Mount::Bind {
        target: "/src".into(),
        input: Some(1),
        selector: "/src/../src".into(),
        readonly: true,
        output: None,
        content_cache: ContentCache::Default,
    });
    let cache = |id: &str, sharing| Mount::Cache {
        target: "/cache".into(),
        input: None,
        selector: String::new(),
        readonly: false,
        id: id.into(),
        sharing,
    };
    let mut named = op.clone();
    op.mounts.push(cache("/cache", Sharing::Shared));
    let keys_of = |op: &ExecOp| keys(Op::Exec(op.clone()), 2);
    let found = keys_of(&op);
    let path = ContentPath { path: "/src".into(), follow_links: true, ..ContentPath::default() };
    assert_eq!(found.inputs[1].content, Some(vec![path]));
    // A cache's id is no part of the key unless a Dockerfile gave it none.
    named.mounts.push(cache("mine", Sharing::Locked));
    let mut renamed = named.clone();
    renamed.mounts.pop();
    renamed.mounts.push(cache("yours", Sharing::Private));
    assert_eq!(keys_of(&named), keys_of(&renamed));
    assert_ne!(keys_of(&named).digests, found.digests);
}

#[test]
fn images_are_known_by_name_and_by_layers() {
    let root = Digest::sha256(b"manifest");
    let layers = [Digest::sha256(b"a"), Digest::sha256(b"b")];
    let platform = Platform::new("linux", "amd64", None);
    let keys = image_source(&root, Some(&platform), &layers);
    let text = format!("{{\"Digest\":\"{root}\",\"OS\":\"linux\",\"Arch\":\"amd64\"}}");
    let chain = Digest::sha256(format!("{} {}", layers[0], layers[1]).as_bytes());
    assert_eq!(keys, [Digest::sha256(text.as_bytes()).to_string(), chain.to_string()]);
    assert_eq!(image_source(&root, Some(&platform), &[]).len(), 1);
    let source = Op::Source(SourceOp::new("docker-image://x", BTreeMap::new()));
    assert_eq!(OpKeys::of(&vertex(source, 0), &keys).map(|keys| keys.digests.len()), Some(2));
}

#[test]
fn content_of_several_paths_is_one_digest() {
    // The content of `a.txt` and the record BuildKit made of it.
    let file: Digest =
        "sha256:09eefdc91e8894bc767daae7daa5a4e8cbf396610f10ae20604d9086c76d4a93".parse().expect("a digest");
    let record = content_record(&content_digest(&[file]));
    assert_eq!(record.to_string(), "sha256:c24a47b576469b52903dd7e5045a62fee5855b447dee1771d67b829458d2c08e");
}

#[test]
fn paths_below_others_are_left_out() {
    let check = |paths: &[&str], expected: &[&str]| {
        let paths: Vec<String> = paths.iter().map(ToString::to_string).collect();
        assert_eq!(outermost(&paths), expected);
    };
    check(&["/b"], &["/b"]);
    check(&["/foo/bar", "/foo", "/foobar"], &["/foo", "/foobar"]);
    check(&["/b", "/a", "/b"], &["/a", "/b"]);
    check(&["/a", "/"], &["/"]);
    assert_eq!(rooted("a/./b/../c//"), "/a/c");
    assert_eq!(rooted("../.."), "/");
}
