//! `--attest` and its shorthands `--provenance` and `--sbom`, with buildx's keys. Pure.

use std::collections::BTreeMap;

use stave_engine::attest::{Attest, DEFAULT_SCANNER, Provenance, ProvenanceMode, Sbom, SlsaVersion};

use crate::report::Failure;

/// One specification, taken apart.
struct Spec {
    text: String,
    values: BTreeMap<String, String>,
}

/// What the three flags ask for.
pub(super) fn read(
    provenance: Option<&str>,
    sbom: Option<&str>,
    attest: &[String],
) -> Result<Attest, Failure> {
    let mut found = Attest::default();
    let mut seen: Vec<&str> = Vec::new();
    let mut all: Vec<(&str, Spec)> = Vec::new();
    for text in attest {
        let mut spec = Spec::parse("--attest", text)?;
        let kind = match spec.values.remove("type").as_deref() {
            Some("provenance") => "provenance",
            Some("sbom") => "sbom",
            Some(other) => {
                return Err(Failure::usage(format!(
                    "--attest `{text}`: unknown attestation type {other:?}: expected `provenance` or `sbom`"
                )));
            }
            None => return Err(Failure::usage(format!("--attest `{text}`: attestation type not specified"))),
        };
        all.push((kind, spec));
    }
    for (kind, flag, text) in [("provenance", "--provenance", provenance), ("sbom", "--sbom", sbom)] {
        if let Some(text) = text {
            all.push((kind, Spec::short(flag, text)?));
        }
    }
    for (kind, mut spec) in all {
        if seen.contains(&kind) {
            return Err(Failure::usage(format!("duplicate attestation field {kind}")));
        }
        seen.push(kind);
        let disabled = spec.boolean("disabled")?.unwrap_or(false);
        match kind {
            "provenance" => found.provenance = Some(spec.provenance()?).filter(|_| !disabled),
            _ => found.sbom = Some(spec.sbom()?).filter(|_| !disabled),
        }
    }
    Ok(found)
}

impl Spec {
    fn parse(flag: &str, text: &str) -> Result<Self, Failure> {
        let mut values = BTreeMap::new();
        for field in text.split(',').filter(|field| !field.is_empty()) {
            let (key, value) = field.split_once('=').ok_or_else(|| {
                Failure::usage(format!("{flag} `{text}`: `{field}` is not of the form `key=value`"))
            })?;
            if values.insert(key.trim().to_ascii_lowercase(), value.to_owned()).is_some() {
                return Err(Failure::usage(format!("{flag} `{text}`: `{key}` is given twice")));
            }
        }
        Ok(Self { text: format!("{flag} `{text}`"), values })
    }

    /// A shorthand: a boolean, or the fields without the type.
    fn short(flag: &str, text: &str) -> Result<Self, Failure> {
        match boolean(text) {
            Some(true) => Self::parse(flag, ""),
            Some(false) => Self::parse(flag, "disabled=true"),
            None => Self::parse(flag, text),
        }
    }

    fn provenance(mut self) -> Result<Provenance, Failure> {
        let mode = match self.values.remove("mode").as_deref() {
            None | Some("max" | "full") => ProvenanceMode::Max,
            Some("min") => ProvenanceMode::Min,
            Some(other) => return Err(self.wrong("mode", other, "`min` or `max`")),
        };
        let version = match self.values.remove("version").as_deref() {
            None | Some("v1") => SlsaVersion::V1,
            Some("v0.2") => SlsaVersion::V02,
            Some(other) => return Err(self.wrong("version", other, "`v1` or `v0.2`")),
        };
        let reproducible = self.boolean("reproducible")?.unwrap_or(false);
        let complete_materials = self.boolean("complete-materials")?.unwrap_or(false);
        // Statements lie beside their image in any case.
        self.boolean("inline-only")?;
        let builder_id = self.values.remove("builder-id").unwrap_or_default();
        self.empty(&["mode", "version", "builder-id", "reproducible", "complete-materials", "disabled"])?;
        Ok(Provenance { mode, version, builder_id, reproducible, complete_materials })
    }

