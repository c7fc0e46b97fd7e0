//! `cargo xtask test --rootless`: the integration tests again, as ordinary users and inside a container.
//!
//! Makes two users (one with subordinate ids, one without), gives them a copy of the program and of the tests, control
//! groups of their own and a small disk, and runs these as each; then once more in a container without privileges. All
//! three at once, since the tests mostly wait. The few tests that are left out are named with the reason, here and in
//! the output. Start with [`run`].

mod delegation;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use self::delegation::Delegation;
use crate::suite::Suite;
use crate::{Failure, machine};

/// Debian packages with what an ordinary user needs for more than one id.
const PACKAGES: &[&str] = &["uidmap", "passt", "slirp4netns"];

/// A part of tests' names, and why they are left out.
type LeftOut = (&'static str, &'static str);

/// What only root can run.
const NEEDS_ROOT: &[LeftOut] = &[
    ("architecture::", "looks at the sources, with cargo: once is enough"),
    ("chroot::", "requires root: starts containers whose filter lets nobody make namespaces"),
];

/// What needs more than one id.
const NEEDS_IDS: &[LeftOut] = &[
    (
        "copy_takes_owners_modes_patterns_and_ignore_files",
        "requires ids: looks at owners as a step sees them, and there is one",
    ),
    ("agents_are_lent_to_steps_that_ask_for_them", "requires ids: a socket belongs to the step's user"),
    (
        "an_insecure_step_has_nothing_masked_and_no_filter",
        "requires ids: one id needs a filter, by which owners are recorded",
    ),
];

/// What needs control groups of one's own.
const NEEDS_GROUPS: &[LeftOut] = &[
    ("a_step_beyond_its_memory_says_so", "requires control groups"),
    ("limits_are_seen_from_inside", "requires control groups"),
];

/// What needs more than a container without privileges has.
const NEEDS_A_MACHINE: &[LeftOut] = &[
    ("architecture::", "looks at the sources, with cargo: once is enough"),
    ("chroot::", "requires root: starts containers"),
    ("the_sandbox_hides_the_host", "the container's filter lets nobody set a host name"),
    ("an_insecure_step_has_nothing_masked_and_no_filter", "the container's own `/sys` is masked"),
    ("options_shape_the_process", OWN_SYS),
    ("run_takes_the_networks_that_build_takes", OWN_SYS),
    ("a_configured_network_is_the_default_and_the_hosts_takes_a_right", OWN_SYS),
    ("a_failed_step_is_entered_with_its_own_network", OWN_SYS),
    ("runc_runs_steps", OWN_PROC),
    ("crun_runs_steps", OWN_PROC),
    ("skopeo_and_podman_read_our_archives", OWN_PROC),
    ("another_engine_gets_only_what_it_lacks", OWN_PROC),
];

/// Why a container has no view of a step's network.
const OWN_SYS: &str = "the container's masked `/sys` keeps the kernel from showing another network's devices";
/// Why a container has no external runtimes, podman's among them.
const OWN_PROC: &str =
    "the container's masked `/proc` keeps the kernel from mounting a new one, which runtimes insist on";

/// What is enough to know that nothing is broken, where time is short: parts of names.
const CHOSEN: &[&str] = &["build::", "run::", "rootless::", "safety::", "outputs::"];

/// The folder for everything, below which every user may look.
const PLACE: &str = "/var/tmp/stave-rootless";

/// A user of the tests.
struct User {
    name: &'static str,
    subordinate: bool,
    id: u32,
}

/// Runs a choice of the tests, for a check that takes minutes.
pub(crate) fn run_chosen(suite: &Suite, registry: &str) -> Result<(), Failure> {
    run(suite, registry, CHOSEN)
}

/// Runs the tests whose names contain one of `filters` (all, if there is none) in every way an ordinary user has.
pub(crate) fn run(suite: &Suite, registry: &str, filters: &[&str]) -> Result<(), Failure> {
    machine::install(PACKAGES)?;
    let place = Place::make(suite)?;
    let mut settings = Vec::new();
    for (name, subordinate) in [("stave-test-ids", true), ("stave-test-one", false)] {
        settings.push(as_user(&place, &User::make(name, subordinate)?, registry)?);
    }
    settings.push(in_container(&place, registry)?);
    let outcomes: Vec<_> = std::thread::scope(|scope| {
        let running: Vec<_> =
            settings.into_iter().map(|setting| scope.spawn(move || setting.run(filters))).collect();
        running.into_iter().map(|thread| thread.join().map_err(|_| "a thread panicked")).collect()
    });
    let mut failed = Vec::new();
    for outcome in outcomes {
        let (name, said, passed) = outcome??;
        println!("{said}");
        failed.extend((!passed).then_some(name));
    }
    if failed.is_empty() { Ok(()) } else { Err(format!("tests failed {}", failed.join(" and ")).into()) }
}

