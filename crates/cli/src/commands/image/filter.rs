//! `stave images --filter`: which lines of a listing are shown, by docker's names.
//!
//! Owns what a filter means: values of one name are alternatives, except of `label`, where all must hold; names hold
//! together. Must not know how lines look. Start with [`Filters`].

use std::collections::BTreeMap;
use std::time::SystemTime;

use jiff::{Timestamp, civil, tz::TimeZone};
use stave_llb::pattern::Glob;
use stave_oci::{ImageConfig, Reference};
use stave_store::{ListedImage, Store};

use super::find;
use crate::commands::disk::duration;
use crate::report::Failure;

/// What a line must be.
#[derive(Debug, Default)]
pub(super) struct Filters {
    names: Vec<NamePattern>,
    dangling: Option<bool>,
    labels: Vec<(String, Option<String>)>,
    unlabelled: Vec<(String, Option<String>)>,
    before: Vec<SystemTime>,
    since: Vec<SystemTime>,
}

/// A name, with or without its tag, in which `*`, `?` and `[…]` may stand for something.
#[derive(Debug)]
struct NamePattern {
    glob: Glob,
    /// What the text means as a name, so that `docker.io/library/x` finds `x`.
    name: Option<(Reference, bool)>,
}

impl NamePattern {
    fn parse(text: &str) -> Result<Self, Failure> {
        let glob = Glob::new(text).map_err(|error| Failure::message(error.to_string()))?;
        let parsed: Option<Reference> = text.parse().ok();
        let name = parsed.map(|name| {
            let any_tag = name.tag().is_none_or(|tag| !text.ends_with(&format!(":{tag}")));
            (name, any_tag)
        });
        Ok(Self { glob, name })
    }

    fn matches(&self, name: &Reference) -> bool {
        let is_meant = |(wanted, any_tag): &(Reference, bool)| {
            name.name() == wanted.name() && (*any_tag || name.tag() == wanted.tag())
        };
        self.name.as_ref().is_some_and(is_meant)
            || self.glob.matches(&name.familiar_name())
            || self.glob.matches(&name.familiar())
    }
}

impl Filters {
    /// The filters of a command line, with the name that may stand beside them. Images that others are older or newer than
    /// are looked up in the store.
    pub(super) fn parse(
        texts: &[String],
        name: Option<&str>,
        (store, images): (&Store, &[ListedImage]),
    ) -> Result<Self, Failure> {
        let mut filters = Self::default();
        filters.names.extend(name.map(NamePattern::parse).transpose()?);
        for text in texts {
            let Some((name, value)) = text.split_once('=') else {
                return Err(Failure::usage(format!("invalid filter `{text}`: expected `NAME=VALUE`")));
            };
            let (name, value) = (name.trim().to_lowercase(), value.trim());
            match name.as_str() {
                "reference" => filters.names.push(NamePattern::parse(value)?),
                "dangling" => filters.dangling = Some(truth(text, value)?),
                "label" => filters.labels.push(label(value)),
                "label!" => filters.unlabelled.push(label(value)),
                "before" => filters.before.push(stored((store, images), value)?),
                "since" => filters.since.push(stored((store, images), value)?),
                "until" => filters.before.push(point(value)?),
                _ => {
                    return Err(Failure::message(format!("invalid filter `{name}`")).with_hint(
                        "there are `before`, `dangling`, `label`, `label!`, `reference`, `since`, `until`"
                            .to_owned(),
                    ));
                }
            }
        }
        Ok(filters)
    }

    /// Whether a line of the listing is shown: an image under one of its names, or under none.
    pub(super) fn take(&self, listed: &ListedImage, name: Option<&Reference>) -> bool {
        let is_named = self.names.is_empty()
            || name.is_some_and(|name| self.names.iter().any(|pattern| pattern.matches(name)));
        is_named
            && self.dangling.is_none_or(|wanted| wanted == name.is_none())
            && self.before.iter().all(|time| listed.stored_at < *time)
            && self.since.iter().all(|time| listed.stored_at > *time)
            && self.is_labelled(listed)
    }

