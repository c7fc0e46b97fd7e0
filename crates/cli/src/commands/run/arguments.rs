//! The flags of `stave run`, with docker's names and meaning.

use std::path::PathBuf;

use stave_oci::Platform;
use stave_sandbox::{
    CgroupLimits, CgroupParent, Network, Rlimit, RlimitResource, Sysctl, UserNetworkProgram,
};
use stave_worker::{Bind, StepNetwork};

use crate::commands::build::{size, ulimits};
use crate::commands::limits;
use crate::report::Failure;

/// Run a command in an image
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Remove the container afterwards (always done: containers are not kept)
    #[arg(long)]
    rm: bool,
    /// Pass standard input on
    #[arg(short, long)]
    pub(super) interactive: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    pub(super) tty: bool,
    /// Set an environment variable; without a value, take it from the environment
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// Working directory
    #[arg(short, long, value_name = "DIR")]
    pub(super) workdir: Option<String>,
    /// User and group
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub(super) user: Option<String>,
    /// Replace the image's entry point
    #[arg(long, value_name = "PROGRAM")]
    entrypoint: Option<String>,
    /// Mount a file or directory of the host
    #[arg(short, long, value_name = "SOURCE:TARGET[:ro]")]
    volume: Vec<String>,
    /// Network: `host`, `none`, `bridge` (one of its own, with NAT), `pasta` or `slirp4netns`
    #[arg(long, aliases = ["net", "network-mode"], value_name = "MODE", default_value = "host")]
    network: NetworkMode,
    /// Refuse writes to the root file system
    #[arg(long)]
    pub(super) read_only: bool,
    /// Host name
    #[arg(long, value_name = "NAME")]
    pub(super) hostname: Option<String>,
    /// Add a line to /etc/hosts
    #[arg(long, value_name = "NAME:ADDRESS")]
    add_host: Vec<String>,
    #[command(flatten)]
    limits: limits::Flags,
    /// Size of /dev/shm (`64m`)
    #[arg(long, value_name = "BYTES")]
    shm_size: Option<String>,
    /// Limit a resource of each process (`nofile=1024:2048`)
    #[arg(long = "ulimit", value_name = "NAME=SOFT[:HARD]", allow_hyphen_values = true)]
    ulimits: Vec<String>,
    /// Set a kernel parameter of the container's own namespaces (`net.core.somaxconn=1024`)
    #[arg(long = "sysctl", value_name = "NAME=VALUE")]
    sysctls: Vec<String>,
    /// When to pull the image
    #[arg(long, value_name = "WHEN", default_value = "missing")]
    pub(super) pull: PullMode,
    /// Platform of the image
    #[arg(long, value_name = "OS/ARCH")]
    pub(super) platform: Option<Platform>,
    /// The image, then the command and its arguments: what follows the image is never taken for an option
    #[arg(
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "IMAGE [COMMAND]"
    )]
    words: Vec<String>,
}

/// `--network`
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum NetworkMode {
    /// The host's
    Host,
    /// Only a loopback device
    None,
    /// One of its own, on a bridge with NAT
    Bridge,
    /// One of its own, connected by the program of that name; needs no privileges
    Pasta,
    /// The same by another program
    Slirp4netns,
}

/// `--pull`
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum PullMode {
    /// Even if it is here
    Always,
    /// If it is not here
    Missing,
    /// Not at all
    Never,
}

/// What docker says of a word that is a flag, of one letter or of several, and not one of ours.
fn unknown_flag(word: &str) -> Option<String> {
    if word.starts_with("--") {
        return Some(format!("unknown flag: {}", word.split('=').next().unwrap_or(word)));
    }
    // `-i` and `-t` may stand before others.
    let letters = word.strip_prefix('-')?.trim_start_matches(['i', 't']);
    let first = letters.chars().next()?;
    Some(format!("unknown shorthand flag: {first:?} in -{letters}"))
}

