//! Leaving the host behind at the start of a process: a user namespace where privileges are wanting, a mount
//! namespace always.
//!
//! Owns the choice of the strongest way that works and the mapping of ids. Must not know sandboxes or stores.
//! Read [`Tier`] first, then [`enter`].
//!
//! The process enters the user namespace itself, so that its id, terminal and parent stay what they are and nothing
//! has to be kept alive beside it. Who may write the maps must be outside, so a child is forked before: it waits,
//! writes the maps (or has `newuidmap` write them) and ends. All this happens while the process has one thread.

mod ranges;

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::mount::MountPropagationFlags;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::thread::UnshareFlags;
use thiserror::Error;

use crate::capability::Capability;
use crate::sys::{self, Cloned};
use ranges::SubordinateRange;

/// Most ranges of subordinate ids that are mapped: the kernel takes 340 lines.
const MAX_RANGES: usize = 300;

/// With what privileges this process works, strongest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tier {
    /// Those of the machine's (or the container's) root; no user namespace was made.
    Root,
    /// Root of a user namespace that has every id there was before: root of a container, without `CAP_SYS_ADMIN`.
    AllIds,
    /// Root of a user namespace with the user's subordinate ids.
    SubordinateIds,
    /// Root of a container that lets nobody make namespaces or mount: another root directory is all there is.
    Chroot {
        /// What was refused.
        reason: String,
    },
    /// Root of a user namespace that has no id but the user's own.
    SingleId {
        /// Why it has no more.
        reason: String,
    },
}

impl Tier {
    /// A word for programs.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::AllIds => "all-ids",
            Self::SubordinateIds => "subordinate-ids",
            Self::SingleId { .. } => "single-id",
            Self::Chroot { .. } => "chroot",
        }
    }
}

