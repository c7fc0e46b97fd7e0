//! Ops that fail before they have files: a client is told what they were to be made from.

use bollard_buildkit_proto::google::rpc;
use bollard_buildkit_proto::moby::buildkit::v1::SolveRequest;
use bollard_buildkit_proto::moby::buildkit::v1::frontend::{
    ReadFileRequest, Result as Results, SolveRequest as Inside,
};
use bollard_buildkit_proto::pb;
use bollard_buildkit_proto::pb::file_action::Action;
use prost::Message as _;
use serde_json::Value;
use stave_oci::Digest;

use super::client::{Files, TestDaemon};

fn action(input: i64, output: i64, action: Action) -> pb::FileAction {
    pb::FileAction { input, secondary_input: -1, output, action: Some(action) }
}

fn mkfile(path: &str) -> Action {
    let data = path.as_bytes().to_vec();
    Action::Mkfile(pb::FileActionMkFile {
        path: path.to_owned(),
        mode: 0o644,
        data,
        timestamp: -1,
        ..pb::FileActionMkFile::default()
    })
}

/// A graph that is one op.
fn graph(actions: Vec<pb::FileAction>) -> pb::Definition {
    let op = pb::Op { op: Some(pb::op::Op::File(pb::FileOp { actions })), ..pb::Op::default() };
    let bytes = op.encode_to_vec();
    let edge = pb::Input { digest: Digest::sha256(&bytes).to_string(), index: 0 };
    let end = pb::Op { inputs: vec![edge], ..pb::Op::default() };
    pb::Definition { def: vec![bytes, end.encode_to_vec()], ..pb::Definition::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_action_began_with_is_told() {
    let daemon = TestDaemon::start().await;
    let mut client = daemon.client("s", "", Files::new(&[], "")).await;
    let front_end = daemon.client("front-end", "", Files::new(&[], "")).await;
    let asking = tokio::spawn(async move {
        let actions = vec![
            action(-1, -1, mkfile("/found")),
            action(0, -1, mkfile("/nowhere/file")),
            action(1, 0, mkfile("/later")),
        ];
        let request = Inside { definition: Some(graph(actions)), evaluate: true, ..Inside::default() };
        let failed = front_end.solve_inside("b", request).await.expect_err("has no parent");
        let details = rpc::Status::decode(failed.details()).expect("has details").details;
        let solve = details.iter().find(|detail| detail.type_url.contains("errdefs.Solve"));
        let solve: Value = serde_json::from_slice(&solve.expect("is told").value).expect("is JSON");
        let began = solve["mountIDs"][1].as_str().expect("an id").to_owned();
        let request =
            ReadFileRequest { r#ref: began, file_path: "/found".to_owned(), ..ReadFileRequest::default() };
        let read = front_end.read_file("b", request).await;
        front_end.return_result("b", Results::default()).await.expect("is taken");
        (solve, read)
    });
    let wish = |request| SolveRequest { frontend: String::new(), ..request };
    let built = client.build_with("b", "tar", wish).await.expect("builds");
    let (solve, read) = asking.await.expect("no panic");
    assert_eq!(read.expect("is a result").data, b"/found");
    assert_eq!((&solve["file"]["index"], &solve["mountIDs"][2]), (&"1".into(), &"".into()));
    assert_eq!(solve["op"]["file"]["actions"][1]["mkfile"]["path"], "/nowhere/file");
    // It was looked for without a word to the client.
    assert!(built.vertexes.iter().filter(|vertex| !vertex.error.is_empty()).count() <= 1);
    daemon.stop().await;
}
