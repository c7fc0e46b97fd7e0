//! Signals by name or number, for `STOPSIGNAL`.
//!
//! Owns the names Linux and docker know. Start with [`is_signal`].

const NAMES: [&str; 36] = [
    "ABRT", "ALRM", "BUS", "CHLD", "CLD", "CONT", "FPE", "HUP", "ILL", "INT", "IO", "IOT", "KILL", "PIPE",
    "POLL", "PROF", "PWR", "QUIT", "SEGV", "STKFLT", "STOP", "SYS", "TERM", "TRAP", "TSTP", "TTIN", "TTOU",
    "URG", "USR1", "USR2", "VTALRM", "WINCH", "XCPU", "XFSZ", "RTMIN", "RTMAX",
];

/// Whether `text` is a signal: `9`, `KILL`, `sigkill`, `SIGRTMIN+3`.
pub(super) fn is_signal(text: &str) -> bool {
    if let Ok(number) = text.parse::<i64>() {
        return number != 0;
    }
    let upper = text.to_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let offset = |prefix: &str, most: u8| {
        let digits = name.strip_prefix(prefix)?;
        let canonical = !digits.starts_with(['0', '+']);
        digits.parse::<u8>().ok().filter(|offset| canonical && (1..=most).contains(offset))
    };
    NAMES.contains(&name) || offset("RTMIN+", 15).is_some() || offset("RTMAX-", 14).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals() {
        for good in ["9", "KILL", "sigterm", "SIGRTMIN+15", "RTMAX-14", "RTMAX"] {
            assert!(is_signal(good), "{good}");
        }
        for bad in ["0", "", "SIG", "RTMIN+16", "RTMIN+01", "FOO"] {
            assert!(!is_signal(bad), "{bad}");
        }
    }
}
