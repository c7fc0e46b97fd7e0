//! The syntax tree: what a Dockerfile says, unexpanded, with the place of every word.
//!
//! Owns plain values only. Nothing here knows variables' values, other stages or images; that is
//! [`crate::BuildPlan`]. Start with [`Dockerfile`], [`Instruction`] and [`InstructionKind`].

use std::sync::Arc;

use crate::{
    diagnostic::Diagnostic,
    source::{Lines, Source, Span},
};

/// A parsed Dockerfile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dockerfile {
    /// The text it was parsed from; all spans are of this text.
    pub source: Source,
    /// The escape character: `\`, or `` ` `` after `# escape=`.
    pub escape: char,
    /// Parser directives, in order.
    pub directives: Vec<Directive>,
    /// The `ARG`s before the first `FROM`.
    pub globals: Vec<Instruction>,
    /// The stages, in order.
    pub stages: Vec<Stage>,
    /// What keeps it from being built, the most basic trouble first; empty for a sound file.
    pub(crate) errors: Vec<Diagnostic>,
    /// Lines on which a continuation met an empty line, each with the line's span.
    pub(crate) empty_continuations: Vec<Span>,
}

/// A `# name=value` comment at the top of the file that the parser obeys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directive {
    /// Which one.
    pub kind: DirectiveKind,
    /// Its value, trimmed.
    pub value: String,
    /// The whole comment line.
    pub span: Span,
}

/// The parser directives that exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DirectiveKind {
    /// `# syntax=`: the front end image the author had in mind.
    Syntax,
    /// `# escape=`: the escape character.
    Escape,
    /// `# check=`: which build checks to skip or to treat as errors.
    Check,
}

/// One stage: a `FROM` and what follows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stage {
    /// The `FROM` instruction's own data.
    pub from: From,
    /// The `FROM` instruction's place and text; its `kind` is [`InstructionKind::From`].
    pub instruction: Instruction,
    /// The instructions after it, in order; a plan shares them.
    pub instructions: Vec<Arc<Instruction>>,
}

/// One instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// From the keyword to the end of the last line, heredocs included.
    ///
    /// An `ONBUILD` trigger from an image has no text of its own and carries the span of its `FROM`.
    pub span: Span,
    /// The lines it stands on.
    pub lines: Lines,
    /// The keyword as written.
    pub keyword: String,
    /// The instruction on one line: continuations joined, comments gone, ends trimmed.
    pub code: String,
    /// The comment lines directly above, without `#`, trimmed.
    pub comments: Vec<String>,
    /// What it says.
    pub kind: InstructionKind,
}

/// What an instruction says, per instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InstructionKind {
    /// `FROM`
    From(From),
    /// `RUN`
    Run(Run),
    /// `COPY`
    Copy(Copy),
    /// `ADD`
    Add(Add),
    /// `ENV`
    Env(Vec<Pair>),
    /// `ARG`
    Arg(Vec<Argument>),
    /// `LABEL`
    Label(Vec<Pair>),
    /// `WORKDIR`
    Workdir(Word),
    /// `USER`
    User(Word),
    /// `EXPOSE`, sorted by text as the reference sorts them.
    Expose(Vec<Word>),
    /// `VOLUME`
    Volume(Vec<Word>),
    /// `CMD`
    Cmd(CommandLine),
    /// `ENTRYPOINT`
    Entrypoint(CommandLine),
    /// `SHELL`, never empty.
    Shell(Vec<String>),
    /// `STOPSIGNAL`
    StopSignal(Word),
    /// `HEALTHCHECK`
    Healthcheck(Healthcheck),
    /// `ONBUILD`
    Onbuild(Onbuild),
    /// `MAINTAINER`, not expanded.
    Maintainer(Word),
    /// `UNSET`, of our own language.
    Unset(Unset),
}

