//! The solver with real tasks, a real index and a scripted worker.

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use stave_cache::{CacheIndex, KeyKind, NewRecord, ResultId};
use stave_llb::builder::{About, ExecSpec, FileSpec, FileStep, GraphBuilder, MountSpec, Output};
use stave_llb::{ContentCache, CopyAction, Definition, ExecOp, FileActionKind, Mount, SourceOp};
use stave_oci::{Digest, Platform};
use stave_solver::{
    EventReceiver, Job, LOG_BUFFER_LIMIT, Limits, OpErrorKind, SolveError, SolveEvent, Solver, event_channel,
};
use stave_test_support::FakeWorker;
use stave_test_support::fake_worker::{FakeError, FakeSession, Gate};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

/// A state directory and a worker that outlive solvers, as they outlive processes.
struct Bench {
    _directory: TempDir,
    path: PathBuf,
    worker: Arc<FakeWorker>,
}

impl Bench {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("cache.db");
        Self { _directory: directory, path, worker: FakeWorker::new() }
    }

    fn solver(&self) -> Solver<FakeWorker> {
        let index = CacheIndex::open(&self.path).expect("the index opens");
        Solver::new(Arc::clone(&self.worker), index, Limits::for_processors(2))
    }

    /// Solves in a fresh solver and returns what the output holds and what ran.
    async fn solve(&self, definition: &Definition, session: &Arc<FakeSession>) -> (String, Vec<String>) {
        let solver = self.solver();
        let outputs = solver.solve(definition, &Job::new(Arc::clone(session))).await.expect("solves");
        solver.shutdown().await;
        (outputs[0].content.clone(), self.worker.take_runs())
    }
}

/// Runs a test with a limit that only a deadlock reaches.
fn run<F: Future<Output = ()>>(test: F) {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(async { tokio::time::timeout(Duration::from_secs(60), test).await })
        .expect("no deadlock");
}

/// Lets tasks run until `condition` holds; the limit of [`run`] ends what never does.
async fn until(condition: impl Fn() -> bool) {
    while !condition() {
        tokio::task::yield_now().await;
    }
}

fn session(context: &str) -> Arc<FakeSession> {
    Arc::new(FakeSession { context: context.to_owned() })
}

fn platform() -> Platform {
    Platform::new("linux", "amd64", None)
}

fn image(graph: &mut GraphBuilder, name: &str) -> Output {
    let raw = format!("docker-image://docker.io/library/{name}@{}", Digest::sha256(name.as_bytes()));
    graph.source(SourceOp::new(raw, Default::default()), &platform(), About::named(name))
}

fn context(graph: &mut GraphBuilder) -> Output {
    graph.source(SourceOp::new("local://context", Default::default()), &platform(), About::named("context"))
}

fn exec(graph: &mut GraphBuilder, name: &str, on: Output) -> Output {
    let root = Mount::Bind {
        target: "/".into(),
        input: None,
        selector: String::new(),
        readonly: false,
        output: None,
        content_cache: ContentCache::Default,
    };
    let op = ExecOp { args: vec![name.into()], cwd: "/".into(), ..ExecOp::default() };
    let mounts = vec![MountSpec { mount: root, source: Some(on), no_output: false }];
    graph.exec(ExecSpec { op, mounts, platform: platform(), about: About::named(name) })
}

fn copy(graph: &mut GraphBuilder, name: &str, on: Output, from: Output) -> Output {
    let action = CopyAction { src: "/".into(), dest: "/".into(), ..CopyAction::default() };
    let step = FileStep { kind: FileActionKind::Copy(action), source: Some(from) };
    graph.file(FileSpec { base: Some(on), actions: vec![step], about: About::named(name) })
}

fn chain(length: usize) -> Definition {
    let mut graph = GraphBuilder::default();
    let mut last = image(&mut graph, "base");
    for number in 1..=length {
        last = exec(&mut graph, &format!("step {number}"), last);
    }
    graph.finish(Some(last))
}

