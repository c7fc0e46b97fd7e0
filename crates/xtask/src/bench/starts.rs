//! `cargo xtask bench --starts`: how fast sandboxes start, one after the other and at once, beside runc, crun, podman and
//! docker; what a thousand of them leave behind; and what a RUN costs beyond its command.
//!
//! Start with [`run`]. Each runtime starts the same program over the same files. The whole runs in a mount namespace of
//! its own, since crun refuses machines on which the second hierarchy of control groups has controllers beside the
//! first, and there that one can be unmounted.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::{Failure, machine};

/// Set for the second execution, in its own mounts.
const INSIDE: &str = "STAVE_XTASK_STARTS";
/// Sandboxes of the program one after the other.
const SEQUENTIAL: usize = 1000;
/// Sandboxes of the program at once, and how many in all then.
const AT_ONCE: (usize, usize) = (64, 2048);
/// Containers of each peer, one after the other; at once it is four times as many.
const OF_PEERS: usize = 25;
/// Steps of the longer of the two builds that are compared.
const STEPS: usize = 100;
/// How often both are built.
const ROUNDS: usize = 9;
/// The second hierarchy of control groups.
const UNIFIED: &str = "/sys/fs/cgroup/unified";

/// One line of the result.
struct Row {
    name: String,
    /// The median of one start and end.
    one: Duration,
    /// How many a second, as many at once as there are processors.
    rate: f64,
}

/// Measures and prints. `spawn` is the sandbox crate's example, `stave` the program.
pub(crate) fn run(spawn: &Path, stave: &Path, folder: &Path) -> Result<(), Failure> {
    if std::env::var_os(INSIDE).is_none() {
        let mut again = Command::new("unshare");
        again.arg("-m").arg(std::env::current_exe()?).args(std::env::args_os().skip(1)).env(INSIDE, "1");
        return Err(again.exec().into());
    }
    if fs::read_to_string(Path::new(UNIFIED).join("cgroup.controllers"))
        .is_ok_and(|text| !text.trim().is_empty())
    {
        machine::run(Command::new("umount").arg(UNIFIED))?;
    }
    let place = folder.join("starts");
    let root = rootfs(&place)?;
    let (own, mut text) = own(spawn, &root, &place)?;
    let mut rows = vec![own];
    for runtime in ["crun", "runc"].into_iter().filter(|runtime| machine::has(runtime)) {
        match runtime_row(runtime, &place) {
            Ok(row) => rows.push(row),
            Err(problem) => eprintln!("xtask: {runtime} is left out: {problem}"),
        }
    }
    for engine in ["podman", "docker"].into_iter().filter(|engine| machine::has(engine)) {
        match engine_row(engine, &root) {
            Ok(row) => rows.push(row),
            Err(problem) => eprintln!("xtask: {engine} is left out: {problem}"),
        }
    }
    let step = step(stave, &place)?;
    let mut table =
        String::from("| | one start and end | ratio | a second | ratio |\n|---|---|---|---|---|\n");
    for row in &rows {
        let ratio = row.one.as_secs_f64() / rows[0].one.as_secs_f64();
        let (one, rate) = (row.one.as_secs_f64() * 1000.0, rows[0].rate / row.rate);
        writeln!(table, "| {} | {one:.1} ms | {ratio:.1} | {:.0} | {rate:.1} |", row.name, row.rate)?;
    }
    let milliseconds = |time: Duration| time.as_secs_f64() * 1000.0;
    let (all, beyond) = (milliseconds(step), milliseconds(step.saturating_sub(command()?)));
    writeln!(text, "a RUN beyond its command: {beyond:.1} ms ({all:.1} ms with it)")?;
    println!("{table}\n{text}");
    fs::write(folder.join("starts.md"), format!("{table}\n{text}"))?;
    fs::remove_dir_all(&place)?;
    Ok(())
}

fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// A root file system with one program.
fn rootfs(place: &Path) -> Result<PathBuf, Failure> {
    let root = place.join("rootfs");
    for directory in ["bin", "proc", "sys", "dev", "etc"] {
        fs::create_dir_all(root.join(directory))?;
    }
    fs::copy("/bin/busybox", root.join("bin/busybox"))
        .map_err(|error| format!("busybox is needed: {error}"))?;
    Ok(root)
}