/// What `UNSET` takes away from the image config. Names are expanded at lowering; none means all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unset {
    /// `UNSET CMD`
    Cmd,
    /// `UNSET ENTRYPOINT`
    Entrypoint,
    /// `UNSET ENV [names]`, for later steps, too.
    Env(Vec<Word>),
    /// `UNSET EXPOSE [ports]`
    Expose(Vec<Word>),
    /// `UNSET HEALTHCHECK`
    Healthcheck,
    /// `UNSET LABEL [names]`
    Label(Vec<Word>),
    /// `UNSET STOPSIGNAL`
    StopSignal,
    /// `UNSET USER`, for later steps, too.
    User,
    /// `UNSET VOLUME [paths]`
    Volume(Vec<Word>),
    /// `UNSET WORKDIR`: back to `/`, for later steps, too.
    Workdir,
}

impl Unset {
    /// The instruction that it undoes, and the names it is about.
    pub fn parts(&self) -> (&'static str, &[Word]) {
        match self {
            Self::Cmd => ("CMD", &[]),
            Self::Entrypoint => ("ENTRYPOINT", &[]),
            Self::Env(names) => ("ENV", names),
            Self::Expose(names) => ("EXPOSE", names),
            Self::Healthcheck => ("HEALTHCHECK", &[]),
            Self::Label(names) => ("LABEL", names),
            Self::StopSignal => ("STOPSIGNAL", &[]),
            Self::User => ("USER", &[]),
            Self::Volume(names) => ("VOLUME", names),
            Self::Workdir => ("WORKDIR", &[]),
        }
    }
}

/// A piece of source text, unexpanded and with its quotes, and where it stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Word {
    /// The text; continuations inside it are joined.
    pub text: String,
    /// Its place.
    pub span: Span,
}

/// `FROM [--platform=P] BASE [AS NAME]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct From {
    /// The image, stage or `scratch`; may hold variables of the global scope.
    pub base: Word,
    /// `--platform`; may hold variables of the global scope.
    pub platform: Option<Word>,
    /// The stage's name.
    pub name: Option<StageName>,
}

/// A stage's name and the keyword before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StageName {
    /// In lower case, as stages are looked up.
    pub name: String,
    /// As written.
    pub written: Word,
    /// `AS` as written.
    pub keyword: Word,
}

/// A command in shell or exec form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CommandLine {
    /// To be handed to the shell as one string; not expanded by the builder.
    Shell(Word),
    /// A JSON array; may be empty.
    Exec(Vec<String>),
}

/// `RUN [flags] command`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// What to run. With heredocs it is [`CommandLine::Shell`] and holds their `<<` words.
    pub command: CommandLine,
    /// The heredocs of the command, in order.
    pub heredocs: Vec<Heredoc>,
    /// `--mount`, in order.
    pub mounts: Vec<MountFlag>,
    /// `--network`
    pub network: RunNetwork,
    /// `--security`
    pub security: RunSecurity,
    /// `--device`, in order.
    pub devices: Vec<Device>,
}

/// A `--mount` flag: its options may hold variables, so that they are read at lowering, see
/// [`crate::mount::parse`]. Only `from` cannot, because the plan needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountFlag {
    /// The comma-separated options, unexpanded.
    pub options: Word,
    /// The value of `from=`, if it has one that is not empty.
    pub from: Option<String>,
}

/// `RUN --network`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RunNetwork {
    /// The build's network.
    #[default]
    Default,
    /// No network.
    None,
    /// The host's network.
    Host,
}

/// `RUN --security`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RunSecurity {
    /// The usual sandbox.
    #[default]
    Sandbox,
    /// All capabilities, nothing masked.
    Insecure,
}

/// `RUN --device`: a device by its CDI name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// The name, or empty where only options were given.
    pub name: String,
    /// Whether the step must fail without it.
    pub required: bool,
}

/// A heredoc of `RUN`, `COPY` or `ADD`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heredoc {
    /// The terminator, which is also the file's name for `COPY` and `ADD`.
    pub name: String,
    /// The number before `<<`, 0 where there is none.
    pub file_descriptor: u64,
    /// Whether variables in the body count: the terminator was written without quotes.
    pub expand: bool,
    /// Whether leading tabs go (`<<-`); `content` still has them, see [`Heredoc::body`].
    pub strip_tabs: bool,
    /// The body as written, line ends included, terminator line left out.
    pub content: String,
    /// The body's place.
    pub span: Span,
}

