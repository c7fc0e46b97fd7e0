//! What a step's process is given, and what its exit code means.

use super::*;
use crate::exec::ProcessUsage;
use stave_llb::SecretEnv;

fn identity() -> Identity {
    Identity { uid: 0, gid: 0, groups: Vec::new(), home: "/root".into() }
}

fn session(secrets: &[(&str, &[u8])]) -> Session {
    let client = stave_registry::Client::new(stave_registry::ClientConfig {
        registries: stave_registry::RegistryTables::default(),
        keychain: stave_registry::Keychain::anonymous(),
        limits: stave_registry::Limits::default(),
        user_agent: "test".into(),
    });
    Session {
        context_modes: crate::session::ContextModes::Kept,
        asks_for_tags: false,
        contexts: std::collections::BTreeMap::new(),
        remote: None,
        layouts: std::collections::BTreeMap::new(),
        ssh: std::collections::BTreeMap::new(),
        known_hosts: None,
        pins: crate::source::pins::Pins::default(),
        secrets: secrets
            .iter()
            .map(|(id, value)| ((*id).to_owned(), Secret::Value(value.to_vec())))
            .collect(),
        registry: client.expect("client"),
        resolved: std::collections::BTreeMap::new(),
        travel: None,
        confinement: crate::confinement::Confinement::default(),
        namespace: crate::Namespace::Shared,
    }
}

#[track_caller]
fn check_environment(op: &ExecOp, secrets: &[(&str, &[u8])], expected: &[&str]) {
    let env = environment(op, &identity(), &session(secrets)).expect("environment");
    assert_eq!(env, expected);
}

#[test]
fn environments() {
    let path = format!("PATH={DEFAULT_PATH}");
    check_environment(&ExecOp::default(), &[], &[&path, "HOME=/root"]);
    let op = ExecOp { env: vec!["PATH=/x".into(), "HOME=/y".into()], ..ExecOp::default() };
    check_environment(&op, &[], &["PATH=/x", "HOME=/y"]);
    let proxy = ProxyEnv { http_proxy: "p".into(), ..ProxyEnv::default() };
    let op = ExecOp { env: vec!["http_proxy=own".into()], proxy_env: Some(proxy), ..ExecOp::default() };
    check_environment(&op, &[], &["http_proxy=own", "HTTP_PROXY=p", &path, "HOME=/root"]);
    let secret = SecretEnv { id: "token".into(), name: "TOKEN".into(), optional: false };
    let op = ExecOp { secret_env: vec![secret], ..ExecOp::default() };
    check_environment(&op, &[("token", b"s3")], &["TOKEN=s3", &path, "HOME=/root"]);
    assert!(
        matches!(environment(&op, &identity(), &session(&[])), Err(StepError::MissingSecret(id)) if id == "token")
    );
    assert!(matches!(
        environment(&op, &identity(), &session(&[("token", b"a\0b")])),
        Err(StepError::Secret { fault: SecretFault::NotText, .. })
    ));
}

#[track_caller]
fn check_code(valid: &[i32], status: ExitStatus, expected: Option<(i32, Option<i32>)>) {
    let op = ExecOp { args: vec!["/bin/sh".into()], valid_exit_codes: valid.to_vec(), ..ExecOp::default() };
    let finished = Finished {
        status,
        tail: b"end".to_vec(),
        created_mount_points: Vec::new(),
        usage: ProcessUsage::default(),
    };
    let found = match check_exit(&op, &finished) {
        Ok(()) => None,
        Err(StepError::Exit { code, signal, .. }) => Some((code, signal)),
        Err(other) => panic!("{other}"),
    };
    assert_eq!(found, expected);
}

#[test]
fn exit_codes() {
    check_code(&[], ExitStatus::Exited(0), None);
    check_code(&[], ExitStatus::Exited(3), Some((3, None)));
    check_code(&[0, 3], ExitStatus::Exited(3), None);
    check_code(&[3], ExitStatus::Exited(0), Some((0, None)));
    check_code(&[], ExitStatus::Signaled(9), Some((137, Some(9))));
}

#[test]
fn limits() {
    let limit = Ulimit { name: "nofile".into(), soft: 10, hard: -1 };
    let found = rlimit(&limit).expect("limit");
    assert_eq!((found.resource, found.soft, found.hard), (RlimitResource::Nofile, 10, u64::MAX));
    assert!(rlimit(&Ulimit { name: "speed".into(), ..limit }).is_err());
}

#[test]
fn an_unentitled_step_is_refused() {
    let op = ExecOp { security: SecurityMode::Insecure, ..ExecOp::default() };
    let refused = check_supported(&op, &session(&[]));
    assert!(matches!(refused, Err(StepError::NotEntitled("security.insecure"))));
}

#[test]
fn a_step_gets_no_directory_that_is_read_outside_of_it() {
    let id = "git repository https://host/a".to_owned();
    let (target, sharing) = ("/m".to_owned(), Sharing::Shared);
    let mount = Mount::Cache { target, input: None, selector: String::new(), readonly: false, id, sharing };
    let op = ExecOp { mounts: vec![mount], ..ExecOp::default() };
    let refused = check_supported(&op, &session(&[])).expect_err("is refused");
    assert_eq!(refused.to_string(), "cache mount id `git repository https://host/a` is reserved");
}
