//! Where the Dockerfile, the ignore file and the contexts of a build come from. Start with [`load`].

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;

use stave_frontend_dockerfile::input::{
    ARCHIVE_HEAD, ContextForm, ContextSource, DOWNLOAD_NAME, NamedContext, download, is_archive,
};
use stave_frontend_dockerfile::{Includes, Source, dockerignore};
use stave_llb::{Definition, Op, SourceOp};
use stave_worker::{ContextRequest, Differ};

use super::Attributes;
use crate::build::{Build, Target};
use crate::caps;
use crate::failure::Failure;
use crate::session::files::FetchedDirectory;
use crate::session::upload;

/// The longest Dockerfile or ignore file, in bytes.
const MAX_TEXT: u64 = 16 << 20;
const IGNORE_FILE: &str = ".dockerignore";
/// What clients call the directory that `COPY` reads.
pub(super) const CONTEXT: &str = "context";

/// What the planner needs of the client's files.
pub(crate) struct Loaded {
    pub(crate) source: Source,
    pub(crate) ignored: Vec<String>,
    pub(crate) context: ContextSource,
    /// Whether the Dockerfile is from a directory of the client.
    pub(crate) is_dockerfile_local: bool,
    /// Where the context is read from, if it is no directory of the client.
    pub(crate) sources: Vec<SourceOp>,
    /// The vertex that loaded the Dockerfile.
    pub(crate) vertex: String,
}

/// Loads the Dockerfile and its ignore file.
pub(crate) async fn load(build: &Build, attributes: &Attributes) -> Result<Loaded, Failure> {
    let context = context(build, attributes).await?;
    let name = &attributes.filename;
    let step = build.journal.begin(format!("[internal] load build definition from {name}"));
    let vertex = step.digest().to_owned();
    let input = attributes.inputs.get(attributes.dockerfile_name.as_str());
    // A context that is a graph holds no Dockerfile of its own.
    let is_local =
        matches!(context, ContextSource::Local | ContextSource::Graph(_)) || attributes.is_dockerfile_local;
    let found = match input {
        Some(graph) => {
            let graph = ContextSource::Graph(Box::new(build.allowed(&graph_of(graph)?)?));
            from_context(build, attributes, &graph).await
        }
        None if is_local => from_client(build, attributes, &step).await,
        None => from_context(build, attributes, &context).await,
    };
    let (text, ignored) = step.end(found)?;
    let ignored = match (&context, ignored) {
        // Ignore files are the client's: they do not apply to a context that is not.
        (ContextSource::Local, None) => ignore_file(build).await?,
        (ContextSource::Local, Some(ignored)) => Some(ignored),
        _ => None,
    };
    let text =
        String::from_utf8(text).map_err(|_| Failure::Dockerfile(format!("{name} is not valid UTF-8")))?;
    let ignored = ignored.map(|text| dockerignore::parse(&String::from_utf8_lossy(&text)));
    let source = match input {
        None if is_local => included(build, attributes, Source::new(name, text)).await?,
        Some(_) => Source::new(name, text),
        None => included_of(build, attributes, &context, Source::new(name, text)).await?,
    };
    let sources = sources_of(attributes, &context)?;
    let is_dockerfile_local = is_local && input.is_none();
    let ignored = ignored.unwrap_or_default();
    Ok(Loaded { source, ignored, context, is_dockerfile_local, sources, vertex })
}

/// Where a context is read from that is no directory of the client.
fn sources_of(attributes: &Attributes, context: &ContextSource) -> Result<Vec<SourceOp>, Failure> {
    let Some(mut request) = attributes.requests.first().cloned() else { return Ok(Vec::new()) };
    request.context = context.clone();
    let definition = request.remote_context().map_err(Failure::Value)?;
    let vertices = definition.iter().flat_map(stave_llb::Definition::vertices);
    let source = |vertex: &stave_llb::Vertex| match &vertex.op {
        Op::Source(source) => Some(source.clone()),
        _ => None,
    };
    Ok(vertices.filter_map(source).collect())
}

