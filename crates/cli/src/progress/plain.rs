//! Progress as lines, in BuildKit's forms, which scripts and people read alike.
//!
//! One step is current and its lines go out as they come; the lines of others wait until the current
//! one ends, or until they have waited long enough to interrupt it. Nothing is cut off.
//!
//! Read [`Plain::flush`] first.

use std::io::Write;
use std::time::Duration;

use super::text;
use super::tracker::{State, Tracker};

/// How long lines of another step wait behind a current one that does not end.
const PATIENCE: Duration = Duration::from_secs(5);

/// The printer.
#[derive(Debug)]
pub(super) struct Plain<W> {
    output: W,
    /// The step whose block is open, by place.
    current: Option<usize>,
    /// Which steps' ends have been printed, by place.
    ended: Vec<bool>,
    printed_any: bool,
}

impl<W: Write> Plain<W> {
    pub(super) fn new(output: W) -> Self {
        Self { output, current: None, ended: Vec::new(), printed_any: false }
    }

    /// Prints what is due.
    pub(super) fn flush(&mut self, tracker: &mut Tracker, now: Duration) {
        self.ended.resize(tracker.items.len(), false);
        self.print_ended(tracker);
        if let Some(current) = self.current {
            if !tracker.items[current].pending.is_empty() {
                self.print(tracker, current);
            }
            // Only who waits too long may interrupt.
            let impatient = |place: &usize| {
                let item = &tracker.items[*place];
                !item.pending.is_empty() && now >= item.pending_since + PATIENCE
            };
            let longest = (0..tracker.items.len())
                .filter(impatient)
                .min_by_key(|place| tracker.items[*place].pending_since);
            if let Some(other) = longest {
                self.print(tracker, other);
            }
            return;
        }
        let running = |place: &usize| tracker.items[*place].is_running();
        let with_lines = |place: &usize| !tracker.items[*place].pending.is_empty();
        let first = (0..tracker.items.len()).filter(running).find(with_lines);
        if let Some(next) = first.or_else(|| (0..tracker.items.len()).find(running)) {
            self.print(tracker, next);
        }
    }

    /// Prints everything there is, at the end.
    pub(super) fn finish(&mut self, tracker: &mut Tracker, now: Duration) {
        self.flush(tracker, now);
        for place in 0..tracker.items.len() {
            if !tracker.items[place].pending.is_empty() {
                self.print(tracker, place);
            }
        }
        drop(self.output.flush());
    }

    /// The current step's end first, then the others' by number.
    fn print_ended(&mut self, tracker: &mut Tracker) {
        let mut due: Vec<usize> = (0..tracker.items.len())
            .filter(|place| !tracker.items[*place].is_running() && !self.ended[*place])
            .collect();
        due.sort_by_key(|place| Some(*place) != self.current);
        for place in due {
            self.print(tracker, place);
        }
    }

    /// Prints a step's waiting lines, with its header if another one's block was open.
    fn print(&mut self, tracker: &mut Tracker, place: usize) {
        let item = &mut tracker.items[place];
        let number = place + 1;
        let mut block = String::new();
        if self.current != Some(place) {
            if let Some(interrupted) = self.current {
                block.push_str(&format!("#{} ...\n", interrupted + 1));
            }
            if self.printed_any {
                block.push('\n');
            }
            block.push_str(&format!("#{number} {}\n", item.name));
        }
        for line in item.pending.drain(..) {
            block.push_str(&format!("#{number} {line}\n"));
        }
        self.current = Some(place);
        self.printed_any = true;
        if let Some(end) = end_line(&item.state) {
            block.push_str(&format!("#{number} {end}\n"));
            self.current = None;
            self.ended[place] = true;
        }
        // A closed standard error is no reason to fail a build.
        drop(self.output.write_all(block.as_bytes()));
    }
}

