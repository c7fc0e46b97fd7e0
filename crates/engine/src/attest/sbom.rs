//! A bill of materials: a scanner image run over the result, by BuildKit's protocol.
//!
//! Owns the graph of such a run (the result read-only at `BUILDKIT_SCAN_SOURCE`, an empty directory at
//! `BUILDKIT_SCAN_DESTINATION`) and the reading of what it wrote, which is as hostile as any image's
//! files. Must not know how steps run. Start with [`scan`].

use std::collections::BTreeMap;
use std::io::Read as _;

use serde::Deserialize;
use serde_json::value::Value;
use stave_exporter::Attestation;
use stave_llb::builder::{About, ExecSpec, GraphBuilder, MountSpec};
use stave_llb::{ContentCache, Definition, ExecOp, Mount, SourceOp};
use stave_oci::{ImageConfig, Platform, Reference};
use stave_store::MergedView;

use super::{AttestError, Sbom};

const SOURCE: &str = "/run/src/core/sbom";
/// Where what is scanned beside the result is, each in a directory of its own.
const EXTRAS: &str = "/run/src/extras";
const DESTINATION: &str = "/run/out/";
/// The only type of bill that is taken.
pub(crate) const SPDX: &str = "https://spdx.dev/Document";
/// Bytes of the largest statement, as BuildKit limits it.
const MAX_STATEMENT: u64 = 40 << 20;
/// The most statements of one scan.
const MAX_STATEMENTS: usize = 64;
/// Bytes of the longest path that is looked at.
const MAX_NAME: usize = 255;

/// A statement as scanners write it; its subject is replaced by the image.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Statement {
    predicate_type: String,
    predicate: Value,
}

/// What is scanned.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scanned<'a> {
    /// The result.
    pub(crate) result: &'a Definition,
    /// What is scanned beside it, by name.
    pub(crate) extras: &'a BTreeMap<String, Definition>,
    /// The platform of the scan.
    pub(crate) platform: &'a Platform,
}

/// The graph that scans something with `scanner`, whose config is `config`.
pub(crate) fn scan(
    sbom: &Sbom,
    scanner: &Reference,
    config: &[u8],
    scanned: Scanned<'_>,
) -> Result<Definition, AttestError> {
    let platform = scanned.platform;
    let malformed = |source| AttestError::Config { scanner: scanner.clone(), source };
    let config: ImageConfig = serde_json::from_slice(config).map_err(malformed)?;
    let config = config.config;
    let args: Vec<String> =
        config.entrypoint.iter().flatten().chain(config.cmd.iter().flatten()).cloned().collect();
    if args.is_empty() {
        return Err(AttestError::NoCommand(scanner.clone()));
    }
    let mut env = config.env;
    env.push(format!("BUILDKIT_SCAN_DESTINATION={DESTINATION}"));
    env.push(format!("BUILDKIT_SCAN_SOURCE={SOURCE}"));
    if !scanned.extras.is_empty() {
        env.push(format!("BUILDKIT_SCAN_SOURCE_EXTRAS={EXTRAS}"));
    }
    env.extend(sbom.parameters.iter().map(|(name, value)| format!("BUILDKIT_SCAN_{name}={value}")));
    let cwd = if config.working_dir.is_empty() { "/".to_owned() } else { config.working_dir };
    let mut graph = GraphBuilder::default();
    let source = SourceOp::new(format!("docker-image://{}", scanner.canonical()), [].into());
    let root = graph.source(source, platform, About::default());
    let result = graph.import(scanned.result);
    let bind = |target: &str, source, readonly, no_output| MountSpec {
        mount: Mount::Bind {
            target: target.to_owned(),
            input: None,
            selector: String::new(),
            readonly,
            output: None,
            content_cache: ContentCache::Default,
        },
        source,
        no_output,
    };
    let tmpfs = Mount::Tmpfs { target: "/tmp".to_owned(), size: 0, readonly: false };
    // The root's changes are thrown away, so that what is written to the destination is the only result.
    let mut mounts = vec![
        bind("/", Some(root), false, true),
        MountSpec { mount: tmpfs, source: None, no_output: true },
        bind(SOURCE, result, true, true),
        bind(DESTINATION.trim_end_matches('/'), None, false, false),
    ];
    for (name, extra) in scanned.extras {
        let extra = graph.import(extra);
        mounts.push(bind(&format!("{EXTRAS}/sbom-{name}"), extra, true, true));
    }
    let op = ExecOp { args, env, cwd, user: config.user, ..ExecOp::default() };
    let about = About::named(format!("[{platform}] generating sbom using {}", scanner.familiar()));
    let written = graph.exec(ExecSpec { op, mounts, platform: platform.clone(), about });
    // All of it has run in this build, whatever it asked for, and what leaves is what is scanned.
    Ok(graph.finish(Some(written)).looked_up())
}

