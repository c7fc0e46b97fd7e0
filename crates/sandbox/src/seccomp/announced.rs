//! The filter of [`room`](crate::room): calls that may take much of a disk at once stop until somebody lets them.
//!
//! What allocates without limit in one call (`fallocate`) always stops, what writes more than [`LARGE`] bytes as well.
//! Ways to allocate whose amount no filter can see are refused as unsupported: the old `ioctl`s of XFS, and
//! `io_uring`, which the profile refuses already. Read [`Announced`] first.

use super::{
    AUDIT_ARCH_I386, AUDIT_ARCH_X86_64, ENOSYS, Instruction, JUMP_AT_LEAST, JUMP_EQUAL, LOAD, RET_ALLOW,
    RET_ERRNO, RET_USER_NOTIF, RETURN, X32_BIT, jump, offset_high, offset_low, statement,
};

/// More bytes than these in one call are announced.
pub(crate) const LARGE: u32 = 1 << 20;

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

/// Calls that write: number, argument with the descriptor, argument with the length.
const WRITES: [(libc::c_long, usize, usize); 5] = [
    (libc::SYS_write, 0, 2),
    (libc::SYS_pwrite64, 0, 2),
    (libc::SYS_sendfile, 0, 3),
    (libc::SYS_copy_file_range, 2, 4),
    (libc::SYS_splice, 2, 4),
];

impl Announced {
    /// What this call announces, and on which descriptor; `None` for one that the filter does not stop.
    pub(crate) fn of(architecture: u32, number: i32, arguments: &[u64; 6]) -> Option<(Self, i32)> {
        let number = number as u32;
        let [descriptor, mode, ..] = *arguments;
        if architecture == AUDIT_ARCH_I386 {
            let long = |low: usize| arguments[low] & 0xffff_ffff | arguments[low + 1] << 32;
            let allocate = Self::Allocate { mode: mode as u32, offset: long(2), length: long(4) };
            return (number == I386_FALLOCATE).then_some((allocate, descriptor as i32));
        }
        let number = if architecture == AUDIT_ARCH_X86_64 { number & !X32_BIT } else { number };
        if number == libc::SYS_fallocate as u32 {
            let allocate = Self::Allocate { mode: mode as u32, offset: arguments[2], length: arguments[3] };
            return Some((allocate, descriptor as i32));
        }
        let (_, descriptor, length) = WRITES.iter().find(|(call, ..)| number == *call as u32)?;
        Some((Self::Write { length: arguments[*length] }, arguments[*descriptor] as i32))
    }

    /// For programs of this machine: falls through for what is not stopped.
    pub(super) fn native() -> Vec<Instruction> {
        let mut code = Vec::new();
        let bits: &[u32] = if cfg!(target_arch = "x86_64") { &[0, X32_BIT] } else { &[0] };
        for bit in bits {
            code.extend(on(libc::SYS_fallocate as u32 | bit, vec![statement(RETURN, RET_USER_NOTIF)]));
            for (call, _, length) in WRITES {
                code.extend(on(call as u32 | bit, large(length)));
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

/// Stops a call whose argument is more than [`LARGE`].
fn large(argument: usize) -> Vec<Instruction> {
    vec![
        statement(LOAD, offset_high(argument)),
        jump(JUMP_EQUAL, 0, 0, 2),
        statement(LOAD, offset_low(argument)),
        jump(JUMP_AT_LEAST, LARGE + 1, 0, 1),
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
