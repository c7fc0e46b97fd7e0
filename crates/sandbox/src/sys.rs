//! The kernel calls that rustix has no safe form of, each wrapped in one small function.
//!
//! Owns every `unsafe` block that talks to the kernel; holds no policy. Read [`clone_into_pid_namespace`] first.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::time::Duration;

use crate::capability::CapabilitySet;
use crate::sandbox::{Exit, ExitStatus, Usage};
use crate::seccomp::{Filter, Instruction};

const MOUNT_ATTR_RDONLY: u64 = 0x1;
const MOUNT_ATTR_NOSUID: u64 = 0x2;
const MOUNT_ATTR_NODEV: u64 = 0x4;
const CAPABILITY_VERSION_3: u32 = 0x2008_0522;
/// `SCHED_RESET_ON_FORK`.
const RESET_ON_FORK: libc::c_int = 0x4000_0000;
const SECCOMP_SET_MODE_FILTER: libc::c_long = 1;

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Which side of a clone this is.
pub(crate) enum Cloned {
    /// The caller, with a handle of the child.
    Parent(OwnedFd),
    /// The child.
    Child,
}

/// Forks; the child is the first process of a new pid namespace, and in this control group of the unified hierarchy.
pub(crate) fn clone_into_pid_namespace(group: Option<BorrowedFd<'_>>) -> io::Result<Cloned> {
    clone_process(libc::CLONE_NEWPID, group)
}

/// Forks; the child stays when its parent ends. The caller has one thread.
pub(crate) fn fork_lasting() -> io::Result<Cloned> {
    clone_process(0, None)
}

/// Forks; the child is killed when its parent ends. The caller has one thread.
pub(crate) fn fork() -> io::Result<Cloned> {
    let cloned = clone_process(0, None)?;
    if matches!(cloned, Cloned::Child) {
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    }
    Ok(cloned)
}

fn clone_process(flags: libc::c_int, group: Option<BorrowedFd<'_>>) -> io::Result<Cloned> {
    const INTO_CGROUP: u64 = 1 << 33;
    let mut pidfd: RawFd = -1;
    let flags = (libc::CLONE_PIDFD | flags) as u64;
    // SAFETY: all zeroes is a valid value of this structure of integers.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = flags;
    if let Some(group) = group {
        arguments.flags |= INTO_CGROUP;
        arguments.cgroup = group.as_raw_fd() as u64;
    }
    arguments.pidfd = ptr::from_mut(&mut pidfd) as u64;
    arguments.exit_signal = libc::SIGCHLD as u64;
    // SAFETY: without CLONE_VM the child runs on a copy of this memory; only single-threaded processes call this,
    // so no lock can be held by a thread the child lacks. The structure outlives the call.
    let pid =
        check(unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of_val(&arguments)) });
    let pid = match pid {
        // Containers' filters refuse clone3, whose flags they cannot see, so that callers try again with clone.
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) && group.is_none() => {
            let flags = flags | libc::SIGCHLD as u64;
            let stack: *const libc::c_void = ptr::null();
            // SAFETY: as above; with CLONE_PIDFD the third argument is where the descriptor goes.
            check(unsafe { libc::syscall(libc::SYS_clone, flags, stack, &raw mut pidfd, 0, 0) })?
        }
        other => other?,
    };
    if pid == 0 {
        return Ok(Cloned::Child);
    }
    // SAFETY: the kernel has just stored a new descriptor there, which nobody else owns.
    Ok(Cloned::Parent(unsafe { OwnedFd::from_raw_fd(pidfd) }))
}

