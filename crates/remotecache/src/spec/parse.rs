//! From the text of a cache option to its values; every key is taken out by somebody, or unknown.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use stave_oci::{Compression, Reference};

use super::{
    CompressionChoice, Environment, ExportSpec, ExportTarget, ImportSource, ImportSpec, ManifestForm, Mode,
    MountLimits, RegistryPlace, S3Credentials, S3Place, SpecError, csv,
};

/// Bytes of the longest option.
const MAX_LENGTH: usize = 16 << 10;
/// Names of one S3 cache.
const MAX_NAMES: usize = 64;
/// Blobs written to S3 at once, at most.
const MAX_PARALLEL: usize = 64;

/// Types that BuildKit has beside those served here.
const LACKING: [&str; 2] = ["gha", "azblob"];

const EXPORTER: &str = "exporter";
const IMPORTER: &str = "importer";

/// Which way, and the pairs not taken yet.
struct Pairs<'a> {
    direction: &'static str,
    kind: &'static str,
    values: BTreeMap<String, String>,
    environment: Environment<'a>,
}

pub(super) fn export(text: &str, environment: Environment<'_>) -> Result<ExportSpec, SpecError> {
    let mut pairs = Pairs::read(text, EXPORTER, environment)?;
    let target = match pairs.kind {
        "inline" => ExportTarget::Inline,
        "registry" => ExportTarget::Registry(pairs.registry()?),
        "local" => ExportTarget::Local {
            dest: PathBuf::from(pairs.needed("dest")?),
            tag: pairs.text("tag").unwrap_or_else(|| "latest".to_owned()),
            reset: pairs.flag("reset")?.unwrap_or(false),
        },
        _ => ExportTarget::S3(pairs.s3()?),
    };
    let mode = match pairs.text("mode").as_deref() {
        None | Some("min") => Mode::Min,
        Some("max") => Mode::Max,
        Some(other) => return Err(value("mode", other, "`min` or `max`")),
    };
    let has_manifest = matches!(target, ExportTarget::Registry(_) | ExportTarget::Local { .. });
    let spec = ExportSpec {
        mode,
        compression: if has_manifest { pairs.compression()? } else { CompressionChoice::default() },
        manifest: if has_manifest { pairs.manifest()? } else { ManifestForm::default() },
        ignore_error: pairs.flag("ignore-error")?.unwrap_or(false),
        mounts: if target == ExportTarget::Inline { None } else { pairs.mounts()? },
        target,
    };
    pairs.finish()?;
    Ok(spec)
}

pub(super) fn import(text: &str, environment: Environment<'_>) -> Result<ImportSpec, SpecError> {
    let mut pairs = Pairs::read(text, IMPORTER, environment)?;
    let source = match pairs.kind {
        "registry" => ImportSource::Registry(pairs.registry()?),
        "local" => ImportSource::Local {
            src: PathBuf::from(pairs.needed("src")?),
            digest: match pairs.text("digest") {
                Some(text) => Some(text.parse().map_err(|_| value("digest", &text, "a digest"))?),
                None => None,
            },
            tag: pairs.text("tag").unwrap_or_else(|| "latest".to_owned()),
        },
        "s3" => ImportSource::S3(pairs.s3()?),
        kind => return Err(SpecError::UnknownType { direction: IMPORTER, name: kind.to_owned() }),
    };
    let mounts = pairs.mounts()?;
    pairs.finish()?;
    Ok(ImportSpec { source, mounts })
}

