//! A mount while its options are read.
//!
//! Owns each option's values and which go together.

use crate::boolean;

use super::{KINDS, Mount, MountError, MountKind, Sharing, lower_case};

pub(super) fn boolean(key: &str, value: &str) -> Result<bool, MountError> {
    let bad = || MountError::Value { key: key.to_owned(), value: value.to_owned() };
    boolean::parse(value).ok_or_else(bad)
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
pub(super) struct Draft {
    kind: Option<&'static str>,
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
    cache: Option<String>,
}

impl Draft {
    fn kind(&self) -> &'static str {
        self.kind.unwrap_or("bind")
    }

    fn only_for(&self, key: &str, kinds: &[&str]) -> Result<(), MountError> {
        match kinds.contains(&self.kind()) {
            true => Ok(()),
            false => Err(MountError::MisplacedKey { key: key.to_owned(), kind: self.kind().to_owned() }),
        }
    }

    /// An option without a value.
    pub(super) fn switch(&mut self, field: &str) -> Result<(), MountError> {
        match &*lower_case(field) {
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

    pub(super) fn set(&mut self, key: &str, value: String, field: &str) -> Result<(), MountError> {
        let filled = |value: String| Some(value).filter(|value| !value.is_empty());
        match key {
            "type" => match KINDS.iter().find(|kind| kind.eq_ignore_ascii_case(&value)) {
                Some(kind) => self.kind = Some(kind),
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
                self.sharing = Some(match &*lower_case(&value) {
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
            "cache" if self.kind() == "secret" => self.cache = Some(value),
            _ => return Err(MountError::UnknownKey { key: key.to_owned(), field: field.to_owned() }),
        }
        Ok(())
    }

    pub(super) fn finish(self) -> Result<Mount, MountError> {
        let kind = self.kind();
        if matches!(kind, "bind" | "tmpfs") {
            let owner = [("mode", self.mode), ("uid", self.uid), ("gid", self.gid)];
            if let Some((key, _)) = owner.iter().find(|(_, value)| value.is_some()) {
                return Err(MountError::NoOwner { key, kind: kind.to_owned() });
            }
        }
        if kind == "secret" {
            self.check_secret()?;
        }
        if self.sharing.is_some() && kind != "cache" {
            return Err(MountError::NoSharing(kind.to_owned()));
        }
        let read_only = self.read_only.unwrap_or(!matches!(kind, "cache" | "tmpfs"));
        let kind = match kind {
            "cache" => MountKind::Cache { sharing: self.sharing.unwrap_or_default() },
            "tmpfs" => MountKind::Tmpfs { size: self.size },
            "secret" => MountKind::Secret { required: self.required },
            "ssh" => MountKind::Ssh { required: self.required },
            _ => MountKind::Bind,
        };
        let Self { from, source, target, id, mode, uid, gid, env, cache, .. } = self;
        Ok(Mount { kind, from, source, target, read_only, id, mode, uid, gid, env, cache })
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
