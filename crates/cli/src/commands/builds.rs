//! `builds` and `logs`: what past builds were, did and said.

mod open;

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::json;
use stave_engine::Timeline;
use stave_engine::record::{BuildRecord, BuildState, History, StepRecord, StepState};

use super::Form;
use crate::format;
use crate::output::say;
use crate::progress::sanitise::{Lines, clean};
use crate::report::Failure;
use crate::runtime::with_store;
use crate::state::GlobalOptions;

/// Characters of a step's name in a table.
const NAME_WIDTH: usize = 70;

/// Show what builds were made here
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: BuildsCommand,
}

#[derive(Debug, clap::Subcommand)]
enum BuildsCommand {
    /// List builds, the newest first
    #[command(alias = "list")]
    Ls(ListArguments),
    /// Show a build and its steps
    Inspect(InspectArguments),
    /// Print what the steps of a build wrote
    Logs(LogArguments),
    /// Print where the time of a build went, as a trace for Perfetto or Chrome
    Trace(TraceArguments),
    /// Show a daemon's build in the browser
    Open(open::Arguments),
    /// Remove builds' records and logs
    Rm(RemoveArguments),
}

#[derive(Debug, clap::Args)]
struct ListArguments {
    /// Output form: `table` or `json`, one object a line
    #[arg(long, value_name = "FORM")]
    format: Option<Form>,
    /// Print ids only
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Debug, clap::Args)]
struct InspectArguments {
    /// Id of a build, or the start of one (default: the latest)
    build: Option<String>,
    /// Output form: `table` or `json`
    #[arg(long, value_name = "FORM")]
    format: Option<Form>,
}

/// Print what the steps of a build wrote
#[derive(Debug, clap::Args)]
pub(crate) struct LogArguments {
    /// Id of a build, or the start of one (default: the latest)
    build: Option<String>,
    /// Number of a step in the build's progress, or words of its name (default: all steps)
    step: Option<String>,
}

