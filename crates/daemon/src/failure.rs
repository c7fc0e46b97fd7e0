//! Why a build failed, and how clients are told: a gRPC status whose details let them show the place in the Dockerfile.
//!
//! Details are `Any`s that hold JSON, with BuildKit's type URLs. Owns the error and its translation. Must not know what
//! produced it beyond its type. Start with [`Failure`] and [`Failure::status`].

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bollard_buildkit_proto::google::protobuf::Any;
use bollard_buildkit_proto::google::rpc;
use bollard_buildkit_proto::pb;
use prost::Message as _;
use serde_json::{Value, json};
use stave_engine::{BuildError, ResolveError};
use stave_exporter::ExportSpecError;
use stave_frontend_dockerfile::Source;
use stave_frontend_dockerfile::input::ContextError;
use stave_llb::policy::PolicyError;
use stave_llb::{Definition, DefinitionError, Position, SourceLocation, SourceRange};
use stave_oci::Digest;
use stave_solver::{OpErrorKind, SolveError};
use stave_store::StoreError;
use stave_worker::{ContextFetchError, EntitlementError, StepError};
use tonic::{Code, Status};

use crate::session::SessionError;
use crate::session::content::ContentError;
use crate::session::output::OutputError;

/// The longest message a client is sent: it travels in a header.
const MAX_WORDS: usize = 16 << 10;
/// The longest details: they travel in a header, too.
const MAX_DETAILS: usize = 64 << 10;
/// Places of one vertex that a client is told.
const MAX_PLACES: usize = 16;
/// The action of a source policy that denies, as its JSON has it.
const DENY: &str = "DENY";
/// What the language of Dockerfiles is called.
const DOCKERFILE: &str = "Dockerfile";
/// Most ranges told of one place.
const MAX_RANGES: usize = 1_000;
/// Lines of one instruction that a client is shown.
const MAX_LINES: i32 = 1000;

