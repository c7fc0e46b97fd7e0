//! A state directory, a context directory and the program, for one test.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

/// One test's world; its state and files vanish with it.
pub(crate) struct Environment {
    folder: tempfile::TempDir,
}

/// What a call of the program did.
pub(crate) struct Outcome {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Outcome {
    pub(crate) fn of(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Insists on exit code 0.
    #[track_caller]
    pub(crate) fn success(self) -> Self {
        self.exits(0)
    }

    /// Insists on an exit code.
    #[track_caller]
    pub(crate) fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        self
    }

    /// Insists on a part of standard error.
    #[track_caller]
    pub(crate) fn says(self, part: &str) -> Self {
        assert!(self.stderr.contains(part), "expected `{part}` in:\n{}", self.stderr);
        self
    }

    /// Insists that a part is not in standard error.
    #[track_caller]
    pub(crate) fn never_says(self, part: &str) -> Self {
        assert!(!self.stderr.contains(part), "did not expect `{part}` in:\n{}", self.stderr);
        self
    }

    /// How many build steps came from the cache, base images not counted.
    pub(crate) fn cached(&self) -> usize {
        let numbers = |test: &dyn Fn(&str) -> bool| -> BTreeSet<&str> {
            let lines = self.stderr.lines().filter(|line| line.starts_with('#') && test(line));
            lines.filter_map(|line| line.split_whitespace().next()).collect()
        };
        let bases = numbers(&|line| line.contains("] FROM "));
        numbers(&|line| line.ends_with(" CACHED")).difference(&bases).count()
    }
}

impl Environment {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        fs::create_dir(folder.path().join("context")).expect("a context folder");
        Self { folder }
    }

    /// The build context's folder.
    pub(crate) fn context(&self) -> PathBuf {
        self.folder.path().join("context")
    }

    /// A path outside of the context.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The state directory.
    pub(crate) fn root(&self) -> PathBuf {
        self.path("state")
    }

    /// Writes a file of the context, with its parents.
    pub(crate) fn write(&self, name: &str, text: &str) -> &Self {
        let path = self.context().join(name);
        fs::create_dir_all(path.parent().expect("has a parent")).expect("creates folders");
        fs::write(path, text).expect("writes");
        self
    }

    /// Writes the Dockerfile. `BUSYBOX` and `REGISTRY` in it are replaced.
    pub(crate) fn dockerfile(&self, text: &str) -> &Self {
        self.write("Dockerfile", &with_images(text))
    }

    /// A command that calls the program in the context with this test's state.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(program());
        command.current_dir(self.context()).env("STAVE_ROOT", self.root());
        command.env("DOCKER_CONFIG", self.path("docker-config")).env("BUILDKIT_PROGRESS", "plain");
        command.env_remove("STAVE_CONFIG").stdin(Stdio::null());
        command
    }

    /// Calls the program.
    pub(crate) fn stave<I, S>(&self, words: I) -> Outcome
    where
        I: IntoIterator<Item = S>,
        S: AsRef<std::ffi::OsStr>,
    {
        Outcome::of(self.command().args(words).output().expect("the program starts"))
    }

    /// Calls the program with something on its standard input.
    pub(crate) fn stave_with_input(&self, words: &[&str], input: &[u8]) -> Outcome {
        let mut command = self.command();
        command.args(words).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the program starts");
        let mut stdin = child.stdin.take().expect("is piped");
        let input = input.to_vec();
        // A program that does not read its input closes the pipe: its own outcome is what counts.
        let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
        let output = child.wait_with_output().expect("ends");
        writer.join().expect("the writer ends");
        Outcome::of(output)
    }

    /// Starts the program and leaves it running.
    pub(crate) fn start(&self, words: &[&str]) -> Child {
        let mut command = self.command();
        command.args(words).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().expect("the program starts")
    }

    /// Builds the context under a tag.
    pub(crate) fn build(&self, tag: &str) -> Outcome {
        self.stave(["build", "-t", tag, "."])
    }

    /// Runs a command in an image and returns what it printed.
    #[track_caller]
    pub(crate) fn run(&self, image: &str, words: &[&str]) -> String {
        self.stave(["run", "--rm", image].iter().chain(words)).success().stdout
    }
}

/// Whether this process may do what root may on a machine: in a container its root may not.
pub(crate) fn is_privileged() -> bool {
    own_capabilities() & (1 << CAP_SYS_ADMIN) != 0
}

/// The number of the right to mount and to make namespaces; capabilities(7).
const CAP_SYS_ADMIN: u32 = 21;

/// What this process may, a bit for each capability.
pub(crate) fn own_capabilities() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("readable");
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:")).expect("capabilities");
    u64::from_str_radix(line.trim(), 16).expect("a number")
}

/// The program under test: the release binary if the caller made one, else the one cargo built.
pub(crate) fn program() -> PathBuf {
    std::env::var_os("STAVE_TEST_PROGRAM").map_or_else(|| env!("CARGO_BIN_EXE_stave").into(), PathBuf::from)
}

/// The registry with the base images.
pub(crate) fn registry() -> String {
    std::env::var("STAVE_TEST_REGISTRY")
        .expect("integration tests need base images: run them through `cargo xtask test`")
}

/// Puts the names of the test images into a Dockerfile.
pub(crate) fn with_images(text: &str) -> String {
    if !text.contains("BUSYBOX") && !text.contains("REGISTRY") {
        return text.to_owned();
    }
    let registry = registry();
    text.replace("BUSYBOX", &format!("{registry}/busybox")).replace("REGISTRY", &registry)
}

/// Sends a signal to a child that may have ended by now, but was not waited for.
pub(crate) fn signal(child: &std::process::Child, signal: rustix::process::Signal) {
    let process = rustix::process::Pid::from_child(child);
    rustix::process::kill_process(process, signal).expect("the child is there until somebody waits for it");
}

/// Runs another program and insists that it succeeds.
#[track_caller]
pub(crate) fn tool(program: &str, words: &[&str]) -> String {
    let output = Command::new(program).args(words).output();
    let output = output.unwrap_or_else(|error| panic!("{program} is needed by this test: {error}"));
    let [stdout, stderr] =
        [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    assert!(output.status.success(), "{program} {words:?}: {}\n{stdout}\n{stderr}", output.status);
    stdout
}

/// A command that sleeps for so many seconds, and a little, in words of its own: the suite runs several times at once on a
/// machine, as different users, and whoever looks for a step's process must not find another run's.
pub(crate) fn own_sleep(seconds: u32) -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    format!("sleep {seconds}.0{}", now.as_nanos())
}

/// The mounts of this machine that lie below `folder`.
pub(crate) fn mounts_below(folder: &Path) -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("readable");
    let prefix = folder.to_string_lossy().into_owned();
    table.lines().filter(|line| line.contains(&prefix)).map(str::to_owned).collect()
}

/// The processes whose command line or root mentions `text`.
pub(crate) fn processes_with(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").expect("readable").flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
        let Ok(line) = fs::read(entry.path().join("cmdline")) else { continue };
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains(text) && pid != std::process::id() {
            found.push(format!("{pid} {line}"));
        }
    }
    found
}
