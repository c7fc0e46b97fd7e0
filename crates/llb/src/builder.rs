//! Making graphs the way BuildKit's own client does.
//!
//! Owns the order of vertices, inputs and mounts, the capabilities a definition asks for and the
//! operation at its end, so that equal steps have BuildKit's digests. Must not know Dockerfiles. Start
//! with [`GraphBuilder`].

use std::borrow::Cow;
use std::collections::BTreeMap;

use stave_oci::{Digest, Platform};

use crate::{
    definition::{CUSTOM_NAME, Definition, Edge, Vertex, VertexMetadata},
    exec::{ExecOp, Mount},
    file::{Chown, FileAction, FileActionKind, FileInput, FileOp, UserOrGroup},
    op::{DiffOp, MergeOp, Op},
    source::{SourceIdentifier, SourceOp},
    source_map::{SourceInfo, SourceLocation, SourceMap},
    wire,
};

mod caps;
mod import;

/// A graph in the making. Operations are added after what they take; nothing has a digest before
/// [`GraphBuilder::finish`].
#[derive(Clone, Debug, Default)]
pub struct GraphBuilder {
    nodes: Vec<Node>,
    infos: Vec<SourceInfo>,
}

/// What an operation added to a [`GraphBuilder`] makes. Only of use with the builder it is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Output {
    node: usize,
    index: u32,
}

/// What is said about an operation outside its digest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct About {
    /// The name it is shown with; empty for none.
    pub name: String,
    /// Everything else; `caps` are added to.
    pub metadata: VertexMetadata,
    /// Where it comes from.
    pub locations: Vec<SourceLocation>,
}

/// A process to add.
#[derive(Clone, Debug)]
pub struct ExecSpec {
    /// The process; its mounts are ignored in favour of `mounts`.
    pub op: ExecOp,
    /// What is mounted, the root file system at `/` among it, in any order.
    pub mounts: Vec<MountSpec>,
    /// Where it must run.
    pub platform: Platform,
    /// What is said about it.
    pub about: About,
}

/// A mount to add.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountSpec {
    /// The mount; input and output indices in it are ignored.
    pub mount: Mount,
    /// What it shows; `None` is an empty file system.
    pub source: Option<Output>,
    /// Whether what is written to it is thrown away; read-only mounts have no output anyway.
    pub no_output: bool,
}

/// File actions to add.
#[derive(Clone, Debug, Default)]
pub struct FileSpec {
    /// The file system that is changed; `None` is an empty one.
    pub base: Option<Output>,
    /// The actions in order, each on the result of the one before. Owners' inputs in them are ignored:
    /// names are always looked up in `base`.
    pub actions: Vec<FileStep>,
    /// What is said about it.
    pub about: About,
}

/// One action to add.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileStep {
    /// What it does.
    pub kind: FileActionKind,
    /// What a copy copies from; `None` is an empty file system.
    pub source: Option<Output>,
}

#[derive(Clone, Debug)]
struct Node {
    kind: NodeKind,
    platform: Option<Platform>,
    about: About,
}

#[derive(Clone, Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "most operations are processes, so that a box would save nothing"
)]
enum NodeKind {
    Source(SourceOp),
    Exec(ExecOp, Vec<MountSpec>),
    File(Option<Output>, Vec<FileStep>),
    Merge(Vec<Output>),
    Diff(Option<Output>, Option<Output>),
    Imported { vertex: Box<Vertex>, bytes: Vec<u8>, inputs: Vec<Output> },
}

impl GraphBuilder {
    /// Takes up a file that vertices come from; the result is the index for [`SourceLocation`].
    pub fn add_file(&mut self, info: SourceInfo) -> usize {
        self.infos.push(info);
        self.infos.len() - 1
    }

    /// Adds a source. The platform counts only for images.
    pub fn source(&mut self, op: SourceOp, platform: &Platform, about: About) -> Output {
        let image = matches!(
            op.identifier,
            SourceIdentifier::DockerImage { .. } | SourceIdentifier::OciLayout { .. }
        );
        let platform = image.then(|| platform.clone());
        self.add(NodeKind::Source(op), platform, about)
    }

