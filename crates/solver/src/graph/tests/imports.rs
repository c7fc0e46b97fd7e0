//! Caches made elsewhere: asked after the index, brought only when needed, and no harm when they are gone.

use super::Elsewhere::{ByContent, ByGraph, KeysOnly, Vanished};
use super::*;

fn world(elsewhere: &[(&str, Elsewhere)]) -> World {
    let elsewhere = elsewhere.iter().map(|(name, how)| ((*name).to_owned(), *how)).collect();
    World { elsewhere, ..World::default() }
}

fn graph() -> [Vertex; 6] {
    let base = image("base");
    let a = run("a", &base);
    let context = context();
    let copied = copy("copy", &a, &context);
    let b = run("b", &copied);
    let c = run("c", &b);
    [base, a, context, copied, b, c]
}

#[test]
fn a_hit_by_the_graph_touches_nothing_below() {
    let mut world = world(&[("a", ByGraph), ("b", ByGraph)]);
    let base = image("base");
    let a = run("a", &base);
    let b = run("b", &a);
    let log = solve(&mut world, &[&base, &a, &b], &b);
    assert_eq!(log, ["import b", "cached base", "cached a", "imported b"]);
    // What was brought is recorded here: the next build needs no other cache.
    world.elsewhere.clear();
    let log = solve(&mut world, &[&base, &a, &b], &b);
    assert_eq!(log, ["load b", "cached base", "cached a", "cached b"]);
}

#[test]
fn only_what_the_next_step_stands_on_is_brought() {
    let mut world = world(&[("a", ByGraph), ("b", ByGraph)]);
    let base = image("base");
    let a = run("a", &base);
    let b = run("b", &a);
    let c = run("c", &b);
    let log = solve(&mut world, &[&base, &a, &b, &c], &c);
    assert_eq!(log, ["cached base", "cached a", "imported b", "import b", "run c"]);
}

#[test]
fn a_copy_is_found_by_the_content_it_reads() {
    let mut world = world(&[("a", ByGraph), ("copy", ByContent), ("b", ByGraph), ("c", ByGraph)]);
    world.content.insert("context".into(), "files".into());
    let graph = graph();
    let all: Vec<&Vertex> = graph.iter().collect();
    // The graph alone does not tell a copy's users apart, so their first look-up comes after the copy's.
    let log = solve(&mut world, &all, &graph[5]);
    assert!(log.contains(&"import c".to_owned()), "{log:?}");
    let runs: Vec<&String> = log.iter().filter(|line| line.starts_with("run ")).collect();
    assert_eq!(runs, ["run context"], "{log:?}");
}

#[test]
fn layers_that_are_gone_are_a_miss() {
    let mut world = world(&[("a", ByGraph), ("b", Vanished)]);
    let base = image("base");
    let a = run("a", &base);
    let b = run("b", &a);
    let log = solve(&mut world, &[&base, &a, &b], &b);
    assert_eq!(log.last().map(String::as_str), Some("run b"), "{log:?}");
    assert!(log.contains(&"import a".to_owned()), "{log:?}");
}

#[test]
fn keys_without_a_result_lead_on_and_run_only_when_they_must() {
    let graph = graph();
    let all: Vec<&Vertex> = graph.iter().collect();
    let elsewhere = [("a", KeysOnly), ("copy", ByContent), ("b", KeysOnly), ("c", ByGraph)];
    let mut small = world(&elsewhere);
    small.content.insert("context".into(), "files".into());
    let log = solve(&mut small, &all, &graph[5]);
    let runs: Vec<&String> = log.iter().filter(|line| line.starts_with("run ")).collect();
    assert_eq!(runs, ["run context"], "{log:?}");
    // The last step changed: what it stands on has to be made, from what is there.
    let mut changed = world(&elsewhere[..3]);
    changed.content.insert("context".into(), "files".into());
    let log = solve(&mut changed, &all, &graph[5]);
    let runs: Vec<&String> = log.iter().filter(|line| line.starts_with("run ")).collect();
    assert_eq!(runs, ["run context", "run b", "run c"], "{log:?}");
}

#[test]
fn what_was_brought_is_found_again_without_that_cache() {
    let mut world = world(&[("a", KeysOnly), ("copy", ByContent), ("b", KeysOnly), ("c", ByGraph)]);
    world.content.insert("context".into(), "files".into());
    let graph = graph();
    let all: Vec<&Vertex> = graph.iter().collect();
    solve(&mut world, &all, &graph[5]);
    world.elsewhere.clear();
    let log = solve(&mut world, &all, &graph[5]);
    assert!(log.contains(&"load c".to_owned()), "{log:?}");
    let runs: Vec<&String> = log.iter().filter(|line| line.starts_with("run ")).collect();
    assert_eq!(runs, ["run context"], "{log:?}");
    // A name is no result: what needs the files makes them.
    let other = run("other", &graph[4]);
    let mut more = all.clone();
    more.push(&other);
    let log = solve(&mut world, &more, &other);
    assert_eq!(log.last().map(String::as_str), Some("run other"), "{log:?}");
    assert!(log.contains(&"run b".to_owned()), "{log:?}");
}

#[test]
fn what_was_brought_after_all_is_found_by_the_next_build() {
    let mut world = world(&[("a", ByGraph)]);
    let base = image("base");
    let a = run("a", &base);
    let mut bench = Bench::new(&mut world);
    bench.submit(1, 1, &[&base, &a], &a);
    let is_import = |(_, command): &(TaskId, Command<Value>)| matches!(command, Command::Import { .. });
    while !bench.pending.iter().all(is_import) {
        let next = bench.pending.iter().position(|pending| !is_import(pending)).expect("another");
        bench.answer(next);
    }
    // It has arrived when it hears that nobody waits for it.
    bench.step(Event::Cancel { job: JobId(1) });
    assert_eq!(bench.stopped.len(), 1);
    bench.answer(0);
    assert!(!bench.finished.contains_key(&JobId(1)), "it ends when that is recorded");
    bench.drain();
    assert!(matches!(bench.finished[&JobId(1)], Err(SolveError::Cancelled)));
    bench.assert_idle();
    world.elsewhere.clear();
    assert_eq!(solve(&mut world, &[&base, &a], &a), ["load a", "cached base", "cached a"]);
}
