//! Named instants between two steps of an operation, at which tests kill the process, and named changes of the disk,
//! each of which tests have the disk refuse.

#[cfg(test)]
pub(crate) use injected::{fired, refuse_nth, refused};

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

/// Something on the disk is about to change. Never refused outside tests.
#[cfg(not(test))]
#[expect(clippy::unnecessary_wraps, reason = "what tests put in its place can fail")]
pub(crate) fn refused<E: From<rustix::io::Errno>>(_point: &'static str) -> Result<(), E> {
    Ok(())
}

/// A disk that refuses.
#[cfg(test)]
mod injected {
    use std::cell::Cell;

    use rustix::io::Errno;

    thread_local! {
        /// How many changes of this thread are still allowed, and how the next one fails.
        static PLAN: Cell<Option<(usize, Errno)>> = const { Cell::new(None) };
        static FIRED: Cell<Option<&'static str>> = const { Cell::new(None) };
    }

    /// Something on the disk is about to change: does a test want it refused? Once, and by this thread alone.
    pub(crate) fn refused<E: From<Errno>>(point: &'static str) -> Result<(), E> {
        let Some((allowed, error)) = PLAN.get() else { return Ok(()) };
        if let Some(left) = allowed.checked_sub(1) {
            PLAN.set(Some((left, error)));
            return Ok(());
        }
        PLAN.set(None);
        FIRED.set(Some(point));
        Err(error.into())
    }

    /// Allows so many changes on this thread and has the next one refused.
    pub(crate) fn refuse_nth(allowed: usize, error: Errno) {
        FIRED.set(None);
        PLAN.set(Some((allowed, error)));
    }

    /// Calls that off, and tells what was refused.
    pub(crate) fn fired() -> Option<&'static str> {
        PLAN.set(None);
        FIRED.take()
    }
}
