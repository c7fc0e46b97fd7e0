//! From the text of an output specification to an [`ExportTarget`].
//!
//! Keys live in one table per type, so that an unknown one can be told from one that BuildKit has
//! and this crate lacks.

use std::collections::BTreeMap;
use std::path::PathBuf;

use stave_oci::Compression;

use super::ExportSpecErrorKind as Kind;
use super::{
    Annotations, ArchiveDestination, ArchiveTarget, CompressionChoice, DanglingName, Destination, EngineName,
    EngineTarget, ExportTarget, FilesOptions, FilesTime, ImageFormat, ImageTarget, LocalMode, MAX_NAMES,
    MAX_SPEC_LENGTH, MediaTypes, PushOptions, annotation, csv,
};

const TYPES: &[&str] = &["image", "registry", "oci", "docker", "local", "tar", "cacheonly"];

const FORMAT_KEYS: &[&str] = &[
    "name",
    "compression",
    "compression-level",
    "force-compression",
    "oci-mediatypes",
    "oci-artifact",
    "attestation-inline",
    "prefer-nondist-layers",
    "rewrite-timestamp",
    "source-date-epoch",
    "annotation.NAME",
];
const IMAGE_KEYS: &[&str] = &[
    "push",
    "push-by-digest",
    "registry.insecure",
    "store",
    "unpack",
    "name-canonical",
    "dangling-name-prefix",
    "danging-name-empty-only",
];
const ARCHIVE_KEYS: &[&str] = &["dest", "tar"];
const ENGINE_KEYS: &[&str] = &["context"];
const FILES_KEYS: &[&str] = &["dest", "platform-split", "attestation-prefix", "source-date-epoch"];
const LOCAL_KEYS: &[&str] = &["mode"];

