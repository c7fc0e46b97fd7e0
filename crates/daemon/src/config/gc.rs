//! What is removed after builds: `gcpolicy` and the sizes beside it. Start with [`OciWorker::rules`].

use std::time::Duration;

use serde::Deserialize;
use stave_store::{GcRule, KeepLimits, UsageFilter};

use super::size::Size;
use super::{ConfigError, OciWorker};

/// Most rules of one file.
const MAX_RULES: usize = 64;

/// `[[worker.oci.gcpolicy]]`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GcPolicyConfig {
    /// Whether it concerns everything; whatever it says, its filters decide.
    #[serde(default)]
    pub all: bool,
    /// What it concerns: `type==source.local`, `unused-for=48h` is `keepDuration`.
    #[serde(default)]
    pub filters: Vec<String>,
    /// What was used within this time stays: seconds, or a text such as `48h`.
    #[serde(default, rename = "keepDuration")]
    pub keep_duration: Option<toml::Value>,
    /// Bytes that are left in any case.
    #[serde(default, alias = "keepBytes", rename = "reservedSpace")]
    pub reserved_space: Option<Size>,
    /// Bytes that are too many.
    #[serde(default, rename = "maxUsedSpace")]
    pub max_used_space: Option<Size>,
    /// Bytes of the disk that shall be free.
    #[serde(default, rename = "minFreeSpace")]
    pub min_free_space: Option<Size>,
}

impl OciWorker {
    /// The rules, for a disk of so many bytes; none where collection is switched off.
    ///
    /// # Errors
    /// For sizes, times and filters that are none.
    pub fn rules(&self, disk: u64) -> Result<Vec<GcRule>, ConfigError> {
        if self.gcpolicy.len() > MAX_RULES {
            return Err(ConfigError::Syntax(format!("more than {MAX_RULES} rules in `worker.oci.gcpolicy`")));
        }
        let mut rules = Vec::new();
        for policy in &self.gcpolicy {
            rules.push(policy.rule(disk)?);
        }
        // As buildkitd's: what is reserved alone is what may be used.
        let most = self.max_used_space.as_ref().or(self.reserved_space.as_ref());
        let own = GcPolicyConfig {
            all: true,
            reserved_space: self.reserved_space.clone(),
            max_used_space: most.cloned(),
            min_free_space: self.min_free_space.clone(),
            ..GcPolicyConfig::default()
        };
        let own = own.rule(disk)?;
        if self.gc == Some(false) {
            return Ok(Vec::new());
        }
        if rules.is_empty() && own.limits != KeepLimits::default() {
            rules.push(own);
        }
        Ok(rules)
    }
}

impl GcPolicyConfig {
    fn rule(&self, disk: u64) -> Result<GcRule, ConfigError> {
        let bytes = |size: &Option<Size>| {
            let read = |size: &Size| {
                size.bytes(disk).ok_or_else(|| ConfigError::Syntax(format!("invalid size `{size}`")))
            };
            size.as_ref().map(read).transpose()
        };
        let filters = self
            .filters
            .iter()
            .map(|text| text.parse::<UsageFilter>().map_err(|error| ConfigError::Syntax(error.to_string())));
        let invalid = || ConfigError::Syntax("invalid `keepDuration`: expected seconds, or `48h`".to_owned());
        let keep_duration = match &self.keep_duration {
            None => None,
            Some(toml::Value::Integer(seconds)) => {
                Some(u64::try_from(*seconds).map(Duration::from_secs).map_err(|_| invalid())?)
            }
            Some(toml::Value::String(text)) => Some(crate::history::span(text).ok_or_else(invalid)?),
            Some(_) => return Err(invalid()),
        };
        let limits = KeepLimits {
            reserved: bytes(&self.reserved_space)?,
            max_used: bytes(&self.max_used_space)?,
            min_free: bytes(&self.min_free_space)?,
        };
        Ok(GcRule { filters: filters.collect::<Result<_, _>>()?, keep_duration, limits })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Filters, seconds and bytes of a rule.
    type Shape = (usize, u64, Option<u64>);

    #[track_caller]
    fn check(text: &str, expected: Result<&[Shape], &str>) {
        let config: Result<OciWorker, _> = toml::from_str(text);
        let found = config.map_err(|error| error.to_string());
        let found = found.and_then(|config| config.rules(1000).map_err(|error| error.to_string()));
        let found = found.map(|rules| {
            let shape = |rule: &GcRule| {
                let kept = rule.keep_duration.map_or(0, |span| span.as_secs());
                (rule.filters.len(), kept, rule.limits.max_used)
            };
            rules.iter().map(shape).collect::<Vec<_>>()
        });
        match (found, expected) {
            (Ok(found), Ok(expected)) => assert_eq!(found, expected),
            (Err(found), Err(expected)) => assert!(found.contains(expected), "{found}"),
            (found, expected) => panic!("{found:?} is not {expected:?}"),
        }
    }

    #[test]
    fn rules() {
        check("", Ok(&[]));
        check("gc = false\nmaxUsedSpace = 5", Ok(&[]));
        check("maxUsedSpace = \"50%\"", Ok(&[(0, 0, Some(500))]));
        check("gckeepstorage = 7", Ok(&[(0, 0, Some(7))]));
        check(
            "[[gcpolicy]]\nkeepDuration = \"48h\"\nfilters = [\"type==exec.cachemount\"]\n\
             [[gcpolicy]]\nall = true\nmaxUsedSpace = \"1GB\"\nkeepBytes = 3\n",
            Ok(&[(1, 172_800, None), (0, 0, Some(1_000_000_000))]),
        );
        check("[[gcpolicy]]\nkeepDuration = \"soon\"", Err("keepDuration"));
        check("[[gcpolicy]]\nmaxUsedSpace = \"lots\"", Err("invalid size `lots`"));
        check("[[gcpolicy]]\nnonsense = 1", Err("unknown field"));
    }
}
