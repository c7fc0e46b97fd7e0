//! `cargo xtask bench`: stave and the peers on this machine, in alternation, medians and ratios.
//!
//! Start with [`run`]. A round times each builder once on each operation, so that a noisy minute
//! falls on all of them; a ratio is the median of the rounds' ratios.

mod peer;
mod table;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use stave_test_support::workloads::Workload;

use crate::registry::Registry;
use crate::{Failure, images, machine};
use peer::Builder;
use table::{Measurement, Table};

/// What to measure.
#[derive(Args)]
pub(crate) struct Options {
    /// Peers to measure beside stave (buildah, podman, docker, buildkit); default: those that are installed.
    #[arg(long, value_delimiter = ',')]
    peer: Option<Vec<String>>,
    /// Rounds; each builder does each operation once a round.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Workload names; default: all.
    workloads: Vec<String>,
}

/// What is done with a workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    /// No cache is used; base images are present.
    Cold,
    /// The same build again.
    Warm,
    /// One file of the context has changed.
    OneFile,
}

impl Operation {
    fn name(self) -> &'static str {
        match self {
            Self::Cold => "cold",
            Self::Warm => "warm",
            Self::OneFile => "one file changed",
        }
    }
}

/// Measures and prints.
pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    machine::require_root()?;
    machine::install(images::PACKAGES)?;
    let stave = machine::release_binary()?;
    let registry = Registry::start(&images::storage())?;
    images::make(&stave, &registry, images::ALL)?;
    let folder = crate::root().join("target/bench");
    let builders = Builder::select(&stave, options.peer.as_deref(), &folder)?;
    let mut table = Table::new(builders.iter().map(|builder| builder.name().to_owned()).collect());
    for workload in select(&options.workloads)? {
        let context = workload.write(&folder.join("contexts"))?;
        // One untimed build each: base images get pulled, package caches get warm.
        for builder in &builders {
            builder.build(&context, &registry.host(), Operation::Warm)?;
        }
        for round in 0..options.rounds {
            for operation in [Operation::Cold, Operation::Warm, Operation::OneFile] {
                for builder in &builders {
                    prepare(&context, operation, round, builder)?;
                    let wall = timed(|| builder.build(&context, &registry.host(), operation))?;
                    table.add(Measurement {
                        workload: workload.name(),
                        operation: operation.name(),
                        builder: builder.name().to_owned(),
                        wall,
                    });
                }
            }
        }
    }
    start_times(&builders, &registry, options.rounds, &mut table)?;
    println!("{}", table.markdown());
    let report = folder.join("results.json");
    std::fs::write(&report, table.json())?;
    println!("written to {}", report.display());
    Ok(())
}

fn select(names: &[String]) -> Result<Vec<Workload>, Failure> {
    if names.is_empty() {
        return Ok(Workload::ALL.to_vec());
    }
    let find = |name: &String| Workload::ALL.into_iter().find(|workload| workload.name() == name);
    names
        .iter()
        .map(|name| find(name).ok_or_else(|| format!("no workload is called {name}").into()))
        .collect()
}

/// Changes a file that only the last COPY of the context reads.
fn prepare(context: &Path, operation: Operation, round: usize, builder: &Builder) -> Result<(), Failure> {
    if operation == Operation::OneFile {
        let text = format!("{round} {}\n", builder.name());
        std::fs::write(changed_file(context), text)?;
    }
    Ok(())
}

fn changed_file(context: &Path) -> PathBuf {
    context.join("changed.txt")
}

fn timed(work: impl FnOnce() -> Result<(), Failure>) -> Result<Duration, Failure> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed())
}

/// `run --rm busybox true`, for builders that can.
fn start_times(
    builders: &[Builder],
    registry: &Registry,
    rounds: usize,
    table: &mut Table,
) -> Result<(), Failure> {
    let image = format!("{}/busybox", registry.host());
    let runners: Vec<&Builder> = builders.iter().filter(|builder| builder.can_run()).collect();
    for builder in &runners {
        builder.run(&image)?;
    }
    for _ in 0..rounds.max(1) * 5 {
        for builder in &runners {
            let wall = timed(|| builder.run(&image))?;
            table.add(Measurement {
                workload: "run busybox true",
                operation: "start",
                builder: builder.name().to_owned(),
                wall,
            });
        }
    }
    Ok(())
}
