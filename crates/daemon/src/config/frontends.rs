//! `[frontend]`: what may say how a build is made.
//!
//! Owns the keys and what follows from them. Must not know how a front end runs. Start with [`FrontEnds`].

use serde::Deserialize;
use stave_oci::Reference;

/// `[frontend]`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FrontEndTables {
    /// The front end inside.
    #[serde(default, rename = "dockerfile.v0")]
    pub dockerfile: FrontEndTable,
    /// Front ends that are images.
    #[serde(default, rename = "gateway.v0")]
    pub gateway: GatewayTable,
}

/// `[frontend."dockerfile.v0"]`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FrontEndTable {
    /// Whether it is there; it is.
    #[serde(default)]
    pub enabled: Option<bool>,
}

/// `[frontend."gateway.v0"]`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GatewayTable {
    /// Whether they are there; they are.
    #[serde(default)]
    pub enabled: Option<bool>,
    /// Names of the images that may be front ends, without tags; all, if there is none.
    #[serde(default, rename = "allowedRepositories")]
    pub allowed_repositories: Vec<String>,
}

/// What may say how a build is made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FrontEnds {
    absent: Vec<&'static str>,
    /// Whole names; everything, if there is none.
    repositories: Vec<String>,
}

impl FrontEnds {
    /// As a file has it.
    #[must_use]
    pub fn of(tables: &FrontEndTables) -> Self {
        let is_absent = |name, enabled| (enabled == Some(false)).then_some(name);
        let absent = [
            is_absent("dockerfile.v0", tables.dockerfile.enabled),
            is_absent("gateway.v0", tables.gateway.enabled),
        ];
        Self {
            absent: absent.into_iter().flatten().collect(),
            repositories: tables.gateway.allowed_repositories.clone(),
        }
    }

    /// Whether clients may ask for it.
    pub(crate) fn has(&self, name: &str) -> bool {
        !self.absent.contains(&name)
    }

    /// Whether that image may be a front end; a name that cannot be read may not.
    pub(crate) fn allows(&self, source: &str) -> bool {
        let name = |text: &str| {
            let reference: Option<Reference> = text.parse().ok();
            reference.map(|reference| (reference.registry().to_owned(), reference.repository().to_owned()))
        };
        self.repositories.is_empty()
            || name(source)
                .is_some_and(|own| self.repositories.iter().any(|text| name(text).as_ref() == Some(&own)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, there: [bool; 2], sources: &[(&str, bool)]) {
        let found = FrontEnds::of(&toml::from_str(text).expect("is a table"));
        assert_eq!(["dockerfile.v0", "gateway.v0"].map(|name| found.has(name)), there, "{text}");
        for (source, expected) in sources {
            assert_eq!(found.allows(source), *expected, "{text}: {source}");
        }
    }

    #[test]
    fn only_what_is_allowed_is_a_front_end() {
        check("", [true, true], &[("anything", true)]);
        check("[\"dockerfile.v0\"]\nenabled = false\n", [false, true], &[("anything", true)]);
        check("[\"gateway.v0\"]\nenabled = false\n", [true, false], &[]);
        check(
            "[\"gateway.v0\"]\nallowedRepositories = [\"docker/dockerfile\", \"example.com/f\"]\n",
            [true, true],
            &[
                ("docker/dockerfile:1", true),
                (
                    "docker.io/docker/dockerfile@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
                    true,
                ),
                ("example.com/f:2", true),
                ("example.com/g", false),
                ("example.com/f/g", false),
                ("dockerfile", false),
                ("not a name", false),
            ],
        );
    }
}