/// The flags that have a language of their own, read.
pub(super) struct Wishes {
    pub(super) entrypoint: Option<Vec<String>>,
    pub(super) env: Vec<String>,
    pub(super) binds: Vec<Bind>,
    pub(super) network: StepNetwork,
    pub(super) extra_hosts: Vec<(String, String)>,
    pub(super) limits: CgroupLimits,
    pub(super) cgroup_parent: CgroupParent,
    pub(super) rlimits: Vec<Rlimit>,
    pub(super) shm_size: Option<u64>,
    pub(super) sysctls: Vec<Sysctl>,
}

impl Arguments {
    /// The image.
    pub(super) fn image(&self) -> &str {
        self.words.first().map_or("", String::as_str)
    }

    /// The command and its arguments.
    pub(super) fn command(&self) -> &[String] {
        self.words.get(1..).unwrap_or_default()
    }

    /// Reads them.
    pub(super) fn wishes(&self) -> Result<Wishes, Failure> {
        // Whatever stands where the image is expected is taken for it.
        if let Some(refusal) = self.words.first().and_then(|word| unknown_flag(word)) {
            return Err(Failure::usage(refusal));
        }
        let hosts = crate::commands::build::hosts(&self.add_host)
            .map_err(|error| Failure::usage(error.to_string()))?;
        Ok(Wishes {
            // docker: an empty entry point removes the image's.
            entrypoint: self
                .entrypoint
                .clone()
                .map(|text| if text.is_empty() { Vec::new() } else { vec![text] }),
            env: environment(&self.env, |name| std::env::var(name).ok()),
            binds: self.volume.iter().map(|text| bind(text)).collect::<Result<_, _>>()?,
            network: match self.network {
                NetworkMode::Host => StepNetwork::Host,
                NetworkMode::None => StepNetwork::None,
                NetworkMode::Bridge => StepNetwork::Bridge,
                NetworkMode::Pasta => StepNetwork::User(UserNetworkProgram::Pasta),
                NetworkMode::Slirp4netns => StepNetwork::User(UserNetworkProgram::Slirp4netns),
            },
            limits: self.limits.limits()?,
            cgroup_parent: self
                .limits
                .cgroup_parent
                .clone()
                .map_or(CgroupParent::Default, CgroupParent::Named),
            rlimits: rlimits(&self.ulimits)?,
            shm_size: self
                .shm_size
                .as_deref()
                .map(size)
                .transpose()
                .map_err(|error| Failure::usage(error.to_string()))?,
            sysctls: self.sysctls.iter().map(|text| sysctl(text, self.network)).collect::<Result<_, _>>()?,
            extra_hosts: hosts.into_iter().map(|host| (host.host, host.address.to_string())).collect(),
        })
    }
}

fn sysctl(text: &str, network: NetworkMode) -> Result<Sysctl, Failure> {
    let wrong = || Failure::usage(format!("invalid sysctl `{text}`: expected `NAME=VALUE`"));
    let (name, value) = text.split_once('=').ok_or_else(wrong)?;
    let sysctl = Sysctl { name: name.to_owned(), value: value.to_owned() };
    // Of the others each has a network namespace, and that is all that matters here.
    let refusal = sysctl.refusal(if network == NetworkMode::Host { Network::Host } else { Network::None });
    refusal.map_or(Ok(sysctl), |refusal| Err(Failure::usage(refusal)))
}

fn rlimits(words: &[String]) -> Result<Vec<Rlimit>, Failure> {
    let limits = ulimits(words).map_err(|error| Failure::usage(error.to_string()))?;
    let limit = |(name, soft, hard): (String, i64, i64)| {
        let resource = RlimitResource::from_name(&name)
            .ok_or_else(|| Failure::usage(format!("unknown resource limit `{name}`")))?;
        // Negative means none.
        let value = |value: i64| u64::try_from(value).unwrap_or(u64::MAX);
        Ok(Rlimit { resource, soft: value(soft), hard: value(hard) })
    };
    limits.into_iter().map(limit).collect()
}

/// A bare name takes the caller's value, and is left out if there is none.
fn environment(words: &[String], caller: impl Fn(&str) -> Option<String>) -> Vec<String> {
    let pair = |word: &String| match word.contains('=') {
        true => Some(word.clone()),
        false => caller(word).map(|value| format!("{word}={value}")),
    };
    words.iter().filter_map(pair).collect()
}

