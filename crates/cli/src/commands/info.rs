//! `stave info`: what this machine lets the program do, and what would lift what it does not.
//!
//! Everything is found out as a build finds it out: the namespaces are entered, an overlay is tried in the state
//! directory. Nothing here decides anything.

use std::path::PathBuf;

use serde_json::{Value, json};
use stave_sandbox::{
    BridgeError, BridgeNetwork, CgroupHierarchy, IdMap, Tier, Unlimited, UserNetworkProgram,
};
use stave_store::Store;

use super::Form;
use crate::output::say;
use crate::report::Failure;
use crate::runtime::with_store;
use crate::state::GlobalOptions;

/// Show what this machine offers builds: privileges, snapshots, limits, networks
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Output form: `table` or `json`
    #[arg(short, long, value_name = "FORM")]
    format: Option<Form>,
}

/// `stave info`
pub(crate) fn run(arguments: &Arguments, global: &GlobalOptions) -> Result<u8, Failure> {
    with_store(global, |store| {
        let facts = Facts::gather(store, global)?;
        match arguments.format {
            Some(Form::Json) => say!("{}", facts.json()),
            _ => facts.lines().iter().for_each(|line| say!("{line}")),
        }
        Ok(0)
    })
}

/// One thing the machine offers.
struct Fact {
    /// What is there, in a word or two.
    value: String,
    /// Why it is not more.
    why: Option<String>,
    /// What would make it more.
    lift: Vec<String>,
}

impl Fact {
    fn plain(value: impl Into<String>) -> Self {
        Self { value: value.into(), why: None, lift: Vec::new() }
    }

    fn because(self, why: impl Into<String>) -> Self {
        Self { why: Some(why.into()), ..self }
    }

    fn lifted_by(mut self, lift: impl Into<String>) -> Self {
        self.lift.push(lift.into());
        self
    }
}

struct Facts {
    root: PathBuf,
    kernel: String,
    cpus: usize,
    memory: Option<u64>,
    /// Title, key and what there is.
    facts: Vec<(&'static str, &'static str, Fact)>,
    capabilities: Vec<&'static str>,
}

impl Facts {
    fn gather(store: &Store, global: &GlobalOptions) -> Result<Self, Failure> {
        let uname = rustix::system::uname();
        let mut facts = vec![("Privileges", "Privileges", privileges(global.tier.as_ref()))];
        // Without namespaces there is nothing the rest could be about.
        if global.tier.is_some() {
            facts.push(("Snapshots", "Snapshots", snapshots(store)?));
            facts.push(("Process sandbox", "ProcessSandbox", processes()));
            facts.push(("Cgroup version", "Cgroups", control_groups()));
            facts.push(("Networks", "Networks", networks()));
        }
        Ok(Self {
            root: store.root().to_owned(),
            kernel: uname.release().to_string_lossy().into_owned(),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            memory: total_memory(),
            facts,
            capabilities: stave_sandbox::granted_capabilities(),
        })
    }

    fn lines(&self) -> Vec<String> {
        let platform = stave_oci::Platform::host();
        let mut lines = vec![
            format!("Version: {}", env!("CARGO_PKG_VERSION")),
            format!("State Directory: {}", self.root.display()),
            format!("Kernel Version: {}", self.kernel),
            format!("OSType: {}", platform.os),
            format!("Architecture: {}", platform.architecture),
            format!("CPUs: {}", self.cpus),
        ];
        lines.extend(self.memory.map(|memory| format!("Total Memory: {}", crate::format::size(memory))));
        for (title, _, fact) in &self.facts {
            lines.push(format!("{title}: {}", fact.value));
            lines.extend(fact.why.iter().map(|why| format!("  why: {why}")));
            lines.extend(fact.lift.iter().map(|lift| format!("  lifted by: {lift}")));
        }
        lines.push(format!("Capabilities: {}", self.capabilities.join(" ")));
        lines
    }

    fn json(&self) -> Value {
        let platform = stave_oci::Platform::host();
        let mut object = json!({
            "Version": env!("CARGO_PKG_VERSION"),
            "StateDirectory": self.root,
            "KernelVersion": self.kernel,
            "OSType": platform.os,
            "Architecture": platform.architecture,
            "NCPU": self.cpus,
            "MemTotal": self.memory,
            "Capabilities": self.capabilities,
        });
        for (_, key, fact) in &self.facts {
            object[*key] = json!({"Value": fact.value, "Why": fact.why, "LiftedBy": fact.lift});
        }
        object
    }
}

