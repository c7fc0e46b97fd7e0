//! How much an engine holds in memory, for whoever watches a process that lives long. Start with [`Engine::holdings`].

use stave_cache::POOL_LIMIT;

use crate::Engine;

/// How many there are of something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holding {
    /// What it is, as `crate.things`.
    pub name: &'static str,
    /// How many there are.
    pub count: usize,
    /// How many there can be of what is remembered for later; `None` for what is there only while somebody needs it.
    pub most: Option<usize>,
}

impl Holding {
    /// What is there only while somebody needs it.
    #[must_use]
    pub fn in_use(name: &'static str, count: usize) -> Self {
        Self { name, count, most: None }
    }

    /// What is remembered, up to a bound.
    #[must_use]
    pub fn remembered(name: &'static str, (count, most): (usize, usize)) -> Self {
        Self { name, count, most: Some(most) }
    }
}

impl Engine {
    /// Gives memory back that nothing uses any more. Blocks the thread for milliseconds.
    pub fn give_back_memory(&self) {
        self.solvers.close_idle();
        stave_sandbox::give_back_memory();
    }

    /// All that grows and shrinks with the builds it runs.
    pub async fn holdings(&self) -> Vec<Holding> {
        let (solvers, load) = self.solvers.load().await;
        let worker = self.worker.holdings();
        let (running, waiting) = self.operations();
        vec![
            Holding::in_use("engine.solvers", solvers),
            Holding::in_use("solver.jobs", load.jobs),
            Holding::in_use("solver.vertices", load.vertices),
            Holding::in_use("solver.tasks", load.tasks),
            Holding::in_use("solver.keys", load.keys),
            Holding::in_use("solver.permits", running.iter().sum::<usize>() + waiting),
            Holding::in_use("worker.views", worker.views),
            Holding::in_use("worker.wishes", worker.wishes),
            Holding::in_use("worker.groups", worker.groups),
            Holding::in_use("worker.admitted", worker.admitted),
            Holding::remembered("worker.failed_steps", worker.leftovers),
            Holding::remembered("worker.digests", worker.digests),
            Holding::in_use("store.leases", self.store.lease_count()),
            Holding::in_use("store.digesting", self.store.digesting_count()),
            Holding::remembered("cache.connections", (self.solvers.idle_connections(), POOL_LIMIT)),
            Holding::remembered("registry.hosts", self.registry.known_hosts()),
        ]
    }
}
