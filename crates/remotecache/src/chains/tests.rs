//! Matching, and configs that nobody should trust.

use crate::config::{CacheLayer, CacheResult};

use super::*;

fn digest(text: &str) -> Digest {
    Digest::sha256(text.as_bytes())
}

fn record(name: &str, inputs: Vec<Vec<CacheInput>>, layer: Option<i64>) -> CacheRecord {
    let result = |layer| CacheResult { layer, created_at: "2026-01-01T00:00:00Z".to_owned() };
    CacheRecord {
        results: layer.map(result).into_iter().collect(),
        chains: Vec::new(),
        digest: digest(name),
        inputs,
    }
}

fn link(link: i64, selector: &str) -> CacheInput {
    let selector = if selector.is_empty() { String::new() } else { digest(selector).to_string() };
    CacheInput { selector, link }
}

fn layer(name: &str, parent: i64) -> CacheLayer {
    CacheLayer { blob: digest(name), parent, annotations: None }
}

fn blobs(names: &[&str]) -> HashMap<Digest, Descriptor> {
    names.iter().map(|name| (digest(name), Descriptor::new("t", digest(name), 1))).collect()
}

/// base ← step (selector `/`), copy of content onto step.
fn sample() -> CacheConfig {
    let content = content_record(&digest("files"));
    let mut files = record("x", Vec::new(), None);
    files.digest = content;
    CacheConfig {
        layers: vec![layer("l0", -1), layer("l1", 0)],
        records: vec![
            record("base", Vec::new(), None),
            record("step", vec![vec![link(0, "/")]], Some(0)),
            files,
            record("copy", vec![vec![link(1, "")], vec![link(2, "")]], Some(1)),
        ],
    }
}

fn known<'a>(records: &'a [RecordId], selector: Option<&'a Digest>) -> KnownInput<'a> {
    KnownInput { records, selector, content: None }
}

#[test]
fn records_match_from_below() {
    let chains = Chains::read(sample(), &blobs(&["l0", "l1"])).expect("a sound cache");
    let base = chains.matching(&digest("base"), &[]);
    assert_eq!(base.len(), 1);
    let slash = digest("/");
    let step = chains.matching(&digest("step"), &[known(&base, Some(&slash))]);
    assert_eq!(step.len(), 1);
    assert!(chains.matching(&digest("step"), &[known(&base, None)]).is_empty(), "another part of the input");
    assert!(chains.matching(&digest("step"), &[known(&[], Some(&slash))]).is_empty());
    let files = digest("files");
    let content = KnownInput { records: &[], selector: None, content: Some(&files) };
    let copy = chains.matching(&digest("copy"), &[known(&step, None), content]);
    let stacks = chains.results(copy[0]);
    assert_eq!(
        stacks[0].layers.iter().map(|layer| &layer.digest).collect::<Vec<_>>(),
        [&digest("l0"), &digest("l1")]
    );
    let other = digest("other files");
    let content = KnownInput { records: &[], selector: None, content: Some(&other) };
    assert!(chains.matching(&digest("copy"), &[known(&step, None), content]).is_empty());
}

#[test]
fn a_result_needs_all_its_layers() {
    let chains = Chains::read(sample(), &blobs(&["l1"])).expect("a sound cache");
    let base = chains.matching(&digest("base"), &[]);
    let slash = digest("/");
    let step = chains.matching(&digest("step"), &[known(&base, Some(&slash))]);
    assert_eq!(chains.results(step[0]), []);
}

#[track_caller]
fn refused(change: impl FnOnce(&mut CacheConfig), expected: &str) {
    let mut config = sample();
    change(&mut config);
    let error = Chains::read(config, &blobs(&["l0", "l1"])).expect_err("an unsound cache");
    assert_eq!(error.to_string(), expected);
}

#[test]
fn positions_outside_of_the_lists_are_refused() {
    refused(|config| config.records[1].inputs[0][0].link = 9, "cache names record 9, which it does not have");
    refused(
        |config| config.records[1].inputs[0][0].link = -1,
        "cache names record -1, which it does not have",
    );
    refused(|config| config.records[1].results[0].layer = 2, "cache names layer 2, which it does not have");
    refused(|config| config.layers[1].parent = 7, "cache names layer 7, which it does not have");
    refused(|config| config.layers[1].parent = -2, "cache names layer -2, which it does not have");
}

#[test]
fn loops_match_nothing_and_end() {
    let mut config = sample();
    config.layers[0].parent = 1;
    config.records[1].inputs[0][0].link = 1;
    let chains = Chains::read(config, &blobs(&["l0", "l1"])).expect("positions are sound");
    let base = chains.matching(&digest("base"), &[]);
    let slash = digest("/");
    assert!(chains.matching(&digest("step"), &[known(&base, Some(&slash))]).is_empty());
    assert_eq!(chains.results(RecordId(3)), []);
}

#[test]
fn gos_nulls_and_omissions_are_read() {
    let text = r#"{"layers":null,"records":[{"digest":"DIGEST","inputs":null},{"digest":"DIGEST","inputs":[[{"link":0}]]}]}"#;
    let text = text.replace("DIGEST", digest("x").as_str());
    let config: CacheConfig = serde_json::from_str(&text).expect("a config");
    assert_eq!((config.layers.len(), config.records.len(), config.records[1].inputs.len()), (0, 2, 1));
    let layers: CacheConfig =
        serde_json::from_str(&format!(r#"{{"layers":[{{"blob":"{}"}}]}}"#, digest("x"))).expect("a config");
    assert_eq!(layers.layers[0].parent, 0, "Go leaves a zero out");
    assert!(!serde_json::to_string(&layers).expect("JSON").contains("parent"));
}
