//! `cargo xtask bench --caches`: what caches cost and spare, each figure beside its target.
//!
//! Start with [`run`]. Here stave is measured against itself: with an export and without, on a cold store and on a warm
//! one. What a build made, and how many steps it found in a cache, is looked at before its figure counts.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use stave_test_support::workloads;

use super::machine_facts::MachineFacts;
use super::peak::Peak;
use crate::Failure;

/// Steps of the chain that does next to nothing.
const CHAIN: usize = 60;
/// Files of a context that is built again.
const FILES: usize = 20_000;
/// Files in a cache mount that travels.
const MOUNTED: usize = 5_000;
/// The cap that steps try to break, in bytes.
const CAP: u64 = 64 << 20;

/// What is common to all figures.
struct Caches<'a> {
    stave: &'a Path,
    registry: &'a str,
    place: PathBuf,
    rounds: usize,
}

/// One line of the result.
struct Figure {
    name: &'static str,
    target: &'static str,
    measured: String,
    is_met: bool,
}

/// One build's standard streams.
struct Built {
    /// What it printed: an image's digest.
    printed: String,
    /// Its progress.
    progress: String,
    wall: Duration,
    /// When the step that was waited for spoke, from the start on.
    spoke: Option<Duration>,
}

/// Measures and prints.
pub(crate) fn run(stave: &Path, registry: &str, folder: &Path, rounds: usize) -> Result<(), Failure> {
    let place = folder.join("caches");
    if place.exists() {
        fs::remove_dir_all(&place)?;
    }
    fs::create_dir_all(&place)?;
    let facts = MachineFacts::read();
    let caches = Caches { stave, registry, place, rounds: rounds.max(1) };
    let figures = [
        caches.export("export", "`--cache-to`, six steps of a few seconds each", &commands(registry))?,
        caches.export("chain", "`--cache-to`, 60 steps that do nothing", &chain(registry))?,
        caches.first_step()?,
        caches.mounts()?,
        caches.unchanged()?,
        caches.capped()?,
    ];
    let mut text = facts.describe(&[]);
    text.push_str("\n| figure | target | measured | |\n|---|---|---|---|\n");
    for Figure { name, target, measured, is_met } in figures {
        writeln!(text, "| {name} | {target} | {measured} | {} |", if is_met { "" } else { "**missed**" })?;
    }
    println!("{text}");
    fs::write(folder.join("caches.md"), text)?;
    fs::remove_dir_all(&caches.place)?;
    Ok(())
}

