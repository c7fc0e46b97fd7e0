//! Typed operations to protobuf messages.
//!
//! Owns the mapping field by field; bytes are `encode`'s work. Start with [`op`].

use bollard_buildkit_proto::pb;
use stave_oci::Platform;

use crate::{
    definition::Edge,
    exec::{ContentCache, ExecOp, Mount, MountOwner, NetMode, SecurityMode, Sharing},
    file::{Chown, CopyAction, CopyMode, FileAction, FileActionKind, FileInput, UserOrGroup},
    op::Op,
};

/// An index on the wire: -1 for none.
pub(crate) fn index(of: Option<u32>) -> i64 {
    of.map_or(-1, i64::from)
}

pub(super) fn edge(of: &Edge) -> pb::Input {
    pb::Input { digest: of.vertex.to_string(), index: i64::from(of.output) }
}

pub(crate) fn platform(of: &Platform) -> pb::Platform {
    pb::Platform {
        architecture: of.architecture.clone(),
        os: of.os.clone(),
        variant: of.variant.clone().unwrap_or_default(),
        os_version: of.os_version.clone().unwrap_or_default(),
        os_features: of.os_features.clone(),
    }
}

/// The message of an operation whose vertex has `inputs` inputs; `None` for those which are
/// [`super::encode`]'s own.
pub(super) fn op(of: &Op, inputs: usize) -> Option<pb::op::Op> {
    match of {
        Op::Source(_) | Op::Exec(_) | Op::Build(_) | Op::Passthrough(_) => None,
        Op::File(file) => Some(pb::op::Op::File(pb::FileOp {
            actions: file.actions.iter().map(|action| file_action(action, inputs)).collect(),
        })),
        Op::Merge(merge) => Some(pb::op::Op::Merge(pb::MergeOp {
            inputs: merge.inputs.iter().map(|input| pb::MergeInput { input: index(*input) }).collect(),
        })),
        Op::Diff(diff) => Some(pb::op::Op::Diff(pb::DiffOp {
            lower: Some(pb::LowerDiffInput { input: index(diff.lower) }),
            upper: Some(pb::UpperDiffInput { input: index(diff.upper) }),
        })),
    }
}

/// All of a process but its `meta`.
pub(super) fn rest_of_exec(exec: &ExecOp) -> pb::ExecOp {
    pb::ExecOp {
        meta: None,
        mounts: exec.mounts.iter().map(mount).collect(),
        network: match exec.network {
            NetMode::Default => pb::NetMode::Unset,
            NetMode::Host => pb::NetMode::Host,
            NetMode::None => pb::NetMode::None,
        } as i32,
        security: match exec.security {
            SecurityMode::Sandbox => pb::SecurityMode::Sandbox,
            SecurityMode::Insecure => pb::SecurityMode::Insecure,
        } as i32,
        secretenv: exec
            .secret_env
            .iter()
            .map(|secret| pb::SecretEnv {
                id: secret.id.clone(),
                name: secret.name.clone(),
                optional: secret.optional,
            })
            .collect(),
        cdi_devices: exec
            .devices
            .iter()
            .map(|device| pb::CdiDevice { name: device.name.clone(), optional: device.optional })
            .collect(),
    }
}

/// All of a process's `meta` but its arguments, variables, directory and user.
pub(super) fn rest_of_meta(exec: &ExecOp) -> pb::Meta {
    pb::Meta {
        proxy_env: exec.proxy_env.as_ref().map(|proxy| pb::ProxyEnv {
            http_proxy: proxy.http_proxy.clone(),
            https_proxy: proxy.https_proxy.clone(),
            ftp_proxy: proxy.ftp_proxy.clone(),
            no_proxy: proxy.no_proxy.clone(),
            all_proxy: proxy.all_proxy.clone(),
        }),
        extra_hosts: exec
            .extra_hosts
            .iter()
            .map(|line| pb::HostIp { host: line.host.clone(), ip: line.ip.clone() })
            .collect(),
        hostname: exec.hostname.clone(),
        ulimit: exec
            .ulimits
            .iter()
            .map(|limit| pb::Ulimit { name: limit.name.clone(), soft: limit.soft, hard: limit.hard })
            .collect(),
        cgroup_parent: exec.cgroup_parent.clone(),
        remove_mount_stubs_recursive: exec.remove_mount_stubs,
        valid_exit_codes: exec.valid_exit_codes.clone(),
        ..pb::Meta::default()
    }
}

