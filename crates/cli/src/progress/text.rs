//! Numbers as BuildKit's progress prints them. Pure.

use std::time::Duration;

/// Seconds with one decimal: `0.3s`.
pub(super) fn seconds(duration: Duration) -> String {
    format!("{:.1}s", duration.as_secs_f64())
}

/// The time of a log line since its step began: four significant digits, at most five characters.
pub(super) fn stamp(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    let decimals: usize = match seconds {
        s if s < 9.9995 => 3,
        s if s < 99.995 => 2,
        s if s < 999.95 => 1,
        _ => 0,
    };
    format!("{seconds:.decimals$}")
}

/// A count of bytes with decimal units: `529B`, `12.30MB`.
pub(super) fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["kB", "MB", "GB", "TB", "PB", "EB"];
    if count < 1000 {
        return format!("{count}B");
    }
    #[expect(clippy::cast_precision_loss, reason = "two decimals are shown")]
    let mut value = count as f64 / 1000.0;
    let mut unit = 0;
    // Rounding must not print 1000.00kB.
    while value >= 999.995 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    format!("{value:.2}{}", UNITS[unit])
}

/// How far something is: `12.30MB / 45.60MB`, or the first half alone.
pub(super) fn amount(current: u64, total: Option<u64>) -> String {
    match total {
        Some(total) if total > 0 => format!("{} / {}", bytes(current), bytes(total)),
        _ => bytes(current),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_buildkits() {
        let after = |millis| Duration::from_millis(millis);
        assert_eq!(
            [0, 1, 9_994, 12_345, 123_456, 1_234_567].map(|ms| stamp(after(ms))),
            ["0.000", "0.001", "9.994", "12.35", "123.5", "1235"]
        );
        assert_eq!(seconds(after(340)), "0.3s");
        assert_eq!(
            [0, 999, 1000, 12_300_000, 999_999].map(bytes),
            ["0B", "999B", "1.00kB", "12.30MB", "1.00MB"]
        );
        assert_eq!(amount(5, Some(10)), "5B / 10B");
        assert_eq!(amount(5, Some(0)), "5B");
        assert_eq!(amount(5, None), "5B");
    }
}
