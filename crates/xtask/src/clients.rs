//! Real clients of the daemon that this machine's release does not have: unpacked, not installed.
//!
//! Owns the copies below `target/clients`, which outlive a run. Start with [`buildx`].

use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::{Failure, machine};

/// The release of Debian that has the client.
const SUITE: &str = "trixie";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// The client in its package.
const BUILDX: &str = "usr/libexec/docker/cli-plugins/docker-buildx";

/// `docker-buildx`, which needs nothing else to drive a builder; fetched when it is not there. `None`, loudly, where
/// nobody has it: what it shows is not shown then.
pub(crate) fn buildx() -> Option<PathBuf> {
    let program = folder().join(BUILDX);
    if !program.is_file()
        && let Err(failure) = fetch("docker-buildx")
    {
        println!("xtask: docker-buildx is NOT THERE, and nothing is tested with it: {failure}");
        return None;
    }
    Some(program)
}

fn folder() -> PathBuf {
    crate::root().join("target/clients")
}

/// Where this machine has its own packages from.
fn mirror() -> Result<String, Failure> {
    let mut targets = Command::new("apt-get");
    targets.args(["indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", "Label: Debian"]);
    let found = machine::read(&mut targets)?;
    Ok(found.lines().next().ok_or("this machine has no packages of Debian")?.to_owned())
}

/// Unpacks a package of [`SUITE`] with lists of its own: what this machine has and knows stays as it is.
fn fetch(package: &str) -> Result<(), Failure> {
    let apt = folder().join("apt");
    for part in ["lists/partial", "cache/archives/partial"] {
        std::fs::create_dir_all(apt.join(part))?;
    }
    let sources = apt.join("sources.list");
    std::fs::write(&sources, format!("deb [signed-by={KEYRING}] {} {SUITE} main\n", mirror()?))?;
    let get = |words: &[&str]| {
        let mut command = Command::new("apt-get");
        command.arg("-q").current_dir(&apt).stdout(Stdio::null());
        for option in [
            format!("Dir::State::Lists={}", apt.join("lists").display()),
            format!("Dir::Cache={}", apt.join("cache").display()),
            format!("Dir::Etc::SourceList={}", sources.display()),
            "Dir::Etc::SourceParts=/nonexistent".to_owned(),
            "Dir::State::Status=/dev/null".to_owned(),
            // It may not write into this directory.
            "APT::Sandbox::User=root".to_owned(),
            "Acquire::Languages=none".to_owned(),
        ] {
            command.arg("-o").arg(option);
        }
        machine::run(command.args(words))
    };
    get(&["update"])?;
    get(&["download", package])?;
    for entry in std::fs::read_dir(&apt)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            machine::run(Command::new("dpkg-deb").arg("-x").arg(&path).arg(folder()))?;
        }
    }
    Ok(std::fs::remove_dir_all(&apt)?)
}