impl<'a> Pairs<'a> {
    fn read(text: &str, direction: &'static str, environment: Environment<'a>) -> Result<Self, SpecError> {
        if text.len() > MAX_LENGTH {
            return Err(SpecError::TooLong { limit: MAX_LENGTH });
        }
        let fields = csv::fields(text).ok_or(SpecError::Quote)?;
        let mut values = BTreeMap::new();
        if let [only] = fields.as_slice()
            && only == text
            && !only.starts_with("type=")
        {
            // The short form: a lone name is a repository.
            values.insert("ref".to_owned(), only.clone());
            return Ok(Self { direction, kind: "registry", values, environment });
        }
        let mut name = String::new();
        for field in fields {
            let Some((key, value)) = field.split_once('=') else { return Err(SpecError::NotAPair(field)) };
            match key.to_lowercase() {
                key if key == "type" => value.clone_into(&mut name),
                key => {
                    values.insert(key, value.to_owned());
                }
            }
        }
        let kind = match name.as_str() {
            "" => return Err(SpecError::MissingType(text.to_owned())),
            "inline" if direction == EXPORTER => "inline",
            "registry" => "registry",
            "local" => "local",
            "s3" => "s3",
            other if LACKING.contains(&other) => return Err(SpecError::LackingType(other.to_owned())),
            _ => return Err(SpecError::UnknownType { direction, name }),
        };
        Ok(Self { direction, kind, values, environment })
    }

    fn finish(mut self) -> Result<(), SpecError> {
        match self.values.pop_first() {
            None => Ok(()),
            Some((key, _)) => Err(SpecError::UnknownKey { kind: self.kind, direction: self.direction, key }),
        }
    }

    fn text(&mut self, key: &str) -> Option<String> {
        self.values.remove(key)
    }

    fn needed(&mut self, key: &'static str) -> Result<String, SpecError> {
        let missing = SpecError::Missing { kind: self.kind, direction: self.direction, key };
        self.text(key).filter(|value| !value.is_empty()).ok_or(missing)
    }

    /// As Go's `strconv.ParseBool`.
    fn flag(&mut self, key: &'static str) -> Result<Option<bool>, SpecError> {
        let Some(text) = self.text(key) else { return Ok(None) };
        match text.as_str() {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(Some(true)),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(Some(false)),
            other => Err(value(key, other, "a boolean")),
        }
    }

    fn number<T: std::str::FromStr>(&mut self, key: &'static str) -> Result<Option<T>, SpecError> {
        let Some(text) = self.text(key) else { return Ok(None) };
        text.parse().map(Some).map_err(|_| value(key, &text, "an integer"))
    }

    fn registry(&mut self) -> Result<RegistryPlace, SpecError> {
        let text = self.needed("ref")?;
        let reference: Reference =
            text.parse().map_err(|error| SpecError::Reference { value: text, reason: format!("{error}") })?;
        let insecure = self.flag("registry.insecure")?.unwrap_or(false);
        Ok(RegistryPlace { reference, insecure })
    }

    fn compression(&mut self) -> Result<CompressionChoice, SpecError> {
        let algorithm = match self.text("compression").as_deref() {
            None | Some("gzip") => Compression::Gzip,
            Some("zstd") => Compression::Zstd,
            Some("uncompressed") => Compression::None,
            Some(other) => return Err(SpecError::Compression(other.to_owned())),
        };
        // A bare `force-compression=` means yes.
        if self.values.get("force-compression").is_some_and(String::is_empty) {
            self.values.insert("force-compression".to_owned(), "true".to_owned());
        }
        let force = self.flag("force-compression")?.unwrap_or(false);
        Ok(CompressionChoice { algorithm, level: self.number("compression-level")?, force })
    }

    fn manifest(&mut self) -> Result<ManifestForm, SpecError> {
        let oci = self.flag("oci-mediatypes")?.unwrap_or(true);
        match (oci, self.flag("image-manifest")?.unwrap_or(oci)) {
            (true, true) => Ok(ManifestForm::OciManifest),
            (true, false) => Ok(ManifestForm::OciIndex),
            (false, false) => Ok(ManifestForm::DockerList),
            (false, true) => Err(SpecError::ManifestForm),
        }
    }

    fn mounts(&mut self) -> Result<Option<MountLimits>, SpecError> {
        let limit = match self.text("mounts-max-size") {
            None => None,
            Some(text) => match bytes(&text) {
                Some(size) => Some(size),
                None => return Err(value("mounts-max-size", &text, "a size such as `2GB`")),
            },
        };
        let wanted = self.flag("mounts")?.unwrap_or(false);
        Ok(wanted.then_some(MountLimits { max_size: limit }))
    }

