//! The state directory: how much it takes, keeping it within bounds, examining and repairing it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use crate::environment::Environment;

fn built() -> Environment {
    let world = Environment::new();
    world.write("a", "1");
    world.dockerfile("FROM BUSYBOX\nCOPY a /a\nRUN --mount=type=cache,target=/c head -c 3000000 /dev/urandom > /big; echo 1 > /c/f\n");
    world.build("it").success();
    world
}

#[test]
fn a_sound_store_is_told_so_and_a_damaged_one_is_repaired() {
    let world = built();
    let doctor = world.stave(["doctor"]).success();
    assert_eq!(doctor.stdout, "the store is sound\n");
    fs::create_dir(world.root().join("l/stray")).expect("a directory");
    fs::set_permissions(world.root().join("l"), fs::Permissions::from_mode(0o755)).expect("changes");
    let found = world.stave(["doctor"]).exits(1).stdout;
    assert!(found.contains("found: a layer directory belongs to nothing: stray"), "{found}");
    assert!(found.contains("found: others may enter a directory of the store"), "{found}");
    let json = world.stave(["doctor", "--json"]).exits(1).stdout;
    assert_eq!(json.lines().count(), 2, "{json}");
    let repaired = world.stave(["doctor", "--repair"]).success().stdout;
    assert!(repaired.contains("2 found and repaired"), "{repaired}");
    world.stave(["doctor"]).success();
    assert_eq!(world.run("it", &["cat", "/a"]), "1");
}

#[test]
fn a_lost_database_comes_back_by_itself() {
    let world = built();
    for file in ["store.db", "store.db-wal", "store.db-shm"] {
        drop(fs::remove_file(world.root().join(file)));
    }
    world.stave(["doctor"]).exits(1);
    assert_eq!(world.run("it", &["cat", "/a"]), "1");
    assert_eq!(world.build("it").success().cached(), 2, "numbers and cache are what they were");
    world.stave(["doctor"]).success();
    // The cache's index as well: then things are built again, and nothing else happens.
    for file in ["cache.db", "cache.db-wal", "cache.db-shm"] {
        drop(fs::remove_file(world.root().join(file)));
    }
    world.stave(["doctor"]).success();
    assert_eq!(world.build("it").success().cached(), 0);
}

#[test]
fn cache_records_of_layers_that_are_gone_are_found() {
    let world = built();
    world.stave(["rmi", "it"]).success();
    let layers = fs::read_dir(world.root().join("l")).expect("lists");
    for layer in layers {
        fs::remove_dir_all(layer.expect("readable").path()).expect("removes");
    }
    let found = world.stave(["doctor"]).exits(1).stdout;
    assert!(found.contains("a layer has no directory"), "{found}");
    let repaired = world.stave(["doctor", "--repair"]).success().stdout;
    assert!(repaired.contains("repaired: a cache record leads to a result that is gone"), "{repaired}");
    world.stave(["doctor"]).success();
    world.build("it").success();
}

#[test]
fn du_tells_kinds_and_filters() {
    let world = built();
    let text = world.stave(["du"]).success().stdout;
    for part in ["RECLAIMABLE", "layer:", "exec.cachemount:", "Shared:", "Internal:", "Total:"] {
        assert!(text.contains(part), "{part} in {text}");
    }
    let mounts = world.stave(["du", "--filter", "type=exec.cachemount", "--format", "json"]).success().stdout;
    assert_eq!(mounts.lines().count(), 1, "{mounts}");
    let shared = world
        .stave(["du", "--filter", "shared=true", "--filter", "description=stage-0", "--format", "json"])
        .success()
        .stdout;
    assert_eq!(shared.lines().count(), 1, "{shared}");
    world.stave(["du", "--filter", "colour=red"]).exits(2).says("invalid filter");
}

#[test]
fn prune_has_buildkits_bounds_and_filters() {
    let world = built();
    world.stave(["prune", "--force", "--all", "--filter", "inuse=maybe"]).exits(2);
    world.stave(["prune", "--force", "--keep-duration", "x"]).exits(2);
    let kept = world.stave(["prune", "--force", "--all"]).success().stdout;
    assert!(kept.contains("removed 0 layers"), "an image needs them: {kept}");
    world.stave(["rmi", "it"]).success();
    let none = world.stave(["prune", "--force", "--max-used-space", "1gb"]).success().stdout;
    assert!(none.contains("removed 0 layers"), "{none}");
    let spared = world.stave(["prune", "--force"]).success().stdout;
    assert!(spared.contains("removed 0 layers"), "what was used lately stays: {spared}");
    let gone =
        world.stave(["prune", "--force", "--all", "--filter", "type=layer", "--verbose"]).success().stdout;
    assert!(gone.contains("removed 2 layers") && gone.contains("layer: "), "{gone}");
    world.stave(["doctor"]).success();
    world.build("it").success();
}

#[test]
fn a_configured_cap_holds() {
    let world = Environment::new();
    world.write("a", "1");
    fs::write(world.path("config.toml"), "[store]\nmax-used = \"14MB\"\n").expect("writes");
    let build = |number: usize| {
        world.write("a", &number.to_string());
        world.dockerfile("FROM BUSYBOX\nCOPY a /a\nRUN head -c 3000000 /dev/urandom > /big\n");
        let mut command = world.command();
        command.env("STAVE_CONFIG", world.path("config.toml")).args(["build", "-o", "type=cacheonly", "."]);
        command.output().expect("the program starts")
    };
    for number in 0..4 {
        let output = build(number);
        assert!(output.status.success(), "{number}: {}", String::from_utf8_lossy(&output.stderr));
    }
    fs::write(world.path("config.toml"), "[store]\nmax-used = \"1MB\"\n").expect("writes");
    let refused = build(9);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("the store is full"), "{said}");
    world.stave(["doctor"]).success();
}

#[test]
fn a_step_is_stopped_before_it_passes_the_cap() {
    let world = Environment::new();
    fs::write(world.path("config.toml"), "[store]\nmax-used = \"40MB\"\n").expect("writes");
    let build = |size: u32| {
        world.dockerfile(&format!(
            "FROM BUSYBOX\nRUN head -c {size} /dev/zero > /big; echo $((1 + 1)) > /after\n"
        ));
        let mut command = world.command();
        command.env("STAVE_CONFIG", world.path("config.toml")).args(["build", "-t", "it", "."]);
        command.output().expect("the program starts")
    };
    assert!(build(10 << 20).status.success());
    let refused = build(u32::MAX);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("the store is full"), "{said}");
    assert!(said.contains("of at most 41943040 bytes"), "it names the cap: {said}");
    let left = world.stave(["du", "--filter", "type=layer", "--format", "json"]).success().stdout;
    assert_eq!(left.lines().filter(|line| line.contains("/big")).count(), 1, "{left}");
    world.stave(["doctor"]).success();
}