/// Two steps on one base each, copied together.
fn fork() -> Definition {
    let mut graph = GraphBuilder::default();
    let (left, right) = (image(&mut graph, "left base"), image(&mut graph, "right base"));
    let (left, right) = (exec(&mut graph, "left", left), exec(&mut graph, "right", right));
    let both = copy(&mut graph, "both", left, right);
    graph.finish(Some(both))
}

fn drain(receiver: &mut EventReceiver) -> Vec<SolveEvent> {
    std::iter::from_fn(|| receiver.try_recv()).collect()
}

#[test]
fn a_fully_cached_chain_touches_only_its_end_and_says_cached_for_each_step() {
    run(async {
        const STEPS: usize = 60;
        let bench = Bench::new();
        let definition = chain(STEPS);
        let (_, ran) = bench.solve(&definition, &session("")).await;
        assert_eq!(ran.len(), STEPS + 1);
        let (sender, mut receiver) = event_channel();
        let solver = bench.solver();
        let job = Job::new(session("")).with_events(sender);
        let start = Instant::now();
        let outputs = solver.solve(&definition, &job).await.expect("solves");
        let took = start.elapsed();
        assert_eq!(bench.worker.take_runs(), [""; 0]);
        assert_eq!(bench.worker.take_loads().len(), 1);
        let told: Vec<Digest> = drain(&mut receiver)
            .into_iter()
            .map(|event| match event {
                SolveEvent::Cached { vertex, .. } => vertex,
                other => panic!("{other:?}"),
            })
            .collect();
        let all: Vec<Digest> = definition.vertices().iter().map(|vertex| vertex.digest.clone()).collect();
        assert_eq!(told, all, "inputs first, each once");
        // A few milliseconds optimised; this only catches work that grows out of hand.
        assert!(took < Duration::from_millis(500), "{took:?}");
        eprintln!("fully cached chain of {STEPS} steps: {took:?}");
        drop(outputs);
        solver.shutdown().await;
        assert_eq!(bench.worker.live_results(), 0);
    });
}

#[test]
fn a_copied_context_in_the_middle_hits_all_the_way() {
    run(async {
        let bench = Bench::new();
        let mut graph = GraphBuilder::default();
        let base = image(&mut graph, "base");
        let install = exec(&mut graph, "install", base);
        let files = context(&mut graph);
        let copied = copy(&mut graph, "copy", install, files);
        let make = exec(&mut graph, "make", copied);
        let test = exec(&mut graph, "test", make);
        let definition = graph.finish(Some(test));
        let (content, ran) = bench.solve(&definition, &session("one")).await;
        assert_eq!((content.as_str(), ran.len()), ("test(make(copy(install(base()) one)))", 6));
        let (content, ran) = bench.solve(&definition, &session("one")).await;
        assert_eq!(
            (content.as_str(), ran),
            ("test(make(copy(install(base()) one)))", vec!["context".to_owned()])
        );
        let (content, ran) = bench.solve(&definition, &session("two")).await;
        assert_eq!(content, "test(make(copy(install(base()) two)))");
        assert_eq!(ran, ["context", "copy", "make", "test"]);
        bench.worker.loses("test(make(copy(install(base()) one)))");
        let (_, ran) = bench.solve(&definition, &session("one")).await;
        assert_eq!(ran, ["context", "test"], "only what is gone is made again");
    });
}

