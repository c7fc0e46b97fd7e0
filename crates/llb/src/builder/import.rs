//! Taking a finished graph into one in the making.
//!
//! Owns that its vertices keep their bytes and thereby their digests. Must not look at what they do.

use std::collections::HashMap;

use super::{GraphBuilder, Node, NodeKind, Output};
use crate::{builder::About, definition::Definition};

impl GraphBuilder {
    /// Takes up all of `definition`; the result is its first output, `None` for an empty file system.
    /// Places in source files stay behind.
    pub fn import(&mut self, definition: &Definition) -> Option<Output> {
        let mut nodes = HashMap::new();
        for (vertex, bytes) in definition.vertices.iter().zip(&definition.encoded) {
            // Inputs stand before their users, so that each is known by now.
            let inputs = vertex.inputs.iter().filter_map(|edge| {
                let node = nodes.get(&edge.vertex).copied()?;
                Some(Output { node, index: edge.output })
            });
            let inputs = inputs.collect();
            let about = About { metadata: vertex.metadata.clone(), ..About::default() };
            let kind = NodeKind::Imported { vertex: Box::new(vertex.clone()), bytes: bytes.clone(), inputs };
            self.nodes.push(Node { kind, platform: vertex.platform.clone(), about });
            nodes.insert(vertex.digest.clone(), self.nodes.len() - 1);
        }
        let output = definition.outputs.first()?;
        Some(Output { node: nodes.get(&output.vertex).copied()?, index: output.output })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use stave_oci::Platform;

    use super::*;
    use crate::source::SourceOp;

    #[test]
    fn digests_and_names_survive() {
        let platform = Platform::new("linux", "amd64", None);
        let mut graph = GraphBuilder::default();
        let op = SourceOp::new("https://a.test/b", BTreeMap::new());
        let source = graph.source(op, &platform, About::named("load"));
        let first = graph.finish(Some(source));
        let mut graph = GraphBuilder::default();
        let source = graph.import(&first);
        let second = graph.finish(source);
        assert_eq!(first.vertices(), second.vertices());
        assert_eq!(first.outputs(), second.outputs());
        assert_eq!(GraphBuilder::default().import(&Definition::empty()), None);
    }
}
