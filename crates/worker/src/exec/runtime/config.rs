//! What a bundle says: a sandbox's specification as `config.json` of the OCI runtime specification.
//!
//! The file is checked against the specification's types before it is written. Read [`config`] first.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use serde::Deserialize as _;
use serde_json::{Value, json};
use stave_sandbox::{
    Capability, CapabilitySet, CgroupParent, IdMap, MountSpec, Network, Rlimit, RlimitResource, SandboxSpec,
    Security, oci_seccomp,
};

/// Mount points that every container has and that stay, as BuildKit leaves them.
const STANDARD: [&str; 3] = ["/proc", "/sys", "/dev"];

/// The configuration. Files in memory are written below `files`.
pub(super) fn config(
    spec: &SandboxSpec,
    name: &str,
    files: &Path,
    network: Option<&Path>,
) -> io::Result<Value> {
    let confined = spec.security == Security::Default;
    let mut linux = json!({ "namespaces": namespaces(spec, network), "resources": resources(spec)? });
    // Who cannot make groups needs none, unless something is limited.
    let is_limited = spec.cgroup.is_some() || spec.cgroup_parent != CgroupParent::Default;
    if is_limited || IdMap::current().is_initial() {
        linux["cgroupsPath"] = json!(group(spec, name));
    }
    if confined {
        linux["maskedPaths"] = json!(spec.masked_paths);
        linux["readonlyPaths"] = json!(spec.readonly_paths);
        linux["seccomp"] = oci_seccomp(spec.process.capabilities);
    }
    let devices = devices(spec)?;
    if !devices.is_empty() {
        linux["devices"] = json!(devices);
    }
    let config = json!({
        "ociVersion": "1.0.2",
        "root": { "path": "rootfs", "readonly": spec.readonly_root },
        "hostname": spec.hostname,
        "process": process(spec),
        "mounts": mounts(spec, files)?,
        "linux": linux,
    });
    // A value of a wrong form would be found by the runtime in other words.
    oci_spec::runtime::Spec::deserialize(&config).map_err(io::Error::other)?;
    Ok(config)
}

fn process(spec: &SandboxSpec) -> Value {
    let process = &spec.process;
    let held = match spec.security {
        Security::Default => process.capabilities,
        Security::Insecure => CapabilitySet::ALL,
    };
    let names: Vec<&str> =
        Capability::ALL.iter().filter(|one| held.contains(**one)).map(|one| one.name()).collect();
    // A user other than root starts with none, but may gain them by set-user-id programs.
    let effective = if process.uid == 0 { names.clone() } else { Vec::new() };
    json!({
        "terminal": false,
        "user": {
            "uid": process.uid, "gid": process.gid, "additionalGids": process.groups, "umask": process.umask,
        },
        "args": process.args,
        "env": process.env,
        "cwd": process.cwd,
        "capabilities": { "bounding": names, "permitted": effective, "effective": effective },
        "rlimits": process.rlimits.iter().map(rlimit).collect::<Vec<_>>(),
        "noNewPrivileges": process.no_new_privileges,
    })
}

fn rlimit(limit: &Rlimit) -> Value {
    let name = match limit.resource {
        RlimitResource::Core => "RLIMIT_CORE",
        RlimitResource::Cpu => "RLIMIT_CPU",
        RlimitResource::Data => "RLIMIT_DATA",
        RlimitResource::Fsize => "RLIMIT_FSIZE",
        RlimitResource::Locks => "RLIMIT_LOCKS",
        RlimitResource::Memlock => "RLIMIT_MEMLOCK",
        RlimitResource::Msgqueue => "RLIMIT_MSGQUEUE",
        RlimitResource::Nice => "RLIMIT_NICE",
        RlimitResource::Nofile => "RLIMIT_NOFILE",
        RlimitResource::Nproc => "RLIMIT_NPROC",
        RlimitResource::Rss => "RLIMIT_RSS",
        RlimitResource::Rtprio => "RLIMIT_RTPRIO",
        RlimitResource::Rttime => "RLIMIT_RTTIME",
        RlimitResource::Sigpending => "RLIMIT_SIGPENDING",
        RlimitResource::Stack => "RLIMIT_STACK",
    };
    json!({ "type": name, "soft": limit.soft, "hard": limit.hard })
}

/// The namespaces, of which `network` is one that is there already.
fn namespaces(spec: &SandboxSpec, network: Option<&Path>) -> Vec<Value> {
    let kinds = ["pid", "mount", "uts", "ipc"].map(|kind| json!({ "type": kind }));
    let network = match network {
        Some(path) => Some(json!({ "type": "network", "path": path })),
        None => (spec.network == Network::None).then(|| json!({ "type": "network" })),
    };
    kinds.into_iter().chain(network).collect()
}

