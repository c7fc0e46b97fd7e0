//! Instructions that only change the image config and the stage's variables, and `WORKDIR`.
//!
//! Owns `ENV`, `ARG`, `LABEL`, `USER`, `EXPOSE`, `VOLUME`, `CMD`, `ENTRYPOINT`, `SHELL`, `STOPSIGNAL`,
//! `HEALTHCHECK`, `ONBUILD`, `MAINTAINER` and `WORKDIR`. Start with [`Lowering::configure`].

use stave_llb::{
    FileActionKind, MkdirAction,
    builder::{About, FileSpec, FileStep},
};
use stave_oci::{Healthcheck as Check, Unit};

use super::{
    Lowering, error,
    history::{self, commit},
    ports,
    scanned::BUILDER_ARGS,
    signal,
    stage::StageState,
    transfer::chown,
};
use crate::{
    ast::{Argument, CommandLine, Healthcheck, Instruction, InstructionKind, Pair, Word},
    diagnostic::Diagnostic,
    expand::Expander,
    plan::PlannedInstruction,
    quote::quote_list,
    scope::Lookup as _,
};

impl Lowering<'_> {
    /// An instruction that makes no vertex.
    pub(super) fn configure(
        &mut self,
        state: &mut StageState,
        instruction: &Instruction,
    ) -> Result<(), Diagnostic> {
        let message = match &instruction.kind {
            InstructionKind::Env(pairs) => self.env(state, instruction, pairs)?,
            InstructionKind::Unset(unset) => self.unset(state, unset)?,
            InstructionKind::Label(pairs) => self.label(state, pairs)?,
            InstructionKind::Arg(arguments) => self.arg(state, arguments)?,
            InstructionKind::User(word) => {
                let user = state.expand(self.escape(), word)?;
                state.user.clone_from(&user);
                state.image.config.user.clone_from(&user);
                format!("USER {user}")
            }
            InstructionKind::Expose(words) => self.expose(state, words)?,
            InstructionKind::Volume(words) => self.volume(state, words)?,
            InstructionKind::Cmd(command) => cmd(state, command),
            InstructionKind::Entrypoint(command) => entrypoint(state, command),
            InstructionKind::Shell(shell) => {
                state.image.config.shell = Some(shell.clone());
                format!("SHELL {}", history::list(shell))
            }
            InstructionKind::StopSignal(word) => {
                let name = state.expand(self.escape(), word)?;
                if !signal::is_signal(&name) {
                    return Err(error(word.span, format!("invalid signal: {name}"))
                        .with_help("a signal is a name such as `SIGTERM` or a number such as 15"));
                }
                state.image.config.stop_signal.clone_from(&name);
                format!("STOPSIGNAL {name}")
            }
            InstructionKind::Healthcheck(check) => healthcheck(state, check),
            InstructionKind::Maintainer(word) => {
                state.image.author.clone_from(&word.text);
                format!("MAINTAINER {}", word.text)
            }
            InstructionKind::Onbuild(trigger) => {
                state.image.config.on_build.push(trigger.expression.clone());
                return Ok(());
            }
            InstructionKind::From(_)
            | InstructionKind::Run(_)
            | InstructionKind::Copy(_)
            | InstructionKind::Add(_)
            | InstructionKind::Workdir(_) => return Ok(()),
        };
        commit(&mut state.image, message, false, self.plan.epoch);
        Ok(())
    }

    pub(super) fn escape(&self) -> char {
        self.plan.dockerfile.escape
    }

    fn pairs(&self, state: &StageState, pairs: &[Pair]) -> Result<Vec<(String, String)>, Diagnostic> {
        // All of an instruction see the variables as they were before it.
        let both = |pair: &Pair| {
            Ok((state.expand(self.escape(), &pair.name)?, state.expand(self.escape(), &pair.value)?))
        };
        pairs.iter().map(both).collect()
    }

    fn env(
        &mut self,
        state: &mut StageState,
        instruction: &Instruction,
        pairs: &[Pair],
    ) -> Result<String, Diagnostic> {
        let mut message = "ENV".to_owned();
        let mut values = Vec::with_capacity(pairs.len());
        for pair in pairs {
            let name = state.expand(self.escape(), &pair.name)?;
            values.push((name, self.env_value(state, instruction, pair)?));
        }
        for (name, value) in values {
            let entry = [name.as_str(), "=", &value].concat();
            message.push(' ');
            message.push_str(&entry);
            let known = |old: &&mut String| {
                old.strip_prefix(name.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
            };
            match state.image.config.env.iter_mut().find(known) {
                Some(old) => *old = entry,
                None => state.image.config.env.push(entry),
            }
            state.env.set(&name, value);
        }
        Ok(message)
    }

    fn label(&self, state: &mut StageState, pairs: &[Pair]) -> Result<String, Diagnostic> {
        let mut message = "LABEL".to_owned();
        for (name, value) in self.pairs(state, pairs)? {
            message.extend([" ", &name, "=", &value]);
            state.image.config.labels.insert(name, value);
        }
        Ok(message)
    }

    fn arg(&self, state: &mut StageState, arguments: &[Argument]) -> Result<String, Diagnostic> {
        let mut message = "ARG".to_owned();
        for argument in arguments {
            let name = &argument.name.text;
            let given = self.plan.request.build_args.contains_key(name);
            // A default that is not used is not even looked at, so that `${x:?}` in it does no harm.
            let default = match &argument.default {
                Some(word) if !given => Some(state.expand(self.escape(), word)?),
                _ => None,
            };
            let value = self.plan.argument_value(name, default);
            message.extend([" ", name.as_str()]);
            if let Some(value) = &value {
                message.extend(["=", value.as_str()]);
                if !BUILDER_ARGS.contains(&name.as_str()) {
                    state.env.set(name, value);
                }
            }
            state.args.push((name.clone(), value));
        }
        Ok(message)
    }

    fn expose(&self, state: &mut StageState, words: &[Word]) -> Result<String, Diagnostic> {
        let mut all = Vec::new();
        for word in words {
            let expanded = Expander::new(self.escape()).expand(&word.text, &state.env);
            let expanded = expanded.map_err(|cause| error(word.span, cause.to_string()))?;
            for port in expanded.words {
                let ports = ports::parse(&port).map_err(|cause| {
                    error(word.span, cause.to_string())
                        .with_help("a port is a number up to 65535 or a range such as `8000-8010`, perhaps with `/tcp`, `/udp` or `/sctp`")
                })?;
                all.extend(ports);
            }
        }
        state.image.config.exposed_ports.extend(all.iter().map(|port| (port.clone(), Unit {})));
        Ok(format!("EXPOSE {}", history::list(&all)))
    }

    fn volume(&self, state: &mut StageState, words: &[Word]) -> Result<String, Diagnostic> {
        let mut all = Vec::with_capacity(words.len());
        for word in words {
            let volume = state.expand(self.escape(), word)?;
            if volume.is_empty() {
                return Err(error(word.span, "VOLUME specified can not be an empty string"));
            }
            state.image.config.volumes.insert(volume.clone(), Unit {});
            all.push(volume);
        }
        Ok(format!("VOLUME {}", history::list(&all)))
    }

    /// `WORKDIR`, which makes the directory.
    pub(super) fn workdir(
        &mut self,
        state: &mut StageState,
        planned: &PlannedInstruction,
        word: &Word,
    ) -> Result<(), Diagnostic> {
        let wanted = state.expand(self.escape(), word)?;
        let directory = state.change_directory(&wanted).map_err(|message| error(word.span, message))?;
        let layer = directory != "/";
        if layer {
            let shown = state.shown(Expander::new(self.escape()), &planned.instruction.code, &state.env);
            let mut about = About::named(state.step_name(self.plan, &shown));
            about.locations.push(self.location(&planned.instruction));
            let user = &state.image.config.user;
            let kind = FileActionKind::Mkdir(MkdirAction {
                path: crate::path::clean(&directory),
                mode: 0o755,
                make_parents: true,
                owner: (!user.is_empty()).then(|| chown(user)),
                timestamp: self.plan.epoch.map(|seconds| seconds.saturating_mul(1_000_000_000)),
            });
            let actions = vec![FileStep { kind, source: None }];
            state.output = Some(self.graph.file(FileSpec { base: state.output, actions, about }));
        }
        commit(&mut state.image, format!("WORKDIR {directory}"), layer, self.plan.epoch);
        Ok(())
    }
}

