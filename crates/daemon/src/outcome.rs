//! What a front end came to: results with their platforms, and what it says of them.
//!
//! Owns the names of what front ends say (BuildKit's `exptypes`) and what is wrong with it. Must not know how results
//! are solved or written. Start with [`Outcome`].

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bollard_buildkit_proto::moby::buildkit::v1::{Exporter, VertexWarning};
use serde::Deserialize;
use stave_oci::{ImageConfig, Platform};

use crate::build::Target;
use crate::failure::Failure;
use crate::statements::{Statement, Statements};

/// The platforms of several results.
const PLATFORMS: &str = "refs.platforms";
/// The config of a result, of one platform with a `/` and its id behind.
const CONFIG: &str = "containerimage.config";
/// The name that an exporter takes whose own is [`ANY_NAME`].
const NAME: &str = "image.name";
const ANY_NAME: &str = "*";
/// The time that files of new layers carry at most, in seconds since the epoch; of one platform as configs are.
const EPOCH: &str = "source.date.epoch";
/// How annotations begin, as exporters' options have them.
const ANNOTATION: &str = "annotation";
/// What of the metadata goes back to the client.
const TOLD: &str = "frontend.";
/// What clients put among an exporter's options and no exporter reads: statements are asked for elsewhere.
const STATEMENTS: &str = "attest:";

/// What a front end came to.
#[derive(Debug, Default, Clone)]
pub(crate) struct Outcome {
    /// Results, with their platform where there are several.
    pub(crate) targets: Vec<(Option<String>, Arc<Target>)>,
    /// What else is said about them, the images' configs among it.
    pub(crate) metadata: HashMap<String, Vec<u8>>,
    /// What a front end attests of them.
    pub(crate) statements: Statements,
}

#[derive(Debug, Default, Deserialize)]
struct Platforms {
    #[serde(rename = "Platforms", default)]
    platforms: Option<Vec<Named>>,
}

#[derive(Debug, Deserialize)]
struct Named {
    #[serde(rename = "ID", default)]
    id: String,
    #[serde(rename = "Platform", default)]
    platform: Option<Said>,
}

/// A platform as messages have it: anything may be missing.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Said {
    architecture: String,
    os: String,
    #[serde(rename = "os.version")]
    os_version: Option<String>,
    #[serde(rename = "os.features")]
    os_features: Vec<String>,
    variant: Option<String>,
}

impl Said {
    fn platform(self) -> Platform {
        let Self { architecture, os, os_version, os_features, variant } = self;
        let os_version = os_version.filter(|version| !version.is_empty());
        Platform { architecture, os, os_version, os_features, variant }.normalized()
    }
}

impl Outcome {
    /// The ids of the platforms in their order; empty where nothing is said of them.
    pub(crate) fn order(metadata: &HashMap<String, Vec<u8>>) -> Vec<String> {
        let list = metadata.get(PLATFORMS).and_then(|bytes| serde_json::from_slice(bytes).ok());
        let list: Platforms = list.unwrap_or_default();
        list.platforms.unwrap_or_default().into_iter().map(|named| named.id).collect()
    }

