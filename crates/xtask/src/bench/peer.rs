//! The builders that can be measured, and how each is called.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::Operation;
use crate::{Failure, machine};

/// One builder with its own state.
pub(crate) struct Builder {
    kind: Kind,
    program: PathBuf,
    state: PathBuf,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Stave,
    Buildah,
    Podman,
    Docker,
    BuildKit,
}

impl Builder {
    /// stave first, then the peers asked for, or all that are usable.
    pub(crate) fn select(
        stave: &Path,
        names: Option<&[String]>,
        folder: &Path,
    ) -> Result<Vec<Self>, Failure> {
        let new = |kind, program: &Path, name: &str| Self {
            kind,
            program: program.to_owned(),
            state: folder.join(name),
        };
        let mut builders = vec![new(Kind::Stave, stave, "stave")];
        for (kind, name, program) in [
            (Kind::Buildah, "buildah", "buildah"),
            (Kind::Podman, "podman", "podman"),
            (Kind::Docker, "docker", "docker"),
            (Kind::BuildKit, "buildkit", "buildctl"),
        ] {
            let peer = new(kind, Path::new(program), name);
            match names {
                Some(names) if !names.iter().any(|wanted| wanted == name) => {}
                Some(_) if !peer.usable() => {
                    return Err(format!("{name} is not usable on this machine").into());
                }
                None if !peer.usable() => eprintln!("xtask: {name} is not usable here: left out"),
                _ => builders.push(peer),
            }
        }
        if let Some(unknown) = names
            .unwrap_or(&[])
            .iter()
            .find(|name| !["buildah", "podman", "docker", "buildkit"].contains(&name.as_str()))
        {
            return Err(format!("no peer is called {unknown}").into());
        }
        Ok(builders)
    }

    pub(crate) fn name(&self) -> &'static str {
        match self.kind {
            Kind::Stave => "stave",
            Kind::Buildah => "buildah",
            Kind::Podman => "podman",
            Kind::Docker => "docker",
            Kind::BuildKit => "buildkit",
        }
    }

    fn usable(&self) -> bool {
        let Some(program) = self.program.to_str() else { return false };
        let probe: &[&str] = match self.kind {
            Kind::Docker => &["info"],
            Kind::BuildKit => &["debug", "workers"],
            _ => &["version"],
        };
        machine::has(program)
            && Command::new(&self.program)
                .args(probe)
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()
                .is_ok_and(|s| s.success())
    }

    /// Builds `context` into a local image called `bench`.
    pub(crate) fn build(&self, context: &Path, registry: &str, operation: Operation) -> Result<(), Failure> {
        let mut command = Command::new(&self.program);
        let argument = format!("REGISTRY={registry}");
        let cold = operation == Operation::Cold;
        match self.kind {
            Kind::Stave => command.arg("build").arg("--root").arg(&self.state).args(["--progress=plain"]),
            Kind::Buildah => self.storage(&mut command).args([
                "build",
                "--layers",
                "--tls-verify=false",
                "--jobs=12",
                "--isolation=oci",
                "--runtime=runc",
                "--network=host",
            ]),
            Kind::Podman => self.storage(&mut command).args([
                "build",
                "--layers",
                "--tls-verify=false",
                "--jobs=12",
                "--network=host",
            ]),
            Kind::Docker => command.arg("build").arg("--progress=plain"),
            Kind::BuildKit => {
                command.args(["build", "--progress=plain", "--frontend=dockerfile.v0"]);
                command.arg("--opt").arg(format!("build-arg:{argument}"));
                for name in ["context", "dockerfile"] {
                    command.arg("--local").arg(format!("{name}={}", context.display()));
                }
                command.args(["--output", "type=image,name=bench"])
            }
        };
        if cold {
            command.arg("--no-cache");
        }
        if self.kind != Kind::BuildKit {
            command.args(["-t", "bench", "--build-arg", &argument]).arg(context);
        }
        quiet(&mut command)
    }

    pub(crate) fn can_run(&self) -> bool {
        !matches!(self.kind, Kind::Buildah | Kind::BuildKit)
    }

    /// Starts and removes a container that does nothing.
    pub(crate) fn run(&self, image: &str) -> Result<(), Failure> {
        let mut command = Command::new(&self.program);
        match self.kind {
            Kind::Stave => command.arg("run").arg("--root").arg(&self.state),
            Kind::Podman => self.storage(&mut command).args(["run", "--tls-verify=false"]),
            _ => command.arg("run"),
        };
        command.args(["--rm", "--network=host", image, "true"]);
        quiet(&mut command)
    }

    /// buildah and podman keep their images apart from the machine's own.
    fn storage<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        let [root, run] = ["root", "run"].map(|name| self.state.join(name));
        command.arg("--root").arg(root).arg("--runroot").arg(run);
        if self.kind == Kind::Podman {
            // crun refuses hosts with hybrid control groups; runc runs everywhere.
            command.args(["--runtime=runc", "--cgroup-manager=cgroupfs"]);
        }
        command
    }
}

fn quiet(command: &mut Command) -> Result<(), Failure> {
    machine::read(command).map(drop)
}
