//! `cargo xtask bench`: stave and the peers on this machine, in alternation, medians and ratios.
//!
//! Start with [`run`]. A round times each builder once on each operation, in an order that changes from
//! round to round, so that a noisy minute falls on all of them; a ratio is the median of the rounds'
//! ratios. What a builder makes is looked at before its figures count.

mod builder;
mod caches;
mod case;
mod daemon;
mod growth;
mod invocation;
mod machine_facts;
mod peak;
mod starts;
mod table;
mod usage;
mod verify;

use std::cell::RefCell;
use std::path::{Path, PathBuf};

use clap::Args;

use crate::registry::Registry;
use crate::{Failure, images, machine};
use builder::{Builder, Passing, Wish};
use case::{Case, Operation};
use machine_facts::MachineFacts;
use table::{Measurement, Table};
use usage::Usage;

/// What to measure.
#[derive(Args)]
pub(crate) struct Options {
    /// Peers to measure beside stave (buildkit, docker, buildah, podman); default: those that are installed.
    #[arg(long, value_delimiter = ',')]
    peer: Option<Vec<String>>,
    /// Rounds; each builder does each operation once a round.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// How each figure grows with steps, files, layers and concurrent builds, as a plot; measures nothing else.
    #[arg(long)]
    growth: bool,
    /// How fast sandboxes start beside runc, crun, podman and docker, and what they leave; measures nothing else.
    #[arg(long)]
    starts: bool,
    /// What caches cost and spare, each figure beside its target; measures nothing else.
    #[arg(long)]
    caches: bool,
    /// The sandbox crate's example `spawn` to measure with `--starts` in place of its release build.
    #[arg(long, value_name = "FILE")]
    spawn: Option<PathBuf>,
    /// A program to measure in place of the release build.
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
    /// An earlier build of stave to measure beside it, as a peer called `before`.
    #[arg(long, value_name = "FILE")]
    before: Option<PathBuf>,
    /// Workload names; default: all that need less than 2 GB of disk and no network.
    workloads: Vec<String>,
}

/// Measures and prints.
pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    machine::require_root()?;
    machine::install(images::PACKAGES)?;
    machine::install(&["time"])?;
    let stave = match &options.program {
        Some(program) => program.canonicalize()?,
        None => machine::release_binary()?,
    };
    let folder = crate::root().join("target/bench");
    std::fs::create_dir_all(&folder)?;
    if options.starts {
        let spawn = match &options.spawn {
            Some(program) => program.canonicalize()?,
            None => machine::release_target("stave-sandbox", ["--example", "spawn"])?,
        };
        return starts::run(&spawn, &stave, &folder);
    }
    let registry = Registry::start(&images::storage())?;
    images::make(&stave, &registry, images::ALL)?;
    if options.growth {
        return growth::run(&stave, &registry.host(), &folder, options.rounds);
    }
    if options.caches {
        return caches::run(&stave, &registry.host(), &folder, options.rounds);
    }
    let mut bench = Bench {
        builders: Builder::select(&stave, options, &folder, &registry.host())?,
        registry: registry.host(),
        rounds: options.rounds.max(1),
        facts: MachineFacts::read(),
        folder,
        table: Table::default(),
        spent: RefCell::default(),
    };
    for case in Case::select(&options.workloads)? {
        bench.measure(&case)?;
    }
    bench.report()
}

struct Bench {
    builders: Vec<Builder>,
    registry: String,
    rounds: usize,
    facts: MachineFacts,
    folder: PathBuf,
    table: Table,
    /// States that were used once; they go when all is measured.
    spent: RefCell<Vec<Passing>>,
}