    /// Adds options to a source that is in the graph already; of other outputs nothing changes.
    pub fn extend_source(&mut self, source: Output, attrs: impl IntoIterator<Item = (String, String)>) {
        if let Some(Node { kind: NodeKind::Source(op), .. }) = self.nodes.get_mut(source.node) {
            op.attrs.extend(attrs);
        }
    }

    /// Adds a process; the result is its root file system afterwards.
    pub fn exec(&mut self, spec: ExecSpec) -> Output {
        let mut mounts = spec.mounts;
        let mut op = spec.op;
        place_agents(&mut mounts, &mut op.env);
        // By target, then secrets, then agents, each of these in the order given.
        mounts.sort_by(|a, b| rank(&a.mount).cmp(&rank(&b.mount)));
        self.add(NodeKind::Exec(op, mounts), Some(spec.platform), spec.about)
    }

    /// Adds file actions; the result is the file system after the last.
    pub fn file(&mut self, spec: FileSpec) -> Output {
        self.add(NodeKind::File(spec.base, spec.actions), None, spec.about)
    }

    /// Lays file systems over each other, the first at the bottom. Empty ones have no effect, and one
    /// alone is itself.
    pub fn merge(
        &mut self,
        layers: impl IntoIterator<Item = Option<Output>>,
        about: About,
    ) -> Option<Output> {
        let layers: Vec<Output> = layers.into_iter().flatten().collect();
        match layers.as_slice() {
            [] => None,
            [one] => Some(*one),
            _ => Some(self.add(NodeKind::Merge(layers), None, about)),
        }
    }

    /// What `upper` has that `lower` lacks.
    pub fn diff(&mut self, lower: Option<Output>, upper: Option<Output>, about: About) -> Option<Output> {
        match (lower, upper) {
            (None, None) => None,
            (None, Some(upper)) => Some(upper),
            (Some(lower), upper) if Some(lower) == upper => None,
            _ => Some(self.add(NodeKind::Diff(lower, upper), None, about)),
        }
    }

    /// The definition of everything `output` needs; `None` is an empty file system.
    pub fn finish(self, output: Option<Output>) -> Definition {
        let mut definition = Definition::empty();
        let Some(output) = output else { return definition };
        let mut digests = Digests { places: vec![usize::MAX; self.nodes.len()], all: Vec::new() };
        let mut locations: BTreeMap<Digest, Vec<SourceLocation>> = BTreeMap::new();
        let order = self.order(output.node);
        let mut nodes: Vec<Option<Node>> = self.nodes.into_iter().map(Some).collect();
        for at in order {
            // Each stands in the order once.
            let Some(mut node) = nodes[at].take() else { continue };
            let here = std::mem::take(&mut node.about.locations);
            let (vertex, bytes) = node.vertex(&digests);
            digests.places[at] = digests.all.len();
            digests.all.push(vertex.digest.clone());
            if !here.is_empty() {
                locations.entry(vertex.digest.clone()).or_default().extend(here);
            }
            definition.push(vertex, bytes);
        }
        definition.outputs = vec![edge(output, &digests)];
        definition.return_op = wire::encode_return(&definition.outputs);
        definition.return_metadata.caps = caps::of_definition(definition.vertices());
        definition.source_map = SourceMap { infos: self.infos, locations };
        definition
    }

    fn add(&mut self, kind: NodeKind, platform: Option<Platform>, about: About) -> Output {
        self.nodes.push(Node { kind, platform, about });
        Output { node: self.nodes.len() - 1, index: 0 }
    }

