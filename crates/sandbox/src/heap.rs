//! How much the C library's allocator keeps for later: a setting made before this process has threads, and a call that
//! gives memory back. Here since both are calls of C.

/// Allocation arenas of a process.
const ARENAS: libc::c_int = 2;

/// Keeps the allocator from making an arena for each thread, of which none ever shrinks: a daemon would hold
/// the memory of its busiest minute many times over. Two are enough for the few allocations at a time that a
/// builder makes, and a lone build takes less memory, too.
pub fn limit_arenas() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt reads two integers and changes settings of the allocator under its own lock.
    let _accepted = unsafe { libc::mallopt(libc::M_ARENA_MAX, ARENAS) };
}

/// Gives memory back that the allocator keeps and nobody uses: what many short tasks leave between what stays grows with
/// the hours. Takes milliseconds.
pub fn give_back_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim takes the allocator's own locks and touches free memory only.
    let _some = unsafe { libc::malloc_trim(0) };
}
