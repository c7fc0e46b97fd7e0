//! The filter of [`room`](crate::room): calls that may take much of a disk at once stop until somebody lets them.
//!
//! What allocates without limit in one call (`fallocate`) always stops, what writes more than a bound as well: [`LARGE`], or
//! [`LARGE_NEAR`] where every call counts.
//! Ways to allocate whose amount no filter can see are refused as unsupported: the old `ioctl`s of XFS, and
//! `io_uring`, which the profile refuses already. Unseen are `writev` and its kin, whose lengths are in the caller's
//! memory, and all that 32-bit x86 programs call except `fallocate`. Read [`Announced`] first.

use super::{
    AUDIT_ARCH_I386, AUDIT_ARCH_X86_64, ENOSYS, Instruction, JUMP_AT_LEAST, JUMP_EQUAL, LOAD, RET_ALLOW,
    RET_ERRNO, RET_USER_NOTIF, RETURN, X32_BIT, jump, offset_high, offset_low, statement,
};

/// More bytes than these in one call are announced.
pub(crate) const LARGE: u32 = 1 << 20;

/// The same near the end of the room. What is not announced is written between two glances, and a machine whose processors
/// are taken away for a while comes late to the second: small calls take long enough for that.
pub(crate) const LARGE_NEAR: u32 = 64 << 10;

/// `fallocate` of 32-bit x86 programs.
const I386_FALLOCATE: u32 = 324;
const I386_IOCTL: u32 = 54;
/// The same on every architecture.
const IO_URING_SETUP: u32 = 425;
/// `FS_IOC_RESVSP`, `FS_IOC_RESVSP64`, `FS_IOC_ZERO_RANGE`, and the first two as 32-bit programs write them.
const RESERVING: [u32; 5] = [0x4030_5828, 0x4030_582a, 0x4030_5839, 0x402c_5828, 0x402c_582a];

/// What a call is about to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Announced {
    /// `fallocate`: the mode, where it begins, how many bytes.
    Allocate {
        mode: u32,
        offset: u64,
        length: u64,
    },
    Write {
        length: u64,
    },
}

/// Where a call that copies has its source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Source {
    pub(crate) descriptor: i32,
    /// Whether it is read from where the descriptor stands; else the caller's memory says from where.
    pub(crate) at_position: bool,
}

/// A call that the filter stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stopped {
    pub(crate) call: Announced,
    /// What it is for.
    pub(crate) descriptor: i32,
    /// Where the bytes come from, unless from the caller's memory.
    pub(crate) source: Option<Source>,
}

/// A call that writes, by the places of its arguments.
#[derive(Clone, Copy)]
struct Write {
    number: libc::c_long,
    descriptor: usize,
    length: usize,
    /// The source's descriptor, and the pointer to where it is read.
    source: Option<(usize, usize)>,
}

const WRITES: [Write; 5] = [
    Write { number: libc::SYS_write, descriptor: 0, length: 2, source: None },
    Write { number: libc::SYS_pwrite64, descriptor: 0, length: 2, source: None },
    Write { number: libc::SYS_sendfile, descriptor: 0, length: 3, source: Some((1, 2)) },
    Write { number: libc::SYS_copy_file_range, descriptor: 2, length: 4, source: Some((0, 1)) },
    Write { number: libc::SYS_splice, descriptor: 2, length: 4, source: Some((0, 1)) },
];

impl Announced {
    /// What this call announces, on which descriptors; `None` for one that the filter does not stop.
    pub(crate) fn of(architecture: u32, number: i32, arguments: &[u64; 6]) -> Option<Stopped> {
        let number = number as u32;
        let [descriptor, mode, ..] = *arguments;
        let allocating = |call| Some(Stopped { call, descriptor: descriptor as i32, source: None });
        if architecture == AUDIT_ARCH_I386 {
            let long = |low: usize| arguments[low] & 0xffff_ffff | arguments[low + 1] << 32;
            let allocate = Self::Allocate { mode: mode as u32, offset: long(2), length: long(4) };
            return allocating(allocate).filter(|_| number == I386_FALLOCATE);
        }
        let number = if architecture == AUDIT_ARCH_X86_64 { number & !X32_BIT } else { number };
        if number == libc::SYS_fallocate as u32 {
            let allocate = Self::Allocate { mode: mode as u32, offset: arguments[2], length: arguments[3] };
            return allocating(allocate);
        }
        let write = WRITES.iter().find(|write| number == write.number as u32)?;
        let source = write.source.map(|(descriptor, pointer)| Source {
            descriptor: arguments[descriptor] as i32,
            at_position: arguments[pointer] == 0,
        });
        let (call, descriptor) =
            (Self::Write { length: arguments[write.length] }, arguments[write.descriptor]);
        Some(Stopped { call, descriptor: descriptor as i32, source })
    }

    /// For programs of this machine: falls through for what is not stopped.
    pub(super) fn native(bound: u32) -> Vec<Instruction> {
        let mut code = Vec::new();
        let bits: &[u32] = if cfg!(target_arch = "x86_64") { &[0, X32_BIT] } else { &[0] };
        for bit in bits {
            code.extend(on(libc::SYS_fallocate as u32 | bit, vec![statement(RETURN, RET_USER_NOTIF)]));
            for Write { number, length, .. } in WRITES {
                code.extend(on(number as u32 | bit, large(length, bound)));
            }
            code.extend(on(libc::SYS_ioctl as u32 | bit, reserving()));
            code.extend(on(IO_URING_SETUP | bit, vec![statement(RETURN, RET_ERRNO | u32::from(ENOSYS))]));
        }
        code
    }

    /// For 32-bit programs on x86; always returns.
    pub(super) fn i386() -> Vec<Instruction> {
        let mut code = on(I386_FALLOCATE, vec![statement(RETURN, RET_USER_NOTIF)]);
        code.extend(on(I386_IOCTL, reserving()));
        code.extend(on(IO_URING_SETUP, vec![statement(RETURN, RET_ERRNO | u32::from(ENOSYS))]));
        code.push(statement(RETURN, RET_ALLOW));
        code
    }
}

/// `block`, which returns, for this number; falls through for others.
fn on(number: u32, block: Vec<Instruction>) -> Vec<Instruction> {
    let mut code = vec![jump(JUMP_EQUAL, number, 0, block.len() as u8)];
    code.extend(block);
    code
}

/// Stops a call whose argument is more than `bound`.
fn large(argument: usize, bound: u32) -> Vec<Instruction> {
    vec![
        statement(LOAD, offset_high(argument)),
        jump(JUMP_EQUAL, 0, 0, 2),
        statement(LOAD, offset_low(argument)),
        jump(JUMP_AT_LEAST, bound + 1, 0, 1),
        statement(RETURN, RET_USER_NOTIF),
        statement(RETURN, RET_ALLOW),
    ]
}

fn reserving() -> Vec<Instruction> {
    let mut code = vec![statement(LOAD, offset_low(1))];
    for command in RESERVING {
        let refused = statement(RETURN, RET_ERRNO | libc::EOPNOTSUPP as u32);
        code.extend([jump(JUMP_EQUAL, command, 0, 1), refused]);
    }
    code.push(statement(RETURN, RET_ALLOW));
    code
}