/// Reaps the process of `pidfd` if it has ended.
pub(crate) fn reap(pidfd: BorrowedFd<'_>) -> io::Result<Option<Exit>> {
    // SAFETY: both are plain C structures for which all zeroes is a valid value.
    let (mut info, mut usage) =
        unsafe { (std::mem::zeroed::<libc::siginfo_t>(), std::mem::zeroed::<libc::rusage>()) };
    // SAFETY: the pointers are to live structures of the types the call fills in.
    check(unsafe {
        libc::syscall(
            libc::SYS_waitid,
            libc::P_PIDFD,
            pidfd.as_raw_fd(),
            &raw mut info,
            libc::WEXITED | libc::WNOHANG,
            &raw mut usage,
        )
    })?;
    // SAFETY: waitid filled the fields of a child's state change, or left them zero.
    let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
    if pid == 0 {
        return Ok(None);
    }
    let status = if info.si_code == libc::CLD_EXITED {
        ExitStatus::Exited((status & 0xff) as u8)
    } else {
        ExitStatus::Signaled(status)
    };
    let time = |value: libc::timeval| Duration::new(value.tv_sec as u64, value.tv_usec as u32 * 1000);
    let usage = Usage {
        user_time: time(usage.ru_utime),
        system_time: time(usage.ru_stime),
        max_rss: usage.ru_maxrss as u64 * 1024,
    };
    Ok(Some(Exit { status, usage }))
}

/// Waits for the end of the process of `pidfd` and reaps it.
pub(crate) fn reap_killed(pidfd: BorrowedFd<'_>) -> io::Result<Exit> {
    loop {
        wait_readable(pidfd)?;
        if let Some(exit) = reap(pidfd)? {
            return Ok(exit);
        }
    }
}

/// Properties to give to mounts.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct MountFlags {
    pub(crate) readonly: bool,
    pub(crate) nosuid: bool,
    pub(crate) nodev: bool,
}

/// Adds properties to the mount of `mount`, and with `recursive` to every one below it.
pub(crate) fn restrict_mount(mount: BorrowedFd<'_>, flags: MountFlags, recursive: bool) -> io::Result<()> {
    let bit = |on: bool, bit: u64| if on { bit } else { 0 };
    let set = bit(flags.readonly, MOUNT_ATTR_RDONLY)
        | bit(flags.nosuid, MOUNT_ATTR_NOSUID)
        | bit(flags.nodev, MOUNT_ATTR_NODEV);
    if set == 0 {
        return Ok(());
    }
    let attributes = libc::mount_attr { attr_set: set, attr_clr: 0, propagation: 0, userns_fd: 0 };
    let at_flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: an empty C string and a live structure of the size passed along.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            at_flags,
            &raw const attributes,
            size_of_val(&attributes),
        )
    })?;
    Ok(())
}

#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CapabilityData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// The permitted set of this thread.
pub(crate) fn permitted_capabilities() -> io::Result<CapabilitySet> {
    let header = CapabilityHeader { version: CAPABILITY_VERSION_3, pid: 0 };
    let mut data = [CapabilityData::default(); 2];
    // SAFETY: version 3 reads one header and fills two data records; both are live.
    check(unsafe { libc::syscall(libc::SYS_capget, &raw const header, data.as_mut_ptr()) })?;
    Ok(CapabilitySet::from_bits(u64::from(data[0].permitted) | u64::from(data[1].permitted) << 32))
}

/// Makes `set` the permitted and effective set, and empties the inheritable one (and so the ambient one).
pub(crate) fn set_capabilities(set: CapabilitySet) -> io::Result<()> {
    let header = CapabilityHeader { version: CAPABILITY_VERSION_3, pid: 0 };
    let half = |bits: u64| CapabilityData { effective: bits as u32, permitted: bits as u32, inheritable: 0 };
    let data = [half(set.bits()), half(set.bits() >> 32)];
    // SAFETY: version 3 reads one header and two data records; both are live.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) })?;
    Ok(())
}

/// The bounding set of this thread.
pub(crate) fn bounding_set() -> CapabilitySet {
    let mut bits = 0;
    for number in 0..64 {
        // SAFETY: takes and returns integers only; numbers past the kernel's last capability yield an error.
        let present = unsafe { libc::prctl(libc::PR_CAPBSET_READ, number as libc::c_ulong, 0, 0, 0) };
        bits |= u64::from(present == 1) << number;
    }
    CapabilitySet::from_bits(bits)
}

