//! Images over the network and through archives: `pull`, `push`, `save`, `load`.

use std::collections::BTreeSet;
use std::io::IsTerminal as _;
use std::path::PathBuf;

use stave_exporter::{ArchiveDestination, ArchiveLayout, Destination, LoadSource};
use stave_oci::{Platform, Reference};

use super::build::ProgressForm;
use crate::output::say;
use crate::progress::Display;
use crate::report::Failure;
use crate::runtime::with_engine;
use crate::state::GlobalOptions;

/// Pull an image from its registry
#[derive(Debug, clap::Args)]
pub(crate) struct PullArguments {
    /// Platforms of the image
    #[arg(long, value_name = "OS/ARCH,…", value_delimiter = ',', env = "DOCKER_DEFAULT_PLATFORM")]
    platform: Vec<Platform>,
    /// Pull the images for all platforms, whatever `--platform` says
    #[arg(long)]
    all_platforms: bool,
    /// Print nothing but the name
    #[arg(short, long)]
    quiet: bool,
    /// The image
    #[arg(value_name = "NAME[:TAG|@DIGEST]")]
    name: Reference,
}

/// `stave pull`
pub(crate) fn pull(arguments: &PullArguments, global: &GlobalOptions) -> Result<u8, Failure> {
    let platform = match arguments.platform.as_slice() {
        _ if arguments.all_platforms => return pull_platforms(arguments, global),
        [] => Platform::host(),
        [only] => only.clone(),
        _ => return pull_platforms(arguments, global),
    };
    with_engine(global, async |engine, interrupt| {
        let display = Display::steps(form(arguments.quiet));
        let result = engine.pull(&arguments.name, &platform, display.observer(), interrupt.token()).await;
        display.abandon();
        let image = result.map_err(|error| Failure::new(&error))?;
        if !arguments.quiet
            && let Some(manifest) = &image.manifest
        {
            say!("Digest: {}", manifest.digest);
        }
        say!("{}", arguments.name);
        Ok(0)
    })
}

fn pull_platforms(arguments: &PullArguments, global: &GlobalOptions) -> Result<u8, Failure> {
    with_engine(global, async |engine, interrupt| {
        let display = Display::steps(form(arguments.quiet));
        let wanted = arguments.platform.iter().filter(|_| !arguments.all_platforms);
        let (name, platforms) = (&arguments.name, wanted.cloned().collect::<Vec<_>>());
        let result = engine.pull_platforms(name, &platforms, display.observer(), interrupt.token()).await;
        display.abandon();
        let pulled = result.map_err(|error| Failure::new(&error))?;
        if !arguments.quiet {
            say!("Digest: {}", pulled.digest);
            for image in &pulled.images {
                say!("{}: {}", image.platform, image.id);
            }
        }
        say!("{name}");
        Ok(0)
    })
}

/// Push an image to its registry
#[derive(Debug, clap::Args)]
pub(crate) struct PushArguments {
    /// Push only what is for these platforms
    #[arg(long, value_name = "OS/ARCH,…", value_delimiter = ',')]
    platform: Vec<Platform>,
    /// Print nothing but the name
    #[arg(short, long)]
    quiet: bool,
    /// The image
    #[arg(value_name = "NAME[:TAG]")]
    name: Reference,
}

/// `stave push`
pub(crate) fn push(arguments: &PushArguments, global: &GlobalOptions) -> Result<u8, Failure> {
    with_engine(global, async |engine, interrupt| {
        let display = Display::steps(form(arguments.quiet));
        let (name, platforms) = (&arguments.name, &arguments.platform);
        let result = engine.push(name, platforms, display.observer(), interrupt.token()).await;
        display.abandon();
        let exported = result.map_err(|error| Failure::new(&error))?;
        match exported.manifest {
            Some(manifest) if !arguments.quiet => {
                let tag = arguments.name.tag().unwrap_or_default();
                say!("{tag}: digest: {} size: {}", manifest.digest, manifest.size);
            }
            _ => say!("{}", arguments.name),
        }
        Ok(0)
    })
}

/// Write images to an archive
#[derive(Debug, clap::Args)]
pub(crate) struct SaveArguments {
    /// Write to a file instead of standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Form of the archive
    #[arg(long, value_name = "FORM", default_value = "docker")]
    format: ArchiveForm,
    /// Save only what is for these platforms
    #[arg(long, value_name = "OS/ARCH,…", value_delimiter = ',')]
    platform: Vec<Platform>,
    /// Names or ids
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
}

/// `save --format`
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum ArchiveForm {
    /// For `docker load`
    #[value(alias = "docker-archive")]
    Docker,
    /// An OCI image layout in a tar
    #[value(alias = "oci-archive")]
    Oci,
}

/// `stave save`
pub(crate) fn save(arguments: &SaveArguments, global: &GlobalOptions) -> Result<u8, Failure> {
    let dest = match &arguments.output {
        Some(path) => Destination::File(path.clone()),
        None if std::io::stdout().is_terminal() => {
            return Err(Failure::message("cowardly refusing to save to a terminal")
                .with_hint("use --output FILE, or redirect".to_owned()));
        }
        None => Destination::Stdout,
    };
    let layout = match arguments.format {
        ArchiveForm::Docker => ArchiveLayout::Docker,
        ArchiveForm::Oci => ArchiveLayout::Oci,
    };
    with_engine(global, async |engine, interrupt| {
        let dest = ArchiveDestination::Tar(dest);
        let saving = engine.save(&arguments.images, &arguments.platform, layout, &dest);
        tokio::select! {
            saved = saving => saved.map_err(|error| Failure::new(&error))?,
            () = interrupt.token().cancelled() => return Err(Failure::message("cancelled")),
        };
        Ok(0)
    })
}

/// Read images from an archive
#[derive(Debug, clap::Args)]
pub(crate) struct LoadArguments {
    /// Read from a file instead of standard input
    #[arg(short, long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// Load only what is for these platforms (by default, of an index, what is for this machine)
    #[arg(long, value_name = "OS/ARCH,…", value_delimiter = ',')]
    platform: Vec<Platform>,
    /// Show no progress (only names are ever shown; scripts written for docker give it)
    #[arg(short, long)]
    quiet: bool,
}

/// `stave load`
pub(crate) fn load(arguments: &LoadArguments, global: &GlobalOptions) -> Result<u8, Failure> {
    let source = match &arguments.input {
        Some(path) => LoadSource::Path(path.clone()),
        None if std::io::stdin().is_terminal() => {
            return Err(Failure::message("requested load from stdin, but stdin is a terminal")
                .with_hint("use --input FILE, or redirect".to_owned()));
        }
        None => LoadSource::Stream(Box::new(std::io::stdin())),
    };
    with_engine(global, async |engine, interrupt| {
        let loaded = tokio::select! {
            loaded = engine.load(source, &arguments.platform) => loaded.map_err(|error| Failure::new(&error))?,
            () = interrupt.token().cancelled() => return Err(Failure::message("cancelled")),
        };
        let mut told = BTreeSet::new();
        for image in loaded {
            for name in image.names.iter().map(Reference::familiar) {
                if told.insert(name.clone()) {
                    say!("Loaded image: {name}");
                }
            }
            if image.names.is_empty() {
                say!("Loaded image ID: {}", image.image.id);
            }
        }
        Ok(0)
    })
}

fn form(quiet: bool) -> ProgressForm {
    if quiet { ProgressForm::Quiet } else { ProgressForm::Auto }
}
