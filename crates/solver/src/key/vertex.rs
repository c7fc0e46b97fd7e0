//! The keys of a vertex: its operation's part, and what stands for each input that takes part.

use stave_cache::{CacheKey, ContentDigest, KeyBuilder, KeyEntry, KeyKind, KeyPart, KeyPreimage, ResultId};

use crate::worker::{Selector, SelectorPath};

/// One input that takes part.
#[derive(Debug)]
pub(crate) struct InputPart<'a> {
    pub(crate) position: usize,
    pub(crate) selector: Option<&'a Selector>,
    pub(crate) value: InputValue,
}

/// What stands for an input.
#[derive(Debug)]
pub(crate) enum InputValue {
    Definition {
        output: u32,
        key: CacheKey,
    },
    Result {
        output: u32,
        result: ResultId,
    },
    /// Neither which vertex nor which output made it matters.
    Content {
        digest: ContentDigest,
    },
}

/// The key of one kind.
pub(crate) fn vertex_key(kind: KeyKind, op: &KeyPart, inputs: &[InputPart<'_>]) -> KeyEntry {
    let domain = match kind {
        KeyKind::Definition => "definition",
        KeyKind::Result => "result",
        KeyKind::Content => "content",
    };
    let inputs: Vec<KeyPart> = inputs.iter().map(input_part).collect();
    let (key, fields) = KeyBuilder::new(domain).part("op", op).parts("inputs", &inputs).finish().into_parts();
    KeyEntry { key, preimage: KeyPreimage { kind, fields } }
}

fn input_part(input: &InputPart<'_>) -> KeyPart {
    let mut builder = KeyBuilder::new("input");
    builder.number("position", input.position as u64);
    match input.selector {
        Some(selector) => builder.part("selector", &selector_part(selector)),
        None => builder.absent("selector"),
    };
    match &input.value {
        InputValue::Definition { output, key } => {
            builder.number("output", u64::from(*output)).key("definition", key)
        }
        InputValue::Result { output, result } => {
            builder.number("output", u64::from(*output)).text("result", result.as_str())
        }
        InputValue::Content { digest } => builder.content("content", digest),
    };
    builder.finish()
}

fn selector_part(selector: &Selector) -> KeyPart {
    let paths: Vec<KeyPart> = selector.paths.iter().map(path_part).collect();
    KeyBuilder::new("selector").parts("paths", &paths).finish()
}

fn path_part(path: &SelectorPath) -> KeyPart {
    KeyBuilder::new("selector-path")
        .text("path", &path.path)
        .flag("wildcard", path.wildcard)
        .flag("follow-links", path.follow_links)
        .texts("include", &path.include_patterns)
        .texts("exclude", &path.exclude_patterns)
        .finish()
}