    /// Refuses what no exporter can make an image of.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        let platforms = self.platforms()?;
        if self.targets.iter().any(|(id, _)| id.is_some()) {
            if !self.metadata.contains_key(PLATFORMS) {
                let text = "unable to export multiple refs, missing platforms mapping";
                return Err(Failure::Value(text.to_owned()));
            }
            let has = |wanted: &String| self.targets.iter().any(|(id, _)| id.as_ref() == Some(wanted));
            if let Some(missing) = platforms.keys().find(|id| !has(id)) {
                return Err(Failure::Value(format!("failed to find ref for ID {missing}")));
            }
        }
        Ok(())
    }

    /// The platforms by their ids; where nothing is said, that of the config.
    fn platforms(&self) -> Result<BTreeMap<String, Platform>, Failure> {
        let wrong = |text: &str| Failure::Value(text.to_owned());
        let Some(bytes) = self.metadata.get(PLATFORMS) else {
            let platform = match self.metadata.get(CONFIG) {
                None => Platform::host(),
                Some(bytes) => {
                    let said: Option<Said> = serde_json::from_slice(bytes)
                        .map_err(|error| Failure::Value(format!("failed to parse image config: {error}")))?;
                    let said = said.ok_or_else(|| wrong("invalid null image config for export"))?;
                    match (said.os.is_empty(), said.architecture.is_empty()) {
                        (true, true) => Platform::host(),
                        (false, false) => said.platform(),
                        _ => {
                            let text = "invalid image config: os and architecture must be specified together";
                            return Err(wrong(text));
                        }
                    }
                }
            };
            return Ok(BTreeMap::from([(platform.to_string(), platform)]));
        };
        let failed = |error| Failure::Value(format!("failed to parse platforms: {error}"));
        let list: Option<Platforms> = serde_json::from_slice(bytes).map_err(failed)?;
        let list = list.unwrap_or_default().platforms.unwrap_or_default();
        if list.is_empty() {
            return Err(wrong("invalid empty platforms index for exporter"));
        }
        let named = |named: Named| {
            if named.id.is_empty() {
                return Err(wrong("invalid empty platform key for exporter"));
            }
            let said = named.platform.unwrap_or_default();
            match said.os.is_empty() || said.architecture.is_empty() {
                true => Err(wrong("invalid platform value for exporter")),
                false => Ok((named.id, said.platform())),
            }
        };
        list.into_iter().map(named).collect()
    }

    /// The image config of a result: what is said of its platform, else of all.
    pub(crate) fn config(&self, platform: Option<&str>) -> Result<Option<ImageConfig>, Failure> {
        let own = platform.and_then(|platform| self.metadata.get(&format!("{CONFIG}/{platform}")));
        let Some(bytes) = own.or_else(|| self.metadata.get(CONFIG)) else { return Ok(None) };
        let config: Result<Option<ImageConfig>, _> = serde_json::from_slice(bytes);
        match config.map_err(|error| Failure::Value(format!("failed to parse image config: {error}")))? {
            Some(config) => Ok(Some(config)),
            None => Err(Failure::Value("invalid null image config for export".to_owned())),
        }
    }

    /// What a front end attests of a result on this platform.
    pub(crate) fn statements_about(&self, id: Option<&str>, platform: &Platform) -> &[Statement] {
        let own = id.and_then(|id| self.statements.get(id));
        let found = own.or_else(|| self.statements.get(&platform.to_string()));
        found.map(Vec::as_slice).unwrap_or_default()
    }

    /// The time that a front end gives a result.
    pub(crate) fn epoch(&self, platform: Option<&str>) -> Result<Option<i64>, Failure> {
        let own = platform.and_then(|platform| self.metadata.get(&format!("{EPOCH}/{platform}")));
        let Some(bytes) = own.or_else(|| self.metadata.get(EPOCH)) else { return Ok(None) };
        let text = String::from_utf8_lossy(bytes);
        let seconds = text.parse().ok().filter(|seconds| stave_oci::is_date(*seconds));
        let wrong = || Failure::Value(format!("invalid SOURCE_DATE_EPOCH from frontend: {text:?}"));
        seconds.map(Some).ok_or_else(wrong)
    }

    /// The platform of a result: what is said of its key, else what the key itself says, else its config.
    pub(crate) fn platform(&self, id: Option<&str>, config: &ImageConfig) -> Platform {
        let said = id.and_then(|id| self.platforms().ok()?.remove(id));
        let named = said.or_else(|| id.and_then(|id| id.parse().ok()));
        named.unwrap_or_else(|| match config.architecture.is_empty() {
            true => Platform::host(),
            false => config.platform(),
        })
    }

    /// What a client should hear about platforms that it asked for with `options` and did not get.
    pub(crate) fn platform_warnings(
        &self,
        options: &HashMap<String, String>,
    ) -> Result<Vec<VertexWarning>, Failure> {
        let warning = |short: String| VertexWarning { short: short.into_bytes(), ..VertexWarning::default() };
        let is_several = self.targets.iter().any(|(id, _)| id.is_some());
        if self.targets.is_empty() && !self.metadata.contains_key(PLATFORMS) {
            return Ok(Vec::new());
        }
        let got = self.platforms()?;
        let (mut wanted, mut warnings) = (BTreeMap::new(), Vec::new());
        let host = Platform::host().to_string();
        let asked = options.get("platform").unwrap_or(&host);
        for text in asked.split(',') {
            match text.parse::<Platform>() {
                Ok(platform) => {
                    if wanted.insert(platform.to_string(), platform).is_some() {
                        warnings.push(warning(format!("Duplicate platform result requested {text:?}")));
                    }
                }
                Err(error) => {
                    warnings.push(warning(format!("Invalid platform result requested {text:?}: {error}")));
                }
            }
        }
        if !warnings.is_empty() {
            return Ok(warnings);
        }
        let same = |wanted: &Platform, got: &Platform| {
            // Who names no version takes any.
            let any = Platform { os_version: wanted.os_version.clone(), ..got.clone() };
            wanted == got || (wanted.os_version.is_none() && wanted == &any)
        };
        if let ([wanted], [got]) =
            (&wanted.values().collect::<Vec<_>>()[..], &got.values().collect::<Vec<_>>()[..])
        {
            return Ok(match same(wanted, got) {
                true => Vec::new(),
                false => vec![warning(format!(
                    "Requested platform {asked:?} does not match result platform {:?}",
                    got.to_string()
                ))],
            });
        }
        if !is_several && wanted.len() > 1 {
            let text = "Multiple platforms requested but result is not multi-platform";
            return Ok(vec![warning(text.to_owned())]);
        }
        let mut names: Vec<String> = got.values().map(Platform::to_string).collect();
        names.sort();
        let asked: Vec<String> = wanted.into_keys().collect();
        Ok(match asked == names {
            true => Vec::new(),
            false => vec![warning(format!(
                "Requested platforms {} do not match result platforms {}",
                asked.join(","),
                names.join(",")
            ))],
        })
    }

    /// What of it the client is told.
    pub(crate) fn told(&self) -> HashMap<String, String> {
        let said = self.metadata.iter().filter(|(key, _)| key.starts_with(TOLD));
        said.map(|(key, value)| (key.clone(), String::from_utf8_lossy(value).into_owned())).collect()
    }

    /// An exporter's options with what a front end says where they leave it open.
    pub(crate) fn complete(&self, exporter: &Exporter) -> Exporter {
        let mut exporter = exporter.clone();
        let text = |bytes: &Vec<u8>| String::from_utf8_lossy(bytes).into_owned();
        if let (Some(name), Some(said)) = (exporter.attrs.get_mut("name"), self.metadata.get(NAME))
            && name == ANY_NAME
        {
            *name = text(said);
        }
        if matches!(exporter.r#type.as_str(), "image" | "oci" | "docker") {
            let said = self.metadata.iter().filter(|(key, _)| key.starts_with(ANNOTATION));
            for (key, value) in said {
                exporter.attrs.entry(key.clone()).or_insert_with(|| text(value));
            }
        }
        exporter
    }

    /// The same with what an exporter's options say of the result, which counts for that exporter alone; `None` where
    /// they say nothing.
    pub(crate) fn under(&self, exporter: &Exporter) -> Option<Self> {
        let said = exporter.attrs.iter().filter(|(key, _)| is_said(key));
        let said: Vec<_> = said.map(|(key, value)| (key.clone(), value.clone().into_bytes())).collect();
        if said.is_empty() {
            return None;
        }
        let mut outcome = self.clone();
        outcome.metadata.extend(said);
        Some(outcome)
    }
}

