//! Golden bytes, round trips and hostile input.
//!
//! Digests are pinned: another one is another wire form, which BuildKit's tools would not find again.

use std::collections::BTreeMap;

use bollard_buildkit_proto::pb;
use proptest::prelude::*;
use prost::Message;
use stave_oci::{Digest, Platform};

use super::*;
use crate::{
    builder::{About, ExecSpec, FileSpec, FileStep, GraphBuilder, MountSpec, Output},
    *,
};

fn amd64() -> Platform {
    Platform::new("linux", "amd64", None)
}

fn image(graph: &mut GraphBuilder) -> Output {
    let op = SourceOp::new("docker-image://docker.io/library/busybox:latest", BTreeMap::new());
    graph.source(op, &amd64(), About::named("base"))
}

fn bind(target: &str, source: Option<Output>, readonly: bool) -> MountSpec {
    let mount = Mount::Bind {
        target: target.to_owned(),
        input: None,
        selector: String::new(),
        readonly,
        output: None,
        content_cache: ContentCache::Default,
    };
    MountSpec { mount, source, no_output: false }
}

fn exec(graph: &mut GraphBuilder, mounts: Vec<MountSpec>) -> Output {
    let op =
        ExecOp { args: vec!["true".into()], cwd: "/".into(), remove_mount_stubs: true, ..ExecOp::default() };
    graph.exec(ExecSpec { op, mounts, platform: amd64(), about: About::named("step") })
}

fn mkdir(path: &str) -> FileStep {
    let kind =
        FileActionKind::Mkdir(MkdirAction { path: path.into(), mode: 0o755, ..MkdirAction::default() });
    FileStep { kind, source: None }
}

fn copy(from: Option<Output>, owner: Option<Chown>) -> FileStep {
    let kind = FileActionKind::Copy(CopyAction {
        src: "/a".into(),
        dest: "/b".into(),
        owner,
        ..CopyAction::default()
    });
    FileStep { kind, source: from }
}

/// A graph with one of everything the builder makes.
fn everything() -> Definition {
    let mut graph = GraphBuilder::default();
    let file = graph.add_file(SourceInfo {
        filename: "F".into(),
        data: b"FROM x".to_vec(),
        language: "Dockerfile".into(),
        origin: pb::Definition { def: vec![b"op".to_vec()], ..Default::default() }.encode_to_vec(),
    });
    let base = image(&mut graph);
    let local =
        SourceOp::new("local://context", BTreeMap::from([("local.sharedkeyhint".into(), String::new())]));
    let local = graph.source(local, &amd64(), About::default());
    graph.extend_source(local, [("local.followpaths".into(), "[\"a\"]".into())]);
    let owner = MountOwner { uid: 1, gid: 2, mode: 0o400 };
    let cache = Mount::Cache {
        target: "/c".into(),
        input: None,
        selector: "/s".into(),
        readonly: false,
        id: "i".into(),
        sharing: Sharing::Locked,
    };
    let secret = Mount::Secret { target: "/k".into(), id: "k".into(), owner, optional: true };
    let ssh = Mount::Ssh { target: String::new(), id: "s".into(), owner, optional: false };
    let other = |mount, source| MountSpec { mount, source, no_output: true };
    let mounts = vec![
        other(ssh, None),
        other(secret, None),
        other(cache, Some(local)),
        other(Mount::Tmpfs { target: "/t".into(), size: 5, readonly: false }, None),
        bind("/", Some(base), false),
        bind("/ro", Some(local), true),
    ];
    let step = exec(&mut graph, mounts);
    let named = |name: &str| Some(UserOrGroup::Name { name: name.into(), input: FileInput::Scratch });
    let owner = Chown { user: named("me"), group: Some(UserOrGroup::Id(0)) };
    let mut about = About::named("copy").described("k", "v");
    about.metadata.ignore_cache = true;
    let place = SourceLocation { source: file, ranges: vec![SourceRange::default()] };
    about.locations.push(place);
    let files = graph.file(FileSpec {
        base: Some(step),
        actions: vec![mkdir("/x"), copy(Some(local), Some(owner))],
        about,
    });
    let diff = graph.diff(Some(base), Some(files), About::default());
    let merged = graph.merge([Some(base), diff, None], About::default());
    graph.finish(merged)
}

