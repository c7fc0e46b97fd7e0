//! Flags that decide what becomes of the result: where it goes, what it is called, which times and
//! statements it carries.
//!
//! Owns `-t`, `-o` and its shorthands. Must not know how anything is exported. Start with [`Flags`].

use std::io::IsTerminal as _;
use std::str::FromStr;

use stave_engine::attest::Attest;
use stave_engine::{Squash, StageTag, Timestamps};
use stave_exporter::{Annotation, ExportTarget, ImageTarget, PushOptions};
use stave_oci::Reference;

use super::arguments::Arguments;
use super::attest;
use crate::engines;
use crate::report::Failure;

/// The flags of this module.
#[derive(Debug, clap::Args)]
#[group(skip)]
pub(super) struct Flags {
    /// Name and optionally a tag for the image (`name:tag`), or for a stage of its own (`stage=name:tag`); an
    /// image that goes to an archive is stored under it too
    #[arg(short = 't', long = "tag", value_name = "[STAGE=]NAME[:TAG]")]
    tags: Vec<Tag>,
    /// Where the result goes (`type=oci|docker|local|tar|image|registry,dest=PATH`, or a directory)
    #[arg(short, long = "output", value_name = "SPEC")]
    pub(super) outputs: Vec<String>,
    /// Push the image to its registry (`--output type=image,push=true`)
    #[arg(long)]
    pub(super) push: bool,
    /// Load the image into the local store (the default)
    #[arg(long)]
    pub(super) load: bool,
    /// Add an annotation (`[manifest|index|manifest-descriptor|index-descriptor[PLATFORM]:]NAME=VALUE`)
    #[arg(long = "annotation", value_name = "[TYPE:]NAME=VALUE")]
    pub(super) annotations: Vec<Annotation>,
    /// Times in the image: `reproducible`, the default (none later than SOURCE_DATE_EPOCH, else the clean git
    /// checkout's commit, else the newest base image) or `preserve`
    #[arg(long, value_name = "HOW")]
    pub(super) timestamps: Option<TimestampMode>,
    /// Make one layer of those of this build (`new`), or of all
    #[arg(long, value_name = "WHICH", num_args = 0..=1, require_equals = true, default_missing_value = "new")]
    squash: Option<SquashMode>,
    /// Build once more without the cache, and fail if the result differs
    #[arg(long)]
    pub(super) verify: bool,
    /// Attest how the image was made (`true`, `mode=min|max,version=v0.2|v1,builder-id=ID`)
    #[arg(long, value_name = "BOOL|SPEC", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(super) provenance: Option<String>,
    /// Attest what is in the image (`true`, `generator=IMAGE`)
    #[arg(long, value_name = "BOOL|SPEC", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(super) sbom: Option<String>,
    /// Attest (`type=provenance|sbom,KEY=VALUE…`)
    #[arg(long, value_name = "SPEC")]
    pub(super) attest: Vec<String>,
}

impl Flags {
    /// The image's names.
    pub(super) fn names(&self) -> Vec<String> {
        let own = self.tags.iter().filter(|tag| tag.stage.is_none());
        own.map(|tag| tag.name.to_string()).collect()
    }
}

/// A name for the image or for a stage.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Tag {
    stage: Option<String>,
    name: Reference,
}

impl FromStr for Tag {
    type Err = stave_oci::ReferenceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // No name of an image has an equals sign.
        match text.split_once('=') {
            Some((stage, name)) => Ok(Self { stage: Some(stage.to_owned()), name: name.parse()? }),
            None => Ok(Self { stage: None, name: text.parse()? }),
        }
    }
}

/// `--timestamps`
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum TimestampMode {
    /// Equal inputs give equal images
    Reproducible,
    /// Files keep the times of this build
    Preserve,
}

/// `--squash`
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum SquashMode {
    /// The layers of this build
    New,
    /// All layers
    All,
}

/// What the flags mean.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) exports: Vec<ExportTarget>,
    pub(super) timestamps: Timestamps,
    pub(super) attest: Attest,
    pub(super) squash: Option<Squash>,
    pub(super) stages: Vec<StageTag>,
}

/// Reads the flags.
pub(super) fn read(arguments: &Arguments) -> Result<Outcome, Failure> {
    let flags = &arguments.result;
    let attest = attest::read(flags.provenance.as_deref(), flags.sbom.as_deref(), &flags.attest)?;
    Ok(Outcome {
        exports: exports(flags)?,
        timestamps: match flags.timestamps {
            None | Some(TimestampMode::Reproducible) => Timestamps::Reproducible,
            Some(TimestampMode::Preserve) => Timestamps::Preserve,
        },
        attest,
        squash: flags.squash.map(|mode| match mode {
            SquashMode::New => Squash::New,
            SquashMode::All => Squash::All,
        }),
        stages: stages(&flags.tags),
    })
}

