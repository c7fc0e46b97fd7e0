//! The flags of `stave build`, with docker's names and meaning. Plain data.

use std::path::PathBuf;

use stave_oci::Platform;

use super::values;
use crate::progress::Sections;

/// Build an image from a Dockerfile
#[derive(Debug, clap::Args)]
#[command(
    after_help = "CONTEXT is a directory, the URL of a git repository (`URL#REF:DIRECTORY`), of a tar archive or of a \
                  Dockerfile, or `-` for a tar archive or a Dockerfile on standard input."
)]
pub(crate) struct Arguments {
    /// Path or URL of the Dockerfile, `-` for standard input (default: CONTEXT/Dockerfile, or CONTEXT/dockerfile)
    #[arg(short, long, value_name = "FILE")]
    pub(super) file: Option<PathBuf>,
    /// Set a build-time variable; without a value, take it from the environment
    #[arg(long = "build-arg", value_name = "NAME[=VALUE]")]
    pub(super) build_args: Vec<String>,
    /// Stage to build (default: the last)
    #[arg(long, value_name = "STAGE")]
    pub(super) target: Option<String>,
    /// Platforms of the image (`linux/amd64,linux/arm64`); several become one index
    #[arg(
        long = "platform",
        value_name = "OS/ARCH",
        env = "DOCKER_DEFAULT_PLATFORM",
        value_parser = values::platform,
        value_delimiter = ','
    )]
    pub(super) platforms: Vec<Platform>,
    /// Further contexts that stand for a stage or an image
    /// (`name=DIRECTORY|docker-image://REF|oci-layout://PATH[:TAG|@DIGEST]|URL`)
    #[arg(long = "build-context", value_name = "NAME=SOURCE")]
    pub(super) build_contexts: Vec<String>,
    /// Let RUN steps and repositories that ask for it use an ssh agent or keys (`default|ID[=SOCKET|KEY[,KEY]]`)
    #[arg(long = "ssh", value_name = "SPEC")]
    pub(super) ssh: Vec<String>,
    /// Do not use the cache
    #[arg(long)]
    pub(super) no_cache: bool,
    /// Stages that must not use the cache
    #[arg(long, value_name = "STAGE", value_delimiter = ',')]
    pub(super) no_cache_filter: Vec<String>,
    /// Modes of files in the context: `keep` them, or take them as `git` does (0644 and 0755)
    #[arg(long, value_name = "MODEL")]
    pub(super) context_modes: Option<crate::config::ModesName>,
    /// Look base images up at their registry even if they are here
    #[arg(long)]
    pub(super) pull: bool,
    /// Set a label of the image
    #[arg(long = "label", value_name = "NAME=VALUE")]
    pub(super) labels: Vec<String>,
    /// Network of RUN steps: `default`, `none`, `host`, `bridge` (one of its own for each, with NAT), `pasta` or
    /// `slirp4netns`
    #[arg(long, alias = "network-mode", value_name = "MODE", default_value = "default")]
    pub(super) network: NetworkMode,
    /// Add a line to /etc/hosts of RUN steps (`name:address`)
    #[arg(long = "add-host", value_name = "NAME:ADDRESS")]
    pub(super) add_hosts: Vec<String>,
    /// Let RUN steps that ask for it see a secret (`id=token,src=FILE` or `id=token,env=NAME`)
    #[arg(long = "secret", value_name = "SPEC")]
    pub(super) secrets: Vec<String>,
    #[command(flatten)]
    pub(super) result: super::outputs::Flags,
    #[command(flatten)]
    pub(super) caches: super::caches::CacheFlags,
    #[command(flatten)]
    pub(super) elsewhere: super::elsewhere::Flags,
    #[command(flatten)]
    pub(super) inquiry: super::inquiry::Flags,
    /// How progress is shown: `auto`, `plain`, `tty`, `grouped`, `rawjson` or `quiet`
    #[arg(long, value_name = "FORM", env = "BUILDKIT_PROGRESS", default_value = "auto", value_parser = ProgressForm::parse)]
    pub(super) progress: ProgressForm,
    /// Marks of `--progress=grouped`, by which a viewer folds: `auto` (by environment), `github`, `gitlab` or `none`
    #[arg(long, value_name = "VIEWER", default_value = "auto", hide_possible_values = true)]
    sections: Sections,
    /// Print nothing but the image id
    #[arg(short, long)]
    pub(super) quiet: bool,
    /// Write the image id to a file
    #[arg(long, value_name = "FILE")]
    pub(super) iidfile: Option<PathBuf>,
    /// Write what was built to a file, as JSON
    #[arg(long, value_name = "FILE")]
    pub(super) metadata_file: Option<PathBuf>,
    #[command(flatten)]
    pub(super) confine: super::confine::Flags,
    #[command(flatten)]
    pub(super) failure: super::failure::Flags,
    #[command(flatten)]
    pub(super) timing: super::timing::Flags,
    /// Size of /dev/shm in RUN steps (`64m`)
    #[arg(long, value_name = "BYTES")]
    pub(super) shm_size: Option<String>,
    /// Limit a resource of RUN steps (`nofile=1024:2048`)
    #[arg(long = "ulimit", value_name = "NAME=SOFT[:HARD]", allow_hyphen_values = true)]
    pub(super) ulimits: Vec<String>,
    /// Host name of RUN steps
    #[arg(long, value_name = "NAME")]
    pub(super) hostname: Option<String>,
    /// Directory, URL or `-`
    #[arg(value_name = "CONTEXT")]
    pub(super) context: PathBuf,
}

impl Arguments {
    /// Whether something is built, not only asked.
    pub(crate) fn builds(&self) -> bool {
        self.inquiry.inquiry().is_none()
    }

    /// How progress is shown; `--quiet` wins.
    pub(super) fn form(&self) -> ProgressForm {
        match self.progress {
            _ if self.quiet => ProgressForm::Quiet,
            ProgressForm::Grouped(_) => ProgressForm::Grouped(self.sections),
            form => form,
        }
    }
}

/// `--network`
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum NetworkMode {
    /// The default
    Default,
    /// Only a loopback device
    None,
    /// The host's
    Host,
    /// One of its own for each step, on a bridge with NAT
    Bridge,
    /// One of its own for each step, connected by the program of that name; needs no privileges
    Pasta,
    /// The same by another program
    Slirp4netns,
}

/// `--progress`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ProgressForm {
    /// A live view on a terminal, lines elsewhere
    Auto,
    /// Lines
    Plain,
    /// A live view
    Tty,
    /// Lines, each step's together when it ends
    Grouped(Sections),
    /// BuildKit's status as JSON
    Rawjson,
    /// Nothing
    Quiet,
}

impl ProgressForm {
    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "plain" => Ok(Self::Plain),
            "tty" => Ok(Self::Tty),
            "grouped" => Ok(Self::Grouped(Sections::Auto)),
            "rawjson" => Ok(Self::Rawjson),
            "quiet" | "none" => Ok(Self::Quiet),
            _ => Err("expected `auto`, `plain`, `tty`, `grouped`, `rawjson` or `quiet`".to_owned()),
        }
    }
}
