//! The options of `RUN --mount` and `RUN --device`.
//!
//! Owns the comma-separated form and which option goes with which kind of mount. Expansion of values
//! is the caller's: [`parse`] is handed a function for it. Start with [`Mount`].

use std::borrow::Cow;

use crate::{ast::Device, expand::ExpandError, grammar, quote::quote, suggest};

mod draft;

use draft::{Draft, boolean};

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
    /// `cache=` of a secret, of our own language: `keyed` makes its value part of the cache key.
    pub cache: Option<String>,
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
    /// The same of a device.
    #[error("failed to parse csv devices: {0}")]
    DeviceForm(String),
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
    /// The same of a device.
    #[error("unexpected key '{key}' in '{field}'")]
    UnknownDeviceKey {
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
            Self::UnknownDeviceKey { key, .. } => suggest::similar(key, ["name", "required"]),
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
                draft.set(&lower_case(key), value, &field)?;
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
    let fields = grammar::fields(options).map_err(|error| MountError::DeviceForm(error.to_string()))?;
    for field in fields {
        let (key, value) = match field.split_once('=') {
            Some((key, value)) => (key.to_lowercase(), Some(value)),
            None => (field.to_lowercase(), None),
        };
        match (key.as_str(), value) {
            ("required", value) => device.required = value.map_or(Ok(true), |value| boolean(&key, value))?,
            ("name", Some(_)) if !device.name.is_empty() => return Err(MountError::SecondName(device.name)),
            ("name", Some(value)) => value.clone_into(&mut device.name),
            _ if device.name.is_empty() => device.name = field.into_owned(),
            (_, None) => return Err(MountError::NoValue(field.into_owned())),
            (_, Some(_)) => return Err(MountError::UnknownDeviceKey { key, field: field.into_owned() }),
        }
    }
    Ok(device)
}

/// Nearly all options are in lower case as they stand.
fn lower_case(key: &str) -> Cow<'_, str> {
    match key.bytes().all(|letter| letter.is_ascii_lowercase()) {
        true => Cow::Borrowed(key),
        false => Cow::Owned(key.to_lowercase()),
    }
}

fn fields(options: &str) -> Result<Vec<Cow<'_, str>>, MountError> {
    grammar::fields(options).map_err(|error| MountError::Form(error.to_string()))
}

#[cfg(test)]
mod tests;
