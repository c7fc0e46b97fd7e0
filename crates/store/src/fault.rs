//! Named instants between two steps of an operation, at which tests kill the process, and named writes, which
//! tests have the disk refuse.

use std::io;

/// Marks an instant. Does nothing outside tests.
#[cfg(not(test))]
pub(crate) fn reach(_point: &str) {}

/// Marks an instant: a test child that asked for it dies here as by `kill -9`.
#[cfg(test)]
pub(crate) fn reach(point: &str) {
    if std::env::var_os("STORE_KILL_AT").is_some_and(|wanted| wanted == point) {
        let this = rustix::process::getpid();
        rustix::process::kill_process(this, rustix::process::Signal::KILL)
            .expect("a process may kill itself");
        loop {
            std::thread::park();
        }
    }
}

/// The writes that can be refused.
#[cfg(test)]
pub(crate) const POINTS: [&str; 7] = [
    "layer-prepare",
    "layer-rename",
    "journal-open",
    "journal-write",
    "blob-create",
    "blob-write",
    "blob-rename",
];

/// A write is about to happen. Never refused outside tests.
#[cfg(not(test))]
pub(crate) fn refused(_point: &str) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
thread_local! {
    static REFUSE: std::cell::Cell<Option<(&'static str, rustix::io::Errno)>> = const { std::cell::Cell::new(None) };
}

/// A write is about to happen: does a test want it refused? Once, and by this thread alone.
#[cfg(test)]
pub(crate) fn refused(point: &str) -> io::Result<()> {
    match REFUSE.get() {
        Some((wanted, error)) if wanted == point => {
            REFUSE.set(None);
            Err(error.into())
        }
        _ => Ok(()),
    }
}

/// Has the next write of this name on this thread refused.
#[cfg(test)]
pub(crate) fn fail_at(point: &'static str, error: rustix::io::Errno) {
    REFUSE.set(Some((point, error)));
}

/// Calls that off. It must have happened: a write that never comes tests nothing.
#[cfg(test)]
pub(crate) fn fail_nowhere() {
    assert!(REFUSE.get().is_none(), "nothing was refused");
}