/// Where the runtime makes the control group.
fn group(spec: &SandboxSpec, name: &str) -> String {
    match &spec.cgroup_parent {
        CgroupParent::Named(parent) => format!("/{}/{name}", parent.trim_matches('/')),
        CgroupParent::Default | CgroupParent::Within(_) => format!("/stave/{name}"),
    }
}

fn resources(spec: &SandboxSpec) -> io::Result<Value> {
    // Nothing may be used but what is allowed; the usual devices the runtime allows itself.
    let mut allowed = vec![json!({ "allow": spec.security == Security::Insecure, "access": "rwm" })];
    for (_, source) in nodes(spec) {
        let metadata = fs::metadata(source)?;
        let (major, minor) = numbers(metadata.rdev());
        allowed.push(json!({
            "allow": true, "type": kind(&metadata), "major": major, "minor": minor, "access": "rwm",
        }));
    }
    let mut resources = json!({ "devices": allowed });
    let Some(limits) = &spec.cgroup else { return Ok(resources) };
    if let Some(memory) = limits.memory {
        let swap = limits.memory_swap.map(|swap| i64::try_from(swap).unwrap_or(-1));
        resources["memory"] = json!({ "limit": memory, "swap": swap });
    }
    let mut cpu = serde_json::Map::new();
    if let Some(quota) = limits.cpu {
        cpu.insert("quota".to_owned(), json!(quota.quota_us));
        cpu.insert("period".to_owned(), json!(quota.period_us));
    }
    cpu.extend(limits.cpu_shares.map(|shares| ("shares".to_owned(), json!(shares))));
    cpu.extend(limits.cpuset_cpus.as_ref().map(|cpus| ("cpus".to_owned(), json!(cpus))));
    cpu.extend(limits.cpuset_mems.as_ref().map(|mems| ("mems".to_owned(), json!(mems))));
    if !cpu.is_empty() {
        resources["cpu"] = Value::Object(cpu);
    }
    if let Some(pids) = limits.pids {
        resources["pids"] = json!({ "limit": pids });
    }
    Ok(resources)
}

fn nodes(spec: &SandboxSpec) -> impl Iterator<Item = (&PathBuf, &PathBuf)> {
    spec.mounts.iter().filter_map(|mount| match mount {
        MountSpec::Device { source, target } => Some((target, source)),
        _ => None,
    })
}

fn devices(spec: &SandboxSpec) -> io::Result<Vec<Value>> {
    nodes(spec)
        .map(|(target, source)| {
            let metadata = fs::metadata(source)?;
            let (major, minor) = numbers(metadata.rdev());
            Ok(json!({
                "path": target, "type": kind(&metadata), "major": major, "minor": minor,
                "fileMode": metadata.mode() & 0o777, "uid": metadata.uid(), "gid": metadata.gid(),
            }))
        })
        .collect()
}

fn kind(metadata: &fs::Metadata) -> &'static str {
    use std::os::unix::fs::FileTypeExt as _;
    if metadata.file_type().is_block_device() { "b" } else { "c" }
}

fn numbers(device: u64) -> (u32, u32) {
    (rustix::fs::major(device), rustix::fs::minor(device))
}

