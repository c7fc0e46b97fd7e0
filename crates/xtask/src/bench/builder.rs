//! The builders that can be measured, and how each is called.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use super::Options;
use super::case::{Case, Operation};
use super::daemon::Daemon;
use super::invocation::{Invocation, Line};
use super::usage::Usage;
use crate::{Failure, machine};

/// One builder with its own state.
pub(crate) struct Builder {
    kind: Kind,
    program: PathBuf,
    state: PathBuf,
    registry: String,
    daemon: Option<Daemon>,
    /// Declared after the daemon, so that it goes after the daemon's mounts.
    passing: Option<Passing>,
}

/// A state directory that is removed with the guard.
pub(crate) struct Passing(PathBuf);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Stave,
    /// An earlier build of the same program.
    Before,
    BuildKit,
    Docker,
    Buildah,
    Podman,
}

/// How a build differs from a plain one into the local store.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wish {
    no_cache: bool,
    /// Makes the layers differ from those of any other round: nothing that they need is anywhere yet.
    mark: Option<String>,
    output: Output,
    cache_to: Option<String>,
    cache_from: Option<String>,
}

/// Where the result of a build goes.
#[derive(Debug, Clone, Default)]
enum Output {
    /// The builder's own store, under a name.
    #[default]
    Local,
    /// What is stored must not be compressed yet: BuildKit's image exporter does that at once, so it gets none.
    Uncompressed,
    /// A registry, under a reference and with a compression.
    Registry(String, &'static str),
}

impl Wish {
    pub(crate) fn cold() -> Self {
        Self { no_cache: true, ..Self::default() }
    }

    /// Layers of their own, and no image yet.
    pub(crate) fn marked(mark: &str) -> Self {
        Self { mark: Some(mark.to_owned()), output: Output::Uncompressed, ..Self::default() }
    }

    pub(crate) fn push(mark: &str, reference: &str, compression: &'static str) -> Self {
        Self { output: Output::Registry(reference.to_owned(), compression), ..Self::marked(mark) }
    }

    pub(crate) fn export(reference: &str) -> Self {
        Self { cache_to: Some(reference.to_owned()), ..Self::default() }
    }

    pub(crate) fn cold_export(reference: &str) -> Self {
        Self { no_cache: true, ..Self::export(reference) }
    }

    pub(crate) fn import(reference: &str) -> Self {
        Self { cache_from: Some(reference.to_owned()), ..Self::default() }
    }
}

const PEERS: [(Kind, &str); 4] = [
    (Kind::BuildKit, "buildctl"),
    (Kind::Docker, "docker"),
    (Kind::Buildah, "buildah"),
    (Kind::Podman, "podman"),
];

impl Builder {
    /// stave first, then the peers asked for, or all that are usable.
    pub(crate) fn select(
        stave: &Path,
        options: &Options,
        folder: &Path,
        registry: &str,
    ) -> Result<Vec<Self>, Failure> {
        let new = |kind: Kind, program: &Path| Self {
            kind,
            program: program.to_owned(),
            state: folder.join(kind.name()),
            registry: registry.to_owned(),
            daemon: None,
            passing: None,
        };
        let mut builders = vec![new(Kind::Stave, stave)];
        if let Some(before) = &options.before {
            builders.push(new(Kind::Before, &before.canonicalize()?));
        }
        let wanted = options.peer.as_deref();
        let known = PEERS.map(|(kind, _)| kind.name());
        if let Some(unknown) = wanted.unwrap_or(&[]).iter().find(|name| !known.contains(&name.as_str())) {
            return Err(format!("no peer is called {unknown}; there are {}", known.join(" ")).into());
        }
        for (kind, program) in PEERS {
            let name = kind.name();
            if wanted.is_some_and(|names| !names.iter().any(|wanted| wanted == name)) {
                continue;
            }
            let peer = new(kind, Path::new(program));
            match (peer.usable(), wanted) {
                (true, _) => builders.push(peer.with_daemon()?),
                (false, Some(_)) => return Err(format!("{name} is not usable on this machine").into()),
                (false, None) => eprintln!("xtask: {name} is not usable here: left out"),
            }
        }
        Ok(builders)
    }

    pub(crate) fn name(&self) -> &'static str {
        self.kind.name()
    }

    pub(crate) fn is_peer(&self) -> bool {
        self.kind != Kind::Stave
    }

    pub(crate) fn version(&self) -> String {
        let text = machine::read(Command::new(&self.program).arg("--version")).unwrap_or_default();
        format!("{}: {}", self.name(), text.lines().next().unwrap_or("unknown version"))
    }

    fn usable(&self) -> bool {
        let Some(program) = self.program.to_str() else { return false };
        if self.kind == Kind::BuildKit {
            return machine::has("buildctl") && machine::has("buildkitd") && machine::has("runc");
        }
        let probe = if self.kind == Kind::Docker { "info" } else { "version" };
        let mut command = Command::new(&self.program);
        command.arg(probe).stdout(Stdio::null()).stderr(Stdio::null());
        machine::has(program) && command.status().is_ok_and(|status| status.success())
    }