/// The build context.
async fn context(build: &Build, attributes: &Attributes) -> Result<ContextSource, Failure> {
    if let Some(graph) = attributes.inputs.get("context") {
        return Ok(ContextSource::Graph(Box::new(build.allowed(&graph_of(graph)?)?)));
    }
    let Some(text) = attributes.context.as_deref().filter(|text| !text.is_empty()) else {
        return Ok(ContextSource::Local);
    };
    // The place where clients offer what was piped into them.
    if text.starts_with(upload::ADDRESS) {
        return sent(build, attributes, text).await;
    }
    match ContextForm::of(text)? {
        ContextForm::Path => Ok(ContextSource::Local),
        ContextForm::Git => Ok(ContextSource::Git(text.to_owned())),
        ContextForm::Download => {
            let target = build.add(build.allowed(&download(text))?, BTreeMap::new(), None)?;
            let snapshot = build.solve(&target).await?;
            let head = read_of(build, &snapshot, DOWNLOAD_NAME, ARCHIVE_HEAD as u64)?;
            let head =
                head.ok_or_else(|| Failure::Dockerfile("failed to read downloaded context".to_owned()))?;
            Ok(match is_archive(&head) {
                true => ContextSource::Archive(text.to_owned()),
                false => ContextSource::File(text.to_owned()),
            })
        }
    }
}

/// What was piped into the client, as its directory.
async fn sent(build: &Build, attributes: &Attributes, address: &str) -> Result<ContextSource, Failure> {
    let store = build.engine().store();
    let sent = upload::pull(&build.session, store, address, DOWNLOAD_NAME).await?;
    let below = attributes.context_subdir.as_deref().unwrap_or_default();
    let failed =
        |error| Failure::Dockerfile(format!("cannot use the directory {below} of the context: {error}"));
    let directory = sent.directory(below).map_err(failed)?;
    build.files.give(CONTEXT, directory, sent);
    Ok(ContextSource::Local)
}

/// From the client's directory; the second text is the Dockerfile's own ignore file.
async fn from_client(
    build: &Build,
    attributes: &Attributes,
    step: &crate::progress::Step,
) -> Result<(Vec<u8>, Option<Vec<u8>>), Failure> {
    let (name, directory) = match attributes.is_context_sent() && !attributes.is_dockerfile_local {
        // Of an archive, the file there; anything else is the Dockerfile itself.
        true => (attributes.filename.as_str(), CONTEXT),
        false => (attributes.filename.as_str(), attributes.dockerfile_name.as_str()),
    };
    let own_ignore = format!("{name}{IGNORE_FILE}");
    // Written in lower case it counts, too.
    let lower = name.strip_suffix("Dockerfile").map(|folder| format!("{folder}dockerfile"));
    let mut follow = vec![name.to_owned(), own_ignore.clone()];
    follow.extend(lower.clone());
    let progress = |bytes| step.progress("transferring dockerfile:", bytes);
    let fetched = fetch(build, directory, directory, &follow, &progress).await?;
    let text = match (read(&fetched, name)?, lower) {
        (None, Some(lower)) => read(&fetched, &lower)?,
        (None, None) if attributes.is_context_sent() => read(&fetched, DOWNLOAD_NAME)?,
        (text, _) => text,
    };
    let missing = || Failure::Dockerfile(format!("open {name}: no such file or directory"));
    let text = text.ok_or_else(missing)?;
    // The client shows the bytes beside the part's name.
    step.progress("transferring dockerfile:", text.len() as u64);
    Ok((text, read(&fetched, &own_ignore)?))
}

/// Where a file that the Dockerfile includes lies.
fn beside(attributes: &Attributes, path: &str) -> String {
    match attributes.filename.rsplit_once('/') {
        Some((folder, _)) => format!("{folder}/{path}"),
        None => path.to_owned(),
    }
}

/// With the files that it includes, from the client's directory.
async fn included(build: &Build, attributes: &Attributes, source: Source) -> Result<Source, Failure> {
    let mut includes = Includes::new(source);
    let directory = &attributes.dockerfile_name;
    let mut follow = Vec::new();
    loop {
        let wanted = includes.wanted();
        if wanted.is_empty() {
            return Ok(includes.finish());
        }
        // What a client sends takes the place of what it sent before.
        follow.extend(wanted.iter().map(|path| beside(attributes, path)));
        let hint = format!("{directory}-includes");
        let fetched = fetch(build, directory, &hint, &follow, &|_| {}).await?;
        for path in wanted {
            add(&mut includes, read(&fetched, &beside(attributes, &path))?, path)?;
        }
    }
}

