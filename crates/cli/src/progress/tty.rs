//! Progress as a picture that is drawn again and again in place.
//!
//! The cursor stays visible and the terminal in its own mode, so there is nothing to restore: a build
//! that is killed at any instant leaves the terminal as it was. The picture never is higher than the
//! window, and a window that became narrower is accounted for when the old picture is erased.
//!
//! Read [`picture`] first.

use std::io::Write;
use std::time::Duration;

use console::{Style, measure_text_width, truncate_str};

use super::text;
use super::tracker::{Item, State, Tracker};

/// Log lines shown of each running step.
const LOG_LINES: usize = 6;
/// The window when its size is not known.
const DEFAULT_SIZE: Window = Window { rows: 24, columns: 80 };
/// The narrowest window that is laid out for.
const MIN_COLUMNS: usize = 20;

/// A window's size in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Window {
    pub(super) rows: usize,
    pub(super) columns: usize,
}

/// The picture on the terminal.
#[derive(Debug)]
pub(super) struct Live<W> {
    output: W,
    colours: bool,
    /// Widths of the lines drawn last.
    drawn: Vec<usize>,
}

impl<W: Write> Live<W> {
    pub(super) fn new(output: W, colours: bool) -> Self {
        Self { output, colours, drawn: Vec::new() }
    }

    /// Replaces the picture.
    pub(super) fn draw(&mut self, tracker: &Tracker, now: Duration) {
        if !tracker.items.is_empty() {
            let window = window();
            self.replace(&picture(tracker, now, window, Height::Window, self.colours), window);
        }
    }

    /// Leaves the last picture, in full.
    pub(super) fn finish(&mut self, tracker: &Tracker, now: Duration) {
        if !tracker.items.is_empty() {
            let window = window();
            self.replace(&picture(tracker, now, window, Height::All, self.colours), window);
        }
        self.drawn.clear();
    }

    fn replace(&mut self, lines: &[String], window: Window) {
        // Lines wider than the window is now have been wrapped by the terminal.
        let rows: usize = self.drawn.iter().map(|width| width.div_ceil(window.columns).max(1)).sum();
        let mut output = String::new();
        if rows > 0 {
            output.push_str(&format!("\x1b[{rows}A"));
        }
        output.push('\r');
        for line in lines {
            output.push_str(line);
            output.push_str("\x1b[K\n");
        }
        output.push_str("\x1b[J");
        self.drawn = lines.iter().map(|line| measure_text_width(line)).collect();
        // A closed terminal is no reason to fail a build.
        drop(self.output.write_all(output.as_bytes()).and_then(|()| self.output.flush()));
    }
}

fn window() -> Window {
    match console::Term::stderr().size_checked() {
        Some((rows, columns)) if rows > 0 && columns > 0 => {
            Window { rows: usize::from(rows), columns: usize::from(columns) }
        }
        _ => DEFAULT_SIZE,
    }
}

/// How high a picture may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Height {
    /// No higher than the window.
    Window,
    /// Everything.
    All,
}

/// One step's lines.
struct Block {
    running: bool,
    lines: Vec<String>,
}

/// The lines of the picture.
pub(super) fn picture(
    tracker: &Tracker,
    now: Duration,
    window: Window,
    height: Height,
    colours: bool,
) -> Vec<String> {
    // The last column stays free: some terminals wrap when it is written.
    let width = window.columns.max(MIN_COLUMNS) - 1;
    let (over, total) = tracker.counts();
    let finished = if tracker.items.iter().any(Item::is_running) { "" } else { " FINISHED" };
    let title = format!("[+] Building {} ({over}/{total}){finished}", text::seconds(now));
    let mut blocks: Vec<Block> = tracker.items.iter().map(|item| block(item, now, width, colours)).collect();
    if height == Height::Window {
        fit(&mut blocks, window.rows.saturating_sub(2).max(1));
    }
    let mut lines = vec![truncate_str(&title, width, "").into_owned()];
    lines.extend(blocks.into_iter().flat_map(|block| block.lines));
    lines
}

