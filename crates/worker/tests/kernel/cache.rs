//! What runs again and what does not, with every build as a process of its own.

use stave_llb::Definition;
use stave_llb::builder::{About, GraphBuilder};

use crate::Test;
use crate::fixture::{Machine, copy, exec, local, root_mount, script, shell};

pub(crate) const TESTS: &[Test] = &[
    ("cache::only_content_decides", only_content_decides),
    ("cache::an_unchanged_part_is_found_again", an_unchanged_part_is_found_again),
    ("cache::merge_and_diff_are_layers", merge_and_diff_are_layers),
];

fn program() -> Definition {
    let mut graph = GraphBuilder::default();
    let base = shell(&mut graph);
    let context = local(&mut graph, "context", &[]);
    let copied = copy(&mut graph, Some(base), context, "/src", "/src/");
    let compile = script("read v < /src/main; echo $v > /program; echo compiled");
    let built = exec(&mut graph, compile, vec![root_mount(copied)]);
    let image = copy(&mut graph, None, built, "/program", "/bin/");
    graph.finish(Some(image))
}

fn only_content_decides() {
    let machine = Machine::new();
    machine.write("src/main", "v1");
    let first = machine.build(&program());
    assert_eq!(machine.read(first.first(), "/bin/program").as_deref(), Some("v1\n"));
    assert_eq!(first.log(), "compiled\n");
    let again = machine.build(&program());
    assert_eq!(again.log(), "");
    assert_eq!(again.first().snapshot(), first.first().snapshot());
    machine.write("src/main", "v1");
    machine.write("elsewhere", "does not matter");
    assert_eq!(machine.build(&program()).log(), "", "touched, and another file");
    machine.write("src/main", "v2");
    let changed = machine.build(&program());
    assert_eq!(changed.log(), "compiled\n");
    assert_eq!(machine.read(changed.first(), "/bin/program").as_deref(), Some("v2\n"));
    machine.write("src/main", "v1");
    let back = machine.build(&program());
    assert_eq!(back.log(), "");
    assert_eq!(back.first().snapshot(), first.first().snapshot());
}

/// A step that runs again but makes the same file leaves what copies that file alone.
fn an_unchanged_part_is_found_again() {
    let machine = Machine::new();
    machine.write("src/main", "same words");
    let first = machine.build(&program());
    machine.write("src/other", "new");
    let second = machine.build(&program());
    assert_eq!(second.log(), "compiled\n");
    assert_eq!(second.first().snapshot(), first.first().snapshot(), "early cut-off");
}

fn merge_and_diff_are_layers() {
    let machine = Machine::new();
    for name in ["a", "b"] {
        machine.write(&format!("{name}/{name}"), name);
    }
    let mut graph = GraphBuilder::default();
    let context = local(&mut graph, "context", &[]);
    let a = copy(&mut graph, None, context, "/a", "/");
    let b = copy(&mut graph, None, context, "/b", "/");
    let on_a = copy(&mut graph, Some(a), context, "/b/b", "/more/");
    let difference = graph.diff(Some(a), Some(on_a), About::named("diff"));
    let merged = graph.merge([Some(b), difference], About::named("merge"));
    let built = machine.build(&graph.finish(merged));
    let read = |path| machine.read(built.first(), path);
    assert_eq!((read("/b").as_deref(), read("/more/b").as_deref(), read("/a")), (Some("b"), Some("b"), None));
}
