//! The syntax tree and the plan as JSON, for people and tools.
//!
//! Owns that form, which is written down here field by field and is no image of the types: what is
//! absent or a default is left out, places are line numbers. Must not be read back by anything of ours.
//! Read [`Dockerfile::to_json`] and [`BuildPlan::to_json`] first.

use serde_json::{Map, Value, json};

use crate::{
    ast::{
        Add, CommandLine, Copy, DirectiveKind, Dockerfile, Healthcheck, Instruction, InstructionKind, Pair,
        Run, RunNetwork, RunSecurity, Stage, Transfer, Word,
    },
    input::NamedContext,
    plan::{Base, BuildPlan, PlannedInstruction, PlannedStage, StageIndex},
    request::ResolvedSources,
    source::Lines,
};

/// An object that leaves out what is not there.
#[derive(Default)]
struct Object(Map<String, Value>);

impl Object {
    fn put(&mut self, name: &str, value: impl Into<Value>) {
        self.0.insert(name.to_owned(), value.into());
    }

    fn some<T: Into<Value>>(&mut self, name: &str, value: Option<T>) {
        if let Some(value) = value {
            self.put(name, value);
        }
    }

    fn list(&mut self, name: &str, values: Vec<Value>) {
        if !values.is_empty() {
            self.put(name, values);
        }
    }

    fn flag(&mut self, name: &str, value: bool) {
        if value {
            self.put(name, true);
        }
    }

    fn done(self) -> Value {
        Value::Object(self.0)
    }
}

impl Dockerfile {
    /// `{"name", "escape", "directives", "arguments", "stages"}`; every instruction has its keyword, its
    /// lines, its text and what was read out of it, unexpanded.
    pub fn to_json(&self) -> Value {
        let mut object = Object::default();
        object.put("name", self.source.name.as_str());
        object.put("escape", self.escape.to_string());
        let directives = self.directives.iter().map(|directive| {
            let name = match directive.kind {
                DirectiveKind::Syntax => "syntax",
                DirectiveKind::Escape => "escape",
                DirectiveKind::Check => "check",
            };
            let line = self.source.position(directive.span.start).line;
            json!({"name": name, "value": directive.value, "line": line})
        });
        object.list("directives", directives.collect());
        object.list("arguments", self.globals.iter().map(instruction).collect());
        object.put("stages", self.stages.iter().map(stage).collect::<Vec<_>>());
        object.done()
    }
}

fn stage(stage: &Stage) -> Value {
    let mut object = Object::default();
    object.some("name", stage.from.name.as_ref().map(|name| name.name.as_str()));
    object.put("from", instruction(&stage.instruction));
    object.put("instructions", stage.instructions.iter().map(|one| instruction(one)).collect::<Vec<_>>());
    object.done()
}

fn instruction(instruction: &Instruction) -> Value {
    let mut object = Object::default();
    object.put("instruction", instruction.keyword.to_uppercase());
    object.put("lines", lines(instruction.lines));
    object.put("text", instruction.code.as_str());
    object.list("comments", instruction.comments.iter().map(|comment| json!(comment)).collect());
    fields(&mut object, &instruction.kind);
    object.done()
}

