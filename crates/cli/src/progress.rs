//! What a user sees while something runs.
//!
//! Owns rendering: events come in from any thread, one thread draws them on standard error. Must not
//! know how anything runs; an operation is right with nobody watching. A slow or dead reader never
//! holds up a build: past [`MAX_QUEUED`] log output and byte counts are dropped (and the loss said),
//! outcomes never.
//!
//! Start with [`Display`]; then [`tracker::Tracker`] for the state, [`plain`] and [`tty`] for the looks.

mod grouped;
mod plain;
mod raw;
pub(crate) mod sanitise;
mod summary;
mod text;
mod tracker;
mod tty;

use std::io::{self, IsTerminal as _, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use stave_engine::{BuildOutcome, EngineEvent, Observer, without_credentials};
use stave_frontend_dockerfile::{Diagnostic, Source};
use stave_llb::Vertex;
use stave_solver::SolveEvent;

use self::grouped::Grouped;
pub(crate) use self::grouped::Sections;
use self::plain::Plain;
use self::raw::Raw;
pub(crate) use self::raw::Warning;
use self::tracker::Tracker;
use self::tty::Live;
use crate::commands::build::ProgressForm;

/// Bytes of events waiting to be drawn, beyond which those that can be missed are.
const MAX_QUEUED: usize = 16 << 20;
/// Time between two pictures of the live view.
const FRAME: Duration = Duration::from_millis(100);
/// Events taken in one go, so that a flood of them is still drawn.
const BATCH: usize = 4096;
/// What an event weighs beside its bytes.
const EVENT_WEIGHT: usize = 128;
/// Warnings kept for the end.
const MAX_WARNINGS: usize = 1000;

/// A running display. Dropped without an end, it shows what it has and stops.
#[derive(Debug)]
pub(crate) struct Display {
    sender: Sender<Message>,
    queued: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

enum Message {
    Event(EngineEvent),
    /// A build ended well.
    Finish(Box<BuildOutcome>),
    /// It failed, and the caller says why; or it was no build, and there is nothing to add.
    Abandon,
}

/// How events are shown.
enum Look {
    Plain(Plain<io::Stderr>),
    Grouped(Grouped<io::Stderr>),
    Raw(Raw<io::Stderr>),
    Live(Live<io::Stderr>),
    Quiet,
}

impl Display {
    /// Starts showing a build of `source`.
    pub(crate) fn start(form: ProgressForm, source: &Source) -> Self {
        Self::begin(form, Some(source.clone()))
    }

    /// Starts showing something that is no build: a pull, a push, a load.
    pub(crate) fn steps(form: ProgressForm) -> Self {
        Self::begin(form, None)
    }

    fn begin(form: ProgressForm, source: Option<Source>) -> Self {
        let live = match form {
            // A terminal that cannot move its cursor gets lines.
            ProgressForm::Auto => {
                io::stderr().is_terminal() && std::env::var_os("TERM").is_some_and(|term| term != "dumb")
            }
            ProgressForm::Tty => true,
            ProgressForm::Plain | ProgressForm::Grouped(_) | ProgressForm::Rawjson | ProgressForm::Quiet => {
                false
            }
        };
        let look = match form {
            ProgressForm::Quiet => Look::Quiet,
            ProgressForm::Grouped(sections) => {
                let sections = sections.resolved(|name| std::env::var(name).ok());
                Look::Grouped(Grouped::new(io::stderr(), sections))
            }
            ProgressForm::Rawjson => Look::Raw(Raw::new(io::stderr(), source.clone())),
            _ if live => Look::Live(Live::new(io::stderr(), console::colors_enabled_stderr())),
            _ => Look::Plain(Plain::new(io::stderr())),
        };
        let (sender, receiver) = channel();
        let queued = Arc::new(AtomicUsize::new(0));
        let waiting = Arc::clone(&queued);
        let thread = std::thread::Builder::new()
            .name("progress".to_owned())
            .spawn(move || Renderer::new(look, source, waiting).run(&receiver))
            // Without the thread there is no picture, and the build is no less right.
            .ok();
        Self { sender, queued, thread }
    }

    /// Where events are to be sent.
    pub(crate) fn observer(&self) -> Observer {
        let (sender, queued) = (self.sender.clone(), Arc::clone(&self.queued));
        Observer::new(move |event| {
            let weight = weight(&event);
            let waiting = queued.fetch_add(weight, Ordering::Relaxed);
            if waiting > MAX_QUEUED && can_be_missed(&event) {
                queued.fetch_sub(weight, Ordering::Relaxed);
                return;
            }
            // The renderer is gone only when nobody looks any more.
            drop(sender.send(Message::Event(event)));
        })
    }

    /// Draws everything and the last line: what was built.
    pub(crate) fn finish(self, outcome: &BuildOutcome) {
        self.end(Message::Finish(Box::new(outcome.clone())));
    }

    /// Draws everything, and the end of the log of what failed.
    pub(crate) fn abandon(self) {
        self.end(Message::Abandon);
    }

    fn end(mut self, message: Message) {
        drop(self.sender.send(message));
        self.join();
    }

    fn join(&mut self) {
        if let Some(thread) = self.thread.take() {
            // A renderer that panicked has said so itself.
            drop(thread.join());
        }
    }
}

impl Drop for Display {
    fn drop(&mut self) {
        if self.thread.is_some() {
            drop(self.sender.send(Message::Abandon));
            self.join();
        }
    }
}

fn weight(event: &EngineEvent) -> usize {
    match event {
        EngineEvent::Solve(SolveEvent::Log { bytes, .. }) => bytes.len() + EVENT_WEIGHT,
        _ => EVENT_WEIGHT,
    }
}

fn can_be_missed(event: &EngineEvent) -> bool {
    matches!(
        event,
        EngineEvent::StepProgress { .. }
            | EngineEvent::Solve(SolveEvent::Log { .. } | SolveEvent::Progress { .. })
    )
}

struct Renderer {
    look: Look,
    tracker: Tracker,
    source: Option<Source>,
    warnings: Vec<Diagnostic>,
    queued: Arc<AtomicUsize>,
    start: Instant,
}

impl Renderer {
    fn new(look: Look, source: Option<Source>, queued: Arc<AtomicUsize>) -> Self {
        let tracker = Tracker::new(matches!(look, Look::Plain(_) | Look::Grouped(_)));
        Self { look, tracker, source, warnings: Vec::new(), queued, start: Instant::now() }
    }

    fn run(mut self, messages: &Receiver<Message>) {
        let mut drawn = Instant::now();
        loop {
            let mut next = match messages.recv_timeout(FRAME) {
                Ok(message) => Some(message),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => Some(Message::Abandon),
            };
            for _ in 0..BATCH {
                match next {
                    None => break,
                    Some(Message::Event(event)) => self.event(event),
                    Some(Message::Finish(outcome)) => return self.finish(&outcome),
                    Some(Message::Abandon) => return self.abandon(),
                }
                next = messages.try_recv().ok();
            }
            // The one left over when a batch is full.
            match next {
                None => {}
                Some(Message::Event(event)) => self.event(event),
                Some(Message::Finish(outcome)) => return self.finish(&outcome),
                Some(Message::Abandon) => return self.abandon(),
            }
            if matches!(self.look, Look::Plain(_) | Look::Grouped(_)) || drawn.elapsed() >= FRAME {
                drawn = Instant::now();
                self.draw();
            }
        }
    }

    fn event(&mut self, event: EngineEvent) {
        self.queued.fetch_sub(weight(&event), Ordering::Relaxed);
        let now = self.start.elapsed();
        if let Look::Raw(raw) = &mut self.look {
            return raw.event(&event, SystemTime::now());
        }
        match event {
            EngineEvent::Graph(definition) => {
                let name = |vertex: &Vertex| {
                    let name = vertex.name().map_or_else(
                        || vertex.digest.to_string(),
                        |name| without_credentials(name).into_owned(),
                    );
                    (vertex.digest.clone(), name)
                };
                self.tracker.name(definition.vertices().iter().map(name));
            }
            EngineEvent::Solve(event) => self.tracker.solve(event, now),
            EngineEvent::Named { vertex, name } => self.tracker.name(std::iter::once((vertex, name))),
            EngineEvent::Note { vertex, text } => self.tracker.note(&vertex, &text, now),
            EngineEvent::Miss { vertex, reason } => {
                if reason.is_telling() {
                    self.tracker.note(&vertex, &format!("cache miss: {reason}"), now);
                }
            }
            EngineEvent::Warning(warning) => {
                if self.warnings.len() < MAX_WARNINGS {
                    self.warnings.push(warning);
                }
            }
            EngineEvent::StepStarted { step, name } => self.tracker.step_started(step.0, name, now),
            EngineEvent::StepProgress { step, id, current, total } => {
                self.tracker.step_progress(step.0, &id, (current, total), now);
            }
            EngineEvent::StepPart { step, text } => self.tracker.step_part(step.0, &text, now),
            EngineEvent::StepCompleted { step, duration } => self.tracker.step_ended(step.0, Ok(duration)),
            EngineEvent::StepFailed { step, message, .. } => self.tracker.step_ended(step.0, Err(message)),
        }
    }

    fn draw(&mut self) {
        let now = self.start.elapsed();
        match &mut self.look {
            Look::Plain(plain) => plain.flush(&mut self.tracker, now),
            Look::Grouped(grouped) => grouped.flush(&mut self.tracker),
            Look::Live(live) => live.draw(&self.tracker, now),
            Look::Raw(_) | Look::Quiet => {}
        }
    }

    /// The last picture, of any height.
    fn settle(&mut self) {
        let now = self.start.elapsed();
        match &mut self.look {
            Look::Plain(plain) => plain.finish(&mut self.tracker, now),
            Look::Grouped(grouped) => grouped.finish(&mut self.tracker),
            Look::Live(live) => live.finish(&self.tracker, now),
            Look::Raw(_) | Look::Quiet => {}
        }
    }

    fn finish(mut self, outcome: &BuildOutcome) {
        self.settle();
        if !matches!(self.look, Look::Quiet | Look::Raw(_)) {
            say(&(self.warnings() + &summary::built(outcome, self.start.elapsed())));
        }
    }

    fn abandon(mut self) {
        self.settle();
        // The log of a failed step stands open already, or is nothing for people.
        if matches!(self.look, Look::Raw(_)) {
            return;
        }
        say(&(self.warnings() + &summary::failed_logs(&self.tracker)));
    }

    fn warnings(&self) -> String {
        self.source.as_ref().map(|source| summary::warnings(source, &self.warnings)).unwrap_or_default()
    }
}

/// Standard error may be closed; then nobody wants to know.
fn say(text: &str) {
    drop(io::stderr().write_all(text.as_bytes()));
}
