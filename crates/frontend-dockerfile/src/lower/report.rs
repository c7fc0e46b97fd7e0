//! A lowered Dockerfile as JSON, for people and for comparison with other front ends.
//!
//! Owns that form: vertices with digests, the image without times, warnings by line. Must not be read
//! back by anything of ours.

use serde_json::{Value, json};
use stave_oci::ImageConfig;

use super::Lowered;
use crate::{
    diagnostic::{Code, Diagnostic},
    source::Source,
};

impl Lowered {
    /// `{"vertices", "image", "warnings"}`: each vertex with digest, operation and description, the
    /// image config without times, each warning with rule, message, and first and last line in `source`.
    pub fn report(&self, source: &Source) -> Value {
        json!({
            "vertices": stave_llb::json::vertices(&self.definition),
            "image": image(&self.image),
            "warnings": warnings(source, &self.warnings),
        })
    }
}

/// The warnings among `diagnostics`, as [`Lowered::report`] has them.
pub(crate) fn warnings(source: &Source, diagnostics: &[Diagnostic]) -> Vec<Value> {
    diagnostics.iter().filter(|one| !one.is_error()).map(|one| warning(source, one)).collect()
}

fn image(config: &ImageConfig) -> Value {
    // Strings, maps with string keys and integers: serialising these cannot fail.
    let mut value = serde_json::to_value(config).unwrap_or_default();
    if let Some(fields) = value.as_object_mut() {
        fields.remove("created");
    }
    for step in value.get_mut("history").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(fields) = step.as_object_mut() {
            fields.remove("created");
        }
    }
    if config.rootfs.diff_ids.is_empty() {
        // The form Go gives a list that was never filled, and a config.
        value["rootfs"]["diff_ids"] = Value::Null;
        if config.architecture.is_empty() {
            value["rootfs"]["type"] = Value::String(String::new());
        }
    }
    value
}

fn warning(source: &Source, diagnostic: &Diagnostic) -> Value {
    let rule = match diagnostic.code {
        Code::Check(rule) => rule.name(),
        _ => "",
    };
    let line = source.position(diagnostic.span.start).line;
    let last = source.position(diagnostic.span.end.saturating_sub(1)).line.max(line);
    json!({"rule": rule, "message": diagnostic.message, "line": line, "last_line": last})
}
