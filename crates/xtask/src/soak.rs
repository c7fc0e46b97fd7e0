//! Many clients on one daemon for a while: nothing fails, memory stays flat, the disk stays below its cap.
//!
//! Clients are processes, as a team's are: BuildKit's `buildctl`, as the daemon has to serve. Each builds a small context
//! over and over, of which some files change every time. Start with [`run`].

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use std::{fs, io};

use crate::Failure;

/// How long the daemon may take to listen, and to end.
const PATIENCE: Duration = Duration::from_secs(20);
/// Between two looks at memory and disk.
const LOOK: Duration = Duration::from_millis(500);
/// Builds after which memory counts as what the daemon holds for good.
const WARM: u64 = 100;
/// Bytes of memory of a daemon without builds.
const IDLE: u64 = 100 << 20;
/// How long nothing is asked of it before it counts as that.
const REST: Duration = Duration::from_secs(25);
/// Files of one context, and the bytes of each.
const FILES: usize = 20;
const BYTES: usize = 16 << 10;

/// What to do.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// The program.
    #[arg(long, default_value = "target/release/stave")]
    stave: PathBuf,
    /// BuildKit's client.
    #[arg(long, env = "STAVE_TEST_BUILDCTL", default_value = "buildctl")]
    buildctl: PathBuf,
    /// Clients at a time.
    #[arg(long, default_value_t = 50)]
    clients: usize,
    /// Minutes.
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    /// Megabytes that the store may take.
    #[arg(long, default_value_t = 500)]
    cap: u64,
    /// An image with a shell: every build then runs a step, too.
    #[arg(long)]
    base: Option<String>,
    /// Registry that is asked over plain http.
    #[arg(long)]
    insecure: Option<String>,
    /// Where everything goes; removed afterwards.
    #[arg(long)]
    directory: Option<PathBuf>,
}

#[derive(Default)]
struct Seen {
    built: AtomicU64,
    failed: AtomicU64,
    /// Builds so far, bytes of memory, bytes on disk.
    looks: Mutex<Vec<(u64, u64, u64)>>,
}

/// The daemon, ended with this.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may be over already.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// Runs it and says what was seen.
pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    let directory = match &options.directory {
        Some(directory) => directory.clone(),
        None => std::env::temp_dir().join(format!("stave-soak-{}", std::process::id())),
    };
    fs::create_dir_all(&directory)?;
    let outcome = soak(options, &directory);
    fs::remove_dir_all(&directory).ok();
    outcome
}

fn soak(options: &Options, directory: &Path) -> Result<(), Failure> {
    let socket = directory.join("daemon.sock");
    let mut daemon = start(options, directory, &socket)?;
    let pid = daemon.0.id();
    let (seen, over) = (Arc::new(Seen::default()), Arc::new(AtomicBool::new(false)));
    let watching = {
        let (seen, over, root) = (Arc::clone(&seen), Arc::clone(&over), directory.join("state"));
        thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                let look = (seen.built.load(Ordering::Relaxed), resident(pid), allocated(&root));
                seen.looks.lock().unwrap_or_else(PoisonError::into_inner).push(look);
                thread::sleep(LOOK);
            }
        })
    };
    let until = Instant::now() + Duration::from_secs_f64(options.minutes * 60.0);
    let clients: Vec<_> = (0..options.clients)
        .map(|number| {
            let client = Client {
                buildctl: options.buildctl.clone(),
                address: format!("unix://{}", socket.display()),
                context: directory.join(format!("context-{number}")),
                base: options.base.clone(),
            };
            let seen = Arc::clone(&seen);
            thread::spawn(move || client.work(number, until, &seen))
        })
        .collect();
    for client in clients {
        client.join().map_err(|_| "a client panicked")??;
    }
    over.store(true, Ordering::Relaxed);
    watching.join().map_err(|_| "the watch panicked")?;
    // Idle is a daemon that had the time to put its things in order.
    thread::sleep(REST);
    let idle = resident(pid);
    end(&mut daemon)?;
    judge(options, &seen, idle)
}

