//! The checks that need scopes: variables, inherited settings and the bases' configs.
//!
//! Owns a walk over the stages the target needs, beside lowering and without its results: it follows
//! variables and the few settings rules ask about, and makes no operations. A word that does not
//! expand ends the walk of its stage; lowering reports the error. Start with [`of_plan`].

use stave_llb::pattern::PatternMatcher;

use crate::{
    ast::{Argument, CommandLine, Instruction, InstructionKind, Pair, Run, Transfer, Unset, Word},
    diagnostic::Diagnostic,
    expand::{ExpandError, Expander},
    mount, path,
    plan::{Base, BuildPlan, PlannedStage, StageIndex},
    request::ResolvedSources,
    scope::{Lookup as _, Variables},
    source::Span,
};

use super::Findings;

/// Where programs are looked for if the base does not say.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// `ARG`s that reach no step.
const BUILDER_ARGS: [&str; 2] = ["BUILDKIT_SBOM_SCAN_CONTEXT", "BUILDKIT_SBOM_SCAN_STAGE"];

/// What rules ask about a stage.
#[derive(Clone, Debug, Default)]
struct Scope {
    variables: Variables,
    /// The `ARG`s declared so far, in bases, too.
    declared: Vec<String>,
    /// Whether `SHELL` was set, or the base has one.
    has_shell: bool,
    /// Whether its paths are those of Windows.
    is_windows: bool,
    /// Whether the file set a working directory.
    has_workdir: bool,
    command: Option<Span>,
    entrypoint: Option<Span>,
    healthcheck: Option<Span>,
}

/// The findings in the stages the target needs.
pub(super) fn of_plan(plan: &BuildPlan, resolved: &ResolvedSources) -> Vec<Diagnostic> {
    let ignored = PatternMatcher::new(&plan.request.dockerignore).unwrap_or_default();
    let mut walk = Walk { plan, ignored, found: Vec::new() };
    let mut scopes: Vec<Option<Scope>> = Vec::with_capacity(plan.stages.len());
    for (index, stage) in plan.stages.iter().enumerate() {
        let scope = stage.reachable.then(|| {
            let mut scope = match stage.base {
                Base::Stage(base) => inherited(scopes.get(base.0).and_then(Option::as_ref)),
                _ => walk.base(StageIndex(index), stage, resolved),
            };
            // The error is lowering's to report.
            let _stopped = walk.stage(&mut scope, stage);
            scope
        });
        scopes.push(scope);
    }
    walk.found
}

/// What a stage has of the stage it starts from: each counts its own commands.
fn inherited(base: Option<&Scope>) -> Scope {
    let base = base.cloned().unwrap_or_default();
    Scope { command: None, entrypoint: None, healthcheck: None, ..base }
}

/// A word that does not expand or a mount that is not sound: the walk cannot go on.
struct Stopped;

impl From<ExpandError> for Stopped {
    fn from(_: ExpandError) -> Self {
        Self
    }
}

struct Walk<'a> {
    plan: &'a BuildPlan,
    ignored: PatternMatcher,
    found: Vec<Diagnostic>,
}