fn mounts(spec: &SandboxSpec, files: &Path) -> io::Result<Vec<Value>> {
    let standard = |target: &str, kind: &str, options: &[&str]| {
        json!({
            "destination": target, "type": kind, "source": kind, "options": options,
        })
    };
    let sys: &[&str] = match spec.security {
        Security::Default => &["nosuid", "noexec", "nodev", "ro"],
        Security::Insecure => &["nosuid", "noexec", "nodev"],
    };
    let shm = format!("size={}", spec.shm_size);
    let mut pts = vec!["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"];
    // The group `tty` of every distribution, where it exists.
    pts.extend(IdMap::current().has_gid(5).then_some("gid=5"));
    let mut mounts = vec![
        standard("/proc", "proc", &["nosuid", "noexec", "nodev"]),
        standard("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        standard("/dev/pts", "devpts", &pts),
        standard("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", &shm]),
        standard("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
    ];
    // Who does not own the network may not mount a view of it, and shows the one that is there.
    mounts.push(match spec.network == Network::Host && !IdMap::current().is_initial() {
        true => json!({
            "destination": "/sys", "type": "none", "source": "/sys",
            "options": ["rbind", "nosuid", "noexec", "nodev", "ro"],
        }),
        false => standard("/sys", "sysfs", sys),
    });
    for (number, mount) in spec.mounts.iter().enumerate() {
        match mount {
            MountSpec::Bind { source, target, readonly, recursive } => {
                let mut options = vec![if *recursive { "rbind" } else { "bind" }, "rprivate"];
                options.push(if *readonly { "ro" } else { "rw" });
                mounts.push(bind(source, target, &options));
            }
            MountSpec::Tmpfs { target, size, mode } => {
                let mut options = vec!["nosuid".to_owned(), "nodev".to_owned(), format!("mode={mode:o}")];
                options.extend(size.map(|size| format!("size={size}")));
                mounts.push(json!({
                    "destination": target, "type": "tmpfs", "source": "tmpfs", "options": options,
                }));
            }
            MountSpec::File { target, contents, mode, uid, gid } => {
                let path = files.join(number.to_string());
                let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
                file.write_all(contents)?;
                std::os::unix::fs::chown(&path, Some(*uid), Some(*gid))?;
                fs::set_permissions(&path, fs::Permissions::from_mode(*mode))?;
                mounts.push(bind(&path, target, &["bind", "rprivate", "ro", "nosuid", "nodev", "noexec"]));
            }
            // Made by the runtime.
            MountSpec::Device { .. } => {}
        }
    }
    Ok(mounts)
}

fn bind(source: &Path, target: &Path, options: &[&str]) -> Value {
    json!({ "destination": target, "type": "bind", "source": source, "options": options })
}

/// Mount points the runtime will have to make in the root, parents first. A link on the way is followed by the runtime
/// inside the root, and what it makes there stays.
pub(super) fn missing(root: &Path, spec: &SandboxSpec) -> Vec<PathBuf> {
    let mut missing: Vec<PathBuf> = Vec::new();
    for mount in &spec.mounts {
        let mut at = PathBuf::from("/");
        for part in mount.target().components().skip(1) {
            at.push(part);
            if STANDARD.iter().any(|standard| at.starts_with(standard)) {
                break;
            }
            let inside = root.join(at.strip_prefix("/").unwrap_or(&at));
            match fs::symlink_metadata(&inside) {
                Ok(found) if found.is_symlink() => break,
                Ok(_) => {}
                Err(_) if missing.contains(&at) => {}
                Err(_) => missing.push(at.clone()),
            }
        }
    }
    missing
}

#[cfg(test)]
mod tests {
    use stave_sandbox::{CgroupLimits, OverlayRoot, Process, RootFs};

    use super::*;

    fn spec() -> SandboxSpec {
        let root = OverlayRoot {
            lower: Vec::new(),
            upper: "/u".into(),
            work: "/w".into(),
            volatile: true,
            stubs: None,
        };
        SandboxSpec::new(RootFs::Overlay(root), Process::new(vec!["true".into()]))
    }

    #[test]
    fn configs_are_those_of_the_specification() {
        let files = tempfile::tempdir().expect("a folder");
        let mut spec = spec();
        spec.cgroup = Some(CgroupLimits {
            memory: Some(64 << 20),
            memory_swap: Some(u64::MAX),
            pids: Some(10),
            cpu_shares: Some(512),
            ..CgroupLimits::default()
        });
        spec.mounts.push(MountSpec::Device { source: "/dev/zero".into(), target: "/dev/x".into() });
        spec.mounts.push(MountSpec::File {
            target: "/run/secrets/token".into(),
            contents: b"s3cr3t".to_vec(),
            mode: 0o400,
            uid: 0,
            gid: 0,
        });
        let config = config(&spec, "stave-1", files.path(), None).expect("a configuration");
        assert_eq!(config["linux"]["resources"]["memory"], json!({ "limit": 64 << 20, "swap": -1 }));
        assert_eq!(config["linux"]["devices"][0]["minor"], 5);
        assert_eq!(config["linux"]["namespaces"].as_array().map(Vec::len), Some(5));
        assert_eq!(config["linux"]["cgroupsPath"], "/stave/stave-1");
        assert!(!config.to_string().contains("s3cr3t"), "secrets are not in the file");
        assert_eq!(fs::read(files.path().join("1")).expect("the file"), b"s3cr3t");
    }

    #[test]
    fn what_the_runtime_makes_is_known() {
        let root = tempfile::tempdir().expect("a folder");
        fs::create_dir_all(root.path().join("run")).expect("creates");
        let mut spec = spec();
        for target in ["/run/secrets/a", "/run/secrets/b", "/dev/x", "/run"] {
            spec.mounts.push(MountSpec::Tmpfs { target: target.into(), size: None, mode: 0o755 });
        }
        let expected = ["/run/secrets", "/run/secrets/a", "/run/secrets/b"].map(PathBuf::from);
        assert_eq!(missing(root.path(), &spec), expected);
    }
}