/// Drops the capabilities of `bounding`, the present bounding set, that are not in `keep`.
pub(crate) fn limit_bounding_set(bounding: CapabilitySet, keep: CapabilitySet) -> io::Result<()> {
    let dropped = bounding.bits() & !keep.bits();
    for number in (0..64).filter(|number| dropped & 1 << number != 0) {
        // SAFETY: takes integers only.
        check(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, number as libc::c_ulong, 0, 0, 0) }.into())?;
    }
    Ok(())
}

#[repr(C)]
struct FilterProgram {
    length: u16,
    instructions: *const Instruction,
}

/// Installs the filter for this thread and what it executes.
pub(crate) fn install_filter(filter: &Filter) -> io::Result<()> {
    let instructions = filter.program();
    let length = u16::try_from(instructions.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let program = FilterProgram { length, instructions: instructions.as_ptr() };
    // SAFETY: the program is laid out as `struct sock_fprog` and lives through the call, which copies it.
    check(unsafe { libc::syscall(libc::SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &raw const program) })?;
    Ok(())
}

/// Installs a filter some of whose calls are answered through the returned descriptor.
pub(crate) fn install_pretence(instructions: &[Instruction]) -> io::Result<OwnedFd> {
    const NEW_LISTENER: libc::c_ulong = 1 << 3;
    /// A signal that does not kill no longer interrupts a call once it is being answered; kernels from 5.19.
    const WAIT_KILLABLE: libc::c_ulong = 1 << 5;
    let length = u16::try_from(instructions.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let program = FilterProgram { length, instructions: instructions.as_ptr() };
    let install = |flags: libc::c_ulong| {
        // SAFETY: the program is laid out as `struct sock_fprog` and lives through the call, which copies it.
        check(unsafe { libc::syscall(libc::SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &raw const program) })
    };
    let listener = install(NEW_LISTENER | WAIT_KILLABLE).or_else(|_| install(NEW_LISTENER))?;
    // SAFETY: the kernel has just made this descriptor, which nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(listener as RawFd) })
}

/// A call that waits for an answer.
pub(crate) struct Notification {
    pub(crate) id: u64,
    /// Number of the thread, in the reader's pid namespace.
    pub(crate) process: u32,
    pub(crate) number: i32,
    /// Of the program that calls, as `AUDIT_ARCH_*`.
    pub(crate) architecture: u32,
    pub(crate) arguments: [u64; 6],
}

const NOTIFICATION_RECEIVE: libc::c_ulong = 0xc050_2100;
const NOTIFICATION_SEND: libc::c_ulong = 0xc018_2101;
const NOTIFICATION_IS_VALID: libc::c_ulong = 0x4008_2102;

/// Waits for a call; false when no process is left that could make one.
pub(crate) fn wait_notification(listener: BorrowedFd<'_>) -> io::Result<bool> {
    use rustix::event::{PollFd, PollFlags};
    let mut polled = [PollFd::new(&listener, PollFlags::IN)];
    loop {
        match rustix::event::poll(&mut polled, None) {
            Err(rustix::io::Errno::INTR) => {}
            other => {
                other?;
                return Ok(polled[0].revents().contains(PollFlags::IN));
            }
        }
    }
}

/// The next call.
pub(crate) fn receive_notification(listener: BorrowedFd<'_>) -> io::Result<Notification> {
    // SAFETY: a structure of integers; the kernel wants it zeroed.
    let mut call: libc::seccomp_notif = unsafe { std::mem::zeroed() };
    // SAFETY: the call fills the live structure it is given.
    check(unsafe { libc::ioctl(listener.as_raw_fd(), NOTIFICATION_RECEIVE as _, &raw mut call) }.into())?;
    let libc::seccomp_data { nr: number, arch: architecture, args: arguments, .. } = call.data;
    Ok(Notification { id: call.id, process: call.pid, number, architecture, arguments })
}

/// Whether the call of this id still waits, so that its process's number is still its own.
pub(crate) fn is_notification_valid(listener: BorrowedFd<'_>, id: u64) -> io::Result<()> {
    // SAFETY: reads a live integer.
    check(unsafe { libc::ioctl(listener.as_raw_fd(), NOTIFICATION_IS_VALID as _, &raw const id) }.into())?;
    Ok(())
}

/// What becomes of a call that waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It is not made, and has succeeded.
    Done,
    /// It is made.
    Proceed,
    /// It is not made, and has failed with this error number.
    Failed(i32),
}

/// Ends the wait of a call.
pub(crate) fn answer_notification(listener: BorrowedFd<'_>, id: u64, answer: Answer) -> io::Result<()> {
    const PROCEED: u32 = 1;
    let (error, flags) = match answer {
        Answer::Done => (0, 0),
        Answer::Proceed => (0, PROCEED),
        Answer::Failed(errno) => (-errno, 0),
    };
    let answer = libc::seccomp_notif_resp { id, val: 0, error, flags };
    loop {
        // SAFETY: reads a live structure.
        let sent = unsafe { libc::ioctl(listener.as_raw_fd(), NOTIFICATION_SEND as _, &raw const answer) };
        match check(sent.into()) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            sent => return sent.map(drop),
        }
    }
}

