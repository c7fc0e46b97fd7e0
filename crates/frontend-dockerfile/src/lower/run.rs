//! `RUN`.
//!
//! Owns the process a step runs: its arguments, heredocs included, network, confinement and name.
//! Start with [`Lowering::run`].

use std::borrow::Cow;

use stave_llb::{
    CdiDevice, ContentCache, ExecOp, FileActionKind, HostIp, MkfileAction, Mount, NetMode, ProxyEnv,
    SecurityMode, Ulimit,
    builder::{About, ExecSpec, FileSpec, FileStep, MountSpec},
};

use super::{
    KEYED_SECRETS, Lowering, config::run_message, error, history::commit, mounts::Mounts, stage::StageState,
};
use crate::{
    ast::{CommandLine, Heredoc, Run, RunNetwork, RunSecurity},
    diagnostic::{Code, Diagnostic},
    dialect::Dialect,
    expand::Expander,
    heredoc, path,
    plan::PlannedInstruction,
    request::BuildNetwork,
    scope::Lookup,
};

/// Where a heredoc that is a script of its own is mounted.
const SCRIPTS: &str = "/dev/pipes/";

/// The command of a step: its arguments, and the script it needs mounted.
struct Command {
    args: Vec<String>,
    script: Option<MountSpec>,
    /// What the step's name shows after the instruction.
    summary: String,
}

