//! A root file system with a shell, and running things in it.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use stave_sandbox::{
    Exit, Launcher, MountSpec, OverlayRoot, Process, RootFs, Sandbox, SandboxSpec, SpawnError, Stdio,
};
use tempfile::TempDir;

/// One launcher for all tests of the process, as in a real caller.
pub(crate) static LAUNCHER: LazyLock<Launcher> = LazyLock::new(Launcher::new);

/// A statically linked shell with the usual commands.
const SHELL: &str = "/bin/busybox";

/// Directories of one test.
pub(crate) struct Place {
    directory: TempDir,
}

/// What a finished sandbox left.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) stdout: String,
    #[expect(dead_code, reason = "shown when a test fails")]
    pub(crate) stderr: String,
    pub(crate) exit: Exit,
    /// Whether it was a sandbox made ahead.
    pub(crate) ahead: bool,
}

impl Place {
    pub(crate) fn new() -> Self {
        let directory = TempDir::new_in("/var/tmp").expect("a directory");
        let place = Self { directory };
        fs::create_dir_all(place.path("root/bin")).expect("directories");
        fs::create_dir_all(place.path("upper")).expect("directories");
        fs::create_dir_all(place.path("work")).expect("directories");
        fs::copy(SHELL, place.path("root/bin/busybox")).expect("a statically linked busybox");
        symlink("busybox", place.path("root/bin/sh")).expect("a link");
        place
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Writes a file, making its directory.
    pub(crate) fn write(&self, name: &str, contents: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
        fs::write(&path, contents).expect("a file");
        path
    }

    /// A spec with an overlay root.
    pub(crate) fn spec(&self, args: &[&str]) -> SandboxSpec {
        let root = OverlayRoot {
            lower: vec![self.path("root")],
            upper: self.path("upper"),
            work: self.path("work"),
            volatile: false,
            stubs: Some(self.path("stubs")),
        };
        SandboxSpec::new(RootFs::Overlay(root), Process::new(args.iter().map(ToString::to_string).collect()))
    }

    /// A spec for a shell script.
    pub(crate) fn script(&self, script: &str) -> SandboxSpec {
        self.spec(&["/bin/sh", "-c", script])
    }

    /// A spec for this program's probe `what`, bound in as `/probe`.
    pub(crate) fn probe(&self, what: &str) -> SandboxSpec {
        let mut spec = self.spec(&["/probe", "probe", what]);
        spec.mounts.push(bind(&std::env::current_exe().expect("this program"), "/probe", true));
        spec
    }

    /// What the script prints; it must succeed.
    #[track_caller]
    pub(crate) fn output(&self, script: &str) -> String {
        let outcome = run(&self.script(script));
        assert!(outcome.exit.status.success(), "{outcome:?}");
        outcome.stdout
    }

    /// Names in the upper directory.
    pub(crate) fn changes(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path("upper")).expect("the upper directory");
        let mut names: Vec<String> = entries
            .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }
}

pub(crate) fn bind(source: &Path, target: &str, readonly: bool) -> MountSpec {
    MountSpec::Bind { source: source.into(), target: target.into(), readonly, recursive: true }
}

/// Starts a sandbox and gives the ends of its streams.
pub(crate) fn start(spec: &SandboxSpec) -> Result<(Sandbox, File, File), SpawnError> {
    start_by(&LAUNCHER, spec)
}

/// The same by another launcher.
pub(crate) fn start_by(launcher: &Launcher, spec: &SandboxSpec) -> Result<(Sandbox, File, File), SpawnError> {
    let (stdout, stdout_inside) = std::io::pipe().expect("a pipe");
    let (stderr, stderr_inside) = std::io::pipe().expect("a pipe");
    let stdin = File::open("/dev/null").expect("/dev/null").into();
    let stdio = Stdio { stdin, stdout: stdout_inside.into(), stderr: stderr_inside.into() };
    let sandbox = launcher.spawn(spec, stdio)?;
    Ok((sandbox, OwnedFd::from(stdout).into(), OwnedFd::from(stderr).into()))
}

/// Runs a sandbox to its end.
#[track_caller]
pub(crate) fn run(spec: &SandboxSpec) -> Outcome {
    match try_run(spec) {
        Ok(outcome) => outcome,
        Err(error) => panic!("{error}: {:?}", std::error::Error::source(&error)),
    }
}

pub(crate) fn try_run(spec: &SandboxSpec) -> Result<Outcome, SpawnError> {
    run_by(&LAUNCHER, spec)
}

/// Runs a sandbox of another launcher to its end.
pub(crate) fn run_by(launcher: &Launcher, spec: &SandboxSpec) -> Result<Outcome, SpawnError> {
    let (mut sandbox, stdout, stderr) = start_by(launcher, spec)?;
    let (stdout, stderr) = (read(stdout), read(stderr));
    let exit = sandbox.wait().expect("an end");
    Ok(Outcome { stdout, stderr, exit, ahead: sandbox.was_ahead() })
}

/// Everything there is to read.
pub(crate) fn read(mut from: File) -> String {
    let mut text = String::new();
    from.read_to_string(&mut text).expect("text");
    text
}

/// Runs with text as standard input.
pub(crate) fn run_with_input(spec: &SandboxSpec, input: &str) -> String {
    let (stdin, mut feed) = std::io::pipe().expect("a pipe");
    let (stdout, stdout_inside) = std::io::pipe().expect("a pipe");
    let stderr = stdout_inside.try_clone().expect("a copy").into();
    let stdio = Stdio { stdin: stdin.into(), stdout: stdout_inside.into(), stderr };
    let mut sandbox = LAUNCHER.spawn(spec, stdio).expect("a sandbox");
    feed.write_all(input.as_bytes()).expect("room in the pipe");
    drop(feed);
    let text = read(OwnedFd::from(stdout).into());
    assert!(sandbox.wait().expect("an end").status.success(), "{text}");
    text
}
