//! The build context as a source.
//!
//! Owns which of its paths the build uses, so that no others are sent. Must not read it. Start with
//! [`BuildContext`].

use std::collections::{BTreeMap, BTreeSet};

use stave_llb::{
    SourceOp,
    builder::{About, GraphBuilder, Output},
};

use super::path;
use crate::plan::BuildPlan;

/// The session's name of the build context.
const NAME: &str = "context";

/// The build context while stages are lowered.
pub(super) struct BuildContext {
    pub(super) output: Output,
    paths: BTreeSet<String>,
}

impl BuildContext {
    pub(super) fn new(graph: &mut GraphBuilder, plan: &BuildPlan) -> Self {
        let mut attrs = BTreeMap::from([("local.sharedkeyhint".to_owned(), NAME.to_owned())]);
        let ignore = &plan.request.dockerignore;
        if !ignore.is_empty() {
            attrs.insert("local.excludepatterns".to_owned(), json_list(ignore.iter()));
        }
        let op = SourceOp::new(format!("local://{NAME}"), attrs);
        let about = About::named("[internal] load build context");
        let output = graph.source(op, plan.request.platform(), about);
        Self { output, paths: BTreeSet::new() }
    }

    /// Notes that the build uses a path of the context.
    pub(super) fn uses(&mut self, source: &str) {
        self.paths.insert(path::join("/", source));
    }

    /// Narrows the source down to what is used, now that all of it is known.
    pub(super) fn finish(&self, graph: &mut GraphBuilder) {
        if self.paths.is_empty() || self.paths.contains("/") {
            return;
        }
        let paths: BTreeSet<String> = self.paths.iter().map(|used| path::join(".", used)).collect();
        graph.extend_source(self.output, [("local.followpaths".to_owned(), json_list(paths.iter()))]);
    }
}

/// A list as Go writes it in JSON: what is special in HTML is escaped.
fn json_list<'a>(texts: impl Iterator<Item = &'a String>) -> String {
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
