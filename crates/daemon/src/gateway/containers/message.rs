//! What a front end says of a container and of a process, in the terms of graphs. Pure. Start with [`container`] and
//! [`process`].

use bollard_buildkit_proto::moby::buildkit::v1::frontend::{InitMessage, NewContainerRequest};
use bollard_buildkit_proto::pb;
use stave_llb::{
    ContentCache, ExecOp, HostIp, Mount, MountOwner, NetMode, ProxyEnv, SecretEnv, SecurityMode, Sharing,
    Ulimit,
};

use super::is_repeated;
use crate::failure::Failure;

/// The mounts and the network of a container, and the results that the mounts show, in the order of inputs.
pub(super) fn container(request: &NewContainerRequest) -> Result<(ExecOp, Vec<String>), Failure> {
    let mut results: Vec<String> = Vec::new();
    let mut mounts = Vec::with_capacity(request.mounts.len());
    for mount in &request.mounts {
        mounts.push(of_mount(mount, &mut results)?);
    }
    if !mounts.iter().any(|mount| mount.target() == "/") {
        return Err(Failure::Value("container requires a root mount".to_owned()));
    }
    if is_repeated(&mounts) {
        return Err(Failure::Value("two mounts at the same place".to_owned()));
    }
    let op = ExecOp {
        mounts,
        network: match pb::NetMode::try_from(request.network) {
            Ok(pb::NetMode::Host) => NetMode::Host,
            Ok(pb::NetMode::None) => NetMode::None,
            Ok(pb::NetMode::Unset) => NetMode::Default,
            Err(_) => return Err(Failure::Value(format!("unknown network mode {}", request.network))),
        },
        hostname: request.hostname.clone(),
        extra_hosts: hosts(&request.extra_hosts),
        ..ExecOp::default()
    };
    Ok((op, results))
}

fn of_mount(mount: &pb::Mount, results: &mut Vec<String>) -> Result<Mount, Failure> {
    let mut input = || match mount.result_id.as_str() {
        "" => None,
        id => {
            let place = results.iter().position(|known| known == id).unwrap_or_else(|| {
                results.push(id.to_owned());
                results.len() - 1
            });
            u32::try_from(place).ok()
        }
    };
    let target = mount.dest.clone();
    let selector = mount.selector.clone();
    let readonly = mount.readonly;
    let kind = pb::MountType::try_from(mount.mount_type);
    Ok(match kind {
        Ok(pb::MountType::Bind) => {
            let input = input();
            Mount::Bind {
                target,
                input,
                selector,
                readonly,
                output: None,
                content_cache: ContentCache::Default,
            }
        }
        Ok(pb::MountType::Cache) => {
            let option = mount.cache_opt.clone().unwrap_or_default();
            let sharing = match option.sharing() {
                pb::CacheSharingOpt::Shared => Sharing::Shared,
                pb::CacheSharingOpt::Private => Sharing::Private,
                pb::CacheSharingOpt::Locked => Sharing::Locked,
            };
            let id = if option.id.is_empty() { target.clone() } else { option.id };
            Mount::Cache { target, input: input(), selector, readonly, id, sharing }
        }
        Ok(pb::MountType::Tmpfs) => {
            let size = mount.tmpfs_opt.map_or(0, |option| option.size);
            Mount::Tmpfs { target, size, readonly }
        }
        Ok(pb::MountType::Secret) => {
            let option = mount.secret_opt.clone().unwrap_or_default();
            let owner = MountOwner { uid: option.uid, gid: option.gid, mode: option.mode };
            Mount::Secret { target, id: option.id, owner, optional: option.optional }
        }
        Ok(pb::MountType::Ssh) => {
            let option = mount.ssh_opt.clone().unwrap_or_default();
            let owner = MountOwner { uid: option.uid, gid: option.gid, mode: option.mode };
            Mount::Ssh { target, id: option.id, owner, optional: option.optional }
        }
        Err(_) => return Err(Failure::Value(format!("unknown mount type {}", mount.mount_type))),
    })
}