/// Gives every signal its default disposition and unblocks all: both survive an exec.
pub(crate) fn reset_signals() {
    for signal in 1..=64 {
        // SAFETY: sets a disposition; for signals that have none (SIGKILL, SIGSTOP, the C library's) it fails, harmlessly.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    // SAFETY: an all-zero set is the empty one; the old mask is not asked for.
    unsafe {
        let none: libc::sigset_t = std::mem::zeroed();
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut());
    }
}

/// Has the calling thread scheduled before all ordinary ones, or as one of them. Its children are ordinary.
pub(crate) fn set_urgent(urgent: bool) -> io::Result<()> {
    let (policy, priority) = if urgent { (libc::SCHED_FIFO, 1) } else { (libc::SCHED_OTHER, 0) };
    // SAFETY: all zeroes is a valid value of this structure of integers.
    let mut parameters: libc::sched_param = unsafe { std::mem::zeroed() };
    parameters.sched_priority = priority;
    // SAFETY: reads a live structure; 0 is the calling thread.
    let set = unsafe {
        libc::syscall(libc::SYS_sched_setscheduler, 0, policy | RESET_ON_FORK, &raw const parameters)
    };
    check(set).map(drop)
}

/// Sets a limit; returns the kernel's answer.
pub(crate) fn set_limit(resource: libc::__rlimit_resource_t, soft: u64, hard: u64) -> io::Result<()> {
    let limit = libc::rlimit { rlim_cur: soft, rlim_max: hard };
    // SAFETY: reads a live structure.
    check(unsafe { libc::setrlimit(resource, &raw const limit) }.into())?;
    Ok(())
}

/// The hard limit of `resource`.
pub(crate) fn hard_limit(resource: libc::__rlimit_resource_t) -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: fills a live structure.
    check(unsafe { libc::getrlimit(resource, &raw mut limit) }.into())?;
    Ok(limit.rlim_max)
}

/// Brings the loopback device of this network namespace up.
pub(crate) fn bring_up_loopback() -> io::Result<()> {
    let socket = rustix::net::socket_with(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )?;
    // SAFETY: all zeroes is a valid request.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(c"lo".to_bytes()) {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: the request names the device and carries the flags the call reads.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) }.into())?;
    Ok(())
}

/// Sends a signal by its number.
pub(crate) fn send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    let no_info: *const libc::siginfo_t = ptr::null();
    // SAFETY: a null record is allowed; everything else is an integer.
    check(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, no_info, 0) })?;
    Ok(())
}

/// Makes every descriptor from `first` on close on exec.
pub(crate) fn close_on_exec_from(first: u32) -> io::Result<()> {
    // SAFETY: takes integers only and closes nothing now.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) })?;
    Ok(())
}

/// Closes every descriptor from `first` on.
///
/// # Safety
/// None of them may have an owner in this process.
pub(crate) unsafe fn close_from(first: u32) -> io::Result<()> {
    // SAFETY: takes integers only; what is closed is the caller's promise.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) })?;
    Ok(())
}

