//! An answer of the kernel's that is as good as new for a moment: steps that begin together ask once.
//! Owns how long that is. Must not know what is asked. Read [`Recent`] first.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long an answer is as good as new.
const MOMENT: Duration = Duration::from_millis(20);

/// The last answer, and when it was given.
#[derive(Debug)]
pub(crate) struct Recent<T>(Mutex<Option<(Instant, T)>>);

impl<T: Copy> Recent<T> {
    pub(crate) const fn new() -> Self {
        Self(Mutex::new(None))
    }

    /// The last answer if it is of this moment, else a new one. Who asks meanwhile waits for it.
    pub(crate) fn or_ask(&self, ask: impl FnOnce() -> T) -> T {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, answer)) = *last
            && at.elapsed() < MOMENT
        {
            return answer;
        }
        let answer = ask();
        *last = Some((Instant::now(), answer));
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_asked_for_anew_once_it_is_old() {
        let recent = Recent::new();
        let at = |age: Duration| *recent.0.lock().expect("a lock") = Some((Instant::now() - age, 1));
        assert_eq!(recent.or_ask(|| 2), 2);
        at(MOMENT);
        assert_eq!(recent.or_ask(|| 3), 3);
        // Whatever the clock does between the two lines: an answer of the future is of this moment.
        *recent.0.lock().expect("a lock") = Some((Instant::now() + MOMENT, 4));
        assert_eq!(recent.or_ask(|| 5), 4);
    }
}
