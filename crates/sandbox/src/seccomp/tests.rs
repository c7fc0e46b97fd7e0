//! The program is run by a small BPF interpreter, so that each verdict can be checked for every ABI.

use super::*;

const ALLOWED: u32 = RET_ALLOW;
const REFUSED: u32 = RET_ERRNO | EPERM as u32;
const MISSING: u32 = RET_ERRNO | ENOSYS as u32;

/// Runs the program as the kernel would: every jump forward, every path ends in a return.
fn verdict(filter: &Filter, arch: u32, number: u32, argument: u32) -> u32 {
    let program = filter.program();
    let (mut at, mut accumulator) = (0, 0);
    loop {
        let Instruction { code, if_true, if_false, operand } = program[at];
        let taken = match code {
            LOAD => {
                accumulator = match operand {
                    OFFSET_NUMBER => number,
                    OFFSET_ARCH => arch,
                    OFFSET_ARGUMENT_0 => argument,
                    other => panic!("load from {other}"),
                };
                0
            }
            JUMP => operand as usize,
            RETURN => return operand,
            JUMP_EQUAL => usize::from(if accumulator == operand { if_true } else { if_false }),
            JUMP_AT_LEAST => usize::from(if accumulator >= operand { if_true } else { if_false }),
            JUMP_ANY_BIT => usize::from(if accumulator & operand != 0 { if_true } else { if_false }),
            other => panic!("instruction {other:#x}"),
        };
        at += 1 + taken;
    }
}

const NATIVE: (u32, Abi) = if cfg!(target_arch = "x86_64") {
    (AUDIT_ARCH_X86_64, Abi::X86_64)
} else {
    (AUDIT_ARCH_AARCH64, Abi::Aarch64)
};

#[track_caller]
fn number(name: &str, abi: Abi) -> u32 {
    let row = TABLE.iter().find(|row| row.name == name).expect("a call of the table");
    u32::try_from(row.numbers[abi as usize]).expect("the call exists there")
}

#[track_caller]
fn check(capabilities: CapabilitySet, name: &str, argument: u32, expected: u32) {
    let filter = Filter::docker_default(capabilities);
    let (arch, abi) = NATIVE;
    assert_eq!(verdict(&filter, arch, number(name, abi), argument), expected, "{name}({argument:#x})");
}

#[test]
fn every_row_has_its_own_verdict_on_every_abi() {
    let abis: &[(u32, Abi, u32)] = if cfg!(target_arch = "x86_64") {
        &[
            (AUDIT_ARCH_X86_64, Abi::X86_64, 0),
            (AUDIT_ARCH_X86_64, Abi::X32, X32_BIT),
            (AUDIT_ARCH_I386, Abi::I386, 0),
        ]
    } else {
        &[(AUDIT_ARCH_AARCH64, Abi::Aarch64, 0)]
    };
    for capabilities in [CapabilitySet::EMPTY, CapabilitySet::DOCKER_DEFAULT, CapabilitySet::ALL] {
        let filter = Filter::docker_default(capabilities);
        assert!(filter.program().len() <= 4096, "the kernel's limit");
        for (arch, abi, bit) in abis {
            let listed: Vec<u32> =
                TABLE.iter().filter_map(|row| row.numbers[*abi as usize].try_into().ok()).collect();
            for row in TABLE.iter().filter(|row| row.numbers[*abi as usize] >= 0) {
                let number = row.numbers[*abi as usize] as u32 | bit;
                let expected = match action(row.rule, capabilities) {
                    Action::Errno(errno) => RET_ERRNO | u32::from(errno),
                    _ => ALLOWED,
                };
                assert_eq!(verdict(&filter, *arch, number, 0), expected, "{} on {abi:?}", row.name);
            }
            let last = *listed.iter().max().expect("calls");
            for unlisted in (0..last).filter(|number| !listed.contains(number)) {
                assert_eq!(verdict(&filter, *arch, unlisted | bit, 0), REFUSED, "{unlisted} on {abi:?}");
            }
            assert_eq!(verdict(&filter, *arch, (last + 1) | bit, 0), MISSING);
        }
    }
}

#[test]
fn names_are_sorted_and_unique() {
    assert!(TABLE.windows(2).all(|pair| pair[0].name < pair[1].name));
}

#[test]
fn dangerous_calls_are_refused_by_default() {
    for name in
        ["mount", "umount2", "unshare", "setns", "bpf", "reboot", "init_module", "open_by_handle_at", "acct"]
    {
        check(CapabilitySet::DOCKER_DEFAULT, name, 0, REFUSED);
        check(CapabilitySet::ALL, name, 0, ALLOWED);
    }
    assert!(TABLE.iter().all(|row| !["keyctl", "add_key", "kexec_load", "userfaultfd"].contains(&row.name)));
}

#[test]
fn clone_may_make_threads_but_no_namespaces() {
    let default = CapabilitySet::DOCKER_DEFAULT;
    check(default, "clone", 0x3d_0f00, ALLOWED);
    for namespace in [0x2_0000, 0x200_0000, 0x400_0000, 0x800_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000] {
        check(default, "clone", namespace | 17, REFUSED);
        check(default.with(Capability::SysAdmin), "clone", namespace | 17, ALLOWED);
    }
    check(default, "clone3", 0, MISSING);
    check(default.with(Capability::SysAdmin), "clone3", 0, ALLOWED);
}

#[test]
fn arguments_of_personality_and_socket_are_checked() {
    let default = CapabilitySet::DOCKER_DEFAULT;
    for (value, expected) in
        [(0, ALLOWED), (8, ALLOWED), (0x2_0008, ALLOWED), (u32::MAX, ALLOWED), (0x4_0000, REFUSED)]
    {
        check(default, "personality", value, expected);
    }
    for (family, expected) in
        [(1, ALLOWED), (2, ALLOWED), (16, ALLOWED), (38, REFUSED), (39, ALLOWED), (40, REFUSED)]
    {
        check(default, "socket", family, expected);
    }
}

#[test]
fn a_foreign_architecture_has_no_calls() {
    let filter = Filter::docker_default(CapabilitySet::ALL);
    assert_eq!(verdict(&filter, 0x4000_0028, 1, 0), MISSING);
}
