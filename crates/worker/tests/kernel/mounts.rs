//! Mounts of a step: inputs, caches, memory, secrets.

use stave_llb::builder::{GraphBuilder, MountSpec};
use stave_llb::{Mount, MountOwner, Sharing};
use stave_worker::Secret;
use tokio_util::sync::CancellationToken;

use crate::Test;
use crate::fixture::{Machine, bind, chain, copy, definition_of, exec, local, root_mount, script, shell};

pub(crate) const TESTS: &[Test] = &[
    ("mounts::a_context_is_mounted_and_cannot_be_written", a_context_is_mounted_and_cannot_be_written),
    ("mounts::a_writable_input_is_thrown_away", a_writable_input_is_thrown_away),
    ("mounts::many_layers_and_a_selector", many_layers_and_a_selector),
    ("mounts::a_cache_outlives_the_build", a_cache_outlives_the_build),
    ("mounts::a_cache_begins_with_its_seed", a_cache_begins_with_its_seed),
    ("mounts::one_cache_may_be_mounted_twice", one_cache_may_be_mounted_twice),
    ("mounts::secrets_are_there_and_leave_nothing", secrets_are_there_and_leave_nothing),
    ("mounts::memory_has_a_size", memory_has_a_size),
];

fn discarded(mount: Mount) -> MountSpec {
    MountSpec { mount, source: None, no_output: true }
}

fn a_context_is_mounted_and_cannot_be_written() {
    let machine = Machine::new();
    machine.write("data/a", "one");
    machine.write("data/b", "two");
    let mut graph = GraphBuilder::default();
    let base = shell(&mut graph);
    let context = local(&mut graph, "context", &[]);
    let op = script(
        "read a < /mnt/data/a; echo $a; (echo x > /mnt/new) 2>/dev/null || echo refused; echo k > /out",
    );
    let output = exec(&mut graph, op, vec![root_mount(base), bind("/mnt", Some(context), true)]);
    let definition = graph.finish(Some(output));
    let built = machine.build(&definition);
    assert_eq!(machine.read(built.first(), "/out").as_deref(), Some("k\n"));
    assert_eq!(built.log(), "one\nrefused\n");
    assert!(!machine.context().join("new").exists());
    assert_eq!(machine.read(built.first(), "/mnt/data/a"), None);
    // By content: the same again runs nothing, another content runs the step.
    machine.write("data/a", "one");
    assert_eq!(machine.build(&definition).log(), "");
    machine.write("data/a", "uno");
    assert_eq!(machine.build(&definition).log(), "uno\nrefused\n");
}

fn a_writable_input_is_thrown_away() {
    let machine = Machine::new();
    machine.write("file", "before");
    let mut graph = GraphBuilder::default();
    let base = shell(&mut graph);
    let context = local(&mut graph, "context", &[]);
    let mut mount = bind("/mnt", Some(context), false);
    mount.no_output = true;
    let op = script("echo after > /mnt/file; read a < /mnt/file; echo $a");
    let output = exec(&mut graph, op, vec![root_mount(base), mount]);
    let built = machine.build(&graph.finish(Some(output)));
    built.first();
    assert_eq!(built.log(), "after\n");
    assert_eq!(std::fs::read_to_string(machine.context().join("file")).expect("read"), "before");
}

fn many_layers_and_a_selector() {
    let machine = Machine::new();
    machine.write("one/x", "1");
    machine.write("two/y", "2");
    let mut graph = GraphBuilder::default();
    let base = shell(&mut graph);
    let context = local(&mut graph, "context", &[]);
    let first = copy(&mut graph, None, context, "/one", "/in/one/");
    let second = copy(&mut graph, Some(first), context, "/two", "/in/two/");
    for readonly in [true, false] {
        let mut graph = graph.clone();
        let mut mount = bind("/mnt", Some(second), readonly);
        mount.no_output = true;
        if let Mount::Bind { selector, .. } = &mut mount.mount {
            *selector = "/in".into();
        }
        let op = script("for f in /mnt/*/*; do read v < $f; echo $f $v; done");
        let output = exec(&mut graph, op, vec![root_mount(base), mount]);
        let built = machine.build(&graph.finish(Some(output)));
        built.first();
        assert_eq!(built.log(), "/mnt/one/x 1\n/mnt/two/y 2\n", "readonly {readonly}");
    }
}

