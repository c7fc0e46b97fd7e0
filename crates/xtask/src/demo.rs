//! `cargo xtask demo`: the main job from nothing, with no hub reachable.

use std::process::Command;

use crate::registry::Registry;
use crate::{Failure, images, machine};

/// Makes base images, builds a multi-stage Dockerfile, pushes the result, runs it, and builds it again.
pub(crate) fn run() -> Result<(), Failure> {
    machine::require_root()?;
    machine::install(images::PACKAGES)?;
    let stave = machine::release_binary()?;
    let registry = Registry::start(&images::storage())?;
    images::make(&stave, &registry, &["debian", "gcc"])?;
    let context = crate::root().join("testdata/workloads/hello-c");
    let state = crate::root().join("target/demo");
    let pushed = format!("{}/app:1.0", registry.host());
    let call = |words: &[&str]| {
        println!("\n$ stave {}", words.join(" "));
        machine::run(Command::new(&stave).args(words).env("STAVE_ROOT", &state).current_dir(&context))
    };
    let argument = format!("REGISTRY={}", registry.host());
    call(&["build", "-t", "app:1.0", "--build-arg", &argument, "."])?;
    call(&["build", "-t", "app:1.0", "--build-arg", &argument, "."])?;
    call(&["tag", "app:1.0", &pushed])?;
    call(&["push", &pushed])?;
    call(&["images"])?;
    call(&["run", "--rm", "app:1.0"])
}
