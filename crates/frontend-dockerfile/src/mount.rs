//! The options of `RUN --mount` and `RUN --device`.
//!
//! Owns the comma-separated form and which option goes with which kind of mount. Expansion of values
//! is the caller's: [`parse`] is handed a function for it. Start with [`Mount`].

use crate::{ast::Device, expand::ExpandError, grammar, quote::quote, suggest};

/// A `--mount` with its options read and expanded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// What is mounted.
    pub kind: MountKind,
    /// `from=`: the stage, named context or image it comes from.
    pub from: Option<String>,
    /// `source=`
    pub source: Option<String>,
    /// `target=`
    pub target: Option<String>,
    /// Whether the step must not write: the option, or the kind's default.
    pub read_only: bool,
    /// `id=`: the id of a cache, secret or agent.
    pub id: Option<String>,
    /// `mode=`
    pub mode: Option<u32>,
    /// `uid=`
    pub uid: Option<u32>,
    /// `gid=`
    pub gid: Option<u32>,
    /// `env=`: the variable a secret goes into; empty means the secret's own id.
    pub env: Option<String>,
}

/// What a mount mounts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MountKind {
    /// `type=bind`, the default.
    Bind,
    /// `type=cache`
    Cache {
        /// How steps share it.
        sharing: Sharing,
    },
    /// `type=tmpfs`
    Tmpfs {
        /// `size=` in bytes, 0 without limit.
        size: i64,
    },
    /// `type=secret`
    Secret {
        /// `required=`
        required: bool,
    },
    /// `type=ssh`
    Ssh {
        /// `required=`
        required: bool,
    },
}

/// How several steps use one cache mount at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sharing {
    /// All at once.
    #[default]
    Shared,
    /// Each its own.
    Private,
    /// One after the other.
    Locked,
}