    fn s3(&mut self) -> Result<S3Place, SpecError> {
        let mut setting = |key: &'static str, variable: &'static str| {
            let found = self.values.remove(key).or_else(|| (self.environment)(variable));
            found.ok_or(SpecError::S3Setting { key, variable })
        };
        let (bucket, region) = (setting("bucket", "AWS_BUCKET")?, setting("region", "AWS_REGION")?);
        let credentials = match (
            setting("access_key_id", "AWS_ACCESS_KEY_ID"),
            setting("secret_access_key", "AWS_SECRET_ACCESS_KEY"),
        ) {
            (Ok(access_key_id), Ok(secret_access_key)) => Some(S3Credentials {
                access_key_id,
                secret_access_key,
                session_token: setting("session_token", "AWS_SESSION_TOKEN").ok(),
            }),
            _ => None,
        };
        let names = self.text("name").unwrap_or_else(|| "buildkit".to_owned());
        let names: Vec<String> = names.split(';').map(str::to_owned).take(MAX_NAMES).collect();
        let touch_refresh = match self.text("touch_refresh") {
            None => Duration::from_secs(24 * 3600),
            Some(text) => duration(&text).ok_or_else(|| value("touch_refresh", &text, "a duration"))?,
        };
        let endpoint = self.text("endpoint_url").filter(|url| !url.is_empty());
        let path_style = self.flag("use_path_style")?.unwrap_or(false);
        // Our requests never ask for compressed answers, so there is nothing to disable.
        self.flag("disable_accept_encoding")?;
        match self.text("retry_mode").as_deref() {
            None | Some("standard" | "adaptive") => {}
            Some(other) => return Err(value("retry_mode", other, "`standard` or `adaptive`")),
        }
        let positive = |key, number: Option<usize>, default, limit: usize| match number {
            Some(0) => Err(value(key, "0", "a positive integer")),
            number => Ok(number.unwrap_or(default).min(limit)),
        };
        let parallel = positive("upload_parallelism", self.number("upload_parallelism")?, 4, MAX_PARALLEL)?;
        let attempts = positive("retry_max_attempts", self.number("retry_max_attempts")?, 3, 20)?;
        Ok(S3Place {
            bucket,
            region,
            prefix: self.text("prefix").unwrap_or_default(),
            manifests_prefix: self.text("manifests_prefix").unwrap_or_else(|| "manifests/".to_owned()),
            blobs_prefix: self.text("blobs_prefix").unwrap_or_else(|| "blobs/".to_owned()),
            names,
            touch_refresh,
            path_style: path_style && endpoint.is_some(),
            endpoint,
            parallel,
            attempts: u32::try_from(attempts).unwrap_or(3),
            credentials,
        })
    }
}

fn value(key: &'static str, text: &str, expected: &'static str) -> SpecError {
    SpecError::Value { key, value: text.chars().take(160).collect(), expected }
}

/// A size as docker reads it: `1024`, `10k`, `2GB`, `1.5GiB`; all units are powers of 1024.
pub(crate) fn bytes(text: &str) -> Option<u64> {
    let end = text.find(|letter: char| !letter.is_ascii_digit() && letter != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let shift = match unit.trim().to_ascii_lowercase().trim_end_matches('b').trim_end_matches('i') {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return None,
    };
    let number: f64 = number.parse().ok()?;
    Some((number * (1_u64 << shift) as f64) as u64)
}

/// A duration as Go writes it: `24h`, `1h30m`, `90s`.
fn duration(text: &str) -> Option<Duration> {
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(|letter: char| letter.is_ascii_alphabetic())?;
        let (number, after) = rest.split_at(end);
        let unit_end = after.find(|letter: char| !letter.is_ascii_alphabetic()).unwrap_or(after.len());
        let (unit, next) = after.split_at(unit_end);
        let scale = match unit {
            "ms" => 0.001,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        let number: f64 = number.parse().ok()?;
        total += Duration::try_from_secs_f64(number * scale).ok()?;
        rest = next;
    }
    (!text.is_empty()).then_some(total)
}
