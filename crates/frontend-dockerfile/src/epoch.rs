//! `SOURCE_DATE_EPOCH` where it names a source instead of a time.
//!
//! Owns which source `context`, a named context or a stage of one download stand for. Must not look at
//! the source: whoever plans finds out its time. Start with [`source`].

use stave_llb::{
    Definition, Op, SourceIdentifier, SourceOp,
    builder::{About, GraphBuilder},
};

use crate::{
    ast::{Add, Dockerfile, InstructionKind, Stage},
    diagnostic::{Code, Diagnostic},
    expand::Expander,
    git,
    input::{ContextSource, NamedContext, download_op, git_source},
    plan::context_name,
    request::PlanRequest,
    scope::Variables,
    source::Span,
    url::{file_name, is_url},
};

/// The variable that sets the time of everything a build makes.
pub(crate) const EPOCH: &str = "SOURCE_DATE_EPOCH";

/// What knows the time that `value` asks for: a graph of one repository or download. `None` for a source
/// that has no time, such as a directory of the client.
///
/// # Errors
/// For a value that names nothing, and a stage that is more than one download.
pub(crate) fn source(
    value: &str,
    dockerfile: &Dockerfile,
    request: &PlanRequest,
    globals: &Variables,
) -> Result<Option<Definition>, Diagnostic> {
    let key = context_name(value);
    let of_platform = format!("{key}::{}", request.platform());
    let named = request.named_contexts.get(&of_platform).or_else(|| request.named_contexts.get(&key));
    let op = match named {
        _ if value == "context" => {
            context(request).map_err(|message| error(declared_at(dockerfile), message))?
        }
        Some(NamedContext::Git(text)) => {
            let git = git_source(text, false, true);
            Some(git.map_err(|message| error(declared_at(dockerfile), message))?.0)
        }
        Some(NamedContext::Http(url)) => Some(download_op(url)),
        Some(NamedContext::Graph { definition, .. }) => only_source(definition),
        Some(_) => None,
        None => {
            let has_name = |stage: &&Stage| {
                stage.from.name.as_ref().is_some_and(|name| name.name.eq_ignore_ascii_case(value))
            };
            let stage = dockerfile.stages.iter().find(has_name).ok_or_else(|| unknown(dockerfile, value))?;
            let mut variables = globals.clone();
            variables.unset(EPOCH);
            let op = StageSource { dockerfile, request, variables }.read(stage);
            Some(op.map_err(|message| error(stage.instruction.span, message))?)
        }
    };
    Ok(op.map(|mut op| {
        if matches!(op.identifier, SourceIdentifier::Git(_)) {
            // Then any of its files says when the commit was made.
            op.attrs.insert("git.mtime".to_owned(), "commit".to_owned());
        }
        let mut graph = GraphBuilder::default();
        let about = About::named(format!("[internal] resolve {EPOCH} {value}"));
        let output = graph.source(op, request.platform(), about);
        graph.finish(Some(output))
    }))
}

/// What the build context is, if it is one repository or download.
fn context(request: &PlanRequest) -> Result<Option<SourceOp>, String> {
    Ok(match &request.context {
        ContextSource::Local => None,
        ContextSource::File(url) | ContextSource::Archive(url) => Some(download_op(url)),
        ContextSource::Git(text) => Some(git_source(text, false, true)?.0),
        ContextSource::Graph(definition) => only_source(definition),
    })
}

/// The source of a graph that has exactly one, if that has a time.
fn only_source(definition: &Definition) -> Option<SourceOp> {
    let mut sources = definition.vertices().iter().filter_map(|vertex| match &vertex.op {
        Op::Source(source) => Some(source),
        _ => None,
    });
    let one = sources.next().filter(|_| sources.next().is_none())?;
    let has_time = matches!(one.identifier, SourceIdentifier::Git(_) | SourceIdentifier::Http { .. });
    has_time.then(|| one.clone())
}

fn error(span: Span, message: impl Into<String>) -> Diagnostic {
    Diagnostic::error(Code::Plan, span, message)
}