/// Why no namespaces could be entered.
#[derive(Debug, Error)]
pub enum EnterError {
    /// Only the calling thread would move.
    #[error("the process has {0} threads before it entered its namespaces")]
    Threads(usize),
    /// No user namespace.
    #[error("cannot create a user namespace")]
    UserNamespace(#[source] io::Error),
    /// No ids in it.
    #[error("cannot map the user's id into the user namespace")]
    Map(#[source] io::Error),
    /// No mount namespace.
    #[error("cannot enter a private mount namespace")]
    Mounts(#[source] io::Error),
}

/// Enters the namespaces this process needs in order to mount, as strong as they can be had. Must be called before
/// a second thread is started.
///
/// # Errors
/// When no way works.
pub fn enter() -> Result<Tier, EnterError> {
    let threads = fs::read_dir("/proc/self/task").map_err(EnterError::Mounts)?.count();
    if threads != 1 {
        return Err(EnterError::Threads(threads));
    }
    if is_privileged() && private_mounts().is_ok() {
        return Ok(Tier::Root);
    }
    match enter_user_namespace().and_then(|tier| private_mounts().map(|()| tier).map_err(EnterError::Mounts))
    {
        Err(error) if chroot_refusal().is_none() => {
            forgo_namespaces();
            let cause =
                std::error::Error::source(&error).map_or_else(String::new, |cause| format!(": {cause}"));
            Ok(Tier::Chroot { reason: format!("{error}{cause}") })
        }
        outcome => outcome,
    }
}

static WITHOUT_NAMESPACES: AtomicBool = AtomicBool::new(false);

/// Whether this process can make namespaces and mounts, as far as [`enter`] found out.
#[must_use]
pub fn has_namespaces() -> bool {
    !WITHOUT_NAMESPACES.load(Ordering::Relaxed)
}

/// From now on there are none.
pub(crate) fn forgo_namespaces() {
    WITHOUT_NAMESPACES.store(true, Ordering::Relaxed);
}

/// What root of a container needs in order to give a process another root, other files and another user.
const FOR_CHROOT: [Capability; 6] = [
    Capability::SysChroot,
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fowner,
    Capability::Setuid,
    Capability::Setgid,
];

/// Why this process cannot even change the root of its children; `None` if it can. Forks to find out, and must be
/// called before a second thread is started.
#[must_use]
pub fn chroot_refusal() -> Option<String> {
    let held = sys::permitted_capabilities().unwrap_or(crate::CapabilitySet::EMPTY);
    let missing: Vec<&str> =
        FOR_CHROOT.iter().filter(|capability| !held.contains(**capability)).map(|one| one.name()).collect();
    if !missing.is_empty() {
        return Some(format!("{} not held", missing.join(", ")));
    }
    if crate::IdMap::current().is_single() {
        return Some("only one user id".to_owned());
    }
    let tried = match sys::fork() {
        Ok(Cloned::Child) => sys::exit_now(i32::from(rustix::process::chroot("/").is_err())),
        Ok(Cloned::Parent(child)) => sys::reap_killed(std::os::fd::AsFd::as_fd(&child)),
        Err(error) => Err(error),
    };
    match tried {
        Ok(exit) if exit.status.success() => None,
        _ => Some("chroot(2) is refused".to_owned()),
    }
}

/// Whether this process may mount without a user namespace of its own.
#[must_use]
pub fn is_privileged() -> bool {
    sys::permitted_capabilities().is_ok_and(|held| held.contains(Capability::SysAdmin))
}

/// A mount namespace that receives the host's mounts but passes none on.
pub(crate) fn private_mounts() -> io::Result<()> {
    sys::unshare(UnshareFlags::NEWNS)?;
    let downstream = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    Ok(rustix::mount::mount_change("/", downstream)?)
}

/// How the ids are to be mapped.
enum Mapping {
    /// The forked child writes the maps as they are.
    Whole,
    /// `newuidmap` and `newgidmap` write them.
    Subordinate { users: Mapper, groups: Mapper },
    /// The process maps itself.
    Single { reason: String },
}

/// A program that writes a map, and what it is to write.
struct Mapper {
    program: PathBuf,
    ranges: Vec<SubordinateRange>,
}

impl Mapper {
    /// Maps 0 to `own` and the following ids to the ranges, one after the other.
    fn run(&self, process: u32, own: u32) -> io::Result<()> {
        let mut command = Command::new(&self.program);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        command.arg(process.to_string()).args(["0".to_owned(), own.to_string(), "1".to_owned()]);
        let mut next = 1;
        for range in &self.ranges {
            command.args([next, range.first, range.count].map(|number| number.to_string()));
            next += range.count;
        }
        let output = command.output()?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(io::Error::other(format!("{}: {said}", self.program.display())))
    }
}

impl Mapping {
    fn choose(uid: u32) -> Self {
        let held = sys::permitted_capabilities().unwrap_or(crate::CapabilitySet::EMPTY);
        if [Capability::Setuid, Capability::Setgid].iter().all(|capability| held.contains(*capability)) {
            return Self::Whole;
        }
        let mapper = |program: &str, file: &str| -> Result<Mapper, String> {
            let path = on_path(program).ok_or_else(|| format!("`{program}` is not installed"))?;
            let ranges = ranges::of_user(Path::new(file), uid);
            if ranges.is_empty() {
                return Err(format!("`{file}` has no range for the user"));
            }
            Ok(Mapper { program: path, ranges })
        };
        match (mapper("newuidmap", "/etc/subuid"), mapper("newgidmap", "/etc/subgid")) {
            (Ok(users), Ok(groups)) => Self::Subordinate { users, groups },
            (Err(reason), _) | (_, Err(reason)) => Self::Single { reason },
        }
    }
}

fn enter_user_namespace() -> Result<Tier, EnterError> {
    let ids = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let mapping = Mapping::choose(ids.0);
    if let Mapping::Single { reason } = mapping {
        sys::unshare(UnshareFlags::NEWUSER).map_err(EnterError::UserNamespace)?;
        map_single(ids).map_err(EnterError::Map)?;
        return Ok(Tier::SingleId { reason });
    }
    let helper = Outside::start(&mapping, ids).map_err(EnterError::Map)?;
    let entered = sys::unshare(UnshareFlags::NEWUSER).map_err(EnterError::UserNamespace);
    // Told even if it is not needed any more, so that it ends.
    let mapped = helper.finish(entered.is_ok());
    entered?;
    match (mapped, mapping) {
        (Ok(()), Mapping::Whole) => Ok(Tier::AllIds),
        (Ok(()), _) => Ok(Tier::SubordinateIds),
        (Err(error), _) => {
            map_single(ids).map_err(EnterError::Map)?;
            Ok(Tier::SingleId { reason: error.to_string() })
        }
    }
}

/// Maps 0 to this process's own ids. The kernel wants the groups fixed first, since a group may also take away.
fn map_single((uid, gid): (u32, u32)) -> io::Result<()> {
    let write = |name: &str, text: &str| fs::write(format!("/proc/self/{name}"), text);
    match write("uid_map", &format!("0 {uid} 1")) {
        // Written already: the helper failed half-way.
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => {}
        other => other?,
    }
    write("setgroups", "deny")?;
    write("gid_map", &format!("0 {gid} 1"))
}

/// Writes `map` as the identity, over exactly what the writer has.
fn map_whole(process: u32, name: &str) -> io::Result<()> {
    let own = fs::read_to_string(format!("/proc/self/{name}"))?;
    let mut text = String::new();
    for line in own.lines() {
        let mut fields = line.split_whitespace();
        if let (Some(inside), Some(count)) = (fields.next(), fields.nth(1)) {
            // A map of all there can be is how a process knows that it is in no user namespace.
            let count = count.parse::<u32>().map_err(io::Error::other)?.min(u32::MAX - 1);
            text.push_str(&format!("{inside} {inside} {count}\n"));
        }
    }
    fs::write(format!("/proc/{process}/{name}"), text)
}

/// The child that stays outside until the maps are written.
struct Outside {
    child: OwnedFd,
    order: OwnedFd,
    answer: OwnedFd,
}

impl Outside {
    fn start(mapping: &Mapping, (uid, gid): (u32, u32)) -> io::Result<Self> {
        let (listen, order) = pipe_with(PipeFlags::CLOEXEC)?;
        let (answer, reply) = pipe_with(PipeFlags::CLOEXEC)?;
        let process = std::process::id();
        match sys::fork()? {
            Cloned::Parent(child) => Ok(Self { child, order, answer }),
            Cloned::Child => {
                drop((order, answer));
                let mut go = [0];
                let told = fs::File::from(listen).read(&mut go).unwrap_or(0);
                if told == 1 && go[0] == b'y' {
                    let mapped = match mapping {
                        Mapping::Whole => {
                            map_whole(process, "uid_map").and_then(|()| map_whole(process, "gid_map"))
                        }
                        Mapping::Subordinate { users, groups } => {
                            users.run(process, uid).and_then(|()| groups.run(process, gid))
                        }
                        Mapping::Single { .. } => Ok(()),
                    };
                    let said = mapped.err().map_or_else(String::new, |error| error.to_string());
                    // An empty answer is a good one; nobody is left to hear that it could not be given.
                    let _heard = fs::File::from(reply).write_all(said.as_bytes());
                }
                sys::exit_now(0)
            }
        }
    }

    /// Has the maps written (or not), and waits for the child.
    fn finish(self, go: bool) -> io::Result<()> {
        fs::File::from(self.order).write_all(if go { b"y" } else { b"n" })?;
        let mut said = String::new();
        fs::File::from(self.answer).read_to_string(&mut said)?;
        sys::wait_readable(&self.child)?;
        let _reaped = sys::reap(std::os::fd::AsFd::as_fd(&self.child))?;
        let maps = fs::read_to_string("/proc/self/uid_map")?;
        match said.is_empty() && !maps.trim().is_empty() {
            true => Ok(()),
            false if said.is_empty() => Err(io::Error::other("the maps were not written")),
            false => Err(io::Error::other(said)),
        }
    }
}

/// Where a program is on the search path, or where it usually is.
pub(crate) fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/bin", "/bin", "/usr/local/bin", "/usr/sbin"].map(PathBuf::from);
    std::env::split_paths(&path)
        .filter(|directory| directory.is_absolute())
        .chain(usual)
        .map(|directory| directory.join(program))
        .find(|file| file.is_file())
}

/// What keeps this process from more than it has, in words that say what to do about it. Reads a few files.
#[must_use]
pub fn restrictions() -> Vec<String> {
    let number = |name: &str| {
        let text = fs::read_to_string(Path::new("/proc/sys").join(name)).ok()?;
        text.trim().parse::<u64>().ok()
    };
    let mut found = Vec::new();
    if number("kernel/unprivileged_userns_clone") == Some(0) {
        found.push(
            "unprivileged user namespaces are off: `sysctl -w kernel.unprivileged_userns_clone=1`".into(),
        );
    }
    if number("user/max_user_namespaces") == Some(0) {
        found.push("no user namespaces are allowed: `sysctl -w user.max_user_namespaces=15000`".into());
    }
    if number("kernel/apparmor_restrict_unprivileged_userns") == Some(1) {
        found.push(
            "AppArmor restricts unprivileged user namespaces: give stave a profile with `userns,`, or \
             `sysctl -w kernel.apparmor_restrict_unprivileged_userns=0`"
                .into(),
        );
    }
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    if status.lines().any(|line| line.split_whitespace().eq(["Seccomp:", "2"])) {
        found.push(
            "a system call filter is on (this is a container): where it forbids namespaces, start the container \
             with `--security-opt seccomp=unconfined`"
                .into(),
        );
    }
    if let Some(refusal) = chroot_refusal().filter(|_| !is_privileged()) {
        found.push(format!("without namespaces a container's root can build by chroot, but: {refusal}"));
    }
    found
}