fn bind(text: &str) -> Result<Bind, Failure> {
    let wrong = |problem: &str| Failure::usage(format!("invalid volume `{text}`: {problem}"));
    let parts: Vec<&str> = text.split(':').collect();
    let (source, target, mode) = match parts.as_slice() {
        [source, target] => (*source, *target, "rw"),
        [source, target, mode] => (*source, *target, *mode),
        _ => return Err(wrong("expected `SOURCE:TARGET[:ro]`")),
    };
    if !source.starts_with(['/', '.', '~']) {
        return Err(wrong("named volumes are not supported yet; give a path"));
    }
    if !target.starts_with('/') {
        return Err(wrong("the target must be an absolute path"));
    }
    let mut readonly = false;
    for option in mode.split(',') {
        match option {
            "ro" | "readonly" => readonly = true,
            "rw" => readonly = false,
            // Labels for SELinux: nothing to do where it is not enforced.
            "z" | "Z" => {}
            other => return Err(wrong(&format!("unknown mode `{other}`: expected `ro` or `rw`"))),
        }
    }
    Ok(Bind { source: PathBuf::from(source), target: PathBuf::from(target), readonly })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_flags_are_called_as_docker_calls_them() {
        let found = ["--no=1", "-xyz", "-itx", "-", "busybox"].map(unknown_flag);
        let found = found.each_ref().map(Option::as_deref);
        let letter = "unknown shorthand flag: 'x' in -";
        let (cluster, last) = (format!("{letter}xyz"), format!("{letter}x"));
        assert_eq!(found, [Some("unknown flag: --no"), Some(&*cluster), Some(&*last), None, None]);
    }

    #[track_caller]
    fn check(text: &str, expected: Result<(&str, &str, bool), &str>) {
        let found = bind(text).map_err(|failure| failure.message);
        let expected = expected.map(|(source, target, readonly)| Bind {
            source: source.into(),
            target: target.into(),
            readonly,
        });
        assert_eq!(found, expected.map_err(|problem| format!("invalid volume `{text}`: {problem}")));
    }

    #[test]
    fn what_follows_the_image_is_the_commands() {
        #[derive(clap::Parser)]
        struct Only {
            #[command(flatten)]
            arguments: Arguments,
        }
        let words = ["run", "-m", "64m", "image", "-c", "echo", "--memory", "-t"];
        let Only { arguments } =
            clap::Parser::try_parse_from(words).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(
            (arguments.image(), arguments.command()),
            ("image", &words[4..].iter().map(ToString::to_string).collect::<Vec<_>>()[..])
        );
        assert!(
            !arguments.tty && arguments.limits.limits().is_ok_and(|limits| limits.memory == Some(64 << 20))
        );
    }

    #[test]
    fn kernel_parameters() {
        let told = |text: &str, network| sysctl(text, network).map(|_| ()).map_err(|failure| failure.message);
        assert_eq!(told("net.core.somaxconn=7", NetworkMode::Bridge), Ok(()));
        let host = "sysctl 'net.core.somaxconn' not allowed in host network namespace".to_owned();
        assert_eq!(told("net.core.somaxconn=7", NetworkMode::Host), Err(host));
        let form = "invalid sysctl `kernel.sem`: expected `NAME=VALUE`".to_owned();
        assert_eq!(told("kernel.sem", NetworkMode::Host), Err(form));
    }

    #[test]
    fn volumes() {
        check("/a:/b", Ok(("/a", "/b", false)));
        check("./a:/b:ro", Ok(("./a", "/b", true)));
        check("/a:/b:z,ro", Ok(("/a", "/b", true)));
        check("/a", Err("expected `SOURCE:TARGET[:ro]`"));
        check("/a:b", Err("the target must be an absolute path"));
        check("name:/b", Err("named volumes are not supported yet; give a path"));
        check("/a:/b:bad", Err("unknown mode `bad`: expected `ro` or `rw`"));
    }

    #[test]
    fn bare_names_take_the_callers_value() {
        let words = ["A=1".to_owned(), "HERE".to_owned(), "GONE".to_owned()];
        let found = environment(&words, |name| (name == "HERE").then(|| "x".to_owned()));
        assert_eq!(found, ["A=1", "HERE=x"]);
    }
}
