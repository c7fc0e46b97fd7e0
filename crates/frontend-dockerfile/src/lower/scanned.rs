//! What a bill of materials looks at beside the result: other stages, and the build context.
//!
//! Owns who asks for it (`BUILDKIT_SBOM_SCAN_STAGE`, `BUILDKIT_SBOM_SCAN_CONTEXT`, as `ARG`s of a stage or before the
//! first). Must not know scanners. Start with [`Lowering::scanned`].

use std::collections::BTreeMap;

use stave_llb::{Definition, builder::Output};

use super::{Lowering, stage::StageState};
use crate::{boolean, scope::Lookup as _};

/// Asks for the build context; of the target alone.
const CONTEXT_ARG: &str = "BUILDKIT_SBOM_SCAN_CONTEXT";
/// Asks for a stage that the target needs.
const STAGE_ARG: &str = "BUILDKIT_SBOM_SCAN_STAGE";
/// The `ARG`s of this module, which are for the builder and not for steps.
pub(super) const BUILDER_ARGS: [&str; 2] = [CONTEXT_ARG, STAGE_ARG];
/// What the build context is called among the stages.
const CONTEXT: &str = "context";

impl Lowering<'_> {
    /// What is to be scanned beside the target, by name. The graph must be whole by now.
    pub(super) fn scanned(&self, target: &StageState) -> BTreeMap<String, Definition> {
        let graph = |output: Option<Output>| self.graph.clone().finish(output);
        let mut scanned = BTreeMap::new();
        if self.asks_for(target, CONTEXT_ARG) {
            scanned.insert(CONTEXT.to_owned(), graph(self.context.output));
        }
        for state in self.stages.iter().flatten().filter(|state| state.index != target.index) {
            let stage = &self.plan.stages[state.index.0];
            if stage.reachable && !stage.implicit && self.asks_for(state, STAGE_ARG) {
                scanned.insert(stage.display_name.clone(), graph(state.output));
            }
        }
        scanned
    }

    /// Whether a stage asks: with a truth value, or by naming itself among others. The last `ARG` counts.
    fn asks_for(&self, state: &StageState, name: &str) -> bool {
        let own = state.args.iter().rfind(|(argument, value)| argument == name && value.is_some());
        let value = own.and_then(|(_, value)| value.as_deref()).or_else(|| self.plan.globals.value(name));
        let is_named = |value: &str| {
            let stage = &self.plan.stages[state.index.0].display_name;
            value.split(',').any(|name| name == stage)
        };
        value.is_some_and(|value| boolean::parse(value).unwrap_or_else(|| is_named(value)))
    }
}