/// The process that a message wants.
pub(super) fn process(message: InitMessage) -> Result<ExecOp, Failure> {
    let security = match pb::SecurityMode::try_from(message.security) {
        Ok(pb::SecurityMode::Sandbox) => SecurityMode::Sandbox,
        Ok(pb::SecurityMode::Insecure) => SecurityMode::Insecure,
        Err(_) => return Err(Failure::Value(format!("invalid security mode {}", message.security))),
    };
    let meta = message.meta.unwrap_or_default();
    if meta.args.is_empty() {
        return Err(Failure::Value("no command specified".to_owned()));
    }
    let limit = |limit: pb::Ulimit| Ulimit { name: limit.name, soft: limit.soft, hard: limit.hard };
    let secret =
        |secret: pb::SecretEnv| SecretEnv { id: secret.id, name: secret.name, optional: secret.optional };
    let proxies = |env: pb::ProxyEnv| ProxyEnv {
        http_proxy: env.http_proxy,
        https_proxy: env.https_proxy,
        ftp_proxy: env.ftp_proxy,
        no_proxy: env.no_proxy,
        all_proxy: env.all_proxy,
    };
    Ok(ExecOp {
        args: meta.args,
        env: meta.env,
        cwd: meta.cwd,
        user: meta.user,
        ulimits: meta.ulimit.into_iter().map(limit).collect(),
        proxy_env: meta.proxy_env.map(proxies),
        security,
        secret_env: message.secretenv.into_iter().map(secret).collect(),
        ..ExecOp::default()
    })
}

/// Where programs are looked for that name no place, if not where this system does; `None` where it does so there.
pub(super) fn path_of(platform: Option<&pb::Platform>) -> Option<&'static str> {
    const WINDOWS: &str = r"c:\Windows\System32;c:\Windows;C:\Windows\System32\WindowsPowerShell\v1.0";
    platform.is_some_and(|platform| platform.os == "windows").then_some(WINDOWS)
}

fn hosts(hosts: &[pb::HostIp]) -> Vec<HostIp> {
    hosts.iter().map(|host| HostIp { host: host.host.clone(), ip: host.ip.clone() }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(dest: &str, result: &str, kind: pb::MountType) -> pb::Mount {
        pb::Mount {
            dest: dest.to_owned(),
            result_id: result.to_owned(),
            mount_type: kind.into(),
            ..pb::Mount::default()
        }
    }

    #[track_caller]
    fn check(mounts: &[pb::Mount], expected: Result<&[&str], &str>) {
        let request = NewContainerRequest { mounts: mounts.to_vec(), ..NewContainerRequest::default() };
        let found = container(&request).map(|(_, results)| results).map_err(|failure| failure.to_string());
        let expected = expected.map(|ids| ids.iter().map(|id| (*id).to_owned()).collect::<Vec<_>>());
        assert_eq!(found, expected.map_err(str::to_owned));
    }

    #[test]
    fn results_are_inputs_once_each() {
        let bind = |dest: &str, result: &str| mount(dest, result, pb::MountType::Bind);
        check(&[bind("/", "a"), bind("/b", "b"), bind("/c", "a")], Ok(&["a", "b"]));
        check(&[bind("/", ""), mount("/t", "x", pb::MountType::Tmpfs)], Ok(&[]));
        check(&[bind("/b", "b")], Err("container requires a root mount"));
        check(&[bind("/", "a"), bind("/", "b")], Err("two mounts at the same place"));
        let strange = pb::Mount { mount_type: 99, ..bind("/", "a") };
        check(&[strange], Err("unknown mount type 99"));
    }

    #[test]
    fn programs_of_another_system_are_elsewhere() {
        let of = |os: &str| path_of(Some(&pb::Platform { os: os.to_owned(), ..pb::Platform::default() }));
        assert_eq!((of("linux"), of(""), path_of(None)), (None, None, None));
        assert!(of("windows").expect("is another").starts_with(r"c:\Windows\System32;"));
    }

    #[test]
    fn a_process_needs_a_program() {
        assert!(process(InitMessage::default()).is_err());
        let meta = pb::Meta { args: vec!["true".to_owned()], ..pb::Meta::default() };
        let message = InitMessage { meta: Some(meta), ..InitMessage::default() };
        assert_eq!(process(message.clone()).expect("is one").args, ["true"]);
        assert!(process(InitMessage { security: 7, ..message }).is_err());
    }
}
