//! Docker's default system call filter, compiled to classic BPF.
//!
//! Owns what the rules mean and the program they become; knows nothing of processes. A call the profile does not
//! name gets `EPERM`; a call newer than every one it names gets `ENOSYS`, so that C libraries fall back to older
//! calls; `clone3` gets `ENOSYS` for the same reason, since its flags are out of a filter's sight. One program
//! covers the native ABI and the 32-bit ones beside it. Limit: 32-bit ARM programs on aarch64 get `ENOSYS`
//! for every call. Read [`Filter`] first.

mod announced;
mod oci;
mod pretence;
mod table;

use crate::capability::{Capability, CapabilitySet};
pub(crate) use announced::{Announced, LARGE, LARGE_NEAR, Source, Stopped};
pub use oci::oci_seccomp;
pub(crate) use pretence::{Answered, Pretence};
use table::TABLE;

/// When a call is let through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rule {
    /// Always.
    Allow,
    /// With any of these capabilities.
    Needs(&'static [Capability]),
    /// `clone`: no new namespaces without `CAP_SYS_ADMIN`.
    Clone,
    /// `clone3`: `ENOSYS` without `CAP_SYS_ADMIN`.
    Clone3,
    /// `personality`: a few harmless values only.
    Personality,
    /// `socket`: not the families that reach out of the container.
    Socket,
}

/// What the filter does with one number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Allow,
    Errno(u16),
    CloneFlags,
    PersonalityValue,
    SocketFamily,
}

const RET_ALLOW: u32 = 0x7fff_0000;
const RET_ERRNO: u32 = 0x0005_0000;
const RET_USER_NOTIF: u32 = 0x7fc0_0000;
const EPERM: u16 = libc::EPERM as u16;
const ENOSYS: u16 = libc::ENOSYS as u16;

const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const JUMP: u16 = 0x05; // BPF_JMP | BPF_JA
const JUMP_EQUAL: u16 = 0x15;
const JUMP_AT_LEAST: u16 = 0x35;
const JUMP_ANY_BIT: u16 = 0x45;
const RETURN: u16 = 0x06;

// Offsets in `struct seccomp_data`; the low half of an argument, since only that reaches the calls checked here.
const OFFSET_NUMBER: u32 = 0;
const OFFSET_ARCH: u32 = 4;
const OFFSET_ARGUMENT_0: u32 = if cfg!(target_endian = "little") { 16 } else { 20 };

/// Where the lower half of an argument is.
const fn offset_low(argument: usize) -> u32 {
    OFFSET_ARGUMENT_0 + 8 * argument as u32
}

/// Where the upper half is.
const fn offset_high(argument: usize) -> u32 {
    offset_low(argument) ^ 4
}

const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
const AUDIT_ARCH_I386: u32 = 0x4000_0003;
const AUDIT_ARCH_AARCH64: u32 = 0xc000_00b7;
const X32_BIT: u32 = 0x4000_0000;

/// Calls that reach into other processes of the same user.
const REACHING: &[&str] = &["ptrace", "process_vm_readv", "process_vm_writev", "pidfd_getfd", "kcmp"];
/// Flags of `clone` that make namespaces: mount, cgroup, uts, ipc, user, pid, net.
const NAMESPACE_FLAGS: u32 = 0x7e02_0000;
/// `PER_LINUX`, `PER_LINUX32`, each with `UNAME26`, and the query.
const PERSONALITIES: [u32; 5] = [0, 8, 0x2_0000, 0x2_0008, u32::MAX];
/// `AF_ALG` and `AF_VSOCK`.
const REFUSED_FAMILIES: [u32; 2] = [38, 40];

/// One instruction, laid out as the kernel's `struct sock_filter`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Instruction {
    code: u16,
    if_true: u8,
    if_false: u8,
    operand: u32,
}

/// A compiled program for one set of capabilities.
#[derive(Debug, Clone)]
pub(crate) struct Filter {
    capabilities: CapabilitySet,
    program: Vec<Instruction>,
}

/// Columns of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Abi {
    X86_64 = 0,
    I386 = 1,
    X32 = 2,
    Aarch64 = 3,
}

impl Filter {
    /// The profile for a process whose bounding set is `capabilities`.
    pub(crate) fn docker_default(capabilities: CapabilitySet) -> Self {
        Self::compile(capabilities, &[])
    }

    fn compile(capabilities: CapabilitySet, refused: &[&str]) -> Self {
        let mut program = vec![statement(LOAD, OFFSET_ARCH)];
        if cfg!(target_arch = "x86_64") {
            let x32 = numbers_block(Abi::X32, capabilities, refused);
            let mut native = vec![statement(LOAD, OFFSET_NUMBER)];
            native.extend(choose(X32_BIT, numbers_block(Abi::X86_64, capabilities, refused), x32));
            let mut i386 = vec![statement(LOAD, OFFSET_NUMBER)];
            i386.extend(numbers_block(Abi::I386, capabilities, refused));
            program.extend(when_equal(AUDIT_ARCH_X86_64, native));
            program.extend(when_equal(AUDIT_ARCH_I386, i386));
        } else {
            let mut native = vec![statement(LOAD, OFFSET_NUMBER)];
            native.extend(numbers_block(Abi::Aarch64, capabilities, refused));
            program.extend(when_equal(AUDIT_ARCH_AARCH64, native));
        }
        program.push(statement(RETURN, RET_ERRNO | u32::from(ENOSYS)));
        Self { capabilities, program }
    }

