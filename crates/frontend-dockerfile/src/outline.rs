//! What a file can be asked for: its targets, and the parameters a target takes.
//!
//! Owns both lists as values, read from the text and the plan alone: no image is asked for, so that a
//! value which depends on a base image's environment is shown without it. Must not know how they are
//! shown. Start with [`outline`] and [`targets`].

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    ast::{Argument, Dockerfile, Instruction, InstructionKind, Run},
    expand::Expander,
    mount::{self, MountKind},
    plan::{Base, BuildPlan, StageIndex},
    scope::{Lookup as _, Variables},
    source::Lines,
};

/// The most bytes of values that are put together for one outline; defaults beyond are shown as written.
const MAX_TEXT: usize = 16 << 20;

/// A stage that can be built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Its name, if it has one, in lower case.
    pub name: Option<String>,
    /// Whether it is built if nothing else is asked for.
    pub default: bool,
    /// What the comment above its `FROM` says about it.
    pub description: Option<String>,
    /// What it starts from, as written.
    pub base: String,
    /// `FROM --platform`, as written.
    pub platform: Option<String>,
    /// Its `FROM`.
    pub lines: Lines,
}

/// The parameters of one target.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outline {
    /// The target's name, if it has one.
    pub name: Option<String>,
    /// What the comment above its `FROM` says about it.
    pub description: Option<String>,
    /// The build args it takes, by line.
    pub arguments: Vec<OutlineArgument>,
    /// The secrets its steps ask for, by line.
    pub secrets: Vec<Needed>,
    /// The agents its steps ask for, by line.
    pub agents: Vec<Needed>,
}

/// A build arg.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutlineArgument {
    /// Its name.
    pub name: String,
    /// What the comment above its `ARG` says about it.
    pub description: Option<String>,
    /// Its value in this build, empty without one.
    pub value: String,
    /// Its `ARG`.
    pub lines: Lines,
}

/// A secret or an agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Needed {
    /// Its id.
    pub id: String,
    /// Whether the step that asks for it first fails without it.
    pub required: bool,
    /// That step.
    pub lines: Lines,
}

/// The stages of a file, in order.
pub fn targets(dockerfile: &Dockerfile) -> Vec<Target> {
    let last = dockerfile.stages.len().saturating_sub(1);
    let target = |(index, stage): (usize, &crate::ast::Stage)| {
        let name = stage.from.name.as_ref().map(|name| name.name.clone());
        Target {
            default: index == last,
            description: name.as_deref().and_then(|name| description(&stage.instruction, name)),
            name,
            base: stage.from.base.text.clone(),
            platform: stage.from.platform.as_ref().map(|word| word.text.clone()),
            lines: stage.instruction.lines,
        }
    };
    dockerfile.stages.iter().enumerate().map(target).collect()
}

/// The parameters of the plan's target.
pub fn outline(plan: &BuildPlan) -> Outline {
    let mut reader = Reader::new(plan);
    let stages = (0..plan.stages.len()).map(|index| reader.stage(StageIndex(index))).collect();
    let mut collected = Collected { stages, visited: BTreeSet::new(), outline: Outline::default() };
    collected.visit(plan, &reader.globals);
    let Collected { mut outline, .. } = collected;
    if let Some(stage) = plan.dockerfile.stages.get(plan.target.0) {
        outline.name = stage.from.name.as_ref().map(|name| name.name.clone());
        let name = outline.name.as_deref();
        outline.description = name.and_then(|name| description(&stage.instruction, name));
    }
    outline.arguments.sort_by_key(|argument| argument.lines);
    outline.secrets.sort_by_key(|secret| secret.lines);
    outline.agents.sort_by_key(|agent| agent.lines);
    outline
}

/// The comment of the form `# NAME text` above an instruction.
fn description(instruction: &Instruction, name: &str) -> Option<String> {
    let text = |comment: &String| Some(comment.strip_prefix(name)?.strip_prefix(' ')?.to_owned());
    instruction.comments.iter().find_map(text)
}

/// A global `ARG` and the other global `ARG`s its default uses.
struct Global {
    argument: OutlineArgument,
    uses: BTreeSet<String>,
}

