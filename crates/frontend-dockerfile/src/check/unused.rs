//! Build args that nothing takes up: most often a misspelt name.
//!
//! Owns which names count as taken up. Must not be mixed with the checks of a file: the file is not at
//! fault, and a skip list does not apply.

use std::collections::BTreeSet;

use crate::{
    ast::InstructionKind,
    diagnostic::{Code, Diagnostic, Severity},
    plan::BuildPlan,
    source::Span,
    suggest,
};

/// Names that have their meaning without an `ARG`, in lower case.
const PROXIES: [&str; 5] = ["http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "all_proxy"];
/// Names with this prefix steer the front end.
const STEERING_PREFIX: &str = "BUILDKIT_";
/// The time of everything a build makes needs no `ARG`, either.
const EPOCH: &str = "SOURCE_DATE_EPOCH";

impl BuildPlan {
    /// One warning that names the build args which no `ARG` of the file, in whatever stage, and no trigger
    /// of a base declares, and which have no meaning of their own.
    pub fn unused_build_args(&self) -> Option<Diagnostic> {
        let declared = self.declared();
        let is_unused = |name: &&str| {
            !declared.contains(name)
                && !PROXIES.contains(&name.to_ascii_lowercase().as_str())
                && !name.starts_with(STEERING_PREFIX)
                && *name != EPOCH
                && !self.is_platform_argument(name)
        };
        let unused: Vec<&str> =
            self.request.build_args.keys().map(String::as_str).filter(is_unused).collect();
        unused.first()?;
        let warning = Diagnostic {
            code: Code::Unused,
            severity: Severity::Warning,
            span: Span::default(),
            message: format!("[Warning] One or more build-args [{}] were not consumed", unused.join(" ")),
            suggestion: None,
            help: None,
            notes: Vec::new(),
        };
        // Among several, nobody would know which of them is meant.
        let similar = match unused.as_slice() {
            [one] => suggest::similar(one, declared.iter().copied()),
            _ => None,
        };
        Some(warning.with_suggestion(similar))
    }

    fn declared(&self) -> BTreeSet<&str> {
        let planned = self.stages.iter().flat_map(|stage| &stage.instructions);
        let instructions = self.dockerfile.globals.iter().chain(planned.map(|planned| &*planned.instruction));
        let arguments = instructions.filter_map(|instruction| match &instruction.kind {
            InstructionKind::Arg(arguments) => Some(arguments),
            _ => None,
        });
        arguments.flatten().map(|argument| argument.name.text.as_str()).collect()
    }
}

#[cfg(test)]
mod tests {
    use stave_oci::Platform;

    use crate::{PlanRequest, Source, parse, plan};

    #[track_caller]
    fn check(text: &str, given: &[&str], expected: Option<&str>) {
        let mut request = PlanRequest::new(Platform::new("linux", "amd64", None));
        request.build_args = given.iter().map(|name| ((*name).to_owned(), "1".to_owned())).collect();
        let plan = plan(&parse(&Source::new("Dockerfile", text)).dockerfile, &request).expect("sound");
        let found = plan.unused_build_args();
        assert_eq!(found.as_ref().map(|one| one.message.as_str()), expected, "{text}");
    }

    #[test]
    fn args_that_nobody_declares_are_named() {
        check("FROM scratch\n", &[], None);
        check("ARG A\nFROM scratch\nARG B\n", &["A", "B"], None);
        check("FROM scratch AS other\nARG A\nFROM scratch\n", &["A"], None);
        let message = "[Warning] One or more build-args [X Y] were not consumed";
        check("ARG A\nFROM scratch\n", &["Y", "A", "X"], Some(message));
        let own = ["http_proxy", "NO_PROXY", "SOURCE_DATE_EPOCH", "BUILDKIT_SYNTAX", "TARGETPLATFORM"];
        check("FROM scratch\n", &own, None);
    }

    #[test]
    fn a_similar_name_is_offered() {
        let mut request = PlanRequest::new(Platform::new("linux", "amd64", None));
        request.build_args = [("VERSOIN".to_owned(), "1".to_owned())].into();
        let dockerfile = parse(&Source::new("Dockerfile", "ARG VERSION\nFROM scratch\n")).dockerfile;
        let found = plan(&dockerfile, &request).expect("sound").unused_build_args().expect("one");
        assert_eq!(found.help.as_deref(), Some("did you mean `VERSION`?"));
    }
}
