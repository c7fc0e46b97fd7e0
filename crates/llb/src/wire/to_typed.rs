//! Protobuf messages to typed operations.
//!
//! Owns the checks of single fields: indices within the vertex's inputs, known enumeration values,
//! sizes that fit. Start with [`Reader::op`].

use std::collections::BTreeMap;

use bollard_buildkit_proto::pb;
use stave_oci::{Digest, Platform};

use super::{DefinitionError, MAX_NESTING, decode::from_message, newer::Passthrough};
use crate::{
    exec::{
        CdiDevice, ContentCache, ExecOp, HostIp, Mount, MountOwner, NetMode, ProxyEnv, SecretEnv,
        SecurityMode, Sharing, Ulimit,
    },
    file::{
        Chown, CopyAction, CopyMode, FileAction, FileActionKind, FileInput, FileOp, MkdirAction,
        MkfileAction, RmAction, SymlinkAction, UserOrGroup,
    },
    op::{BuildOp, DiffOp, MergeOp, Op, PassthroughOp},
    source::SourceOp,
};

type Read<T> = Result<T, DefinitionError>;

/// Reads the operation of one vertex.
pub(super) struct Reader<'a> {
    /// The vertex, for errors.
    pub(super) vertex: &'a Digest,
    /// How many inputs it has.
    pub(super) inputs: usize,
    /// How many definitions this one is inside of.
    pub(super) depth: usize,
}

pub(super) fn platform(of: pb::Platform) -> Platform {
    let filled = |text: String| Some(text).filter(|text| !text.is_empty());
    Platform {
        architecture: of.architecture,
        os: of.os,
        os_version: filled(of.os_version),
        os_features: of.os_features,
        variant: filled(of.variant),
    }
}

