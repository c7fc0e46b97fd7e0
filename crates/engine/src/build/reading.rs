//! A Dockerfile's text to its plan: parsed, in a language that is known here, with every image that it names resolved.
//! Start with [`read`].

use stave_frontend_dockerfile::ast::DirectiveKind;
use stave_frontend_dockerfile::{
    BuildPlan, Code, Diagnostic, Dialect, Dockerfile, Lowered, PlanRequest, Severity, Source, parse, plan,
};

use super::BuildError;
use crate::event::{EngineEvent, Steps};
use crate::request::BuildRequest;
use crate::resolve::{Resolved, Resolver};

/// Parses the Dockerfile; its errors are the build's.
pub(crate) fn read(request: &BuildRequest, steps: &Steps) -> Result<Dockerfile, BuildError> {
    let name = &request.dockerfile.name;
    let step = steps.start(format!("[internal] load build definition from {name}"));
    step.part(format!("transferring dockerfile: {}B", request.dockerfile.text.len()));
    step.end(read_text(&request.dockerfile))
}

/// Parses a Dockerfile; its errors are the build's.
pub(crate) fn read_text(source: &Source) -> Result<Dockerfile, BuildError> {
    let parsed = parse(source);
    let (mut found, warnings): (Vec<_>, Vec<_>) =
        parsed.diagnostics.into_iter().partition(Diagnostic::is_error);
    found.extend(foreign_syntax(&parsed.dockerfile));
    if found.is_empty() {
        return Ok(parsed.dockerfile);
    }
    found.extend(warnings);
    Err(BuildError::Dockerfile(found))
}

/// `# syntax=` names a front end image. The one inside serves the reference's own, whatever mirror they are
/// taken from; another would read another language.
fn foreign_syntax(dockerfile: &Dockerfile) -> Option<Diagnostic> {
    let directive = dockerfile.directives.iter().find(|directive| directive.kind == DirectiveKind::Syntax)?;
    // The reference takes the first word and ignores the rest.
    let image = directive.value.split_whitespace().next()?;
    (!is_built_in_frontend(image)).then(|| {
        Diagnostic::error(
            Code::Unsupported,
            directive.span,
            format!("not supported yet: the front end image `{image}`"),
        )
        .with_help("the built-in front end serves `docker/dockerfile`; leave the line out if that will do")
    })
}

/// What `# syntax=` says, whatever language the rest of the file is in.
pub fn syntax_line(source: &Source) -> Option<String> {
    stave_frontend_dockerfile::syntax_of(&source.text)
}

/// Whether a front end image is one of the reference's own, which the front end inside stands for.
pub fn is_built_in_frontend(image: &str) -> bool {
    Dialect::of(image).is_some()
}

/// Plans, asking for images until none is missing: a base's triggers may name further ones.
pub(crate) async fn plan_all(
    dockerfile: &Dockerfile,
    request: &PlanRequest,
    resolver: &Resolver<'_>,
) -> Result<(BuildPlan, Resolved), BuildError> {
    let invalid = |error: stave_frontend_dockerfile::PlanError| BuildError::Dockerfile(error.diagnostics);
    let mut resolved = Resolved::default();
    let mut plan = plan(dockerfile, request).map_err(invalid)?;
    loop {
        let missing = plan.missing(&resolved.sources);
        if missing.is_empty() {
            return Ok((plan, resolved));
        }
        if let Err(error) = resolver.resolve(missing, &mut resolved).await {
            let image = Box::new(plan.unresolved(&error.request, &crate::event::one_line(&error)));
            return Err(BuildError::Image { image, error: Box::new(error) });
        }
        plan = plan.with_triggers(&resolved.sources).map_err(invalid)?;
    }
}

/// Passes on what the build checks found.
pub(crate) fn warn(plan: &BuildPlan, lowered: &Lowered, steps: &Steps) {
    let unused = plan.unused_build_args();
    let warnings = lowered.warnings.iter().chain(&unused);
    for warning in warnings.filter(|found| found.severity == Severity::Warning) {
        steps.observer().send(EngineEvent::Warning(warning.clone()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(value: &str, expected: bool) {
        let source = Source::new("Dockerfile", format!("# syntax={value}\nFROM scratch\n"));
        assert_eq!(foreign_syntax(&parse(&source).dockerfile).is_none(), expected, "{value}");
    }

    #[test]
    fn the_references_own_front_ends_are_built_in() {
        for value in
            ["docker/dockerfile", "docker/dockerfile:1", "docker.io/docker/dockerfile-upstream:master"]
        {
            check(value, true);
        }
        check("mirror.example/docker/dockerfile:1.7-labs", true);
        check(
            "docker/dockerfile:1@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            true,
        );
        check("example/dockerfile", false);
        check("docker/other:1", false);
        check("dockerfile", false);
    }
}
