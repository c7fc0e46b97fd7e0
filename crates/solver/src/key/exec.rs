//! The rules for running a process.

use stave_cache::{KeyBuilder, KeyPart};
use stave_llb::{
    CdiDevice, ContentCache, ExecOp, HostIp, Mount, MountOwner, NetMode, SecretEnv, SecurityMode, Sharing,
    Ulimit,
};
use stave_oci::Platform;

use super::{InputUse, platform};
use crate::worker::{InputKey, SelectorPath};

/// Which programs' results of processes are believed. Raised when those recorded so far may be wrong: 2, since layers of
/// version 1 may lack files of a directory that a step removed and made again.
const RESULT_VERSION: u64 = 2;

pub(super) fn op_part(op: &ExecOp, on: Option<&Platform>) -> KeyPart {
    let ExecOp {
        args,
        env,
        cwd,
        user,
        hostname,
        ulimits,
        extra_hosts,
        // How the network is reached, not what is asked of it.
        proxy_env: _,
        valid_exit_codes,
        cgroup_parent,
        remove_mount_stubs,
        mounts,
        network,
        security,
        secret_env,
        devices,
    } = op;
    let mut builder = KeyBuilder::new("op.exec");
    builder
        .number("result-version", RESULT_VERSION)
        .texts("args", args)
        .texts("env", env)
        .text("cwd", cwd)
        .text("user", user)
        .text("hostname", hostname);
    for Ulimit { name, soft, hard } in ulimits {
        builder.text("ulimit", name).signed("soft", *soft).signed("hard", *hard);
    }
    // Addresses are this machine's or network's; that a host is known at all is the operation's.
    for HostIp { host, ip: _ } in extra_hosts {
        builder.text("host", host);
    }
    for code in valid_exit_codes {
        builder.signed("valid-exit-code", i64::from(*code));
    }
    builder
        .text("cgroup-parent", cgroup_parent)
        .flag("remove-mount-stubs", *remove_mount_stubs)
        .text("network", network_name(*network))
        .text("security", security_name(*security));
    for SecretEnv { id, name, optional } in secret_env {
        builder.text("secret-env", name).text("id", id).flag("optional", *optional);
    }
    for CdiDevice { name, optional } in devices {
        builder.text("device", name).flag("optional", *optional);
    }
    platform(&mut builder, on);
    let mounts: Vec<KeyPart> = mounts.iter().map(mount_part).collect();
    builder.parts("mounts", &mounts).finish()
}

fn mount_part(mount: &Mount) -> KeyPart {
    let mut builder = KeyBuilder::new("mount");
    match mount {
        // `content_cache` says how to look up, not what is run.
        Mount::Bind { target, input, selector, readonly, output, content_cache: _ } => builder
            .text("bind", target)
            .optional_number("input", input.map(u64::from))
            .text("selector", selector)
            .flag("readonly", *readonly)
            .optional_number("output", output.map(u64::from)),
        Mount::Cache { target, input, selector, readonly, id, sharing } => builder
            .text("cache", target)
            .optional_number("input", input.map(u64::from))
            .text("selector", selector)
            .flag("readonly", *readonly)
            .text("id", id)
            .text("sharing", sharing_name(*sharing)),
        Mount::Tmpfs { target, size, readonly } => {
            builder.text("tmpfs", target).signed("size", *size);
            if *readonly {
                builder.flag("readonly", true);
            }
            &mut builder
        }
        Mount::Secret { target, id, owner, optional } => {
            builder.text("secret", target).text("id", id).flag("optional", *optional);
            owner_fields(&mut builder, *owner)
        }
        Mount::Ssh { target, id, owner, optional } => {
            builder.text("ssh", target).text("id", id).flag("optional", *optional);
            owner_fields(&mut builder, *owner)
        }
    };
    builder.finish()
}

fn owner_fields(builder: &mut KeyBuilder, owner: MountOwner) -> &mut KeyBuilder {
    let MountOwner { uid, gid, mode } = owner;
    builder.number("uid", uid.into()).number("gid", gid.into()).number("mode", mode.into())
}

fn network_name(network: NetMode) -> &'static str {
    match network {
        NetMode::Default => "default",
        NetMode::Host => "host",
        NetMode::None => "none",
    }
}

fn security_name(security: SecurityMode) -> &'static str {
    match security {
        SecurityMode::Sandbox => "sandbox",
        SecurityMode::Insecure => "insecure",
    }
}

fn sharing_name(sharing: Sharing) -> &'static str {
    match sharing {
        Sharing::Shared => "shared",
        Sharing::Private => "private",
        Sharing::Locked => "locked",
    }
}

/// Inputs whose changed content becomes an output, and root file systems, count by identity; what is
/// only read counts by content (as in BuildKit, where `content_cache` overrides either way).
pub(super) fn input_keys(op: &ExecOp, count: usize) -> Vec<InputKey> {
    let mut uses = vec![InputUse::default(); count];
    for mount in &op.mounts {
        let (input, selector, content_cache) = match mount {
            Mount::Bind { input, selector, content_cache, .. } => (input, selector, *content_cache),
            Mount::Cache { input, selector, .. } => (input, selector, ContentCache::Default),
            Mount::Tmpfs { .. } | Mount::Secret { .. } | Mount::Ssh { .. } => continue,
        };
        let Some(used) = input.and_then(|input| uses.get_mut(input as usize)) else { continue };
        used.by_identity |= match content_cache {
            ContentCache::On => false,
            ContentCache::Off => true,
            ContentCache::Default => mount.target() == "/" || mount.output().is_some(),
        };
        match selector.trim_matches('/') {
            "" => used.whole = true,
            path => used.add(SelectorPath {
                path: format!("/{path}"),
                wildcard: false,
                follow_links: true,
                include_patterns: Vec::new(),
                exclude_patterns: Vec::new(),
            }),
        }
    }
    uses.into_iter().map(InputUse::into_key).collect()
}
