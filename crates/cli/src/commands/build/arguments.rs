//! The flags of `stave build`, with docker's names and meaning. Plain data.

use std::path::PathBuf;

use stave_oci::{Platform, Reference};

use super::values;

/// Build an image from a Dockerfile
#[derive(Debug, clap::Args)]
#[command(after_help = "CONTEXT is a directory, or `-` for a tar archive or a Dockerfile on standard input.")]
pub(crate) struct Arguments {
    /// Name and optionally a tag for the image (`name:tag`); an image that goes to an archive is stored under it too
    #[arg(short = 't', long = "tag", value_name = "NAME[:TAG]")]
    pub(super) tags: Vec<Reference>,
    /// Path of the Dockerfile, `-` for standard input (default: CONTEXT/Dockerfile, or CONTEXT/dockerfile)
    #[arg(short, long, value_name = "FILE")]
    pub(super) file: Option<PathBuf>,
    /// Set a build-time variable; without a value, take it from the environment
    #[arg(long = "build-arg", value_name = "NAME[=VALUE]")]
    pub(super) build_args: Vec<String>,
    /// Stage to build (default: the last)
    #[arg(long, value_name = "STAGE")]
    pub(super) target: Option<String>,
    /// Platform of the image
    #[arg(long, value_name = "OS/ARCH", env = "DOCKER_DEFAULT_PLATFORM", value_parser = values::platform)]
    pub(super) platform: Option<Platform>,
    /// Do not use the cache
    #[arg(long)]
    pub(super) no_cache: bool,
    /// Stages that must not use the cache
    #[arg(long, value_name = "STAGE", value_delimiter = ',')]
    pub(super) no_cache_filter: Vec<String>,
    /// Look base images up at their registry even if they are here
    #[arg(long)]
    pub(super) pull: bool,
    /// Set a label of the image
    #[arg(long = "label", value_name = "NAME=VALUE")]
    pub(super) labels: Vec<String>,
    /// Network of RUN steps: `default`, `none` or `host`
    #[arg(long, value_name = "MODE", default_value = "default")]
    pub(super) network: NetworkMode,
    /// Add a line to /etc/hosts of RUN steps (`name:address`)
    #[arg(long = "add-host", value_name = "NAME:ADDRESS")]
    pub(super) add_hosts: Vec<String>,
    /// Let RUN steps that ask for it see a secret (`id=token,src=FILE` or `id=token,env=NAME`)
    #[arg(long = "secret", value_name = "SPEC")]
    pub(super) secrets: Vec<String>,
    /// Where the result goes (`type=oci|docker|local|tar|image,dest=PATH`, or a directory)
    #[arg(short, long = "output", value_name = "SPEC")]
    pub(super) outputs: Vec<String>,
    /// Push the image to its registry (`--output type=image,push=true`)
    #[arg(long)]
    pub(super) push: bool,
    /// Load the image into the local store (the default)
    #[arg(long)]
    pub(super) load: bool,
    #[command(flatten)]
    pub(super) inquiry: super::inquiry::Flags,
    /// How progress is shown: `auto`, `plain`, `tty` or `quiet`
    #[arg(long, value_name = "FORM", env = "BUILDKIT_PROGRESS", default_value = "auto")]
    pub(super) progress: ProgressForm,
    /// Print nothing but the image id
    #[arg(short, long)]
    pub(super) quiet: bool,
    /// Write the image id to a file
    #[arg(long, value_name = "FILE")]
    pub(super) iidfile: Option<PathBuf>,
    /// Write what was built to a file, as JSON
    #[arg(long, value_name = "FILE")]
    pub(super) metadata_file: Option<PathBuf>,
    /// Size of /dev/shm in RUN steps (`64m`)
    #[arg(long, value_name = "BYTES")]
    pub(super) shm_size: Option<String>,
    /// Limit a resource of RUN steps (`nofile=1024:2048`)
    #[arg(long = "ulimit", value_name = "NAME=SOFT[:HARD]", allow_hyphen_values = true)]
    pub(super) ulimits: Vec<String>,
    /// Host name of RUN steps
    #[arg(long, value_name = "NAME")]
    pub(super) hostname: Option<String>,
    /// Not supported yet
    #[arg(long = "build-context", value_name = "NAME=SOURCE", hide = true)]
    pub(super) build_contexts: Vec<String>,
    /// Directory or `-`
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
        if self.quiet { ProgressForm::Quiet } else { self.progress }
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
}

/// `--progress`
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum ProgressForm {
    /// A live view on a terminal, lines elsewhere
    Auto,
    /// Lines
    Plain,
    /// A live view
    Tty,
    /// Nothing
    #[value(alias = "none")]
    Quiet,
}