    fn is_labelled(&self, listed: &ListedImage) -> bool {
        if self.labels.is_empty() && self.unlabelled.is_empty() {
            return true;
        }
        let config = serde_json::from_slice::<ImageConfig>(&listed.image.config);
        let labels: BTreeMap<String, String> = config.map(|config| config.config.labels).unwrap_or_default();
        let has = |(key, value): &(String, Option<String>)| {
            labels.get(key).is_some_and(|found| value.as_ref().is_none_or(|value| value == found))
        };
        self.labels.iter().all(has) && !self.unlabelled.iter().any(has)
    }
}

fn truth(text: &str, value: &str) -> Result<bool, Failure> {
    match value {
        "true" | "1" => Ok(true),
        "false" | "0" => Ok(false),
        _ => Err(Failure::message(format!("invalid filter `{text}`: expected `true` or `false`"))),
    }
}

fn label(text: &str) -> (String, Option<String>) {
    match text.split_once('=') {
        Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
        None => (text.to_owned(), None),
    }
}

/// When the image came here that a user's text means.
fn stored((store, images): (&Store, &[ListedImage]), text: &str) -> Result<SystemTime, Failure> {
    let id = find(store, text)?.id;
    let listed = images.iter().find(|listed| listed.image.id == id);
    listed.map(|listed| listed.stored_at).ok_or_else(|| Failure::message(format!("No such image: {text}")))
}

/// A point in time: a date, that of this machine's zone if it names none, seconds since 1970, or how long ago it was.
fn point(text: &str) -> Result<SystemTime, Failure> {
    if text.bytes().all(|byte| byte.is_ascii_digit())
        && let Ok(at) = text.parse().map_err(drop).and_then(|at| Timestamp::from_second(at).map_err(drop))
    {
        return Ok(at.into());
    }
    if let Ok(at) = text.parse::<Timestamp>() {
        return Ok(at.into());
    }
    if let Ok(at) = text.parse::<civil::DateTime>()
        && let Ok(at) = at.to_zoned(TimeZone::system())
    {
        return Ok(at.timestamp().into());
    }
    let ago = duration(text)?;
    Ok(SystemTime::now().checked_sub(ago).unwrap_or(SystemTime::UNIX_EPOCH))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[track_caller]
    fn check(pattern: &str, name: &str, expected: bool) {
        let name: Reference = name.parse().expect("a name");
        let found = NamePattern::parse(pattern).expect("a pattern").matches(&name);
        assert_eq!(found, expected, "{pattern} {name}");
    }

    #[test]
    fn names_match_as_dockers_do() {
        for (pattern, name, expected) in [
            ("app", "app:1", true),
            ("app:1", "app:1", true),
            ("app:2", "app:1", false),
            ("ap", "app:1", false),
            ("ap*", "app:1", true),
            ("*:1", "app:1", true),
            ("*:2", "app:1", false),
            ("a?p", "app:1", true),
            ("[ab]pp:*", "app:1", true),
            ("*", "me/app:1", false),
            ("me/*", "me/app:1", true),
            ("docker.io/library/app", "app:1", true),
            ("localhost:5000/app", "localhost:5000/app:1", true),
            ("UPPER", "app:1", false),
        ] {
            check(pattern, name, expected);
        }
        assert!(NamePattern::parse("[a").is_err());
    }

    #[test]
    fn values_are_what_they_must_be() {
        assert!(truth("dangling=1", "1").expect("is one"));
        assert!(truth("dangling=yes", "yes").is_err());
        assert_eq!(label("a=b=c"), ("a".to_owned(), Some("b=c".to_owned())));
        assert_eq!(label("a"), ("a".to_owned(), None));
        assert!(point("24h").expect("is one") < SystemTime::now());
        assert_eq!(point("1970-01-01T00:00:00Z").expect("is one"), SystemTime::UNIX_EPOCH);
        let (second, day) = (Duration::from_secs(1), Duration::from_secs(86_400));
        assert_eq!(point("86400").expect("is one"), SystemTime::UNIX_EPOCH + day);
        let at = |text| point(text).expect("is one");
        assert_eq!(at("2026-01-01T00:00:01"), at("2026-01-01") + second);
        assert_eq!(at("2026-01-01T00:00"), at("2026-01-01"));
        let utc = at("2026-01-01T00:00:00Z");
        assert!(at("2026-01-01") >= utc - day && at("2026-01-01") <= utc + day);
        for text in ["yesterday", "", "2026-13-01", "99999999999999999999", "-5"] {
            assert!(point(text).is_err(), "{text}");
        }
    }
}