#[test]
fn digests_are_pinned() {
    let mut graph = GraphBuilder::default();
    let base = image(&mut graph);
    let step = exec(&mut graph, vec![bind("/", Some(base), false)]);
    let files = graph.file(FileSpec {
        base: Some(step),
        actions: vec![mkdir("/x"), copy(Some(base), None)],
        about: About::default(),
    });
    let definition = graph.finish(Some(files));
    let digests: Vec<&str> = definition.vertices().iter().map(|vertex| vertex.digest.as_str()).collect();
    let expected = [
        "sha256:e1432b8e2054abb034451c15f0a8ad49d07f5892ca266016226fec77e95d20a0",
        "sha256:b9d04f6e24dffcba8c84ee8a9b6bd7434f780c48f8f645d9e74f212325bf3339",
        "sha256:3b2c4bdceb00dfe6cfd5c3ce5e1085a670e902a534c616d64f555c26fbe12049",
    ];
    assert_eq!(digests, expected);
    assert_eq!(
        definition.digest().as_str(),
        "sha256:87832b2b293e5c360d255dd4b9ff730bb61146c13da9637f4c9dcd8b5abd5090"
    );
}

#[test]
fn the_oneof_comes_after_everything_else() {
    let mut graph = GraphBuilder::default();
    let base = image(&mut graph);
    let definition = graph.finish(Some(base));
    let bytes = definition.vertex_bytes(&definition.vertices()[0].digest).expect("present");
    // Tags: platform (10), constraints (11), then the source (3).
    let name = b"docker-image://docker.io/library/busybox:latest";
    let mut expected = b"\x52\x0e\x0a\x05amd64\x12\x05linux\x5a\x00\x1a\x31\x0a\x2f".to_vec();
    expected.extend_from_slice(name);
    assert_eq!(bytes, expected);
}

#[test]
fn empty_map_values_are_written() {
    let attrs = BTreeMap::from([("k".to_owned(), String::new())]);
    let op = Op::Source(SourceOp::new("local://x", attrs));
    let bytes = encode_op(&op, &[], None, None);
    assert_eq!(bytes, b"\x1a\x12\x0a\x09local://x\x12\x05\x0a\x01k\x12\x00");
}

#[test]
fn everything_survives_the_wire() {
    let definition = everything();
    let wire = definition.to_wire();
    let read = Definition::from_wire(&wire).expect("sound");
    assert_eq!(read, definition);
    assert_eq!(read.to_wire(), wire);
    for vertex in read.vertices() {
        let bytes =
            encode_op(&vertex.op, &vertex.inputs, vertex.platform.as_ref(), vertex.constraints.as_deref());
        assert_eq!(Digest::sha256(&bytes), vertex.digest, "{vertex:?}");
    }
}

#[test]
fn the_graph_follows_the_edges() {
    let definition = everything();
    let edges: usize = definition.vertices().iter().map(|vertex| vertex.inputs.len()).sum();
    assert_eq!(definition.graph().node_count(), definition.vertices().len());
    assert_eq!(definition.graph().edge_count(), edges);
    let names: Vec<_> = definition.vertices().iter().filter_map(Vertex::name).collect();
    assert_eq!(names, ["base", "step", "copy"]);
    let copy = definition.vertices().iter().find(|vertex| vertex.name() == Some("copy")).expect("present");
    assert_eq!(definition.source_location(&copy.digest).len(), 1);
    assert_eq!(definition.vertex(&copy.digest), Some(copy));
}

#[test]
fn mounts_are_ordered_and_agents_placed() {
    let definition = everything();
    let step = definition.vertices().iter().find(|vertex| vertex.name() == Some("step")).expect("present");
    let Op::Exec(exec) = &step.op else { panic!("not a process: {step:?}") };
    let targets: Vec<&str> = exec.mounts.iter().map(Mount::target).collect();
    assert_eq!(targets, ["/", "/c", "/ro", "/t", "/k", "/run/buildkit/ssh_agent.0"]);
    assert_eq!(exec.env, ["SSH_AUTH_SOCK=/run/buildkit/ssh_agent.0"]);
    assert_eq!(exec.mounts.iter().filter_map(Mount::output).collect::<Vec<_>>(), [0]);
    assert_eq!(step.inputs.len(), 2);
}

