//! Golden keys per operation, and that what an operation does is in its key and how it is shown is not.

use std::collections::BTreeMap;

use proptest::prelude::*;
use stave_cache::CacheKey;
use stave_llb::{
    ContentCache, CopyAction, CopyMode, ExecOp, FileAction, FileActionKind, FileInput, FileOp, HostIp,
    MkfileAction, Mount, MountOwner, NetMode, PassthroughOp, ProxyEnv, RmAction, SecretEnv, SecurityMode,
    Sharing, Ulimit, VertexMetadata,
};
use stave_oci::Digest;

use super::*;

fn vertex(op: Op) -> Vertex {
    let platform = Some(Platform::new("linux", "amd64", None));
    let digest = Digest::sha256(b"not part of any key");
    Vertex {
        digest,
        op,
        inputs: Vec::new(),
        platform,
        constraints: None,
        metadata: VertexMetadata::default(),
    }
}

#[track_caller]
fn key_of(op: Op) -> CacheKey {
    match op_key(&vertex(op)) {
        OpKey::Stable(part) => part.key(),
        OpKey::Volatile => panic!("the operation is volatile"),
    }
}

fn source(raw: &str) -> Op {
    Op::Source(SourceOp::new(raw, BTreeMap::new()))
}

fn bind(target: &str, input: u32, selector: &str, readonly: bool, output: Option<u32>) -> Mount {
    Mount::Bind {
        target: target.into(),
        input: Some(input),
        selector: selector.into(),
        readonly,
        output,
        content_cache: ContentCache::Default,
    }
}

fn full_exec() -> ExecOp {
    let owner = MountOwner { uid: 1, gid: 2, mode: 0o400 };
    ExecOp {
        args: vec!["sh".into(), "-c".into(), "make".into()],
        env: vec!["PATH=/bin".into()],
        cwd: "/src".into(),
        user: "app".into(),
        hostname: "build".into(),
        ulimits: vec![Ulimit { name: "nofile".into(), soft: 1, hard: -1 }],
        extra_hosts: vec![HostIp { host: "db".into(), ip: "10.0.0.1".into() }],
        proxy_env: Some(ProxyEnv::default()),
        valid_exit_codes: vec![0, 3],
        cgroup_parent: "parent".into(),
        remove_mount_stubs: true,
        mounts: vec![
            bind("/", 0, "", false, Some(0)),
            Mount::Cache {
                target: "/cache".into(),
                input: None,
                selector: String::new(),
                readonly: false,
                id: "id".into(),
                sharing: Sharing::Locked,
            },
            Mount::Tmpfs { target: "/tmp".into(), size: 5, readonly: false },
            Mount::Secret { target: "/s".into(), id: "secret".into(), owner, optional: false },
            Mount::Ssh { target: "/a".into(), id: "agent".into(), owner, optional: true },
        ],
        network: NetMode::Host,
        security: SecurityMode::Insecure,
        secret_env: vec![SecretEnv { id: "token".into(), name: "TOKEN".into(), optional: true }],
        devices: Vec::new(),
    }
}

fn full_file() -> FileOp {
    let copy = CopyAction {
        src: "/a".into(),
        dest: "/b/".into(),
        mode: CopyMode::Bits(0o755),
        ..Default::default()
    };
    let mkfile =
        MkfileAction { path: "/f".into(), mode: 0o644, data: b"text".to_vec(), ..Default::default() };
    let action = |kind, output| FileAction {
        input: FileInput::Input(0),
        secondary: FileInput::Input(1),
        output,
        kind,
    };
    FileOp {
        actions: vec![
            action(FileActionKind::Copy(copy), None),
            action(FileActionKind::Mkfile(mkfile), None),
            action(FileActionKind::Rm(RmAction { path: "/x".into(), ..Default::default() }), Some(0)),
        ],
    }
}

/// Changing this file is a format break: raise `CACHE_FORMAT`, or what one operation has of its own (`RESULT_VERSION`).
#[test]
fn golden_keys() {
    let digest = Digest::sha256(b"image");
    let image = format!("docker-image://docker.io/library/busybox:1@{digest}");
    let found: BTreeMap<&str, String> = [
        ("image", source(&image)),
        ("git", source(&format!("git://a.test/b.git#{}:sub", "0123456789".repeat(4)))),
        ("exec", Op::Exec(full_exec())),
        ("file", Op::File(full_file())),
        ("merge", Op::Merge(MergeOp { inputs: vec![Some(0), None, Some(1)] })),
        ("diff", Op::Diff(DiffOp { lower: Some(0), upper: Some(1) })),
        ("passthrough", Op::Passthrough(PassthroughOp { id: "a.b".into(), outputs: vec![1, 0] })),
    ]
    .map(|(name, op)| (name, key_of(op).to_string()))
    .into();
    let golden = include_str!("../../../../testdata/cache/operations.json");
    let golden: BTreeMap<&str, String> = serde_json::from_str(golden).expect("the golden file is JSON");
    assert_eq!(found, golden);
}

