//! The profile as an external runtime takes it: the `linux.seccomp` object of the OCI runtime specification.
//!
//! Says the same as the compiled program, by names. Read [`oci_seccomp`] first.

use serde_json::{Value, json};

use super::table::TABLE;
use super::{Abi, Action, ENOSYS, EPERM, NAMESPACE_FLAGS, PERSONALITIES, REFUSED_FAMILIES, action};
use crate::capability::CapabilitySet;

/// The profile for a process whose bounding set is `capabilities`.
#[must_use]
pub fn oci_seccomp(capabilities: CapabilitySet) -> Value {
    let native = if cfg!(target_arch = "x86_64") { Abi::X86_64 } else { Abi::Aarch64 };
    let known = TABLE.iter().filter(|row| row.numbers.iter().any(|number| *number >= 0));
    let mut allowed: Vec<&str> = Vec::new();
    let mut rules: Vec<Value> = Vec::new();
    for row in known {
        match action(row.rule, capabilities) {
            Action::Allow => allowed.push(row.name),
            Action::Errno(errno) if errno == ENOSYS => {
                rules.push(json!({ "names": [row.name], "action": "SCMP_ACT_ERRNO", "errnoRet": ENOSYS }));
            }
            // As every call that is not named.
            Action::Errno(_) => {}
            Action::CloneFlags => rules.push(when(row.name, NAMESPACE_FLAGS.into(), 0, "SCMP_CMP_MASKED_EQ")),
            Action::PersonalityValue => rules
                .extend(PERSONALITIES.iter().map(|value| when(row.name, (*value).into(), 0, "SCMP_CMP_EQ"))),
            // The families that are refused lie two apart, so three ranges remain.
            Action::SocketFamily => {
                let [low, high] = REFUSED_FAMILIES;
                rules.push(when(row.name, low.into(), 0, "SCMP_CMP_LT"));
                rules.push(when(row.name, (low + 1).into(), 0, "SCMP_CMP_EQ"));
                rules.push(when(row.name, high.into(), 0, "SCMP_CMP_GT"));
            }
        }
    }
    rules.push(json!({ "names": allowed, "action": "SCMP_ACT_ALLOW" }));
    let architectures = match native {
        Abi::Aarch64 => json!(["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"]),
        _ => json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]),
    };
    json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": EPERM,
        "architectures": architectures,
        "syscalls": rules,
    })
}

fn when(name: &str, value: u64, second: u64, comparison: &str) -> Value {
    json!({
        "names": [name],
        "action": "SCMP_ACT_ALLOW",
        "args": [{ "index": 0, "value": value, "valueTwo": second, "op": comparison }],
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capability::Capability;

    #[track_caller]
    fn allows(profile: &Value, name: &str) -> bool {
        let rules = profile["syscalls"].as_array().expect("rules");
        rules.iter().any(|rule| {
            rule["action"] == "SCMP_ACT_ALLOW"
                && rule.get("args").is_none()
                && rule["names"].as_array().is_some_and(|names| names.iter().any(|known| known == name))
        })
    }

    #[test]
    fn names_follow_the_capabilities() {
        let profile = oci_seccomp(CapabilitySet::DOCKER_DEFAULT);
        assert!(allows(&profile, "read") && allows(&profile, "chroot"));
        assert!(!allows(&profile, "mount") && !allows(&profile, "clone") && !allows(&profile, "clone3"));
        let admin = oci_seccomp(CapabilitySet::DOCKER_DEFAULT.with(Capability::SysAdmin));
        assert!(allows(&admin, "mount") && allows(&admin, "clone") && allows(&admin, "clone3"));
    }
}