#[test]
fn equal_operations_are_one_vertex() {
    let mut graph = GraphBuilder::default();
    let (one, other) = (image(&mut graph), image(&mut graph));
    let merged = graph.merge([Some(one), Some(other)], About::default());
    let definition = graph.finish(merged);
    assert_eq!(definition.vertices().len(), 2);
    assert_eq!(definition.vertices()[1].inputs.len(), 2);
}

#[test]
fn nothing_is_an_empty_definition() {
    let definition = GraphBuilder::default().finish(None);
    assert!(definition.outputs().is_empty());
    assert!(definition.to_wire().is_empty());
    assert_eq!(Definition::from_wire(&[]), Ok(definition));
}

#[test]
fn long_chains_do_not_exhaust_the_stack() {
    let mut graph = GraphBuilder::default();
    let mut files = None;
    for at in 0..5_000 {
        let actions = vec![mkdir(&format!("/{at}"))];
        files = Some(graph.file(FileSpec { base: files, actions, about: About::default() }));
    }
    let definition = graph.finish(files);
    assert_eq!(Definition::from_wire(&definition.to_wire()).map(|read| read.vertices().len()), Ok(5_000));
}

/// A definition of these operations.
fn wire(ops: &[pb::Op]) -> Vec<u8> {
    let def = ops.iter().map(Message::encode_to_vec).collect();
    pb::Definition { def, ..Default::default() }.encode_to_vec()
}

fn source() -> pb::Op {
    let op = pb::op::Op::Source(pb::SourceOp { identifier: "local://x".into(), ..Default::default() });
    pb::Op { op: Some(op), ..Default::default() }
}

fn uses(op: &pb::Op) -> pb::Input {
    pb::Input { digest: Digest::sha256(&op.encode_to_vec()).to_string(), index: 0 }
}

#[track_caller]
fn check_error(bytes: &[u8], expected: &str) {
    let error = Definition::from_wire(bytes).expect_err("hostile").to_string();
    assert!(error.contains(expected), "{error}");
}

#[test]
fn hostile_definitions_are_errors() {
    check_error(&[0xff], "malformed definition");
    check_error(&wire(&[source()]), "does not end with its output");
    let missing = pb::Input { digest: "sha256:0".into(), index: 0 };
    check_error(
        &wire(&[source(), pb::Op { inputs: vec![missing], ..Default::default() }]),
        "which the definition lacks",
    );
    let negative = pb::Input { index: -1, ..uses(&source()) };
    check_error(
        &wire(&[source(), pb::Op { inputs: vec![negative], ..Default::default() }]),
        "-1 as its input index",
    );
    let nothing = pb::Op { platform: Some(pb::Platform::default()), ..Default::default() };
    let end = pb::Op { inputs: vec![uses(&nothing)], ..Default::default() };
    check_error(&wire(&[nothing, end]), "has no operation");
    check_error(&wire(&vec![source(); MAX_VERTICES + 2]), "over the limit of 100000");
    let many = pb::Op { inputs: vec![uses(&source()); MAX_INPUTS + 1], ..Default::default() };
    check_error(&wire(&[source(), many]), "inputs at one vertex over the limit");
}

#[test]
fn indices_outside_the_inputs_are_errors() {
    let check = |op: pb::op::Op, expected: &str| {
        let op = pb::Op { inputs: vec![uses(&source())], op: Some(op), ..Default::default() };
        let end = pb::Op { inputs: vec![uses(&op)], ..Default::default() };
        check_error(&wire(&[source(), op, end]), expected);
    };
    let mount = |mount: pb::Mount| pb::op::Op::Exec(pb::ExecOp { mounts: vec![mount], ..Default::default() });
    check(mount(pb::Mount { input: 1, ..Default::default() }), "1 as its mount input");
    check(mount(pb::Mount { mount_type: 9, ..Default::default() }), "9 as its mount type");
    check(mount(pb::Mount { output: 1 << 40, ..Default::default() }), "as its output");
    let merge = pb::MergeOp { inputs: vec![pb::MergeInput { input: -2 }] };
    check(pb::op::Op::Merge(merge), "-2 as its merge input");
    let rm = pb::file_action::Action::Rm(pb::FileActionRm::default());
    // The second index after the inputs is the action itself.
    let action = pb::FileAction { input: 1, action: Some(rm), ..Default::default() };
    check(pb::op::Op::File(pb::FileOp { actions: vec![action] }), "1 as its action input");
}