/// What one stage takes by itself.
#[derive(Default)]
struct StageParameters {
    arguments: BTreeMap<String, OutlineArgument>,
    /// Global `ARG`s that it declares without a value, or that its `FROM` uses.
    globals: BTreeSet<String>,
    secrets: BTreeMap<String, Needed>,
    agents: BTreeMap<String, Needed>,
}

struct Reader<'a> {
    plan: &'a BuildPlan,
    expander: Expander,
    globals: BTreeMap<String, Global>,
    /// The variables each stage ends with, as far as they are known without images.
    scopes: Vec<Variables>,
    /// Bytes of values that may still be put together.
    budget: usize,
}

impl<'a> Reader<'a> {
    fn new(plan: &'a BuildPlan) -> Self {
        let expander = Expander::new(plan.dockerfile.escape);
        let mut globals = BTreeMap::new();
        for instruction in &plan.dockerfile.globals {
            let InstructionKind::Arg(arguments) = &instruction.kind else { continue };
            for argument in arguments {
                let name = argument.name.text.as_str();
                let value = plan.globals.value(name).unwrap_or_default().to_owned();
                let default =
                    argument.default.as_ref().filter(|_| !plan.request.build_args.contains_key(name));
                let expansion = default.map(|word| expander.expand(&word.text, &plan.globals));
                let mut uses = expansion.and_then(Result::ok).map(|found| found.matched).unwrap_or_default();
                uses.remove(name);
                globals.insert(name.to_owned(), Global { argument: shown(instruction, name, value), uses });
            }
        }
        Self { plan, expander, globals, scopes: Vec::new(), budget: MAX_TEXT }
    }

    /// Reads a stage; those before it have been read.
    fn stage(&mut self, index: StageIndex) -> StageParameters {
        let mut found = StageParameters::default();
        let stage = &self.plan.stages[index.0];
        if !stage.reachable {
            self.scopes.push(Variables::default());
            return found;
        }
        let mut scope = match stage.base {
            Base::Stage(base) => self.scopes.get(base.0).cloned().unwrap_or_default(),
            _ => Variables::default(),
        };
        let size = scope.iter().map(|(name, value)| name.len() + value.len() + 1).sum();
        if self.spend(size).is_none() {
            scope = Variables::default();
        }
        if let Some(written) = self.plan.dockerfile.stages.get(index.0).filter(|_| !stage.implicit) {
            for word in [Some(&written.from.base), written.from.platform.as_ref()].into_iter().flatten() {
                let used = self.expander.expand(&word.text, &self.plan.globals);
                found.globals.extend(used.map(|used| used.matched).unwrap_or_default());
            }
        }
        for planned in &stage.instructions {
            self.instruction(&mut found, &mut scope, &planned.instruction);
        }
        self.scopes.push(scope);
        found
    }

    fn instruction(&mut self, found: &mut StageParameters, scope: &mut Variables, instruction: &Instruction) {
        match &instruction.kind {
            InstructionKind::Arg(arguments) => {
                arguments.iter().for_each(|argument| self.argument(found, scope, instruction, argument));
            }
            InstructionKind::Env(pairs) => {
                let values: Vec<(String, String)> = pairs
                    .iter()
                    .map(|pair| (self.expand(&pair.name.text, scope), self.expand(&pair.value.text, scope)))
                    .collect();
                values.into_iter().for_each(|(name, value)| scope.set(&name, value));
            }
            InstructionKind::Run(run) => self.run(found, scope, instruction, run),
            _ => {}
        }
    }

    fn argument(
        &mut self,
        found: &mut StageParameters,
        scope: &mut Variables,
        instruction: &Instruction,
        argument: &Argument,
    ) {
        let name = argument.name.text.as_str();
        let given = self.plan.request.build_args.get(name).cloned();
        let value = match (given, &argument.default) {
            (Some(given), _) => Some(given),
            (None, Some(default)) => Some(self.expand(&default.text, scope)),
            (None, None) => {
                if let Some(inherited) = self.plan.globals.value(name) {
                    scope.set(name, inherited);
                    found.globals.insert(name.to_owned());
                    return;
                }
                None
            }
        };
        if let Some(value) = &value {
            scope.set(name, value.as_str());
        }
        found.arguments.insert(name.to_owned(), shown(instruction, name, value.unwrap_or_default()));
    }

