//! A command line, several in a row or at once, run under GNU time.

use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use super::usage::Usage;
use crate::Failure;

/// One command line.
#[derive(Debug, Clone, Default)]
pub(crate) struct Line(pub(crate) Vec<OsString>);

impl Line {
    pub(crate) fn new(program: &Path) -> Self {
        Self(vec![program.into()])
    }

    pub(crate) fn arg(mut self, argument: impl Into<OsString>) -> Self {
        self.0.push(argument.into());
        self
    }

    pub(crate) fn args<I: IntoIterator<Item = T>, T: Into<OsString>>(mut self, arguments: I) -> Self {
        self.0.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// For a shell.
    fn quoted(&self) -> String {
        let quote = |word: &OsString| format!("'{}'", word.to_string_lossy().replace('\'', r"'\''"));
        self.0.iter().map(quote).collect::<Vec<_>>().join(" ")
    }
}

/// What is run as one operation.
#[derive(Debug, Clone)]
pub(crate) enum Invocation {
    /// One process.
    One(Line),
    /// Each after the one before it has ended well.
    Row(Vec<Line>),
    /// All at the same time.
    Together(Vec<Line>),
}

impl Invocation {
    fn words(&self) -> Vec<OsString> {
        let shell = |script: String| vec!["sh".into(), "-c".into(), script.into()];
        match self {
            Self::One(line) => line.0.clone(),
            Self::Row(lines) => shell(lines.iter().map(Line::quoted).collect::<Vec<_>>().join(" && ")),
            Self::Together(lines) => {
                let start = |line: &Line| format!("{} & pids=\"$pids $!\"", line.quoted());
                let started = lines.iter().map(start).collect::<Vec<_>>().join("\n");
                shell(format!("{started}\nfor pid in $pids; do wait $pid || exit 1; done"))
            }
        }
    }

    /// Runs it and says what it took; `scratch` is a folder for what time writes.
    ///
    /// # Errors
    /// When it fails, with what it printed.
    pub(crate) fn run(&self, scratch: &Path) -> Result<Usage, Failure> {
        let report = scratch.join(format!("time-{}", std::process::id()));
        let mut command = Command::new("/usr/bin/time");
        command.arg("-f").arg(Usage::TIME_FORMAT).arg("-o").arg(&report).args(self.words());
        command.stdin(Stdio::null());
        let start = Instant::now();
        let output = command.output()?;
        let wall = start.elapsed();
        if !output.status.success() {
            let problem = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(format!("{:?} failed: {}\n{problem}", self.words(), output.status).into());
        }
        let text = std::fs::read_to_string(&report)?;
        std::fs::remove_file(&report)?;
        Usage::parse(&text, wall)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(words: &[&str]) -> Line {
        Line::default().args(words.iter().copied())
    }

    #[test]
    fn words_survive_the_shell() {
        let lines = vec![line(&["echo", "it's one"]), line(&["true"])];
        let words = Invocation::Row(lines).words();
        assert_eq!(words[2], OsString::from(r"'echo' 'it'\''s one' && 'true'"));
    }
}
