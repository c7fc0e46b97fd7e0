//! `cargo xtask test --rootless`: the integration tests again, as ordinary users and inside a container.
//!
//! Makes two users (one with subordinate ids, one without), gives them a copy of the program and of the tests, and runs
//! these as each; then once more in a container without privileges. Tests that need more than a user has are named
//! in [`NEEDS_ROOT`], each with the reason.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::suite::Suite;
use crate::{Failure, machine};

/// Debian packages with what an ordinary user needs for more than one id.
const PACKAGES: &[&str] = &["uidmap", "passt", "slirp4netns"];

/// Tests that only root can run, by a part of their name.
const NEEDS_ROOT: &[&str] = &[
    // The structure of the sources: once is enough, and cargo is not there.
    "architecture::",
    // Mounts a small file system of its own on the machine.
    "a_full_disk_is_one_clear_error",
    // Control groups that nobody delegated.
    "limits_are_seen_from_inside",
    "a_step_beyond_its_memory_says_so",
    // All of the machine's rights for a step, and its `/sys` to write to.
    "an_insecure_step_has_nothing_masked_and_no_filter",
    "rights_are_refused_unless_granted",
    // Other programs as root: an external runtime gets no user namespace from us.
    "runc_runs_steps",
    "crun_runs_steps",
    // A limit: the user's group has another number, or none, in the namespace that the daemon is in.
    "a_group_may_use_the_socket",
    // Containers of root's, with root's podman.
    "chroot::",
    // Nodes of devices and other users' files, which a user may not make outside of layers.
    "devices_are_never_usable",
    "a_directory_gets_the_root_file_system",
    // Other programs as root: they keep their state where only root writes.
    "interop::",
];

/// Tests that need more than one id: what they look at is an owner as a step sees it.
const NEEDS_IDS: &[&str] =
    &["copy_takes_owners_modes_patterns_and_ignore_files", "agents_are_lent_to_steps_that_ask_for_them"];

/// Tests that need more than a container without privileges has.
const NEEDS_A_MACHINE: &[&str] = &[
    // The image has no `systemd-socket-activate`.
    "a_socket_that_is_handed_over_is_served_and_stays",
    // Its filter lets nobody set a host name.
    "the_sandbox_hides_the_host",
    // Its hidden parts of `/sys` keep the kernel from showing another network's devices there.
    "options_shape_the_process",
];

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
    for (name, subordinate) in [("stave-test-ids", true), ("stave-test-one", false)] {
        let user = User::make(name, subordinate)?;
        println!(
            "integration tests as {name}, {} subordinate ids",
            if subordinate { "with" } else { "without" }
        );
        let home = place.home(&user)?;
        let mut tests = Command::new(place.path("e2e"));
        tests.uid(user.id).gid(user.id).env_clear();
        tests.env("HOME", &home).env("TMPDIR", &home).env("USER", name);
        tests.env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin").current_dir(&home);
        tests.env("STAVE_TEST_REGISTRY", registry).env("STAVE_TEST_PROGRAM", place.path("stave"));
        tests
            .env("XDG_RUNTIME_DIR", &home)
            .args(skipped(if subordinate { &[] } else { NEEDS_IDS }))
            .args(filters);
        machine::run(&mut tests)?;
    }
    in_container(&place, registry, filters)
}

fn skipped(more: &'static [&'static str]) -> impl Iterator<Item = &'static str> {
    NEEDS_ROOT.iter().chain(more).flat_map(|name| ["--skip", name])
}

/// Inside a container of root's without privileges, where a user namespace is all there is.
fn in_container(place: &Place, registry: &str, filters: &[&str]) -> Result<(), Failure> {
    println!("integration tests inside a container without privileges");
    let home = place.path("container");
    fs::create_dir_all(&home)?;
    let image = format!("{registry}/debian");
    let mut tests = Command::new("podman");
    tests.args(["run", "--rm", "--runtime", "runc", "--network", "host", "--tls-verify=false"]);
    tests.args(["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=4096:4096"]);
    tests.arg("-v").arg(format!("{PLACE}:{PLACE}"));
    let variables = [
        ("HOME", home.display().to_string()),
        ("TMPDIR", home.display().to_string()),
        ("STAVE_TEST_REGISTRY", registry.to_owned()),
        ("STAVE_TEST_PROGRAM", place.path("stave").display().to_string()),
    ];
    for (name, value) in variables {
        tests.arg("-e").arg(format!("{name}={value}"));
    }
    tests.arg(image).arg(place.path("e2e")).args(skipped(NEEDS_A_MACHINE)).args(filters);
    machine::run(&mut tests)
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

    /// What the tests left may belong to subordinate ids, which only root may remove.
    fn clear(&self) {
        if let Err(error) = fs::remove_dir_all(&self.0)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            eprintln!("xtask: {} stays behind: {error}", self.0.display());
        }
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