#[test]
fn solvers_of_one_index_run_what_is_equal_once_and_do_not_wait_for_who_gave_up() {
    run(async {
        let bench = Bench::new();
        let (one, two) = (bench.solver(), bench.solver());
        let definition = chain(3);
        let gate = bench.worker.hold("step 2");
        let (sender, mut receiver) = event_channel();
        let (first, second) = (Job::new(session("")), Job::new(session("")).with_events(sender));
        let both = async { tokio::join!(one.solve(&definition, &first), two.solve(&definition, &second)) };
        let open = async {
            until(|| bench.worker.running().iter().any(|name| name == "step 2")).await;
            gate.open();
        };
        let ((a, b), ()) = tokio::join!(both, open);
        assert_eq!(a.expect("solves")[0].content, b.expect("solves")[0].content);
        let ran = bench.worker.take_runs();
        assert_eq!(ran.len(), 4, "each once: {ran:?}");
        drop(second);
        let events = drain(&mut receiver);
        let cached = events.iter().filter(|event| matches!(event, SolveEvent::Cached { .. })).count();
        let own = events.iter().filter(|event| matches!(event, SolveEvent::Completed { .. })).count();
        assert_eq!(cached + own, 4, "every step ends once: {events:?}");

        // Whoever has the step gives up: the other one runs it.
        let longer = chain(4);
        let gate = bench.worker.hold("step 4");
        let cancel = CancellationToken::new();
        let (first, second) = (Job::new(session("")).with_cancel(cancel.clone()), Job::new(session("")));
        let held = || bench.worker.running().iter().any(|name| name == "step 4");
        let holder = async {
            let outcome = one.solve(&longer, &first).await;
            assert!(matches!(outcome, Err(SolveError::Cancelled)), "{outcome:?}");
            until(held).await;
            gate.open();
        };
        let waiter = async {
            until(held).await;
            let give_up = async { cancel.cancel() };
            let (outcome, ()) = tokio::join!(two.solve(&longer, &second), give_up);
            outcome.expect("solves");
        };
        tokio::join!(holder, waiter);
        one.shutdown().await;
        two.shutdown().await;
    });
}

/// A copy of what another step made, and a step on that.
fn copied(from: &str) -> Definition {
    let mut graph = GraphBuilder::default();
    let base = image(&mut graph, "base");
    let from = exec(&mut graph, from, base);
    let copied = copy(&mut graph, "copy", base, from);
    let top = exec(&mut graph, "top", copied);
    graph.finish(Some(top))
}

#[test]
fn what_another_build_made_stays_claimed_until_it_is_found_under_all_keys() {
    run(async {
        // The keys of the copy, from an index that knows what it stands on and not the copy.
        let bench = Bench::new();
        bench.solve(&chain(1), &session("")).await;
        let apart = bench.path.with_file_name("apart.db");
        for suffix in ["", "-wal"] {
            let name = |path: &PathBuf| format!("{}{suffix}", path.display());
            std::fs::copy(name(&bench.path), name(&apart)).expect("copies");
        }
        let definition = copied("step 1");
        let (sender, mut receiver) = event_channel();
        let index = CacheIndex::open(&apart).expect("the index opens");
        let solver = Solver::new(Arc::clone(&bench.worker), index, Limits::for_processors(2));
        let told = Job::new(session("")).with_events(sender);
        solver.solve(&definition, &told).await.expect("solves");
        solver.shutdown().await;
        drop(told);
        let missed = drain(&mut receiver).into_iter().find_map(|event| match event {
            SolveEvent::Missed { miss, .. } => Some(miss.entries.clone()),
            _ => None,
        });
        let entries = missed.expect("the copy ran");
        let content = entries.iter().find(|entry| entry.preimage.kind == KeyKind::Content).expect("a key");
        bench.worker.take_runs();

        // Somebody else makes the same content otherwise while the build waits for its turn.
        let index = CacheIndex::open(&bench.path).expect("the index opens");
        let claim = index.claim(&content.key).expect("claims").expect("is free");
        let gate = bench.worker.hold("top");
        let (sender, mut receiver) = event_channel();
        let (solver, job) = (bench.solver(), Job::new(session("")).with_events(sender));
        let building = async { solver.solve(&definition, &job).await.expect("solves") };
        let others = async {
            while !matches!(receiver.recv().await.expect("an event"), SolveEvent::Progress { .. }) {}
            let record = NewRecord {
                result: ResultId::new("77=theirs").expect("short"),
                vertex: "theirs".to_owned(),
                vertex_name: "theirs".to_owned(),
                created_at: SystemTime::now(),
                duration: Duration::ZERO,
            };
            index.insert(std::slice::from_ref(content), &record).expect("records");
            // Nothing can be recorded for a while.
            let writer = rusqlite::Connection::open(&bench.path).expect("opens");
            writer.execute_batch("BEGIN IMMEDIATE").expect("locks");
            drop(claim);
            until(|| bench.worker.running().iter().any(|name| name == "top")).await;
            for entry in &entries {
                let (found, claim) = (index.lookup(&entry.key), index.claim(&entry.key));
                let is_free = claim.expect("an answer").is_some();
                assert!(found.expect("an answer").is_some() || !is_free, "{:?}", entry.preimage.kind);
            }
            writer.execute_batch("ROLLBACK").expect("unlocks");
            gate.open();
        };
        let (outputs, ()) = tokio::join!(building, others);
        assert_eq!(outputs[0].content, "top(theirs)");
        assert_eq!(bench.worker.take_runs(), ["top"]);
        for entry in &entries {
            assert!(index.lookup(&entry.key).expect("an answer").is_some());
        }
        solver.shutdown().await;
    });
}

