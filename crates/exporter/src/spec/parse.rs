//! From the text of an output specification to an [`ExportTarget`].
//!
//! Keys live in one table per type, so that an unknown one can be told from one that BuildKit has
//! and this crate lacks.

use std::collections::BTreeMap;
use std::path::PathBuf;

use stave_oci::Compression;

use super::ExportSpecErrorKind as Kind;
use super::{
    Annotations, ArchiveDestination, ArchiveTarget, CompressionChoice, Destination, ExportTarget,
    ImageFormat, ImageTarget, MAX_NAMES, MAX_SPEC_LENGTH, MediaTypes, PushOptions, csv,
};

const TYPES: &[&str] = &["image", "registry", "oci", "docker", "local", "tar", "cacheonly"];

const FORMAT_KEYS: &[&str] =
    &["name", "compression", "compression-level", "force-compression", "oci-mediatypes"];
const IMAGE_KEYS: &[&str] = &["push", "push-by-digest", "store", "unpack"];
const ARCHIVE_KEYS: &[&str] = &["dest", "tar"];
const FILES_KEYS: &[&str] = &["dest"];

/// Keys BuildKit or buildx take on some type and nothing here honours.
const LACKING: &[&str] = &[
    "attestation-prefix",
    "attestation-inline",
    "buildinfo",
    "buildinfo-attrs",
    "context",
    "dangling-name-prefix",
    "mode",
    "name-canonical",
    "oci-artifact",
    "platform-split",
    "prefer-nondist-layers",
    "registry.insecure",
    "rewrite-timestamp",
    "source-date-epoch",
    "unpack-platform",
];

/// The key=value pairs of one specification, taken out one by one.
struct Pairs {
    target: &'static str,
    values: BTreeMap<String, String>,
}

pub(super) fn target(spec: &str) -> Result<ExportTarget, Kind> {
    if spec.len() > MAX_SPEC_LENGTH {
        return Err(Kind::TooLong);
    }
    if spec.is_empty() {
        return Err(Kind::Empty);
    }
    let fields = csv::fields(spec).map_err(|csv::QuoteError| Kind::Quote)?;
    if let [only] = fields.as_slice()
        && only == spec
        && !only.starts_with("type=")
    {
        // A short form: docker's clients take a lone field without `type=` as a path, even with an `=`.
        return Ok(match spec {
            "-" => ExportTarget::Tar { dest: Destination::Stdout },
            directory => ExportTarget::Local { dest: PathBuf::from(directory) },
        });
    }
    let mut values = pairs(&fields)?;
    let name = values.remove("type").filter(|name| !name.is_empty()).ok_or(Kind::MissingType)?;
    let Some(target) = TYPES.iter().copied().find(|known| *known == name) else {
        let suggestion = nearest(&name, TYPES.iter().copied());
        return Err(Kind::UnknownType { name, suggestion });
    };
    Pairs { target, values }.finish()
}

fn pairs(fields: &[String]) -> Result<BTreeMap<String, String>, Kind> {
    let mut values = BTreeMap::new();
    for field in fields {
        let (key, value) = field.split_once('=').ok_or_else(|| Kind::NotAPair(field.clone()))?;
        let key = key.trim();
        // Docker's clients fold the case of keys; annotation names are data and keep theirs.
        let key = if key.starts_with("annotation") { key.to_owned() } else { key.to_ascii_lowercase() };
        if values.insert(key.clone(), value.to_owned()).is_some() {
            return Err(Kind::Duplicate(key));
        }
    }
    Ok(values)
}

impl Pairs {
    fn finish(mut self) -> Result<ExportTarget, Kind> {
        let target = match self.target {
            "image" => ExportTarget::Image(self.image(false)?),
            "registry" => ExportTarget::Image(self.image(true)?),
            "docker" if !self.values.contains_key("dest") => {
                self.values.remove("tar");
                let (names, format) = (self.names()?, self.format()?);
                ExportTarget::Image(ImageTarget { names, store: true, push: None, format })
            }
            "oci" => ExportTarget::Oci(self.archive()?),
            "docker" => ExportTarget::Docker(self.archive()?),
            "local" => ExportTarget::Local { dest: self.directory()? },
            "tar" => ExportTarget::Tar { dest: self.destination() },
            _ => ExportTarget::CacheOnly,
        };
        match self.values.pop_first() {
            None => Ok(target),
            Some((key, _)) => Err(self.unknown(key)),
        }
    }