/// Drops lines until at most `rows` are left: finished steps first, oldest first; then what running
/// steps say beside their names; then the steps above.
fn fit(blocks: &mut Vec<Block>, rows: usize) {
    let mut excess = blocks.iter().map(|block| block.lines.len()).sum::<usize>().saturating_sub(rows);
    blocks.retain(|block| {
        let drop = excess > 0 && !block.running;
        if drop {
            excess = excess.saturating_sub(block.lines.len());
        }
        !drop
    });
    for block in blocks.iter_mut() {
        let spare = block.lines.len().saturating_sub(1).min(excess);
        block.lines.truncate(block.lines.len() - spare);
        excess -= spare;
    }
    let surplus = blocks.len().min(excess);
    blocks.drain(..surplus);
}

fn block(item: &Item, now: Duration, width: usize, colours: bool) -> Block {
    let (mark, style) = match &item.state {
        State::Running => ("", Style::new()),
        State::Cached => ("CACHED ", Style::new().blue()),
        State::Done(_) => ("", Style::new().blue()),
        State::Failed(_) => ("ERROR ", Style::new().red()),
        State::Cancelled => ("CANCELED ", Style::new().yellow()),
    };
    let style = style.force_styling(colours);
    let time = text::seconds(item.elapsed(now));
    let mut lines = vec![style.apply_to(row(&format!(" => {mark}{}", item.name), &time, width)).to_string()];
    let running = item.is_running();
    for part in &item.parts {
        // What is over says so in its step's own line, except while the step goes on.
        if !running {
            continue;
        }
        let mut label = format!(" => => {}", shorten(&part.id));
        if part.current > 0 || part.total.is_some() {
            label.push(' ');
            label.push_str(&text::amount(part.current, part.total));
        }
        let elapsed = part.ended.unwrap_or(now).saturating_sub(part.started);
        let line = row(&label, &text::seconds(elapsed), width);
        let style = if part.ended.is_some() { Style::new().blue() } else { Style::new() };
        lines.push(style.force_styling(colours).apply_to(line).to_string());
    }
    if running {
        let skip = item.tail.len().saturating_sub(LOG_LINES);
        for line in item.tail.iter().skip(skip) {
            let line = line.replace('\t', "    ");
            let line = if colours { line } else { console::strip_ansi_codes(&line).into_owned() };
            lines.push(truncate_str(&format!(" => => # {line}"), width, "").into_owned());
        }
    }
    Block { running, lines }
}

/// A label on the left and a time on the right; a label too long loses its end.
fn row(label: &str, time: &str, width: usize) -> String {
    let room = width.saturating_sub(time.len() + 1);
    let label = truncate_str(label, room, "…");
    let gap = width.saturating_sub(measure_text_width(&label) + time.len());
    format!("{label}{}{time}", " ".repeat(gap))
}