#[derive(Debug, clap::Args)]
struct TraceArguments {
    /// Id of a build, or the start of one (default: the latest)
    build: Option<String>,
    /// File to write instead of standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
struct RemoveArguments {
    /// Ids of builds, or starts of them
    #[arg(required_unless_present = "all")]
    builds: Vec<String>,
    /// Remove all but those that run
    #[arg(long)]
    all: bool,
}

/// `stave builds`
pub(crate) fn run(arguments: &Arguments, global: &GlobalOptions) -> Result<u8, Failure> {
    match &arguments.command {
        BuildsCommand::Ls(arguments) => list(arguments, global),
        BuildsCommand::Inspect(arguments) => inspect(arguments, global),
        BuildsCommand::Logs(arguments) => logs(arguments, global),
        BuildsCommand::Trace(arguments) => trace(arguments, global),
        BuildsCommand::Open(arguments) => open::run(arguments, global),
        BuildsCommand::Rm(arguments) => remove(arguments, global),
    }
}

fn list(arguments: &ListArguments, global: &GlobalOptions) -> Result<u8, Failure> {
    with_store(global, |store| {
        let history = History::of(store);
        let now = Timestamp::now();
        let mut rows = Vec::new();
        for record in history.records() {
            if arguments.quiet {
                say!("{}", record.id);
            } else if arguments.format == Some(Form::Json) {
                say!("{}", summary(&record));
            } else {
                rows.push(vec![
                    record.id.to_string(),
                    title(&record),
                    state(record.state).to_owned(),
                    format::age(record.started_at, now),
                    duration(&record).map_or_else(String::new, seconds),
                    counts(&record),
                ]);
            }
        }
        if !arguments.quiet && arguments.format != Some(Form::Json) {
            say!("{}", format::table(&["BUILD ID", "NAME", "STATUS", "CREATED", "DURATION", "STEPS"], &rows));
        }
        Ok(0)
    })
}

fn inspect(arguments: &InspectArguments, global: &GlobalOptions) -> Result<u8, Failure> {
    with_store(global, |store| {
        let record = find(&History::of(store), arguments.build.as_deref())?;
        if arguments.format == Some(Form::Json) {
            let text = serde_json::to_string_pretty(&record).map_err(|error| Failure::new(&error))?;
            say!("{text}");
            return Ok(0);
        }
        say!("Build:\t\t{}", record.id);
        say!("Name:\t\t{}", title(&record));
        say!("Context:\t{}", clean(&record.context));
        say!("Dockerfile:\t{} ({})", clean(&record.dockerfile.name), record.dockerfile.digest.short());
        if let Some(target) = &record.target {
            say!("Target:\t\t{}", clean(target));
        }
        // A client's front end need not say.
        if !record.platforms.is_empty() {
            say!("Platform:\t{}", record.platforms.join(", "));
        }
        say!("Status:\t\t{}", state(record.state));
        say!("Started:\t{}", record.started_at);
        if let Some(duration) = duration(&record) {
            say!("Duration:\t{}", seconds(duration));
        }
        for image in &record.images {
            say!("Image:\t\t{image}");
        }
        if let Some(error) = &record.error {
            say!("Error:\t\t{}", clean(error));
        }
        say!("");
        let row = |step: &StepRecord| {
            let took = step.started.zip(step.ended).map(|(start, end)| end.saturating_sub(start));
            vec![
                format!("#{}", step.number),
                step_state(step.state).to_owned(),
                took.map_or_else(String::new, |micros| seconds(Duration::from_micros(micros))),
                step.peak_memory.map_or_else(String::new, format::size),
                format::clip(&clean(&step.name), NAME_WIDTH),
            ]
        };
        let rows: Vec<_> = record.steps.iter().map(row).collect();
        say!("{}", format::table(&["STEP", "STATE", "DURATION", "MEMORY", "NAME"], &rows));
        Ok(0)
    })
}

/// `stave logs`
pub(crate) fn logs(arguments: &LogArguments, global: &GlobalOptions) -> Result<u8, Failure> {
    with_store(global, |store| {
        let history = History::of(store);
        let record = find(&history, arguments.build.as_deref())?;
        if let Some(text) = &arguments.step {
            let step = record.step(text).ok_or_else(|| {
                Failure::message(format!("build `{}` has no step `{text}`, or several", record.id))
                    .with_hint("`stave builds inspect` lists its steps".to_owned())
            })?;
            print_raw(&history, &record, step)?;
            return Ok(0);
        }
        for step in &record.steps {
            print_step(&history, &record, step)?;
        }
        if let Some(error) = &record.error {
            say!("ERROR: {}", clean(error));
        }
        Ok(0)
    })
}

fn trace(arguments: &TraceArguments, global: &GlobalOptions) -> Result<u8, Failure> {
    with_store(global, |store| {
        let text = Timeline::trace_of(&find(&History::of(store), arguments.build.as_deref())?);
        match &arguments.output {
            None => say!("{text}"),
            Some(path) => std::fs::write(path, text)
                .map_err(|error| Failure::message(format!("cannot write `{}`: {error}", path.display())))?,
        }
        Ok(0)
    })
}

fn remove(arguments: &RemoveArguments, global: &GlobalOptions) -> Result<u8, Failure> {
    with_store(global, |store| {
        let history = History::of(store);
        let failed = |error| Failure::new(&error);
        if arguments.all {
            for id in history.ids().map_err(failed)? {
                match history.remove(&id) {
                    Ok(()) => say!("{id}"),
                    Err(stave_engine::record::HistoryError::Running(_)) => {}
                    Err(error) => return Err(failed(error)),
                }
            }
            return Ok(0);
        }
        for text in &arguments.builds {
            let ids = history.ids().map_err(failed)?;
            let mut matching = ids.iter().filter(|id| id.as_str().starts_with(text.as_str()));
            let (Some(id), None) = (matching.next(), matching.next()) else {
                return Err(find(&history, Some(text))
                    .err()
                    .unwrap_or_else(|| Failure::message(text.clone())));
            };
            history.remove(id).map_err(failed)?;
            say!("{id}");
        }
        Ok(0)
    })
}

/// The build that `text` means.
pub(crate) fn find(history: &History, text: Option<&str>) -> Result<BuildRecord, Failure> {
    history.find(text).map_err(|error| Failure::new(&error))
}

/// A step as the plain progress shows it, with its whole log.
fn print_step(history: &History, record: &BuildRecord, step: &StepRecord) -> Result<(), Failure> {
    let number = step.number;
    say!("#{number} {}", clean(&step.name));
    if let Some(reason) = step.reason.as_ref().filter(|reason| reason.is_telling()) {
        say!("#{number} cache miss: {}", clean(&reason.to_string()));
    }
    let start = Duration::from_micros(step.started.unwrap_or(0));
    let line = |at: Duration, text: &str| {
        say!("#{number} {:.3} {text}", at.saturating_sub(start).as_secs_f64());
    };
    let (mut lines, mut last) = (Lines::default(), start);
    if let Some(log) = history.log(&record.id, number).map_err(|error| Failure::new(&error))? {
        for chunk in log {
            let chunk = chunk.map_err(|error| Failure::new(&error))?;
            last = chunk.at;
            for text in lines.push(&chunk.bytes) {
                line(last, &text);
            }
        }
    }
    if let Some(text) = lines.finish() {
        line(last, &text);
    }
    let took = step.started.zip(step.ended).map_or(0, |(start, end)| end.saturating_sub(start));
    match step.state {
        StepState::Ran | StepState::Shared if step.started.is_some() => {
            say!("#{number} DONE {:.1}s", Duration::from_micros(took).as_secs_f64());
        }
        StepState::Failed => say!("#{number} ERROR: {}", clean(step.error.as_deref().unwrap_or("failed"))),
        StepState::Cancelled => say!("#{number} CANCELED"),
        StepState::Running => {}
        _ => say!("#{number} CACHED"),
    }
    say!("");
    Ok(())
}

/// The bytes of one step's log: a terminal gets them without what could steer it.
fn print_raw(history: &History, record: &BuildRecord, step: &StepRecord) -> Result<(), Failure> {
    use std::io::IsTerminal as _;
    let Some(log) = history.log(&record.id, step.number).map_err(|error| Failure::new(&error))? else {
        return Ok(());
    };
    let terminal = io::stdout().is_terminal();
    let mut lines = Lines::default();
    for chunk in log {
        let chunk = chunk.map_err(|error| Failure::new(&error))?;
        if terminal {
            for text in lines.push(&chunk.bytes) {
                say!("{text}");
            }
        } else if let Err(error) = io::stdout().write_all(&chunk.bytes) {
            // A reader that stopped reading is no failure.
            return if error.kind() == io::ErrorKind::BrokenPipe {
                Ok(())
            } else {
                Err(Failure::new(&error))
            };
        }
    }
    if let Some(text) = lines.finish() {
        say!("{text}");
    }
    Ok(())
}

fn summary(record: &BuildRecord) -> serde_json::Value {
    let cached = record.steps.iter().filter(|step| is_cached(step.state)).count();
    json!({
        "ID": record.id, "Name": title(record), "Status": record.state, "CreatedAt": record.started_at,
        "CompletedAt": record.ended_at, "Context": record.context, "Dockerfile": record.dockerfile.name,
        "Target": record.target, "Tags": record.tags, "Platforms": record.platforms, "Images": record.images,
        "TotalSteps": record.steps.len(), "CachedSteps": cached, "Error": record.error,
    })
}

fn title(record: &BuildRecord) -> String {
    let context = record.context.rsplit('/').find(|part| !part.is_empty()).unwrap_or("-");
    clean(record.tags.first().map_or(context, String::as_str))
}

fn counts(record: &BuildRecord) -> String {
    let graph = || record.steps.iter().filter(|step| step.vertex.is_some());
    let cached = graph().filter(|step| is_cached(step.state)).count();
    format!("{cached}/{} cached", graph().count())
}

fn is_cached(state: StepState) -> bool {
    use StepState::{CachedImported, CachedLocal, Shared, Skipped};
    matches!(state, CachedLocal | CachedImported | Shared | Skipped)
}

fn state(state: BuildState) -> &'static str {
    match state {
        BuildState::Running => "Running",
        BuildState::Succeeded => "Completed",
        BuildState::Failed => "Error",
        BuildState::Cancelled => "Canceled",
        BuildState::Killed => "Killed",
    }
}

/// A step's state in words.
pub(crate) fn step_state(state: StepState) -> &'static str {
    match state {
        StepState::CachedLocal => "cached (local)",
        StepState::CachedImported => "cached (imported)",
        StepState::Shared => "shared with a running build",
        StepState::Skipped => "skipped",
        StepState::Ran => "run",
        StepState::Running => "running",
        StepState::Failed => "failed",
        StepState::Cancelled => "canceled",
    }
}

fn duration(record: &BuildRecord) -> Option<Duration> {
    let nanoseconds = record.ended_at?.as_nanosecond() - record.started_at.as_nanosecond();
    Some(Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(0)))
}

fn seconds(duration: Duration) -> String {
    let whole = duration.as_secs();
    if whole < 60 {
        return format!("{:.1}s", duration.as_secs_f64());
    }
    format!("{}m {:02}s", whole / 60, whole % 60)
}