fn cache_mount(id: &str) -> MountSpec {
    discarded(Mount::Cache {
        target: "/cache".into(),
        input: None,
        selector: String::new(),
        readonly: false,
        id: id.into(),
        sharing: Sharing::Locked,
    })
}

fn a_cache_outlives_the_build() {
    let machine = Machine::new();
    for (round, expected) in [("1", "1\n"), ("2", "1\n2\n"), ("3", "1\n2\n3\n")] {
        let op = script(&format!("echo {round} >> /cache/log; while read l; do echo $l; done < /cache/log"));
        let built = machine.build(&definition_of(op, vec![cache_mount("mine")]));
        assert_eq!(machine.read(built.first(), "/cache/log"), None);
        assert_eq!(built.log(), expected);
    }
    let op = script("[ -e /cache/log ] || echo empty");
    assert_eq!(machine.build(&definition_of(op, vec![cache_mount("other")])).log(), "empty\n");
}

fn a_cache_begins_with_its_seed() {
    let machine = Machine::new();
    machine.write("seed/first", "seeded");
    for (round, expected) in [("1", "seeded\n"), ("2", "seeded\n1\n")] {
        let mut graph = GraphBuilder::default();
        let base = shell(&mut graph);
        let context = local(&mut graph, "context", &[]);
        let seed = copy(&mut graph, None, context, "/seed", "/s/");
        let mut mount = cache_mount("seeded");
        mount.source = Some(seed);
        if let Mount::Cache { selector, .. } = &mut mount.mount {
            *selector = "/s".into();
        }
        let text = format!("for f in /cache/*; do read v < $f; echo $v; done; echo {round} > /cache/second");
        let output = exec(&mut graph, script(&text), vec![root_mount(base), mount]);
        let built = machine.build(&graph.finish(Some(output)));
        built.first();
        assert_eq!(built.log(), expected);
    }
}

/// The second mount must not wait for the lock that the step itself holds: a new cache is held alone until it has
/// its first content, however it is shared.
fn one_cache_may_be_mounted_twice() {
    let machine = Machine::new();
    for sharing in [Sharing::Shared, Sharing::Private, Sharing::Locked] {
        let mounts = ["/cache", "/other"].map(|path| {
            let mut mount = cache_mount(&format!("twice {sharing:?}"));
            if let Mount::Cache { target, sharing: as_mounted, .. } = &mut mount.mount {
                (*target, *as_mounted) = (path.into(), sharing);
            }
            mount
        });
        let op = script("echo seen > /cache/file; read v < /other/file; echo $v");
        let built = machine.build(&definition_of(op, mounts.into()));
        built.first();
        assert_eq!(built.log(), "seen\n");
    }
}

fn secrets_are_there_and_leave_nothing() {
    let machine = Machine::new();
    let mount = |optional| {
        discarded(Mount::Secret {
            target: "/run/secrets/token".into(),
            id: "token".into(),
            owner: MountOwner { uid: 0, gid: 0, mode: 0o400 },
            optional,
        })
    };
    // What it is does not stand in logs: its length does.
    let op = script("read t < /run/secrets/token; echo ${#t}");
    let definition = definition_of(op, vec![mount(false)]);
    let mut session = machine.session();
    session.secrets.insert("token".into(), Secret::Value(b"hidden\n".to_vec()));
    let built = machine.build_in(&definition, session, &CancellationToken::new());
    assert_eq!(machine.read(built.first(), "/run/secrets/token"), None);
    assert_eq!(built.log(), "6\n");
    let op = script("read t < /run/secrets/token; echo again $t");
    let error = machine.build(&definition_of(op, vec![mount(false)])).results.expect_err("no secret");
    assert!(chain(&error).ends_with("secret token: not found"), "{}", chain(&error));
    let op = script("[ -e /run/secrets/token ] || echo without");
    assert_eq!(machine.build(&definition_of(op, vec![mount(true)])).log(), "without\n");
}

fn memory_has_a_size() {
    let machine = Machine::new();
    let mount = discarded(Mount::Tmpfs { target: "/mem".into(), size: 1 << 20, readonly: false });
    let op = script(
        "echo x > /mem/x; while read d p t o; do case $p in /mem) echo $t; echo $o;; esac; done < /proc/mounts",
    );
    let built = machine.build(&definition_of(op, vec![mount]));
    assert_eq!(machine.read(built.first(), "/mem/x"), None);
    assert!(built.log().starts_with("tmpfs\n") && built.log().contains("size=1024k"), "{}", built.log());
}