/// Why a `--mount` or `--device` was not understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MountError {
    /// The options are not one line of comma-separated values.
    #[error("failed to parse csv mounts: {0}")]
    Form(String),
    /// A value cannot be expanded.
    #[error(transparent)]
    Expand(#[from] ExpandError),
    /// An option's value holds a variable where none may be.
    #[error("'{0}' doesn't support variable expansion, define alias stage instead")]
    Variable(String),
    /// An option without the value it needs.
    #[error("invalid field '{0}' must be a key=value pair")]
    NoValue(String),
    /// An option that does not exist.
    #[error("unexpected key '{key}' in '{field}'")]
    UnknownKey {
        /// The option.
        key: String,
        /// The option with its value.
        field: String,
    },
    /// An option that does not go with the mount's type; types are given before the options they change.
    #[error("unexpected key '{key}' for mount type '{kind}'")]
    MisplacedKey {
        /// The option.
        key: String,
        /// The type.
        kind: String,
    },
    /// A value that is none for its option.
    #[error("invalid value for {key}: {value}")]
    Value {
        /// The option.
        key: String,
        /// The value.
        value: String,
    },
    /// A number that is none, of `mode`, `uid` or `gid`.
    #[error("invalid value {value} for {key}")]
    Number {
        /// The option.
        key: String,
        /// The value.
        value: String,
    },
    /// A `type` that does not exist.
    #[error("unsupported mount type {}", quote(.0))]
    UnknownType(String),
    /// A `sharing` that does not exist.
    #[error("unsupported sharing value {}", quote(.0))]
    UnknownSharing(String),
    /// An owner or mode on a mount that can have none.
    #[error("{key} not allowed for {} type mounts", quote(.kind))]
    NoOwner {
        /// The option.
        key: &'static str,
        /// The type.
        kind: String,
    },
    /// Options that contradict each other.
    #[error("{0}")]
    Contradiction(&'static str),
    /// `sharing` on a mount that is no cache.
    #[error("invalid cache sharing set for {0} mount")]
    NoSharing(String),
    /// A second name for one device.
    #[error("device name already set to {0}")]
    SecondName(String),
}

/// The kinds of mounts by name.
const KINDS: [&str; 5] = ["bind", "cache", "secret", "ssh", "tmpfs"];
/// The ways to share by name.
const SHARINGS: [&str; 3] = ["locked", "private", "shared"];
/// The options of a mount.
const KEYS: [&str; 19] = [
    "type",
    "from",
    "source",
    "target",
    "readonly",
    "id",
    "sharing",
    "required",
    "size",
    "mode",
    "uid",
    "gid",
    "src",
    "dst",
    "destination",
    "ro",
    "rw",
    "readwrite",
    "env",
];

impl MountError {
    /// A similar name that exists.
    pub fn suggestion(&self) -> Option<String> {
        match self {
            Self::UnknownKey { key, .. } => suggest::similar(key, KEYS),
            Self::UnknownType(value) => suggest::similar(value, KINDS),
            Self::UnknownSharing(value) => suggest::similar(value, SHARINGS),
            _ => None,
        }
    }
}

/// The value of `from=`, which the plan needs before anything is expanded.
///
/// # Errors
/// Where the options are malformed or `from` holds a variable.
pub(crate) fn from_of(options: &str) -> Result<Option<String>, MountError> {
    let mut from = None;
    for field in fields(options)? {
        let Some((key, value)) = field.split_once('=') else { continue };
        if !key.eq_ignore_ascii_case("from") {
            continue;
        }
        if value.find('$').is_some_and(|at| at + 1 != value.len()) {
            return Err(MountError::Variable(key.to_lowercase()));
        }
        from = Some(value.to_owned()).filter(|value| !value.is_empty());
    }
    Ok(from)
}

/// Reads the options of a `--mount`, each value passed through `expand` first.
///
/// # Errors
/// Where an option is unknown, malformed or does not go with the others.
pub fn parse<E>(options: &str, mut expand: impl FnMut(&str) -> Result<String, E>) -> Result<Mount, MountError>
where
    MountError: From<E>,
{
    let mut draft = Draft::default();
    for field in fields(options)? {
        match field.split_once('=') {
            Some((key, value)) => {
                let value = expand(value)?;
                draft.set(&key.to_lowercase(), value, &field)?;
            }
            None => draft.switch(&field)?,
        }
    }
    draft.finish()
}

/// Reads the options of a `--device`.
///
/// # Errors
/// Where an option is unknown or malformed.
pub(crate) fn parse_device(options: &str) -> Result<Device, MountError> {
    let mut device = Device { name: String::new(), required: false };
    for field in fields(options)? {
        let (key, value) = match field.split_once('=') {
            Some((key, value)) => (key.to_lowercase(), Some(value)),
            None => (field.to_lowercase(), None),
        };
        match (key.as_str(), value) {
            ("required", value) => device.required = value.map_or(Ok(true), |value| boolean(&key, value))?,
            ("name", Some(_)) if !device.name.is_empty() => return Err(MountError::SecondName(device.name)),
            ("name", Some(value)) => value.clone_into(&mut device.name),
            _ if device.name.is_empty() => device.name = field,
            (_, None) => return Err(MountError::NoValue(field)),
            (_, Some(_)) => return Err(MountError::UnknownKey { key, field }),
        }
    }
    Ok(device)
}

fn fields(options: &str) -> Result<Vec<String>, MountError> {
    grammar::fields(options).map_err(|error| MountError::Form(error.to_string()))
}

fn boolean(key: &str, value: &str) -> Result<bool, MountError> {
    match value {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(MountError::Value { key: key.to_owned(), value: value.to_owned() }),
    }
}

fn number(key: &str, value: &str, radix: u32) -> Result<u32, MountError> {
    // A sign is not part of a number here.
    let parsed = if value.starts_with('+') { None } else { u32::from_str_radix(value, radix).ok() };
    parsed.ok_or_else(|| MountError::Number { key: key.to_owned(), value: value.to_owned() })
}

/// Bytes of a size such as `64m`, `1.5GiB` or `1024`; units are powers of 1024.
fn size(text: &str) -> Option<i64> {
    let digits = text.rfind(|letter: char| letter.is_ascii_digit() || letter == '.')? + 1;
    let (number, unit) = text.split_at(digits);
    let unit = unit.strip_prefix(' ').unwrap_or(unit).to_lowercase();
    let power = match unit.as_str() {
        "" | "b" => 0,
        _ => {
            let power = "kmgtp".find(unit.chars().next()?)? + 1;
            if !matches!(&unit[1..], "" | "b" | "ib") {
                return None;
            }
            power
        }
    };
    let number: f64 = number.parse().ok().filter(|number: &f64| *number >= 0.0)?;
    let bytes = number * 1024_f64.powi(i32::try_from(power).ok()?);
    // Above 2^63 the conversion saturates; such a limit is none.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "bytes are whole, fractions are cut as the reference does"
    )]
    Some(bytes as i64)
}

/// A mount while its options are read: the type may come after some of them.
#[derive(Default)]
struct Draft {
    kind: Option<String>,
    from: Option<String>,
    source: Option<String>,
    target: Option<String>,
    read_only: Option<bool>,
    required: bool,
    size: i64,
    id: Option<String>,
    sharing: Option<Sharing>,
    mode: Option<u32>,
    uid: Option<u32>,
    gid: Option<u32>,
    env: Option<String>,
}