    /// Nodes below `root` and `root`, inputs first, in the order in which a depth-first walk leaves them.
    fn order(&self, root: usize) -> Vec<usize> {
        let mut order = Vec::new();
        let mut seen = vec![false; self.nodes.len()];
        seen[root] = true;
        // An explicit stack: a long chain of steps must not exhaust the thread's.
        let mut stack = vec![(root, self.nodes[root].walk(), 0)];
        while let Some((node, inputs, next)) = stack.last_mut() {
            match inputs.get(*next) {
                Some(input) => {
                    let input = input.node;
                    *next += 1;
                    if !std::mem::replace(&mut seen[input], true) {
                        stack.push((input, self.nodes[input].walk(), 0));
                    }
                }
                None => {
                    order.push(*node);
                    stack.pop();
                }
            }
        }
        order
    }
}

impl Output {
    /// What a process leaves in another of its writable mounts, of which the root file system is the
    /// first and the others follow by target. Only of use for processes.
    #[must_use]
    pub fn mounted(self, index: u32) -> Self {
        Self { index, ..self }
    }
}

impl About {
    /// Only a name.
    pub fn named(name: impl Into<String>) -> Self {
        Self { name: name.into(), ..Self::default() }
    }

    /// With a description entry.
    #[must_use]
    pub fn described(mut self, key: &str, text: impl Into<String>) -> Self {
        self.metadata.description.insert(key.to_owned(), text.into());
        self
    }
}

impl Node {
    /// Inputs in the order the client walks them, which is not the order on the wire.
    fn walk(&self) -> Vec<Output> {
        match &self.kind {
            NodeKind::Source(_) => Vec::new(),
            NodeKind::Exec(_, mounts) => mounts.iter().filter_map(|mount| mount.source).collect(),
            NodeKind::File(base, steps) => {
                base.iter().copied().chain(steps.iter().rev().filter_map(|step| step.source)).collect()
            }
            NodeKind::Merge(layers) => layers.clone(),
            NodeKind::Diff(lower, upper) => [*lower, *upper].into_iter().flatten().collect(),
            NodeKind::Imported { inputs, .. } => inputs.clone(),
        }
    }

    fn vertex(self, digests: &Digests) -> (Vertex, Vec<u8>) {
        let Self { kind, platform, about } = self;
        let mut inputs = Inputs { edges: Vec::new(), digests };
        let mut metadata = about.metadata;
        let mut add = |all: &[&'static str]| metadata.caps.extend(all.iter().copied().map(Cow::Borrowed));
        let op = match kind {
            NodeKind::Imported { vertex, bytes, .. } => return (*vertex, bytes),
            NodeKind::Source(source) => {
                add(caps::of_source(&source.identifier));
                Op::Source(source)
            }
            NodeKind::Exec(exec, mounts) => {
                let exec = exec_op(exec, mounts, &mut inputs);
                add(&caps::of_exec(&exec));
                Op::Exec(exec)
            }
            NodeKind::File(base, steps) => {
                add(&["file.base"]);
                Op::File(file_op(base, steps, &mut inputs))
            }
            NodeKind::Merge(layers) => {
                add(&["mergeop"]);
                // The client does not look for equal layers here.
                let layers = layers.iter().map(|layer| Some(inputs.push(*layer)));
                Op::Merge(MergeOp { inputs: layers.collect() })
            }
            NodeKind::Diff(lower, upper) => {
                add(&["diffop"]);
                let mut input = |of: Option<Output>| of.map(|of| inputs.push(of));
                Op::Diff(DiffOp { lower: input(lower), upper: input(upper) })
            }
        };
        let inputs = inputs.edges;
        if !about.name.is_empty() {
            metadata.description.insert(CUSTOM_NAME.to_owned(), about.name);
        }
        let constraints = Some(Vec::new());
        let bytes = wire::encode_op(&op, &inputs, platform.as_ref(), constraints.as_deref());
        let digest = Digest::sha256(&bytes);
        (Vertex { digest, op, inputs, platform, constraints, metadata }, bytes)
    }
}

/// The inputs of a vertex as they come up.
struct Inputs<'a> {
    edges: Vec<Edge>,
    digests: &'a Digests,
}

impl Inputs<'_> {
    fn push(&mut self, output: Output) -> u32 {
        self.edges.push(edge(output, self.digests));
        index(self.edges.len() - 1)
    }

    /// The index of an input, which is only added if it is new.
    fn find(&mut self, output: Output) -> u32 {
        let edge = edge(output, self.digests);
        match self.edges.iter().position(|known| *known == edge) {
            Some(at) => index(at),
            None => self.push(output),
        }
    }
}

