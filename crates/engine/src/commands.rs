//! Commands whose output a Dockerfile needs before it can be lowered (`ENV NAME=$(…)`, own syntax).
//!
//! Owns asking for them until none is missing: each is an ordinary graph, solved and cached like any other,
//! whose result holds one file. Must not know what the output is for. Start with [`Engine::evaluate`].

use std::path::Path;

use stave_frontend_dockerfile::{BuildPlan, Code, CommandRequest, Diagnostic};
use stave_store::Snapshot;
use stave_worker::{Extent, ReadError};
use tokio_util::sync::CancellationToken;

use crate::Engine;
use crate::build::BuildError;
use crate::event::Steps;
use crate::request::BuildRequest;
use crate::resolve::Resolved;

impl Engine {
    /// Runs what the plan asks for and adds the outputs to `found`.
    ///
    /// # Errors
    /// For a command that fails, and for output that is no text or too long for a variable.
    pub(crate) async fn evaluate(
        &self,
        plan: &BuildPlan,
        found: &mut Resolved,
        request: &BuildRequest,
        (steps, cancel): (&Steps, &CancellationToken),
    ) -> Result<(), BuildError> {
        loop {
            let wanted = plan.commands(&found.sources);
            let wanted = wanted.map_err(|error| BuildError::Dockerfile(error.into_diagnostics()))?;
            if wanted.is_empty() {
                return Ok(());
            }
            for command in wanted {
                let known = Resolved { remote: found.remote.clone(), ..Resolved::default() };
                let session = self.local_session(request, known);
                let definition = found.under(&request.policy, found.pinned(command.definition.clone()))?;
                let (result, _) = self.solve(&definition, session, steps, cancel).await?;
                let output = self.output_of(&command, &result).await?;
                found.sources.insert_output(command.key, output);
            }
        }
    }

    /// What a command wrote.
    ///
    /// # Errors
    /// For output that is no text or too long for a variable.
    pub(crate) async fn output_of(
        &self,
        command: &CommandRequest,
        result: &Snapshot,
    ) -> Result<String, BuildError> {
        self.text_of(result).await.map_err(|problem| {
            let message = format!("the output of the command {problem}");
            BuildError::Dockerfile(vec![Diagnostic::error(Code::Lower, command.span, message)])
        })
    }

    async fn text_of(&self, result: &Snapshot) -> Result<String, String> {
        let limit = CommandRequest::MAX_BYTES;
        let path = Path::new(CommandRequest::FILE.trim_start_matches('/'));
        let bytes = match self.worker.read_file(result, path, Extent::Whole(limit as u64)).await {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return Err("is gone".to_owned()),
            Err(ReadError::TooLarge { .. }) => return Err(format!("is longer than {limit} bytes")),
            Err(error) => return Err(format!("cannot be read: {}", crate::event::one_line(&error))),
        };
        if bytes.contains(&0) {
            return Err("contains NUL bytes".to_owned());
        }
        String::from_utf8(bytes).map_err(|_| "is not valid UTF-8".to_owned())
    }
}
