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
    /// Its id.
    Id(TextTest),
    /// Something it lies on: the ids, each by itself.
    Parents(TextTest),
    /// What made it.
    Description(TextTest),
    /// It is one of these.
    Kind(Vec<UsageKind>),
    /// Whether a running build needs it.
    InUse(bool),
    /// Whether a stored image shares it.
    Shared(bool),
    /// Whether it can still change: a cache mount.
    Mutable(bool),
    /// It was not used for this long.
    UnusedFor(Duration),
    /// The opposite.
    Not(Box<Self>),
}

/// What a text must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TextTest {
    /// This (`==`).
    Is(String),
    /// Something that begins so (`=`, for ids).
    Begins(String),
    /// Something with this in it (`~=`, and `=` for what is no id).
    Holds(String),
}

/// A text that is no filter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// No such key, or not its value.
    #[error(
        "invalid filter `{0}`: expected `id=`, `parents=`, `type=`, `inuse=`, `shared=`, `private=`, `mutable=`, \
         `immutable=` or `description=`"
    )]
    Unknown(String),
    /// `~=` with more than text.
    #[error("invalid filter `{0}`: a regular expression other than plain text is not supported")]
    Expression(String),
}

/// Characters that mean something in a regular expression; a dot is taken for itself.
const EXPRESSION: &[char] = &['*', '+', '?', '(', ')', '[', ']', '{', '}', '|', '\\', '$'];

impl std::str::FromStr for UsageFilter {
    type Err = FilterError;

    /// `key=value`, `key==value`, `key!=value` and `key~=value`, with BuildKit's keys.
    fn from_str(text: &str) -> Result<Self, FilterError> {
        let shown = || text.chars().take(80).collect::<String>();
        let wrong = || FilterError::Unknown(shown());
        let (key, operator, value) = split(text);
        let flag = || match value {
            "true" | "1" => Ok(true),
            "false" | "0" => Ok(false),
            _ => Err(wrong()),
        };
        let test = |plain: fn(String) -> TextTest| match operator {
            "==" | "!=" => Ok(TextTest::Is(value.to_owned())),
            "~=" => match value.strip_prefix('^') {
                rest if rest.unwrap_or(value).contains(EXPRESSION) => Err(FilterError::Expression(shown())),
                Some(rest) => Ok(TextTest::Begins(rest.to_owned())),
                None => Ok(TextTest::Holds(value.to_owned())),
            },
            _ => Ok(plain(value.to_owned())),
        };
        let filter = match key {
            "id" => Self::Id(test(TextTest::Begins)?),
            "parents" | "parent" => Self::Parents(test(TextTest::Begins)?),
            "description" => Self::Description(test(TextTest::Holds)?),
            "type" => Self::Kind(UsageKind::named(value).ok_or_else(wrong)?),
            "inuse" => Self::InUse(flag()?),
            "shared" => Self::Shared(flag()?),
            "private" => Self::Shared(!flag()?),
            "mutable" => Self::Mutable(flag()?),
            "immutable" => Self::Mutable(!flag()?),
            _ => return Err(wrong()),
        };
        Ok(if operator == "!=" { Self::Not(Box::new(filter)) } else { filter })
    }
}

/// Key, operator and value; a key alone asks whether it is set.
fn split(text: &str) -> (&str, &str, &str) {
    let Some(at) = text.find(['=', '!', '~']) else { return (text, "=", "true") };
    let (key, rest) = text.split_at(at);
    for operator in ["==", "!=", "~=", "="] {
        if let Some(value) = rest.strip_prefix(operator) {
            return (key, operator, value);
        }
    }
    (text, "=", "true")
}

impl TextTest {
    fn passes(&self, text: &str) -> bool {
        match self {
            Self::Is(wanted) => text == wanted,
            Self::Begins(start) => text.starts_with(start.as_str()),
            Self::Holds(part) => text.contains(part.as_str()),
        }
    }

    /// The same of an id, which may be written as a digest.
    fn passes_id(&self, id: &str) -> bool {
        self.passes(id) || self.passes(&format!("sha256:{id}"))
    }
}