impl Walk<'_> {
    fn findings(&mut self, instruction: &Instruction) -> Findings<'_> {
        let plan = self.plan;
        Findings::new(&plan.checks, &instruction.comments, instruction.span, &mut self.found)
    }

    fn base(&mut self, index: StageIndex, stage: &PlannedStage, resolved: &ResolvedSources) -> Scope {
        let mut scope = Scope::default();
        let request = self.plan.request_of(index);
        let image = request.as_ref().and_then(|request| resolved.get(request));
        if let Some((request, image)) = request.as_ref().zip(image) {
            let config = &image.config.config;
            scope.variables = Variables::from_entries(&config.env);
            scope.has_shell = config.shell.as_ref().is_some_and(|shell| !shell.is_empty());
            Findings::new(&self.plan.checks, &[], stage.span, &mut self.found).base_platform(
                &stage.written_base,
                &request.platform,
                &image.config.platform(),
            );
        }
        let platform = stage.platform.as_ref().unwrap_or_else(|| self.plan.request.platform());
        scope.is_windows = platform.os == "windows";
        // What Windows looks through is its own affair.
        if !scope.is_windows && scope.variables.value("PATH").is_none() {
            scope.variables.set("PATH", DEFAULT_PATH);
        }
        scope
    }

    fn stage(&mut self, scope: &mut Scope, stage: &PlannedStage) -> Result<(), Stopped> {
        for planned in &stage.instructions {
            self.instruction(scope, &planned.instruction)?;
        }
        Ok(())
    }

    fn instruction(&mut self, scope: &mut Scope, instruction: &Instruction) -> Result<(), Stopped> {
        match &instruction.kind {
            InstructionKind::Env(pairs) => {
                for (name, value) in self.pairs(scope, instruction, pairs)? {
                    self.findings(instruction).variable_name("ENV", &name);
                    scope.variables.set(&name, value);
                }
            }
            InstructionKind::Unset(unset) => {
                for word in unset.parts().1 {
                    let name = self.expand(scope, instruction, &word.text)?;
                    if matches!(unset, Unset::Env(_)) {
                        scope.variables.unset(&name);
                    }
                }
            }
            InstructionKind::Label(pairs) => {
                for pair in pairs {
                    self.look(scope, instruction, &pair.name)?;
                    self.look(scope, instruction, &pair.value)?;
                }
                self.legacy_pairs(instruction, pairs);
            }
            InstructionKind::Arg(arguments) => self.arguments(scope, instruction, arguments)?,
            InstructionKind::Workdir(word) => {
                let path = self.expand(scope, instruction, &word.text)?;
                let is_absolute = match scope.is_windows {
                    true => path::windows::is_absolute(&path),
                    false => path.starts_with('/'),
                };
                if !scope.has_workdir && !is_absolute {
                    self.findings(instruction).relative_workdir(&path);
                }
                scope.has_workdir = true;
            }
            InstructionKind::User(word) | InstructionKind::StopSignal(word) => {
                self.look(scope, instruction, word)?;
            }
            InstructionKind::Volume(words) => {
                words.iter().try_for_each(|word| self.look(scope, instruction, word))?;
            }
            InstructionKind::Expose(words) => self.ports(scope, instruction, words)?,
            InstructionKind::Run(run) => self.mounts(scope, instruction, run)?,
            InstructionKind::Copy(copy) => {
                let from_context = copy.from.is_none();
                self.transfer(scope, instruction, &copy.transfer, from_context.then_some("Copy"))?;
            }
            InstructionKind::Add(add) => {
                self.flag(scope, instruction, add.checksum.as_ref())?;
                self.transfer(scope, instruction, &add.transfer, Some("Add"))?;
            }
            InstructionKind::Cmd(command) => {
                let earlier = scope.command.replace(instruction.span);
                self.command(scope, instruction, earlier, Some(command));
            }
            InstructionKind::Entrypoint(command) => {
                let earlier = scope.entrypoint.replace(instruction.span);
                self.command(scope, instruction, earlier, Some(command));
            }
            InstructionKind::Healthcheck(_) => {
                let earlier = scope.healthcheck.replace(instruction.span);
                self.command(scope, instruction, earlier, None);
            }
            InstructionKind::Shell(shell) => scope.has_shell = !shell.is_empty(),
            InstructionKind::From(_) | InstructionKind::Onbuild(_) | InstructionKind::Maintainer(_) => {}
        }
        Ok(())
    }

    fn expand(&mut self, scope: &Scope, instruction: &Instruction, text: &str) -> Result<String, Stopped> {
        self.expand_with(Expander::new(self.plan.dockerfile.escape), scope, instruction, text)
    }

    fn expand_with(
        &mut self,
        expander: Expander,
        scope: &Scope,
        instruction: &Instruction,
        text: &str,
    ) -> Result<String, Stopped> {
        let expansion = expander.unsplit(text, &scope.variables);
        let unmatched = match &expansion {
            Ok(expansion) => &expansion.unmatched,
            Err(failure) => &failure.unmatched,
        };
        if !unmatched.is_empty() {
            let declared: Vec<&str> = scope.declared.iter().map(String::as_str).collect();
            let known: Vec<&str> = scope.variables.names().collect();
            let names = unmatched.iter().map(String::as_str);
            self.findings(instruction).undefined_variables(names, &declared, &known);
        }
        Ok(expansion?.text)
    }

    fn flag(&mut self, scope: &Scope, instruction: &Instruction, word: Option<&Word>) -> Result<(), Stopped> {
        word.map_or(Ok(()), |word| self.look(scope, instruction, word))
    }

    /// A word of which only matters what it asks for.
    fn look(&mut self, scope: &Scope, instruction: &Instruction, word: &Word) -> Result<(), Stopped> {
        if Expander::new(self.plan.dockerfile.escape).is_plain(&word.text) {
            return Ok(());
        }
        self.expand(scope, instruction, &word.text).map(drop)
    }

    fn pairs(
        &mut self,
        scope: &Scope,
        instruction: &Instruction,
        pairs: &[Pair],
    ) -> Result<Vec<(String, String)>, Stopped> {
        let mut expanded = Vec::with_capacity(pairs.len());
        for pair in pairs {
            let name = self.expand(scope, instruction, &pair.name.text)?;
            expanded.push((name, self.expand(scope, instruction, &pair.value.text)?));
        }
        self.legacy_pairs(instruction, pairs);
        Ok(expanded)
    }

    fn legacy_pairs(&mut self, instruction: &Instruction, pairs: &[Pair]) {
        for _ in pairs.iter().filter(|pair| pair.legacy) {
            self.findings(instruction).legacy_pair(&instruction.keyword);
        }
    }

    fn arguments(
        &mut self,
        scope: &mut Scope,
        instruction: &Instruction,
        arguments: &[Argument],
    ) -> Result<(), Stopped> {
        for argument in arguments {
            let name = &argument.name.text;
            self.findings(instruction).variable_name("ARG", name);
            let given = self.plan.request.build_args.contains_key(name);
            let default = match &argument.default {
                Some(default) if !given => Some(self.expand(scope, instruction, &default.text)?),
                _ => None,
            };
            let value = self.plan.argument_value(name, default);
            if let Some(value) = value.filter(|_| !BUILDER_ARGS.contains(&name.as_str())) {
                scope.variables.set(name.as_str(), value);
            }
            scope.declared.push(name.clone());
        }
        Ok(())
    }

    fn ports(&mut self, scope: &Scope, instruction: &Instruction, words: &[Word]) -> Result<(), Stopped> {
        let expander = Expander::new(self.plan.dockerfile.escape);
        for word in words {
            for port in expander.expand(&word.text, &scope.variables)?.words {
                let (mapping, container) = port.rsplit_once(':').unwrap_or(("", &port));
                let protocol = container.split_once('/').map_or("", |(_, protocol)| protocol);
                if protocol != protocol.to_lowercase() {
                    self.findings(instruction).port_casing(&port);
                }
                if mapping.contains(|letter| letter != ':') {
                    self.findings(instruction).port_mapping(&port);
                }
            }
        }
        Ok(())
    }

    fn mounts(&mut self, scope: &Scope, instruction: &Instruction, run: &Run) -> Result<(), Stopped> {
        for flag in &run.mounts {
            let mut stopped = false;
            let expand = |value: &str| match self.expand(scope, instruction, value) {
                Ok(value) => Ok::<_, ExpandError>(value),
                Err(Stopped) => {
                    stopped = true;
                    Ok(String::new())
                }
            };
            let sound = mount::parse(&flag.options.text, expand).is_ok();
            if stopped || !sound {
                return Err(Stopped);
            }
        }
        Ok(())
    }

    /// `verb` is given where the sources are paths of the build context.
    fn transfer(
        &mut self,
        scope: &Scope,
        instruction: &Instruction,
        transfer: &Transfer,
        verb: Option<&str>,
    ) -> Result<(), Stopped> {
        self.flag(scope, instruction, transfer.chown.as_ref())?;
        self.flag(scope, instruction, transfer.chmod.as_ref())?;
        let mut sources = Vec::with_capacity(transfer.sources.len());
        for source in &transfer.sources {
            sources.push(self.expand(scope, instruction, &source.text)?);
        }
        self.look(scope, instruction, &transfer.destination)?;
        for file in transfer.inline.iter().filter(|file| file.expand) {
            self.expand_with(Expander::content(), scope, instruction, &file.content)?;
        }
        let Some(verb) = verb else { return Ok(()) };
        let (checks, comments) = (&self.plan.checks, &instruction.comments);
        for source in sources.iter().filter(|source| !is_remote(source)) {
            let mut findings = Findings::new(checks, comments, instruction.span, &mut self.found);
            findings.context_source(verb, source, &self.ignored);
        }
        Ok(())
    }

    /// An instruction of which the last counts, with the earlier one, and its command if it runs one.
    fn command(
        &mut self,
        scope: &Scope,
        instruction: &Instruction,
        earlier: Option<Span>,
        command: Option<&CommandLine>,
    ) {
        let mut findings = self.findings(instruction);
        if let Some(earlier) = earlier {
            findings.repeated(&instruction.keyword, earlier);
        }
        if matches!(command, Some(CommandLine::Shell(_))) && !scope.has_shell {
            findings.shell_form(&instruction.keyword);
        }
    }
}

/// Whether a source of `ADD` is an address and no path of the context.
fn is_remote(source: &str) -> bool {
    source.contains("://") || source.starts_with("git@") || source.starts_with("github.com/")
}

#[cfg(test)]
mod tests;
