//! This machine: Debian packages, running commands, the release binary.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::Failure;

/// Fails with a clear word unless this is root on a Debian-like machine.
pub(crate) fn require_root() -> Result<(), Failure> {
    let output = Command::new("id").arg("-u").output()?;
    if output.stdout.trim_ascii() == b"0" {
        return Ok(());
    }
    Err("this command mounts file systems and starts containers: run it as root".into())
}

/// Installs those Debian packages that are missing, with one `apt-get`.
pub(crate) fn install(packages: &[&str]) -> Result<(), Failure> {
    let missing: Vec<&str> = packages.iter().copied().filter(|package| !installed(package)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    eprintln!("xtask: installing {}", missing.join(" "));
    let environment = [("DEBIAN_FRONTEND", "noninteractive"), ("LC_ALL", "C.UTF-8")];
    run(Command::new("apt-get").args(["-q", "update"]).envs(environment).stdout(Stdio::null()))?;
    let mut install = Command::new("apt-get");
    install.args(["-q", "install", "-y", "--no-install-recommends"]).args(&missing).envs(environment);
    run(install.stdout(Stdio::null()))
}

fn installed(package: &str) -> bool {
    let output = Command::new("dpkg-query").args(["-W", "-f=${Status}", package]).output();
    output.is_ok_and(|output| output.stdout == b"install ok installed")
}

/// Says early that the disk is too small for what is about to be compiled for the first time: a compiler and a linker
/// that find it full say so late, and not plainly.
pub(crate) fn warn_of_room(gigabytes: u64) -> Result<(), Failure> {
    let root = crate::root();
    if root.join("target/images").exists() {
        return Ok(());
    }
    let free = read(Command::new("df").args(["--output=avail", "-B1G"]).arg(&root))?;
    let free = free.lines().next_back().and_then(|line| line.trim().parse::<u64>().ok());
    if let Some(free) = free.filter(|free| *free < gigabytes) {
        eprintln!("xtask: {free} GB are free in {}: a first run takes about {gigabytes}", root.display());
    }
    Ok(())
}

/// Runs a command; failure is an error that shows the command.
pub(crate) fn run(command: &mut Command) -> Result<(), Failure> {
    let status = command.status().map_err(|error| format!("cannot start {}: {error}", show(command)))?;
    if status.success() { Ok(()) } else { Err(format!("{} failed: {status}", show(command)).into()) }
}

/// Runs a command and returns what it printed.
pub(crate) fn read(command: &mut Command) -> Result<String, Failure> {
    let output = command.output().map_err(|error| format!("cannot start {}: {error}", show(command)))?;
    if !output.status.success() {
        let problem = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(format!("{} failed: {}\n{problem}", show(command), output.status).into());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn show(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
}

/// cargo, in the workspace.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(crate::root());
    command
}

/// Does one part of a long command and says how long it took, and how much of that the processors worked.
pub(crate) fn timed<T>(name: &str, part: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    let (start, worked) = (Instant::now(), processor_seconds());
    let result = part();
    println!(
        "xtask: {name}: {:.0} s, {:.0} s of processor time",
        start.elapsed().as_secs_f64(),
        processor_seconds() - worked
    );
    result
}

/// What the children that ended have used; proc_pid_stat(5), fields 16 and 17, in hundredths of a second.
fn processor_seconds() -> f64 {
    let text = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The name in the second field may hold blanks.
    let fields = text.rsplit_once(')').map_or("", |(_, fields)| fields);
    fields.split_whitespace().skip(13).take(2).filter_map(|field| field.parse::<f64>().ok()).sum::<f64>()
        / 100.0
}

/// Builds the release binary and returns its path.
pub(crate) fn release_binary() -> Result<PathBuf, Failure> {
    release_program("stave-cli", "stave")
}

/// Builds a program of a package for release and returns its path.
pub(crate) fn release_program(package: &str, program: &str) -> Result<PathBuf, Failure> {
    release_target(package, ["--bin", program])
}

/// Builds one target of a package (`--bin NAME`, `--example NAME`) for release and returns its path.
pub(crate) fn release_target(package: &str, target: [&str; 2]) -> Result<PathBuf, Failure> {
    let mut build = cargo();
    build.args(["build", "--release", "--package", package]).args(target);
    build.arg("--message-format=json-render-diagnostics");
    let output = build.stderr(Stdio::inherit()).output()?;
    if !output.status.success() {
        return Err(format!("{} does not compile", target[1]).into());
    }
    let executable = String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter_map(|message| message["executable"].as_str().map(PathBuf::from))
        .next_back();
    executable.ok_or_else(|| "cargo named no executable".into())
}

/// Whether a program is on the PATH.
pub(crate) fn has(program: &str) -> bool {
    std::env::var_os("PATH").is_some_and(|path| {
        std::env::split_paths(&path).any(|folder| Path::new(&folder).join(program).is_file())
    })
}