#[test]
fn sources_are_stable_only_when_pinned() {
    let digest = Digest::sha256(b"image");
    let is_stable = |raw: &str| matches!(op_key(&vertex(source(raw))), OpKey::Stable(_));
    assert!(is_stable(&format!("docker-image://docker.io/library/busybox@{digest}")));
    assert!(!is_stable("docker-image://docker.io/library/busybox:latest"));
    assert!(!is_stable("local://context"));
    assert!(!is_stable("git://a.test/b.git#main"));
    assert!(!is_stable("https://a.test/b"));
    let checksum = [("http.checksum".to_owned(), digest.to_string())].into();
    assert!(matches!(
        op_key(&vertex(Op::Source(SourceOp::new("https://a.test/b", checksum)))),
        OpKey::Stable(_)
    ));
    let named = |name: &str| key_of(source(&format!("docker-image://{name}@{digest}")));
    assert_eq!(named("docker.io/library/busybox:1"), named("mirror.test/busybox"));
}

#[test]
fn what_is_written_counts_by_identity_and_what_is_read_by_content() {
    let mut op = full_exec();
    op.mounts = vec![
        bind("/", 0, "", false, Some(0)),
        bind("/src", 1, "app/src", true, None),
        bind("/docs", 1, "/docs", true, None),
        bind("/out", 2, "", false, Some(1)),
        bind("/all", 3, "/", true, None),
    ];
    let identity = InputKey::Identity { selector: None };
    let mut two = Selector::path("/app/src");
    two.paths.extend(Selector::path("/docs").paths);
    let expected = vec![
        identity.clone(),
        InputKey::Content { selector: two },
        identity.clone(),
        InputKey::Content { selector: Selector::whole() },
        identity.clone(),
    ];
    assert_eq!(exec::input_keys(&op, 5), expected);

    let keys = file::input_keys(&full_file(), 3);
    assert_eq!(keys[0], identity, "it is changed");
    assert!(matches!(&keys[1], InputKey::Content { selector } if selector.paths[0].path == "/a"));
    assert_eq!(keys[2], identity, "nothing says how it is used");
}

type Change = fn(&mut ExecOp);

/// Every change of what is run.
const SEMANTIC: [Change; 15] = [
    |op| op.args.push(String::new()),
    |op| op.env.push("A=b".into()),
    |op| op.cwd.push('x'),
    |op| op.user.clear(),
    |op| op.hostname.clear(),
    |op| op.ulimits[0].hard = 7,
    |op| op.extra_hosts[0].host.push('x'),
    |op| op.valid_exit_codes.clear(),
    |op| op.cgroup_parent.clear(),
    |op| op.remove_mount_stubs = false,
    |op| op.network = NetMode::None,
    |op| op.security = SecurityMode::Sandbox,
    |op| op.secret_env[0].optional = false,
    |op| op.mounts.swap(1, 2),
    |op| op.mounts.truncate(4),
];

/// Every change of how it is run, shown or looked up.
const OTHER: [Change; 3] = [
    |op| op.proxy_env = None,
    |op| op.extra_hosts[0].ip = "10.9.9.9".into(),
    |op| {
        if let Mount::Bind { content_cache, .. } = &mut op.mounts[0] {
            *content_cache = ContentCache::Off;
        }
    },
];

proptest! {
    #[test]
    fn a_key_changes_exactly_with_what_is_run(
        one in proptest::collection::btree_set(0..SEMANTIC.len(), 0..4),
        two in proptest::collection::btree_set(0..SEMANTIC.len(), 0..4),
        other in proptest::collection::vec(0..OTHER.len(), 0..4),
        name in ".{0,8}",
        ignore_cache: bool,
    ) {
        let make = |changes: &std::collections::BTreeSet<usize>| {
            let mut op = full_exec();
            changes.iter().for_each(|change| SEMANTIC[*change](&mut op));
            op
        };
        let plain = vertex(Op::Exec(make(&one)));
        let mut changed = make(&two);
        other.iter().for_each(|change| OTHER[*change](&mut changed));
        let mut changed = vertex(Op::Exec(changed));
        changed.metadata.ignore_cache = ignore_cache;
        changed.metadata.description.insert("llb.customname".into(), name);
        prop_assert_eq!(op_key(&plain) == op_key(&changed), make(&one) == make(&two));
    }
}

#[test]
fn every_field_of_a_copy_counts() {
    let changes: [fn(&mut CopyAction); 15] = [
        |copy| copy.src.push('x'),
        |copy| copy.dest.push('x'),
        |copy| copy.owner = Some(stave_llb::Chown::default()),
        |copy| copy.mode = CopyMode::Symbolic("u=r".into()),
        |copy| copy.follow_symlink = true,
        |copy| copy.dir_copy_contents = true,
        |copy| copy.attempt_unpack = true,
        |copy| copy.create_dest_path = true,
        |copy| copy.allow_wildcard = true,
        |copy| copy.allow_empty_wildcard = true,
        |copy| copy.timestamp = Some(0),
        |copy| copy.include_patterns.push("a".into()),
        |copy| copy.exclude_patterns.push("a".into()),
        |copy| copy.always_replace_existing_dest_paths = true,
        |copy| copy.required_paths.push("a".into()),
    ];
    let key = |change: Option<fn(&mut CopyAction)>| {
        let mut copy = CopyAction::default();
        if let Some(change) = change {
            change(&mut copy);
        }
        let kind = FileActionKind::Copy(copy);
        let action =
            FileAction { input: FileInput::Scratch, secondary: FileInput::Input(0), output: Some(0), kind };
        key_of(Op::File(FileOp { actions: vec![action] }))
    };
    let mut keys: Vec<CacheKey> = changes.iter().map(|change| key(Some(*change))).collect();
    keys.push(key(None));
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), changes.len() + 1);
}
