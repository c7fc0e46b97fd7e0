//! Named instants between two steps of an operation, at which tests kill the process.

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