/// One way to run the tests.
struct Setting {
    name: String,
    tests: Command,
    left_out: Vec<LeftOut>,
    delegation: Option<Delegation>,
}

impl Setting {
    /// Runs the tests: the setting's name, everything that was said, whether all passed.
    fn run(mut self, filters: &[&str]) -> Result<(String, String, bool), String> {
        use std::fmt::Write as _;
        let mut said = format!("integration tests {}\n", self.name);
        for (tests, reason) in &self.left_out {
            let _written = writeln!(said, "left out: {tests}: {reason}");
            self.tests.args(["--skip", tests]);
        }
        self.tests.args(filters).stdin(Stdio::null());
        let mut output = self.tests.output().map_err(|error| error.to_string())?;
        output.stdout.append(&mut output.stderr);
        said.push_str(&String::from_utf8_lossy(&output.stdout));
        drop(self.delegation);
        Ok((self.name, said, output.status.success()))
    }
}

/// As an ordinary user of the machine.
fn as_user(place: &Place, user: &User, registry: &str) -> Result<Setting, Failure> {
    let home = place.home(user)?;
    let small = place.small_disk(user.name, user.id)?;
    let delegation = Delegation::to(user.name, user.id);
    let mut left_out = NEEDS_ROOT.to_vec();
    if !user.subordinate {
        left_out.extend(NEEDS_IDS);
    }
    // The shell enters the groups as root, and then becomes the user.
    let mut tests = Command::new("sh");
    tests.args(["-c", "until [ \"$1\" = -- ]; do echo $$ > $1; shift; done; shift; exec \"$@\"", "sh"]);
    match &delegation {
        Ok(delegation) => drop(tests.args(delegation.entrances())),
        Err(reason) => {
            println!("no control groups for {}: {reason}", user.name);
            left_out.extend(NEEDS_GROUPS);
        }
    }
    let id = user.id.to_string();
    tests.args(["--", "setpriv", "--reuid", &id, "--regid", &id, "--clear-groups"]).arg(place.path("e2e"));
    tests
        .env_clear()
        .env("HOME", &home)
        .env("TMPDIR", &home)
        .env("USER", user.name)
        .env("XDG_RUNTIME_DIR", &home);
    tests.env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin").current_dir(&home);
    tests.env("STAVE_TEST_REGISTRY", registry).env("STAVE_TEST_PROGRAM", place.path("stave"));
    tests.env("STAVE_TEST_SMALL_DISK", small);
    let with = if user.subordinate { "with" } else { "without" };
    let name = format!("as {}, {with} subordinate ids", user.name);
    Ok(Setting { name, tests, left_out, delegation: delegation.ok() })
}

/// Inside a container of root's without privileges, where a user namespace is all there is.
fn in_container(place: &Place, registry: &str) -> Result<Setting, Failure> {
    let home = place.path("container");
    fs::create_dir_all(&home)?;
    let small = place.small_disk("container", 0)?;
    let mut tests = Command::new("podman");
    tests.args(["run", "--rm", "--runtime", "runc", "--network", "host", "--tmpfs", "/run:notmpcopyup"]);
    tests.args(["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=4096:4096"]);
    tests.arg("-v").arg(format!("{PLACE}:{PLACE}"));
    tests.arg("-v").arg(format!("{0}:{0}", small.display()));
    let variables = [
        ("HOME", home.display().to_string()),
        ("TMPDIR", home.display().to_string()),
        ("STAVE_TEST_REGISTRY", registry.to_owned()),
        ("STAVE_TEST_PROGRAM", place.path("stave").display().to_string()),
        ("STAVE_TEST_SMALL_DISK", small.display().to_string()),
    ];
    for (name, value) in variables {
        tests.arg("-e").arg(format!("{name}={value}"));
    }
    // The machine's own files as they are, under an overlay: every tool is there.
    tests.args(["--rootfs", "/:O"]).arg(place.path("e2e"));
    let left_out = NEEDS_A_MACHINE.iter().chain(NEEDS_GROUPS).copied().collect();
    let name = "inside a container without privileges".to_owned();
    Ok(Setting { name, tests, left_out, delegation: None })
}