    fn with_daemon(self) -> Result<Self, Failure> {
        let daemon = match self.kind {
            Kind::BuildKit => Some(Daemon::start(Path::new("buildkitd"), &self.state, &self.registry)?),
            _ => None,
        };
        Ok(Self { daemon, ..self })
    }

    /// The same builder with an empty state, which ends with it.
    pub(crate) fn fresh(&self) -> Result<Self, Failure> {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder = self.state.with_file_name(format!("{}-fresh-{number}", self.name()));
        if folder.exists() {
            std::fs::remove_dir_all(&folder)?;
        }
        let fresh = Self {
            kind: self.kind,
            program: self.program.clone(),
            state: folder.clone(),
            registry: self.registry.clone(),
            daemon: None,
            passing: Some(Passing(folder)),
        };
        fresh.with_daemon()
    }

    /// Ends its daemon and leaves its state to be removed later: ext4 makes files several times as slowly for minutes
    /// after many were removed, and the next round would be measured in that time.
    pub(crate) fn spend(self) -> Option<Passing> {
        drop(self.daemon);
        self.passing
    }

    /// Whether it can do such a thing.
    pub(crate) fn can(&self, operation: Operation) -> bool {
        match operation {
            Operation::Start => !matches!(self.kind, Kind::Buildah | Kind::BuildKit),
            Operation::Fresh => self.kind != Kind::Docker,
            Operation::Export | Operation::Import => {
                matches!(self.kind, Kind::Stave | Kind::Before | Kind::BuildKit)
            }
            // docker and podman push in a second step, and keep one compression.
            Operation::PushGzip | Operation::PushZstd => !matches!(self.kind, Kind::Docker | Kind::Podman),
            _ => true,
        }
    }

    /// Builds each context of the case, at once if there are several.
    pub(crate) fn perform(&self, case: &Case, folder: &Path, wish: &Wish) -> Result<Usage, Failure> {
        let contexts = case.contexts(folder);
        let mut lines: Vec<Line> = contexts.iter().flat_map(|context| self.build(context, wish)).collect();
        let invocation = match (contexts.len(), lines.len()) {
            (1, 1) => Invocation::One(lines.remove(0)),
            (1, _) => Invocation::Row(lines),
            _ => Invocation::Together(lines),
        };
        self.measured(&invocation)
    }

    /// Fifty builds, one file changed before each.
    pub(crate) fn edits(&self, case: &Case, folder: &Path, round: usize) -> Result<Usage, Failure> {
        self.perform(case, folder, &Wish::default())?;
        let changed = folder.join("changed.txt");
        let edit = |number: usize| {
            let text = format!("echo {} {round} {number} > '{}'", self.name(), changed.display());
            Line::new(Path::new("sh")).arg("-c").arg(text)
        };
        let lines = (0..50).flat_map(|number| {
            let builds = self.build(folder, &Wish::default());
            std::iter::once(edit(number)).chain(builds)
        });
        self.measured(&Invocation::Row(lines.collect()))
    }

    fn measured(&self, invocation: &Invocation) -> Result<Usage, Failure> {
        std::fs::create_dir_all(&self.state)?;
        let Some(daemon) = &self.daemon else { return invocation.run(&self.state) };
        let begin = daemon.begin()?;
        let client = invocation.run(&self.state)?;
        Ok(client.plus(daemon.end(&begin)?))
    }

    /// The commands that build `context` into a local image called `bench`, or push it.
    fn build(&self, context: &Path, wish: &Wish) -> Vec<Line> {
        match self.kind {
            Kind::Stave | Kind::Before => vec![self.stave(context, wish)],
            Kind::BuildKit => {
                let line = self.buildkit(context, wish);
                let output = match &wish.output {
                    Output::Local => "type=image,name=bench".to_owned(),
                    Output::Uncompressed => return vec![line],
                    Output::Registry(reference, compression) => pushed(reference, compression),
                };
                vec![line.arg("--output").arg(output)]
            }
            Kind::Docker => {
                let line = Line::new(&self.program).args(["build", "--progress=plain", "-t", "bench"]);
                vec![self.classic(line, context, wish)]
            }
            Kind::Buildah | Kind::Podman => {
                let Output::Registry(reference, compression) = &wish.output else {
                    let line = self.storage("build").args(["-t", "bench"]);
                    return vec![self.classic(line, context, wish)];
                };
                let push = self.storage("push").arg("--tls-verify=false");
                let push = push.arg(format!("--compression-format={compression}"));
                vec![push.arg("bench").arg(format!("docker://{reference}"))]
            }
        }
    }

    fn stave(&self, context: &Path, wish: &Wish) -> Line {
        let line = self.stave_command("build").arg("--progress=plain");
        let mut line = match &wish.output {
            Output::Registry(reference, compression) => {
                line.arg("--output").arg(pushed(reference, compression))
            }
            Output::Local | Output::Uncompressed => line.args(["-t", "bench"]),
        };
        if let Some(reference) = &wish.cache_to {
            line = line.arg("--cache-to").arg(format!("type=registry,ref={reference},mode=max"));
        }
        if let Some(reference) = &wish.cache_from {
            line = line.arg("--cache-from").arg(format!("type=registry,ref={reference}"));
        }
        self.classic(line, context, wish)
    }