/// With the files that it includes, from a context that is not the client's.
async fn included_of(
    build: &Build,
    attributes: &Attributes,
    context: &ContextSource,
    source: Source,
) -> Result<Source, Failure> {
    let mut includes = Includes::new(source);
    let mut wanted = includes.wanted();
    if wanted.is_empty() || matches!(context, ContextSource::File(_)) {
        return Ok(includes.finish());
    }
    let first = attributes.requests.first().cloned();
    let mut request = first.ok_or_else(|| Failure::Value("no platform to build for".to_owned()))?;
    request.context = context.clone();
    let definition = request.remote_context().map_err(Failure::Value)?;
    let target = build.add(build.allowed(&definition.unwrap_or_else(empty))?, BTreeMap::new(), None)?;
    let snapshot = build.solve(&target).await?;
    while !wanted.is_empty() {
        for path in wanted {
            add(&mut includes, read_of(build, &snapshot, &beside(attributes, &path), MAX_TEXT)?, path)?;
        }
        wanted = includes.wanted();
    }
    Ok(includes.finish())
}

fn add(includes: &mut Includes, text: Option<Vec<u8>>, path: String) -> Result<(), Failure> {
    let Some(text) = text else { return Ok(()) };
    let text =
        String::from_utf8(text).map_err(|_| Failure::Dockerfile(format!("{path} is not valid UTF-8")))?;
    includes.add(path, &text).map_err(|error| Failure::Dockerfile(error.to_string()))
}

async fn ignore_file(build: &Build) -> Result<Option<Vec<u8>>, Failure> {
    let step = build.journal.begin(format!("[internal] load {IGNORE_FILE}"));
    let name = CONTEXT;
    let progress = |bytes| step.progress("transferring context:", bytes);
    let hint = format!("{name}-{IGNORE_FILE}");
    let text = match fetch(build, name, &hint, &[IGNORE_FILE.to_owned()], &progress).await {
        Ok(fetched) => read(&fetched, IGNORE_FILE),
        // A context that the client does not serve is missed by the steps that read it, if there are any.
        Err(_) => Ok(None),
    };
    step.end(text)
}

/// From a context that is not the client's.
async fn from_context(
    build: &Build,
    attributes: &Attributes,
    context: &ContextSource,
) -> Result<(Vec<u8>, Option<Vec<u8>>), Failure> {
    let first = attributes.requests.first().cloned();
    let mut request = first.ok_or_else(|| Failure::Value("no platform to build for".to_owned()))?;
    request.context = context.clone();
    let definition = request.remote_context().map_err(Failure::Value)?;
    let target = build.add(build.allowed(&definition.unwrap_or_else(empty))?, BTreeMap::new(), None)?;
    let name = match context {
        ContextSource::File(_) => DOWNLOAD_NAME,
        _ => attributes.filename.as_str(),
    };
    let text = read_target(build, &target, name, MAX_TEXT).await?;
    let missing = || Failure::Dockerfile(format!("open {name}: no such file or directory"));
    Ok((text.ok_or_else(missing)?, None))
}

/// The named contexts, as the planner wants them.
pub(crate) async fn named(
    build: &Build,
    attributes: &Attributes,
) -> Result<BTreeMap<String, NamedContext>, Failure> {
    let mut contexts = BTreeMap::new();
    for (name, input) in &attributes.graphs {
        contexts.insert(name.clone(), graph_context(build, (attributes, name), input)?);
    }
    let others = attributes.requests.first().map(|request| request.named_contexts.clone());
    for (name, context) in others.unwrap_or_default() {
        let context = match context {
            NamedContext::Local(mut local) => {
                let (hint, follow) = (format!("{}-{IGNORE_FILE}", local.name), [IGNORE_FILE.to_owned()]);
                let fetched = fetch(build, &local.name, &hint, &follow, &|_| {}).await?;
                let ignored = read(&fetched, IGNORE_FILE)?;
                let ignored = ignored.map(|text| dockerignore::parse(&String::from_utf8_lossy(&text)));
                local.excludes = ignored.unwrap_or_default();
                NamedContext::Local(local)
            }
            other => other,
        };
        contexts.insert(name, context);
    }
    Ok(contexts)
}