/// Keys BuildKit or buildx take on some type and nothing here honours.
const LACKING: &[&str] =
    &["buildinfo", "buildinfo-attrs", "compatibility-version", "context", "unpack-platform"];

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
            "-" => ExportTarget::Tar { dest: Destination::Stdout, options: FilesOptions::default() },
            directory => {
                ExportTarget::Local { dest: PathBuf::from(directory), options: FilesOptions::default() }
            }
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
            "docker" if self.values.contains_key("context") => ExportTarget::Engine(self.engine()?),
            "docker" if !self.values.contains_key("dest") => {
                self.no_directory()?;
                let (names, format) = (self.names()?, self.format()?);
                ExportTarget::Image(ImageTarget { names, store: true, format, ..ImageTarget::default() })
            }
            "oci" => ExportTarget::Oci(self.archive()?),
            "docker" => ExportTarget::Docker(self.archive()?),
            "local" => ExportTarget::Local { dest: self.directory()?, options: self.files()? },
            "tar" => ExportTarget::Tar { dest: self.destination(), options: self.files()? },
            _ => ExportTarget::CacheOnly,
        };
        match self.values.pop_first() {
            None => Ok(target),
            Some((key, _)) => Err(self.unknown(key)),
        }
    }

    /// The error for a key that nothing took.
    fn unknown(&self, key: String) -> Kind {
        if LACKING.contains(&key.as_str()) {
            return Kind::NotSupported(format!("output key `{key}`"));
        }
        let known: &[&[&'static str]] = match self.target {
            "image" | "registry" => &[FORMAT_KEYS, IMAGE_KEYS],
            "oci" => &[FORMAT_KEYS, ARCHIVE_KEYS],
            "docker" => &[FORMAT_KEYS, ARCHIVE_KEYS, ENGINE_KEYS],
            "local" => &[FILES_KEYS, LOCAL_KEYS],
            "tar" => &[FILES_KEYS],
            _ => &[],
        };
        let suggestion = nearest(&key, known.concat().into_iter());
        Kind::UnknownKey { target: self.target, key, suggestion }
    }

    fn image(&mut self, registry: bool) -> Result<ImageTarget, Kind> {
        let by_digest = self.boolean("push-by-digest")?.unwrap_or(false);
        let push = self.boolean("push")?.unwrap_or(registry);
        let insecure = self.boolean("registry.insecure")?.unwrap_or(false);
        // The layers of an image in the store are unpacked by nature, so asking for it costs nothing.
        self.boolean("unpack")?;
        let store = self.boolean("store")?.unwrap_or(!registry);
        let canonical_names = self.boolean("name-canonical")?.unwrap_or(false);
        let dangling = self.dangling()?;
        let (names, format) = (self.names()?, self.format()?);
        let push = push.then_some(PushOptions { by_digest, insecure });
        Ok(ImageTarget { names, store, push, format, canonical_names, dangling })
    }

    fn dangling(&mut self) -> Result<Option<DanglingName>, Kind> {
        // BuildKit's own spelling, which is part of its interface.
        let empty_only = self.boolean("danging-name-empty-only")?.unwrap_or(false);
        let prefix = self.values.remove("dangling-name-prefix").filter(|prefix| !prefix.is_empty());
        let prefix = prefix.map(|prefix| prefix.parse().map_err(Kind::Name)).transpose()?;
        Ok(prefix.map(|prefix| DanglingName { prefix, empty_only }))
    }

    fn files(&mut self) -> Result<FilesOptions, Kind> {
        let mode = match self.values.get("mode").map(String::as_str).filter(|_| self.target == "local") {
            None | Some("" | "copy") => LocalMode::Copy,
            Some("delete") => LocalMode::Delete,
            Some(other) => {
                let (key, value) = ("mode".to_owned(), other.to_owned());
                return Err(Kind::Value { key, value, expected: "`copy` or `delete`" });
            }
        };
        if self.target == "local" {
            self.values.remove("mode");
        }
        Ok(FilesOptions {
            platform_split: self.boolean("platform-split")?,
            mode,
            time: self.files_time()?,
            attestation_prefix: self.values.remove("attestation-prefix").unwrap_or_default(),
        })
    }

    fn files_time(&mut self) -> Result<FilesTime, Kind> {
        let is_given = self.values.contains_key("source-date-epoch");
        // An empty value takes away what the build has.
        let without = if is_given { FilesTime::Own } else { FilesTime::OfBuild };
        Ok(self.epoch()?.map_or(without, FilesTime::Epoch))
    }

    fn epoch(&mut self) -> Result<Option<i64>, Kind> {
        let key = "source-date-epoch";
        let Some(value) = self.values.remove(key).filter(|value| !value.is_empty()) else { return Ok(None) };
        let wrong = || Kind::Value {
            key: key.to_owned(),
            value: value.clone(),
            expected: "a number of seconds since 1970, not beyond the year 9999",
        };
        match value.parse() {
            Ok(seconds) if stave_oci::is_date(seconds) => Ok(Some(seconds)),
            _ => Err(wrong()),
        }
    }

    fn archive(&mut self) -> Result<ArchiveTarget, Kind> {
        let dest = if self.boolean("tar")?.unwrap_or(true) {
            ArchiveDestination::Tar(self.destination())
        } else {
            ArchiveDestination::Directory(self.directory()?)
        };
        Ok(ArchiveTarget { dest, names: self.names()?, format: self.format()? })
    }

    fn engine(&mut self) -> Result<EngineTarget, Kind> {
        if self.values.contains_key("dest") {
            return Err(Kind::Conflict("context", "dest"));
        }
        self.no_directory()?;
        let engine = EngineName::Context(self.values.remove("context").unwrap_or_default());
        Ok(EngineTarget { engine, names: self.names()?, format: self.format()? })
    }

    /// `tar=false` asks for a directory, which somebody has to name.
    fn no_directory(&mut self) -> Result<(), Kind> {
        match self.boolean("tar")? {
            Some(false) => Err(Kind::MissingDestination(self.target)),
            Some(true) | None => Ok(()),
        }
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
        // Attestations always lie in the index beside their image, so being told so changes nothing.
        self.boolean("attestation-inline")?;
        let artifact_attestations = self.boolean("oci-artifact")?.unwrap_or(false);
        let docker = media_types == Some(MediaTypes::Docker);
        if docker && artifact_attestations {
            return Err(Kind::Conflict("oci-artifact=true", "oci-mediatypes=false"));
        }
        Ok(ImageFormat {
            media_types,
            compression: CompressionChoice { algorithm, level, force },
            annotations: self.annotations()?,
            epoch: self.epoch()?,
            rewrite_timestamps: self.boolean("rewrite-timestamp")?,
            nondistributable: self.boolean("prefer-nondist-layers")?.unwrap_or(false),
            always_index: false,
            artifact_attestations,
        })
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

    fn annotations(&mut self) -> Result<Annotations, Kind> {
        let mut annotations = Annotations::default();
        let keys: Vec<String> =
            self.values.keys().filter(|key| key.starts_with("annotation")).cloned().collect();
        for key in keys {
            let Some(value) = self.values.remove(&key) else { continue };
            let Some(annotation) = annotation::from_key(&key, &value) else {
                return Err(Kind::Annotation(key));
            };
            annotations.add(annotation);
        }
        Ok(annotations)
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