/// Closes every descriptor from 3 on but these.
///
/// # Safety
/// None of the others may be used or dropped by this process from now on.
pub(crate) unsafe fn close_all_but(kept: &[RawFd]) -> io::Result<()> {
    let mut kept = kept.to_vec();
    kept.sort_unstable();
    let mut first = 3;
    for fd in kept.into_iter().filter(|fd| *fd >= 3).chain([RawFd::MAX]) {
        if first < fd {
            // SAFETY: takes integers only; what is closed is the caller's promise.
            check(unsafe { libc::syscall(libc::SYS_close_range, first, fd - 1, 0) })?;
        }
        first = fd.saturating_add(1);
    }
    Ok(())
}

/// Makes `from` also the descriptor `to`, which is 0, 1 or 2, and open across an exec.
pub(crate) fn duplicate_onto(from: BorrowedFd<'_>, to: RawFd) -> io::Result<()> {
    if from.as_raw_fd() == to {
        rustix::io::fcntl_setfd(from, rustix::io::FdFlags::empty())?;
        return Ok(());
    }
    // SAFETY: standard descriptors have no owner in this program other than the process itself.
    check(unsafe { libc::dup2(from.as_raw_fd(), to) }.into())?;
    Ok(())
}

/// A copy of standard descriptor 0, which the launcher gets its socket as.
pub(crate) fn duplicate_standard_input() -> io::Result<OwnedFd> {
    // SAFETY: borrowed for this call only; a closed descriptor yields an error.
    let standard_input = unsafe { BorrowedFd::borrow_raw(0) };
    Ok(rustix::io::fcntl_dupfd_cloexec(standard_input, 3)?)
}

/// Executes a program; returns only the reason why not.
pub(crate) fn execute(program: &CStr, arguments: &[CString], environment: &[CString]) -> io::Error {
    let pointers = |strings: &[CString]| -> Vec<*const libc::c_char> {
        strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect()
    };
    let (arguments, environment) = (pointers(arguments), pointers(environment));
    // SAFETY: both arrays end in a null pointer and point to C strings that outlive the call.
    unsafe { libc::execve(program.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
    io::Error::last_os_error()
}

/// Ends the process at once, running nothing.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: never returns, and nothing of this process needs cleaning up.
    unsafe { libc::_exit(code) }
}

/// Waits until `fd` can be read without blocking.
pub(crate) fn wait_readable(fd: impl AsFd) -> io::Result<()> {
    poll_readable(fd, None).map(|_| ())
}

/// Whether `fd` can be read without blocking.
pub(crate) fn is_readable(fd: impl AsFd) -> io::Result<bool> {
    poll_readable(fd, Some(&rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 }))
}

fn poll_readable(fd: impl AsFd, timeout: Option<&rustix::event::Timespec>) -> io::Result<bool> {
    let mut polled = [rustix::event::PollFd::new(&fd, rustix::event::PollFlags::IN)];
    loop {
        match rustix::event::poll(&mut polled, timeout) {
            Err(rustix::io::Errno::INTR) => {}
            other => return Ok(other? > 0),
        }
    }
}

/// Leaves namespaces for new ones. With `NEWPID`, for the children of this thread only.
pub(crate) fn unshare(namespaces: rustix::thread::UnshareFlags) -> io::Result<()> {
    debug_assert!(!namespaces.contains(rustix::thread::UnshareFlags::FILES));
    // SAFETY: only a private descriptor table could break the ownership of descriptors, and it is not asked for.
    unsafe { rustix::thread::unshare_unsafe(namespaces) }?;
    Ok(())
}

/// Leaves the session keyring for an empty one, where the kernel has keyrings.
pub(crate) fn leave_session_keyring() {
    let anonymous: *const libc::c_char = ptr::null();
    // SAFETY: a null name asks for a new anonymous keyring. Without keyrings or quota there is nothing to hide.
    unsafe { libc::syscall(libc::SYS_keyctl, libc::KEYCTL_JOIN_SESSION_KEYRING, anonymous) };
}
