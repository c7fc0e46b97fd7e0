//! Isolated processes: namespaces, mounts, control groups, capabilities, seccomp and the launcher that starts them.
//!
//! This crate knows nothing of images, LLB, registries or async runtimes; it is the only one that may contain
//! `unsafe`. A [`SandboxSpec`] says what to run, [`Launcher::spawn`] starts it, the [`Sandbox`] returned is the
//! running thing. Read [`SandboxSpec`] first, then [`Launcher`].
//!
//! A program that uses it calls [`launcher_entry`] as the first statement of `main`, because the launcher is a
//! second, single-threaded execution of the same binary, and [`enter_private_mounts`] before it starts a thread.

mod capability;
mod cgroup;
mod channel;
mod child;
mod error;
mod heap;
mod ids;
mod launcher;
mod meter;
mod mount;
mod net;
mod overlay;
mod pretend;
mod probe;
mod room;
mod sandbox;
mod seccomp;
mod spec;
mod stubs;
mod sys;
mod sysctl;
mod urgent;
mod user_network;
mod userns;

pub use capability::{Capability, CapabilitySet, ParseCapabilityError};
pub use cgroup::{
    CgroupGuard, CgroupHierarchy, CgroupLimits, CgroupParent, CgroupPlace, CgroupUsage, CpuQuota, Freezer,
    Held, Unlimited, abandoned_cgroups, memory_left, missing_controllers, sweep_cgroups,
};
pub use error::{MountError, SetupStep, SpawnError, WaitError};
pub use heap::{give_back_memory, limit_arenas};
pub use ids::IdMap;
pub use launcher::{Launcher, launcher_entry};
pub use meter::Meter;
pub use mount::{
    MountGuard, OverlayLayers, detached_overlay, enter_private_mounts, mount_memory, mount_overlay,
    remove_mount_points,
};
pub use net::{
    BridgeError, BridgeFacts, BridgeNamespace, BridgeNetwork, BridgePart, abandoned_bridges, sweep_bridges,
};
pub use pretend::OwnerRecorder;
pub use probe::{granted_capabilities, has_whole_proc, upper_refusal};
pub use room::Room;
pub use sandbox::{Exit, ExitStatus, Sandbox, Stdio, Usage};
pub use seccomp::oci_seccomp;
pub use spec::{
    DEFAULT_PATH, DEFAULT_SHM_SIZE, MountSpec, Network, OverlayRoot, Process, Rlimit, RlimitResource, RootFs,
    SandboxSpec, Security, TerminalSize,
};
pub use sysctl::Sysctl;
pub use urgent::Urgent;
pub use user_network::{USER_NETWORK_RESOLVER, UserNetworkProgram};
pub use userns::{EnterError, Tier, chroot_refusal, enter, has_namespaces, is_privileged, restrictions};
