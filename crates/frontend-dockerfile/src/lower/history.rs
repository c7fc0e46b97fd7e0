//! The texts that say how an image came to be.
//!
//! Owns `created_by` and the forms Go's `fmt` gives values in it. Start with [`commit`].

use stave_oci::{Healthcheck, History, ImageConfig};

/// What BuildKit's front end calls itself in histories.
const COMMENT: &str = "buildkit.dockerfile.v0";

/// Adds a step to an image's history. `epoch` is its time in seconds, where one is set.
pub(super) fn commit(
    image: &mut ImageConfig,
    created_by: impl Into<String>,
    layer: bool,
    epoch: Option<i64>,
) {
    image.history.push(History {
        created: epoch.map(timestamp),
        created_by: created_by.into(),
        author: String::new(),
        comment: COMMENT.to_owned(),
        empty_layer: !layer,
    });
}

/// A list as Go's `%v` writes it.
pub(super) fn list<S: AsRef<str>>(texts: &[S]) -> String {
    let texts: Vec<&str> = texts.iter().map(AsRef::as_ref).collect();
    format!("[{}]", texts.join(" "))
}

/// A health check as Go's `%+v` writes it.
pub(super) fn healthcheck(check: &Healthcheck) -> String {
    format!(
        "{{Test:{} Interval:{} Timeout:{} StartPeriod:{} StartInterval:{} Retries:{}}}",
        list(&check.test),
        duration(check.interval),
        duration(check.timeout),
        duration(check.start_period),
        duration(check.start_interval),
        check.retries
    )
}

/// Nanoseconds as Go writes a duration: `1m30s`, `1.5s`, `20ms`.
fn duration(nanoseconds: i64) -> String {
    let sign = if nanoseconds < 0 { "-" } else { "" };
    let amount = nanoseconds.unsigned_abs();
    let text = match amount {
        0 => return "0s".to_owned(),
        1..1_000 => format!("{amount}ns"),
        1_000..1_000_000 => format!("{}µs", decimal(amount, 1_000)),
        1_000_000..1_000_000_000 => format!("{}ms", decimal(amount, 1_000_000)),
        _ => {
            let minutes = amount / 60_000_000_000;
            let seconds = decimal(amount % 60_000_000_000, 1_000_000_000);
            match (minutes / 60, minutes % 60) {
                (0, 0) => format!("{seconds}s"),
                (0, minutes) => format!("{minutes}m{seconds}s"),
                (hours, minutes) => format!("{hours}h{minutes}m{seconds}s"),
            }
        }
    };
    format!("{sign}{text}")
}

/// `amount / unit` with as many decimals as it takes.
fn decimal(amount: u64, unit: u64) -> String {
    let digits = unit.ilog10() as usize;
    let fraction = format!("{:0digits$}", amount % unit);
    let fraction = fraction.trim_end_matches('0');
    if fraction.is_empty() { (amount / unit).to_string() } else { format!("{}.{fraction}", amount / unit) }
}

/// Seconds since 1970 as RFC 3339 in UTC (civil-from-days, proleptic Gregorian calendar).
fn timestamp(seconds: i64) -> String {
    let (days, rest) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Years begin in March here, so that the leap day is a year's last.
    let shifted = days.saturating_add(719_468);
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_as_go_writes_them() {
        let all = [0, 30_000_000_000, 90_000_000_000, 3_600_000_000_000, 1_500_000_000, 20_000_000, 1_500, 7];
        let texts = ["0s", "30s", "1m30s", "1h0m0s", "1.5s", "20ms", "1.5µs", "7ns"];
        assert_eq!(all.map(duration), texts);
        assert_eq!(duration(-90_000_000_000), "-1m30s");
    }

    #[test]
    fn timestamps_are_rfc_3339() {
        assert_eq!(timestamp(0), "1970-01-01T00:00:00Z");
        assert_eq!(timestamp(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(timestamp(1_700_000_000), "2023-11-14T22:13:20Z");
        assert_eq!(timestamp(-1), "1969-12-31T23:59:59Z");
    }
}