#[test]
fn concurrent_solves_share_runs_and_independent_steps_run_at_once() {
    run(async {
        let bench = Bench::new();
        let solver = bench.solver();
        let definition = fork();
        let gates = ["left", "right"].map(|name| bench.worker.hold(name));
        let (one, two) = (Job::new(session("")), Job::new(session("")));
        let both = async { tokio::join!(solver.solve(&definition, &one), solver.solve(&definition, &two)) };
        let open = async {
            until(|| bench.worker.running().len() == 2).await;
            gates.into_iter().for_each(Gate::open);
        };
        let ((one, two), ()) = tokio::join!(both, open);
        assert_eq!(one.expect("solves")[0].id, two.expect("solves")[0].id);
        assert_eq!(bench.worker.take_runs().len(), 5);
        solver.shutdown().await;
        assert_eq!(bench.worker.live_results(), 0);
    });
}

#[test]
fn no_more_processes_run_at_once_than_allowed() {
    run(async {
        let bench = Bench::new();
        let mut graph = GraphBuilder::default();
        let base = image(&mut graph, "base");
        let mut all = base;
        for number in 0..12 {
            let step = exec(&mut graph, &format!("step {number}"), base);
            bench.worker.logs(&format!("step {number}"), 256 << 10);
            all = copy(&mut graph, &format!("copy {number}"), all, step);
        }
        let definition = graph.finish(Some(all));
        bench.solve(&definition, &session("")).await;
        // Two processes, and one chain of copies beside them.
        assert!(bench.worker.most_running() <= 3, "{}", bench.worker.most_running());
    });
}

#[test]
fn a_failure_names_its_vertex_and_stops_the_rest() {
    run(async {
        let bench = Bench::new();
        let solver = bench.solver();
        let definition = fork();
        bench.worker.fails("left");
        let _gate = bench.worker.hold("right");
        let (sender, mut receiver) = event_channel();
        let job = Job::new(session("")).with_events(sender);
        let error = solver.solve(&definition, &job).await.expect_err("`left` fails");
        assert_eq!(error.to_string(), "failed to solve `left`");
        let op = error.op().expect("an operation failed");
        assert_eq!((op.kind(), op.to_string().as_str()), (&OpErrorKind::Input, "`left` was told to fail"));
        assert!(op.downcast_ref::<FakeError>().is_some());
        assert!(bench.worker.running().is_empty(), "a solve ends when nothing of it runs any more");
        let events = drain(&mut receiver);
        let started = events.iter().filter(|event| matches!(event, SolveEvent::Started { .. })).count();
        let ended = events
            .iter()
            .filter(|event| {
                matches!(
                    event,
                    SolveEvent::Completed { .. } | SolveEvent::Failed { .. } | SolveEvent::Cancelled { .. }
                )
            })
            .count();
        assert_eq!(started, ended, "{events:?}");
        solver.shutdown().await;
        assert_eq!(bench.worker.live_results(), 0);
    });
}

