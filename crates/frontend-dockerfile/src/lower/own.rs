//! What only our own language has, as ordinary operations.
//!
//! Owns `UNSET`, `ENV NAME=$(command)`, `COPY --if-exists` and `cache=keyed` of secrets. Must not run a
//! command: its output is asked for with [`BuildPlan::commands`] as images are with
//! [`BuildPlan::missing`]. Start there.

use stave_llb::{
    ContentCache, ExecOp, FileActionKind, MkfileAction, Mount,
    builder::{About, ExecSpec, FileSpec, FileStep, MountSpec},
};

use super::{LowerError, Lowering, error, stage::StageState};
use crate::{
    ast::{Instruction, Pair, Unset, Word},
    diagnostic::{Code, Diagnostic},
    dialect::Dialect,
    instruction::needs_own_syntax,
    plan::BuildPlan,
    request::{CommandRequest, ResolvedSources},
    scope::Lookup as _,
};

/// The description key under which a step lists the ids of secrets whose values are part of its cache
/// key, separated by commas. It is no part of the digest; whoever makes keys looks at it.
pub const KEYED_SECRETS: &str = "stave.secrets.keyed";

/// Where a command's output is mounted.
const OUTPUT_TARGET: &str = "/run/stave";

impl BuildPlan {
    /// The commands whose output is needed next and not among `resolved`; ask again when it is. To be
    /// asked once [`BuildPlan::missing`] is empty. Always empty for files of the reference's languages.
    ///
    /// # Errors
    /// As [`super::lower()`].
    pub fn commands(&self, resolved: &ResolvedSources) -> Result<Vec<CommandRequest>, LowerError> {
        if self.dockerfile.dialect() < Dialect::Own {
            return Ok(Vec::new());
        }
        let mut lowering = Lowering::new(self, resolved)?;
        lowering.all_stages()?;
        Ok(lowering.commands)
    }
}

impl Lowering<'_> {
    /// The value of an `ENV` pair: in our own language, `$(command)` stands for what the command writes.
    pub(super) fn env_value(
        &mut self,
        state: &StageState,
        instruction: &Instruction,
        pair: &Pair,
    ) -> Result<String, Diagnostic> {
        let text = pair.value.text.as_str();
        if self.plan.dockerfile.dialect() < Dialect::Own || !text.contains("$(") || text.contains("\\$(") {
            return state.expand(self.escape(), &pair.value);
        }
        let bare = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text);
        match bare.strip_prefix("$(").and_then(|text| text.strip_suffix(')')) {
            Some(command) if !command.trim().is_empty() => self.output_of(state, instruction, command),
            _ => {
                Err(error(pair.value.span, "a command must be the whole value, as in `ENV NAME=$(command)`")
                    .with_help(
                        "put the command into a variable of its own and use that; `\\$(` is plain text",
                    ))
            }
        }
    }

    fn output_of(
        &mut self,
        state: &StageState,
        instruction: &Instruction,
        command: &str,
    ) -> Result<String, Diagnostic> {
        self.locals.uses(state.root, "/");
        // The step is solved on its own, with what is known of contexts by now; the image only gets text.
        let mut graph = self.graph.clone();
        let file = FileStep {
            kind: FileActionKind::Mkfile(MkfileAction {
                path: CommandRequest::FILE.to_owned(),
                // Whoever the stage's user is writes it.
                mode: 0o666,
                data: Vec::new(),
                owner: None,
                timestamp: None,
            }),
            source: None,
        };
        let about = About::named("[internal] preparing a place for the output");
        let place = graph.file(FileSpec { base: None, actions: vec![file], about });
        let script = format!("(\n{command}\n) > {OUTPUT_TARGET}{}", CommandRequest::FILE);
        let op = ExecOp { args: state.with_shell(&script), ..self.plain_process(state) };
        let mount = |target: &str, source| MountSpec {
            mount: Mount::Bind {
                target: target.to_owned(),
                input: None,
                selector: String::new(),
                readonly: false,
                output: None,
                content_cache: ContentCache::Default,
            },
            source,
            no_output: false,
        };
        let mut about = About::named(instruction.code.as_str())
            .described("com.docker.dockerfile.v1.command", &*instruction.code);
        about.metadata.ignore_cache = self.plan.stages[state.index.0].ignore_cache;
        about.locations.push(self.location(instruction));
        let mounts = vec![mount("/", state.output), mount(OUTPUT_TARGET, Some(place))];
        let root = graph.exec(ExecSpec { op, mounts, platform: state.platform.normalized(), about });
        self.context.finish(&mut graph);
        self.locals.finish(&mut graph);
        let definition = graph.finish(Some(root.mounted(1)));
        let unknown = || error(instruction.span, "the output of the command is not known");
        let key = definition.outputs().first().ok_or_else(unknown)?.vertex.clone();
        match self.resolved.output(&key) {
            Some(text) => Ok(text.trim_end_matches(['\r', '\n']).to_owned()),
            None => {
                self.commands.push(CommandRequest { key, definition, span: instruction.span });
                Err(unknown())
            }
        }
    }

    /// `UNSET`; the result is its line in the history.
    pub(super) fn unset(&self, state: &mut StageState, unset: &Unset) -> Result<String, Diagnostic> {
        let (keyword, words) = unset.parts();
        let names = words.iter().map(|word| state.expand(self.escape(), word));
        let names = names.collect::<Result<Vec<_>, _>>()?;
        for (word, name) in words.iter().zip(&names) {
            check_set(state, unset, word, name)?;
        }
        let config = &mut state.image.config;
        let listed = |name: &str| names.is_empty() || names.iter().any(|listed| listed == name);
        match unset {
            Unset::Cmd => config.cmd = None,
            Unset::Entrypoint => config.entrypoint = None,
            Unset::Env(_) => {
                config.env.retain(|entry| !listed(entry.split_once('=').map_or(entry, |(name, _)| name)));
                let known: Vec<String> =
                    state.env.names().filter(|name| listed(name)).map(str::to_owned).collect();
                known.iter().for_each(|name| state.env.unset(name));
            }
            Unset::Expose(_) => config
                .exposed_ports
                .retain(|port, _| !listed(port) && !port.strip_suffix("/tcp").is_some_and(listed)),
            Unset::Healthcheck => config.healthcheck = None,
            Unset::Label(_) => config.labels.retain(|name, _| !listed(name)),
            Unset::StopSignal => config.stop_signal.clear(),
            Unset::User => {
                config.user.clear();
                state.user.clear();
            }
            Unset::Volume(_) => config.volumes.retain(|path, _| !listed(path)),
            Unset::Workdir => {
                config.working_dir = "/".to_owned();
                state.dir.clear();
            }
        }
        let words = std::iter::once("UNSET").chain([keyword]).chain(names.iter().map(String::as_str));
        Ok(words.collect::<Vec<_>>().join(" "))
    }

    /// Whether the secrets of a step may be part of its cache key.
    pub(super) fn check_keyed(&self, word: &Word, value: &str) -> Result<(), Diagnostic> {
        if self.plan.dockerfile.dialect() < Dialect::Own {
            let message = format!("unexpected key 'cache' in 'cache={value}'");
            return Err(error(word.span, message).with_help(needs_own_syntax("cache=keyed")));
        }
        match value {
            "keyed" => Ok(()),
            other => Err(error(word.span, format!("invalid value for cache: {other}"))
                .with_help("the one value is `keyed`: the secret's value becomes part of the cache key")),
        }
    }
}