impl Reader<'_> {
    fn bad<T>(&self, field: &'static str, value: i64) -> Read<T> {
        Err(DefinitionError::Value { vertex: self.vertex.clone(), field, value })
    }

    fn input(&self, field: &'static str, value: i64) -> Read<Option<u32>> {
        match u32::try_from(value) {
            Ok(at) if (at as usize) < self.inputs => Ok(Some(at)),
            Err(_) if value == -1 => Ok(None),
            _ => self.bad(field, value),
        }
    }

    fn output(&self, value: i64) -> Read<Option<u32>> {
        match u32::try_from(value) {
            Ok(at) if (at as usize) < super::MAX_INPUTS => Ok(Some(at)),
            Err(_) if value == -1 => Ok(None),
            _ => self.bad("output", value),
        }
    }

    pub(super) fn op(&self, of: pb::op::Op) -> Read<Op> {
        Ok(match of {
            pb::op::Op::Source(source) => Op::Source(SourceOp::new(source.identifier, source.attrs)),
            pb::op::Op::Exec(exec) => Op::Exec(self.exec(exec)?),
            pb::op::Op::File(file) => Op::File(self.file(file)?),
            pb::op::Op::Merge(merge) => {
                let inputs = merge.inputs.iter().map(|input| self.input("merge input", input.input));
                Op::Merge(MergeOp { inputs: inputs.collect::<Read<_>>()? })
            }
            pb::op::Op::Diff(diff) => Op::Diff(DiffOp {
                lower: diff.lower.map_or(Ok(None), |lower| self.input("lower input", lower.input))?,
                upper: diff.upper.map_or(Ok(None), |upper| self.input("upper input", upper.input))?,
            }),
            pb::op::Op::Build(build) => Op::Build(self.build(build)?),
        })
    }

    pub(super) fn passthrough(&self, of: Passthrough) -> Read<Op> {
        if of.id.is_empty() || of.outputs.is_empty() {
            let (vertex, lacks) = (self.vertex.clone(), if of.id.is_empty() { "id" } else { "outputs" });
            return Err(DefinitionError::Passthrough { vertex, lacks });
        }
        let output = |at: &i64| match u32::try_from(*at) {
            Ok(index) if (index as usize) < self.inputs => Ok(index),
            _ => self.bad("passthrough output", *at),
        };
        Ok(Op::Passthrough(PassthroughOp {
            outputs: of.outputs.iter().map(output).collect::<Read<_>>()?,
            id: of.id,
        }))
    }

    fn build(&self, build: pb::BuildOp) -> Read<BuildOp> {
        let mut inputs = BTreeMap::new();
        for (name, input) in build.inputs {
            inputs.insert(name, self.input("build input", input.input)?);
        }
        let definition = match build.def {
            Some(_) if self.depth >= MAX_NESTING => return Err(DefinitionError::Nesting(MAX_NESTING)),
            Some(inner) => Some(Box::new(from_message(inner, self.depth + 1)?)),
            None => None,
        };
        Ok(BuildOp { builder: self.input("builder", build.builder)?, inputs, definition, attrs: build.attrs })
    }

    fn exec(&self, exec: pb::ExecOp) -> Read<ExecOp> {
        let meta = exec.meta.unwrap_or_default();
        let network = match pb::NetMode::try_from(exec.network) {
            Ok(pb::NetMode::Unset) => NetMode::Default,
            Ok(pb::NetMode::Host) => NetMode::Host,
            Ok(pb::NetMode::None) => NetMode::None,
            Err(_) => return self.bad("network", exec.network.into()),
        };
        let security = match pb::SecurityMode::try_from(exec.security) {
            Ok(pb::SecurityMode::Sandbox) => SecurityMode::Sandbox,
            Ok(pb::SecurityMode::Insecure) => SecurityMode::Insecure,
            Err(_) => {
                let (vertex, value) = (self.vertex.clone(), exec.security);
                return Err(DefinitionError::Security { vertex, value });
            }
        };
        let limit = |one: pb::Ulimit| Ulimit { name: one.name, soft: one.soft, hard: one.hard };
        let secret = |one: pb::SecretEnv| SecretEnv { id: one.id, name: one.name, optional: one.optional };
        let device = |one: pb::CdiDevice| CdiDevice { name: one.name, optional: one.optional };
        Ok(ExecOp {
            args: meta.args,
            env: meta.env,
            cwd: meta.cwd,
            user: meta.user,
            hostname: meta.hostname,
            ulimits: meta.ulimit.into_iter().map(limit).collect(),
            extra_hosts: meta
                .extra_hosts
                .into_iter()
                .map(|line| HostIp { host: line.host, ip: line.ip })
                .collect(),
            proxy_env: meta.proxy_env.map(proxy_env),
            valid_exit_codes: meta.valid_exit_codes,
            cgroup_parent: meta.cgroup_parent,
            remove_mount_stubs: meta.remove_mount_stubs_recursive,
            mounts: exec.mounts.into_iter().map(|mount| self.mount(mount)).collect::<Read<_>>()?,
            network,
            security,
            secret_env: exec.secretenv.into_iter().map(secret).collect(),
            devices: exec.cdi_devices.into_iter().map(device).collect(),
        })
    }

    fn mount(&self, of: pb::Mount) -> Read<Mount> {
        let Ok(kind) = pb::MountType::try_from(of.mount_type) else {
            return self.bad("mount type", of.mount_type.into());
        };
        let target = of.dest;
        Ok(match kind {
            pb::MountType::Bind => Mount::Bind {
                target,
                input: self.input("mount input", of.input)?,
                selector: of.selector,
                readonly: of.readonly,
                output: self.output(of.output)?,
                content_cache: match pb::MountContentCache::try_from(of.content_cache) {
                    Ok(pb::MountContentCache::Default) => ContentCache::Default,
                    Ok(pb::MountContentCache::On) => ContentCache::On,
                    Ok(pb::MountContentCache::Off) => ContentCache::Off,
                    Err(_) => return self.bad("content cache", of.content_cache.into()),
                },
            },
            pb::MountType::Cache => {
                let cache = of.cache_opt.unwrap_or_default();
                Mount::Cache {
                    target,
                    input: self.input("mount input", of.input)?,
                    selector: of.selector,
                    readonly: of.readonly,
                    id: cache.id,
                    sharing: match pb::CacheSharingOpt::try_from(cache.sharing) {
                        Ok(pb::CacheSharingOpt::Shared) => Sharing::Shared,
                        Ok(pb::CacheSharingOpt::Private) => Sharing::Private,
                        Ok(pb::CacheSharingOpt::Locked) => Sharing::Locked,
                        Err(_) => return self.bad("sharing", cache.sharing.into()),
                    },
                }
            }
            pb::MountType::Tmpfs => {
                let size = of.tmpfs_opt.map_or(0, |tmpfs| tmpfs.size);
                Mount::Tmpfs { target, size, readonly: of.readonly }
            }
            pb::MountType::Secret => {
                let pb::SecretOpt { id, uid, gid, mode, optional } = of.secret_opt.unwrap_or_default();
                Mount::Secret { target, id, owner: MountOwner { uid, gid, mode }, optional }
            }
            pb::MountType::Ssh => {
                let pb::SshOpt { id, uid, gid, mode, optional } = of.ssh_opt.unwrap_or_default();
                Mount::Ssh { target, id, owner: MountOwner { uid, gid, mode }, optional }
            }
        })
    }

    fn file(&self, file: pb::FileOp) -> Read<FileOp> {
        let mut actions = Vec::with_capacity(file.actions.len());
        for (before, action) in file.actions.into_iter().enumerate() {
            actions.push(self.file_action(action, before)?);
        }
        Ok(FileOp { actions })
    }

    /// An input of the action that has `before` actions before it.
    fn file_input(&self, field: &'static str, value: i64, before: usize) -> Read<FileInput> {
        let Ok(at) = usize::try_from(value) else {
            return if value == -1 { Ok(FileInput::Scratch) } else { self.bad(field, value) };
        };
        let index = |at: usize| u32::try_from(at).or_else(|_| self.bad(field, value));
        match at.checked_sub(self.inputs) {
            None => Ok(FileInput::Input(index(at)?)),
            Some(action) if action < before => Ok(FileInput::Action(index(action)?)),
            Some(_) => self.bad(field, value),
        }
    }

    fn file_action(&self, of: pb::FileAction, before: usize) -> Read<FileAction> {
        use pb::file_action::Action;
        let Some(action) = of.action else { return Err(DefinitionError::NoOperation(self.vertex.clone())) };
        let kind = match action {
            Action::Copy(copy) => FileActionKind::Copy(self.copy(copy)?),
            Action::Mkfile(file) => FileActionKind::Mkfile(MkfileAction {
                mode: self.mode(file.mode)?,
                owner: self.chown(file.owner)?,
                path: file.path,
                data: file.data,
                timestamp: time(file.timestamp),
            }),
            Action::Mkdir(dir) => FileActionKind::Mkdir(MkdirAction {
                mode: self.mode(dir.mode)?,
                owner: self.chown(dir.owner)?,
                path: dir.path,
                make_parents: dir.make_parents,
                timestamp: time(dir.timestamp),
            }),
            Action::Rm(rm) => FileActionKind::Rm(RmAction {
                path: rm.path,
                allow_not_found: rm.allow_not_found,
                allow_wildcard: rm.allow_wildcard,
            }),
            Action::Symlink(link) => FileActionKind::Symlink(SymlinkAction {
                owner: self.chown(link.owner)?,
                target: link.oldpath,
                path: link.newpath,
                timestamp: time(link.timestamp),
            }),
        };
        Ok(FileAction {
            input: self.file_input("action input", of.input, before)?,
            // Only a copy has one; other clients leave it at 0 elsewhere, which then means nothing.
            secondary: match kind {
                FileActionKind::Copy(_) => self.file_input("secondary input", of.secondary_input, before)?,
                _ => FileInput::Scratch,
            },
            output: self.output(of.output)?,
            kind,
        })
    }

    fn copy(&self, of: pb::FileActionCopy) -> Read<CopyAction> {
        let mode = match (of.mode, of.mode_str) {
            (_, text) if !text.is_empty() => CopyMode::Symbolic(text),
            (-1, _) => CopyMode::Keep,
            (bits, _) => CopyMode::Bits(self.mode(bits)?),
        };
        Ok(CopyAction {
            owner: self.chown(of.owner)?,
            src: of.src,
            dest: of.dest,
            mode,
            follow_symlink: of.follow_symlink,
            dir_copy_contents: of.dir_copy_contents,
            attempt_unpack: of.attempt_unpack_docker_compatibility,
            create_dest_path: of.create_dest_path,
            allow_wildcard: of.allow_wildcard,
            allow_empty_wildcard: of.allow_empty_wildcard,
            timestamp: time(of.timestamp),
            include_patterns: of.include_patterns,
            exclude_patterns: of.exclude_patterns,
            always_replace_existing_dest_paths: of.always_replace_existing_dest_paths,
            required_paths: of.required_paths,
        })
    }

    fn mode(&self, bits: i32) -> Read<u32> {
        u32::try_from(bits).or_else(|_| self.bad("mode", bits.into()))
    }

    fn chown(&self, of: Option<pb::ChownOpt>) -> Read<Option<Chown>> {
        let Some(of) = of else { return Ok(None) };
        Ok(Some(Chown { user: self.who(of.user)?, group: self.who(of.group)? }))
    }

    fn who(&self, of: Option<pb::UserOpt>) -> Read<Option<UserOrGroup>> {
        Ok(match of.and_then(|who| who.user) {
            None => None,
            Some(pb::user_opt::User::ById(id)) => Some(UserOrGroup::Id(id)),
            Some(pb::user_opt::User::ByName(named)) => Some(UserOrGroup::Name {
                input: self.file_input("owner input", named.input, 0)?,
                name: named.name,
            }),
        })
    }
}

fn proxy_env(of: pb::ProxyEnv) -> ProxyEnv {
    ProxyEnv {
        http_proxy: of.http_proxy,
        https_proxy: of.https_proxy,
        ftp_proxy: of.ftp_proxy,
        no_proxy: of.no_proxy,
        all_proxy: of.all_proxy,
    }
}

fn time(of: i64) -> Option<i64> {
    Some(of).filter(|at| *at != -1)
}
