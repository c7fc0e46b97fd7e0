//! Build contexts and Dockerfiles that are not on this machine: fetched with the progress of a build.
//!
//! Owns the choice between here and elsewhere, and what is said when it fails. Must not know how anything is
//! fetched. Start with [`open`].

use std::path::Path;

use stave_engine::{DockerfileAt, Engine, RemoteError};
use stave_frontend_dockerfile::input::ContextForm;

use super::Arguments;
use super::input::{self, Input, Wanted};
use super::request::Wishes;
use crate::progress::Display;
use crate::report::Failure;
use crate::runtime::Interrupt;

/// The inputs of a build, wherever they are.
pub(super) async fn open(
    arguments: &Arguments,
    wishes: &Wishes,
    engine: &Engine,
    interrupt: &Interrupt,
) -> Result<Input, Failure> {
    let failed = |error: input::InputError| Failure::new(&error).with_hint(error.hint());
    let context = elsewhere(&arguments.context)?;
    let file = arguments.file.as_deref();
    let dockerfile = match (file, &context) {
        (Some(file), _) if is_url(file) => DockerfileAt::Url(file.to_string_lossy().into_owned()),
        (file, None) => {
            return input::read(&arguments.context, Wanted::Named(file), engine.store()).map_err(failed);
        }
        (Some(file), Some(_)) if file == Path::new("-") => {
            DockerfileAt::Given(input::dockerfile_from_stdin().map_err(failed)?)
        }
        (file, Some(_)) => DockerfileAt::Context(file.map(|file| file.to_string_lossy().into_owned())),
    };
    let is_here = context.is_none();
    let request = wishes.remote(context, dockerfile);
    let display = Display::steps(arguments.form());
    let opened = engine.open_remote(&request, display.observer(), interrupt.token()).await;
    display.abandon();
    let opened = opened.map_err(|error| explain(&error))?;
    if is_here {
        return input::read(&arguments.context, Wanted::Given(&opened.dockerfile), engine.store())
            .map_err(failed);
    }
    input::fetched(opened, engine.store()).map_err(failed)
}

/// The context as text, if it is not a directory of this machine.
fn elsewhere(context: &Path) -> Result<Option<String>, Failure> {
    if context.is_dir() {
        return Ok(None);
    }
    let text = context.to_string_lossy().into_owned();
    let form = ContextForm::of(&text);
    let form = form.map_err(|error| Failure::message(format!("unable to prepare context: {error}")))?;
    Ok((form != ContextForm::Path).then_some(text))
}

fn is_url(file: &Path) -> bool {
    let text = file.to_string_lossy();
    text.starts_with("http://") || text.starts_with("https://")
}

fn explain(error: &RemoteError) -> Failure {
    let failure = match error {
        RemoteError::Build(error) => super::solve_failure(error),
        _ => Failure::new(error),
    };
    failure.with_hint(match error {
        RemoteError::NoDockerfile { similar, .. } if !similar.is_empty() => {
            Some(format!("the context has {}; name it with `-f`", similar.join(", ")))
        }
        RemoteError::NoDockerfile { .. } => Some("name the file with `-f`".to_owned()),
        _ => None,
    })
}
