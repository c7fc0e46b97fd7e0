//! The keys of processes (BuildKit `solver/llbsolver/ops/exec.go`).

use serde_json::Value;
use stave_llb::{ContentCache, ExecOp, Mount, MountOwner, NetMode, SecurityMode, Sharing};
use stave_oci::{Digest, Platform};

use super::json::{Object, go_text};
use super::{ContentPath, InputKeys, OpKeys, outermost, platform_of, rooted};

/// Numbers of `pb.MountType`.
const CACHE: i64 = 3;
const SECRET: i64 = 1;
const SSH: i64 = 2;
const TMPFS: i64 = 4;

pub(super) fn keys(op: &ExecOp, platform: Option<&Platform>, inputs: usize) -> Option<OpKeys> {
    let platform = platform_of(platform);
    let whole = Object::new()
        .always("Type", "buildkit.exec.v0")
        .object("Exec", Some(exec(op)))
        .always("OS", &platform.os)
        .always("Arch", &platform.architecture)
        .text("Variant", platform.variant.as_deref().unwrap_or_default())
        .text("OSVersion", platform.os_version.as_deref().unwrap_or_default())
        .texts("OSFeatures", &platform.os_features);
    let digests = vec![Digest::sha256(go_text(&whole).as_bytes())];
    Some(OpKeys { digests, inputs: input_keys(op, inputs)? })
}

fn exec(op: &ExecOp) -> Object {
    let secret_env = op.secret_env.iter().map(|secret| {
        let object = Object::new().text("ID", &secret.id).text("name", &secret.name);
        object.flag("optional", secret.optional).value()
    });
    let devices = op
        .devices
        .iter()
        .map(|device| Object::new().text("name", &device.name).flag("optional", device.optional).value());
    // A RUN with nothing but its root leaves the mount out, since early BuildKit did.
    let mounts = match op.mounts.as_slice() {
        [only] if is_plain_root(only) => Vec::new(),
        mounts => mounts.iter().map(mount).collect(),
    };
    Object::new()
        .object("meta", Some(meta(op)))
        .list("mounts", mounts)
        .number(
            "network",
            match op.network {
                NetMode::Default => 0,
                NetMode::Host => 1,
                NetMode::None => 2,
            },
        )
        .number(
            "security",
            match op.security {
                SecurityMode::Sandbox => 0,
                SecurityMode::Insecure => 1,
            },
        )
        .list("secretenv", secret_env.collect())
        .list("cdiDevices", devices.collect())
}

fn meta(op: &ExecOp) -> Object {
    // Addresses of extra hosts and proxy settings say how the network is reached, and stay out.
    let hosts = op.extra_hosts.iter().map(|line| Object::new().text("Host", &line.host).value());
    let ulimits = op.ulimits.iter().map(|limit| {
        Object::new().text("Name", &limit.name).number("Soft", limit.soft).number("Hard", limit.hard).value()
    });
    Object::new()
        .texts("args", &op.args)
        .texts("env", &op.env)
        .text("cwd", &op.cwd)
        .text("user", &op.user)
        .list("extraHosts", hosts.collect())
        .text("hostname", &op.hostname)
        .list("ulimit", ulimits.collect())
        .text("cgroupParent", &op.cgroup_parent)
        .flag("removeMountStubsRecursive", op.remove_mount_stubs)
        .list("validExitCodes", op.valid_exit_codes.iter().map(|code| Value::from(*code)).collect())
}

fn is_plain_root(mount: &Mount) -> bool {
    matches!(mount, Mount::Bind { target, readonly: false, .. } if target == "/")
}

fn mount(of: &Mount) -> Value {
    let frame = |input: Option<u32>, output: i64, readonly: bool, kind: i64| {
        Object::new()
            .number("input", input.map_or(-1, i64::from))
            .text("dest", of.target())
            .number("output", output)
            .flag("readonly", readonly)
            .number("mountType", kind)
    };
    let object =
        match of {
            Mount::Bind { input, readonly, output, content_cache, .. } => {
                let output = output.map_or(-1, i64::from);
                let cache = match content_cache {
                    ContentCache::Default => 0,
                    ContentCache::On => 1,
                    ContentCache::Off => 2,
                };
                frame(*input, output, *readonly, 0).number("contentCache", cache)
            }
            Mount::Cache { target, input, readonly, id, sharing, .. } => frame(*input, -1, *readonly, CACHE)
                .object("cacheOpt", Some(cache_options(target, id, *sharing))),
            Mount::Tmpfs { size, readonly, .. } => frame(None, -1, *readonly, TMPFS)
                .object("TmpfsOpt", Some(Object::new().number("size", *size))),
            Mount::Secret { id, owner, optional, .. } => {
                frame(None, 0, false, SECRET).object("secretOpt", Some(owned(id, *owner, *optional)))
            }
            Mount::Ssh { id, owner, optional, .. } => {
                frame(None, 0, false, SSH).object("SSHOpt", Some(owned(id, *owner, *optional)))
            }
        };
    object.value()
}

/// Which cache and how it is shared stays out unless it is what a Dockerfile gets without asking.
fn cache_options(target: &str, id: &str, sharing: Sharing) -> Object {
    let is_default = sharing == Sharing::Shared
        && (id == target || id.split_once('/').is_some_and(|(_, trimmed)| trimmed == target));
    if is_default { Object::new().text("ID", id) } else { Object::new() }
}

fn owned(id: &str, owner: MountOwner, optional: bool) -> Object {
    Object::new()
        .text("ID", id)
        .number("uid", owner.uid.into())
        .number("gid", owner.gid.into())
        .number("mode", owner.mode.into())
        .flag("optional", optional)
}

#[derive(Default)]
struct Use {
    selectors: Vec<String>,
    by_content: bool,
}

fn input_keys(op: &ExecOp, inputs: usize) -> Option<Vec<InputKeys>> {
    let mut uses: Vec<Use> = std::iter::repeat_with(Use::default).take(inputs).collect();
    for mount in &op.mounts {
        let Some(input) = mount.input() else { continue };
        let used = uses.get_mut(input as usize)?;
        let (selector, readonly, content) = match mount {
            Mount::Bind { selector, readonly, content_cache, .. } => (selector, *readonly, *content_cache),
            Mount::Cache { selector, readonly, .. } => (selector, *readonly, ContentCache::Default),
            Mount::Tmpfs { .. } | Mount::Secret { .. } | Mount::Ssh { .. } => continue,
        };
        let selector = rooted(selector);
        // Content may stand for the input where nothing that was not selected can reach an output.
        let is_safe = mount.output().is_none() || readonly || selector == "/";
        // The last mount of an input decides, as in the reference.
        used.by_content = match content {
            ContentCache::Off => false,
            ContentCache::On => is_safe,
            ContentCache::Default => is_safe && mount.target() != "/",
        };
        used.selectors.push(selector);
    }
    Some(uses.into_iter().map(Use::keys).collect())
}

impl Use {
    fn keys(self) -> InputKeys {
        let selector =
            (!self.selectors.is_empty()).then(|| Digest::sha256(self.selectors.join("\0").as_bytes()));
        let content = self.by_content.then(|| {
            let paths = outermost(&self.selectors);
            if paths.iter().any(|path| path == "/") {
                return Vec::new();
            }
            let path = |path| ContentPath { path, follow_links: true, ..ContentPath::default() };
            paths.into_iter().map(path).collect()
        });
        InputKeys { selector, content }
    }
}