/// The bytes of an operation that the protobuf crate has no words for: Go writes what it does after all else.
fn passthrough(id: &str, outputs: &[i64]) -> Vec<u8> {
    let constraints = Some(pb::WorkerConstraints::default());
    let mut bytes =
        pb::Op { inputs: vec![uses(&source())], constraints, ..Default::default() }.encode_to_vec();
    let body = newer::Passthrough { id: id.to_owned(), outputs: outputs.to_vec() };
    prost::encoding::message::encode(8, &body, &mut bytes);
    bytes
}

/// A definition of a source, such an operation and an end.
fn ends_with(op: Vec<u8>, output: i64) -> Vec<u8> {
    let input = pb::Input { digest: Digest::sha256(&op).to_string(), index: output };
    let end = pb::Op { inputs: vec![input], ..Default::default() };
    let def = vec![source().encode_to_vec(), op, end.encode_to_vec()];
    pb::Definition { def, ..Default::default() }.encode_to_vec()
}

#[test]
fn operations_newer_than_the_crate_are_read_and_written() {
    let op = passthrough("a.b", &[0, 0]);
    let read = Definition::from_wire(&ends_with(op.clone(), 1)).expect("sound");
    let vertex = &read.vertices()[1];
    let expected = PassthroughOp { id: "a.b".into(), outputs: vec![0, 0] };
    assert_eq!(vertex.op, Op::Passthrough(expected));
    let (platform, constraints) = (vertex.platform.as_ref(), vertex.constraints.as_deref());
    assert_eq!(encode_op(&vertex.op, &vertex.inputs, platform, constraints), op);
    assert_eq!(Definition::from_wire(&read.to_wire()), Ok(read));
    check_error(&ends_with(passthrough("a", &[1]), 0), "1 as its passthrough output");
    check_error(&ends_with(passthrough("a", &[-1]), 0), "-1 as its passthrough output");
    check_error(&ends_with(passthrough("", &[0]), 0), "invalid passthrough op with no id");
    check_error(&ends_with(passthrough("a", &[]), 0), "invalid passthrough op with no outputs");
    let many = "outputs at one vertex over the limit";
    check_error(&ends_with(passthrough("a", &vec![0; MAX_OUTPUTS + 1]), 0), many);
    Definition::from_wire(&ends_with(passthrough("a", &vec![0; MAX_OUTPUTS]), 0)).expect("not too many");
    let def = vec![source().encode_to_vec(), passthrough("a", &[0])];
    let unended = pb::Definition { def, ..Default::default() };
    check_error(&unended.encode_to_vec(), "does not end with its output");
}

#[test]
fn outputs_that_cost_a_byte_are_counted_over_all_vertices() {
    let mut def = vec![source().encode_to_vec()];
    def.extend((0..=MAX_VERTICES / MAX_OUTPUTS).map(|at| passthrough(&at.to_string(), &[0; MAX_OUTPUTS])));
    let last = Digest::sha256(def.last().expect("is there")).to_string();
    let end = pb::Op { inputs: vec![pb::Input { digest: last, index: 0 }], ..Default::default() };
    def.push(end.encode_to_vec());
    let definition = pb::Definition { def, ..Default::default() };
    check_error(&definition.encode_to_vec(), "passthrough outputs over the limit");
}

#[test]
fn vertices_out_of_order_are_sorted() {
    let user = pb::Op {
        inputs: vec![uses(&source())],
        op: Some(pb::op::Op::Merge(pb::MergeOp { inputs: vec![pb::MergeInput { input: 0 }] })),
        ..Default::default()
    };
    let end = pb::Op { inputs: vec![uses(&user)], ..Default::default() };
    let read = Definition::from_wire(&wire(&[user, source(), end])).expect("sound");
    let kinds: Vec<&str> = read.vertices().iter().map(|vertex| vertex.op.kind()).collect();
    assert_eq!(kinds, ["source", "merge"]);
}

#[test]
fn definitions_in_definitions_are_limited() {
    let mut definition = pb::Definition::default();
    for _ in 0..=MAX_NESTING {
        let build = pb::BuildOp { builder: -1, def: Some(definition), ..Default::default() };
        let op = pb::Op { op: Some(pb::op::Op::Build(build)), ..Default::default() };
        let end = pb::Op { inputs: vec![uses(&op)], ..Default::default() };
        definition =
            pb::Definition { def: vec![op.encode_to_vec(), end.encode_to_vec()], ..Default::default() };
    }
    check_error(&definition.encode_to_vec(), "nested deeper than 4");
}