fn fields(object: &mut Object, kind: &InstructionKind) {
    match kind {
        InstructionKind::From(from) => {
            object.put("base", word(&from.base));
            object.some("platform", from.platform.as_ref().map(word));
            object.some("as", from.name.as_ref().map(|name| word(&name.written)));
        }
        InstructionKind::Run(one) => run(object, one),
        InstructionKind::Copy(one) => copy(object, one),
        InstructionKind::Add(one) => add(object, one),
        InstructionKind::Env(pairs) => object.put("variables", pairs_of(pairs)),
        InstructionKind::Label(pairs) => object.put("labels", pairs_of(pairs)),
        InstructionKind::Arg(arguments) => {
            let argument = |argument: &crate::ast::Argument| {
                let mut object = Object::default();
                object.put("name", word(&argument.name));
                object.some("default", argument.default.as_ref().map(word));
                object.done()
            };
            object.put("arguments", arguments.iter().map(argument).collect::<Vec<_>>());
        }
        InstructionKind::Workdir(path) => object.put("path", word(path)),
        InstructionKind::User(user) => object.put("user", word(user)),
        InstructionKind::Expose(ports) => object.put("ports", words(ports)),
        InstructionKind::Volume(paths) => object.put("paths", words(paths)),
        InstructionKind::Cmd(command) | InstructionKind::Entrypoint(command) => {
            object.put("command", command_line(command));
        }
        InstructionKind::Shell(shell) => object.put("shell", json!(shell)),
        InstructionKind::StopSignal(signal) => object.put("signal", word(signal)),
        InstructionKind::Healthcheck(check) => healthcheck(object, check),
        InstructionKind::Onbuild(trigger) => object.put("trigger", trigger.expression.as_str()),
        InstructionKind::Maintainer(name) => object.put("name", word(name)),
        InstructionKind::Unset(unset) => {
            let (what, names) = unset.parts();
            object.put("what", what);
            object.put("names", words(names));
        }
    }
}

fn run(object: &mut Object, run: &Run) {
    object.put("command", command_line(&run.command));
    let heredoc = |heredoc: &crate::ast::Heredoc| {
        let mut object = Object::default();
        object.put("name", heredoc.name.as_str());
        object.some("file_descriptor", Some(heredoc.file_descriptor).filter(|number| *number != 0));
        object.flag("expand", heredoc.expand);
        object.put("content", heredoc.body());
        object.done()
    };
    object.list("heredocs", run.heredocs.iter().map(heredoc).collect());
    object.list("mounts", run.mounts.iter().map(|mount| word(&mount.options)).collect());
    match run.network {
        RunNetwork::Default => {}
        RunNetwork::None => object.put("network", "none"),
        RunNetwork::Host => object.put("network", "host"),
    }
    match run.security {
        RunSecurity::Sandbox => {}
        RunSecurity::Insecure => object.put("security", "insecure"),
    }
    let device = |device: &crate::ast::Device| json!({"name": device.name, "required": device.required});
    object.list("devices", run.devices.iter().map(device).collect());
}

fn transfer(object: &mut Object, transfer: &Transfer) {
    object.list("sources", transfer.sources.iter().map(word).collect());
    let file = |file: &crate::ast::InlineFile| json!({"name": file.name, "content": file.content, "expand": file.expand});
    object.list("files", transfer.inline.iter().map(file).collect());
    object.put("destination", word(&transfer.destination));
    object.some("chown", transfer.chown.as_ref().map(word));
    object.some("chmod", transfer.chmod.as_ref().map(word));
    object.flag("link", transfer.link);
    object.list("exclude", transfer.excludes.iter().map(word).collect());
}

fn copy(object: &mut Object, copy: &Copy) {
    object.some("from", copy.from.as_ref().map(word));
    transfer(object, &copy.transfer);
    object.flag("parents", copy.parents);
    object.flag("if_exists", copy.if_exists);
}

fn add(object: &mut Object, add: &Add) {
    transfer(object, &add.transfer);
    object.some("keep_git_dir", add.keep_git_dir);
    object.some("checksum", add.checksum.as_ref().map(word));
    object.some("unpack", add.unpack);
}

fn healthcheck(object: &mut Object, check: &Healthcheck) {
    match check {
        Healthcheck::None => object.put("command", Value::Null),
        Healthcheck::Command { command, interval, timeout, start_period, start_interval, retries } => {
            object.put("command", command_line(command));
            let times = [
                ("interval_ns", interval),
                ("timeout_ns", timeout),
                ("start_period_ns", start_period),
                ("start_interval_ns", start_interval),
            ];
            for (name, value) in times {
                object.some(name, Some(*value).filter(|value| *value != 0));
            }
            object.some("retries", Some(*retries).filter(|retries| *retries != 0));
        }
    }
}

