//! What a client wants beside the result itself: statements of it, and caches.
//!
//! Owns the names of these options. Must not know how either is made. Start with [`Wanted::read`].

use std::collections::{BTreeMap, HashMap};

use bollard_buildkit_proto::moby::buildkit::v1::{CacheOptionsEntry, SolveRequest};
use stave_engine::attest::{
    Asked, Attest, DEFAULT_SCANNER, FRONTEND, Provenance, ProvenanceMode, Sbom, SlsaVersion, redacted,
};
use stave_engine::cache_spec::{ExportSpec, ImportSpec};

use crate::export::{field, is_false};
use crate::failure::Failure;

/// Most caches of one build, each way.
pub(crate) const MAX_CACHES: usize = 64;
/// The version of the Dockerfile language that the front end inside follows, as BuildKit counts it.
pub(crate) const LANGUAGE: &str = "1.26";

/// What a client wants beside the result.
#[derive(Debug, Default)]
pub(crate) struct Wanted {
    /// What is to be said of the result.
    pub(crate) attest: Attest,
    /// Whether that goes only with images, and not with files.
    pub(crate) inline_only: bool,
    /// Caches to be read.
    pub(crate) imports: Vec<ImportSpec>,
    /// Caches that cannot be read, and why.
    pub(crate) unreadable: Vec<(String, String)>,
    /// Caches to be written.
    pub(crate) exports: Vec<ExportSpec>,
    /// What the client asked for itself.
    pub(crate) asked: Asked,
}

impl Wanted {
    /// Reads a request.
    pub(crate) fn read(request: &SolveRequest) -> Result<Self, Failure> {
        let mut wanted = Self { asked: asked(&request.frontend, &request.frontend_attrs), ..Self::default() };
        wanted.statements(&request.frontend_attrs)?;
        let caches = request.cache.clone().unwrap_or_default();
        let mut exports = caches.exports;
        if !caches.export_ref_deprecated.is_empty() {
            exports.push(entry("registry", caches.export_attrs_deprecated, &caches.export_ref_deprecated));
        }
        let old = caches.import_refs_deprecated.iter();
        let mut imports = caches.imports;
        imports.extend(old.map(|name| entry("registry", HashMap::new(), name)));
        imports.extend(imports_of(&request.frontend_attrs)?);
        if exports.len() > MAX_CACHES || imports.len() > MAX_CACHES {
            return Err(Failure::Value(format!("more than {MAX_CACHES} caches")));
        }
        for export in &exports {
            let spec: Result<ExportSpec, _> = text_of(export).parse();
            let spec = spec.map_err(|error| Failure::Value(error.to_string()))?;
            if spec.mounts.is_some() {
                return Err(Failure::Unsupported("cache mounts in a client's cache".to_owned()));
            }
            wanted.exports.push(spec);
        }
        (wanted.imports, wanted.unreadable) = read_imports(&imports);
        Ok(wanted)
    }

    fn statements(&mut self, options: &HashMap<String, String>) -> Result<(), Failure> {
        for (kind, fields) in attestations(options) {
            if fields.get("disabled").is_some_and(|value| !is_false(value)) {
                continue;
            }
            match kind.as_str() {
                "provenance" => {
                    let is_inline =
                        |value: &String| matches!(value.as_str(), "1" | "t" | "T" | "true" | "TRUE");
                    self.inline_only = fields.get("inline-only").is_some_and(is_inline);
                    self.attest.provenance = Some(provenance(&fields)?);
                }
                "sbom" => self.attest.sbom = Some(sbom(fields)?),
                other => return Err(Failure::Value(format!("unknown attestation type {other:?}"))),
            }
        }
        Ok(())
    }
}

/// The attestations that options ask for, with their fields.
fn attestations(options: &HashMap<String, String>) -> BTreeMap<String, BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    for (name, value) in options {
        let kind = name.strip_prefix("attest:").or_else(|| name.strip_prefix("build-arg:BUILDKIT_ATTEST_"));
        let Some(kind) = kind else { continue };
        let fields = value.split(',').filter(|field| !field.is_empty());
        let fields = fields.map(|field| field.split_once('=').unwrap_or((field, "")));
        let fields = fields.map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
        found.insert(kind.to_lowercase(), fields);
    }
    found
}

