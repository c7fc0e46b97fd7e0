//! Linux capabilities as a set of bits, docker's default set, and names.
//!
//! Must not know the kernel calls that apply a set. Read [`CapabilitySet`] first.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

macro_rules! capabilities {
    ($($variant:ident = $number:literal $name:literal),+ $(,)?) => {
        /// One capability; the discriminant is the kernel's number.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        #[expect(missing_docs, reason = "the variants are the kernel's names")]
        pub enum Capability { $($variant = $number),+ }

        impl Capability {
            /// All capabilities the crate knows, by number.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The kernel's name, for instance `CAP_SYS_ADMIN`.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }
        }
    };
}

capabilities! {
    Chown = 0 "CAP_CHOWN", DacOverride = 1 "CAP_DAC_OVERRIDE", DacReadSearch = 2 "CAP_DAC_READ_SEARCH",
    Fowner = 3 "CAP_FOWNER", Fsetid = 4 "CAP_FSETID", Kill = 5 "CAP_KILL", Setgid = 6 "CAP_SETGID",
    Setuid = 7 "CAP_SETUID", Setpcap = 8 "CAP_SETPCAP", LinuxImmutable = 9 "CAP_LINUX_IMMUTABLE",
    NetBindService = 10 "CAP_NET_BIND_SERVICE", NetBroadcast = 11 "CAP_NET_BROADCAST",
    NetAdmin = 12 "CAP_NET_ADMIN", NetRaw = 13 "CAP_NET_RAW", IpcLock = 14 "CAP_IPC_LOCK",
    IpcOwner = 15 "CAP_IPC_OWNER", SysModule = 16 "CAP_SYS_MODULE", SysRawio = 17 "CAP_SYS_RAWIO",
    SysChroot = 18 "CAP_SYS_CHROOT", SysPtrace = 19 "CAP_SYS_PTRACE", SysPacct = 20 "CAP_SYS_PACCT",
    SysAdmin = 21 "CAP_SYS_ADMIN", SysBoot = 22 "CAP_SYS_BOOT", SysNice = 23 "CAP_SYS_NICE",
    SysResource = 24 "CAP_SYS_RESOURCE", SysTime = 25 "CAP_SYS_TIME", SysTtyConfig = 26 "CAP_SYS_TTY_CONFIG",
    Mknod = 27 "CAP_MKNOD", Lease = 28 "CAP_LEASE", AuditWrite = 29 "CAP_AUDIT_WRITE",
    AuditControl = 30 "CAP_AUDIT_CONTROL", Setfcap = 31 "CAP_SETFCAP", MacOverride = 32 "CAP_MAC_OVERRIDE",
    MacAdmin = 33 "CAP_MAC_ADMIN", Syslog = 34 "CAP_SYSLOG", WakeAlarm = 35 "CAP_WAKE_ALARM",
    BlockSuspend = 36 "CAP_BLOCK_SUSPEND", AuditRead = 37 "CAP_AUDIT_READ", Perfmon = 38 "CAP_PERFMON",
    Bpf = 39 "CAP_BPF", CheckpointRestore = 40 "CAP_CHECKPOINT_RESTORE",
}

/// A string that names no capability.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("unknown capability `{0}`")]
pub struct ParseCapabilityError(String);

impl FromStr for Capability {
    type Err = ParseCapabilityError;

    /// Accepts the kernel's name in any case, with or without `CAP_`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let upper = text.to_ascii_uppercase();
        let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
        let found = Self::ALL.iter().find(|capability| &capability.name()["CAP_".len()..] == bare);
        found.copied().ok_or_else(|| ParseCapabilityError(text.to_owned()))
    }
}

/// A set of capabilities; bit n stands for the kernel's number n.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct CapabilitySet(u64);

impl CapabilitySet {
    /// No capability.
    pub const EMPTY: Self = Self(0);

    /// What docker gives a container by default.
    pub const DOCKER_DEFAULT: Self = Self::EMPTY
        .with(Capability::Chown)
        .with(Capability::DacOverride)
        .with(Capability::Fsetid)
        .with(Capability::Fowner)
        .with(Capability::Mknod)
        .with(Capability::NetRaw)
        .with(Capability::Setgid)
        .with(Capability::Setuid)
        .with(Capability::Setfcap)
        .with(Capability::Setpcap)
        .with(Capability::NetBindService)
        .with(Capability::SysChroot)
        .with(Capability::Kill)
        .with(Capability::AuditWrite);

    /// Every bit, known or not; for use with [`intersection`](Self::intersection).
    pub const ALL: Self = Self(u64::MAX);

    /// The set and `capability`.
    #[must_use]
    pub const fn with(self, capability: Capability) -> Self {
        Self(self.0 | 1 << capability as u8)
    }

    /// The set less `capability`.
    #[must_use]
    pub const fn without(self, capability: Capability) -> Self {
        Self(self.0 & !(1 << capability as u8))
    }

    /// What is in both sets.
    #[must_use]
    pub const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Whether `capability` is in the set.
    #[must_use]
    pub const fn contains(self, capability: Capability) -> bool {
        self.0 & 1 << capability as u8 != 0
    }

    /// The bits, as `/proc/self/status` shows them.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// The set with these bits.
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }
}

impl fmt::Debug for CapabilitySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set()
            .entries(Capability::ALL.iter().filter(|cap| self.contains(**cap)).map(|cap| cap.name()))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_docker_set_has_the_bits_docker_shows() {
        // `docker run --rm busybox grep CapBnd /proc/self/status` prints this value.
        assert_eq!(CapabilitySet::DOCKER_DEFAULT.bits(), 0xa804_25fb);
    }

    #[test]
    fn numbers_are_contiguous_and_names_parse_back() {
        for (number, capability) in Capability::ALL.iter().enumerate() {
            assert_eq!(*capability as usize, number);
            assert_eq!(capability.name().parse(), Ok(*capability));
            assert_eq!(capability.name()["CAP_".len()..].to_lowercase().parse(), Ok(*capability));
        }
        assert_eq!("ALL".parse::<Capability>(), Err(ParseCapabilityError("ALL".into())));
    }

    #[test]
    fn sets_add_and_remove() {
        let set = CapabilitySet::EMPTY.with(Capability::SysAdmin).with(Capability::Kill);
        assert!(set.contains(Capability::Kill));
        assert!(!set.without(Capability::Kill).contains(Capability::Kill));
        assert_eq!(
            set.intersection(CapabilitySet::DOCKER_DEFAULT),
            CapabilitySet::EMPTY.with(Capability::Kill)
        );
    }
}