/// The program's own figures, and what its sandboxes left; that anything is left is an error.
fn own(spawn: &Path, root: &Path, place: &Path) -> Result<(Row, String), Failure> {
    let spawn = |count: usize, at_once: usize| {
        let mut command = Command::new(spawn);
        command.arg(root).arg(count.to_string()).args(["/bin/busybox", "true"]);
        command
            .env("STAVE_SPAWN_AT_ONCE", at_once.to_string())
            .env("STAVE_SPAWN_SCRATCH", place.join("layers"));
        machine::read(&mut command)
    };
    let single = spawn(SEQUENTIAL, 1)?;
    let all = spawn(SEQUENTIAL, processors())?;
    let many = spawn(AT_ONCE.1, AT_ONCE.0)?;
    let mut text =
        format!("{SEQUENTIAL} one after the other, then {} with {} at once:\n", AT_ONCE.1, AT_ONCE.0);
    for line in single.lines().chain(many.lines()).filter(|line| line.starts_with("left ")) {
        writeln!(text, "  {line}")?;
        if !line.ends_with(": 0") {
            return Err(format!("something is left behind: {line}").into());
        }
    }
    let one = field(&single, "total: ", "median ").and_then(duration).ok_or("no median")?;
    let rate = field(&all, "rate: ", "").and_then(|rate| rate.trim_end_matches("/s").parse().ok());
    Ok((Row { name: "stave".to_owned(), one, rate: rate.ok_or("no rate")? }, text))
}

/// The word behind `key` in the line that starts with `line`.
fn field<'a>(text: &'a str, line: &str, key: &str) -> Option<&'a str> {
    let rest = text.lines().find_map(|found| found.strip_prefix(line))?;
    rest.split_once(key).map(|(_, rest)| rest)?.split_whitespace().next()
}

/// A duration as `{:?}` prints it.
fn duration(text: &str) -> Option<Duration> {
    let digits = text.trim_end_matches(|c: char| c.is_alphabetic());
    let unit = match &text[digits.len()..] {
        "ns" => 1e-9,
        "µs" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        _ => return None,
    };
    Some(Duration::from_secs_f64(digits.parse::<f64>().ok()? * unit))
}

/// A bundle for an OCI runtime, as it writes one itself, with our program and without control groups.
fn runtime_row(runtime: &str, place: &Path) -> Result<Row, Failure> {
    let bundle = place.join(runtime);
    fs::create_dir_all(&bundle)?;
    machine::run(Command::new(runtime).args(["spec"]).current_dir(&bundle))?;
    let path = bundle.join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path)?)?;
    config["process"]["args"] = json!(["/bin/busybox", "true"]);
    config["process"]["terminal"] = json!(false);
    // Its default is more than a caller with a lower hard limit may set.
    config["process"]["rlimits"] = json!([]);
    config["root"] = json!({ "path": "../rootfs", "readonly": true });
    if let Some(mounts) = config["mounts"].as_array_mut() {
        mounts.retain(|mount| mount["type"].as_str().is_none_or(|kind| !kind.starts_with("cgroup")));
    }
    fs::write(&path, serde_json::to_vec(&config)?)?;
    measure(runtime, |number| {
        let mut command = Command::new(runtime);
        command.arg("--root").arg(place.join("state")).args(["run", "-b"]).arg(&bundle);
        command.arg(format!("stave-starts-{runtime}-{number}"));
        command
    })
}