    fn run(&mut self, found: &mut StageParameters, scope: &Variables, instruction: &Instruction, run: &Run) {
        for flag in &run.mounts {
            let expand = |value: &str| Ok::<_, crate::expand::ExpandError>(self.expand(value, scope));
            // A mount that is not sound is the build's to report.
            let Ok(mount) = mount::parse(&flag.options.text, expand) else { continue };
            let (into, required, id) = match mount.kind {
                MountKind::Secret { required } => {
                    let target = mount.target.as_deref().map(last_part);
                    let Some(id) = mount.source.or(mount.id).or(target.map(str::to_owned)) else { continue };
                    (&mut found.secrets, required, id)
                }
                MountKind::Ssh { required } => {
                    (&mut found.agents, required, mount.id.unwrap_or_else(|| "default".to_owned()))
                }
                _ => continue,
            };
            let lines = instruction.lines;
            into.entry(id.clone()).or_insert(Needed { id, required, lines });
        }
    }

    /// The expanded text; as written where it cannot be expanded.
    fn expand(&mut self, text: &str, scope: &Variables) -> String {
        if self.budget == 0 {
            return text.to_owned();
        }
        let expanded = self.expander.text(text, scope).ok();
        expanded.filter(|expanded| self.spend(expanded.len()).is_some()).unwrap_or_else(|| text.to_owned())
    }

    fn spend(&mut self, bytes: usize) -> Option<()> {
        let rest = self.budget.checked_sub(bytes);
        self.budget = rest.unwrap_or(0);
        rest.map(drop)
    }
}

fn shown(instruction: &Instruction, name: &str, value: String) -> OutlineArgument {
    OutlineArgument {
        name: name.to_owned(),
        description: description(instruction, name),
        value,
        lines: instruction.lines,
    }
}

fn last_part(path: &str) -> &str {
    path.trim_end_matches('/').rsplit('/').next().unwrap_or(path)
}

/// The parameters of the target and of what it needs; of each name the nearest wins.
struct Collected {
    stages: Vec<StageParameters>,
    visited: BTreeSet<usize>,
    outline: Outline,
}

impl Collected {
    /// The target, its bases, then the stages they take files from.
    fn visit(&mut self, plan: &BuildPlan, globals: &BTreeMap<String, Global>) {
        let mut waiting = vec![plan.target.0];
        let (mut arguments, mut secrets, mut agents) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        while let Some(index) = waiting.pop() {
            if !self.visited.insert(index) {
                continue;
            }
            let (Some(stage), Some(planned)) = (self.stages.get_mut(index), plan.stages.get(index)) else {
                continue;
            };
            for (name, argument) in std::mem::take(&mut stage.arguments) {
                arguments.entry(name).or_insert(argument);
            }
            for name in with_uses(&stage.globals, globals) {
                let Some(global) = globals.get(name) else { continue };
                arguments.entry(name.to_owned()).or_insert_with(|| global.argument.clone());
            }
            for (id, secret) in std::mem::take(&mut stage.secrets) {
                secrets.entry(id).or_insert(secret);
            }
            for (id, agent) in std::mem::take(&mut stage.agents) {
                agents.entry(id).or_insert(agent);
            }
            let sources = planned.instructions.iter().flat_map(|planned| planned.sources.iter().flatten());
            let first = waiting.len();
            waiting.extend(sources.map(|source| source.0));
            waiting[first..].reverse();
            if let Base::Stage(base) = planned.base {
                waiting.push(base.0);
            }
        }
        self.outline.arguments = arguments.into_values().collect();
        self.outline.secrets = secrets.into_values().collect();
        self.outline.agents = agents.into_values().collect();
    }
}

/// The names and the global `ARG`s their defaults use, and so on.
fn with_uses<'a>(names: &'a BTreeSet<String>, globals: &'a BTreeMap<String, Global>) -> BTreeSet<&'a str> {
    let mut all = BTreeSet::new();
    let mut waiting: Vec<&str> = names.iter().map(String::as_str).collect();
    while let Some(name) = waiting.pop() {
        if all.insert(name) {
            waiting.extend(globals.get(name).iter().flat_map(|global| &global.uses).map(String::as_str));
        }
    }
    all
}

#[cfg(test)]
mod tests;
