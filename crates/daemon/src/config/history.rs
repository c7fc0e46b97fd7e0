//! `[history]`: how long builds are remembered. Start with [`HistoryConfig`].

use std::time::Duration;

use serde::Deserialize;
use stave_engine::record::Retention;

use super::ConfigError;

/// `[history]`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HistoryConfig {
    /// Builds this young stay though there are more than `maxEntries`: seconds, or a text such as `48h`.
    #[serde(default, rename = "maxAge")]
    pub max_age: Option<toml::Value>,
    /// Builds that stay whatever their age.
    #[serde(default, rename = "maxEntries")]
    pub max_entries: Option<u64>,
    /// Bytes of all records and logs: a number. buildkitd has no such key.
    #[serde(default, rename = "maxSize")]
    pub max_size: Option<u64>,
}

impl HistoryConfig {
    /// What stays. As buildkitd has it, a build goes that is beyond both, the number and the age.
    ///
    /// # Errors
    /// For an age that is none.
    pub fn retention(&self) -> Result<Retention, ConfigError> {
        let usual = Retention::default();
        let at_least = match &self.max_age {
            None => usual.at_least,
            Some(toml::Value::Integer(seconds)) => {
                u64::try_from(*seconds).map(Duration::from_secs).map_err(|_| invalid())?
            }
            Some(toml::Value::String(text)) => crate::history::span(text).ok_or_else(invalid)?,
            Some(_) => return Err(invalid()),
        };
        let builds = self.max_entries.map(|count| usize::try_from(count).unwrap_or(usize::MAX));
        let builds = builds.unwrap_or(usual.builds);
        Ok(Retention { builds, bytes: self.max_size.unwrap_or(usual.bytes), at_least })
    }
}

fn invalid() -> ConfigError {
    ConfigError::Syntax("invalid `history.maxAge`: expected seconds, or a text such as `48h`".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Option<(usize, u64, u64)>) {
        let config: HistoryConfig = toml::from_str(text).expect("is of the form");
        let found = config.retention().ok();
        let found = found.map(|keep| (keep.builds, keep.bytes, keep.at_least.as_secs()));
        assert_eq!(found, expected);
    }

    #[test]
    fn what_stays() {
        check("", Some((200, 256 << 20, 0)));
        check("maxAge = 60\nmaxEntries = 5", Some((5, 256 << 20, 60)));
        check("maxAge = \"1h30m\"\nmaxSize = 1000", Some((200, 1000, 5400)));
        check("maxAge = -1", None);
        check("maxAge = \"soon\"", None);
        check("maxAge = [1]", None);
    }
}