/// A text with its digest cut to what people read.
fn shorten(text: &str) -> String {
    const SHOWN: usize = 12;
    match text.split_once("sha256:") {
        Some((before, digest)) if digest.len() > SHOWN && digest.is_ascii() => {
            let rest = digest.trim_start_matches(|c: char| c.is_ascii_hexdigit());
            format!("{before}sha256:{}…{rest}", &digest[..SHOWN])
        }
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use stave_oci::Digest;
    use stave_solver::{LogStream, SolveEvent};

    use super::*;

    const NARROW: Window = Window { rows: 24, columns: 42 };

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn vertex(number: usize) -> Digest {
        Digest::sha256(number.to_string().as_bytes())
    }

    /// Vertex 0 cached, 1 done, 2 pulling, 3 running with a log, 4 and 5 not begun.
    fn scene() -> Tracker {
        let mut tracker = Tracker::new(false);
        tracker.name((0..6).map(|n| (vertex(n), format!("[build {n}/5] RUN a rather long command {n}"))));
        let at = std::time::SystemTime::UNIX_EPOCH;
        tracker.solve(
            SolveEvent::Cached { vertex: vertex(0), hit: stave_solver::Hit::Local, key: None },
            seconds(0),
        );
        for n in 1..4 {
            tracker.solve(SolveEvent::Started { vertex: vertex(n), at }, seconds(0));
        }
        tracker.solve(
            SolveEvent::Completed { vertex: vertex(1), duration: Duration::from_millis(1540) },
            seconds(2),
        );
        let id = Digest::sha256(b"layer").to_string();
        let progress =
            SolveEvent::Progress { vertex: vertex(2), id, current: 12_300_000, total: Some(45_600_000) };
        tracker.solve(progress, seconds(1));
        for line in 0..9 {
            let bytes =
                format!("line\t{line} \x1b[31mred\x1b[m and more than there is room for\n").into_bytes();
            tracker.solve(
                SolveEvent::Log { vertex: vertex(3), stream: LogStream::Stderr, bytes },
                seconds(line),
            );
        }
        tracker
    }

    #[test]
    fn running_steps_show_their_transfers_and_the_end_of_their_log() {
        let lines = picture(&scene(), seconds(9), NARROW, Height::Window, false).join("\n");
        insta::assert_snapshot!(lines, @r"
        [+] Building 9.0s (2/6)
         => CACHED [build 0/5] RUN a rather… 0.0s
         => [build 1/5] RUN a rather long c… 1.5s
         => [build 2/5] RUN a rather long c… 9.0s
         => => sha256:dac1d7cfa950… 12.30MB… 8.0s
         => [build 3/5] RUN a rather long c… 9.0s
         => => # 3.000 line    3 red and more tha
         => => # 4.000 line    4 red and more tha
         => => # 5.000 line    5 red and more tha
         => => # 6.000 line    6 red and more tha
         => => # 7.000 line    7 red and more tha
         => => # 8.000 line    8 red and more tha
        ");
    }

    #[test]
    fn a_low_window_keeps_what_runs() {
        let low = Window { rows: 6, ..NARROW };
        let lines = picture(&scene(), seconds(9), low, Height::Window, false).join("\n");
        insta::assert_snapshot!(lines, @r"
        [+] Building 9.0s (2/6)
         => [build 2/5] RUN a rather long c… 9.0s
         => [build 3/5] RUN a rather long c… 9.0s
         => => # 3.000 line    3 red and more tha
         => => # 4.000 line    4 red and more tha
        ");
        for rows in 0..20 {
            let lines = picture(&scene(), seconds(9), Window { rows, ..NARROW }, Height::Window, true);
            assert!(lines.len() < rows.max(3), "{rows} rows");
        }
    }

    #[test]
    fn the_last_picture_is_whole_and_says_finished() {
        let mut tracker = scene();
        let failed =
            SolveEvent::Failed { vertex: vertex(3), duration: seconds(9), message: "exit code: 1".into() };
        tracker.solve(failed, seconds(9));
        tracker.solve(SolveEvent::Cancelled { vertex: vertex(2) }, seconds(9));
        let low = Window { rows: 2, ..NARROW };
        insta::assert_snapshot!(picture(&tracker, seconds(9), low, Height::All, false).join("\n"), @r"
        [+] Building 9.0s (4/6) FINISHED
         => CACHED [build 0/5] RUN a rather… 0.0s
         => [build 1/5] RUN a rather long c… 1.5s
         => CANCELED [build 2/5] RUN a rath… 0.0s
         => ERROR [build 3/5] RUN a rather … 0.0s
        ");
    }

    #[test]
    fn no_line_is_wider_than_any_window() {
        for columns in MIN_COLUMNS..60 {
            for colours in [false, true] {
                let window = Window { columns, ..NARROW };
                for line in picture(&scene(), seconds(9), window, Height::All, colours) {
                    assert!(measure_text_width(&line) < columns, "{columns}: {line}");
                }
            }
        }
    }

    #[test]
    fn pictures_replace_each_other_even_in_a_window_made_narrower() {
        let mut live = Live::new(Vec::new(), false);
        live.replace(&["0123456789".to_owned(), "x".to_owned()], Window { rows: 9, columns: 20 });
        live.output.clear();
        // The first line now takes three rows.
        live.replace(&["y".to_owned()], Window { rows: 9, columns: 4 });
        assert_eq!(String::from_utf8_lossy(&live.output), "\x1b[4A\ry\x1b[K\n\x1b[J");
    }
}
