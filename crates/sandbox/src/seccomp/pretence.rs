//! The filter of [`pretend`](crate::pretend): which calls are answered by somebody else, which succeed without effect.
//!
//! Stacked on the profile, which rules where it refuses. Programs of the 32-bit ABIs change owners as they like.
//! Read [`Pretence`] first.

use super::{
    AUDIT_ARCH_AARCH64, AUDIT_ARCH_I386, AUDIT_ARCH_X86_64, Announced, Instruction, JUMP_EQUAL, LOAD,
    OFFSET_ARCH, OFFSET_NUMBER, RET_ALLOW, RET_ERRNO, RET_USER_NOTIF, RETURN, jump, statement, when_equal,
};

const NATIVE: u32 = if cfg!(target_arch = "x86_64") { AUDIT_ARCH_X86_64 } else { AUDIT_ARCH_AARCH64 };

/// How a call that changes an owner names its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pretence {
    /// `fchown`.
    Descriptor,
    /// `chown`.
    Path,
    /// `lchown`.
    Link,
    /// `fchownat`.
    At,
}

const OWNER_CALLS: &[(libc::c_long, Pretence)] = &[
    (libc::SYS_fchown, Pretence::Descriptor),
    (libc::SYS_fchownat, Pretence::At),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_chown, Pretence::Path),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_lchown, Pretence::Link),
];

const IDENTITY_CALLS: [libc::c_long; 9] = [
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setreuid,
    libc::SYS_setregid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_setfsuid,
    libc::SYS_setfsgid,
    libc::SYS_setgroups,
];

impl Pretence {
    /// What the call with this number asks for.
    pub(crate) fn of(number: i32) -> Option<Self> {
        let found = OWNER_CALLS.iter().find(|(call, _)| *call == libc::c_long::from(number));
        found.map(|(_, pretence)| *pretence)
    }

    /// Falls through for what is left alone.
    fn native() -> Vec<Instruction> {
        let mut program = Vec::new();
        for (call, _) in OWNER_CALLS {
            program.extend([jump(JUMP_EQUAL, *call as u32, 0, 1), statement(RETURN, RET_USER_NOTIF)]);
        }
        for call in IDENTITY_CALLS {
            // An error number of none: the call is skipped and returns 0.
            program.extend([jump(JUMP_EQUAL, call as u32, 0, 1), statement(RETURN, RET_ERRNO)]);
        }
        program
    }
}

/// What somebody outside answers for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Answered {
    /// Changes of owners, with a changed identity as a matter of form: see [`Pretence`].
    pub(crate) owners: bool,
    /// What takes more bytes of a disk than these in one call: see [`Announced`].
    pub(crate) room: Option<u32>,
}

impl Answered {
    /// The instructions. A process can have but one such filter, so both are in it.
    pub(crate) fn program(self) -> Vec<Instruction> {
        let mut native = vec![statement(LOAD, OFFSET_NUMBER)];
        if self.owners {
            native.extend(Pretence::native());
        }
        if let Some(bound) = self.room {
            native.extend(Announced::native(bound));
        }
        native.push(statement(RETURN, RET_ALLOW));
        let mut program = vec![statement(LOAD, OFFSET_ARCH)];
        program.extend(when_equal(NATIVE, native));
        if self.room.is_some() && cfg!(target_arch = "x86_64") {
            let mut i386 = vec![statement(LOAD, OFFSET_NUMBER)];
            i386.extend(Announced::i386());
            program.extend(when_equal(AUDIT_ARCH_I386, i386));
        }
        program.push(statement(RETURN, RET_ALLOW));
        program
    }
}