#[test]
fn json_has_the_proto_names() {
    let rows: Vec<String> = json::vertices(&everything()).iter().map(|row| row["op"].to_string()).collect();
    insta::assert_snapshot!(rows.join("\n"), @r#"
    {"source":{"identifier":"docker-image://docker.io/library/busybox:latest"},"platform":{"Architecture":"amd64","OS":"linux"},"constraints":{}}
    {"source":{"identifier":"local://context","attrs":{"local.followpaths":"[\"a\"]","local.sharedkeyhint":""}},"constraints":{}}
    {"inputs":[{"digest":"sha256:e1432b8e2054abb034451c15f0a8ad49d07f5892ca266016226fec77e95d20a0"},{"digest":"sha256:2bdc1be013c95efd2f55e51a7bf4c3c3ecf13eaf651aad8c9ecda27248b23e29"}],"exec":{"meta":{"args":["true"],"env":["SSH_AUTH_SOCK=/run/buildkit/ssh_agent.0"],"cwd":"/","removeMountStubsRecursive":true},"mounts":[{"dest":"/"},{"input":"1","dest":"/c","output":"-1","selector":"/s","mountType":"CACHE","cacheOpt":{"ID":"i","sharing":"LOCKED"}},{"input":"1","dest":"/ro","output":"-1","readonly":true},{"input":"-1","dest":"/t","output":"-1","mountType":"TMPFS","TmpfsOpt":{"size":"5"}},{"input":"-1","dest":"/k","mountType":"SECRET","secretOpt":{"ID":"k","uid":1,"gid":2,"mode":256,"optional":true}},{"input":"-1","dest":"/run/buildkit/ssh_agent.0","mountType":"SSH","SSHOpt":{"ID":"s","uid":1,"gid":2,"mode":256}}]},"platform":{"Architecture":"amd64","OS":"linux"},"constraints":{}}
    {"inputs":[{"digest":"sha256:dff8dd618a369a29218424cf654087a0834405fc978ae9e3af10a6cf06a3234f"},{"digest":"sha256:2bdc1be013c95efd2f55e51a7bf4c3c3ecf13eaf651aad8c9ecda27248b23e29"}],"file":{"actions":[{"secondaryInput":"-1","output":"-1","mkdir":{"path":"/x","mode":493,"timestamp":"-1"}},{"input":"2","secondaryInput":"1","copy":{"src":"/a","dest":"/b","owner":{"user":{"byName":{"name":"me"}},"group":{"byID":0}},"mode":-1,"timestamp":"-1"}}]},"constraints":{}}
    {"inputs":[{"digest":"sha256:e1432b8e2054abb034451c15f0a8ad49d07f5892ca266016226fec77e95d20a0"},{"digest":"sha256:e279e0f6dd92b0e503a98a91d66fd8abee077af507a2b7ed0170b67f6a749782"}],"diff":{"lower":{},"upper":{"input":"1"}},"constraints":{}}
    {"inputs":[{"digest":"sha256:e1432b8e2054abb034451c15f0a8ad49d07f5892ca266016226fec77e95d20a0"},{"digest":"sha256:fa7591de2d468d85fb861c2139c8523f97a550ab67720c286386bd36cc3a8c87"}],"merge":{"inputs":[{},{"input":"1"}]},"constraints":{}}
    {"inputs":[{"digest":"sha256:41e72041ef8cc3486ddb06d20fa4989d191d21bbb369997571e3283266d0f877"}]}
    "#);
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _read = Definition::from_wire(&bytes);
    }

    #[test]
    fn damaged_definitions_never_panic(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut wire = everything().to_wire();
        let at = at.index(wire.len());
        wire[at] = byte;
        if let Ok(read) = Definition::from_wire(&wire) {
            prop_assert_eq!(Definition::from_wire(&read.to_wire()), Ok(read));
        }
    }
}

/// Go's clients take a value that the wire leaves out for nothing at all, and die of it.
#[test]
fn a_vertex_without_places_has_no_entry_among_them() {
    let wire = pb::Definition::decode(everything().to_wire().as_slice()).expect("decodes");
    let locations = wire.source.expect("places").locations;
    assert_eq!(locations.len(), 1);
    assert!(locations.values().all(|places| !places.locations.is_empty()));
}