/// A command as an argument list, in the shell if it is in shell form.
fn arguments(state: &StageState, command: &CommandLine) -> Vec<String> {
    match command {
        CommandLine::Shell(word) => state.with_shell(&word.text),
        CommandLine::Exec(args) => args.clone(),
    }
}

fn cmd(state: &mut StageState, command: &CommandLine) -> String {
    let args = arguments(state, command);
    let message = format!("CMD {}", quote_list(&args));
    state.sets_command = true;
    state.image.config.cmd = Some(args).filter(|args| !args.is_empty());
    state.image.config.args_escaped = true;
    message
}

fn entrypoint(state: &mut StageState, command: &CommandLine) -> String {
    let args = arguments(state, command);
    let message = format!("ENTRYPOINT {}", quote_list(&args));
    state.image.config.entrypoint = Some(args).filter(|args| !args.is_empty());
    // The base image's command was meant for its own entry point.
    if !state.sets_command {
        state.image.config.cmd = None;
    }
    message
}

fn healthcheck(state: &mut StageState, check: &Healthcheck) -> String {
    let check = match check {
        Healthcheck::None => Check { test: vec!["NONE".to_owned()], ..Check::default() },
        Healthcheck::Command { command, interval, timeout, start_period, start_interval, retries } => {
            let mut test = Vec::new();
            match command {
                CommandLine::Shell(word) => test.extend(["CMD-SHELL".to_owned(), word.text.clone()]),
                CommandLine::Exec(args) => {
                    test.push("CMD".to_owned());
                    test.extend_from_slice(args);
                }
            }
            Check {
                test,
                interval: *interval,
                timeout: *timeout,
                start_period: *start_period,
                start_interval: *start_interval,
                retries: i64::from(*retries),
            }
        }
    };
    let message = format!("HEALTHCHECK {}", history::healthcheck(&check));
    state.image.config.healthcheck = Some(check);
    message
}

/// `RUN`'s line in the history: the `ARG`s in effect, then the command.
pub(super) fn run_message(state: &StageState, args: &[String]) -> String {
    let mut entries: Vec<(&str, &str)> = Vec::new();
    for (name, value) in &state.args {
        let value = state.env.value(name).or(value.as_deref()).unwrap_or_default();
        match entries.iter_mut().find(|(known, _)| known == name) {
            Some(old) => old.1 = value,
            None => entries.push((name, value)),
        }
    }
    let mut message = String::with_capacity(args.iter().map(|arg| arg.len() + 1).sum::<usize>() + 64);
    message.push_str("RUN ");
    if !entries.is_empty() {
        message.extend(["|", &entries.len().to_string(), " "]);
        for (name, value) in entries {
            message.extend([name, "=", value, " "]);
        }
    }
    for arg in args {
        message.extend([arg, " "]);
    }
    message.push_str("# buildkit");
    message
}