/// Why a request of a client failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// A part of the build.
    #[error("{}", words(.error))]
    Build {
        /// Why.
        error: Arc<BuildError>,
        /// Where in which files; the one that clients show is the last.
        places: Vec<Place>,
        /// Which vertex.
        vertex: Option<Digest>,
    },
    /// An image.
    #[error("{}", one_line(.0.as_ref()))]
    Resolve(Box<ResolveError>),
    /// The client's session.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// A directory of the client.
    #[error(transparent)]
    Fetch(#[from] ContextFetchError),
    /// A result on its way to the client.
    #[error("{}", one_line(.0))]
    Output(#[from] OutputError),
    /// Content of the client.
    #[error("{}", one_line(.0))]
    Content(#[from] ContentError),
    /// A graph of the client.
    #[error("{0}")]
    Definition(#[from] DefinitionError),
    /// An exporter's options.
    #[error("{}", one_line(.0))]
    Exporter(#[from] ExportSpecError),
    /// An entitlement that does not exist.
    #[error("{0}")]
    Entitlement(#[from] EntitlementError),
    /// The daemon does not grant it.
    #[error("granting entitlement {0} is not allowed by build daemon configuration")]
    NotEntitled(String),
    /// A context that makes no sense.
    #[error(transparent)]
    Context(#[from] ContextError),
    /// A container of a front end.
    #[error("{}", one_line(.0.as_ref()))]
    Container(Box<StepError>),
    /// The state directory.
    #[error("{}", one_line(.0))]
    Store(#[from] StoreError),
    /// The Dockerfile is not there, or cannot be read.
    #[error("failed to read dockerfile: {0}")]
    Dockerfile(String),
    /// A rule of the build does not allow one of its sources.
    #[error("error evaluating the source policy: {0}")]
    Policy(#[from] PolicyError),
    /// The client's session does not allow one of them.
    #[error("{text}")]
    Denied {
        /// Which, and what it said.
        text: String,
        /// Its reasons.
        messages: Vec<String>,
    },
    /// The same, for a source that is only asked about.
    #[error("could not resolve image due to policy: {0}")]
    PolicyOfImage(PolicyError),
    /// A value that makes no sense.
    #[error("{0}")]
    Value(String),
    /// More than the caller may have.
    #[error("quota exceeded: {0}")]
    Quota(String),
    /// Something only others may do.
    #[error("not allowed for `{who}`: {what}")]
    NotAllowed {
        /// Who asked.
        who: String,
        /// For what.
        what: &'static str,
    },
    /// Something a client may ask of another daemon.
    #[error("not supported yet: {0}")]
    Unsupported(String),
    /// A front end that does not exist here.
    #[error("unknown frontend: {0}")]
    Frontend(String),
    /// Something that a front end image does not say it can.
    #[error("unsupported frontend capability {0}")]
    FrontendCapability(String),
    /// A request to the front end that it does not know.
    #[error("unsupported request {0}")]
    Subrequest(String),
    /// Nothing of that name.
    #[error("{0}")]
    NotFound(String),
    /// What the client itself says went wrong.
    #[error("{}", .0.message())]
    Client(Box<Status>),
    /// Somebody stopped it.
    #[error("context canceled")]
    Cancelled,
    /// The daemon lets builds that run end, and begins no others.
    #[error("the daemon is about to end: it takes no more builds")]
    Ending,
}

/// A place in a file.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) name: String,
    pub(crate) data: Vec<u8>,
    pub(crate) language: String,
    /// The graph that it comes from, as a `pb.Definition`; `None` where nobody says.
    pub(crate) origin: Option<Vec<u8>>,
    /// Lines counted from 1.
    pub(crate) ranges: Vec<SourceRange>,
}

/// Whole lines, from the first to the last.
fn whole_lines((first, last): (i32, i32)) -> SourceRange {
    let line = |line| Position { line, character: 0 };
    SourceRange { start: line(first), end: line(last) }
}

impl Failure {
    /// What went wrong with a Dockerfile.
    pub(crate) fn of_dockerfile(error: BuildError, source: &Source) -> Self {
        let spans: Vec<_> = match &error {
            BuildError::Dockerfile(found) => found.iter().take(1).map(|found| found.span).collect(),
            BuildError::Image { image, .. } => vec![image.span],
            _ => Vec::new(),
        };
        let line = |offset| i32::try_from(source.position(offset).line).unwrap_or(i32::MAX);
        // A span of nothing has no place.
        let spans = spans.iter().filter(|span| span.end > 0);
        let lines: Vec<_> = spans.map(|span| (line(span.start), line(span.end))).collect();
        let places = match lines.is_empty() {
            true => Vec::new(),
            false => vec![Place::in_dockerfile(source, &lines)],
        };
        Self::Build { error: Arc::new(error), places, vertex: None }
    }

    /// What went wrong with a graph.
    pub(crate) fn of_definition(error: BuildError, definition: &Definition) -> Self {
        let vertex = match &error {
            BuildError::Solve { error: SolveError::Vertex { vertex, .. }, .. } => Some(vertex.clone()),
            _ => None,
        };
        let places = vertex.as_ref().map_or_else(Vec::new, |vertex| places_of(definition, vertex));
        Self::Build { error: Arc::new(error), places, vertex }
    }

    /// The same, at the line of a file that names a front end image.
    pub(crate) fn at_syntax(self, source: &Source, line: &str) -> Self {
        let at = source.text.lines().position(|text| is_syntax(text, line));
        let Some(at) = at.and_then(|at| i32::try_from(at + 1).ok()) else { return self };
        let place = Place::in_dockerfile(source, &[(at, at)]);
        let status = self.status_with("Source", &self::source(&place));
        Self::Client(Box::new(status))
    }

    /// The same failure for another who waits for it.
    pub(crate) fn again(&self) -> Self {
        match self {
            Self::Build { error, places, vertex } => {
                Self::Build { error: Arc::clone(error), places: places.clone(), vertex: vertex.clone() }
            }
            other => Self::Client(Box::new(other.status())),
        }
    }

    /// What a client is told.
    pub(crate) fn status(&self) -> Status {
        if let Self::Client(status) = self {
            return (**status).clone();
        }
        let message: String = self.to_string().chars().take(MAX_WORDS).collect();
        let details = self.details();
        let code = self.code();
        let all = rpc::Status { code: code.into(), message: message.clone(), details }.encode_to_vec();
        match all.len() > MAX_DETAILS {
            true => Status::new(code, message),
            false => Status::with_details(code, message, all.into()),
        }
    }

    /// The same, with one more detail; without it when it is too long.
    pub(crate) fn status_with(&self, kind: &str, value: &Value) -> Status {
        let status = self.status();
        let mut all = rpc::Status::decode(status.details()).unwrap_or_default();
        (all.code, all.message) = (status.code().into(), status.message().to_owned());
        all.details.push(any(kind, value));
        let details = all.encode_to_vec();
        match details.len() > MAX_DETAILS {
            true => status,
            false => Status::with_details(status.code(), status.message(), details.into()),
        }
    }

    fn code(&self) -> Code {
        match self {
            Self::Build { error, .. } => match error.as_ref() {
                BuildError::Solve { error: SolveError::Cancelled | SolveError::Closed, .. } => {
                    Code::Cancelled
                }
                BuildError::Solve { error, .. } => match error.op().map(stave_solver::OpError::kind) {
                    Some(OpErrorKind::Cancelled) => Code::Cancelled,
                    _ => Code::Unknown,
                },
                _ => Code::Unknown,
            },
            Self::Definition(_)
            | Self::Exporter(_)
            | Self::Entitlement(_)
            | Self::Context(_)
            | Self::Value(_) => Code::InvalidArgument,
            Self::NotEntitled(_) | Self::NotAllowed { .. } => Code::PermissionDenied,
            Self::Quota(_) => Code::ResourceExhausted,
            Self::Unsupported(_) | Self::Subrequest(_) | Self::FrontendCapability(_) => Code::Unimplemented,
            Self::NotFound(_) => Code::NotFound,
            Self::Cancelled => Code::Cancelled,
            // What clients may try again elsewhere.
            Self::Ending => Code::Unavailable,
            Self::Client(status) => status.code(),
            Self::Resolve(_)
            | Self::Session(_)
            | Self::Fetch(_)
            | Self::Output(_)
            | Self::Content(_)
            | Self::Store(_)
            | Self::Container(_)
            | Self::Dockerfile(_)
            | Self::Policy(_)
            | Self::Denied { .. }
            | Self::PolicyOfImage(_)
            | Self::Frontend(_) => Code::Unknown,
        }
    }

    fn details(&self) -> Vec<Any> {
        match self {
            Self::Build { places, vertex, .. } => {
                let places = places.iter().map(|place| any("Source", &source(place)));
                let vertex = vertex.as_ref().map(|vertex| any("Vertex", &json!({ "digest": vertex })));
                places.chain(vertex).collect()
            }
            Self::Denied { messages, .. } if !messages.is_empty() => {
                let messages: Vec<_> = messages.iter().map(|text| json!({ "message": text })).collect();
                let value = json!({ "action": DENY, "denyMessages": messages });
                vec![any_of("policysession.DecisionResponse", &value)]
            }
            Self::FrontendCapability(name) => vec![any("FrontendCap", &json!({ "name": name }))],
            Self::Subrequest(name) => vec![any("Subrequest", &json!({ "name": name }))],
            _ => Vec::new(),
        }
    }
}

impl From<StepError> for Failure {
    fn from(error: StepError) -> Self {
        Self::Container(Box::new(error))
    }
}

impl From<ResolveError> for Failure {
    fn from(error: ResolveError) -> Self {
        Self::Resolve(Box::new(error))
    }
}

/// Whether a line of a Dockerfile is the comment that names this front end.
fn is_syntax(text: &str, line: &str) -> bool {
    let comment = text.trim_start().trim_start_matches(['#', '/']).trim_start();
    let value = comment.strip_prefix("syntax").map(str::trim_start).and_then(|rest| rest.strip_prefix('='));
    value.is_some_and(|value| value.trim() == line.trim())
}

/// The words of a build's error: a step's own, since clients know which step it was.
fn words(error: &BuildError) -> String {
    match error {
        BuildError::Solve { error: SolveError::Vertex { source, vertex, .. }, .. } => {
            checksum(one_line(source), vertex)
        }
        BuildError::Solve { error: SolveError::Cancelled | SolveError::Closed, .. } => {
            "context canceled".to_owned()
        }
        BuildError::Solve { error, .. } => one_line(error),
        // The diagnostic holds the causes already.
        BuildError::Dockerfile(_) | BuildError::Image { .. } => error.to_string(),
        other => one_line(other),
    }
}

/// BuildKit names the result that lacks a file; ours is known by its vertex.
fn checksum(text: String, vertex: &Digest) -> String {
    match text.strip_prefix("failed to compute cache key: \"") {
        Some(rest) => {
            format!("failed to compute cache key: failed to calculate checksum of ref {vertex}: \"{rest}")
        }
        None => text,
    }
}

/// An error and its causes in one line.
pub(crate) fn one_line(error: &(dyn std::error::Error + 'static)) -> String {
    stave_engine::one_line(error)
}

/// The places of a vertex, one for each time that its maker named one.
fn places_of(definition: &Definition, vertex: &Digest) -> Vec<Place> {
    let place = |location: &SourceLocation| {
        let info = definition.source_map().infos.get(location.source)?;
        // Not even made into words: all details together may not be longer.
        if info.data.len() + info.origin.len() > MAX_DETAILS {
            return None;
        }
        let is_dockerfile = info.origin.is_empty() && info.language == DOCKERFILE;
        let origin = if is_dockerfile { origin(&info.filename) } else { info.origin.clone() };
        Some(Place {
            name: info.filename.clone(),
            data: info.data.clone(),
            language: info.language.clone(),
            origin: Some(origin).filter(|origin| !origin.is_empty()),
            ranges: location.ranges.iter().take(MAX_RANGES).cloned().collect(),
        })
    };
    // Clients take the last detail for the innermost.
    definition.source_location(vertex).iter().take(MAX_PLACES).rev().filter_map(place).collect()
}

impl Place {
    /// Lines of a Dockerfile, first and last.
    fn in_dockerfile(source: &Source, lines: &[(i32, i32)]) -> Self {
        Self {
            name: source.name.clone(),
            data: source.text.clone().into_bytes(),
            language: DOCKERFILE.to_owned(),
            origin: Some(origin(&source.name)),
            ranges: lines.iter().copied().map(whole_lines).collect(),
        }
    }
}

fn source(place: &Place) -> Value {
    let mut info = json!({
        "filename": place.name,
        "data": STANDARD.encode(&place.data),
        "language": place.language,
    });
    let origin = place.origin.as_deref().and_then(|wire| pb::Definition::decode(wire).ok());
    if let Some(origin) = origin {
        let ops: Vec<String> = origin.def.iter().map(|op| STANDARD.encode(op)).collect();
        info["definition"] = json!({ "def": ops });
    }
    json!({ "info": info, "ranges": place.ranges.iter().flat_map(ranges).take(MAX_RANGES).collect::<Vec<_>>() })
}

/// A range each line, which is what clients count; one within a line as it is.
fn ranges(range: &SourceRange) -> Vec<Value> {
    let position = |at: &Position| match at.character {
        0 => json!({ "line": at.line }),
        character => json!({ "line": at.line, "character": character }),
    };
    let (first, last) = (range.start.line, range.end.line);
    if last <= first {
        return vec![json!({ "start": position(&range.start), "end": position(&range.end) })];
    }
    let lines = first..=last.min(first.saturating_add(MAX_LINES));
    lines.map(|line| json!({ "start": { "line": line }, "end": { "line": line } })).collect()
}

/// The graph that a file comes from: where clients look for what they show of it.
fn origin(name: &str) -> Vec<u8> {
    let attrs = [("local.followpaths".to_owned(), json!([name]).to_string())].into();
    let mut graph = stave_llb::builder::GraphBuilder::default();
    let source = stave_llb::SourceOp::new("local://dockerfile".to_owned(), attrs);
    let made = graph.source(source, &stave_oci::Platform::host(), stave_llb::builder::About::default());
    graph.finish(Some(made)).to_wire()
}

/// Which part of which version took an error down, as clients show it with `--debug`.
pub(crate) fn stack() -> Any {
    let frame = json!({ "Name": module_path!(), "File": file!(), "Line": line!() });
    let value = json!({ "frames": [frame], "version": env!("CARGO_PKG_VERSION") });
    Any {
        type_url: "github.com/moby/buildkit/stack.Stack+json".to_owned(),
        value: value.to_string().into_bytes(),
    }
}

fn any(kind: &str, value: &Value) -> Any {
    any_of(&format!("errdefs.{kind}"), value)
}

fn any_of(kind: &str, value: &Value) -> Any {
    let type_url = format!("github.com/moby/buildkit/{kind}+json");
    Any { type_url, value: value.to_string().into_bytes() }
}

/// A status that a client sent in a message: what its own front end failed with.
pub(crate) fn from_message(message: rpc::Status) -> Status {
    let code = Code::from_i32(message.code);
    let code = if code == Code::Ok { Code::Unknown } else { code };
    let words: String = message.message.chars().take(MAX_WORDS).collect();
    let details = message.encode_to_vec();
    match details.len() > MAX_DETAILS {
        true => Status::new(code, words),
        false => Status::with_details(code, words, details.into()),
    }
}

#[cfg(test)]
mod tests {
    use stave_frontend_dockerfile::{Code as Found, Diagnostic, Span};

    use super::*;

    #[test]
    fn a_dockerfile_error_carries_its_place() {
        let source = Source::new("Dockerfile", "FROM scratch\nFOO bar\n");
        let found =
            Diagnostic::error(Found::Instruction { line: 2 }, Span::new(13, 20), "unknown instruction: FOO");
        let status = Failure::of_dockerfile(BuildError::Dockerfile(vec![found]), &source).status();
        assert_eq!(status.message(), "dockerfile parse error on line 2: unknown instruction: FOO");
        let all = rpc::Status::decode(status.details()).expect("a status");
        assert_eq!(all.details[0].type_url, "github.com/moby/buildkit/errdefs.Source+json");
        let value: Value = serde_json::from_slice(&all.details[0].value).expect("JSON");
        assert_eq!(value["ranges"], json!([{ "start": { "line": 2 }, "end": { "line": 2 } }]));
        assert_eq!(value["info"]["data"], STANDARD.encode("FROM scratch\nFOO bar\n"));
    }

    #[test]
    fn what_is_told_of_places_is_bounded() {
        let lines = |count: i32| (1..=count).map(|line| whole_lines((line, line))).collect::<Vec<_>>();
        let place = |data: usize, ranges: Vec<SourceRange>| Place {
            name: "f".to_owned(),
            data: vec![b'x'; data],
            language: String::new(),
            origin: None,
            ranges,
        };
        let told = |ranges| source(&place(1, ranges))["ranges"].as_array().map_or(0, Vec::len);
        assert_eq!(told(lines(7)), 7);
        assert_eq!(told(lines(2_000)), MAX_RANGES);
        // One instruction of many lines is as many ranges.
        assert_eq!(told(vec![whole_lines((1, 600)), whole_lines((1, 600))]), MAX_RANGES);
        assert_eq!(told(vec![whole_lines((1, i32::MAX))]), MAX_RANGES);

        let graph = |data: usize, ranges: Vec<SourceRange>| {
            let mut graph = stave_llb::builder::GraphBuilder::default();
            let info = stave_llb::SourceInfo {
                filename: "f".to_owned(),
                data: vec![b'x'; data],
                ..stave_llb::SourceInfo::default()
            };
            let source = graph.add_file(info);
            let about = stave_llb::builder::About {
                locations: vec![SourceLocation { source, ranges }],
                ..Default::default()
            };
            let op = stave_llb::SourceOp::new("local://x".to_owned(), Default::default());
            let made = graph.source(op, &stave_oci::Platform::host(), about);
            let definition = graph.finish(Some(made));
            let vertex = definition.vertices()[0].digest.clone();
            places_of(&definition, &vertex)
        };
        assert_eq!(graph(10, lines(3))[0].ranges.len(), 3);
        assert_eq!(graph(10, lines(5_000))[0].ranges.len(), MAX_RANGES);
        assert!(graph(MAX_DETAILS + 1, lines(3)).is_empty(), "such a file would be sent to nobody");
    }

    #[test]
    fn every_place_that_a_graph_names_is_told() {
        let at = |start: (i32, i32), end: (i32, i32)| SourceRange {
            start: Position { line: start.0, character: start.1 },
            end: Position { line: end.0, character: end.1 },
        };
        let place = |name: &str, origin: Option<Vec<u8>>, range| Place {
            name: name.to_owned(),
            data: b"x".to_vec(),
            language: String::new(),
            origin,
            ranges: vec![range],
        };
        let from = pb::Definition { def: vec![b"op".to_vec()], ..pb::Definition::default() };
        let places = vec![
            place("foo", None, at((7, 0), (0, 0))),
            place("bar", Some(from.encode_to_vec()), at((3, 1), (3, 4))),
        ];
        let error = Arc::new(BuildError::NoFileSystem);
        let status = Failure::Build { error, places, vertex: None }.status();
        let all = rpc::Status::decode(status.details()).expect("a status");
        let values: Vec<Value> =
            all.details.iter().map(|any| serde_json::from_slice(&any.value).expect("JSON")).collect();
        assert_eq!(
            (&values[0]["info"]["filename"], values[0]["info"].get("definition")),
            (&json!("foo"), None)
        );
        assert_eq!(values[0]["ranges"][0]["start"], json!({ "line": 7 }));
        assert_eq!(values[1]["info"]["definition"], json!({ "def": [STANDARD.encode("op")] }));
        assert_eq!(values[1]["ranges"][0]["start"], json!({ "line": 3, "character": 1 }));
    }

    #[test]
    fn details_that_no_header_holds_are_left_out() {
        let source = Source::new("Dockerfile", "#".repeat(1 << 20));
        let found = Diagnostic::error(Found::Plan, Span::new(1, 2), "bad");
        let status = Failure::of_dockerfile(BuildError::Dockerfile(vec![found]), &source).status();
        assert_eq!((status.message(), status.details().len()), ("bad", 0));
    }

    #[test]
    fn what_a_client_failed_with_is_passed_on() {
        let message =
            rpc::Status { code: 5, message: "gone".to_owned(), details: vec![any("Vertex", &json!({}))] };
        let status = Failure::Client(Box::new(from_message(message))).status();
        assert_eq!((status.code(), status.message()), (Code::NotFound, "gone"));
        assert!(!status.details().is_empty());
    }
}