impl Caches<'_> {
    fn context(&self, name: &str, dockerfile: &str) -> Result<PathBuf, Failure> {
        let context = self.place.join(name);
        fs::create_dir_all(&context)?;
        fs::write(context.join("Dockerfile"), dockerfile)?;
        Ok(context)
    }

    /// An empty store's directory.
    fn empty(&self, name: &str) -> Result<PathBuf, Failure> {
        let state = self.place.join(name);
        if state.exists() {
            fs::remove_dir_all(&state)?;
        }
        Ok(state)
    }

    fn reference(&self, name: &str, number: usize) -> String {
        format!("{}/bench/{name}-cache:{}-{number}", self.registry, std::process::id())
    }

    fn command(&self, state: &Path, flags: &[&str], context: &Path) -> Command {
        let mut command = Command::new(self.stave);
        command.arg("--root").arg(state).args(["build", "--progress=plain"]).args(flags).arg(context);
        command
    }

    fn build(&self, state: &Path, flags: &[&str], context: &Path) -> Result<Built, Failure> {
        watched(&mut self.command(state, flags, context), None)
    }

    /// A store that has a base image, and nothing else of what is measured.
    fn primed(&self, name: &str, base: &str) -> Result<PathBuf, Failure> {
        let state = self.empty(name)?;
        let context = self.context("base", &format!("FROM {}/{base}\nRUN true\n", self.registry))?;
        self.build(&state, &["-o", "type=cacheonly"], &context)?;
        Ok(state)
    }

    /// What an export adds to a build without a cache, and that the exported cache is whole.
    fn export(&self, name: &str, title: &'static str, dockerfile: &str) -> Result<Figure, Failure> {
        let context = self.context(name, dockerfile)?;
        let state = self.empty("state")?;
        let plain = ["-o", "type=cacheonly", "--no-cache"];
        self.build(&state, &plain, &context)?;
        let (mut alone, mut ratios) = (Vec::new(), Vec::new());
        for round in 0..self.rounds {
            let to = format!("type=registry,ref={},mode=max", self.reference(name, round));
            let with = [plain[0], plain[1], plain[2], "--cache-to", &to];
            let order: [&[&str]; 2] = if round % 2 == 0 { [&plain, &with] } else { [&with, &plain] };
            let walls = [
                self.build(&state, order[0], &context)?.wall.as_secs_f64(),
                self.build(&state, order[1], &context)?.wall.as_secs_f64(),
            ];
            let [without, with] = if round % 2 == 0 { walls } else { [walls[1], walls[0]] };
            alone.push(without);
            ratios.push(with / without);
        }
        let from = format!("type=registry,ref={}", self.reference(name, 0));
        let empty = self.empty("state")?;
        let found = self.build(&empty, &["-o", "type=cacheonly", "--cache-from", &from], &context)?;
        found.hits(dockerfile.lines().filter(|line| line.starts_with("RUN")).count())?;
        let added = (median(ratios) - 1.0) * 100.0;
        let measured = format!("{added:+.1} % of {:.2} s", median(alone));
        Ok(Figure { name: title, target: "2 %", measured, is_met: added <= 2.0 })
    }

    /// How long a build on an empty store takes until the first step runs that a cache does not have.
    fn first_step(&self) -> Result<Figure, Failure> {
        let text = chain(self.registry);
        let context = self.context("first", &text)?;
        let reference = self.reference("first", 0);
        let to = format!("type=registry,ref={reference},mode=max");
        let state = self.empty("state")?;
        self.build(&state, &["-o", "type=cacheonly", "--cache-to", &to], &context)?;
        // In the step's own name the word is in pieces.
        let context = self.context("first", &format!("{text}RUN echo be\"\"gun\n"))?;
        let from = format!("type=registry,ref={reference}");
        let seconds = middle_of(self.rounds, |_| {
            let state = self.empty("state")?;
            let flags = ["-o", "type=cacheonly", "--cache-from", &from];
            let built = watched(&mut self.command(&state, &flags, &context), Some("begun"))?;
            built.hits(CHAIN)?;
            Ok(built.spoke.ok_or("the last step did not run")?.as_secs_f64())
        })?;
        Ok(Figure {
            name: "first step after an import of 60 on an empty store",
            target: "0.5 s",
            measured: format!("{seconds:.2} s"),
            is_met: seconds <= 0.5,
        })
    }

    /// A step with a cache mount, on the machine that has it and on one that gets it.
    fn mounts(&self) -> Result<Figure, Failure> {
        let context = self.context("mounts", &mounted(self.registry))?;
        let turn = context.join("turn");
        fs::write(&turn, "first\n")?;
        let cache = format!("type=registry,ref={},mounts=true", self.reference("mounts", 0));
        let warm = self.primed("warm", "gcc")?;
        let to = format!("{cache},mode=max");
        self.build(&warm, &["-o", "type=cacheonly", "--cache-to", &to], &context)?;
        let ratio = middle_of(self.rounds, |round| {
            fs::write(&turn, format!("{round}\n"))?;
            let here = self.build(&warm, &["-o", "type=cacheonly"], &context)?;
            let cold = self.primed("cold", "gcc")?;
            let flags = ["-o", "type=cacheonly", "--cache-from", &cache];
            let there = self.build(&cold, &flags, &context)?;
            if !there.progress.contains(&format!("has {MOUNTED} files")) {
                return Err(format!("the mount has not travelled:\n{}", there.progress).into());
            }
            Ok(there.wall.as_secs_f64() / here.wall.as_secs_f64())
        })?;
        Ok(Figure {
            name: "cold machine with travelled cache mounts, of a warm one",
            target: "1.3",
            measured: format!("{ratio:.2}"),
            is_met: ratio <= 1.3,
        })
    }

    /// The same build of many files again.
    fn unchanged(&self) -> Result<Figure, Failure> {
        let text = format!("FROM {}/busybox\nCOPY . /data\n", self.registry);
        let context = self.context("files", &text)?;
        workloads::many_files(&context, FILES)?;
        fs::write(context.join("Dockerfile"), text)?;
        let state = self.empty("state")?;
        let first = self.build(&state, &["-q", "-t", "bench"], &context)?;
        let wall = middle_of(self.rounds * 3, |_| {
            let again = self.build(&state, &["-q", "-t", "bench"], &context)?;
            if again.printed.is_empty() || again.printed != first.printed {
                return Err(format!("another image: {} {}", first.printed, again.printed).into());
            }
            Ok(again.wall.as_secs_f64() * 1000.0)
        })?;
        Ok(Figure {
            name: "nothing changed among 20,000 files",
            target: "80 ms",
            measured: format!("{wall:.0} ms"),
            is_met: wall <= 80.0,
        })
    }

    /// Steps that want more than a store may have, and the most that it ever had.
    fn capped(&self) -> Result<Figure, Failure> {
        let settings = self.place.join("capped.toml");
        fs::write(&settings, format!("[store]\nmax-used = \"{}MB\"\n", CAP >> 20))?;
        let greedy = [
            "for i in 1 2 3 4; do dd if=/dev/zero of=/f$i bs=1M count=100 2>/dev/null & done; wait; cat /f4 >/all",
            "i=0; while [ $i -lt 40 ]; do dd if=/dev/zero of=/f$i bs=4k count=1000 2>/dev/null || exit 1; \
             i=$((i+1)); done",
        ];
        let mut most = 0;
        for step in greedy {
            let state = self.empty("state")?;
            fs::create_dir_all(&state)?;
            let text = format!("FROM {}/busybox\nRUN {step}\n", self.registry);
            let context = self.context("greedy", &text)?;
            let peak = Peak::watch(&state);
            let mut command = self.command(&state, &["-o", "type=cacheonly"], &context);
            let output = command.env("STAVE_CONFIG", &settings).stdin(Stdio::null()).output()?;
            most = most.max(peak.end()?);
            let told = String::from_utf8_lossy(&output.stderr);
            if output.status.success() || !told.contains("store is full") {
                return Err(format!("a step could write more than the cap:\n{told}").into());
            }
            let small =
                self.context("small", &format!("FROM {}/busybox\nRUN echo x >/x\n", self.registry))?;
            let mut next = self.command(&state, &["-o", "type=cacheonly"], &small);
            watched(next.env("STAVE_CONFIG", &settings), None)?;
        }
        #[expect(clippy::cast_precision_loss, reason = "millions of bytes")]
        let megabytes = |bytes: u64| bytes as f64 / 1e6;
        Ok(Figure {
            name: "most that a store of greedy steps had, with a cap",
            target: "67.1 MB",
            measured: format!("{:.1} MB", megabytes(most)),
            is_met: most <= CAP,
        })
    }
}