    fn stave_command(&self, verb: &str) -> Line {
        Line::new(&self.program).arg(verb).arg("--root").arg(&self.state)
    }

    /// The flags that all but buildctl share.
    fn classic(&self, line: Line, context: &Path, wish: &Wish) -> Line {
        let line = if wish.no_cache { line.arg("--no-cache") } else { line };
        let line = match &wish.mark {
            Some(mark) => line.arg("--build-arg").arg(format!("MARK={mark}")),
            None => line,
        };
        line.arg("--build-arg").arg(format!("REGISTRY={}", self.registry)).arg(context)
    }

    fn buildkit(&self, context: &Path, wish: &Wish) -> Line {
        let address = self.daemon.as_ref().map(Daemon::address).unwrap_or_default();
        let mut line = Line::new(&self.program).arg("--addr").arg(address);
        line = line.args(["build", "--progress=plain", "--frontend=dockerfile.v0"]);
        line = line.arg("--opt").arg(format!("build-arg:REGISTRY={}", self.registry));
        for name in ["context", "dockerfile"] {
            line = line.arg("--local").arg(format!("{name}={}", context.display()));
        }
        if let Some(mark) = &wish.mark {
            line = line.arg("--opt").arg(format!("build-arg:MARK={mark}"));
        }
        if wish.no_cache {
            line = line.arg("--no-cache");
        }
        if let Some(reference) = &wish.cache_to {
            line = line.arg("--export-cache").arg(format!("type=registry,ref={reference},mode=max"));
        }
        if let Some(reference) = &wish.cache_from {
            line = line.arg("--import-cache").arg(format!("type=registry,ref={reference}"));
        }
        line
    }

    /// The command that writes the root file system to standard output as a tar.
    pub(crate) fn tar(&self, context: &Path) -> Line {
        let wish = Wish::default();
        match self.kind {
            Kind::BuildKit => self.buildkit(context, &wish).args(["--output", "type=tar"]),
            Kind::Stave | Kind::Before => {
                let line = self.stave_command("build").arg("--progress=quiet");
                self.classic(line.args(["-o", "type=tar,dest=-"]), context, &wish)
            }
            Kind::Docker => {
                self.classic(Line::new(&self.program).args(["build", "-q", "-o", "-"]), context, &wish)
            }
            Kind::Buildah | Kind::Podman => {
                // buildah 1.28 leaves the last step out of what it puts out when it keeps layers.
                let line = self.storage("build").args(["--layers=false", "--quiet", "--output", "-"]);
                self.classic(line, context, &Wish::cold())
            }
        }
    }

    /// Starts and removes a container that does nothing.
    pub(crate) fn start(&self, image: &str) -> Result<Usage, Failure> {
        let line = match self.kind {
            Kind::Stave | Kind::Before => self.stave_command("run"),
            // Without these it asks for more files and processes than a machine may allow.
            Kind::Podman => self.storage("run").args([
                "--tls-verify=false",
                "--ulimit=nofile=1024:1024",
                "--ulimit=nproc=1024:1024",
            ]),
            _ => Line::new(&self.program).arg("run"),
        };
        self.measured(&Invocation::One(line.args(["--rm", "--network=host", image, "true"])))
    }

    /// buildah and podman keep their images apart from the machine's own, and use runc: crun refuses
    /// hosts with hybrid control groups.
    fn storage(&self, verb: &str) -> Line {
        let [root, run] = ["root", "run"].map(|name| self.state.join(name));
        let mut line = Line::new(&self.program).arg("--root").arg(root).arg("--runroot").arg(run);
        if self.kind == Kind::Podman {
            line = line.args(["--runtime=runc", "--cgroup-manager=cgroupfs"]);
        }
        line = line.arg(verb);
        match (self.kind, verb) {
            (Kind::Buildah, "build") => line.args([
                "--layers",
                "--tls-verify=false",
                "--jobs=12",
                "--isolation=oci",
                "--runtime=runc",
                "--network=host",
            ]),
            (Kind::Podman, "build") => {
                line.args(["--layers", "--tls-verify=false", "--jobs=12", "--network=host"])
            }
            _ => line,
        }
    }
}

/// The `type=image` output that pushes, as BuildKit and stave read it.
fn pushed(reference: &str, compression: &str) -> String {
    format!("type=image,name={reference},push=true,compression={compression},force-compression=true")
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Stave => "stave",
            Self::Before => "before",
            Self::BuildKit => "buildkit",
            Self::Docker => "docker",
            Self::Buildah => "buildah",
            Self::Podman => "podman",
        }
    }
}

impl Drop for Passing {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            eprintln!("xtask: cannot remove {}: {error}", self.0.display());
        }
    }
}
