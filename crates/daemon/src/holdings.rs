//! What the daemon holds in memory: everything that grows with builds and has to shrink with their end.
//!
//! A map that is not told here can grow unseen, so whoever adds one adds a line. Start with [`dump`].

use serde_json::{Map, Value, json};
use stave_engine::Holding;

use crate::state::Shared;

/// All of it: what is in use, which is as before once the builds are over, and what is remembered up to a bound.
pub(crate) async fn dump(shared: &Shared) -> Value {
    let mut all = vec![Holding::in_use("daemon.sessions", shared.sessions.count())];
    all.extend(shared.builds.holdings());
    all.extend(shared.history.holdings());
    all.push(Holding::remembered("daemon.tenants", shared.slots.count()));
    all.push(Holding::remembered("daemon.metrics", shared.metrics.lines()));
    all.extend(shared.engine.holdings().await);
    let runtime = tokio::runtime::Handle::current().metrics();
    all.push(Holding::in_use("runtime.tasks", runtime.num_alive_tasks()));
    let (mut in_use, mut remembered) = (Map::new(), Map::new());
    for Holding { name, count, most } in all {
        match most {
            None => in_use.insert(name.to_owned(), count.into()),
            Some(most) => remembered.insert(name.to_owned(), json!({ "count": count, "most": most })),
        };
    }
    let entries = |path: &str| std::fs::read_dir(path).map_or(0, Iterator::count);
    json!({
        "in_use": in_use,
        "remembered": remembered,
        "process": {
            "resident_bytes": crate::metrics::resident(),
            "threads": entries("/proc/self/task"),
            "descriptors": entries("/proc/self/fd"),
        },
    })
}
