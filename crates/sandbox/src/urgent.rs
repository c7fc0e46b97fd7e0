//! A thread that runs before all others when it has something to do.
//!
//! For one that has to act within a millisecond on a machine whose processors are all taken, and then for some
//! microseconds only. Read [`Urgent`] first.

use crate::sys;

/// The calling thread's urgency; on drop it is as any other. Must be dropped by the thread that began it.
#[derive(Debug)]
pub struct Urgent(std::marker::PhantomData<*const ()>);

impl Urgent {
    /// Makes this thread urgent; `None` where it may not be, which takes `CAP_SYS_NICE`.
    #[must_use]
    pub fn begin() -> Option<Self> {
        sys::set_urgent(true).ok().map(|()| Self(std::marker::PhantomData))
    }
}

impl Drop for Urgent {
    fn drop(&mut self) {
        // It was allowed to change this, and going back always is.
        let _unchanged = sys::set_urgent(false);
    }
}
