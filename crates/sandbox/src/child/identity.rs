//! Who the process is and what it may: limits, capabilities, filter, user.
//!
//! Read [`assume`] first.

use rustix::fs::Mode;
use rustix::process::{Gid, Uid};
use rustix::thread::{set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use crate::capability::CapabilitySet;
use crate::channel::{AtStep as _, Failure};
use crate::error::SetupStep;
use crate::ids::IdMap;
use crate::seccomp::Filter;
use crate::spec::{Process, Rlimit, RlimitResource};
use crate::sys;

/// Takes on the identity of `process`. The filter comes before the user changes, because without
/// `no_new_privs` the kernel wants `CAP_SYS_ADMIN` for it; it lets through all that follows.
pub(super) fn assume(
    process: &Process,
    capabilities: CapabilitySet,
    filter: Option<&Filter>,
) -> Result<(), Failure> {
    rustix::process::umask(Mode::from_raw_mode(process.umask));
    for limit in &process.rlimits {
        set_limit(*limit).with(SetupStep::Rlimit, format!("{:?}", limit.resource))?;
    }
    sys::close_on_exec_from(3).at(SetupStep::Descriptors)?;
    if process.no_new_privileges {
        set_no_new_privs(true).at(SetupStep::NoNewPrivileges)?;
    }
    if let Some(filter) = filter {
        sys::install_filter(filter).at(SetupStep::Seccomp)?;
    }
    change_user(process).with(SetupStep::User, format!("{}:{}", process.uid, process.gid))?;
    // Another user's programs get capabilities from file attributes only, within the bounding set.
    let effective = if process.uid == 0 { capabilities } else { CapabilitySet::EMPTY };
    sys::set_capabilities(effective).at(SetupStep::Capabilities)
}

fn change_user(process: &Process) -> rustix::io::Result<()> {
    let groups: Vec<Gid> = process.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
    let (uid, gid) = (Uid::from_raw(process.uid), Gid::from_raw(process.gid));
    if IdMap::current().has_settable_groups() {
        set_thread_groups(&groups)?;
    }
    set_thread_res_gid(gid, gid, gid)?;
    set_thread_res_uid(uid, uid, uid)
}

/// Sets a limit; where the hard one is more than may be had, as much as may be had.
fn set_limit(limit: Rlimit) -> std::io::Result<()> {
    let resource = kernel_resource(limit.resource);
    match sys::set_limit(resource, limit.soft, limit.hard) {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
            let hard = limit.hard.min(sys::hard_limit(resource)?);
            sys::set_limit(resource, limit.soft.min(hard), hard)
        }
        other => other,
    }
}

fn kernel_resource(resource: RlimitResource) -> libc::__rlimit_resource_t {
    match resource {
        RlimitResource::Core => libc::RLIMIT_CORE,
        RlimitResource::Cpu => libc::RLIMIT_CPU,
        RlimitResource::Data => libc::RLIMIT_DATA,
        RlimitResource::Fsize => libc::RLIMIT_FSIZE,
        RlimitResource::Locks => libc::RLIMIT_LOCKS,
        RlimitResource::Memlock => libc::RLIMIT_MEMLOCK,
        RlimitResource::Msgqueue => libc::RLIMIT_MSGQUEUE,
        RlimitResource::Nice => libc::RLIMIT_NICE,
        RlimitResource::Nofile => libc::RLIMIT_NOFILE,
        RlimitResource::Nproc => libc::RLIMIT_NPROC,
        RlimitResource::Rss => libc::RLIMIT_RSS,
        RlimitResource::Rtprio => libc::RLIMIT_RTPRIO,
        RlimitResource::Rttime => libc::RLIMIT_RTTIME,
        RlimitResource::Sigpending => libc::RLIMIT_SIGPENDING,
        RlimitResource::Stack => libc::RLIMIT_STACK,
    }
}