fn mount(of: &Mount) -> pb::Mount {
    let frame = |kind: pb::MountType, input: Option<u32>, output: i64| pb::Mount {
        input: index(input),
        output,
        dest: of.target().to_owned(),
        mount_type: kind as i32,
        ..Default::default()
    };
    match of {
        Mount::Bind { input, selector, readonly, output, content_cache, .. } => pb::Mount {
            selector: selector.clone(),
            readonly: *readonly,
            content_cache: match content_cache {
                ContentCache::Default => pb::MountContentCache::Default,
                ContentCache::On => pb::MountContentCache::On,
                ContentCache::Off => pb::MountContentCache::Off,
            } as i32,
            ..frame(pb::MountType::Bind, *input, index(*output))
        },
        Mount::Cache { input, selector, readonly, id, sharing, .. } => pb::Mount {
            selector: selector.clone(),
            readonly: *readonly,
            cache_opt: Some(pb::CacheOpt {
                id: id.clone(),
                sharing: match sharing {
                    Sharing::Shared => pb::CacheSharingOpt::Shared,
                    Sharing::Private => pb::CacheSharingOpt::Private,
                    Sharing::Locked => pb::CacheSharingOpt::Locked,
                } as i32,
            }),
            ..frame(pb::MountType::Cache, *input, -1)
        },
        Mount::Tmpfs { size, readonly, .. } => pb::Mount {
            readonly: *readonly,
            tmpfs_opt: Some(pb::TmpfsOpt { size: *size }),
            ..frame(pb::MountType::Tmpfs, None, -1)
        },
        // BuildKit leaves the output of these at 0, though they have none.
        Mount::Secret { id, owner: MountOwner { uid, gid, mode }, optional, .. } => pb::Mount {
            secret_opt: Some(pb::SecretOpt {
                id: id.clone(),
                uid: *uid,
                gid: *gid,
                mode: *mode,
                optional: *optional,
            }),
            ..frame(pb::MountType::Secret, None, 0)
        },
        Mount::Ssh { id, owner: MountOwner { uid, gid, mode }, optional, .. } => pb::Mount {
            ssh_opt: Some(pb::SshOpt {
                id: id.clone(),
                uid: *uid,
                gid: *gid,
                mode: *mode,
                optional: *optional,
            }),
            ..frame(pb::MountType::Ssh, None, 0)
        },
    }
}

fn file_input(of: FileInput, inputs: usize) -> i64 {
    match of {
        FileInput::Scratch => -1,
        FileInput::Input(at) => i64::from(at),
        FileInput::Action(at) => i64::from(at) + i64::try_from(inputs).unwrap_or(i64::MAX / 2),
    }
}

fn file_action(of: &FileAction, inputs: usize) -> pb::FileAction {
    use pb::file_action::Action;
    let owner = |chown: &Option<Chown>| chown.as_ref().map(|chown| self::chown(chown, inputs));
    let time = |at: Option<i64>| at.unwrap_or(-1);
    let action = match &of.kind {
        FileActionKind::Copy(copy) => Action::Copy(copy_action(copy, owner(&copy.owner))),
        FileActionKind::Mkfile(file) => Action::Mkfile(pb::FileActionMkFile {
            path: file.path.clone(),
            mode: mode(file.mode),
            data: file.data.clone(),
            owner: owner(&file.owner),
            timestamp: time(file.timestamp),
        }),
        FileActionKind::Mkdir(dir) => Action::Mkdir(pb::FileActionMkDir {
            path: dir.path.clone(),
            mode: mode(dir.mode),
            make_parents: dir.make_parents,
            owner: owner(&dir.owner),
            timestamp: time(dir.timestamp),
        }),
        FileActionKind::Rm(rm) => Action::Rm(pb::FileActionRm {
            path: rm.path.clone(),
            allow_not_found: rm.allow_not_found,
            allow_wildcard: rm.allow_wildcard,
        }),
        FileActionKind::Symlink(link) => Action::Symlink(pb::FileActionSymlink {
            oldpath: link.target.clone(),
            newpath: link.path.clone(),
            owner: owner(&link.owner),
            timestamp: time(link.timestamp),
        }),
    };
    pb::FileAction {
        input: file_input(of.input, inputs),
        secondary_input: file_input(of.secondary, inputs),
        output: index(of.output),
        action: Some(action),
    }
}

fn copy_action(copy: &CopyAction, owner: Option<pb::ChownOpt>) -> pb::FileActionCopy {
    let (mode, mode_str) = match &copy.mode {
        CopyMode::Keep => (-1, String::new()),
        CopyMode::Bits(bits) => (mode(*bits), String::new()),
        CopyMode::Symbolic(text) => (0, text.clone()),
    };
    pb::FileActionCopy {
        src: copy.src.clone(),
        dest: copy.dest.clone(),
        owner,
        mode,
        follow_symlink: copy.follow_symlink,
        dir_copy_contents: copy.dir_copy_contents,
        attempt_unpack_docker_compatibility: copy.attempt_unpack,
        create_dest_path: copy.create_dest_path,
        allow_wildcard: copy.allow_wildcard,
        allow_empty_wildcard: copy.allow_empty_wildcard,
        timestamp: copy.timestamp.unwrap_or(-1),
        include_patterns: copy.include_patterns.clone(),
        exclude_patterns: copy.exclude_patterns.clone(),
        always_replace_existing_dest_paths: copy.always_replace_existing_dest_paths,
        mode_str,
        required_paths: copy.required_paths.clone(),
    }
}

fn mode(bits: u32) -> i32 {
    i32::try_from(bits).unwrap_or(i32::MAX)
}

fn chown(of: &Chown, inputs: usize) -> pb::ChownOpt {
    let one = |who: &Option<UserOrGroup>| {
        who.as_ref().map(|who| pb::UserOpt {
            user: Some(match who {
                UserOrGroup::Name { name, input } => pb::user_opt::User::ByName(pb::NamedUserOpt {
                    name: name.clone(),
                    input: file_input(*input, inputs),
                }),
                UserOrGroup::Id(id) => pb::user_opt::User::ById(*id),
            }),
        })
    };
    pb::ChownOpt { user: one(&of.user), group: one(&of.group) }
}
