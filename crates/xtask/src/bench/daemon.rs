//! A peer's daemon, for as long as the guard lives, and what it takes of the machine.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::usage::Usage;
use crate::Failure;

/// How long a daemon may take until its socket answers.
const START: Duration = Duration::from_secs(20);
/// Ticks of processor time in a second, as the kernel counts in `/proc/PID/stat` on every Linux in use.
const TICKS: u64 = 100;

/// A running buildkitd with a root directory of its own.
pub(crate) struct Daemon {
    process: Child,
    socket: PathBuf,
}

/// What a daemon had taken at some moment.
pub(crate) struct Reading {
    cpu: Duration,
    written: u64,
}

impl Daemon {
    /// Starts `buildkitd` with runc and the host's network; `registry` is spoken to without TLS.
    pub(crate) fn start(program: &Path, state: &Path, registry: &str) -> Result<Self, Failure> {
        std::fs::create_dir_all(state)?;
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _infallible = writeln!(text, "[registry.\"{registry}\"]\n  http = true");
        let config = state.join("buildkitd.toml");
        std::fs::write(&config, text)?;
        let socket = state.join("sock");
        let log = std::fs::File::create(state.join("log"))?;
        let mut command = Command::new(program);
        command.arg("--config").arg(&config).arg("--root").arg(state.join("root"));
        command.arg("--addr").arg(format!("unix://{}", socket.display()));
        command.args(["--oci-worker-net=host", "--oci-worker-binary=runc", "--containerd-worker=false"]);
        let process = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?;
        let mut daemon = Self { process, socket };
        daemon.wait()?;
        Ok(daemon)
    }

    fn wait(&mut self) -> Result<(), Failure> {
        let deadline = Instant::now() + START;
        while Instant::now() < deadline {
            if std::os::unix::net::UnixStream::connect(&self.socket).is_ok() {
                return Ok(());
            }
            if let Some(status) = self.process.try_wait()? {
                return Err(format!("buildkitd ended at once: {status}").into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Err("buildkitd does not answer".into())
    }

    /// `unix://…`.
    pub(crate) fn address(&self) -> String {
        format!("unix://{}", self.socket.display())
    }

    /// Begins a measurement: the peak of its memory is forgotten.
    pub(crate) fn begin(&self) -> Result<Reading, Failure> {
        std::fs::write(self.file("clear_refs"), "5")?;
        self.read()
    }

    /// What it took since.
    pub(crate) fn end(&self, begin: &Reading) -> Result<Usage, Failure> {
        let now = self.read()?;
        let status = std::fs::read_to_string(self.file("status"))?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kibibytes: u64 =
            peak.and_then(|value| value.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0);
        Ok(Usage {
            wall: Duration::ZERO,
            cpu: now.cpu.saturating_sub(begin.cpu),
            memory: kibibytes * 1024,
            written: now.written.saturating_sub(begin.written),
        })
    }

    fn file(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{name}", self.process.id()))
    }

    /// Its own time and that of its children that have ended; `proc(5)` numbers the fields from 1.
    fn read(&self) -> Result<Reading, Failure> {
        let stat = std::fs::read_to_string(self.file("stat"))?;
        // The second field is a name in parentheses and may hold blanks.
        let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        let ticks: u64 = rest.split_whitespace().skip(11).take(4).filter_map(|f| f.parse::<u64>().ok()).sum();
        let io = std::fs::read_to_string(self.file("io"))?;
        let written = io.lines().find_map(|line| line.strip_prefix("write_bytes: "));
        Ok(Reading {
            cpu: Duration::from_millis(ticks * 1000 / TICKS),
            written: written.and_then(|bytes| bytes.parse().ok()).unwrap_or(0),
        })
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // SIGTERM lets it unmount what it mounted; `kill` of the standard library would not.
        let pid = self.process.id().to_string();
        drop(Command::new("kill").arg(&pid).status());
        let deadline = Instant::now() + START;
        while Instant::now() < deadline {
            if !matches!(self.process.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        drop(self.process.kill());
        drop(self.process.wait());
    }
}
