//! Which vertices' layers end up in the image. Pure. Start with [`layers_of`].

use std::collections::BTreeSet;

use stave_llb::{Definition, FileInput, Mount, Op};
use stave_oci::Digest;

/// The vertices on whose layers the outputs consist: down from each output along what it is built on, not along
/// what is only copied from.
pub(crate) fn layers_of(definition: &Definition) -> BTreeSet<Digest> {
    let mut open: Vec<Digest> = definition.outputs().iter().map(|edge| edge.vertex.clone()).collect();
    let mut found = BTreeSet::new();
    while let Some(digest) = open.pop() {
        let Some(vertex) = definition.vertex(&digest) else { continue };
        if !found.insert(digest) {
            continue;
        }
        let inputs: Vec<u32> = match &vertex.op {
            Op::Exec(op) => {
                let root = |mount: &Mount| match mount {
                    Mount::Bind { target, input, .. } if target == "/" => *input,
                    _ => None,
                };
                op.mounts.iter().filter_map(root).collect()
            }
            Op::File(op) => {
                let base = |input: FileInput| match input {
                    FileInput::Input(index) => Some(index),
                    FileInput::Scratch | FileInput::Action(_) => None,
                };
                op.actions.iter().filter_map(|action| base(action.input)).collect()
            }
            Op::Merge(op) => op.inputs.iter().copied().flatten().collect(),
            Op::Diff(op) => op.upper.into_iter().collect(),
            Op::Passthrough(op) => op.outputs.clone(),
            Op::Source(_) | Op::Build(_) => Vec::new(),
        };
        let edges = inputs.iter().filter_map(|index| vertex.inputs.get(*index as usize));
        open.extend(edges.map(|edge| edge.vertex.clone()));
    }
    found.retain(|digest| {
        definition.vertex(digest).is_some_and(|vertex| matches!(vertex.op, Op::Exec(_) | Op::File(_)))
    });
    found
}