fn command_line(command: &CommandLine) -> Value {
    match command {
        CommandLine::Shell(line) => json!({"shell": line.text}),
        CommandLine::Exec(words) => json!({"exec": words}),
    }
}

fn pairs_of(pairs: &[Pair]) -> Vec<Value> {
    pairs.iter().map(|pair| json!({"name": pair.name.text, "value": pair.value.text})).collect()
}

fn word(word: &Word) -> Value {
    json!(word.text)
}

fn words(all: &[Word]) -> Vec<Value> {
    all.iter().map(word).collect()
}

fn lines(lines: Lines) -> Value {
    json!([lines.first, lines.last])
}

impl BuildPlan {
    /// `{"target", "platform", "build_platform", "source_date_epoch", "arguments", "images", "stages"}`:
    /// the stages with their bases, who needs them and where their instructions take files from;
    /// `images` are those to be looked up.
    pub fn to_json(&self) -> Value {
        let mut object = Object::default();
        object.put("target", self.label(self.target));
        object.put("platform", self.request.platform().to_string());
        object.put("build_platform", self.request.build_platform.to_string());
        object.some("source_date_epoch", self.epoch);
        let arguments = self.globals.iter().map(|(name, value)| (name.to_owned(), json!(value)));
        object.put("arguments", arguments.collect::<Map<_, _>>());
        let image = |request: crate::request::SourceRequest| json!({"reference": request.reference.to_string(), "platform": request.platform.to_string()});
        let images = self.missing(&ResolvedSources::default());
        object.put("images", images.into_iter().map(image).collect::<Vec<_>>());
        let stages = (0..self.stages.len()).map(|index| self.stage_json(StageIndex(index)));
        object.put("stages", stages.collect::<Vec<_>>());
        object.done()
    }

    fn stage_json(&self, index: StageIndex) -> Value {
        let stage = &self.stages[index.0];
        let mut object = Object::default();
        object.put("stage", self.label(index));
        object.put("base", self.base_json(stage));
        object.some("platform", stage.platform.as_ref().map(ToString::to_string));
        object.put("needed", stage.reachable);
        object.flag("no_cache", stage.ignore_cache);
        object.some("lines", stage.lines.map(lines));
        let planned = stage.instructions.iter().map(|planned| self.planned_json(planned));
        object.list("instructions", planned.collect());
        object.done()
    }

    fn planned_json(&self, planned: &PlannedInstruction) -> Value {
        let mut object = Object::default();
        object.put("text", planned.instruction.code.as_str());
        object.put("lines", lines(planned.instruction.lines));
        object.flag("trigger", planned.on_build);
        let sources = planned.sources.iter().flatten();
        object.list("takes_from", sources.map(|source| json!(self.label(*source))).collect());
        object.done()
    }

    fn base_json(&self, stage: &PlannedStage) -> Value {
        match &stage.base {
            Base::Scratch => json!({"scratch": true}),
            Base::Stage(base) => json!({"stage": self.label(*base)}),
            Base::Image(reference) => json!({"image": reference.to_string()}),
            Base::Context(context) => match &context.source {
                NamedContext::Image { reference, .. } => json!({"image": reference.to_string()}),
                NamedContext::Scratch => json!({"scratch": true}),
                NamedContext::OciLayout { store, digest } => json!({"layout": store, "digest": digest}),
                NamedContext::Local(local) => json!({"local": local.name}),
                NamedContext::Git(address) => json!({"git": address}),
                NamedContext::Http(address) => json!({"http": address}),
                NamedContext::Graph { .. } => json!({"graph": true}),
            },
        }
    }

    /// How a stage is called here: its name, its number without one; an image by its name.
    fn label(&self, index: StageIndex) -> String {
        let named = self.dockerfile.stages.get(index.0).map(|stage| stage.from.name.as_ref());
        match (named, self.stages.get(index.0)) {
            (Some(Some(name)), _) => name.name.clone(),
            (None, Some(implicit)) => implicit.written_base.clone(),
            _ => index.0.to_string(),
        }
    }
}

#[cfg(test)]
mod tests;