impl Heredoc {
    /// The body with leading tabs removed where `<<-` asks for it.
    pub fn body(&self) -> String {
        match self.strip_tabs {
            true => self.content.split_inclusive('\n').map(|line| line.trim_start_matches('\t')).collect(),
            false => self.content.clone(),
        }
    }
}

/// Sources and destination of `COPY` and `ADD`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// Paths, patterns or (for `ADD`) addresses, in order.
    pub sources: Vec<Word>,
    /// Files given as heredocs, in order; laid down after `sources`.
    pub inline: Vec<InlineFile>,
    /// Where to.
    pub destination: Word,
    /// `--chown`
    pub chown: Option<Word>,
    /// `--chmod`
    pub chmod: Option<Word>,
    /// `--link`
    pub link: bool,
    /// `--exclude`, in order; not expanded.
    pub excludes: Vec<Word>,
}

/// A file whose content is in the Dockerfile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InlineFile {
    /// Its name below the destination.
    pub name: String,
    /// Its content, tabs already stripped.
    pub content: String,
    /// Whether variables in the content are to be expanded.
    pub expand: bool,
    /// The place of its `<<` word.
    pub span: Span,
}

/// `COPY [flags] source… destination`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copy {
    /// What goes where.
    pub transfer: Transfer,
    /// `--from`: a stage's name or index, a named context, or an image; never holds variables.
    pub from: Option<Word>,
    /// `--if-exists`, of our own language: sources that are not there are no error.
    pub if_exists: bool,
    /// `--parents`
    pub parents: bool,
}

/// `ADD [flags] source… destination`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Add {
    /// What goes where.
    pub transfer: Transfer,
    /// `--keep-git-dir`, if given.
    pub keep_git_dir: Option<bool>,
    /// `--checksum`
    pub checksum: Option<Word>,
    /// `--unpack`, if given.
    pub unpack: Option<bool>,
}

/// A `name=value` of `ENV` and `LABEL`; both sides are expanded at lowering.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// Left of `=`.
    pub name: Word,
    /// Right of `=`, or the rest of the line in the old form.
    pub value: Word,
    /// Whether it is the old form, `ENV name value`.
    pub legacy: bool,
}

/// One declaration of an `ARG`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Argument {
    /// The variable's name.
    pub name: Word,
    /// Its default, unexpanded.
    pub default: Option<Word>,
}

/// `HEALTHCHECK`
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Healthcheck {
    /// `HEALTHCHECK NONE`: the base image's check is switched off.
    None,
    /// `HEALTHCHECK CMD`
    Command {
        /// The test.
        command: CommandLine,
        /// Time between checks in nanoseconds, 0 to inherit.
        interval: i64,
        /// Time one check may take in nanoseconds, 0 to inherit.
        timeout: i64,
        /// Time to start up in nanoseconds, 0 to inherit.
        start_period: i64,
        /// Time between checks while starting in nanoseconds, 0 to inherit.
        start_interval: i64,
        /// Failures in a row that make it unhealthy, 0 to inherit.
        retries: u32,
    },
}

/// `ONBUILD instruction`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Onbuild {
    /// The instruction as the image config keeps it, heredocs included.
    pub expression: String,
}

impl Dockerfile {
    /// What keeps it from being built; the first is what the reference would report.
    pub fn errors(&self) -> &[Diagnostic] {
        &self.errors
    }

    /// The value of a directive, if the file has it.
    pub fn directive(&self, kind: DirectiveKind) -> Option<&str> {
        self.directives
            .iter()
            .find(|directive| directive.kind == kind)
            .map(|directive| directive.value.as_str())
    }
}

impl Word {
    /// A word of this text at `span`.
    pub fn new(text: impl Into<String>, span: Span) -> Self {
        Self { text: text.into(), span }
    }
}
