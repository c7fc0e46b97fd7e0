//! The build context as a source.
//!
//! Owns what each kind of build context becomes, and which paths of a local one the build uses, so that no
//! others are sent. Must not read it. Start with [`BuildContext`].

use std::collections::{BTreeMap, BTreeSet};

use stave_llb::{
    CopyAction, Definition, FileActionKind, SourceOp,
    builder::{About, FileSpec, FileStep, GraphBuilder, Output},
};

use crate::{
    boolean,
    input::{ContextSource, DOWNLOAD_NAME, download_op, git_source},
    path,
    request::PlanRequest,
};

/// The session's name of the build context.
const NAME: &str = "context";

/// The build context while stages are lowered.
pub(super) struct BuildContext {
    /// `None` is an empty file system.
    pub(super) output: Option<Output>,
    is_local: bool,
    paths: BTreeSet<String>,
}

impl BuildContext {
    /// # Errors
    /// With the text for a repository whose address makes no sense.
    pub(super) fn new(graph: &mut GraphBuilder, request: &PlanRequest) -> Result<Self, String> {
        let is_local = request.context == ContextSource::Local;
        let output = if is_local { Some(local(graph, request)) } else { remote(graph, request)? };
        Ok(Self { output, is_local, paths: BTreeSet::new() })
    }

    /// Notes that the build uses a path of the context.
    pub(super) fn uses(&mut self, source: &str) {
        self.paths.insert(path::join("/", source));
    }

    /// Narrows the source down to what is used, now that all of it is known.
    pub(super) fn finish(&self, graph: &mut GraphBuilder) {
        if let Some(output) = self.output.filter(|_| self.is_local) {
            graph.extend_source(output, follow_paths(&self.paths));
        }
    }
}

impl PlanRequest {
    /// The graph of the build context if it is not local: a Dockerfile in it is read from its result.
    /// `None` for a local context, and for a graph that is empty.
    ///
    /// # Errors
    /// With the text for a repository whose address makes no sense.
    pub fn remote_context(&self) -> Result<Option<Definition>, String> {
        if self.context == ContextSource::Local {
            return Ok(None);
        }
        let mut graph = GraphBuilder::default();
        let output = remote(&mut graph, self)?;
        Ok(output.map(|output| graph.finish(Some(output))))
    }
}

fn local(graph: &mut GraphBuilder, request: &PlanRequest) -> Output {
    let mut attrs = BTreeMap::from([("local.sharedkeyhint".to_owned(), NAME.to_owned())]);
    let ignore = &request.dockerignore;
    if !ignore.is_empty() {
        attrs.insert("local.excludepatterns".to_owned(), json_list(ignore.iter()));
    }
    let op = SourceOp::new(format!("local://{NAME}"), attrs);
    graph.source(op, request.platform(), About::named("[internal] load build context"))
}

fn remote(graph: &mut GraphBuilder, request: &PlanRequest) -> Result<Option<Output>, String> {
    let platform = request.platform();
    let mut download = |url: &str| {
        let about = About::named("[internal] load remote build context");
        graph.source(download_op(url), platform, about)
    };
    let whole = match &request.context {
        ContextSource::Local => None,
        ContextSource::File(url) => Some(download(url)),
        ContextSource::Archive(url) => {
            let archive = download(url);
            let unpacked = CopyAction {
                src: path::join("/", DOWNLOAD_NAME),
                dest: "/".to_owned(),
                attempt_unpack: true,
                ..CopyAction::default()
            };
            Some(copied(graph, archive, unpacked))
        }
        ContextSource::Git(text) => {
            let given = |name: &str| request.build_args.get(name).map(String::as_str).unwrap_or_default();
            let keep = boolean::parse(given("BUILDKIT_CONTEXT_KEEP_GIT_DIR")) == Some(true);
            let (op, about) = git_source(text, keep, !given("SOURCE_DATE_EPOCH").is_empty())?;
            Some(graph.source(op, platform, about))
        }
        ContextSource::Graph(definition) => graph.import(definition),
    };
    Ok(match (whole, &request.context_directory) {
        (Some(whole), Some(directory)) => {
            let scoped = CopyAction {
                src: path::absolute("/", directory),
                dest: "/".to_owned(),
                dir_copy_contents: true,
                ..CopyAction::default()
            };
            Some(copied(graph, whole, scoped))
        }
        (whole, _) => whole,
    })
}

fn copied(graph: &mut GraphBuilder, from: Output, copy: CopyAction) -> Output {
    let step = FileStep { kind: FileActionKind::Copy(copy), source: Some(from) };
    graph.file(FileSpec { base: None, actions: vec![step], about: About::default() })
}

/// The option that narrows a local source down; none if all of it is used, or nothing is known.
pub(super) fn follow_paths(paths: &BTreeSet<String>) -> Option<(String, String)> {
    if paths.is_empty() || paths.contains("/") {
        return None;
    }
    let paths: BTreeSet<String> = paths.iter().map(|used| path::join(".", used)).collect();
    Some(("local.followpaths".to_owned(), json_list(paths.iter())))
}

/// A list as Go writes it in JSON: what is special in HTML is escaped.
pub(super) fn json_list<'a>(texts: impl Iterator<Item = &'a String>) -> String {
    let plain = serde_json::Value::from_iter(texts.cloned()).to_string();
    let mut escaped = String::with_capacity(plain.len());
    for letter in plain.chars() {
        match letter {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                escaped.push_str(&format!("\\u{:04x}", u32::from(letter)));
            }
            other => escaped.push(other),
        }
    }
    escaped
}