impl Lowering<'_> {
    pub(super) fn run(
        &mut self,
        state: &mut StageState,
        planned: &PlannedInstruction,
        run: &Run,
    ) -> Result<(), Diagnostic> {
        let instruction = &planned.instruction;
        // A step may look at any file.
        self.locals.uses(state.root, "/");
        let Command { args, script, summary } = self.command(state, run);
        if args.is_empty() {
            return Err(error(instruction.span, "arguments are required"));
        }
        let Mounts { mut all, secret_env, keyed } = self.mounts(state, planned, run)?;
        if !run.devices.is_empty() && self.plan.dockerfile.dialect() < Dialect::Labs {
            let message = "device feature is only supported in Dockerfile frontend 1.14.0-labs or later";
            let refused = Diagnostic::error(Code::Unsupported, instruction.span, message);
            return Err(refused.with_help("begin the file with `# syntax=docker/dockerfile:1-labs`"));
        }
        all.extend(script);
        all.push(bind("/", state.output, "", false));
        let shm = self.plan.request.shm_size;
        if shm > 0 {
            let mount = Mount::Tmpfs { target: "/dev/shm".to_owned(), size: shm, readonly: false };
            all.push(MountSpec { mount, source: None, no_output: true });
        }
        let masked = Masked {
            names: secret_env.iter().map(|secret| secret.name.as_str()).collect(),
            variables: &state.env,
        };
        let code = match summary.is_empty() {
            true => Cow::Borrowed(&*instruction.code),
            false => Cow::Owned([&*instruction.code, &*summary].concat()),
        };
        let shown = state.shown(Expander::display(self.escape()), &code, &masked);
        let mut about = About::named(state.step_name(self.plan, &shown))
            .described("com.docker.dockerfile.v1.command", &*instruction.code);
        if !keyed.is_empty() {
            about = about.described(KEYED_SECRETS, keyed.join(","));
        }
        about.metadata.ignore_cache = self.plan.stages[state.index.0].ignore_cache;
        about.locations.push(self.location(instruction));
        // The history shows variables as they were before the step.
        let message = run_message(state, &args);
        let op = ExecOp { args, secret_env, ..self.process(state, run) };
        // Processes have the usual form, while images keep what was written.
        let platform = state.platform.normalized();
        state.output = Some(self.graph.exec(ExecSpec { op, mounts: all, platform, about }));
        commit(&mut state.image, message, true, self.plan.epoch);
        Ok(())
    }

    /// The same with what the step's own flags say.
    fn process(&self, state: &StageState, run: &Run) -> ExecOp {
        let plain = self.plain_process(state);
        ExecOp {
            devices: run
                .devices
                .iter()
                .map(|device| CdiDevice { name: device.name.clone(), optional: !device.required })
                .collect(),
            network: match run.network {
                RunNetwork::None => NetMode::None,
                RunNetwork::Host => NetMode::Host,
                RunNetwork::Default => plain.network,
            },
            security: match run.security {
                RunSecurity::Sandbox => SecurityMode::Sandbox,
                RunSecurity::Insecure => SecurityMode::Insecure,
            },
            ..plain
        }
    }

    /// Everything about a stage's process that is not its command or its mounts.
    pub(super) fn plain_process(&self, state: &StageState) -> ExecOp {
        let request = &self.plan.request;
        let network = match request.network {
            BuildNetwork::None => NetMode::None,
            BuildNetwork::Host => NetMode::Host,
            BuildNetwork::Sandbox => NetMode::Default,
        };
        let limit =
            |(name, soft, hard): &(String, i64, i64)| Ulimit { name: name.clone(), soft: *soft, hard: *hard };
        let hosts = request.extra_hosts.iter();
        ExecOp {
            env: state.env.iter().map(|(name, value)| [name, "=", value].concat()).collect(),
            cwd: state.directory().to_owned(),
            user: state.user.clone(),
            hostname: request.hostname.clone().unwrap_or_default(),
            ulimits: request.ulimits.iter().map(limit).collect(),
            extra_hosts: hosts
                .map(|one| HostIp { host: one.host.clone(), ip: one.address.to_string() })
                .collect(),
            proxy_env: self.proxy(),
            cgroup_parent: request.cgroup_parent.clone(),
            remove_mount_stubs: true,
            network,
            ..ExecOp::default()
        }
    }

    /// Proxies among the build arguments, which steps see without an `ARG` and without a cache miss.
    fn proxy(&self) -> Option<ProxyEnv> {
        let mut proxy = ProxyEnv::default();
        let mut found = false;
        for (name, value) in &self.plan.request.build_args {
            let field = match name.to_ascii_lowercase().as_str() {
                "http_proxy" => &mut proxy.http_proxy,
                "https_proxy" => &mut proxy.https_proxy,
                "ftp_proxy" => &mut proxy.ftp_proxy,
                "no_proxy" => &mut proxy.no_proxy,
                "all_proxy" => &mut proxy.all_proxy,
                _ => continue,
            };
            field.clone_from(value);
            found = true;
        }
        found.then_some(proxy)
    }

    fn command(&mut self, state: &StageState, run: &Run) -> Command {
        let plain = |args| Command { args, script: None, summary: String::new() };
        let word = match &run.command {
            CommandLine::Exec(args) => return plain(args.clone()),
            CommandLine::Shell(word) => word,
        };
        let Some(first) = run.heredocs.first() else { return plain(state.with_shell(&word.text)) };
        if !matches!(heredoc::parse_word(&word.text), Ok(Some(_))) {
            // A command that reads heredocs: the shell gets them as they were.
            let mut text = word.text.clone();
            for heredoc in &run.heredocs {
                text = format!("{text}\n{}{}", heredoc.content, heredoc.name);
            }
            return plain(state.with_shell(&text));
        }
        // The heredoc is the command itself.
        let body = first.body();
        let summary = format!(" ({})", summarise(&first.content));
        if state.image.os != "windows" && body.starts_with("#!") {
            let script = self.script(first, body);
            let path = path::join(SCRIPTS, &first.name);
            return Command { args: state.with_shell(&path), script: Some(script), summary };
        }
        Command { args: state.with_shell(&body), script: None, summary }
    }

    fn script(&mut self, heredoc: &Heredoc, body: String) -> MountSpec {
        let file = MkfileAction {
            path: path::join("/", &heredoc.name),
            mode: 0o755,
            data: body.into_bytes(),
            owner: None,
            timestamp: None,
        };
        let output = self.graph.file(FileSpec {
            base: None,
            actions: vec![FileStep { kind: FileActionKind::Mkfile(file), source: None }],
            about: About::named("[internal] preparing inline document"),
        });
        bind(SCRIPTS, Some(output), "/", true)
    }
}

/// A bind mount whose writes, if it takes any, are kept.
fn bind(
    target: &str,
    source: Option<stave_llb::builder::Output>,
    selector: &str,
    readonly: bool,
) -> MountSpec {
    let mount = Mount::Bind {
        target: target.to_owned(),
        input: None,
        selector: selector.to_owned(),
        readonly,
        output: None,
        content_cache: ContentCache::Default,
    };
    MountSpec { mount, source, no_output: false }
}

/// The first line of a heredoc, with dots if there is more.
fn summarise(content: &str) -> String {
    let content = content.trim().replace("\r\n", "\n");
    match content.split_once('\n') {
        Some((first, _)) => format!("{first}..."),
        None => content,
    }
}

/// The stage's variables with those that come from secrets shown as stars.
struct Masked<'a> {
    names: Vec<&'a str>,
    variables: &'a dyn Lookup,
}

impl Lookup for Masked<'_> {
    fn value(&self, name: &str) -> Option<&str> {
        if self.names.contains(&name) { Some("****") } else { self.variables.value(name) }
    }
}