#[test]
fn a_panic_of_the_worker_fails_its_vertex_only() {
    run(async {
        let bench = Bench::new();
        let solver = bench.solver();
        bench.worker.panics("step 1");
        let error = solver.solve(&chain(2), &Job::new(session(""))).await.expect_err("it panics");
        let op = error.op().expect("an operation failed");
        assert_eq!(op.kind(), &OpErrorKind::Internal);
        assert_eq!(op.to_string(), "the operation panicked: `step 1` was told to panic");
        let fine = solver.solve(&fork(), &Job::new(session(""))).await;
        assert!(fine.is_ok(), "the solver goes on");
        solver.shutdown().await;
    });
}

#[test]
fn a_cancelled_job_ends_when_its_tasks_have() {
    run(async {
        let bench = Bench::new();
        let solver = bench.solver();
        let _gate = bench.worker.hold("step 1");
        let cancel = CancellationToken::new();
        let job = Job::new(session("")).with_cancel(cancel.clone());
        let definition = chain(2);
        let stop = async {
            until(|| bench.worker.running().contains("step 1")).await;
            cancel.cancel();
        };
        let (outcome, ()) = tokio::join!(solver.solve(&definition, &job), stop);
        assert!(matches!(outcome, Err(SolveError::Cancelled)));
        assert!(bench.worker.running().is_empty());
        solver.shutdown().await;
        assert_eq!(bench.worker.live_results(), 0);
    });
}

#[test]
fn dropping_a_solve_or_the_solver_stops_what_runs() {
    run(async {
        let bench = Bench::new();
        let solver = bench.solver();
        let _gate = bench.worker.hold("step 1");
        let definition = chain(2);
        let job = Job::new(session(""));
        tokio::select! {
            _ = solver.solve(&definition, &job) => panic!("it is held"),
            () = until(|| bench.worker.running().contains("step 1")) => {}
        }
        until(|| bench.worker.running().is_empty() && bench.worker.live_results() == 0).await;
        tokio::select! {
            _ = solver.solve(&definition, &job) => panic!("it is held"),
            () = until(|| bench.worker.running().contains("step 1")) => {}
        }
        solver.shutdown().await;
        assert!(bench.worker.running().is_empty() && bench.worker.live_results() == 0);
    });
}

#[test]
fn a_reader_that_never_reads_delays_but_does_not_stop_a_build() {
    run(async {
        const BYTES: usize = 2 * LOG_BUFFER_LIMIT;
        let bench = Bench::new();
        bench.worker.logs("step 1", BYTES);
        let solver = bench.solver();
        let (sender, mut receiver) = event_channel();
        let job = Job::new(session("")).with_events(sender);
        solver.solve(&chain(1), &job).await.expect("solves");
        drop(job);
        let (mut kept, mut dropped, mut completed) = (0, 0, 0);
        while let Some(event) = receiver.recv().await {
            match event {
                SolveEvent::Log { bytes, .. } => kept += bytes.len(),
                SolveEvent::LogDropped { bytes, .. } => dropped += usize::try_from(bytes).expect("small"),
                SolveEvent::Completed { .. } => completed += 1,
                _ => {}
            }
        }
        assert!(kept <= LOG_BUFFER_LIMIT && dropped > 0, "{kept} kept, {dropped} dropped");
        assert_eq!((kept + dropped, completed), (BYTES, 2));
        solver.shutdown().await;
    });
}

#[test]
fn a_reader_that_went_away_changes_nothing() {
    run(async {
        let bench = Bench::new();
        bench.worker.logs("step 1", 2 * LOG_BUFFER_LIMIT);
        let solver = bench.solver();
        let (sender, receiver) = event_channel();
        drop(receiver);
        let job = Job::new(session("")).with_events(sender);
        assert!(solver.solve(&chain(1), &job).await.is_ok());
        solver.shutdown().await;
    });
}
