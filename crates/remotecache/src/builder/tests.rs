//! Equal content gives equal configs; images name layers by position.

use super::*;

fn digest(text: &str) -> Digest {
    Digest::sha256(text.as_bytes())
}

fn layer(name: &str) -> BuiltLayer {
    BuiltLayer { blob: digest(name), diff_id: digest(&format!("{name} plain")) }
}

#[test]
fn records_are_told_once_and_in_one_order() {
    let build = |swap: bool| {
        let mut builder = ChainBuilder::default();
        let (one, two) = if swap { ("b", "a") } else { ("a", "b") };
        let first = builder.record(digest(one), Vec::new());
        let second = builder.record(digest(two), Vec::new());
        assert_eq!(builder.record(digest(one), Vec::new()), first);
        let mut links = vec![(first, None), (second, None)];
        if swap {
            links.reverse();
        }
        let top = builder.record(digest("top"), vec![links]);
        builder.set_result(top, vec![layer("l0"), layer("l1")], "t".to_owned());
        builder.config()
    };
    let config = build(false);
    assert_eq!(config, build(true));
    assert_eq!((config.records.len(), config.layers.len()), (3, 2));
    assert_eq!(config.layers[1].parent, 0);
    let links: usize = config.records.iter().flat_map(|record| &record.inputs).map(Vec::len).sum();
    assert_eq!(links, 2);
}

#[test]
fn an_image_names_its_own_layers() {
    let mut builder = ChainBuilder::default();
    let (a, b, c) = (digest("a"), digest("b"), digest("c"));
    let first = builder.record(a, Vec::new());
    let second = builder.record(b, vec![vec![(first, None)]]);
    let other = builder.record(c, vec![vec![(first, None)]]);
    builder.set_result(first, vec![layer("l0")], "t".to_owned());
    builder.set_result(second, vec![layer("l1"), layer("l2")], "t".to_owned());
    builder.set_result(other, vec![layer("elsewhere")], "t".to_owned());
    let plain = |names: &[&str]| names.iter().map(|name| layer(name).diff_id).collect::<Vec<_>>();
    let records = builder.inline(&plain(&["l0", "l1", "l2"])).expect("layers of the image");
    let by_digest = |name: &str| records.iter().find(|record| record.digest == digest(name)).expect("kept");
    assert_eq!(by_digest("a").results[0].layer, 0);
    assert_eq!(by_digest("b").chains[0].layers, [1, 2], "not from the bottom: a list");
    assert!(by_digest("c").results.is_empty() && by_digest("c").chains.is_empty());
    assert_eq!(builder.inline(&plain(&["others"])), None);
}