fn privileges(tier: Option<&Tier>) -> Fact {
    let restricted = |fact: Fact| stave_sandbox::restrictions().into_iter().fold(fact, Fact::lifted_by);
    match tier {
        Some(Tier::Root) => Fact::plain("root"),
        Some(Tier::AllIds) => Fact::plain("user namespace with every id of this container")
            .because("root without CAP_SYS_ADMIN")
            .lifted_by("`--privileged`, or `--cap-add SYS_ADMIN`, for the container; nothing is gained but less to do"),
        Some(Tier::Chroot { reason }) => restricted(
            Fact::plain("root of this container, without namespaces: steps are confined by chroot alone")
                .because(format!("{reason}; steps see this container's processes and network, have no /proc, and mounts are copies"))
                .lifted_by("a container whose filter lets `unshare` and `mount` through: `--security-opt seccomp=unconfined`"),
        ),
        Some(Tier::SubordinateIds) => {
            let ids = IdMap::current().uid_count();
            Fact::plain(format!("user namespace with {ids} ids")).because("an ordinary user")
        }
        Some(Tier::SingleId { reason }) => restricted(
            Fact::plain("user namespace with a single id: other owners are recorded beside the files")
                .because(reason.clone())
                .lifted_by(
                    "install `newuidmap` (packages uidmap, shadow-utils) and give the user ranges in /etc/subuid \
                     and /etc/subgid: `usermod --add-subuids 100000-165535 --add-subgids 100000-165535 USER`",
                ),
        ),
        None => restricted(
            Fact::plain("none: images can be listed, but nothing can be built or run")
                .because("no namespaces can be made here"),
        ),
    }
}

fn snapshots(store: &Store) -> Result<Fact, Failure> {
    if !stave_sandbox::has_namespaces() {
        return Ok(Fact::plain("a copy of its files for each step").because("nothing can be mounted"));
    }
    let kind = if IdMap::current().is_initial() { "overlay" } else { "overlay (userxattr)" };
    let scratch = store.scratch_dir().map_err(|error| Failure::new(&error))?;
    let refused = stave_sandbox::upper_refusal(scratch.path());
    Ok(match refused.unwrap_or_else(Some) {
        None => Fact::plain(kind),
        Some(error) => Fact::plain(format!("{kind}, changes in memory until they are committed"))
            .because(format!("the state directory cannot hold an overlay's changes: {error}"))
            .lifted_by("put the state directory (`--root`) on a volume: ext4, xfs, btrfs or tmpfs"),
    })
}

fn processes() -> Fact {
    if !stave_sandbox::has_namespaces() {
        return Fact::plain("another root, fewer capabilities, a filter, and nothing else")
            .because("no namespaces can be made here");
    }
    if stave_sandbox::has_whole_proc() {
        return Fact::plain("own /proc");
    }
    Fact::plain("this container's /proc, which shows its processes")
        .because("parts of /proc are hidden here, so the kernel refuses a user namespace a whole one")
        .lifted_by("`--security-opt systempaths=unconfined` (podman: `unmask=ALL`; Kubernetes: `procMount: Unmasked`)")
}

fn control_groups() -> Fact {
    let hierarchy = CgroupHierarchy::detect();
    let version = match hierarchy {
        CgroupHierarchy::V2 => "2",
        CgroupHierarchy::V1 => "1",
        CgroupHierarchy::Hybrid => "1 (hybrid)",
        CgroupHierarchy::Absent => return Fact::plain("none").because("no control groups are mounted here"),
    };
    limits(version, hierarchy == CgroupHierarchy::V2, &stave_sandbox::missing_controllers())
}

/// Of what there can be limits.
fn limits(version: &str, is_unified: bool, missing: &[Unlimited]) -> Fact {
    let Some(first) = missing.first() else { return Fact::plain(version) };
    let names: Vec<&str> = missing.iter().map(|one| one.controller).collect();
    let has_none = ["memory", "cpu", "cpuset", "pids"].iter().all(|name| names.contains(name));
    let fact = match has_none {
        true => Fact::plain(format!("{version}, limits cannot be set")),
        false => Fact::plain(format!("{version}, without limits of {}", names.join(", "))),
    };
    // What would help is a line of its own here.
    let why = first.reason.split(": `").next().unwrap_or(&first.reason);
    let has_help = why != first.reason;
    let fact = fact.because(why);
    match (is_unified, has_none) {
        (true, true) if !has_help => fact,
        (true, true) => fact.lifted_by("a delegated group: `systemd-run --user --scope -p Delegate=yes stave …`"),
        (true, false) => fact.lifted_by(
            "`Delegate=cpu cpuset io memory pids` in a drop-in of `user@.service`, or of the service it runs in",
        ),
        (false, _) => fact.lifted_by("groups of this user's own to start it in: `cgcreate -a`, `cgexec`"),
    }
}

