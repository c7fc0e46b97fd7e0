//! Images over the network and through archives: `pull`, `push`, `save`, `load`.

use std::collections::BTreeSet;
use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::str::FromStr;

use stave_engine::Engine;
use stave_exporter::{ArchiveDestination, ArchiveLayout, Destination, LoadSource};
use stave_oci::{Platform, Reference, ReferenceError};

use super::build::ProgressForm;
use crate::output::say;
use crate::progress::Display;
use crate::report::Failure;
use crate::runtime::{Interrupt, with_engine};
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
    /// Pull every tag of the repository
    #[arg(short, long)]
    all_tags: bool,
    /// Print nothing but the name
    #[arg(short, long)]
    quiet: bool,
    /// The image
    #[arg(value_name = "NAME[:TAG|@DIGEST]")]
    name: Typed,
}

/// A name as it was typed.
#[derive(Debug, Clone)]
struct Typed {
    name: Reference,
    /// Whether it has a tag or digest of its own.
    is_tagged: bool,
}

impl FromStr for Typed {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let name: Reference = text.parse()?;
        let last = text.rsplit('/').next().unwrap_or_default();
        Ok(Self { name, is_tagged: last.contains([':', '@']) })
    }
}

impl Typed {
    /// The name, of which all tags are meant.
    fn repository(&self) -> Result<&Reference, Failure> {
        match self.is_tagged {
            true => Err(Failure::message("tag can't be used with --all-tags/-a")),
            false => Ok(&self.name),
        }
    }
}

/// `stave pull`
pub(crate) fn pull(arguments: &PullArguments, global: &GlobalOptions) -> Result<u8, Failure> {
    if !arguments.all_tags {
        return with_engine(global, async |engine, interrupt| {
            pull_one(arguments, &arguments.name.name, engine, interrupt).await?;
            say!("{}", arguments.name.name);
            Ok(0)
        });
    }
    let repository = arguments.name.repository()?;
    with_engine(global, async |engine, interrupt| {
        let tags = tokio::select! {
            tags = engine.tags(repository) => tags.map_err(|error| Failure::new(&error))?,
            () = interrupt.token().cancelled() => return Err(Failure::message("cancelled")),
        };
        let tags: Vec<Reference> =
            tags.into_iter().filter(|name| !name.tag().is_some_and(is_fallback)).collect();
        if tags.is_empty() {
            return Err(Failure::message(format!("{} has no tags", repository.familiar_name())));
        }
        for name in &tags {
            if !arguments.quiet {
                say!("{}: Pulling from {}", name.tag().unwrap_or_default(), name.repository());
            }
            pull_one(arguments, name, engine, interrupt).await?;
        }
        say!("{}", repository.name());
        Ok(0)
    })
}

/// Whether a tag is where registries without a list of referrers keep that of a manifest (the distribution
/// specification's "referrers tag schema"): no image.
fn is_fallback(tag: &str) -> bool {
    tag.split_once('-').is_some_and(|(algorithm, digits)| {
        ["sha256", "sha384", "sha512"].contains(&algorithm)
            && digits.len() == 64
            && digits.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'))
    })
}

/// Pulls one name and says what came.
async fn pull_one(
    arguments: &PullArguments,
    name: &Reference,
    engine: &Engine,
    interrupt: &Interrupt,
) -> Result<(), Failure> {
    let display = Display::steps(form(arguments.quiet));
    let only = match arguments.platform.as_slice() {
        _ if arguments.all_platforms => None,
        [] => Some(Platform::host()),
        [only] => Some(only.clone()),
        _ => None,
    };
    let Some(platform) = only else {
        let wanted = arguments.platform.iter().filter(|_| !arguments.all_platforms);
        let platforms = wanted.cloned().collect::<Vec<_>>();
        let result = engine.pull_platforms(name, &platforms, display.observer(), interrupt.token()).await;
        display.abandon();
        let pulled = result.map_err(|error| Failure::new(&error))?;
        if !arguments.quiet {
            say!("Digest: {}", pulled.digest);
            for image in &pulled.images {
                say!("{}: {}", image.platform, image.id);
            }
        }
        return Ok(());
    };
    let result = engine.pull(name, &platform, display.observer(), interrupt.token()).await;
    display.abandon();
    let image = result.map_err(|error| Failure::new(&error))?;
    if let Some(manifest) = image.manifest.filter(|_| !arguments.quiet) {
        say!("Digest: {}", manifest.digest);
    }
    Ok(())
}

/// Push an image to its registry
#[derive(Debug, clap::Args)]
pub(crate) struct PushArguments {
    /// Push only what is for these platforms
    #[arg(long, value_name = "OS/ARCH,…", value_delimiter = ',')]
    platform: Vec<Platform>,
    /// Push every tag of the name that is here
    #[arg(short, long)]
    all_tags: bool,
    /// Print nothing but the name
    #[arg(short, long)]
    quiet: bool,
    /// The image
    #[arg(value_name = "NAME[:TAG]")]
    name: Typed,
}

/// `stave push`
pub(crate) fn push(arguments: &PushArguments, global: &GlobalOptions) -> Result<u8, Failure> {
    let all = arguments.all_tags.then(|| arguments.name.repository()).transpose()?;
    with_engine(global, async |engine, interrupt| {
        let names = match all {
            Some(repository) => engine.local_tags(repository).map_err(|error| Failure::new(&error))?,
            None => vec![arguments.name.name.clone()],
        };
        if names.is_empty() {
            let name = arguments.name.name.familiar_name();
            let message = format!("An image does not exist locally with the tag: {name}");
            return Err(Failure::message(message).with_hint("`stave images` lists what is here".to_owned()));
        }
        for name in &names {
            let display = Display::steps(form(arguments.quiet));
            let result = engine.push(name, &arguments.platform, display.observer(), interrupt.token()).await;
            display.abandon();
            let exported = result.map_err(|error| Failure::new(&error))?;
            match exported.manifest {
                Some(manifest) if !arguments.quiet => {
                    let tag = name.tag().unwrap_or_default();
                    say!("{tag}: digest: {} size: {}", manifest.digest, manifest.size);
                }
                _ if all.is_none() => say!("{name}"),
                _ => {}
            }
        }
        if let Some(repository) = all.filter(|_| arguments.quiet) {
            say!("{}", repository.name());
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

/// Loads the archive of a build that was made elsewhere; what it is called its caller knows.
pub(crate) fn load_archive(path: PathBuf, global: &GlobalOptions) -> Result<u8, Failure> {
    with_engine(global, async |engine, interrupt| {
        tokio::select! {
            loaded = engine.load(LoadSource::Path(path), &[]) => {
                loaded.map(|_| 0).map_err(|error| Failure::new(&error))
            }
            () = interrupt.token().cancelled() => Err(Failure::message("cancelled")),
        }
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_referrers_are_no_images() {
        let digits = "0a".repeat(32);
        assert!(is_fallback(&format!("sha256-{digits}")) && is_fallback(&format!("sha512-{digits}")));
        for tag in
            ["sha256-", "latest", "sha256-0a", &format!("md5-{digits}"), &format!("sha256-{digits}.sig")]
        {
            assert!(!is_fallback(tag), "{tag}");
        }
    }
}