fn start(options: &Options, directory: &Path, socket: &Path) -> Result<Daemon, Failure> {
    let mut config = format!("[store]\nmax-used = {}\n", options.cap * 1_000_000);
    config +=
        &format!("[worker.oci]\nmaxUsedSpace = {}\n[history]\nmaxEntries = 100\n", options.cap * 800_000);
    if let Some(host) = &options.insecure {
        config += &format!("[registry.\"{host}\"]\nhttp = true\n");
    }
    let file = directory.join("daemon.toml");
    fs::write(&file, config)?;
    let child = Command::new(&options.stave)
        .args(["daemon", "--addr", &format!("unix://{}", socket.display())])
        .arg("--root")
        .arg(directory.join("state"))
        .arg("--config")
        .arg(&file)
        .stdout(Stdio::null())
        .stderr(fs::File::create(directory.join("daemon.log"))?)
        .spawn()?;
    let daemon = Daemon(child);
    let begin = Instant::now();
    while !socket.exists() {
        if begin.elapsed() > PATIENCE {
            let log = fs::read_to_string(directory.join("daemon.log")).unwrap_or_default();
            return Err(format!("the daemon does not listen: {log}").into());
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(daemon)
}

/// Tells the daemon to end, and insists that it does well.
fn end(daemon: &mut Daemon) -> Result<(), Failure> {
    let told = Command::new("kill").arg(daemon.0.id().to_string()).status()?;
    let begin = Instant::now();
    while told.success() && begin.elapsed() < PATIENCE {
        if let Some(status) = daemon.0.try_wait()? {
            return if status.success() {
                Ok(())
            } else {
                Err(format!("the daemon ended with {status}").into())
            };
        }
        thread::sleep(Duration::from_millis(50));
    }
    Err("the daemon does not end".into())
}

struct Client {
    buildctl: PathBuf,
    address: String,
    context: PathBuf,
    base: Option<String>,
}

impl Client {
    fn work(&self, number: usize, until: Instant, seen: &Seen) -> io::Result<()> {
        fs::create_dir_all(&self.context)?;
        let dockerfile = match &self.base {
            Some(base) => format!("FROM {base}\nCOPY . /context\nRUN cat /context/f0 | wc -c > /count\n"),
            None => "FROM scratch\nCOPY . /context\n".to_owned(),
        };
        fs::write(self.context.join("Dockerfile"), dockerfile)?;
        let mut round = 0_usize;
        while Instant::now() < until {
            for file in 0..FILES {
                // All at first, then two each time.
                if round == 0 || file % (FILES / 2) == round % (FILES / 2) {
                    let text = format!("{number} {round} {file}\n");
                    fs::write(self.context.join(format!("f{file}")), text.repeat(BYTES / text.len()))?;
                }
            }
            let local = |name: &str| format!("{name}={}", self.context.display());
            let output = Command::new(&self.buildctl)
                .args([
                    "--addr",
                    &self.address,
                    "build",
                    "--frontend",
                    "dockerfile.v0",
                    "--progress",
                    "plain",
                ])
                .args(["--local", &local("context"), "--local", &local("dockerfile")])
                .output()?;
            if !output.status.success() {
                seen.failed.fetch_add(1, Ordering::Relaxed);
                eprintln!("a build failed: {}", String::from_utf8_lossy(&output.stderr));
            }
            seen.built.fetch_add(1, Ordering::Relaxed);
            round += 1;
        }
        Ok(())
    }
}

fn judge(options: &Options, seen: &Seen, idle: u64) -> Result<(), Failure> {
    let looks = seen.looks.lock().unwrap_or_else(PoisonError::into_inner);
    let (built, failed) = (seen.built.load(Ordering::Relaxed), seen.failed.load(Ordering::Relaxed));
    let megabytes = |bytes: u64| bytes as f64 / 1e6;
    let highest = |of: fn(&(u64, u64, u64)) -> u64| looks.iter().map(of).max().unwrap_or(0);
    println!("{built} builds of {} clients, {failed} failed", options.clients);
    println!("memory: at most {:.1} MB, {:.1} MB idle", megabytes(highest(|look| look.1)), megabytes(idle));
    println!("disk: at most {:.1} of {} MB", megabytes(highest(|look| look.2)), options.cap);
    let warm: Vec<u64> = looks.iter().filter(|look| look.0 >= WARM).map(|look| look.1).collect();
    let third = warm.len() / 3;
    let (first, last) = (mean(&warm[..third]), mean(&warm[warm.len() - third..]));
    println!(
        "memory while building: {:.1} MB in the first third, {:.1} MB in the last",
        first / 1e6,
        last / 1e6
    );
    let mut wrong = Vec::new();
    if failed > 0 {
        wrong.push(format!("{failed} builds failed"));
    }
    if third > 0 && last > first * 1.1 {
        wrong.push("memory grew by more than a tenth".to_owned());
    }
    if idle > IDLE {
        wrong.push(format!("an idle daemon holds more than {} MB", IDLE >> 20));
    }
    if highest(|look| look.2) > options.cap * 1_000_000 {
        wrong.push("the disk passed its cap".to_owned());
    }
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("; ").into()) }
}

fn mean(of: &[u64]) -> f64 {
    of.iter().map(|bytes| *bytes as f64).sum::<f64>() / of.len().max(1) as f64
}

/// Bytes of memory of a process.
fn resident(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|text| text.parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// Allocated bytes below a directory; what vanishes meanwhile counts nothing.
fn allocated(directory: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let bytes = entries.map(|entry| match entry.metadata() {
        Ok(found) if found.is_dir() => allocated(&entry.path()),
        // What has several names is there once.
        Ok(found) => found.blocks() * 512 / found.nlink().max(1),
        Err(_) => 0,
    });
    bytes.sum()
}