fn engine_row(engine: &str, root: &Path) -> Result<Row, Failure> {
    let image = format!("stave-starts:{}", std::process::id());
    if engine == "docker" {
        let files =
            Command::new("tar").arg("-C").arg(root).args(["-c", "."]).stdout(Stdio::piped()).spawn()?;
        let files = files.stdout.ok_or("tar has no output")?;
        machine::run(
            Command::new("docker").args(["import", "-", &image]).stdin(files).stdout(Stdio::null()),
        )?;
    }
    let row = measure(engine, |_| {
        let mut command = Command::new(engine);
        command.args(["run", "--rm", "--network", "none"]);
        match engine {
            "podman" => {
                command.args([
                    "--runtime",
                    "runc",
                    "--ulimit",
                    "nofile=1024:1024",
                    "--ulimit",
                    "nproc=4096:4096",
                ]);
                command.args(["--log-driver", "none", "--rootfs"]).arg(root)
            }
            _ => command.arg(&image),
        };
        command.args(["/bin/busybox", "true"]);
        command
    });
    if engine == "docker" {
        machine::run(Command::new("docker").args(["rmi", &image]).stdout(Stdio::null()))?;
    }
    row
}

/// Times commands, one after the other and as many at once as there are processors.
fn measure(name: &str, command: impl Fn(usize) -> Command + Sync) -> Result<Row, Failure> {
    let once = |number: usize| -> Result<Duration, String> {
        let begin = Instant::now();
        let output = command(number).stdin(Stdio::null()).output().map_err(|error| error.to_string())?;
        match output.status.success() {
            true => Ok(begin.elapsed()),
            false => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        }
    };
    once(0)?;
    let mut times = (1..=OF_PEERS).map(once).collect::<Result<Vec<_>, _>>()?;
    times.sort_unstable();
    let (next, last) = (AtomicUsize::new(OF_PEERS + 1), OF_PEERS * 5);
    let begin = Instant::now();
    std::thread::scope(|scope| -> Result<(), String> {
        let work = || -> Result<(), String> {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number > last {
                    return Ok(());
                }
                once(number)?;
            }
        };
        let workers: Vec<_> = (0..processors()).map(|_| scope.spawn(work)).collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().map_err(|_| "a thread panicked".to_owned())?)
    })?;
    #[expect(clippy::cast_precision_loss, reason = "a hundred containers")]
    let rate = (last - OF_PEERS) as f64 / begin.elapsed().as_secs_f64();
    Ok(Row { name: name.to_owned(), one: times[times.len() / 2], rate })
}

/// What a step takes, its command with it: builds with many steps and with one, without a cache, divided.
fn step(stave: &Path, place: &Path) -> Result<Duration, Failure> {
    let context = place.join("context");
    fs::create_dir_all(&context)?;
    fs::copy("/bin/busybox", context.join("busybox"))?;
    let build = |steps: usize| -> Result<Duration, Failure> {
        let runs = "RUN [\"/bin/busybox\", \"true\"]\n".repeat(steps);
        fs::write(context.join("Dockerfile"), format!("FROM scratch\nCOPY busybox /bin/busybox\n{runs}"))?;
        let mut command = Command::new(stave);
        command.arg("--root").arg(place.join("stave")).args(["build", "-q", "--no-cache"]).arg(&context);
        command.stdout(Stdio::null());
        let begin = Instant::now();
        machine::run(&mut command)?;
        Ok(begin.elapsed())
    };
    build(1)?;
    let mut differences = Vec::new();
    for _ in 0..ROUNDS {
        let (few, many) = (build(1)?, build(STEPS + 1)?);
        differences.push(many.saturating_sub(few) / u32::try_from(STEPS)?);
    }
    differences.sort_unstable();
    Ok(differences[differences.len() / 2])
}

/// What such a step's command takes without a sandbox.
fn command() -> Result<Duration, Failure> {
    let mut times = Vec::new();
    for _ in 0..SEQUENTIAL {
        let begin = Instant::now();
        machine::run(Command::new("/bin/busybox").arg("true"))?;
        times.push(begin.elapsed());
    }
    times.sort_unstable();
    Ok(times[times.len() / 2])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_the_example_are_read() {
        let text =
            "start: min 1ms median 2ms max 3ms\ntotal: min 900.5µs median 2.5ms max 1.2s\nrate: 321.5/s\n";
        assert_eq!(field(text, "total: ", "median ").and_then(duration), Some(Duration::from_micros(2500)));
        assert_eq!(field(text, "total: ", "max ").and_then(duration), Some(Duration::from_millis(1200)));
        assert_eq!(field(text, "rate: ", ""), Some("321.5/s"));
        assert_eq!(duration("12"), None);
    }
}