fn end_line(state: &State) -> Option<String> {
    match state {
        State::Running => None,
        State::Cached => Some("CACHED".to_owned()),
        State::Done(duration) => Some(format!("DONE {}", text::seconds(*duration))),
        State::Failed(message) => Some(format!("ERROR: {message}")),
        State::Cancelled => Some("CANCELED".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use stave_oci::Digest;
    use stave_solver::{LogStream, SolveEvent};

    use super::*;

    fn vertex(name: &str) -> Digest {
        Digest::sha256(name.as_bytes())
    }

    fn log(name: &str, text: &[u8]) -> SolveEvent {
        SolveEvent::Log { vertex: vertex(name), stream: LogStream::Stdout, bytes: text.to_vec() }
    }

    fn started(name: &str) -> SolveEvent {
        SolveEvent::Started { vertex: vertex(name), at: std::time::SystemTime::UNIX_EPOCH }
    }

    fn completed(name: &str, millis: u64) -> SolveEvent {
        SolveEvent::Completed { vertex: vertex(name), duration: Duration::from_millis(millis) }
    }

    /// Plays a script, flushing after each event, and gives what was printed.
    fn play(script: Vec<(u64, SolveEvent)>) -> String {
        let mut tracker = Tracker::new(true);
        let names = ["a", "b", "c"];
        tracker.name(names.iter().map(|name| (vertex(name), format!("[{name} 1/1] RUN {name}"))));
        let mut plain = Plain::new(Vec::new());
        let mut last = Duration::ZERO;
        for (millis, event) in script {
            last = Duration::from_millis(millis);
            tracker.solve(event, last);
            plain.flush(&mut tracker, last);
        }
        plain.finish(&mut tracker, last);
        String::from_utf8(plain.output).expect("UTF-8")
    }

    fn cached(name: &str) -> SolveEvent {
        SolveEvent::Cached { vertex: vertex(name), hit: stave_solver::Hit::Local, key: None }
    }

    #[test]
    fn one_step_after_the_other() {
        let script = vec![
            (0, cached("a")),
            (10, started("b")),
            (133, log("b", b"hello\nwor")),
            (150, log("b", b"ld\nno newline")),
            (310, completed("b", 300)),
            (310, started("c")),
            (
                400,
                SolveEvent::Failed {
                    vertex: vertex("c"),
                    duration: Duration::ZERO,
                    message: "exit code: 3".into(),
                },
            ),
        ];
        insta::assert_snapshot!(play(script), @r"
        #1 [a 1/1] RUN a
        #1 CACHED

        #2 [b 1/1] RUN b
        #2 0.123 hello
        #2 0.140 world
        #2 0.300 no newline
        #2 DONE 0.3s

        #3 [c 1/1] RUN c
        #3 ERROR: exit code: 3
        ");
    }

    #[test]
    fn steps_side_by_side_do_not_mix() {
        let script = vec![
            (0, started("a")),
            (0, started("b")),
            (100, log("a", b"a1\n")),
            (200, log("b", b"b1\n")),
            (300, log("a", b"a2\n")),
            // A step that ends interrupts at once.
            (400, cached("c")),
            (500, log("a", b"a3\n")),
            (900, completed("a", 900)),
            (1000, completed("b", 1000)),
        ];
        insta::assert_snapshot!(play(script), @r"
        #1 [a 1/1] RUN a
        #1 0.100 a1
        #1 0.300 a2
        #1 ...

        #3 [c 1/1] RUN c
        #3 CACHED

        #2 [b 1/1] RUN b
        #2 0.200 b1
        #2 ...

        #1 [a 1/1] RUN a
        #1 0.500 a3
        #1 DONE 0.9s

        #2 [b 1/1] RUN b
        #2 DONE 1.0s
        ");
    }

    #[test]
    fn who_waits_too_long_interrupts() {
        let script = vec![
            (0, started("a")),
            (0, started("b")),
            (100, log("a", b"a1\n")),
            (200, log("b", b"b1\n")),
            (6000, log("a", b"a2\n")),
            (6100, SolveEvent::Cancelled { vertex: vertex("b") }),
            (6200, SolveEvent::Cancelled { vertex: vertex("a") }),
        ];
        insta::assert_snapshot!(play(script), @r"
        #1 [a 1/1] RUN a
        #1 0.100 a1
        #1 6.000 a2
        #1 ...

        #2 [b 1/1] RUN b
        #2 0.200 b1
        #2 CANCELED

        #1 [a 1/1] RUN a
        #1 CANCELED
        ");
    }

    #[test]
    fn transfers_are_told_at_their_start_now_and_then_and_at_their_end() {
        let at = |current| SolveEvent::Progress {
            vertex: vertex("a"),
            id: "sha256:0123".into(),
            current,
            total: Some(45_600_000),
        };
        let script = vec![
            (0, started("a")),
            (0, at(0)),
            (1000, at(1_000_000)),
            (5000, at(12_300_000)),
            (5100, at(13_000_000)),
            (8000, at(45_600_000)),
            (8000, at(45_600_000)),
            (8100, completed("a", 8100)),
        ];
        insta::assert_snapshot!(play(script), @r"
        #1 [a 1/1] RUN a
        #1 sha256:0123 0B / 45.60MB
        #1 sha256:0123 12.30MB / 45.60MB 5.0s
        #1 sha256:0123 45.60MB / 45.60MB 8.0s done
        #1 DONE 8.1s
        ");
    }

    #[test]
    fn steps_outside_of_the_graph_have_parts() {
        let mut tracker = Tracker::new(true);
        let mut plain = Plain::new(Vec::new());
        let now = Duration::from_millis(50);
        tracker.step_started(0, "exporting to image".into(), Duration::ZERO);
        tracker.step_part(0, "exporting layers", now);
        tracker.step_progress(0, "pushing sha256:01", (0, Some(10)), now);
        tracker.step_part(0, "pushing sha256:01", now * 10);
        tracker.step_ended(0, Ok(now * 10));
        plain.finish(&mut tracker, now);
        insta::assert_snapshot!(String::from_utf8(plain.output).expect("UTF-8"), @r"
        #1 exporting to image
        #1 exporting layers done
        #1 pushing sha256:01 0B / 10B
        #1 pushing sha256:01 0B / 10B 0.5s done
        #1 DONE 0.5s
        ");
    }

    #[test]
    fn hostile_output_cannot_steer_the_terminal() {
        let script = vec![
            (0, started("a")),
            (1, log("a", b"\x1b[2J\x1b]0;x\x07ok\xf0\x9f\n")),
            (2, completed("a", 2)),
        ];
        insta::assert_snapshot!(play(script), @r"
        #1 [a 1/1] RUN a
        #1 0.001 ok�
        #1 DONE 0.0s
        ");
    }

    #[test]
    fn losses_are_told() {
        let script =
            vec![(0, started("a")), (1, SolveEvent::LogDropped { vertex: vertex("a"), bytes: 2_000_000 })];
        insta::assert_snapshot!(play(script), @r"
        #1 [a 1/1] RUN a
        #1 0.001 [output clipped: 2.00MB were printed faster than they could be shown]
        ");
    }
}