fn provenance(fields: &BTreeMap<String, String>) -> Result<Provenance, Failure> {
    let text = |key: &str| fields.get(key).map(String::as_str);
    let mode = match text("mode") {
        None | Some("max" | "full") => ProvenanceMode::Max,
        Some("min") => ProvenanceMode::Min,
        Some(other) => return Err(Failure::Value(format!("invalid mode {other:?}"))),
    };
    let version = match text("version") {
        None | Some("v1") => SlsaVersion::V1,
        Some("v0.2") => SlsaVersion::V02,
        Some("") => return Err(Failure::Value("provenance SLSA version cannot be empty".to_owned())),
        Some(other) => return Err(Failure::Value(format!("invalid provenance SLSA version: {other}"))),
    };
    let flag = |key: &str| match text(key) {
        None => Ok(false),
        Some("1" | "t" | "T" | "true" | "TRUE" | "True") => Ok(true),
        Some(value) if is_false(value) => Ok(false),
        Some(value) => Err(Failure::Value(format!(
            "failed to parse {key} flag {value:?}: strconv.ParseBool: parsing {value:?}: invalid syntax"
        ))),
    };
    Ok(Provenance {
        mode,
        version,
        builder_id: text("builder-id").unwrap_or_default().to_owned(),
        reproducible: flag("reproducible")?,
        complete_materials: flag("complete-materials")?,
    })
}

fn sbom(mut fields: BTreeMap<String, String>) -> Result<Sbom, Failure> {
    let generator = fields.remove("generator").unwrap_or_else(|| DEFAULT_SCANNER.to_owned());
    let generator = generator
        .parse()
        .map_err(|error| Failure::Value(format!("failed to parse sbom generator {generator}: {error}")))?;
    let own = |key: &String| !matches!(key.as_str(), "disabled" | "inline-only");
    Ok(Sbom { generator, parameters: fields.into_iter().filter(|(key, _)| own(key)).collect() })
}

/// What a front end was asked, as statements tell it: what belongs to this machine is left out, credentials are made
/// unreadable.
pub(crate) fn asked(frontend: &str, options: &HashMap<String, String>) -> Asked {
    let own = ["cgroup-parent", "image-resolve-mode", "platform", "cache-imports", "cache-from"];
    let mut args: BTreeMap<String, String> = options
        .iter()
        .filter(|(name, _)| !own.contains(&name.as_str()) && !name.starts_with("attest:"))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    let context = args.get("contextkey").filter(|key| !key.is_empty()).cloned();
    let context = context.unwrap_or_else(|| "context".to_owned());
    for (_, value) in args.iter_mut().filter(|(name, _)| **name == context || name.starts_with("context:")) {
        *value = redacted(value);
    }
    let mut taken = |name: &str| args.remove(name).filter(|value| !value.is_empty());
    let (context, filename) = (taken(&context), taken("filename"));
    let is_vcs = |name: &String| name.starts_with("vcs:");
    let vcs: Vec<String> = args.keys().filter(|name| is_vcs(name)).cloned().collect();
    let vcs = vcs.into_iter().filter_map(|name| {
        let value = args.remove(&name).filter(|value| !value.is_empty())?;
        Some((name.trim_start_matches("vcs:").to_owned(), redacted(&value)))
    });
    let vcs = vcs.collect();
    if frontend == FRONTEND {
        // That it was named by an image's name is no part of what it was asked.
        args.remove("source");
        args.remove("cmdline");
    }
    let language = (frontend == FRONTEND).then(|| LANGUAGE.to_owned());
    Asked { frontend: frontend.to_owned(), args, context, filename, vcs, language, ..Asked::default() }
}