impl Built {
    /// That as many steps were found in a cache.
    fn hits(&self, expected: usize) -> Result<(), Failure> {
        let found = self.progress.lines().filter(|line| line.ends_with(" CACHED")).count();
        match found >= expected {
            true => Ok(()),
            false => Err(format!("{found} of {expected} steps were cached:\n{}", self.progress).into()),
        }
    }
}

/// Runs a build; `word` is what a step of it says when it begins.
fn watched(command: &mut Command, word: Option<&str>) -> Result<Built, Failure> {
    let begin = Instant::now();
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let (mut progress, mut spoke) = (String::new(), None);
    for line in BufReader::new(child.stderr.take().ok_or("no standard error")?).lines() {
        let line = line?;
        if spoke.is_none() && word.is_some_and(|word| line.ends_with(word)) {
            spoke = Some(begin.elapsed());
        }
        writeln!(progress, "{line}")?;
    }
    let output = child.wait_with_output()?;
    let wall = begin.elapsed();
    if !output.status.success() {
        return Err(format!("{command:?} failed:\n{progress}").into());
    }
    Ok(Built { printed: String::from_utf8_lossy(&output.stdout).trim().to_owned(), progress, wall, spoke })
}

/// The median of what the rounds measure.
fn middle_of(rounds: usize, measure: impl FnMut(usize) -> Result<f64, Failure>) -> Result<f64, Failure> {
    Ok(median((0..rounds).map(measure).collect::<Result<_, _>>()?))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

fn chain(registry: &str) -> String {
    let steps = (0..CHAIN).map(|number| format!("RUN echo {number} >/{number}\n"));
    format!("FROM {registry}/busybox\n{}", steps.collect::<String>())
}

/// A file of so many functions, compiled.
fn compiled(functions: usize) -> String {
    format!(
        "i=0; while [ $i -lt {functions} ]; do echo \"int h$i(int a){{int s=0;for(int k=0;k<a;k++)s+=k*$i;return \
         s;}}\"; i=$((i+1)); done >h.c && gcc -O2 -c h.c"
    )
}

fn commands(registry: &str) -> String {
    let steps = [
        compiled(1800),
        compiled(1200),
        "head -c 10000000 /dev/urandom | base64 >/data && sha256sum /data".to_owned(),
        "tar -cf /usr.tar /usr/include && gzip -1 -k /usr.tar".to_owned(),
        "cp -r /usr/include /include2 && find /include2 | wc -l".to_owned(),
        compiled(2400),
    ];
    let steps = steps.map(|step| format!("RUN {step}\n"));
    format!("FROM {registry}/gcc\n{}", steps.concat())
}

fn mounted(registry: &str) -> String {
    format!(
        "FROM {registry}/gcc\nCOPY turn /turn\nRUN --mount=type=cache,target=/cache if ! [ -e /cache/made ]; then mkdir \
         /cache/d; i=0; while [ $i -lt {MOUNTED} ]; do head -c 40000 /dev/urandom >/cache/d/$i; i=$((i+1)); done; touch \
         /cache/made; fi; echo has $(ls /cache/d | wc -l) files; {} && cat /cache/d/1* | sha256sum\n",
        compiled(1500)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_one_counts() {
        let middle = median(vec![3.0, 1.0, 2.0]);
        assert!((middle - 2.0).abs() < f64::EPSILON, "{middle}");
        assert!(median(Vec::new()).abs() < f64::EPSILON);
    }

    #[test]
    fn a_word_is_timed_and_a_failure_shown() {
        let shell = |script: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", script]);
            watched(&mut command, Some("begun"))
        };
        let built = shell("echo '#1 begun' >&2; echo '#2 CACHED' >&2; echo id").expect("runs");
        assert_eq!((built.printed.as_str(), built.spoke.is_some()), ("id", true));
        assert!(built.hits(1).is_ok() && built.hits(2).is_err());
        let failed = shell("echo why >&2; exit 1").err().map(|problem| problem.to_string());
        assert!(failed.is_some_and(|text| text.contains("why")));
    }
}