/// What a front end made as a named context. The rules of the build hold for it, too.
fn graph_context(
    build: &Build,
    (attributes, name): (&Attributes, &str),
    input: &str,
) -> Result<NamedContext, Failure> {
    let graph = attributes.inputs.get(input);
    let graph = graph.ok_or_else(|| Failure::Value(format!("invalid input {input} for {name}")))?;
    let config = match attributes.input_metadata.get(input) {
        None => None,
        Some(metadata) => {
            let failed =
                |error| Failure::Value(format!("failed to parse input metadata of {input}: {error}"));
            let metadata: BTreeMap<String, Vec<u8>> = go_bytes(metadata).map_err(failed)?;
            let config = metadata.get("containerimage.config").map(|bytes| serde_json::from_slice(bytes));
            config.transpose().map_err(failed)?.map(Box::new)
        }
    };
    Ok(NamedContext::Graph { definition: Box::new(build.allowed(&graph_of(graph)?)?), config })
}

/// Go writes bytes in JSON as base64.
fn go_bytes(text: &str) -> Result<BTreeMap<String, Vec<u8>>, serde_json::Error> {
    use base64::Engine as _;
    let texts: BTreeMap<String, String> = serde_json::from_str(text)?;
    let decode = |text: &String| base64::engine::general_purpose::STANDARD.decode(text).unwrap_or_default();
    Ok(texts.iter().map(|(name, text)| (name.clone(), decode(text))).collect())
}

/// A graph as it travels.
pub(crate) fn graph_of(message: &bollard_buildkit_proto::pb::Definition) -> Result<Definition, Failure> {
    if message.def.is_empty() {
        return Err(Failure::Value("invalid nil input definition to definition op".to_owned()));
    }
    caps::understood(Definition::from_wire(&prost::Message::encode_to_vec(message))?)
}

fn empty() -> Definition {
    stave_llb::builder::GraphBuilder::default().finish(None)
}

async fn fetch(
    build: &Build,
    name: &str,
    hint: &str,
    follow: &[String],
    progress: &(dyn Fn(u64) + Send + Sync),
) -> Result<Arc<FetchedDirectory>, Failure> {
    let request = ContextRequest {
        name,
        session: None,
        shared_key_hint: hint,
        include: &[],
        exclude: &[],
        follow,
        differ: Differ::Metadata,
        metadata_but: None,
        progress,
        cancel: &build.cancel,
    };
    Ok(build.files.fetch(&request).await?)
}

/// A file of a fetched directory; whatever links there are, it is a file of that directory.
fn read(directory: &FetchedDirectory, name: &str) -> Result<Option<Vec<u8>>, Failure> {
    use rustix::fs::{CWD, Mode, OFlags, openat};
    let failed = |error: &dyn std::fmt::Display| Failure::Dockerfile(format!("open {name}: {error}"));
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let folder = openat(CWD, directory.path(), flags | OFlags::DIRECTORY, Mode::empty());
    let folder = folder.map_err(|error| failed(&error))?;
    let file = match stave_store::open_inside(folder, name, flags, Mode::empty()) {
        Ok(file) => std::fs::File::from(file),
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(None),
        Err(error) => return Err(failed(&error)),
    };
    take(file, MAX_TEXT).map(Some).map_err(|error| failed(&error))
}

fn take(file: std::fs::File, limit: u64) -> std::io::Result<Vec<u8>> {
    if !file.metadata()?.is_file() {
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, "not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// A file of a result.
pub(crate) async fn read_target(
    build: &Build,
    target: &Target,
    name: &str,
    limit: u64,
) -> Result<Option<Vec<u8>>, Failure> {
    let snapshot = build.solve(target).await?;
    read_of(build, &snapshot, name, limit)
}

fn read_of(
    build: &Build,
    snapshot: &stave_store::Snapshot,
    name: &str,
    limit: u64,
) -> Result<Option<Vec<u8>>, Failure> {
    let view = build.engine().store().view(snapshot)?;
    let Some(file) = view.open(Path::new(name))? else { return Ok(None) };
    let bytes = take(file, limit);
    bytes.map(Some).map_err(|error| Failure::Dockerfile(format!("open {name}: {error}")))
}
