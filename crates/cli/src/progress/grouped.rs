//! Progress for the logs of CI: each step's output together, when it ends, behind a header that can be folded.
//!
//! Owns the marks that GitHub's and GitLab's viewers fold by. Lines of steps keep their time in front, so that nothing
//! a step prints is taken for a mark or a command. Must not know how events arrive. Read [`Grouped::flush`] first.

use std::io::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::text;
use super::tracker::{Item, State, Tracker};

/// Whose viewer will show the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Sections {
    /// As the environment says
    Auto,
    /// `::group::` of GitHub Actions
    Github,
    /// `section_start` of GitLab
    Gitlab,
    /// No marks
    None,
}

impl Sections {
    /// Decides by the variables that CI systems set.
    pub(super) fn resolved(self, environment: impl Fn(&str) -> Option<String>) -> Self {
        let set = |name: &str| environment(name).is_some_and(|value| value == "true");
        match self {
            Self::Auto if set("GITHUB_ACTIONS") => Self::Github,
            Self::Auto if set("GITLAB_CI") => Self::Gitlab,
            Self::Auto => Self::None,
            other => other,
        }
    }
}

/// The printer.
#[derive(Debug)]
pub(super) struct Grouped<W> {
    output: W,
    sections: Sections,
    /// Which steps were printed, by place.
    printed: Vec<bool>,
    /// Seconds since the epoch when the display began: GitLab wants times.
    began: u64,
}

impl<W: Write> Grouped<W> {
    /// `sections` is not [`Sections::Auto`] any more.
    pub(super) fn new(output: W, sections: Sections) -> Self {
        let began = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        Self { output, sections, printed: Vec::new(), began }
    }

    /// Prints the steps that ended since.
    pub(super) fn flush(&mut self, tracker: &mut Tracker) {
        self.printed.resize(tracker.items.len(), false);
        for place in 0..tracker.items.len() {
            if !tracker.items[place].is_running() && !self.printed[place] {
                self.print(&mut tracker.items[place], place);
            }
        }
    }

    /// Prints everything there is, at the end.
    pub(super) fn finish(&mut self, tracker: &mut Tracker) {
        self.flush(tracker);
        for place in 0..tracker.items.len() {
            if !self.printed[place] {
                self.print(&mut tracker.items[place], place);
            }
        }
        drop(self.output.flush());
    }

    fn print(&mut self, item: &mut Item, place: usize) {
        self.printed[place] = true;
        let number = place + 1;
        let end = match &item.state {
            State::Running => String::new(),
            State::Cached => "CACHED".to_owned(),
            State::Done(duration) => format!("DONE {}", text::seconds(*duration)),
            State::Failed(message) => format!("ERROR: {message}"),
            State::Cancelled => "CANCELED".to_owned(),
        };
        let title = format!("#{number} {} {end}", item.name);
        let title = title.trim_end();
        let lines: String = item.pending.drain(..).map(|line| format!("{line}\n")).collect();
        // What failed shall be seen without unfolding, and there is nothing to fold where there are no lines.
        let folds = !matches!(item.state, State::Failed(_)) && !lines.is_empty();
        let started = self.began + item.started.as_secs();
        let block = match self.sections {
            Sections::Github if folds => format!("::group::{}\n{lines}::endgroup::\n", escaped(title)),
            Sections::Github if matches!(item.state, State::Failed(_)) => {
                let message = escaped(&end["ERROR: ".len()..]);
                format!("{title}\n{lines}::error title=#{number} {}::{message}\n", property(&item.name))
            }
            Sections::Gitlab if folds => {
                section(number, (started, item.elapsed(Duration::ZERO)), title, &lines)
            }
            Sections::Github | Sections::Gitlab | Sections::None | Sections::Auto => {
                format!("{title}\n{lines}")
            }
        };
        // A closed standard error is no reason to fail a build.
        drop(self.output.write_all(block.as_bytes()));
    }
}