/// The stages named in `-t`, each with its names, in the order of first mention.
fn stages(tags: &[Tag]) -> Vec<StageTag> {
    let mut found: Vec<StageTag> = Vec::new();
    for tag in tags {
        let Some(stage) = &tag.stage else { continue };
        match found.iter_mut().find(|known| known.stage == *stage) {
            Some(known) => known.names.push(tag.name.clone()),
            None => found.push(StageTag { stage: stage.clone(), names: vec![tag.name.clone()] }),
        }
    }
    found
}

/// The targets of `-o`, `--push` and `--load`; without any, the local store. A named image that goes to an archive
/// is also stored: its layers are hashed anyway, and the next Dockerfile may build on the name.
fn exports(flags: &Flags) -> Result<Vec<ExportTarget>, Failure> {
    let usage = |error: stave_exporter::ExportSpecError| Failure::usage(crate::report::chain(&error));
    let tags: Vec<Reference> =
        flags.tags.iter().filter(|tag| tag.stage.is_none()).map(|tag| tag.name.clone()).collect();
    let mut targets = Vec::new();
    for spec in &flags.outputs {
        let target = spec.parse::<ExportTarget>().map_err(usage)?;
        targets.push(target.at_engine(engines::address)?.named(&tags));
    }
    let is_terminal = std::io::stdout().is_terminal();
    targets.iter().filter(|_| is_terminal).try_for_each(refuse_terminal)?;
    if flags.push {
        if targets.iter().any(|target| matches!(target, ExportTarget::Image(_))) {
            targets = targets.into_iter().map(ExportTarget::pushed).collect();
        } else {
            // As docker's own store does: what is pushed is also kept under its name.
            let push = Some(PushOptions::default());
            let target = ImageTarget { names: tags.clone(), store: true, push, ..ImageTarget::default() };
            targets.push(ExportTarget::Image(target));
        }
    }
    let has_image = targets.iter().any(|target| matches!(target, ExportTarget::Image(_)));
    let is_archive = |target: &ExportTarget| {
        matches!(target, ExportTarget::Oci(_) | ExportTarget::Docker(_) | ExportTarget::Engine(_))
    };
    let has_archive = targets.iter().any(is_archive);
    let named_archive = has_archive && !tags.is_empty();
    if targets.is_empty() || ((flags.load || named_archive) && !has_image) {
        targets.push(ExportTarget::store(tags));
    }
    let targets: Vec<ExportTarget> =
        targets.into_iter().map(|target| target.annotated(&flags.annotations)).collect();
    for target in &targets {
        target.validate().map_err(usage)?;
    }
    Ok(targets)
}

/// An archive is no text that a terminal could show.
fn refuse_terminal(target: &ExportTarget) -> Result<(), Failure> {
    let kind = match target {
        ExportTarget::Oci(_) => "oci",
        ExportTarget::Docker(_) => "docker",
        _ => "tar",
    };
    match target.writes_stdout() {
        true => Err(Failure::message(format!(
            "dest file is required for {kind} exporter. refusing to write to console"
        ))
        .with_hint(format!("use `-o type={kind},dest=FILE`, or redirect"))),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archives_are_not_for_terminals() {
        let refused =
            |spec: &str| refuse_terminal(&spec.parse().expect("valid")).map_err(|error| error.render());
        for spec in ["-", "type=tar", "type=oci", "type=oci,dest=-"] {
            assert!(
                refused(spec).is_err_and(|error| error.contains("refusing to write to console")),
                "{spec}"
            );
        }
        for spec in ["out", "type=tar,dest=x", "type=oci,dest=x", "type=docker", "type=oci,dest=x,tar=false"]
        {
            assert_eq!(refused(spec), Ok(()), "{spec}");
        }
    }

    #[test]
    fn tags_may_name_a_stage() {
        let tag = |text: &str| text.parse::<Tag>().expect("a tag");
        let name = |text: &str| text.parse::<Reference>().expect("a name");
        assert_eq!(tag("app:1"), Tag { stage: None, name: name("app:1") });
        let tags = [tag("app"), tag("test=app:test"), tag("base=b"), tag("test=localhost:5000/t")];
        let expected = [
            StageTag { stage: "test".to_owned(), names: vec![name("app:test"), name("localhost:5000/t")] },
            StageTag { stage: "base".to_owned(), names: vec![name("b")] },
        ];
        assert_eq!(stages(&tags), expected);
        assert!("test=".parse::<Tag>().is_err());
    }
}