/// What `--network` takes here. The bridge is really made, and taken down again.
fn networks() -> Fact {
    if !stave_sandbox::has_namespaces() {
        return Fact::plain("host").because("no namespaces can be made here");
    }
    let mut names = vec!["host", "none"];
    let programs = UserNetworkProgram::ALL.into_iter();
    let (usable, refused): (Vec<_>, Vec<_>) = programs.partition(|program| program.refusal().is_none());
    let bridge = BridgeNetwork::start().and_then(|bridge| {
        bridge.take()?;
        Ok(bridge.facts().without_v6)
    });
    let by_program = usable.first().map(|program| program.name());
    if bridge.is_ok() || (matches!(bridge, Err(BridgeError::Unprivileged)) && by_program.is_some()) {
        names.push("bridge");
    }
    names.extend(usable.iter().map(|program| program.name()));
    let fact = Fact::plain(names.join(" "));
    match (&bridge, by_program) {
        (Ok(None), _) => fact,
        (Ok(Some(without)), _) => fact.because(format!("`bridge` is without IPv6: {without}")),
        (Err(BridgeError::Unprivileged), Some(program)) => {
            fact.because(format!("an ordinary user cannot make a bridge: `bridge` is `{program}`"))
        }
        (Err(error), _) => {
            let refusals = refused.iter().filter_map(|program| program.refusal());
            let mut reasons: Vec<String> =
                std::iter::once(crate::report::chain(error)).chain(refusals).collect();
            // Both programs need the same device.
            reasons.dedup();
            let fact = fact.because(format!("no `bridge`: {}", reasons.join("; ")));
            let fact = error.remedy().into_iter().fold(fact, Fact::lifted_by);
            let device = std::fs::File::options().read(true).write(true).open("/dev/net/tun");
            match (error, device) {
                (BridgeError::Unprivileged, Err(_)) => {
                    fact.lifted_by("let the user open /dev/net/tun: `chmod 666 /dev/net/tun`")
                }
                _ => fact,
            }
        }
    }
}

/// Bytes of memory, from `/proc/meminfo`.
fn total_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_limited_is_named() {
        let missing = |names: &[&'static str]| -> Vec<Unlimited> {
            names.iter().map(|name| Unlimited { controller: name, reason: format!("no {name}") }).collect()
        };
        let said = |fact: Fact| (fact.value, fact.why);
        assert_eq!(said(limits("2", true, &[])), ("2".to_owned(), None));
        let some = limits("2", true, &missing(&["cpu", "cpuset"]));
        assert_eq!(said(some), ("2, without limits of cpu, cpuset".to_owned(), Some("no cpu".to_owned())));
        let none = limits("1", false, &missing(&["memory", "cpu", "cpuset", "pids"]));
        assert_eq!(said(none), ("1, limits cannot be set".to_owned(), Some("no memory".to_owned())));
        let reason = "nothing is delegated: `run` has one".to_owned();
        let all = ["memory", "cpu", "cpuset", "pids"]
            .map(|name| Unlimited { controller: name, reason: reason.clone() });
        let none = limits("2", true, &all);
        assert_eq!((none.lift.len(), none.why.as_deref()), (1, Some("nothing is delegated")));
        let all = all.map(|one| Unlimited { reason: "mounted read-only".to_owned(), ..one });
        let none = limits("2", true, &all);
        assert_eq!((none.lift.len(), none.why.as_deref()), (0, Some("mounted read-only")));
    }

    #[test]
    fn every_tier_is_said_with_what_lifts_it() {
        let single = privileges(Some(&Tier::SingleId { reason: "`newuidmap` is not installed".into() }));
        assert_eq!(single.why.as_deref(), Some("`newuidmap` is not installed"));
        assert!(single.lift[0].contains("uidmap"));
        assert_eq!(privileges(Some(&Tier::Root)).value, "root");
        assert!(privileges(None).value.starts_with("none"));
    }
}
