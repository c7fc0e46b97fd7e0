//! Graphs that steps of a graph make: a build op's place is taken by the graph that lies in a file of its input.
//!
//! What such a graph holds comes from wherever its file does: it is bounded as any client's, and the rules of the build
//! hold for it, too. Start with [`allowed`].

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::Path;

use stave_llb::policy::SourcePolicies;
use stave_llb::{BuildOp, Definition, DefinitionError, Edge, MAX_DEFINITION_BYTES, MAX_VERTICES, Op, Vertex};

use crate::build::Build;
use crate::caps;
use crate::failure::Failure;

/// The input that holds the graph, and the file's name there if the op says no other.
const DEFINITION: &str = "buildkit.llb.definition";
/// The attribute that names the file.
const FILE_NAME: &str = "llbbuild.filename";
/// Most build ops of one graph, those of the graphs in them included.
const MAX_NESTED: usize = 64;

/// A client's graph as the rules have it, without build ops.
pub(super) async fn allowed(
    build: &Build,
    policies: &SourcePolicies,
    definition: &Definition,
) -> Result<Definition, Failure> {
    let definition = build.with_verified(policies.apply(definition)?, policies).await?;
    Box::pin(expanded(build, policies, definition)).await
}

/// A graph without build ops.
async fn expanded(
    build: &Build,
    policies: &SourcePolicies,
    mut definition: Definition,
) -> Result<Definition, Failure> {
    for _ in 0..MAX_NESTED {
        // Inputs stand before their users: what the first one needs holds no other.
        let mut vertices = definition.vertices().iter();
        let found = vertices.find_map(|vertex| match &vertex.op {
            Op::Build(op) => Some((vertex.clone(), op.clone())),
            _ => None,
        });
        let Some((vertex, op)) = found else { return Ok(definition) };
        let inner = policies.apply(&inner(build, &definition, &vertex, &op).await?)?;
        let inner = build.with_verified(inner, policies).await?;
        let whole = definition.with_graph_at(&vertex.digest, &inner);
        definition =
            whole.ok_or_else(|| Failure::Value("the graph of a build op has no output".to_owned()))?;
        // Each graph is bounded for itself; all of them in one are no larger than one may be.
        let limited = |what, limit| Err(DefinitionError::Limit { what, limit });
        if definition.vertices().len() > MAX_VERTICES {
            limited("vertices", MAX_VERTICES)?;
        }
        if definition.to_wire().len() > MAX_DEFINITION_BYTES {
            limited("bytes", MAX_DEFINITION_BYTES)?;
        }
    }
    Err(Failure::Value(format!("more than {MAX_NESTED} build ops in one graph")))
}

/// The graph of a build op: what makes its file is built now.
async fn inner(
    build: &Build,
    definition: &Definition,
    vertex: &Vertex,
    op: &BuildOp,
) -> Result<Definition, Failure> {
    if op.builder.is_some() {
        return Err(Failure::Value("only LLB builder is currently allowed".to_owned()));
    }
    let missing = || Failure::Value(format!("no llb definition input {DEFINITION} found"));
    let at = op.inputs.get(DEFINITION).copied().flatten().ok_or_else(missing)?;
    let input: Edge = vertex.inputs.get(at as usize).cloned().ok_or_else(missing)?;
    let target = build.add(definition.ending_at(input), BTreeMap::new(), None)?;
    let snapshot = build.solve(&target).await?;
    let name = op.attrs.get(FILE_NAME).map_or(DEFINITION, String::as_str);
    let file = build.engine().store().view(&snapshot)?.open(Path::new(name))?;
    let failed = |error: &dyn std::fmt::Display| Failure::Value(format!("failed to open {name}: {error}"));
    let file = file.ok_or_else(|| failed(&"no such file or directory"))?;
    if !file.metadata().is_ok_and(|metadata| metadata.is_file()) {
        return Err(Failure::Value(format!("{name} is not a regular file")));
    }
    let mut bytes = Vec::new();
    let limit = MAX_DEFINITION_BYTES as u64 + 1;
    file.take(limit).read_to_end(&mut bytes).map_err(|error| failed(&error))?;
    caps::understood(Definition::from_wire(&bytes)?)
}