/// The copies, removed on drop.
struct Place(PathBuf);

impl Place {
    fn make(suite: &Suite) -> Result<Self, Failure> {
        let place = Self(PLACE.into());
        place.clear();
        fs::create_dir_all(&place.0)?;
        fs::set_permissions(&place.0, fs::Permissions::from_mode(0o755))?;
        for (from, name) in [(&suite.stave, "stave"), (&suite.e2e, "e2e")] {
            fs::copy(from, place.path(name))?;
            fs::set_permissions(place.path(name), fs::Permissions::from_mode(0o755))?;
        }
        Ok(place)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// A folder that is the user's.
    fn home(&self, user: &User) -> Result<PathBuf, Failure> {
        let home = self.path(user.name);
        fs::create_dir_all(&home)?;
        std::os::unix::fs::chown(&home, Some(user.id), Some(user.id))?;
        Ok(home)
    }

    /// A disk of 24 MB that belongs to a user, to be filled.
    fn small_disk(&self, name: &str, owner: u32) -> Result<PathBuf, Failure> {
        let disk = self.path(&format!("small-{name}"));
        fs::create_dir_all(&disk)?;
        let options = format!("size=24m,uid={owner},gid={owner}");
        machine::run(Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(&disk))?;
        Ok(disk)
    }

    /// What the tests left may belong to subordinate ids, which only root may remove.
    fn clear(&self) {
        for entry in fs::read_dir(&self.0).into_iter().flatten().flatten() {
            end_pause(&entry.path());
            if entry.file_name().to_string_lossy().starts_with("small-") {
                // One that is not mounted is a plain folder, and goes with the rest.
                let _unmounted = Command::new("umount").arg(entry.path()).stderr(Stdio::null()).status();
            }
        }
        if let Err(error) = fs::remove_dir_all(&self.0)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            eprintln!("xtask: {} stays behind: {error}", self.0.display());
        }
    }
}

/// Ends the process that podman leaves behind for a user, below the folder for what runs.
fn end_pause(home: &Path) {
    let pid = fs::read_to_string(home.join("libpod/tmp/pause.pid")).unwrap_or_default();
    let is_podman = fs::read_to_string(format!("/proc/{}/comm", pid.trim()))
        .is_ok_and(|name| name.starts_with("podman") || name.starts_with("catatonit"));
    if is_podman {
        let _ended = Command::new("kill").arg(pid.trim()).status();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.clear();
    }
}

impl User {
    /// Makes the user if there is none of that name.
    fn make(name: &'static str, subordinate: bool) -> Result<Self, Failure> {
        let known = Command::new("id").args(["-u", name]).stderr(Stdio::null()).output()?;
        if !known.status.success() {
            machine::run(Command::new("useradd").args(["--user-group", "--no-create-home", name]))?;
        }
        let id = machine::read(Command::new("id").args(["-u", name]))?.trim().parse()?;
        let user = Self { name, subordinate, id };
        user.grant("/etc/subuid")?;
        user.grant("/etc/subgid")?;
        Ok(user)
    }

    /// Gives the user the range that nobody else has here, or takes away what `useradd` gave.
    fn grant(&self, file: &str) -> Result<(), Failure> {
        let text = fs::read_to_string(file).unwrap_or_default();
        let own = format!("{}:", self.name);
        let has = text.lines().any(|line| line.starts_with(&own));
        if has == self.subordinate {
            return Ok(());
        }
        let mut lines: Vec<String> =
            text.lines().filter(|line| !line.starts_with(&own)).map(str::to_owned).collect();
        if self.subordinate {
            lines.push(format!("{own}{}:65536", free_range(&text)));
        }
        Ok(fs::write(file, lines.join("\n") + "\n")?)
    }
}

/// The first id after every range that is granted.
fn free_range(granted: &str) -> u64 {
    let end = |line: &str| {
        let mut numbers = line.split(':').skip(1).map(str::parse::<u64>);
        Some(numbers.next()?.ok()? + numbers.next()?.ok()?)
    };
    granted.lines().filter_map(end).max().unwrap_or(0).max(100_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_follow_those_that_are_granted() {
        assert_eq!(free_range(""), 100_000);
        assert_eq!(free_range("a:100000:65536\nb:165536:65536\n"), 231_072);
        assert_eq!(free_range("broken\na:1:x\n"), 100_000);
    }
}