    /// The error for a key that nothing took.
    fn unknown(&self, key: String) -> Kind {
        if LACKING.contains(&key.as_str()) || key.starts_with("attest:") || key.starts_with("annotation-") {
            return Kind::NotSupported(format!("output key `{key}`"));
        }
        let known: &[&[&'static str]] = match self.target {
            "image" | "registry" => &[FORMAT_KEYS, IMAGE_KEYS],
            "oci" | "docker" => &[FORMAT_KEYS, ARCHIVE_KEYS],
            "local" | "tar" => &[FILES_KEYS],
            _ => &[],
        };
        let suggestion = nearest(&key, known.concat().into_iter());
        Kind::UnknownKey { target: self.target, key, suggestion }
    }

    fn image(&mut self, registry: bool) -> Result<ImageTarget, Kind> {
        let by_digest = self.boolean("push-by-digest")?.unwrap_or(false);
        let push = self.boolean("push")?.unwrap_or(registry || by_digest);
        // The layers of an image in the store are unpacked by nature, so asking for it costs nothing.
        self.boolean("unpack")?;
        let store = self.boolean("store")?.unwrap_or(!registry);
        let (names, format) = (self.names()?, self.format()?);
        // One platform is pushed as its manifest alone: there is no index to annotate.
        if !format.annotations.index.is_empty() || !format.annotations.manifest_descriptor.is_empty() {
            return Err(Kind::NotSupported("annotations on the index of a pushed image".to_owned()));
        }
        Ok(ImageTarget { names, store, push: push.then_some(PushOptions { by_digest }), format })
    }

    fn archive(&mut self) -> Result<ArchiveTarget, Kind> {
        let dest = if self.boolean("tar")?.unwrap_or(true) {
            ArchiveDestination::Tar(self.destination())
        } else {
            ArchiveDestination::Directory(self.directory()?)
        };
        Ok(ArchiveTarget { dest, names: self.names()?, format: self.format()? })
    }

    fn directory(&mut self) -> Result<PathBuf, Kind> {
        match self.values.remove("dest") {
            None => Err(Kind::MissingDestination(self.target)),
            Some(dest) if dest.is_empty() => Err(Kind::MissingDestination(self.target)),
            Some(dest) if dest == "-" => Err(Kind::DirectoryToStdout),
            Some(dest) => Ok(PathBuf::from(dest)),
        }
    }

    fn destination(&mut self) -> Destination {
        match self.values.remove("dest") {
            Some(dest) if !dest.is_empty() && dest != "-" => Destination::File(PathBuf::from(dest)),
            _ => Destination::Stdout,
        }
    }

    fn names(&mut self) -> Result<Vec<stave_oci::Reference>, Kind> {
        let text = self.values.remove("name").unwrap_or_default();
        let names: Vec<_> = text.split(',').map(str::trim).filter(|name| !name.is_empty()).collect();
        if names.len() > MAX_NAMES {
            return Err(Kind::TooManyNames);
        }
        names.into_iter().map(|name| name.parse().map_err(Kind::Name)).collect()
    }

    fn format(&mut self) -> Result<ImageFormat, Kind> {
        let media_types =
            self.boolean("oci-mediatypes")?.map(|oci| if oci { MediaTypes::Oci } else { MediaTypes::Docker });
        let algorithm = self.compression()?;
        let level = self.level(algorithm.unwrap_or(Compression::Gzip))?;
        let force = self.boolean("force-compression")?.unwrap_or(false);
        let annotations = self.annotations();
        let compression = CompressionChoice { algorithm, level, force };
        Ok(ImageFormat { media_types, compression, annotations })
    }

    fn compression(&mut self) -> Result<Option<Compression>, Kind> {
        let Some(value) = self.values.remove("compression") else { return Ok(None) };
        match value.as_str() {
            "uncompressed" => Ok(Some(Compression::None)),
            "gzip" => Ok(Some(Compression::Gzip)),
            "zstd" => Ok(Some(Compression::Zstd)),
            "estargz" | "nydus" => Err(Kind::NotSupported(format!("compression `{value}`"))),
            _ => Err(Kind::Value {
                key: "compression".to_owned(),
                value,
                expected: "`uncompressed`, `gzip` or `zstd`",
            }),
        }
    }

    fn level(&mut self, algorithm: Compression) -> Result<Option<i32>, Kind> {
        let key = "compression-level";
        let Some(value) = self.values.remove(key) else { return Ok(None) };
        // BuildKit documents 0-9 for gzip and estargz and 0-22 for zstd.
        let (most, expected) = match algorithm {
            Compression::Zstd => (22, "a number from 0 to 22 for zstd"),
            Compression::Gzip | Compression::None => (9, "a number from 0 to 9 for gzip"),
        };
        match value.parse() {
            Ok(level) if (0..=most).contains(&level) => Ok(Some(level)),
            _ => Err(Kind::Value { key: key.to_owned(), value, expected }),
        }
    }

    fn annotations(&mut self) -> Annotations {
        let mut annotations = Annotations::default();
        let keys: Vec<String> =
            self.values.keys().filter(|key| key.starts_with("annotation")).cloned().collect();
        for key in keys {
            let slot = if key.starts_with("annotation.") || key.starts_with("annotation-manifest.") {
                &mut annotations.manifest
            } else if key.starts_with("annotation-manifest-descriptor.") {
                &mut annotations.manifest_descriptor
            } else if key.starts_with("annotation-index.") {
                &mut annotations.index
            } else {
                // Per-platform forms stay in `values` and end as an error.
                continue;
            };
            if let (Some((_, name)), Some(value)) = (key.split_once('.'), self.values.remove(&key)) {
                slot.insert(name.to_owned(), value);
            }
        }
        annotations
    }

    /// Takes a boolean as Go's `strconv.ParseBool` reads it.
    fn boolean(&mut self, key: &str) -> Result<Option<bool>, Kind> {
        let Some(value) = self.values.remove(key) else { return Ok(None) };
        match value.as_str() {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(Some(true)),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(Some(false)),
            // BuildKit takes a bare `push=` as true.
            "" => Ok(Some(true)),
            _ => Err(Kind::Value { key: key.to_owned(), value, expected: "`true` or `false`" }),
        }
    }
}

/// The known word nearest to `word`, if near enough to be what was meant.
fn nearest(word: &str, known: impl Iterator<Item = &'static str>) -> Option<&'static str> {
    let word = word.to_ascii_lowercase();
    known
        .map(|candidate| (edit_distance(&word, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= 1 + candidate.len() / 4)
        .min()
        .map(|(_, candidate)| candidate)
}

/// Levenshtein distance in bytes; long words are beyond any suggestion.
fn edit_distance(a: &str, b: &str) -> usize {
    const LONGEST: usize = 64;
    if a.len() > LONGEST {
        return usize::MAX;
    }
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, left) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, right) in b.bytes().enumerate() {
            let substituted = diagonal + usize::from(left != right);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
