//! Seeded random graphs, orders of completion, failures and cancels.

use super::*;

/// A small generator, so that a seed is a test case for good.
struct Dice(u64);

impl Dice {
    /// A number below `end`.
    fn roll(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % end
    }
}

fn random_graph(dice: &mut Dice) -> Vec<Vertex> {
    let mut vertices = vec![image("base"), image("other"), context()];
    for number in 0..dice.roll(12) + 1 {
        let on = vertices[dice.roll(vertices.len())].clone();
        let name = format!("v{number}");
        let mut made = match dice.roll(3) {
            0 => {
                let from = vertices[dice.roll(vertices.len())].clone();
                copy(&name, &on, &from)
            }
            _ => run(&name, &on),
        };
        made.metadata.ignore_cache = dice.roll(12) == 0;
        vertices.push(made);
    }
    vertices
}

/// Submits jobs, answers in random order and cancels some; then everything must have ended.
fn disturbed(world: &mut World, vertices: &[Vertex], dice: &mut Dice) {
    let all: Vec<&Vertex> = vertices.iter().collect();
    let mut bench = Bench::new(world);
    let jobs = dice.roll(4) as u64 + 1;
    let mut submitted = 0;
    for _ in 0..10_000 {
        match dice.roll(10) {
            0 if submitted < jobs => {
                submitted += 1;
                let target = &vertices[dice.roll(vertices.len())];
                bench.submit(submitted, dice.roll(2), &all, target);
            }
            1 if submitted > 0 && dice.roll(4) == 0 => {
                bench.step(Event::Cancel { job: JobId(dice.roll(submitted as usize) as u64 + 1) });
            }
            _ if !bench.pending.is_empty() => bench.answer(dice.roll(bench.pending.len())),
            _ if submitted == jobs => break,
            _ => {}
        }
    }
    assert_eq!(bench.finished.len() as u64, submitted, "every job ends: {:?}", bench.log);
    bench.assert_idle();
}

#[test]
fn whatever_happens_every_job_ends_and_nothing_is_left() {
    for seed in 0..1500 {
        let mut dice = Dice(seed);
        let vertices = random_graph(&mut dice);
        let mut world = World::default();
        for vertex in &vertices {
            if dice.roll(15) == 0 {
                world.failing.insert(label(vertex).to_owned());
            }
        }
        disturbed(&mut world, &vertices, &mut dice);
        // Again in the same world, as the next process would, with some results gone.
        let results: Vec<String> = world.index.values().map(|record| record.result.to_string()).collect();
        for result in results {
            if dice.roll(4) == 0 {
                world.gone.insert(result.split_once('=').expect("names hold the content").1.to_owned());
            }
        }
        disturbed(&mut world, &vertices, &mut dice);
    }
}

#[test]
fn undisturbed_each_vertex_runs_at_most_once_and_then_never() {
    for seed in 0..500 {
        let mut dice = Dice(seed);
        let mut vertices = random_graph(&mut dice);
        for vertex in &mut vertices {
            vertex.metadata.ignore_cache = false;
        }
        let all: Vec<&Vertex> = vertices.iter().collect();
        let target = &vertices[vertices.len() - 1];
        let second = &vertices[dice.roll(vertices.len())];
        let mut world = World::default();
        for round in 0..2 {
            let mut bench = Bench::new(&mut world);
            bench.submit(1, 1, &all, target);
            bench.submit(2, 1, &all, second);
            while !bench.pending.is_empty() {
                bench.answer(dice.roll(bench.pending.len()));
            }
            let mut ran: Vec<&String> = bench.log.iter().filter(|line| line.starts_with("run ")).collect();
            let count = ran.len();
            ran.sort();
            ran.dedup();
            assert_eq!(ran.len(), count, "seed {seed}: {:?}", bench.log);
            if round == 1 {
                ran.retain(|line| *line != "run context");
                let volatile: BTreeSet<String> = unrecorded(&vertices);
                assert!(ran.iter().all(|line| volatile.contains(&line[4..])), "seed {seed}: {:?}", bench.log);
            }
            assert!(bench.finished.values().all(Result::is_ok));
            bench.assert_idle();
        }
    }
}

/// Vertices that change a context itself have no key, nor have those that follow from one of them before
/// it is named; the second run is bounded by the users of a context by identity.
fn unrecorded(vertices: &[Vertex]) -> BTreeSet<String> {
    let context = &vertices[2].digest;
    let by_identity = |vertex: &&Vertex| vertex.inputs.first().is_some_and(|edge| edge.vertex == *context);
    let mut names: BTreeSet<String> =
        vertices.iter().filter(by_identity).map(|vertex| label(vertex).to_owned()).collect();
    let mut digests: BTreeSet<&Digest> =
        vertices.iter().filter(by_identity).map(|vertex| &vertex.digest).collect();
    for vertex in vertices {
        if vertex.inputs.iter().any(|edge| digests.contains(&edge.vertex)) {
            names.insert(label(vertex).to_owned());
            digests.insert(&vertex.digest);
        }
    }
    names
}