impl UsageFilter {
    /// Whether a record fulfils it.
    pub fn matches(&self, record: &crate::UsageRecord) -> bool {
        match self {
            Self::Id(test) => test.passes_id(&record.id.to_string()),
            Self::Parents(test) => record.parents.iter().any(|parent| test.passes(&parent.to_string())),
            Self::Description(test) => test.passes(&record.description),
            Self::Kind(kinds) => kinds.contains(&record.id.kind()),
            Self::InUse(wanted) => record.in_use == *wanted,
            Self::Shared(wanted) => record.in_image == *wanted,
            Self::Mutable(wanted) => (record.id.kind() == UsageKind::CacheMount) == *wanted,
            Self::UnusedFor(age) => record.last_used.elapsed().is_ok_and(|unused| unused >= *age),
            Self::Not(filter) => !filter.matches(record),
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
        let text = str::to_owned;
        for (written, expected) in [
            ("type=exec.cachemount", UsageFilter::Kind(vec![UsageKind::CacheMount])),
            ("type==regular", UsageFilter::Kind(vec![UsageKind::Layer, UsageKind::Blob])),
            ("id~=12", UsageFilter::Id(TextTest::Holds(text("12")))),
            ("id~=^12", UsageFilter::Id(TextTest::Begins(text("12")))),
            ("id=12", UsageFilter::Id(TextTest::Begins(text("12")))),
            ("parents==l3", UsageFilter::Parents(TextTest::Is(text("l3")))),
            ("inuse=false", UsageFilter::InUse(false)),
            ("inuse", UsageFilter::InUse(true)),
            ("private", UsageFilter::Shared(false)),
            ("immutable", UsageFilter::Mutable(false)),
            ("description=make a=b", UsageFilter::Description(TextTest::Holds(text("make a=b")))),
            ("description!=make", {
                UsageFilter::Not(Box::new(UsageFilter::Description(TextTest::Is(text("make")))))
            }),
        ] {
            assert_eq!(written.parse(), Ok(expected), "{written}");
        }
        for written in ["", "colour=red", "inuse=maybe", "type=house", "id~12", "!id=1"] {
            assert!(matches!(written.parse::<UsageFilter>(), Err(FilterError::Unknown(_))), "{written}");
        }
        assert!(matches!("id~=a.*b".parse::<UsageFilter>(), Err(FilterError::Expression(_))));
    }

    #[test]
    fn filters_pick() {
        let at = std::time::SystemTime::now() - Duration::from_secs(3600);
        let record = |id, mutable: bool| crate::UsageRecord {
            id: if mutable {
                crate::UsageId::CacheMount("abc.0".to_owned())
            } else {
                crate::UsageId::Layer(crate::LayerId(id))
            },
            description: format!("run make {id}"),
            size: 1,
            created: at,
            last_used: at,
            in_use: id == 1,
            in_image: id == 2,
            parents: (1..id).map(crate::LayerId).collect(),
        };
        let records = [record(1, false), record(2, false), record(3, true)];
        let name = |id: i64| crate::LayerId(id).to_string();
        for (text, expected) in [
            (format!("id=={}", name(2)), vec![1]),
            (format!("parents={}", name(2)), vec![2]),
            (format!("parents={}", name(1)), vec![1, 2]),
            ("description=make 3".to_owned(), vec![2]),
            ("description!=run make 3".to_owned(), vec![0, 1]),
            ("inuse".to_owned(), vec![0]),
            ("inuse!=true".to_owned(), vec![1, 2]),
            ("shared".to_owned(), vec![1]),
            ("private".to_owned(), vec![0, 2]),
            ("mutable".to_owned(), vec![2]),
            ("immutable".to_owned(), vec![0, 1]),
            ("type=exec.cachemount".to_owned(), vec![2]),
            ("type!=exec.cachemount".to_owned(), vec![0, 1]),
            ("type=source.local".to_owned(), vec![]),
        ] {
            let filter: UsageFilter = text.parse().expect("a filter");
            let picked: Vec<_> = (0..records.len()).filter(|at| filter.matches(&records[*at])).collect();
            assert_eq!(picked, expected, "{text}");
        }
        assert!(UsageFilter::UnusedFor(Duration::from_secs(3000)).matches(&records[0]));
        assert!(!UsageFilter::UnusedFor(Duration::from_secs(9000)).matches(&records[0]));
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