impl Draft {
    fn kind(&self) -> &str {
        self.kind.as_deref().unwrap_or("bind")
    }

    fn only_for(&self, key: &str, kinds: &[&str]) -> Result<(), MountError> {
        match kinds.contains(&self.kind()) {
            true => Ok(()),
            false => Err(MountError::MisplacedKey { key: key.to_owned(), kind: self.kind().to_owned() }),
        }
    }

    /// An option without a value.
    fn switch(&mut self, field: &str) -> Result<(), MountError> {
        match field.to_lowercase().as_str() {
            "readonly" | "ro" => self.read_only = Some(true),
            "readwrite" | "rw" => self.read_only = Some(false),
            "required" => {
                self.only_for("required", &["secret", "ssh"])?;
                self.required = true;
            }
            _ => return Err(MountError::NoValue(field.to_owned())),
        }
        Ok(())
    }

    fn set(&mut self, key: &str, value: String, field: &str) -> Result<(), MountError> {
        let filled = |value: String| Some(value).filter(|value| !value.is_empty());
        match key {
            "type" => match KINDS.iter().find(|kind| kind.eq_ignore_ascii_case(&value)) {
                Some(kind) => self.kind = Some((*kind).to_owned()),
                None => return Err(MountError::UnknownType(value)),
            },
            "from" => self.from = filled(value),
            "source" | "src" => self.source = filled(value),
            "target" | "dst" | "destination" => self.target = filled(value),
            "readonly" | "ro" => self.read_only = Some(boolean(key, &value)?),
            "readwrite" | "rw" => self.read_only = Some(!boolean(key, &value)?),
            "required" => {
                self.only_for(key, &["secret", "ssh"])?;
                self.required = boolean(key, &value)?;
            }
            "size" => {
                self.only_for(key, &["tmpfs"])?;
                self.size = size(&value).ok_or(MountError::Value { key: key.to_owned(), value })?;
            }
            "id" => self.id = filled(value),
            "sharing" => {
                self.sharing = Some(match value.to_lowercase().as_str() {
                    "shared" => Sharing::Shared,
                    "private" => Sharing::Private,
                    "locked" => Sharing::Locked,
                    _ => return Err(MountError::UnknownSharing(value)),
                });
            }
            "mode" => self.mode = Some(number(key, &value, 8)?),
            "uid" => self.uid = Some(number(key, &value, 10)?),
            "gid" => self.gid = Some(number(key, &value, 10)?),
            "env" => self.env = Some(value),
            _ => return Err(MountError::UnknownKey { key: key.to_owned(), field: field.to_owned() }),
        }
        Ok(())
    }

    fn finish(self) -> Result<Mount, MountError> {
        let kind = self.kind().to_owned();
        if matches!(kind.as_str(), "bind" | "tmpfs") {
            let owner = [("mode", self.mode), ("uid", self.uid), ("gid", self.gid)];
            if let Some((key, _)) = owner.iter().find(|(_, value)| value.is_some()) {
                return Err(MountError::NoOwner { key, kind });
            }
        }
        if kind == "secret" {
            self.check_secret()?;
        }
        if self.sharing.is_some() && kind != "cache" {
            return Err(MountError::NoSharing(kind));
        }
        let read_only = self.read_only.unwrap_or(!matches!(kind.as_str(), "cache" | "tmpfs"));
        let kind = match kind.as_str() {
            "cache" => MountKind::Cache { sharing: self.sharing.unwrap_or_default() },
            "tmpfs" => MountKind::Tmpfs { size: self.size },
            "secret" => MountKind::Secret { required: self.required },
            "ssh" => MountKind::Ssh { required: self.required },
            _ => MountKind::Bind,
        };
        let Self { from, source, target, id, mode, uid, gid, env, .. } = self;
        Ok(Mount { kind, from, source, target, read_only, id, mode, uid, gid, env })
    }

    fn check_secret(&self) -> Result<(), MountError> {
        let complaint = if self.from.is_some() {
            "secret mount should not have a from"
        } else if self.sharing.is_some() {
            "secret mount should not define sharing"
        } else if self.source.is_none() && self.target.is_none() && self.id.is_none() {
            "invalid secret mount. one of source, target required"
        } else if self.source.is_some() && self.id.is_some() {
            "both source and id can't be set"
        } else {
            return Ok(());
        };
        Err(MountError::Contradiction(complaint))
    }
}

#[cfg(test)]
mod tests;
