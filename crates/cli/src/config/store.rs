//! `[store]`: how much room the state directory may take. Pure. Start with [`StoreTable::policy`].
//!
//! ```toml
//! [store]
//! max-used = "20GB"        # a cap that is asked before something is written; also a share of the disk, "30%"
//!
//! [[store.gc]]             # rules of the automatic collection after a build, as buildkitd's `gcpolicy`
//! keep-duration = "48h"
//! filters = ["type=exec.cachemount"]
//! reserved = "1GB"
//! max-used = "5GB"
//! min-free = "10%"
//! ```

use serde::Deserialize;
use stave_store::{DiskPolicy, GcRule, KeepLimits};

use crate::commands::{build, disk};
use crate::report::Failure;

/// `[store]`
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct StoreTable {
    /// The store never takes more.
    pub(crate) max_used: Option<Amount>,
    /// The collection after a build leaves at least this much.
    pub(crate) reserved: Option<Amount>,
    /// The collection after a build goes on until so much is free.
    pub(crate) min_free: Option<Amount>,
    /// What was used within this time stays.
    pub(crate) keep_duration: Option<String>,
    /// Rules, in their order, after the one above.
    #[serde(default)]
    pub(crate) gc: Vec<GcTable>,
}

/// `[[store.gc]]`
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct GcTable {
    #[serde(default)]
    filters: Vec<String>,
    keep_duration: Option<String>,
    reserved: Option<Amount>,
    max_used: Option<Amount>,
    min_free: Option<Amount>,
}

/// Bytes, as a number, as text with a unit, or as a share of the file system.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub(crate) enum Amount {
    Bytes(u64),
    Text(String),
}

impl Amount {
    fn bytes(&self, disk: u64) -> Result<u64, Failure> {
        let text = match self {
            Self::Bytes(bytes) => return Ok(*bytes),
            Self::Text(text) => text,
        };
        if let Some(percent) = text.strip_suffix('%') {
            let percent: u64 =
                percent.trim().parse().ok().filter(|percent| *percent <= 100).ok_or_else(|| {
                    Failure::usage(format!("invalid share `{text}`: expected a percentage from 0% to 100%"))
                })?;
            return Ok(disk / 100 * percent);
        }
        build::size(text).map_err(|error| Failure::usage(error.to_string()))
    }
}

impl StoreTable {
    /// The policy for a file system of so many bytes.
    pub(crate) fn policy(&self, disk: u64) -> Result<DiskPolicy, Failure> {
        let of = |amount: &Option<Amount>| amount.as_ref().map(|amount| amount.bytes(disk)).transpose();
        let cap = of(&self.max_used)?;
        let mut rules = Vec::new();
        if self.reserved.is_some() || self.min_free.is_some() || self.keep_duration.is_some() {
            rules.push(GcRule {
                filters: Vec::new(),
                keep_duration: self.keep_duration.as_deref().map(disk::duration).transpose()?,
                limits: KeepLimits {
                    reserved: of(&self.reserved)?,
                    max_used: cap,
                    min_free: of(&self.min_free)?,
                },
            });
        }
        for table in &self.gc {
            let parse = |text: &String| {
                text.parse().map_err(|error: stave_store::FilterError| Failure::usage(error.to_string()))
            };
            rules.push(GcRule {
                filters: table.filters.iter().map(parse).collect::<Result<_, _>>()?,
                keep_duration: table.keep_duration.as_deref().map(disk::duration).transpose()?,
                limits: KeepLimits {
                    reserved: of(&table.reserved)?,
                    max_used: of(&table.max_used)?,
                    min_free: of(&table.min_free)?,
                },
            });
        }
        Ok(DiskPolicy { cap, rules })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(text: &str) -> Result<DiskPolicy, String> {
        let table: StoreTable = toml::from_str(text).map_err(|error| error.to_string())?;
        table.policy(1000).map_err(|failure| failure.render())
    }

    #[test]
    fn amounts_have_units_or_are_shares() {
        assert_eq!(policy("max-used = \"30%\"").expect("valid").cap, Some(300));
        assert_eq!(policy("max-used = 77").expect("valid").cap, Some(77));
        assert_eq!(policy("max-used = \"1k\"").expect("valid").cap, Some(1024));
        assert!(policy("").expect("valid").rules.is_empty());
        for text in ["max-used = \"130%\"", "max-used = \"much\"", "max-use = 1", "keep-duration = \"x\"\n"] {
            assert!(policy(text).is_err(), "{text}");
        }
    }

    #[test]
    fn rules_keep_their_order() {
        let policy = policy(
            "min-free = \"10%\"\n[[gc]]\nfilters = [\"type=exec.cachemount\"]\nkeep-duration = \"48h\"\n\
             max-used = 5\n",
        )
        .expect("valid");
        assert_eq!(policy.rules[0].limits.min_free, Some(100));
        assert_eq!(policy.rules[1].limits.max_used, Some(5));
        assert_eq!(policy.rules[1].keep_duration, Some(std::time::Duration::from_secs(48 * 3600)));
    }
}