fn entry(kind: &str, mut attrs: HashMap<String, String>, name: &str) -> CacheOptionsEntry {
    attrs.insert("ref".to_owned(), name.to_owned());
    CacheOptionsEntry { r#type: kind.to_owned(), attrs }
}

/// An entry as one line of options.
fn text_of(entry: &CacheOptionsEntry) -> String {
    let attrs: BTreeMap<&String, &String> = entry.attrs.iter().collect();
    let fields = attrs.iter().map(|(key, value)| field(key, value));
    std::iter::once(field("type", &entry.r#type)).chain(fields).collect::<Vec<_>>().join(",")
}

/// Caches to be read, and those that cannot be, with the reason: such a one stops no build; that it was not read is
/// shown.
pub(crate) fn read_imports(entries: &[CacheOptionsEntry]) -> (Vec<ImportSpec>, Vec<(String, String)>) {
    let (mut imports, mut unreadable) = (Vec::new(), Vec::new());
    for entry in entries {
        match text_of(entry).parse::<ImportSpec>() {
            Ok(spec) if imports.contains(&spec) => {}
            Ok(spec) => imports.push(spec),
            Err(error) => {
                let place = entry.attrs.get("ref").unwrap_or(&entry.r#type);
                unreadable.push((place.clone(), error.to_string()));
            }
        }
    }
    unreadable.dedup();
    (imports, unreadable)
}

/// Caches that the front end's options name: JSON of type and attributes, or names alone.
fn imports_of(options: &HashMap<String, String>) -> Result<Vec<CacheOptionsEntry>, Failure> {
    let mut found = Vec::new();
    if let Some(text) = options.get("cache-imports").filter(|text| !text.is_empty()) {
        let failed = |error| Failure::Value(format!("failed to unmarshal cache-imports: {error}"));
        let list: Vec<serde_json::Value> = serde_json::from_str(text).map_err(failed)?;
        // Go writes the fields of its messages with a capital or without.
        let field = |one: &serde_json::Value, name: &str| {
            let field = one.get(name).or_else(|| one.get(name.to_lowercase()));
            field.cloned().unwrap_or_default()
        };
        found.extend(list.iter().map(|one| CacheOptionsEntry {
            r#type: field(one, "Type").as_str().unwrap_or_default().to_owned(),
            attrs: serde_json::from_value(field(one, "Attrs")).unwrap_or_default(),
        }));
    }
    let old = options.get("cache-from").filter(|text| !text.is_empty());
    let old = old.into_iter().flat_map(|text| text.split(','));
    found.extend(old.map(|name| entry("registry", HashMap::new(), name)));
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(options: &[(&str, &str)]) -> Result<Wanted, String> {
        let frontend_attrs =
            options.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let request =
            SolveRequest { frontend_attrs, frontend: FRONTEND.to_owned(), ..SolveRequest::default() };
        Wanted::read(&request).map_err(|failure| failure.to_string())
    }

    #[test]
    fn caches_of_options() {
        let text = r#"[{"Type":"registry","Attrs":{"ref":"a.b/c"}},{"type":"gha"}]"#;
        let wanted = read(&[("cache-imports", text), ("cache-from", "a.b/c,d")]).expect("is read");
        let names: Vec<String> = wanted.imports.iter().map(|import| import.source.to_string()).collect();
        assert_eq!(names, ["a.b/c:latest", "d:latest"]);
        assert_eq!(wanted.unreadable[0].0, "gha");
        assert!(read(&[("cache-imports", "x")]).expect_err("no JSON").contains("cache-imports"));
    }

    #[test]
    fn statements_of_options() {
        let wanted =
            read(&[("attest:provenance", "mode=min,inline-only=true"), ("attest:sbom", "disabled=true")]);
        let wanted = wanted.expect("is read");
        assert!(wanted.inline_only && wanted.attest.sbom.is_none());
        assert_eq!(wanted.attest.provenance.expect("asked for").mode, ProvenanceMode::Min);
        let sbom = read(&[("attest:sbom", "generator=x,DEPTH=2")]).expect("is read").attest.sbom;
        assert_eq!(sbom.expect("asked for").parameters["DEPTH"], "2");
        let error = |text| read(&[("attest:provenance", text)]).expect_err("is refused");
        assert_eq!(error("mode=x"), "invalid mode \"x\"");
        assert_eq!(error("version=v3"), "invalid provenance SLSA version: v3");
        assert_eq!(read(&[("attest:x", "")]).expect_err("is refused"), "unknown attestation type \"x\"");
    }

    #[test]
    fn what_was_asked() {
        let wanted = read(&[
            ("context", "https://u:p@h/r.git#v1:src"),
            ("context:foo", "https://u:p@h/x"),
            ("filename", "D"),
            ("platform", "linux/amd64"),
            ("vcs:source", "https://u:p@h/s"),
            ("build-arg:A", "1"),
        ]);
        let asked = wanted.expect("is read").asked;
        assert_eq!(asked.context.as_deref(), Some("https://xxxxx:xxxxx@h/r.git#v1:src"));
        let args: Vec<&str> = asked.args.keys().map(String::as_str).collect();
        assert_eq!((args, asked.filename.as_deref()), (vec!["build-arg:A", "context:foo"], Some("D")));
        assert_eq!(asked.vcs["source"], "https://xxxxx:xxxxx@h/s");
    }
}
