//! The workspace's own tests: compiled once, run by cargo, and looked at when one fails.
//!
//! Many of them start processes, mounts and servers on two loaded cores. One that fails among a thousand others is
//! run once more by itself: a defect fails again and ends the check; what passes is named as unsteady, loudly, so that
//! it gets mended. Owns nothing of what the tests need: the caller gives it by the environment.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::Stdio;

use crate::{Failure, machine};

/// How many tests may be run a second time; more than that is no accident.
const SECOND_CHANCES: usize = 3;

/// Everything that the workspace's tests are and run, compiled.
pub(crate) struct Suite {
    /// The program `stave` with debug assertions.
    pub(crate) stave: PathBuf,
    /// The integration tests.
    pub(crate) e2e: PathBuf,
    /// The recorded vectors of the front end, as a program.
    pub(crate) vectors: PathBuf,
}

impl Suite {
    /// Compiles all, once, with the features that the tests are run with.
    pub(crate) fn compile() -> Result<Self, Failure> {
        let mut build = machine::cargo();
        build.args([
            "test",
            "--workspace",
            "--locked",
            "--no-run",
            "--message-format=json-render-diagnostics",
        ]);
        let output = build.stderr(Stdio::inherit()).output()?;
        if !output.status.success() {
            return Err("the tests do not compile".into());
        }
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let messages: Vec<serde_json::Value> =
            text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let program = |kind: &str, name: &str| {
            let is_it = |message: &&serde_json::Value| {
                message["target"]["kind"][0] == kind && message["target"]["name"] == name
            };
            // A program's own unit tests are an executable of the same name, too.
            let is_plain =
                |message: &&serde_json::Value| kind == "test" || message["profile"]["test"] == false;
            let found = messages.iter().filter(is_it).filter(is_plain);
            found
                .filter_map(|message| message["executable"].as_str())
                .next_back()
                .map(PathBuf::from)
                .ok_or_else(|| format!("cargo named no {kind} `{name}`"))
        };
        Ok(Self {
            stave: program("bin", "stave")?,
            e2e: program("test", "e2e")?,
            vectors: program("example", "vectors")?,
        })
    }

    /// Runs the tests whose names contain `filter`, with these variables.
    pub(crate) fn run(filter: Option<&str>, variables: &[(&str, String)]) -> Result<(), Failure> {
        let mut tests = machine::cargo();
        tests.args(["test", "--workspace", "--locked", "--no-fail-fast"]).args(filter);
        tests.envs(variables.iter().map(|(name, value)| (*name, value)));
        let (reader, writer) = std::io::pipe()?;
        tests.stdout(writer.try_clone()?).stderr(writer);
        let mut child = tests.spawn()?;
        // The command holds the writing end open until it is dropped.
        drop(tests);
        let mut reader = BufReader::new(reader);
        let mut failed = Failed::default();
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line)? > 0 {
            std::io::stdout().write_all(&line)?;
            failed.read(String::from_utf8_lossy(&line).trim_end());
            line.clear();
        }
        if child.wait()?.success() {
            return Ok(());
        }
        failed.again(variables)
    }
}

/// What a run of `cargo test` said of tests that failed.
#[derive(Debug, Default, PartialEq, Eq)]
struct Failed {
    /// The names of each target with failures, in the order in which they ran.
    names: Vec<Vec<String>>,
    /// cargo's arguments for each of these targets, in the same order.
    targets: Vec<Vec<String>>,
    reading: Reading,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum Reading {
    #[default]
    Elsewhere,
    Names,
    Targets,
}

impl Failed {
    /// Takes one line of the output.
    fn read(&mut self, line: &str) {
        match self.reading {
            _ if line == "failures:" => {
                // The first list of a target has the tests' outputs, the second their names.
                self.reading = Reading::Names;
                self.names.push(Vec::new());
            }
            _ if line.starts_with("error: ") && line.ends_with("failed:") => self.reading = Reading::Targets,
            Reading::Names => self.read_name(line),
            Reading::Targets => match line.trim().strip_prefix('`').and_then(|line| line.strip_suffix('`')) {
                Some(target) => self.targets.push(target.split_whitespace().map(str::to_owned).collect()),
                None => self.reading = Reading::Elsewhere,
            },
            Reading::Elsewhere => {}
        }
    }

    /// A line after `failures:`: a name, a blank line before the outputs, or the list's end.
    fn read_name(&mut self, line: &str) {
        let Some(names) = self.names.last_mut() else { return };
        match line.strip_prefix("    ") {
            Some(name) if !name.contains(' ') => names.push(name.to_owned()),
            _ if names.is_empty() && line.is_empty() => {}
            _ => {
                self.reading = Reading::Elsewhere;
                self.names.retain(|names| !names.is_empty());
            }
        }
    }

    /// Runs what failed once more, each target's tests one after the other.
    fn again(&self, variables: &[(&str, String)]) -> Result<(), Failure> {
        let all: Vec<&str> = self.names.iter().flatten().map(String::as_str).collect();
        if all.is_empty() || all.len() > SECOND_CHANCES || self.names.len() != self.targets.len() {
            return Err(format!("tests failed: {}", all.join(", ")).into());
        }
        for (target, names) in self.targets.iter().zip(&self.names) {
            println!("xtask: once more, alone: {}", names.join(", "));
            let mut tests = machine::cargo();
            tests.args(["test", "--locked", "--workspace"]).args(kind_of(target));
            tests.args(["--", "--exact", "--test-threads=1"]);
            tests.args(names).envs(variables.iter().map(|(name, value)| (*name, value)));
            machine::run(&mut tests)?;
        }
        println!("xtask: UNSTEADY, these passed only when alone: {}", all.join(", "));
        Ok(())
    }
}

/// A target without its package: another choice of packages has other features, and all would be compiled again.
fn kind_of(target: &[String]) -> &[String] {
    match target {
        [flag, _, kind @ ..] if flag == "-p" => kind,
        whole => whole,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(output: &str, names: &[&[&str]], targets: &[&[&str]]) {
        let mut failed = Failed::default();
        output.lines().for_each(|line| failed.read(line));
        let owned = |lists: &[&[&str]]| -> Vec<Vec<String>> {
            lists.iter().map(|list| list.iter().map(|&word| word.to_owned()).collect()).collect()
        };
        assert_eq!((failed.names, failed.targets), (owned(names), owned(targets)));
    }

    #[test]
    fn a_target_is_run_without_its_package() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(kind_of(&words("-p x --test y")), words("--test y"));
        assert_eq!(kind_of(&words("--doc")), words("--doc"));
    }

    #[test]
    fn failures_are_read_with_their_targets() {
        check("running 1 test\ntest a ... ok\n\ntest result: ok. 1 passed\n", &[], &[]);
        check(
            "test a::b ... FAILED\n\nfailures:\n\n---- a::b stdout ----\nthread 'a::b' panicked:\n    indented word\n\n\
             failures:\n    a::b\n    a::c\n\ntest result: FAILED. 6 passed\n\n\
             error: test failed, to rerun pass `-p x --test y`\n\
             failures:\n\n---- d stdout ----\nboom\n\n\nfailures:\n    d\n\ntest result: FAILED.\n\n\
             error: 2 targets failed:\n    `-p x --test y`\n    `-p z --lib`\n",
            &[&["a::b", "a::c"], &["d"]],
            &[&["-p", "x", "--test", "y"], &["-p", "z", "--lib"]],
        );
    }
}
