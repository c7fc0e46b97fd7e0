//! What is done with a step that failed: a shell in it, files copied out of it.
//!
//! Owns the flags and their order: files first, since a shell may take long. Must not know why the step failed.
//! Start with [`Flags::attend`].

use std::path::{Path, PathBuf};

use stave_engine::{BuildError, BuildRequest, Engine, Failed, Means};

use crate::commands::debug::shell;
use crate::report::Failure;
use crate::runtime::Interrupt;

// When a step fails
#[derive(Debug, clap::Args)]
#[group(skip)]
pub(crate) struct Flags {
    /// When a step fails, do this: `shell` opens a shell in it
    #[arg(long, value_name = "WHAT")]
    on_failure: Option<OnFailure>,
    /// When a step fails, copy files out of it (`type=local,src=/reports,dest=DIR`)
    #[arg(long, value_name = "SPEC", value_parser = output)]
    output_on_failure: Vec<Output>,
}

/// `--on-failure`
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum OnFailure {
    /// A shell in the failed step
    Shell,
}

/// One `--output-on-failure`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Output {
    from: PathBuf,
    to: PathBuf,
}

impl Flags {
    /// Refuses what cannot be done, before anything is built.
    pub(super) fn check(&self) -> Result<(), Failure> {
        use std::io::IsTerminal as _;
        let terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
        match self.on_failure {
            Some(OnFailure::Shell) if !terminal => {
                Err(Failure::usage("--on-failure=shell needs a terminal; `stave debug` can be used later"))
            }
            _ => Ok(()),
        }
    }

    /// Does what was asked for, if a step's process failed. `explained` is what will be said of the failure.
    pub(super) async fn attend(
        &self,
        engine: &Engine,
        error: &BuildError,
        request: &BuildRequest,
        explained: &Failure,
        interrupt: &Interrupt,
    ) {
        let BuildError::Solve { error, .. } = error else { return };
        let Some(failed) = engine.failed_now(error) else { return };
        for output in &self.output_on_failure {
            copy(engine, &failed, output, interrupt).await;
        }
        if self.on_failure == Some(OnFailure::Shell) && interrupt.code().is_none() {
            eprint!("{}", explained.render());
            let means = Means {
                secrets: request.secrets.clone(),
                ssh: request.ssh.clone(),
                confinement: request.confinement.clone(),
            };
            // The build's failure is what the command ends with; that of the shell is only told.
            if let Err(failure) = shell::enter(engine, &failed, &[], means, interrupt).await {
                eprint!("{}", failure.render());
            }
        }
    }
}

async fn copy(engine: &Engine, failed: &Failed, output: &Output, interrupt: &Interrupt) {
    match engine.copy_failed(failed, &output.from, &output.to, interrupt.token()).await {
        Ok(()) => eprintln!("copied {} of the failed step to {}", output.from.display(), output.to.display()),
        Err(error) => eprintln!(
            "cannot copy {} of the failed step: {}",
            output.from.display(),
            crate::report::chain(&error)
        ),
    }
}

fn output(text: &str) -> Result<Output, String> {
    let (mut kind, mut from, mut to) = ("local", None, None);
    for field in text.split(',') {
        match field.split_once('=') {
            Some(("type", value)) => kind = value,
            Some(("src" | "source", value)) => from = Some(value),
            Some(("dest" | "destination", value)) => to = Some(value),
            _ => return Err(format!("unexpected field `{field}`; known: type, src, dest")),
        }
    }
    if kind != "local" {
        return Err(format!("type `{kind}` is not supported: only `local` is"));
    }
    let from =
        from.filter(|from| from.starts_with('/')).ok_or("`src` must be an absolute path in the step")?;
    let to = to.filter(|to| !to.is_empty()).ok_or("`dest` is missing")?;
    Ok(Output { from: from.into(), to: crate::state::absolute(Path::new(to)) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Result<(&str, &str), &str>) {
        let found = output(text);
        let expected = expected.map(|(from, to)| Output { from: from.into(), to: to.into() });
        assert_eq!(found, expected.map_err(str::to_owned));
    }

    #[test]
    fn outputs() {
        check("type=local,src=/reports,dest=/out", Ok(("/reports", "/out")));
        check("src=/reports,dest=/out", Ok(("/reports", "/out")));
        check("type=tar,src=/a,dest=/b", Err("type `tar` is not supported: only `local` is"));
        check("src=reports,dest=/out", Err("`src` must be an absolute path in the step"));
        check("src=/reports", Err("`dest` is missing"));
        check("x", Err("unexpected field `x`; known: type, src, dest"));
    }
}
