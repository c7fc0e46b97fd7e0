//! `cargo xtask instructions`: how many instructions the pure parts take, against the recorded counts.
//!
//! valgrind counts the same whatever else the machine does, so this can stand in CI where a clock cannot. A count
//! is that of twice as many rounds less that of some: what a process takes to start falls out.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Args;

use crate::{Failure, machine};

/// Rounds of the shorter of two runs.
const ROUNDS: u64 = 10;
/// By how much a count may rise.
const TOLERANCE: f64 = 1.05;

/// What to do with the counts.
#[derive(Args, Default)]
pub(crate) struct Options {
    /// Record the counts in place of comparing them.
    #[arg(long)]
    bless: bool,
}

/// Counts every pure case and compares; a rise of more than 5 % is a failure.
pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    machine::install(&["valgrind"])?;
    let program = machine::release_program("stave-measure", "measure")?;
    let names = machine::read(&mut Command::new(&program))?;
    let mut counts = BTreeMap::new();
    for name in names.lines() {
        let count = count(&program, name)?;
        println!("{name:10} {count:>12} instructions a round");
        counts.insert(name.to_owned(), count);
    }
    let compiler = machine::read(Command::new("rustc").arg("--version"))?.trim().to_owned();
    if options.bless {
        std::fs::write(record(), render(&compiler, &counts))?;
        println!("recorded in {}", record().display());
        return Ok(());
    }
    let text = std::fs::read_to_string(record())?;
    let (recorded_with, recorded) = parse(&text)?;
    if recorded_with != compiler {
        println!("recorded with {recorded_with}, this is {compiler}: not compared");
        return Ok(());
    }
    let problems = compare(&recorded, &counts);
    if problems.is_empty() { Ok(()) } else { Err(problems.join("\n").into()) }
}

fn record() -> PathBuf {
    crate::root().join("testdata/instructions.txt")
}

fn count(program: &Path, name: &str) -> Result<u64, Failure> {
    let some = total(program, name, ROUNDS)?;
    let twice = total(program, name, 2 * ROUNDS)?;
    Ok(twice.saturating_sub(some) / ROUNDS)
}

/// Instructions of one process.
fn total(program: &Path, name: &str, rounds: u64) -> Result<u64, Failure> {
    let mut command = Command::new("valgrind");
    command.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]);
    let output = command.arg(program).arg(name).arg(rounds.to_string()).output()?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let collected = text.lines().find_map(|line| line.split_once("Collected : "));
    let collected = collected.and_then(|(_, number)| number.trim().parse().ok());
    collected.ok_or_else(|| format!("valgrind said of {name}:\n{text}").into())
}

fn render(compiler: &str, counts: &BTreeMap<String, u64>) -> String {
    let mut text =
        format!("# `cargo xtask instructions --bless` writes this: instructions a round.\n{compiler}\n");
    for (name, count) in counts {
        // Writing to a String cannot fail.
        let _infallible = writeln!(text, "{name} {count}");
    }
    text
}

fn parse(text: &str) -> Result<(String, BTreeMap<String, u64>), Failure> {
    let mut lines = text.lines().filter(|line| !line.starts_with('#'));
    let compiler = lines.next().ok_or("the record of instruction counts is empty")?.to_owned();
    let mut counts = BTreeMap::new();
    for line in lines {
        let (name, count) = line.split_once(' ').ok_or_else(|| format!("not a count: {line}"))?;
        counts.insert(name.to_owned(), count.parse()?);
    }
    Ok((compiler, counts))
}

#[expect(clippy::cast_precision_loss, reason = "a ratio is shown with two digits")]
fn compare(recorded: &BTreeMap<String, u64>, counts: &BTreeMap<String, u64>) -> Vec<String> {
    let mut problems = Vec::new();
    for (name, count) in counts {
        match recorded.get(name) {
            None => {
                problems.push(format!("{name} has no recorded count: `cargo xtask instructions --bless`"));
            }
            Some(before) => {
                let ratio = *count as f64 / *before as f64;
                if ratio > TOLERANCE {
                    problems.push(format!(
                        "{name} takes {count} instructions a round, {before} are recorded: {ratio:.2} times as many"
                    ));
                }
            }
        }
    }
    let gone = recorded.keys().filter(|name| !counts.contains_key(*name));
    problems.extend(gone.map(|name| format!("{name} is recorded and no longer measured")));
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(of: &[(&str, u64)]) -> BTreeMap<String, u64> {
        of.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
    }

    #[track_caller]
    fn check(recorded: &[(&str, u64)], found: &[(&str, u64)], problems: usize) {
        assert_eq!(compare(&counts(recorded), &counts(found)).len(), problems);
    }

    #[test]
    fn only_a_rise_is_a_problem() {
        check(&[("a", 1000)], &[("a", 1050)], 0);
        check(&[("a", 1000)], &[("a", 1051)], 1);
        check(&[("a", 1000)], &[("a", 1)], 0);
        check(&[], &[("a", 1)], 1);
        check(&[("a", 1)], &[], 1);
    }

    #[test]
    fn the_record_is_read_as_it_was_written() {
        let found = counts(&[("a", 1), ("b", 22)]);
        let (compiler, read) = parse(&render("rustc 1.2.3", &found)).expect("is sound");
        assert_eq!((compiler.as_str(), read), ("rustc 1.2.3", found));
    }
}