    fn sbom(mut self) -> Result<Sbom, Failure> {
        let generator = self.values.remove("generator").filter(|name| !name.is_empty());
        let generator = generator.as_deref().unwrap_or(DEFAULT_SCANNER);
        let named = generator.parse();
        let generator = named.map_err(|error| Failure::usage(format!("{}: {error}", self.text)))?;
        // The scanner's own options, which it knows and nobody else.
        let parameters = std::mem::take(&mut self.values);
        let parameters = parameters.into_iter().map(|(key, value)| (key.to_ascii_uppercase(), value));
        Ok(Sbom { generator, parameters: parameters.collect() })
    }

    fn boolean(&mut self, key: &str) -> Result<Option<bool>, Failure> {
        let Some(value) = self.values.remove(key) else { return Ok(None) };
        boolean(&value).map(Some).ok_or_else(|| self.wrong(key, &value, "`true` or `false`"))
    }

    fn wrong(&self, key: &str, value: &str, expected: &str) -> Failure {
        Failure::usage(format!("{}: invalid value `{value}` for `{key}`: expected {expected}", self.text))
    }

    fn empty(&self, known: &[&str]) -> Result<(), Failure> {
        match self.values.first_key_value() {
            None => Ok(()),
            Some((key, _)) => {
                let known = known.join("`, `");
                Err(Failure::usage(format!("{}: unknown key `{key}`: expected one of `{known}`", self.text)))
            }
        }
    }
}

/// A boolean as Go's `strconv.ParseBool` reads it.
pub(super) fn boolean(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn provenance(text: &str) -> Result<Option<Provenance>, String> {
        read(Some(text), None, &[]).map(|found| found.provenance).map_err(|failure| failure.message)
    }

    #[test]
    fn provenance_is_a_boolean_or_a_spec() {
        let max = Provenance {
            mode: ProvenanceMode::Max,
            version: SlsaVersion::V1,
            builder_id: String::new(),
            reproducible: false,
            complete_materials: false,
        };
        assert_eq!(provenance("true"), Ok(Some(max.clone())));
        assert_eq!(provenance("false"), Ok(None));
        let min = Provenance { mode: ProvenanceMode::Min, version: SlsaVersion::V02, ..max.clone() };
        assert_eq!(provenance("mode=min,version=v0.2"), Ok(Some(min)));
        let named = Provenance { builder_id: "me".to_owned(), reproducible: true, ..max };
        assert_eq!(provenance("builder-id=me,reproducible=1"), Ok(Some(named)));
        for (wrong, expected) in [
            (
                "mode=most",
                "--provenance `mode=most`: invalid value `most` for `mode`: expected `min` or `max`",
            ),
            ("mode", "--provenance `mode`: `mode` is not of the form `key=value`"),
        ] {
            assert_eq!(provenance(wrong), Err(expected.to_owned()));
        }
        assert!(provenance("mod=min").expect_err("a typo").contains("unknown key `mod`"));
    }

    #[test]
    fn attest_is_the_long_form() {
        let specs = ["type=provenance,mode=min".to_owned(), "type=sbom,generator=s:1,depth=2".to_owned()];
        let found = read(None, None, &specs).map_err(|failure| failure.message).expect("valid");
        assert_eq!(found.provenance.expect("asked for").mode, ProvenanceMode::Min);
        let sbom = found.sbom.expect("asked for");
        assert_eq!(sbom.generator.familiar(), "s:1");
        assert_eq!(sbom.parameters, [("DEPTH".to_owned(), "2".to_owned())].into());
        let error = |specs: &[String]| read(Some("true"), None, specs).expect_err("wrong").message;
        assert_eq!(error(&specs), "duplicate attestation field provenance");
        assert!(error(&["type=x".to_owned()]).contains("unknown attestation type \"x\""));
        assert!(error(&["mode=min".to_owned()]).contains("attestation type not specified"));
    }
}