/// The digests of the nodes walked so far.
struct Digests {
    /// By node, where its digest stands in `all`.
    places: Vec<usize>,
    all: Vec<Digest>,
}

fn edge(output: Output, digests: &Digests) -> Edge {
    // Inputs are walked before their users, so that each has its digest by now.
    Edge { vertex: digests.all[digests.places[output.node]].clone(), output: output.index }
}

fn index(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(u32::MAX)
}

fn rank(mount: &Mount) -> (u8, &str) {
    match mount {
        Mount::Bind { target, .. } | Mount::Cache { target, .. } | Mount::Tmpfs { target, .. } => (0, target),
        Mount::Secret { .. } => (1, ""),
        Mount::Ssh { .. } => (2, ""),
    }
}

/// Gives agents without a target their place, and says the first one's to the process.
fn place_agents(mounts: &mut [MountSpec], env: &mut Vec<String>) {
    let agents = mounts.iter_mut().filter_map(|spec| match &mut spec.mount {
        Mount::Ssh { target, .. } => Some(target),
        _ => None,
    });
    let mut first = None;
    for (at, target) in agents.enumerate() {
        if target.is_empty() {
            *target = format!("/run/buildkit/ssh_agent.{at}");
        }
        first.get_or_insert_with(|| target.clone());
    }
    let Some(first) = first else { return };
    if !env.iter().any(|entry| entry.starts_with("SSH_AUTH_SOCK=")) {
        env.push(format!("SSH_AUTH_SOCK={first}"));
    }
}

fn exec_op(template: ExecOp, specs: Vec<MountSpec>, inputs: &mut Inputs<'_>) -> ExecOp {
    let mut mounts = Vec::with_capacity(specs.len());
    let mut outputs = 0..;
    for spec in specs {
        let from = spec.source.map(|source| inputs.find(source));
        let mut mount = spec.mount;
        match &mut mount {
            Mount::Bind { input, output, readonly, .. } => {
                *input = from;
                *output = if *readonly || spec.no_output { None } else { outputs.next() };
            }
            Mount::Cache { input, .. } => *input = from,
            Mount::Tmpfs { .. } | Mount::Secret { .. } | Mount::Ssh { .. } => {}
        }
        mounts.push(mount);
    }
    ExecOp { mounts, ..template }
}

fn file_op(base: Option<Output>, steps: Vec<FileStep>, inputs: &mut Inputs<'_>) -> FileOp {
    let base = base.map_or(FileInput::Scratch, |base| FileInput::Input(inputs.find(base)));
    let count = steps.len();
    let mut actions = Vec::with_capacity(count);
    for (at, step) in steps.into_iter().enumerate() {
        let secondary = match (&step.kind, step.source) {
            (FileActionKind::Copy(_), Some(source)) => FileInput::Input(inputs.find(source)),
            _ => FileInput::Scratch,
        };
        let mut kind = step.kind;
        if let Some(owner) = owner_of(&mut kind) {
            for who in [&mut owner.user, &mut owner.group] {
                if let Some(UserOrGroup::Name { input, .. }) = who {
                    *input = base;
                }
            }
        }
        actions.push(FileAction {
            input: at.checked_sub(1).map_or(base, |before| FileInput::Action(index(before))),
            secondary,
            output: (at + 1 == count).then_some(0),
            kind,
        });
    }
    FileOp { actions }
}

fn owner_of(kind: &mut FileActionKind) -> Option<&mut Chown> {
    match kind {
        FileActionKind::Copy(copy) => copy.owner.as_mut(),
        FileActionKind::Mkfile(file) => file.owner.as_mut(),
        FileActionKind::Mkdir(dir) => dir.owner.as_mut(),
        FileActionKind::Symlink(link) => link.owner.as_mut(),
        FileActionKind::Rm(_) => None,
    }
}
