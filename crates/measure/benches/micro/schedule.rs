//! The scheduler alone: a wide and deep graph, solved with a worker that does nothing.

use std::sync::Arc;

use stave_cache::CacheIndex;
use stave_llb::Definition;
use stave_solver::{Job, Limits, Solver};
use stave_test_support::FakeWorker;
use stave_test_support::fake_worker::FakeSession;

use stave_measure::sound;

/// Ten stages of thirty steps over one base, gathered by the last.
fn definition() -> Definition {
    use std::fmt::Write as _;

    let mut text = String::new();
    for stage in 0..10 {
        let _infallible = writeln!(text, "FROM scratch AS s{stage}");
        for step in 0..29 {
            let _infallible = writeln!(text, "COPY f{stage}-{step} /f{step}");
        }
    }
    text.push_str("FROM scratch\n");
    for stage in 0..10 {
        let _infallible = writeln!(text, "COPY --from=s{stage} / /{stage}/");
    }
    let source = stave_frontend_dockerfile::Source::new("Dockerfile", text);
    let parsed = stave_frontend_dockerfile::parse(&source);
    let planned = match stave_frontend_dockerfile::plan(&parsed.dockerfile, &stave_measure::request()) {
        Ok(planned) => planned,
        Err(error) => panic!("the graph is not sound: {:?}", error.diagnostics),
    };
    match stave_frontend_dockerfile::lower(&planned, &stave_frontend_dockerfile::ResolvedSources::default()) {
        Ok(lowered) => lowered.definition,
        Err(error) => panic!("the graph is not sound: {}", error.diagnostic),
    }
}

pub(crate) fn rounds() -> Box<dyn FnMut()> {
    let definition = definition();
    let runtime = sound(tokio::runtime::Builder::new_current_thread().enable_all().build());
    Box::new(move || {
        // Each round begins with an empty cache: everything has to be looked up, run and recorded.
        let folder = sound(tempfile::tempdir());
        let index = sound(CacheIndex::open(&folder.path().join("cache.db")));
        let session = Arc::new(FakeSession { context: "context".to_owned() });
        runtime.block_on(async {
            let solver = Solver::new(FakeWorker::new(), index, Limits::for_processors(2));
            if let Err(error) = solver.solve(&definition, &Job::new(session)).await {
                panic!("the graph is not solved: {error}");
            }
            solver.shutdown().await;
        });
    })
}
