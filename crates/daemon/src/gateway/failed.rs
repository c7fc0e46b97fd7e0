//! What a failed step left, for a client that wants to look into it: its mounts as results, and its op, in the error.
//!
//! Start with [`with_leftovers`].

use std::collections::BTreeMap;

use bollard_buildkit_proto::pb;
use serde_json::{Value, json};
use stave_llb::Mount;
use stave_oci::Digest;
use stave_store::Snapshot;
use stave_worker::FailedStep;

use crate::build::Build;
use crate::failure::Failure;

/// A failure of a step, with what a client needs to make a container of what the step left.
pub(super) fn with_leftovers(build: &Build, failure: Failure) -> Failure {
    let Failure::Build { vertex: Some(vertex), .. } = &failure else { return failure };
    match detail(build, vertex) {
        Some(detail) => Failure::Client(Box::new(failure.status_with("Solve", &detail))),
        None => failure,
    }
}

fn detail(build: &Build, vertex: &Digest) -> Option<Value> {
    let step = build.engine().failed_step(&build.gate.owner().namespace, vertex)?;
    let op = build.op(vertex)?;
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
    Some(json!({ "inputIDs": before, "mountIDs": mounts, "op": op_json(&op, exec) }))
}

/// The result that a mount showed before the step ran; none for what is not files.
fn before(step: &FailedStep, mount: &pb::Mount, inputs: &[String]) -> String {
    let own = step.op.mounts.iter().find(|own| own.target() == mount.dest);
    let input = own.and_then(Mount::input).and_then(|input| inputs.get(input as usize));
    input.cloned().unwrap_or_default()
}

/// The op as protobuf's JSON, as far as a process and its mounts go.
fn op_json(op: &pb::Op, exec: &pb::ExecOp) -> Value {
    let meta = exec.meta.clone().unwrap_or_default();
    let hosts: Vec<_> =
        meta.extra_hosts.iter().map(|host| json!({ "Host": host.host, "IP": host.ip })).collect();
    let secrets: Vec<_> = exec
        .secretenv
        .iter()
        .map(|secret| json!({ "ID": secret.id, "name": secret.name, "optional": secret.optional }))
        .collect();
    let inputs: Vec<_> = op
        .inputs
        .iter()
        .map(|input| json!({ "digest": input.digest, "index": input.index.to_string() }))
        .collect();
    json!({
        "inputs": inputs,
        "exec": {
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
        },
    })
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
