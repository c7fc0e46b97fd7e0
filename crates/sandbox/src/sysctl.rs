//! Kernel parameters of a sandbox's own namespaces: which of them may be set, and the setting.
//!
//! Must not know where the wish comes from. Read [`Sysctl::refusal`] first.

use std::io::Write as _;
use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use serde::{Deserialize, Serialize};

use crate::channel::{AtStep as _, Failure};
use crate::error::SetupStep;
use crate::spec::Network;

/// Those of the namespace of interprocess communication, in docker's list.
const OF_IPC: [&str; 8] = [
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shm_rmid_forced",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
];
/// What the names of its message queues' begin with.
const OF_QUEUES: &str = "fs.mqueue.";
/// What the names of the network's begin with.
const OF_NETWORK: &str = "net.";

/// A kernel parameter and its value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sysctl {
    /// As `net.core.somaxconn`, or with slashes where a part of it holds a dot: `net/ipv4/conf/eth0.1/forwarding`.
    pub name: String,
    /// What is written.
    pub value: String,
}

impl Sysctl {
    /// Why it is not set in a sandbox with this network, in docker's and runc's words; `None` where it is.
    #[must_use]
    pub fn refusal(&self, network: Network) -> Option<String> {
        let path = self.path();
        let dotted = path.replace('/', ".");
        let is_plain = path.split('/').all(|part| !matches!(part, "" | "." | "..")) && !path.contains('\0');
        let of_network = dotted.starts_with(OF_NETWORK);
        if !is_plain || !(of_network || dotted.starts_with(OF_QUEUES) || OF_IPC.contains(&dotted.as_str())) {
            return Some(format!("sysctl '{}' is not allowed", self.name));
        }
        (of_network && network == Network::Host)
            .then(|| format!("sysctl '{}' not allowed in host network namespace", self.name))
    }

    /// Below `/proc/sys`.
    fn path(&self) -> String {
        if self.name.contains('/') { self.name.clone() } else { self.name.replace('.', "/") }
    }
}

/// Sets them, in `proc`, for the namespaces this process is in.
pub(crate) fn set(proc: &OwnedFd, sysctls: &[Sysctl]) -> Result<(), Failure> {
    for sysctl in sysctls {
        let path = format!("sys/{}", sysctl.path());
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let opened = openat2(proc, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty(), resolve);
        let written = opened
            .map_err(std::io::Error::from)
            .and_then(|file| std::fs::File::from(file).write_all(sysctl.value.as_bytes()));
        written.with(SetupStep::Sysctl, &sysctl.name)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(name: &str, network: Network, expected: Option<&str>) {
        let sysctl = Sysctl { name: name.to_owned(), value: "1".to_owned() };
        assert_eq!(sysctl.refusal(network).as_deref(), expected);
    }

    #[test]
    fn only_what_is_the_sandboxs_own_may_be_set() {
        for name in
            ["net.core.somaxconn", "net/ipv4/conf/eth0.1/forwarding", "kernel.shmmax", "fs.mqueue.msg_max"]
        {
            check(name, Network::None, None);
        }
        check("kernel.sem", Network::Host, None);
        let host = "sysctl 'net.core.somaxconn' not allowed in host network namespace";
        check("net.core.somaxconn", Network::Host, Some(host));
        for name in [
            "kernel.panic",
            "vm.swappiness",
            "fs.file-max",
            "kernel.hostname",
            "",
            "net",
            "net..x",
            "net/../kernel/panic",
        ] {
            check(name, Network::None, Some(&format!("sysctl '{name}' is not allowed")));
        }
    }
}