fn unknown(dockerfile: &Dockerfile, value: &str) -> Diagnostic {
    error(declared_at(dockerfile), format!("invalid {EPOCH}: {value}"))
        .with_help("give it as seconds since 1970, or name `context`, a named context or a stage")
}

/// No image can carry this time.
pub(crate) fn beyond(dockerfile: &Dockerfile, seconds: i64) -> Diagnostic {
    error(declared_at(dockerfile), format!("invalid {EPOCH}: {seconds}"))
        .with_help("dates of images are in the years 0 to 9999")
}

/// The `ARG` that sets it.
fn declared_at(dockerfile: &Dockerfile) -> Span {
    let declaration = dockerfile.globals.iter().find(|instruction| match &instruction.kind {
        InstructionKind::Arg(arguments) => arguments.iter().any(|argument| argument.name.text == EPOCH),
        _ => false,
    });
    declaration.map_or_else(Span::default, |instruction| instruction.span)
}

/// A stage that is to hold one remote `ADD`.
struct StageSource<'a> {
    dockerfile: &'a Dockerfile,
    request: &'a PlanRequest,
    variables: Variables,
}

impl StageSource<'_> {
    fn read(mut self, stage: &Stage) -> Result<SourceOp, String> {
        const ONE: &str = "SOURCE_DATE_EPOCH stage must contain exactly one remote ADD";
        if self.expand(&stage.from.base.text)? != "scratch" {
            return Err("SOURCE_DATE_EPOCH stage must use FROM scratch".to_owned());
        }
        let mut source = None;
        for instruction in &stage.instructions {
            match &instruction.kind {
                InstructionKind::Arg(arguments) => {
                    for argument in arguments {
                        let name = &argument.name.text;
                        let value = match (self.request.build_args.get(name), &argument.default) {
                            (Some(given), _) => given.clone(),
                            (None, Some(default)) => self.expand(&default.text)?,
                            (None, None) => continue,
                        };
                        self.variables.set(name.as_str(), value);
                    }
                }
                InstructionKind::Add(_) if source.is_some() => return Err(ONE.to_owned()),
                InstructionKind::Add(add) => source = Some(self.add(add)?),
                _ => {
                    let name = instruction.keyword.to_uppercase();
                    return Err(format!(
                        "SOURCE_DATE_EPOCH stage does not meet source-only requirements: unsupported {name} \
                         instruction"
                    ));
                }
            }
        }
        source.ok_or_else(|| ONE.to_owned())
    }

    fn add(&self, add: &Add) -> Result<SourceOp, String> {
        let [source] = add.transfer.sources.as_slice() else {
            return Err("SOURCE_DATE_EPOCH stage must contain exactly one remote ADD source".to_owned());
        };
        if !add.transfer.inline.is_empty() {
            return Err("SOURCE_DATE_EPOCH stage must contain exactly one remote ADD source".to_owned());
        }
        let source = self.expand(&source.text)?;
        let checksum = add.checksum.as_ref().map(|word| self.expand(&word.text)).transpose()?;
        let checksum = checksum.unwrap_or_default();
        match git::parse(&source).map_err(|cause| cause.to_string())? {
            Some(git) => git.source(add.keep_git_dir, &checksum).map_err(|cause| cause.to_string()),
            None if is_url(&source) => {
                let mut attrs = std::collections::BTreeMap::new();
                attrs.insert("http.filename".to_owned(), file_name(&source));
                if !checksum.is_empty() {
                    attrs.insert("http.checksum".to_owned(), checksum);
                }
                Ok(SourceOp::new(source, attrs))
            }
            None => Err("SOURCE_DATE_EPOCH stage source must be a single HTTP(S) or Git ADD".to_owned()),
        }
    }

    fn expand(&self, text: &str) -> Result<String, String> {
        let expander = Expander::new(self.dockerfile.escape);
        expander.text(text, &self.variables).map_err(|failure| failure.to_string())
    }
}