/// A folded section in GitLab's marks.
fn section(number: usize, (started, elapsed): (u64, Duration), title: &str, lines: &str) -> String {
    let ended = started + elapsed.as_secs();
    format!(
        "\x1b[0Ksection_start:{started}:stave_step_{number}[collapsed=true]\r\x1b[0K{title}\n\
         {lines}\x1b[0Ksection_end:{ended}:stave_step_{number}\r\x1b[0K\n"
    )
}

/// The data of a GitHub command.
fn escaped(text: &str) -> String {
    text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A")
}

/// A property of a GitHub command.
fn property(text: &str) -> String {
    escaped(text).replace(':', "%3A").replace(',', "%2C")
}

#[cfg(test)]
mod tests {
    use stave_oci::Digest;
    use stave_solver::{LogStream, SolveEvent};

    use super::*;

    fn play(sections: Sections) -> String {
        let mut tracker = Tracker::new(true);
        let vertex = |name: &str| Digest::sha256(name.as_bytes());
        tracker.name(["a", "b"].iter().map(|name| (vertex(name), format!("[{name} 1/1] RUN {name}"))));
        let mut grouped = Grouped::new(Vec::new(), sections);
        grouped.began = 1000;
        let at = std::time::SystemTime::UNIX_EPOCH;
        let log = |name: &str, text: &str| SolveEvent::Log {
            vertex: vertex(name),
            stream: LogStream::Stdout,
            bytes: text.as_bytes().to_vec(),
        };
        let script = [
            SolveEvent::Started { vertex: vertex("a"), at },
            SolveEvent::Started { vertex: vertex("b"), at },
            log("a", "a1\n"),
            log("b", "::set-output name=x::y\n"),
            log("a", "a2\n"),
            SolveEvent::Completed { vertex: vertex("a"), duration: Duration::from_millis(2100) },
            SolveEvent::Failed {
                vertex: vertex("b"),
                duration: Duration::ZERO,
                message: "exit code: 3".into(),
            },
        ];
        for (second, event) in (0..).zip(script) {
            tracker.solve(event, Duration::from_secs(second));
            grouped.flush(&mut tracker);
        }
        grouped.finish(&mut tracker);
        String::from_utf8(grouped.output).expect("UTF-8").replace('\x1b', "^").replace('\r', "~")
    }

    #[test]
    fn a_steps_lines_stay_together() {
        insta::assert_snapshot!(play(Sections::None), @r"
        #1 [a 1/1] RUN a DONE 2.1s
        2.000 a1
        4.000 a2
        #2 [b 1/1] RUN b ERROR: exit code: 3
        2.000 ::set-output name=x::y
        ");
    }

    #[test]
    fn github_folds_what_went_well_and_marks_what_failed() {
        insta::assert_snapshot!(play(Sections::Github), @r"
        ::group::#1 [a 1/1] RUN a DONE 2.1s
        2.000 a1
        4.000 a2
        ::endgroup::
        #2 [b 1/1] RUN b ERROR: exit code: 3
        2.000 ::set-output name=x::y
        ::error title=#2 [b 1/1] RUN b::exit code: 3
        ");
    }

    #[test]
    fn gitlab_folds_too() {
        insta::assert_snapshot!(play(Sections::Gitlab), @r"
        ^[0Ksection_start:1000:stave_step_1[collapsed=true]~^[0K#1 [a 1/1] RUN a DONE 2.1s
        2.000 a1
        4.000 a2
        ^[0Ksection_end:1002:stave_step_1~^[0K
        #2 [b 1/1] RUN b ERROR: exit code: 3
        2.000 ::set-output name=x::y
        ");
    }

    #[test]
    fn the_environment_says_whose_log_it_is() {
        let of =
            |name: &'static str| Sections::Auto.resolved(|asked| (asked == name).then(|| "true".to_owned()));
        assert_eq!(of("GITHUB_ACTIONS"), Sections::Github);
        assert_eq!(of("GITLAB_CI"), Sections::Gitlab);
        assert_eq!(of("CI"), Sections::None);
        assert_eq!(Sections::Gitlab.resolved(|_| Some("true".to_owned())), Sections::Gitlab);
    }
}