/// Whether an exporter's option is about the result and not for the exporter.
fn is_said(key: &str) -> bool {
    key == CONFIG || key == PLATFORMS || key.strip_prefix(CONFIG).is_some_and(|rest| rest.starts_with('/'))
}

/// An exporter with only the options that are for it; `is_early`: before the front end has said its name.
pub(crate) fn own_options(exporter: &Exporter, is_early: bool) -> Exporter {
    let mut exporter = exporter.clone();
    exporter.attrs.retain(|key, _| !is_said(key) && !key.starts_with(STATEMENTS));
    if let Some(name) = exporter.attrs.get_mut("name").filter(|name| is_early && *name == ANY_NAME) {
        "to-be-said".clone_into(name);
    }
    exporter
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(metadata: &[(&str, &str)]) -> Outcome {
        let metadata = metadata.iter().map(|(key, value)| ((*key).to_owned(), value.as_bytes().to_vec()));
        Outcome { metadata: metadata.collect(), ..Outcome::default() }
    }

    #[track_caller]
    fn refused(metadata: &[(&str, &str)], expected: &str) {
        assert_eq!(said(metadata).check().expect_err("is refused").to_string(), expected);
    }

    #[test]
    fn what_no_image_can_be_made_of() {
        let both = "invalid image config: os and architecture must be specified together";
        refused(&[(CONFIG, r#"{"architecture":"amd64"}"#)], both);
        refused(&[(CONFIG, "null")], "invalid null image config for export");
        refused(&[(PLATFORMS, "null")], "invalid empty platforms index for exporter");
        let keys = r#"{"Platforms":[{"ID":"","Platform":{"os":"","architecture":""}}]}"#;
        refused(&[(PLATFORMS, keys)], "invalid empty platform key for exporter");
        refused(&[(PLATFORMS, r#"{"Platforms":[{"ID":"x"}]}"#)], "invalid platform value for exporter");
        said(&[(CONFIG, "{}")]).check().expect("a platform is not needed");
    }

    #[test]
    fn platforms_that_were_asked_for() {
        let list = r#"{"Platforms":[
            {"ID":"linux/amd64","Platform":{"os":"linux","architecture":"amd64"}},
            {"ID":"w","Platform":{"os":"windows","architecture":"amd64","os.version":"10"}}]}"#;
        let outcome = said(&[(PLATFORMS, list)]);
        let warnings = |outcome: &Outcome, asked: &str| {
            let options = HashMap::from([("platform".to_owned(), asked.to_owned())]);
            let warnings = outcome.platform_warnings(&options).expect("are checked");
            let texts =
                warnings.into_iter().map(|warning| String::from_utf8_lossy(&warning.short).into_owned());
            texts.collect::<Vec<_>>().join("|")
        };
        assert_eq!(
            warnings(&outcome, "linux/amd64"),
            "Requested platforms linux/amd64 do not match result platforms linux/amd64,windows(10)/amd64"
        );
        // There is no result by platform here, whatever is said of platforms.
        assert_eq!(
            warnings(&outcome, "windows(10)/amd64,linux/amd64"),
            "Multiple platforms requested but result is not multi-platform"
        );
        let one =
            said(&[(CONFIG, r#"{"os":"windows","architecture":"amd64","os.version":"10"}"#), ("x", "")]);
        let one = Outcome { metadata: one.metadata, ..said(&[]) };
        // Nothing came of it: nothing is said.
        assert_eq!(warnings(&one, "linux/arm64"), "");
        assert_eq!(outcome.platform(Some("w"), &ImageConfig::default()).os_version.as_deref(), Some("10"));
    }

    #[test]
    fn what_is_said_for_exporters() {
        let outcome =
            said(&[(NAME, "a.b/c:1"), ("annotation.x", "said"), ("frontend.y", "z"), ("other", "")]);
        let attrs = [("name", "*"), ("attest:provenance", "mode=max"), ("containerimage.config", "{}")];
        let attrs = attrs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let exporter = Exporter { r#type: "image".to_owned(), attrs };
        let done = own_options(&outcome.complete(&exporter), false);
        let mut done: Vec<_> = done.attrs.into_iter().collect();
        done.sort();
        let expected = [("annotation.x", "said"), ("name", "a.b/c:1")];
        assert_eq!(done, expected.map(|(key, value)| (key.to_owned(), value.to_owned())));
        assert_eq!(outcome.told(), HashMap::from([("frontend.y".to_owned(), "z".to_owned())]));
        assert!(outcome.under(&exporter).expect("has some").metadata.contains_key(CONFIG));
        assert!(outcome.under(&Exporter::default()).is_none());
        assert_ne!(own_options(&exporter, true).attrs["name"], "*");
    }
}
