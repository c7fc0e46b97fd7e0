//! How much the store may take, and what keeps it within: BuildKit's garbage collection policies, and a cap
//! that is asked before something is written.
//!
//! Owns the rules and their arithmetic. Must not know files. Start with [`KeepLimits`] and [`DiskPolicy`].

use std::time::Duration;

use crate::UsageKind;

/// Bounds of what a collection leaves, in bytes. All absent: it leaves nothing that may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct KeepLimits {
    /// Never go below this.
    pub reserved: Option<u64>,
    /// Go down to this.
    pub max_used: Option<u64>,
    /// Go on until the file system has this much free.
    pub min_free: Option<u64>,
}

impl KeepLimits {
    /// The size a collection stops at, as BuildKit reckons it; `None` when nothing bounds it.
    pub fn target(&self, used: u64, free: u64) -> Option<u64> {
        if *self == Self::default() {
            return None;
        }
        let mut keep = self.max_used;
        if let Some(excess) = self.min_free.and_then(|min| min.checked_sub(free)).filter(|excess| *excess > 0)
        {
            let lower = used.saturating_sub(excess);
            keep = Some(keep.map_or(lower, |keep| keep.min(lower)));
        }
        let keep = match (keep, self.min_free) {
            // Enough is free, and nothing else is asked for.
            (None, Some(_)) => used,
            (keep, _) => keep.unwrap_or(0),
        };
        Some(keep.max(self.reserved.unwrap_or(0)))
    }
}

/// One rule of the automatic collection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GcRule {
    /// What it concerns; none for all.
    pub filters: Vec<UsageFilter>,
    /// What was used within this time stays.
    pub keep_duration: Option<Duration>,
    /// How far it goes.
    pub limits: KeepLimits,
}

/// What a store is held to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DiskPolicy {
    /// Bytes the store never passes: room is made before something is written, or it is not written.
    pub cap: Option<u64>,
    /// Rules of the automatic collection, in their order.
    pub rules: Vec<GcRule>,
}

/// A condition on something that takes room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UsageFilter {
    /// Its id begins so.
    Id(String),
    /// It is one of these.
    Kind(Vec<UsageKind>),
    /// Whether a running build needs it.
    InUse(bool),
    /// Whether a stored image shares it.
    Shared(bool),
    /// Whether it can still change: a cache mount.
    Mutable(bool),
    /// Its description holds this.
    Description(String),
}

/// A text that is no filter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "invalid filter `{0}`: expected `id=`, `type=`, `inuse=`, `shared=`, `private=`, `mutable=`, `immutable=` or `description=`"
)]
pub struct FilterError(String);

impl std::str::FromStr for UsageFilter {
    type Err = FilterError;

    /// `key=value`, with BuildKit's keys; `==` and `~=` are understood as its clients write them.
    fn from_str(text: &str) -> Result<Self, FilterError> {
        let wrong = || FilterError(text.chars().take(80).collect());
        let (key, value) = match text.split_once('=') {
            Some((key, value)) => (key.trim_end_matches('~'), value.trim_start_matches('=')),
            // A field alone asks whether it is set.
            None => (text, "true"),
        };
        let flag = || match value {
            "true" | "1" => Ok(true),
            "false" | "0" => Ok(false),
            _ => Err(wrong()),
        };
        Ok(match key {
            "id" => Self::Id(value.to_owned()),
            "type" => Self::Kind(UsageKind::named(value).ok_or_else(wrong)?),
            "inuse" => Self::InUse(flag()?),
            "shared" => Self::Shared(flag()?),
            "private" => Self::Shared(!flag()?),
            "mutable" => Self::Mutable(flag()?),
            "immutable" => Self::Mutable(!flag()?),
            "description" => Self::Description(value.to_owned()),
            _ => return Err(wrong()),
        })
    }
}

impl UsageFilter {
    /// Whether a record fulfils it.
    pub fn matches(&self, record: &crate::UsageRecord) -> bool {
        match self {
            Self::Id(start) => record.id.to_string().starts_with(start.trim_start_matches("sha256:")),
            Self::Kind(kinds) => kinds.contains(&record.id.kind()),
            Self::InUse(wanted) => record.in_use == *wanted,
            Self::Shared(wanted) => record.in_image == *wanted,
            Self::Mutable(wanted) => (record.id.kind() == UsageKind::CacheMount) == *wanted,
            Self::Description(part) => record.description.contains(part),
        }
    }
}

/// For how long a record counts as used later than it was, because making it again is slow: an hour for each
/// second of work per MiB, a week at most.
pub(crate) fn grace(cost: Duration, size: u64) -> Duration {
    const MIB: f64 = 1_048_576.0;
    const WEEK: f64 = 7.0 * 24.0 * 3600.0;
    #[expect(clippy::cast_precision_loss, reason = "an estimate")]
    let per_mib = cost.as_secs_f64() * MIB / (size as f64).max(MIB / 16.0);
    Duration::from_secs_f64((per_mib * 3600.0).min(WEEK))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(limits: (Option<u64>, Option<u64>, Option<u64>), used: u64, free: u64, expected: Option<u64>) {
        let (reserved, max_used, min_free) = limits;
        assert_eq!(KeepLimits { reserved, max_used, min_free }.target(used, free), expected);
    }

    #[test]
    fn targets_are_buildkits() {
        check((None, None, None), 100, 0, None);
        check((None, Some(60), None), 100, 0, Some(60));
        check((Some(80), Some(60), None), 100, 0, Some(80));
        check((Some(80), None, None), 100, 0, Some(80));
        check((None, None, Some(30)), 100, 10, Some(80));
        check((None, None, Some(30)), 100, 50, Some(100));
        check((None, Some(90), Some(30)), 100, 10, Some(80));
        check((Some(85), Some(90), Some(30)), 100, 10, Some(85));
        check((None, None, Some(500)), 100, 10, Some(0));
    }

    #[test]
    fn filters_are_read_as_clients_write_them() {
        for (text, expected) in [
            ("type=exec.cachemount", UsageFilter::Kind(vec![UsageKind::CacheMount])),
            ("type==regular", UsageFilter::Kind(vec![UsageKind::Layer, UsageKind::Blob])),
            ("id~=12", UsageFilter::Id("12".to_owned())),
            ("inuse=false", UsageFilter::InUse(false)),
            ("private", UsageFilter::Shared(false)),
            ("description=make", UsageFilter::Description("make".to_owned())),
        ] {
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
        for text in ["", "colour=red", "inuse=maybe", "type=house"] {
            assert!(text.parse::<UsageFilter>().is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_slow_to_make_stays_longer() {
        let minute = Duration::from_secs(60);
        assert!(grace(minute, 1 << 20) > grace(minute, 100 << 20));
        assert!(grace(minute, 1 << 20) > grace(Duration::from_secs(1), 1 << 20));
        assert_eq!(grace(Duration::ZERO, 0), Duration::ZERO);
        assert_eq!(grace(Duration::from_secs(1 << 40), 1), Duration::from_secs(7 * 24 * 3600));
    }
}
