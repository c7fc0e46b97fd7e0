//! Rules about what a build is made from, and graphs that lie in files of other graphs.

use std::collections::HashMap;

use bollard_buildkit_proto::moby::buildkit::v1::SolveRequest;
use bollard_buildkit_proto::moby::buildkit::v1::sourcepolicy::{
    MatchType, Policy, PolicyAction, Rule, Selector, Update,
};
use bollard_buildkit_proto::pb;
use prost::Message as _;
use stave_llb::builder::{About, FileSpec, FileStep, GraphBuilder};
use stave_llb::{FileActionKind, MkfileAction, SourceOp};
use stave_oci::Platform;

use super::client::{Files, TestDaemon, content, names};

pub(crate) fn rule(action: PolicyAction, identifier: &str, to: Option<&str>) -> Rule {
    Rule {
        action: action.into(),
        selector: Some(Selector {
            identifier: identifier.to_owned(),
            match_type: MatchType::Wildcard.into(),
            constraints: Vec::new(),
        }),
        updates: to.map(|to| Update { identifier: to.to_owned(), attrs: HashMap::new() }),
    }
}

async fn build(daemon: &TestDaemon, name: &str, rules: Vec<Rule>) -> Result<Vec<u8>, String> {
    let dockerfile = "FROM scratch\nCOPY f /\nADD https://nowhere.invalid/x /\n";
    let mut client = daemon.client(name, "", Files::new(&[("f", "1")], dockerfile)).await;
    let wish =
        |request: SolveRequest| SolveRequest { source_policy: Some(Policy { version: 1, rules }), ..request };
    let built = client.build_with(name, "tar", wish).await;
    built.map(|built| built.archive).map_err(|status| status.message().to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rules_say_what_a_build_is_made_from() {
    let daemon = TestDaemon::start().await;
    let denied = build(&daemon, "denied", vec![rule(PolicyAction::Deny, "https://*", None)]).await;
    assert_eq!(
        denied.expect_err("is denied"),
        "error evaluating the source policy: source \"https://nowhere.invalid/x\" denied by policy: source \
         denied by policy"
    );
    let nonsense = build(&daemon, "nonsense", vec![rule(PolicyAction::Convert, "*", None)]).await;
    assert!(nonsense.expect_err("is refused").contains("missing destination for convert rule"));
    // The client's own directory takes the place of the download.
    let replaced = rule(PolicyAction::Convert, "https://*", Some("local://context"));
    let replaced = build(&daemon, "replaced", vec![replaced]).await.expect_err("has no such file");
    assert!(replaced.contains("\"/x\": not found"), "{replaced}");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rules_hold_for_what_a_front_end_is_given() {
    let daemon = TestDaemon::start().await;
    let mut graph = GraphBuilder::default();
    let op = SourceOp::new("docker-image://nowhere.invalid/base:1", Default::default());
    let image = graph.source(op, &Platform::host(), About::default());
    let graph = graph.finish(Some(image)).to_wire();
    let graph = pb::Definition::decode(graph.as_slice()).expect("is one");
    for name in ["base", "context", "dockerfile"] {
        let mut client = daemon.client(name, "", Files::new(&[], "FROM base\nCOPY x /\n")).await;
        let rules = vec![rule(PolicyAction::Deny, "docker-image://nowhere.invalid/*", None)];
        let wish = |mut request: SolveRequest| {
            request.source_policy = Some(Policy { version: 1, rules });
            request.frontend_attrs.insert(format!("context:{name}"), format!("input:{name}"));
            request.frontend_inputs.insert(name.to_owned(), graph.clone());
            request
        };
        let denied = client.build_with(name, "tar", wish).await.map(|_| ()).expect_err("is denied");
        assert_eq!(
            denied.message(),
            "error evaluating the source policy: source \"docker-image://nowhere.invalid/base:1\" denied by \
             policy: source denied by policy"
        );
    }
    daemon.stop().await;
}

/// The graph that writes one file.
fn file(path: &str, data: &[u8]) -> pb::Definition {
    let kind = FileActionKind::Mkfile(MkfileAction {
        path: path.to_owned(),
        mode: 0o644,
        data: data.to_vec(),
        ..MkfileAction::default()
    });
    let mut graph = GraphBuilder::default();
    let step = FileStep { kind, source: None };
    let made = graph.file(FileSpec { base: None, actions: vec![step], about: About::default() });
    pb::Definition::decode(graph.finish(Some(made)).to_wire().as_slice()).expect("is one")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_graph_lies_in_a_file_of_another() {
    const NAME: &str = "buildkit.llb.definition";
    let daemon = TestDaemon::start().await;
    let inner = file("/inner", b"within").encode_to_vec();
    let mut outer = file(&format!("/{NAME}"), &inner);
    let first = stave_oci::Digest::sha256(&outer.def[0]).to_string();
    let input = |digest: String| vec![pb::Input { digest, index: 0 }];
    let op = pb::BuildOp {
        builder: -1,
        inputs: [(NAME.to_owned(), pb::BuildInput { input: 0 })].into(),
        ..pb::BuildOp::default()
    };
    let op = pb::Op { inputs: input(first), op: Some(pb::op::Op::Build(op)), ..pb::Op::default() };
    let bytes = op.encode_to_vec();
    let end = pb::Op { inputs: input(stave_oci::Digest::sha256(&bytes).to_string()), ..pb::Op::default() };
    outer.def.pop();
    outer.def.extend([bytes, end.encode_to_vec()]);
    let mut client = daemon.client("s", "", Files::new(&[], "")).await;
    let wish = |request| SolveRequest { frontend: String::new(), definition: Some(outer), ..request };
    let built = client.build_with("b", "tar", wish).await.expect("builds");
    assert_eq!(names(&built.archive), ["inner"]);
    assert_eq!(content(&built.archive, "inner"), "within");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn front_ends_that_are_not_allowed_are_not_found_inside_others() {
    let check = async |rules: &str, front_end: &str, source: &str, expected: Option<&str>| {
        let tables = toml::from_str(rules).expect("is a table");
        let change = |config: &mut stave_daemon::DaemonConfig, _: &std::path::Path| {
            config.worker.front_ends = stave_daemon::FrontEnds::of(&tables);
        };
        let daemon = TestDaemon::start_with(change).await;
        let mut client = daemon.client("s", "", Files::new(&[("f", "1")], "FROM scratch\nCOPY f /\n")).await;
        let wish = |mut request: SolveRequest| {
            request.frontend = front_end.to_owned();
            request.frontend_attrs.insert("source".to_owned(), source.to_owned());
            request
        };
        let built = client.build_with("b", "tar", wish).await;
        let failed = built.err().map(|status| status.message().to_owned());
        assert_eq!(failed.as_deref(), expected, "{rules:?} {front_end} {source}");
        daemon.stop().await;
    };
    let off = "[\"dockerfile.v0\"]\nenabled = false\n";
    check("", "gateway.v0", "docker/dockerfile:1", None).await;
    check(off, "dockerfile.v0", "", Some("unknown frontend: dockerfile.v0")).await;
    check(off, "gateway.v0", "dockerfile.v0", Some("unknown frontend: dockerfile.v0")).await;
    check(off, "gateway.v0", "docker/dockerfile:1", Some("unknown frontend: dockerfile.v0")).await;
    let others = "[\"gateway.v0\"]\nallowedRepositories = [\"example.com/f\"]\n";
    let refused = "'docker/dockerfile:1' is not an allowed gateway source";
    check(others, "gateway.v0", "docker/dockerfile:1", Some(refused)).await;
    check(others, "gateway.v0", "dockerfile.v0", None).await;
}