/// The statements that the scanner left in its destination, the main one first.
pub(crate) fn read(view: &MergedView, scanner: &Reference) -> Result<Vec<Attestation>, AttestError> {
    let mut found: Vec<(String, Attestation)> = Vec::new();
    for entry in view.walk() {
        let entry = entry?;
        let Some(name) = entry.path().to_str().filter(|name| !name.is_empty()) else { continue };
        let file = name.to_owned();
        let refused = || AttestError::File { file: file.clone(), limit: MAX_STATEMENT };
        // What lies deeper is no statement: only entries of the destination itself are.
        if name.contains('/') {
            continue;
        }
        let is_file = entry.stat().st_mode & 0o170_000 == 0o100_000;
        if !is_file || name.len() > MAX_NAME || found.len() >= MAX_STATEMENTS {
            return Err(refused());
        }
        let mut bytes = Vec::new();
        entry.open()?.take(MAX_STATEMENT + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > MAX_STATEMENT {
            return Err(refused());
        }
        found.push((file.clone(), attestation(file, &bytes)?));
    }
    if found.is_empty() {
        return Err(AttestError::Nothing(scanner.clone()));
    }
    let is_main = |name: &str| name.split('.').next() == Some("sbom");
    found.sort_by_key(|(name, _)| !is_main(name));
    let told = |(name, attestation): (String, Attestation)| Attestation {
        is_core_bill: is_main(&name),
        ..attestation
    };
    Ok(found.into_iter().map(told).collect())
}

fn attestation(file: String, bytes: &[u8]) -> Result<Attestation, AttestError> {
    let malformed = |source| AttestError::Statement { file: file.clone(), source };
    let statement: Statement = serde_json::from_slice(bytes).map_err(malformed)?;
    if statement.predicate_type != SPDX {
        return Err(AttestError::PredicateType { found: statement.predicate_type, expected: SPDX });
    }
    Ok(Attestation {
        predicate_type: statement.predicate_type,
        predicate: statement.predicate.to_string().into_bytes(),
        file_name: file,
        ..Attestation::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sbom() -> Sbom {
        let parameters = [("DEPTH".to_owned(), "2".to_owned())].into();
        Sbom { generator: "scanner:1".parse().expect("a name"), parameters }
    }

    #[test]
    fn a_scanner_gets_what_the_protocol_says() {
        let platform = Platform::new("linux", "amd64", None);
        let config = br#"{"config":{"Entrypoint":["/scan"],"Cmd":["-x"],"Env":["A=1"]}}"#;
        let target = Definition::empty();
        let sbom = sbom();
        let none = BTreeMap::new();
        let scanned = Scanned { result: &target, extras: &none, platform: &platform };
        let definition = scan(&sbom, &sbom.generator, config, scanned).expect("a graph");
        let exec = definition.vertices().iter().find_map(|vertex| match &vertex.op {
            stave_llb::Op::Exec(exec) => Some(exec),
            _ => None,
        });
        let exec = exec.expect("a process");
        assert_eq!(exec.args, ["/scan", "-x"]);
        let expected = [
            "A=1",
            "BUILDKIT_SCAN_DESTINATION=/run/out/",
            "BUILDKIT_SCAN_SOURCE=/run/src/core/sbom",
            "BUILDKIT_SCAN_DEPTH=2",
        ];
        assert_eq!(exec.env, expected);
        assert_eq!(exec.mounts.iter().filter_map(Mount::output).count(), 1);
        let extras = BTreeMap::from([("base".to_owned(), Definition::empty())]);
        let more = Scanned { extras: &extras, ..scanned };
        let definition = scan(&sbom, &sbom.generator, config, more).expect("a graph");
        let stave_llb::Op::Exec(exec) = &definition.vertices().last().expect("a process").op else {
            panic!("{:?}", definition.vertices())
        };
        assert_eq!(exec.env[3], "BUILDKIT_SCAN_SOURCE_EXTRAS=/run/src/extras");
        assert!(exec.mounts.iter().any(|mount| mount.target() == "/run/src/extras/sbom-base"));
        let error = scan(&sbom, &sbom.generator, b"{}", scanned).expect_err("no command");
        assert_eq!(error.to_string(), "scanner docker.io/library/scanner:1 does not have cmd");
    }

    #[test]
    fn what_a_build_made_anew_is_not_made_once_more() {
        let platform = Platform::new("linux", "amd64", None);
        let sbom = sbom();
        let mut graph = GraphBuilder::default();
        let mut about = About::default();
        about.metadata.ignore_cache = true;
        let source = SourceOp::new("https://a.invalid/file".to_owned(), [].into());
        let made = graph.source(source, &platform, about);
        let target = graph.finish(Some(made));
        assert!(target.vertices().iter().any(|vertex| vertex.metadata.ignore_cache));
        let extras = BTreeMap::from([("base".to_owned(), target.clone())]);
        let scanned = Scanned { result: &target, extras: &extras, platform: &platform };
        let config = br#"{"config":{"Cmd":["/scan"]}}"#;
        let definition = scan(&sbom, &sbom.generator, config, scanned).expect("a graph");
        assert!(!definition.vertices().iter().any(|vertex| vertex.metadata.ignore_cache));
    }

    #[test]
    fn only_bills_of_materials_are_taken() {
        let right = br#"{"_type":"t","predicateType":"https://spdx.dev/Document","predicate":{"a":1}}"#;
        let found = attestation("sbom.spdx.json".to_owned(), right).expect("a statement");
        assert_eq!(found.predicate, b"{\"a\":1}");
        let forged = br#"{"predicateType":"https://slsa.dev/provenance/v1","predicate":{}}"#;
        assert!(matches!(attestation("x".to_owned(), forged), Err(AttestError::PredicateType { .. })));
        assert!(matches!(attestation("x".to_owned(), b"{} {}"), Err(AttestError::Statement { .. })));
    }
}