impl Bench {
    fn measure(&mut self, case: &Case) -> Result<(), Failure> {
        eprintln!("xtask: measuring {}", case.name());
        let context = case.write(&self.folder.join("contexts"))?;
        let mut able = Vec::new();
        for (index, builder) in self.builders.iter().enumerate() {
            if !case.operations().iter().any(|&operation| builder.can(operation)) {
                continue;
            }
            match self.prepare(case, builder, &context) {
                Ok(()) => able.push(index),
                Err(problem) if builder.is_peer() => {
                    eprintln!("xtask: {} is left out of {}: {problem}", builder.name(), case.name());
                }
                Err(problem) => return Err(problem),
            }
        }
        for round in 0..self.rounds {
            for &operation in case.operations() {
                for turn in 0..able.len() {
                    let index = able[(turn + round) % able.len()];
                    if !self.builders[index].can(operation) {
                        continue;
                    }
                    let usage = self.once(case, operation, &context, (index, round))?;
                    self.table.add(Measurement {
                        workload: case.name(),
                        operation: operation.name(),
                        builder: self.builders[index].name(),
                        round,
                        usage,
                    });
                }
            }
        }
        Ok(())
    }

    /// Base images get pulled, package caches get warm, and the result is looked at.
    fn prepare(&self, case: &Case, builder: &Builder, context: &Path) -> Result<(), Failure> {
        if let Some(expected) = case.expected() {
            verify::check(builder, context, &expected)?;
        }
        if case.operations().contains(&Operation::Import) && builder.can(Operation::Import) {
            builder.perform(case, context, &Wish::export(&self.reference(case, builder, 0)))?;
        }
        Ok(())
    }

    fn once(
        &self,
        case: &Case,
        operation: Operation,
        context: &Path,
        (index, round): (usize, usize),
    ) -> Result<Usage, Failure> {
        let builder = &self.builders[index];
        let reference = self.reference(case, builder, round);
        match operation {
            Operation::Start => builder.start(&format!("{}/busybox", self.registry)),
            Operation::Cold => builder.perform(case, context, &Wish::cold()),
            Operation::Warm => {
                // The one before may have been another operation, or another builder's change.
                builder.perform(case, context, &Wish::default())?;
                builder.perform(case, context, &Wish::default())
            }
            Operation::OneFile => {
                builder.perform(case, context, &Wish::default())?;
                // Only the last COPY of a context reads this file.
                std::fs::write(context.join("changed.txt"), format!("{round} {}\n", builder.name()))?;
                builder.perform(case, context, &Wish::default())
            }
            Operation::Edits => builder.edits(case, context, round),
            Operation::PushGzip => self.push(case, context, (builder, &reference), "gzip"),
            Operation::PushZstd => self.push(case, context, (builder, &reference), "zstd"),
            Operation::Export => {
                builder.perform(case, context, &Wish::cold_export(&format!("{reference}-cache")))
            }
            Operation::Fresh => self.anew(case, context, builder, &Wish::default()),
            Operation::Import => {
                let exported = self.reference(case, builder, 0);
                self.anew(case, context, builder, &Wish::import(&exported))
            }
        }
    }

    /// On an empty state of its own.
    fn anew(&self, case: &Case, context: &Path, builder: &Builder, wish: &Wish) -> Result<Usage, Failure> {
        let fresh = builder.fresh()?;
        let usage = fresh.perform(case, context, wish)?;
        self.spent.borrow_mut().extend(fresh.spend());
        Ok(usage)
    }

    fn push(
        &self,
        case: &Case,
        context: &Path,
        (builder, reference): (&Builder, &str),
        compression: &'static str,
    ) -> Result<Usage, Failure> {
        let mark = format!("{reference} {compression}");
        builder.perform(case, context, &Wish::marked(&mark))?;
        builder.perform(case, context, &Wish::push(&mark, reference, compression))
    }

    /// A name of its own for what one builder pushes in one round: nothing is there already.
    fn reference(&self, case: &Case, builder: &Builder, round: usize) -> String {
        let nonce = std::process::id();
        format!("{}/bench/{}-{}:{nonce}-{round}", self.registry, case.name(), builder.name())
    }

    fn report(self) -> Result<(), Failure> {
        let names: Vec<&'static str> = self.builders.iter().map(Builder::name).collect();
        let versions: Vec<String> = self.builders.iter().map(Builder::version).collect();
        let facts = self.facts.describe(&versions);
        let text = format!("{facts}\n{}", self.table.markdown(&names));
        println!("{text}");
        std::fs::write(self.folder.join("results.md"), &text)?;
        std::fs::write(self.folder.join("results.json"), self.table.json(&facts))?;
        println!("written to {}/results.{{md,json}}", self.folder.display());
        Ok(())
    }
}
