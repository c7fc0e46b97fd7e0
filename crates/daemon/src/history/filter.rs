//! Which builds a client wants to be told of: BuildKit's filters over `ref`, `status`, `repository`, `startedAt`,
//! `completedAt` and `duration`. One filter is a list of conditions that all hold; of several filters one must match.
//! Pure. Start with [`Filters`].

use std::time::{Duration, SystemTime};

use bollard_buildkit_proto::google::protobuf::Timestamp;
use bollard_buildkit_proto::moby::buildkit::v1::BuildHistoryRecord;

/// Most filters, and most conditions of one.
const MAX: usize = 64;
/// The longest filter, in bytes.
const MAX_LENGTH: usize = 4096;

/// What a client wants to see.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Filters(Vec<Vec<Condition>>);

#[derive(Debug, Clone, PartialEq)]
enum Condition {
    /// Two texts are the same, or are not.
    Text { field: Field, is_equal: bool, value: String },
    /// A text is there.
    Present(Field),
    /// Seconds since the epoch, or seconds.
    Number { field: Measure, comparison: Comparison, value: f64 },
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Field {
    Ref,
    Status,
    Repository,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Measure {
    StartedAt,
    CompletedAt,
    Duration,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Comparison {
    AtLeast,
    AtMost,
    Over,
    Under,
}

impl Filters {
    /// Reads the filters of a request.
    pub(super) fn parse(texts: &[String]) -> Result<Self, String> {
        if texts.len() > MAX {
            return Err(format!("more than {MAX} filters"));
        }
        texts.iter().map(|text| parse(text)).collect::<Result<_, _>>().map(Self)
    }

    /// Whether a build is meant; without filters all are.
    pub(super) fn matches(&self, record: &BuildHistoryRecord) -> bool {
        self.0.is_empty() || self.0.iter().any(|all| all.iter().all(|condition| condition.holds(record)))
    }
}

fn parse(text: &str) -> Result<Vec<Condition>, String> {
    if text.len() > MAX_LENGTH || text.split(',').count() > MAX {
        return Err("the filter is too long".to_owned());
    }
    text.split(',').filter(|part| !part.is_empty()).map(condition).collect()
}

fn condition(text: &str) -> Result<Condition, String> {
    let invalid = || format!("failed to parse history filters {text}");
    for (sign, comparison) in [
        (">=", Comparison::AtLeast),
        ("<=", Comparison::AtMost),
        (">", Comparison::Over),
        ("<", Comparison::Under),
    ] {
        let Some((name, value)) = text.split_once(sign) else { continue };
        let field = match name {
            "startedAt" => Measure::StartedAt,
            "completedAt" => Measure::CompletedAt,
            "duration" => Measure::Duration,
            _ => return Err(invalid()),
        };
        return Ok(Condition::Number { field, comparison, value: number(field, value)? });
    }
    let (name, is_equal, value) = match text.split_once("!=").map(|pair| (pair, false)) {
        Some(((name, value), is_equal)) => (name, is_equal, Some(value)),
        None => match text.split_once("==").or_else(|| text.split_once('=')) {
            Some((name, value)) => (name, true, Some(value)),
            None => (text, true, None),
        },
    };
    let field = match name {
        "ref" => Field::Ref,
        "status" => Field::Status,
        "repository" => Field::Repository,
        _ => return Err(invalid()),
    };
    Ok(match value {
        Some(value) => Condition::Text { field, is_equal, value: value.trim_matches('"').to_owned() },
        None => Condition::Present(field),
    })
}

/// A moment, also as how long ago it was, or a span of time.
fn number(field: Measure, text: &str) -> Result<f64, String> {
    let span = span(text);
    match field {
        Measure::Duration => {
            span.map(|span| span.as_secs_f64()).ok_or_else(|| format!("invalid duration {text}"))
        }
        Measure::StartedAt | Measure::CompletedAt => {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            let ago = span.map(|span| now.saturating_sub(span).as_secs() as f64);
            let then = || text.parse::<jiff::Timestamp>().ok().map(|time| time.as_second() as f64);
            ago.or_else(then).ok_or_else(|| format!("invalid time {text}"))
        }
    }
}

/// Go's way to write a span of time: `1h30m`, `1.5s`, `200ms`.
pub(crate) fn span(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut sum = 0.0;
    while !rest.is_empty() {
        let end = rest.find(|letter: char| !letter.is_ascii_digit() && letter != '.')?;
        let number: f64 = rest[..end].parse().ok()?;
        rest = &rest[end..];
        let unit = rest.find(|letter: char| letter.is_ascii_digit()).unwrap_or(rest.len());
        sum += number
            * match &rest[..unit] {
                "h" => 3600.0,
                "m" => 60.0,
                "s" => 1.0,
                "ms" => 1e-3,
                "us" | "µs" => 1e-6,
                "ns" => 1e-9,
                _ => return None,
            };
        rest = &rest[unit..];
    }
    (!text.is_empty()).then(|| Duration::try_from_secs_f64(sum).ok()).flatten()
}

impl Condition {
    fn holds(&self, record: &BuildHistoryRecord) -> bool {
        match self {
            Self::Text { field, is_equal, value } => {
                field.of(record).is_some_and(|found| (found == value) == *is_equal)
            }
            Self::Present(field) => field.of(record).is_some(),
            Self::Number { field, comparison, value } => {
                let found = field.of(record);
                match comparison {
                    Comparison::AtLeast => found >= *value,
                    Comparison::AtMost => found <= *value,
                    Comparison::Over => found > *value,
                    Comparison::Under => found < *value,
                }
            }
        }
    }
}

impl Field {
    fn of(self, record: &BuildHistoryRecord) -> Option<&str> {
        match self {
            Self::Ref => Some(record.r#ref.as_str()),
            Self::Status => Some(match (&record.completed_at, &record.error) {
                (None, _) => "running",
                (Some(_), None) => "completed",
                (Some(_), Some(error)) if error.message.contains("context canceled") => "canceled",
                (Some(_), Some(_)) => "error",
            }),
            Self::Repository => {
                let attrs = &record.frontend_attrs;
                let remote = || attrs.get("context").filter(|text| text.contains("://"));
                let found = attrs.get("vcs:source").or_else(remote)?;
                Some(found.split('#').next().unwrap_or_default())
            }
        }
    }
}

impl Measure {
    fn of(self, record: &BuildHistoryRecord) -> f64 {
        let seconds = |time: &Option<Timestamp>| time.as_ref().map(|time| time.seconds as f64);
        let exact = |time: &Timestamp| time.seconds as f64 + f64::from(time.nanos) * 1e-9;
        match self {
            Self::StartedAt => seconds(&record.created_at).unwrap_or(0.0),
            Self::CompletedAt => seconds(&record.completed_at).unwrap_or(0.0),
            Self::Duration => match (&record.created_at, &record.completed_at) {
                (Some(start), Some(end)) => exact(end) - exact(start),
                _ => 0.0,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use bollard_buildkit_proto::google::rpc;

    use super::*;

    fn record(seconds: i64, error: Option<&str>) -> BuildHistoryRecord {
        let at = |seconds| Some(Timestamp { seconds, nanos: 0 });
        BuildHistoryRecord {
            r#ref: "r".to_owned(),
            created_at: at(1_000),
            completed_at: at(1_000 + seconds),
            error: error.map(|message| rpc::Status { message: message.to_owned(), ..rpc::Status::default() }),
            frontend_attrs: [("vcs:source".to_owned(), "https://a.b/c".to_owned())].into(),
            ..BuildHistoryRecord::default()
        }
    }

    #[track_caller]
    fn check(filters: &[&str], record: &BuildHistoryRecord, expected: Result<bool, &str>) {
        let texts: Vec<_> = filters.iter().map(|text| (*text).to_owned()).collect();
        let found = Filters::parse(&texts).map(|filters| filters.matches(record));
        assert_eq!(found.as_ref().map_err(String::as_str), expected.as_ref().map_err(|text| *text));
    }

    #[test]
    fn builds_are_picked_as_buildkit_picks_them() {
        let good = record(90, None);
        check(&[], &good, Ok(true));
        check(&["status=completed"], &good, Ok(true));
        check(&["status==error"], &good, Ok(false));
        check(&["status!=error,ref=r"], &good, Ok(true));
        check(&["status=error", "ref=r"], &good, Ok(true));
        check(&["duration>1m"], &good, Ok(true));
        check(&["duration<=1m30s"], &good, Ok(true));
        check(&["duration<1.5m"], &good, Ok(false));
        check(&["startedAt<1h"], &good, Ok(true));
        check(&["startedAt>=2020-01-01T00:00:00Z"], &good, Ok(false));
        check(&["repository=https://a.b/c"], &good, Ok(true));
        check(&["status=error"], &record(1, Some("boom")), Ok(true));
        check(&["status=canceled"], &record(1, Some("context canceled")), Ok(true));
        check(&["duration>soon"], &good, Err("invalid duration soon"));
        check(&["startedAt>soon"], &good, Err("invalid time soon"));
        check(&["nonsense=1"], &good, Err("failed to parse history filters nonsense=1"));
    }
}
