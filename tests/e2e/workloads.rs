//! Real projects: compilers, package managers, thousands of files, hundreds of megabytes.

use std::fs;

use stave_test_support::workloads::{Workload, copy_tree, fixture};

use crate::environment::{Environment, Outcome, registry};

fn build(world: &Environment, workload: Workload, tag: &str) -> Outcome {
    let context = workload.write(&world.path("workloads")).expect("writes the workload");
    let argument = format!("REGISTRY={}", registry());
    world.stave(["build", "-t", tag, "--build-arg", &argument, context.to_str().expect("is text")])
}

fn image_size(world: &Environment, image: &str) -> u64 {
    let text = world.stave(["inspect", image]).success().stdout;
    let inspect: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    inspect[0]["Size"].as_u64().expect("a size")
}

#[test]
fn c_becomes_a_small_image() {
    let world = Environment::new();
    build(&world, Workload::HelloC, "hello").success();
    assert_eq!(world.run("hello", &[]), "hello from a small cask\n");
    assert!(image_size(&world, "hello") < 2_000_000);
}

#[test]
fn go_becomes_a_small_image() {
    let world = Environment::new();
    copy_tree(&fixture("hello-go"), &world.context()).expect("copies");
    world.stave(["build", "-t", "hello", "--build-arg", &format!("REGISTRY={}", registry()), "."]).success();
    assert_eq!(world.run("hello", &["a", "b"]), "go says: a b\n");
    assert_eq!(world.run("hello", &[]), "go says: nothing\n");
}

#[test]
fn python_installs_tests_and_slims() {
    let world = Environment::new();
    build(&world, Workload::PythonApp, "service").success();
    assert_eq!(world.run("service", &[]), "40\n");
    assert!(world.run("service", &["cat", "/report.txt"]).contains("2 passed"));
    world.stave(["run", "--rm", "service", "python3", "-c", "import pytest"]).exits(1);
}

#[test]
fn node_builds_a_page_that_nginx_serves() {
    let world = Environment::new();
    copy_tree(&fixture("node-static"), &world.context()).expect("copies");
    world.stave(["build", "-t", "page", "--build-arg", &format!("REGISTRY={}", registry()), "."]).success();
    let mut server = world.start(&["run", "--rm", "--network", "host", "page"]);
    let page = crate::environment::tool(
        "curl",
        &[
            "-sS",
            "--retry",
            "40",
            "--retry-connrefused",
            "--retry-delay",
            "0",
            "--retry-max-time",
            "20",
            "http://127.0.0.1:18080/",
        ],
    );
    crate::environment::signal(&server, rustix::process::Signal::TERM);
    server.wait().expect("ends");
    assert!(page.contains("<h1>A cask</h1>") && page.contains("<em>staves</em>"), "{page}");
}

#[test]
fn node_with_thousands_of_modules() {
    let world = Environment::new();
    build(&world, Workload::NodeApp, "node").success();
    assert_eq!(
        world.run("node", &["node", "-e", "console.log(require('./src/d7/m7.js'), process.getuid())"]),
        "7 65534\n"
    );
}

#[test]
fn many_files_arrive_and_are_cached() {
    let world = Environment::new();
    build(&world, Workload::ManyFiles, "many").success();
    assert_eq!(world.run("many", &["sh", "-c", "find . -name '*.dat' | wc -l"]).trim(), "20000");
    let context = world.path("workloads/many-files");
    let here = crate::environment::tool(
        "sh",
        &["-c", &format!("cd {} && cat p013/q*/*.dat | md5sum", context.display())],
    );
    assert_eq!(world.run("many", &["sh", "-c", "cat p013/q*/*.dat | md5sum"]), here);
    assert_eq!(build(&world, Workload::ManyFiles, "many").success().cached(), 2);
    fs::write(context.join("p000/q00/f000000.dat"), "changed").expect("writes");
    let argument = format!("REGISTRY={}", registry());
    world
        .stave(["build", "-t", "many", "--build-arg", &argument, context.to_str().expect("is text")])
        .success();
    assert_eq!(world.run("many", &["cat", "p000/q00/f000000.dat"]), "changed");
}

#[test]
fn stages_fan_out_and_meet() {
    let world = Environment::new();
    for (workload, tag) in [(Workload::FanOut, "fan"), (Workload::FanOutCpu, "fan-cpu")] {
        build(&world, workload, tag).success();
        assert_eq!(world.run(tag, &["sh", "-c", "cat /out/out* | sort | uniq | wc -l"]).trim(), "12");
    }
}

#[test]
fn a_chain_of_sixty_steps() {
    let world = Environment::new();
    build(&world, Workload::Chain60, "chain").success();
    assert_eq!(world.run("chain", &["sh", "-c", "cat /f1 /f60; ls / | grep -c '^f[0-9]'"]), "1\n60\n60\n");
    assert_eq!(build(&world, Workload::Chain60, "chain").success().cached(), 60);
}

#[test]
fn a_layer_of_half_a_gigabyte() {
    let world = Environment::new();
    build(&world, Workload::BigLayer, "big").success();
    let sizes = world.run("big", &["sh", "-c", "cd /big/1; stat -c '%n %s' *"]);
    assert_eq!(sizes, "hex 125000000\nlines-1 125000000\nlines-2 125000000\nlog 65000000\nrandom 60000000\n");
    let name = format!("{}/workloads/big:{}", registry(), std::process::id());
    world.stave(["tag", "big", &name]).success();
    world.stave(["push", &name]).success();
    let inspect = crate::environment::tool(
        "skopeo",
        &["inspect", "--raw", "--tls-verify=false", &format!("docker://{name}")],
    );
    let manifest: serde_json::Value = serde_json::from_str(&inspect).expect("JSON");
    let size =
        manifest["layers"].as_array().and_then(|layers| layers.last()).expect("a layer")["size"].as_u64();
    assert!(size.is_some_and(|size| size < 400_000_000), "compressed: {size:?}");
}