    /// The profile for a process that only another root holds: what reaches into other processes is refused as well.
    pub(crate) fn within_chroot(capabilities: CapabilitySet) -> Self {
        Self::compile(capabilities, REACHING)
    }

    /// The set it was compiled for.
    pub(crate) fn capabilities(&self) -> CapabilitySet {
        self.capabilities
    }

    /// The instructions.
    pub(crate) fn program(&self) -> &[Instruction] {
        &self.program
    }
}

fn action(rule: Rule, capabilities: CapabilitySet) -> Action {
    let admin = capabilities.contains(Capability::SysAdmin);
    match rule {
        Rule::Allow => Action::Allow,
        Rule::Needs(any) if any.iter().any(|capability| capabilities.contains(*capability)) => Action::Allow,
        Rule::Needs(_) => Action::Errno(EPERM),
        Rule::Clone | Rule::Clone3 if admin => Action::Allow,
        Rule::Clone => Action::CloneFlags,
        Rule::Clone3 => Action::Errno(ENOSYS),
        Rule::Personality => Action::PersonalityValue,
        Rule::Socket => Action::SocketFamily,
    }
}

/// Code that decides on the number already loaded and always returns.
fn numbers_block(abi: Abi, capabilities: CapabilitySet, refused: &[&str]) -> Vec<Instruction> {
    let bit = if abi == Abi::X32 { X32_BIT } else { 0 };
    let mut calls: Vec<(u32, Action)> = TABLE
        .iter()
        .filter(|row| !refused.contains(&row.name))
        .filter_map(|row| {
            Some((u32::try_from(row.numbers[abi as usize]).ok()? | bit, action(row.rule, capabilities)))
        })
        .collect();
    calls.sort_by_key(|(number, _)| *number);
    search(&runs(bit, &calls))
}

/// Splits the numbers from `first` on into runs of one action: (start of the run, action).
fn runs(first: u32, calls: &[(u32, Action)]) -> Vec<(u32, Action)> {
    let mut runs: Vec<(u32, Action)> = Vec::new();
    let mut begin = |number: u32, action: Action| {
        if runs.last().is_none_or(|(_, last)| *last != action) {
            runs.push((number, action));
        }
    };
    let mut next = first;
    for &(number, action) in calls {
        if number > next {
            begin(next, Action::Errno(EPERM));
        }
        begin(number, action);
        next = number + 1;
    }
    begin(next, Action::Errno(ENOSYS));
    runs
}

/// Binary search for the run that holds the loaded number.
fn search(runs: &[(u32, Action)]) -> Vec<Instruction> {
    match runs {
        [] => vec![statement(RETURN, RET_ERRNO | u32::from(ENOSYS))],
        [(_, action)] => decide(*action),
        _ => {
            let (low, high) = runs.split_at(runs.len() / 2);
            choose(high[0].0, search(low), search(high))
        }
    }
}

/// Code for one action; always returns.
fn decide(action: Action) -> Vec<Instruction> {
    let allow = statement(RETURN, RET_ALLOW);
    let refuse = statement(RETURN, RET_ERRNO | u32::from(EPERM));
    let mut code = vec![statement(LOAD, OFFSET_ARGUMENT_0)];
    match action {
        Action::Allow => vec![allow],
        Action::Errno(errno) => vec![statement(RETURN, RET_ERRNO | u32::from(errno))],
        Action::CloneFlags => {
            code.extend([jump(JUMP_ANY_BIT, NAMESPACE_FLAGS, 1, 0), allow, refuse]);
            code
        }
        Action::PersonalityValue => {
            code.extend(PERSONALITIES.iter().flat_map(|value| [jump(JUMP_EQUAL, *value, 0, 1), allow]));
            code.push(refuse);
            code
        }
        Action::SocketFamily => {
            code.extend(REFUSED_FAMILIES.iter().flat_map(|family| [jump(JUMP_EQUAL, *family, 0, 1), refuse]));
            code.push(allow);
            code
        }
    }
}

/// `if A >= bound { high } else { low }`, both of which return. Conditional jumps reach 255 instructions,
/// unconditional ones any distance.
fn choose(bound: u32, low: Vec<Instruction>, high: Vec<Instruction>) -> Vec<Instruction> {
    let distance = low.len();
    let mut code = match u8::try_from(distance) {
        Ok(near) => vec![jump(JUMP_AT_LEAST, bound, near, 0)],
        Err(_) => vec![jump(JUMP_AT_LEAST, bound, 0, 1), statement(JUMP, distance as u32)],
    };
    code.extend(low);
    code.extend(high);
    code
}

/// `if A == value { block }` where the block returns; falls through otherwise.
fn when_equal(value: u32, block: Vec<Instruction>) -> Vec<Instruction> {
    let mut code = vec![jump(JUMP_EQUAL, value, 1, 0), statement(JUMP, block.len() as u32)];
    code.extend(block);
    code
}

const fn statement(code: u16, operand: u32) -> Instruction {
    Instruction { code, if_true: 0, if_false: 0, operand }
}

const fn jump(code: u16, operand: u32, if_true: u8, if_false: u8) -> Instruction {
    Instruction { code, if_true, if_false, operand }
}

#[cfg(test)]
mod tests;