/// Names that are not set are mistakes more often than not.
fn check_set(state: &StageState, unset: &Unset, word: &Word, name: &str) -> Result<(), Diagnostic> {
    let config = &state.image.config;
    let known: Vec<&str> = match unset {
        Unset::Env(_) if state.env.value(name).is_some() => return Ok(()),
        Unset::Env(_) => state.env.names().collect(),
        Unset::Expose(_) if config.exposed_ports.contains_key(&format!("{name}/tcp")) => return Ok(()),
        Unset::Expose(_) => config.exposed_ports.keys().map(String::as_str).collect(),
        Unset::Label(_) => config.labels.keys().map(String::as_str).collect(),
        Unset::Volume(_) => config.volumes.keys().map(String::as_str).collect(),
        _ => return Ok(()),
    };
    if known.contains(&name) {
        return Ok(());
    }
    let (keyword, _) = unset.parts();
    let complaint =
        Diagnostic::error(Code::Lower, word.span, format!("UNSET {keyword}: `{name}` is not set"))
            .with_suggestion(crate::suggest::similar(name, known.iter().copied()));
    Err(if known.is_empty() {
        complaint
    } else {
        complaint.with_note(None, format!("set are {}", known.join(", ")))
    })
}

/// A path as a pattern that matches just it: what a pattern does not find is no error.
pub(super) fn optional(source: &str) -> String {
    let trimmed = source.trim_end_matches('/');
    let (before, last) = trimmed.rsplit_once('/').map_or(("", trimmed), |(before, last)| (before, last));
    // A letter in brackets is itself; the last one will do, unless it is special there.
    let at = last.char_indices().rev().find(|(_, letter)| letter.is_ascii_alphanumeric());
    let Some((at, letter)) = at.filter(|_| !super::transfer::is_pattern(source)) else {
        return source.to_owned();
    };
    let slash = if trimmed.contains('/') { "/" } else { "" };
    let (left, right) = (&last[..at], &last[at + 1..]);
    format!("{before}{slash}{left}[{letter}]{right}{}", &source[trimmed.len()..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn optional_sources_are_patterns() {
        for (source, expected) in [
            ("a/b.txt", "a/b.tx[t]"),
            ("b-", "[b]-"),
            ("/x", "/[x]"),
            ("dir/", "di[r]/"),
            ("a*", "a*"),
            (".", "."),
            ("..", ".."),
            ("é", "é"),
            ("éa_", "é[a]_"),
        ] {
            assert_eq!(optional(source), expected);
        }
    }
}
