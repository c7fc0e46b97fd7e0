//! buildkitd's flags that have no place among the daemon's own: each is known by its name, and says why it cannot be
//! honoured unless it asks for what is so anyway. Start with [`FLAGS`].

/// What a flag comes to.
#[derive(Debug, Clone, Copy)]
enum Meaning {
    /// Whatever it says, nothing is different here.
    Anything,
    /// Only this is possible, for this reason.
    Only(&'static str, &'static str),
    /// Nothing of it is possible, for this reason.
    Nothing(&'static str),
}

use Meaning::{Anything, Nothing, Only};

const NO_CONTAINERD: &str = "there is no containerd worker";
const NO_CNI: &str = "networks are made without CNI (--oci-worker-net=bridge)";
const OWN_STORE: &str = "the store is the program's own";

/// The flags.
#[rustfmt::skip]
const FLAGS: &[(&str, Meaning)] = &[
    // A daemon is as rootless as the user it is started by.
    ("rootless", Anything),
    ("oci-worker-rootless", Anything),
    ("log-format", Only("text", "logs are lines of text")),
    ("proxy-network", Only("false", "steps have the host's network, one of their own, or none")),
    ("otel-socket-path", Nothing("steps are given no way to send traces; --otlp-endpoint sends those of builds")),
    ("cdi-disabled", Only("false", "devices are a grant: only builds with `device` get any")),
    ("save-cache-debug", Only("false", "`stave explain` says why a step ran")),
    ("oci-worker-proxy-snapshotter-path", Nothing(OWN_STORE)),
    ("oci-cni-config-path", Nothing(NO_CNI)),
    ("oci-cni-binary-dir", Nothing(NO_CNI)),
    ("oci-cni-pool-size", Only("0", NO_CNI)),
    ("oci-worker-apparmor-profile", Nothing("steps are confined by namespaces, capabilities and seccomp")),
    ("oci-worker-selinux", Only("false", "steps are confined by namespaces, capabilities and seccomp")),
    ("oci-worker-no-process-sandbox", Only("false", "steps have processes of their own")),
    ("containerd-worker-addr", Nothing(NO_CONTAINERD)),
    ("containerd-worker-labels", Nothing(NO_CONTAINERD)),
    ("containerd-worker-net", Nothing(NO_CONTAINERD)),
    ("containerd-cni-config-path", Nothing(NO_CONTAINERD)),
    ("containerd-cni-binary-dir", Nothing(NO_CONTAINERD)),
    ("containerd-cni-pool-size", Nothing(NO_CONTAINERD)),
    ("containerd-worker-snapshotter", Nothing(NO_CONTAINERD)),
    ("containerd-worker-apparmor-profile", Nothing(NO_CONTAINERD)),
    ("containerd-worker-selinux", Only("false", NO_CONTAINERD)),
    ("containerd-max-parallelism", Nothing(NO_CONTAINERD)),
    ("containerd-worker-rootless", Only("false", NO_CONTAINERD)),
    ("containerd-worker-gc", Only("false", NO_CONTAINERD)),
    ("containerd-worker-gc-keepstorage", Nothing(NO_CONTAINERD)),
];

/// A flag of buildkitd that asks for what is not here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`--{flag}={value}` is not supported: {reason}")]
pub(super) struct RefusedFlag {
    flag: &'static str,
    value: String,
    reason: &'static str,
}

/// Those that were given.
#[derive(Debug, Clone, Default)]
pub(super) struct ForeignFlags(Vec<(&'static str, Meaning, String)>);

impl ForeignFlags {
    /// Refuses the first that cannot be honoured.
    pub(super) fn check(&self) -> Result<(), RefusedFlag> {
        for (flag, meaning, value) in &self.0 {
            let reason = match meaning {
                Anything => continue,
                Only(possible, _) if value == possible => continue,
                Only(_, reason) | Nothing(reason) => reason,
            };
            return Err(RefusedFlag { flag, value: value.clone(), reason });
        }
        Ok(())
    }
}

impl clap::Args for ForeignFlags {
    fn augment_args(command: clap::Command) -> clap::Command {
        FLAGS.iter().fold(command, |command, (flag, _)| {
            let flag =
                clap::Arg::new(*flag).long(*flag).hide(true).num_args(0..=1).default_missing_value("true");
            command.arg(flag.action(clap::ArgAction::Append))
        })
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

impl clap::FromArgMatches for ForeignFlags {
    fn from_arg_matches(matches: &clap::ArgMatches) -> Result<Self, clap::Error> {
        let mut given = Vec::new();
        for (flag, meaning) in FLAGS {
            for value in matches.get_many::<String>(flag).into_iter().flatten() {
                given.push((*flag, *meaning, value.clone()));
            }
        }
        Ok(Self(given))
    }

    fn update_from_arg_matches(&mut self, matches: &clap::ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use clap::Args as _;
    use clap::FromArgMatches as _;

    use super::super::Arguments;

    /// What `buildkitd --help` of v0.32 names.
    const BUILDKITD: &[&str] = &[
        "rootless",
        "debug",
        "root",
        "addr",
        "log-format",
        "log-level",
        "group",
        "debugaddr",
        "tlscert",
        "tlskey",
        "tlscacert",
        "allow-insecure-entitlement",
        "proxy-network",
        "otel-socket-path",
        "cdi-disabled",
        "cdi-spec-dir",
        "save-cache-debug",
        "containerd-worker",
        "containerd-worker-addr",
        "containerd-worker-labels",
        "containerd-worker-net",
        "containerd-cni-config-path",
        "containerd-cni-binary-dir",
        "containerd-cni-pool-size",
        "containerd-worker-snapshotter",
        "containerd-worker-apparmor-profile",
        "containerd-worker-selinux",
        "containerd-max-parallelism",
        "containerd-worker-rootless",
        "containerd-worker-gc",
        "containerd-worker-gc-keepstorage",
        "oci-worker",
        "oci-worker-labels",
        "oci-worker-snapshotter",
        "oci-worker-proxy-snapshotter-path",
        "oci-worker-platform",
        "oci-worker-net",
        "oci-cni-config-path",
        "oci-cni-binary-dir",
        "oci-cni-pool-size",
        "oci-worker-binary",
        "oci-worker-apparmor-profile",
        "oci-worker-selinux",
        "oci-max-parallelism",
        "oci-worker-rootless",
        "oci-worker-no-process-sandbox",
        "oci-worker-gc",
        "oci-worker-gc-keepstorage",
        "config",
    ];

    /// Flags that every command of the program has.
    const EVERYWHERE: [&str; 3] = ["root", "debug", "config"];

    fn parsed(line: &str) -> Result<Arguments, clap::Error> {
        let command = Arguments::augment_args(clap::Command::new("daemon"));
        let matches = command.try_get_matches_from(std::iter::once("daemon").chain(line.split(' ')))?;
        Arguments::from_arg_matches(&matches)
    }

    #[test]
    fn each_flag_of_buildkitd_is_known() {
        let command = Arguments::augment_args(clap::Command::new("daemon"));
        let is_known = |flag: &str| {
            command.get_arguments().any(|arg| {
                arg.get_long() == Some(flag) || arg.get_all_aliases().is_some_and(|all| all.contains(&flag))
            })
        };
        for flag in BUILDKITD.iter().filter(|flag| !EVERYWHERE.contains(flag)) {
            assert!(is_known(flag), "{flag}");
        }
    }

    #[track_caller]
    fn check(line: &str, expected: Result<(), &str>) {
        let found = parsed(line).expect("is known").foreign.check();
        assert_eq!(found.map_err(|error| error.to_string()), expected.map_err(str::to_owned), "{line}");
    }

    #[test]
    fn what_cannot_be_honoured_is_refused_by_name() {
        check("--rootless --oci-worker-rootless=false --log-format text --oci-worker-selinux=false", Ok(()));
        check(
            "--oci-worker-no-process-sandbox --addr unix:///x",
            Err("`--oci-worker-no-process-sandbox=true` is not supported: steps have processes of their own"),
        );
        check("--log-format=json", Err("`--log-format=json` is not supported: logs are lines of text"));
        check(
            "--containerd-worker-addr /run/x.sock",
            Err("`--containerd-worker-addr=/run/x.sock` is not supported: there is no containerd worker"),
        );
    }

    #[test]
    fn storage_is_kept_by_up_to_three_numbers() {
        let kept = |line: &str| parsed(line).map(|found| found.worker.oci_worker_gc_keepstorage);
        let kept = |text: &str| kept(&format!("--oci-worker-gc-keepstorage={text}")).ok().flatten();
        let numbers = |text: &str| kept(text).map(|kept| (kept.reserved, kept.free, kept.most));
        assert_eq!(numbers("2000"), Some((2000, None, None)));
        assert_eq!(numbers("1,2,3"), Some((1, Some(2), Some(3))));
        assert!(numbers("1,x").is_none() && numbers("1,2,3,4").is_none() && numbers("").is_none());
    }
}
