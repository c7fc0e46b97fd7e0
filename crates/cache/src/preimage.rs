//! What a key was made from, kept so that a miss can be explained later.
//!
//! Owns the readable form of a key's fields and their comparison. Must not be hashed itself: texts are
//! cut at [`TEXT_LIMIT`] here and never in the key. Start with [`KeyPreimage`].

use serde::{Deserialize, Serialize};

use crate::key::ContentDigest;

/// Bytes of a text that a preimage keeps; of a longer one it keeps the start and the hash.
pub const TEXT_LIMIT: usize = 512;

/// Texts of one list that a preimage keeps; of a longer one it keeps the start and the count.
pub const LIST_LIMIT: usize = 256;

/// Which of a vertex's three keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeyKind {
    /// Over the definition alone.
    Definition,
    /// Over the identity of the inputs' results.
    Result,
    /// Over the content of the inputs that are content based.
    Content,
}

/// The readable form of one key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyPreimage {
    /// Which key it is.
    pub kind: KeyKind,
    /// The fields in hashing order.
    pub fields: Vec<Field>,
}

/// One labelled field.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Field {
    /// Its label in the key.
    pub label: String,
    /// What it held.
    pub value: FieldValue,
}

/// The readable value of a field.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FieldValue {
    /// An optional field without a value.
    Absent,
    /// A text, number or truth value.
    Text(String),
    /// Texts in order.
    List(Vec<String>),
    /// A key or digest in hex.
    Hash(String),
    /// The fields of a nested part.
    Group(Vec<Field>),
    /// The fields of nested parts in order.
    Groups(Vec<Vec<Field>>),
}

/// One difference between two preimages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldChange {
    /// Labels from the outside in, such as `op.mounts[1].target`.
    pub path: String,
    /// The value before; `None` when the field is new.
    pub before: Option<FieldValue>,
    /// The value after; `None` when the field is gone.
    pub after: Option<FieldValue>,
}

impl FieldValue {
    pub(crate) fn text(value: &str) -> Self {
        Self::Text(clip(value))
    }

    pub(crate) fn texts<'a>(values: impl ExactSizeIterator<Item = &'a str>) -> Self {
        let count = values.len();
        let mut kept: Vec<String> = values.take(LIST_LIMIT).map(clip).collect();
        if count > LIST_LIMIT {
            kept.push(format!("… {} more", count - LIST_LIMIT));
        }
        Self::List(kept)
    }
}

fn clip(value: &str) -> String {
    if value.len() <= TEXT_LIMIT {
        return value.to_owned();
    }
    let end = (0..=TEXT_LIMIT).rev().find(|end| value.is_char_boundary(*end)).unwrap_or_default();
    format!("{}… (blake3 {})", &value[..end], ContentDigest::of(value.as_bytes()))
}

impl KeyPreimage {
    /// What differs from `before` to `self`, outermost field first. Empty when both are the same as far
    /// as a preimage can tell.
    pub fn changes_since(&self, before: &Self) -> Vec<FieldChange> {
        let mut changes = Vec::new();
        compare_fields("", &before.fields, &self.fields, &mut changes);
        changes
    }
}

fn compare_fields(prefix: &str, before: &[Field], after: &[Field], changes: &mut Vec<FieldChange>) {
    let find =
        |fields: &[Field], label: &str| fields.iter().find(|f| f.label == label).map(|f| f.value.clone());
    for field in before {
        compare(&join(prefix, &field.label), Some(&field.value), find(after, &field.label).as_ref(), changes);
    }
    for field in after.iter().filter(|field| find(before, &field.label).is_none()) {
        compare(&join(prefix, &field.label), None, Some(&field.value), changes);
    }
}

fn compare(
    path: &str,
    before: Option<&FieldValue>,
    after: Option<&FieldValue>,
    changes: &mut Vec<FieldChange>,
) {
    match (before, after) {
        (before, after) if before == after => {}
        (Some(FieldValue::Group(before)), Some(FieldValue::Group(after))) => {
            compare_fields(path, before, after, changes);
        }
        (Some(FieldValue::Groups(before)), Some(FieldValue::Groups(after)))
            if before.len() == after.len() =>
        {
            for (index, (before, after)) in before.iter().zip(after).enumerate() {
                compare_fields(&format!("{path}[{index}]"), before, after, changes);
            }
        }
        (before, after) => changes.push(FieldChange {
            path: path.to_owned(),
            before: before.cloned(),
            after: after.cloned(),
        }),
    }
}

fn join(prefix: &str, label: &str) -> String {
    if prefix.is_empty() { label.to_owned() } else { format!("{prefix}.{label}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::KeyBuilder;

    fn preimage(args: &[&str], target: &str) -> KeyPreimage {
        let mount = KeyBuilder::new("mount").text("target", target).finish();
        let mut builder = KeyBuilder::new("op");
        builder.texts("args", args).parts("mounts", &[mount]);
        KeyPreimage { kind: KeyKind::Definition, fields: builder.finish().into_parts().1 }
    }

    #[test]
    fn changes_name_the_innermost_field() {
        let before = preimage(&["sh", "-c", "make"], "/src");
        assert_eq!(before.changes_since(&before), vec![]);
        let after = preimage(&["sh", "-c", "make"], "/work");
        let changes = after.changes_since(&before);
        assert_eq!(
            changes,
            vec![FieldChange {
                path: "mounts[0].target".into(),
                before: Some(FieldValue::Text("/src".into())),
                after: Some(FieldValue::Text("/work".into())),
            }]
        );
        let args = preimage(&["make"], "/src").changes_since(&before);
        assert_eq!(args.iter().map(|c| c.path.as_str()).collect::<Vec<_>>(), ["args"]);
    }

    #[test]
    fn long_texts_are_cut_at_a_character_but_still_differ() {
        let long = "é".repeat(TEXT_LIMIT);
        let longer = format!("{long}x");
        let (FieldValue::Text(a), FieldValue::Text(b)) = (FieldValue::text(&long), FieldValue::text(&longer))
        else {
            panic!("texts stay texts");
        };
        assert!(a.len() < TEXT_LIMIT + 100 && a != b);
        let many: Vec<String> = (0..LIST_LIMIT + 3).map(|n| n.to_string()).collect();
        let FieldValue::List(kept) = FieldValue::texts(many.iter().map(String::as_str)) else {
            panic!("lists stay lists");
        };
        assert_eq!((kept.len(), kept.last().map(String::as_str)), (LIST_LIMIT + 1, Some("… 3 more")));
    }

    #[test]
    fn preimages_survive_json() {
        let value = preimage(&["a"], "/b");
        let text = serde_json::to_string(&value).expect("plain data serialises");
        assert_eq!(serde_json::from_str::<KeyPreimage>(&text).expect("and reads back"), value);
    }
}
