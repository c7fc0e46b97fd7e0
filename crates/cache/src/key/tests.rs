//! Golden keys, and that different fields never make equal keys.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// One field of any type, for the property that encodings are injective.
#[derive(Debug, Clone, PartialEq)]
enum AnyField {
    Text(String),
    Bytes(Vec<u8>),
    Number(u64),
    Signed(i64),
    Flag(bool),
    Texts(Vec<String>),
    Map(BTreeMap<String, String>),
    Absent,
}

const LABELS: [&str; 3] = ["a", "b", "ab"];

fn key_of(domain: &'static str, fields: &[(usize, AnyField)]) -> CacheKey {
    let mut builder = KeyBuilder::new(domain);
    for (label, field) in fields {
        let label = LABELS[*label];
        match field {
            AnyField::Text(value) => builder.text(label, value),
            AnyField::Bytes(value) => builder.bytes(label, value),
            AnyField::Number(value) => builder.number(label, *value),
            AnyField::Signed(value) => builder.signed(label, *value),
            AnyField::Flag(value) => builder.flag(label, *value),
            AnyField::Texts(value) => builder.texts(label, value),
            AnyField::Map(value) => builder.map(label, value),
            AnyField::Absent => builder.absent(label),
        };
    }
    builder.finish().key()
}

fn any_fields() -> impl Strategy<Value = Vec<(usize, AnyField)>> {
    let field = prop_oneof![
        "[ab]{0,3}".prop_map(AnyField::Text),
        proptest::collection::vec(0..3u8, 0..3).prop_map(AnyField::Bytes),
        (0..3u64).prop_map(AnyField::Number),
        (-1..2i64).prop_map(AnyField::Signed),
        any::<bool>().prop_map(AnyField::Flag),
        proptest::collection::vec("[ab]{0,2}", 0..3).prop_map(AnyField::Texts),
        proptest::collection::btree_map("[ab]{0,1}", "[ab]{0,1}", 0..3).prop_map(AnyField::Map),
        Just(AnyField::Absent),
    ];
    proptest::collection::vec((0..LABELS.len(), field), 0..4)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn keys_are_equal_exactly_when_the_fields_are(a in any_fields(), b in any_fields()) {
        prop_assert_eq!(key_of("x", &a) == key_of("x", &b), a == b);
        prop_assert_ne!(key_of("x", &a), key_of("y", &a));
    }

    #[test]
    fn texts_in_a_list_do_not_run_together(words in proptest::collection::vec("[ab]{0,2}", 2..5)) {
        let joined = vec![words.concat()];
        prop_assert_ne!(
            key_of("x", &[(0, AnyField::Texts(words))]),
            key_of("x", &[(0, AnyField::Texts(joined))])
        );
    }
}

/// Changing this file is a format break: raise [`CACHE_FORMAT`].
#[test]
fn golden_keys() {
    let nested = KeyBuilder::new("mount").text("target", "/src").flag("readonly", true).finish();
    let mut map = BTreeMap::new();
    map.insert("k".to_owned(), "v".to_owned());
    let every_type = KeyBuilder::new("every-type")
        .text("text", "é")
        .optional_text("present", Some(""))
        .optional_text("absent", None)
        .bytes("bytes", &[0, 255])
        .number("number", 7)
        .signed("signed", -7)
        .optional_number("no-number", None)
        .flag("flag", true)
        .texts("texts", &["a", "b"])
        .map("map", &map)
        .content("content", &ContentDigest::of(b"content"))
        .key("key", &CacheKey::from_bytes([7; 32]))
        .part("part", &nested)
        .parts("parts", &[nested.clone(), nested.clone()])
        .finish();
    let found: BTreeMap<&str, String> = [
        ("empty", KeyBuilder::new("").finish().key().to_string()),
        ("nested", nested.key().to_string()),
        ("every-type", every_type.key().to_string()),
    ]
    .into();
    let golden = include_str!("../../../../testdata/cache/encoding.json");
    let golden: BTreeMap<&str, String> = serde_json::from_str(golden).expect("the golden file is JSON");
    assert_eq!(found, golden);
}

#[test]
fn keys_read_back_from_their_text_only() {
    let key = KeyBuilder::new("x").finish().key();
    assert_eq!(key.to_string().parse(), Ok(key));
    for bad in ["", "00", &key.to_string().to_uppercase(), &format!("{key}0")] {
        assert!(bad.parse::<CacheKey>().is_err(), "{bad}");
    }
    let json = serde_json::to_string(&key).expect("a key is a string");
    assert_eq!(serde_json::from_str::<CacheKey>(&json).expect("and reads back"), key);
}
