//! What a failed step left, for a client that wants to look into it: its mounts as results, and its op, in the error.
//!
//! Start with [`with_leftovers`]; what failed before it ran is in [`unmade`].

mod unmade;

use std::collections::BTreeMap;

use bollard_buildkit_proto::pb;
use serde_json::{Value, json};
use stave_llb::Mount;
use stave_oci::Digest;
use stave_store::Snapshot;
use stave_worker::FailedStep;

use crate::build::Build;
use crate::failure::Failure;

/// A failure of an op, with what a client needs to make a container of what it left, or was to be made from.
pub(super) async fn with_leftovers(build: &Build, failure: Failure) -> Failure {
    let Failure::Build { vertex: Some(vertex), .. } = &failure else { return failure };
    let mut found = detail(build, vertex);
    if found.is_none()
        && let Some((target, op)) = build.op(vertex)
    {
        found = Box::pin(unmade::detail(build, &target, &op)).await;
    }
    match found {
        Some(detail) => Failure::Client(Box::new(failure.status_with("Solve", &detail))),
        None => failure,
    }
}

fn detail(build: &Build, vertex: &Digest) -> Option<Value> {
    let step = build.engine().failed_step(&build.gate.owner().namespace, vertex)?;
    let (_, op) = build.op(vertex)?;
    let keep = |snapshot: &Snapshot| build.add_solved(snapshot.clone()).map(|target| target.id.clone());
    let inputs = step.inputs.iter().map(keep).collect::<Result<Vec<_>, _>>().ok()?;
    let root = keep(&step.root).ok()?;
    let Some(pb::op::Op::Exec(exec)) = &op.op else { return None };
    let mut left = BTreeMap::new();
    for (place, snapshot) in &step.mounts {
        left.insert(place.as_str(), keep(snapshot).ok()?);
    }
    left.insert("/", root);
    // Clients count by mounts, though several show one input, or none.
    let before = exec.mounts.iter().map(|mount| before(&step, mount, &inputs));
    let before: Vec<String> = before.collect();
    let mounts = exec.mounts.iter().zip(&before);
    let mounts: Vec<_> =
        mounts.map(|(mount, before)| left.get(mount.dest.as_str()).unwrap_or(before).clone()).collect();
    Some(json!({ "inputIDs": before, "mountIDs": mounts, "op": op_json(&op) }))
}

/// The result that a mount showed before the step ran; none for what is not files.
fn before(step: &FailedStep, mount: &pb::Mount, inputs: &[String]) -> String {
    let own = step.op.mounts.iter().find(|own| own.target() == mount.dest);
    let input = own.and_then(Mount::input).and_then(|input| inputs.get(input as usize));
    input.cloned().unwrap_or_default()
}

/// The op as protobuf's JSON, as far as processes, their mounts and actions go.
fn op_json(op: &pb::Op) -> Value {
    let inputs: Vec<_> = op
        .inputs
        .iter()
        .map(|input| json!({ "digest": input.digest, "index": input.index.to_string() }))
        .collect();
    match &op.op {
        Some(pb::op::Op::Exec(exec)) => json!({ "inputs": inputs, "exec": exec_json(exec) }),
        Some(pb::op::Op::File(file)) => {
            let actions: Vec<_> = file.actions.iter().map(action_json).collect();
            json!({ "inputs": inputs, "file": { "actions": actions } })
        }
        _ => json!({ "inputs": inputs }),
    }
}

fn exec_json(exec: &pb::ExecOp) -> Value {
    let meta = exec.meta.clone().unwrap_or_default();
    let hosts: Vec<_> =
        meta.extra_hosts.iter().map(|host| json!({ "Host": host.host, "IP": host.ip })).collect();
    let secrets: Vec<_> = exec
        .secretenv
        .iter()
        .map(|secret| json!({ "ID": secret.id, "name": secret.name, "optional": secret.optional }))
        .collect();
    json!({
        "meta": {
            "args": meta.args,
            "env": meta.env,
            "cwd": meta.cwd,
            "user": meta.user,
            "hostname": meta.hostname,
            "extraHosts": hosts,
        },
        "mounts": exec.mounts.iter().map(mount_json).collect::<Vec<_>>(),
        "network": exec.network,
        "security": exec.security,
        "secretenv": secrets,
    })
}

fn action_json(action: &pb::FileAction) -> Value {
    use pb::file_action::Action;
    let mut value = json!({
        "input": action.input.to_string(),
        "secondaryInput": action.secondary_input.to_string(),
        "output": action.output.to_string(),
    });
    let (kind, about) = match &action.action {
        Some(Action::Copy(copy)) => {
            ("copy", json!({ "src": copy.src, "dest": copy.dest, "mode": copy.mode }))
        }
        // What is written may be long, and is the client's own.
        Some(Action::Mkfile(file)) => ("mkfile", json!({ "path": file.path, "mode": file.mode })),
        Some(Action::Mkdir(made)) => {
            ("mkdir", json!({ "path": made.path, "mode": made.mode, "makeParents": made.make_parents }))
        }
        Some(Action::Rm(removed)) => ("rm", json!({ "path": removed.path })),
        Some(Action::Symlink(link)) => {
            ("symlink", json!({ "oldpath": link.oldpath, "newpath": link.newpath }))
        }
        None => return value,
    };
    value[kind] = about;
    value
}

fn mount_json(mount: &pb::Mount) -> Value {
    let mut value = json!({
        "input": mount.input.to_string(),
        "selector": mount.selector,
        "dest": mount.dest,
        "output": mount.output.to_string(),
        "readonly": mount.readonly,
        "mountType": mount.mount_type,
    });
    if let Some(option) = &mount.tmpfs_opt {
        value["TmpfsOpt"] = json!({ "size": option.size.to_string() });
    }
    if let Some(option) = &mount.cache_opt {
        value["cacheOpt"] = json!({ "ID": option.id, "sharing": option.sharing });
    }
    if let Some(option) = &mount.secret_opt {
        let (id, uid, gid) = (&option.id, option.uid, option.gid);
        value["secretOpt"] =
            json!({ "ID": id, "uid": uid, "gid": gid, "mode": option.mode, "optional": option.optional });
    }
    if let Some(option) = &mount.ssh_opt {
        let (id, uid, gid) = (&option.id, option.uid, option.gid);
        value["SSHOpt"] =
            json!({ "ID": id, "uid": uid, "gid": gid, "mode": option.mode, "optional": option.optional });
    }
    value
}
