//! A client's exporters: where results go, and what the client is told of them. Start with [`export_all`].

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bollard_buildkit_proto::moby::buildkit::v1::Exporter;
use serde_json::Value;
use stave_engine::attest::Material;
use stave_engine::{BuildError, Finished, Journey};
use stave_exporter::{
    ArchiveDestination, ArchiveTarget, Destination, ExportTarget, Exported, Image, MAX_SPEC_LENGTH, file_name,
};
use stave_llb::{Definition, Op, SourceIdentifier, Vertex};
use stave_oci::ImageConfig;

use crate::build::Build;
use crate::failure::Failure;
use crate::outcome::{Outcome, own_options};
use crate::session::content::{ClientStore, ContentError};
use crate::session::output::{Announced, OutputError, files_to, stream_to};
use crate::statements;

/// Most exporters of one build.
const MAX_EXPORTERS: usize = 64;
/// What clients call the store of a layout they want.
const LAYOUT_STORE: &str = "export";

/// Writes what a front end came to wherever the client wants it; returns what the client is told. `options` are what it
/// asked the front end.
pub(crate) async fn export_all(
    build: &Build,
    outcome: &Outcome,
    exporters: &[Exporter],
    options: &HashMap<String, String>,
) -> Result<HashMap<String, String>, Failure> {
    if exporters.len() > MAX_EXPORTERS {
        return Err(Failure::Value(format!("more than {MAX_EXPORTERS} exporters")));
    }
    // Options are looked at before anything runs for them.
    let own = |exporter: &Exporter| target(&own_options(&outcome.complete(exporter), false));
    let mut targets: Vec<ExportTarget> = exporters.iter().map(own).collect::<Result<_, _>>()?;
    if outcome.targets.iter().any(|(id, _)| id.is_some()) {
        targets = targets.into_iter().map(ExportTarget::indexed).collect();
    }
    check_kept(outcome, &targets)?;
    let mut told = outcome.told();
    // Who exports nothing is given nothing.
    let mut outcome = outcome.clone();
    if !targets.is_empty() {
        outcome.check()?;
        if outcome.targets.is_empty() {
            outcome.targets.push((None, build.add_empty()?));
        }
    }
    let outcome = &outcome;
    for warning in outcome.platform_warnings(options)? {
        build.journal.warn(warning);
    }
    let is_image = targets.iter().any(ExportTarget::needs_image);
    let (mut images, journey) = Box::pin(images(build, outcome, is_image)).await?;
    let parts = build.parts(None);
    if let Some(journey) = &journey {
        parts.inline(journey, &mut images).await.map_err(failed)?;
    }
    for (id, target) in targets.iter().enumerate() {
        let mut images = images.clone();
        if let Some(own) = outcome.under(&exporters[id]) {
            own.check()?;
            (images, _) = Box::pin(self::images(build, &own, target.needs_image())).await?;
            if let Some(journey) = &journey {
                parts.inline(journey, &mut images).await.map_err(failed)?;
            }
        }
        if is_undated(&exporters[id]) {
            images = images.into_iter().map(|image| image.dated(None)).collect();
        }
        let exported = export(build, &images, id, target).await?;
        tell(&mut told, &exported);
        if let Some(made) = exported.manifest {
            build.note_made(id, made);
        }
    }
    if let Some(journey) = journey {
        for document in Box::pin(parts.finish(journey)).await.map_err(failed)? {
            told.insert("cache.manifest".to_owned(), serde_json::json!(document).to_string());
        }
    }
    Ok(told)
}

fn failed(error: BuildError) -> Failure {
    Failure::Build { error: Arc::new(error), places: Vec::new(), vertex: None }
}

/// The store keeps statements without what they speak of, which is the image.
fn check_kept(outcome: &Outcome, targets: &[ExportTarget]) -> Result<(), Failure> {
    let is_kept = targets.iter().any(|target| matches!(target, ExportTarget::Image(image) if image.store));
    match is_kept && !outcome.statements.is_empty() {
        true => Err(Failure::Unsupported("keeping attestations of a front end in the store".to_owned())),
        false => Ok(()),
    }
}

/// Solves all results and makes images of them, with what is to be said of each.
async fn images(
    build: &Build,
    outcome: &Outcome,
    is_image: bool,
) -> Result<(Vec<Image>, Option<Journey>), Failure> {
    let mut images = Vec::new();
    let (snapshots, journey) = Box::pin(build.solve_for_export(outcome)).await?;
    let parts = build.parts(None);
    let mut room = statements::Room::default();
    for ((id, target), snapshot) in outcome.targets.iter().zip(&snapshots) {
        let of_target = |error| Failure::of_definition(error, &target.definition);
        let config = outcome.config(id.as_deref())?.unwrap_or_else(ImageConfig::default);
        let platform = outcome.platform(id.as_deref(), &config);
        let epoch = outcome.epoch(id.as_deref())?.or(target.epoch);
        let image = parts.image(config, snapshot, &target.definition, &platform, epoch);
        let mut image = image.map_err(of_target)?;
        let statements = outcome.statements_about(id.as_deref(), &platform);
        image.attestations = statements::read_all(build, statements, &mut room).await?;
        // A client's config may say little; what it was built for is known.
        image.platform = platform;
        if let Some(session) = target.session() {
            parts.refuse_leaks(session, std::slice::from_ref(&image)).await.map_err(of_target)?;
        }
        let attest = build.attest_for_record(is_image);
        let session = match &attest.sbom {
            Some(_) => Some(Box::pin(build.session_of_scan(target)).await?),
            None => None,
        };
        let finished = Finished {
            attest: &attest,
            asked: &build.asked_of(target),
            definition: &target.definition,
            scanned: &target.origin.scanned,
            images: target.origin.materials.clone().unwrap_or_else(|| materials(&target.definition)),
            pins: &build.pins,
            started: build.started,
            is_image,
            session: session.as_deref(),
        };
        let image = Box::pin(parts.complete(image, finished)).await.map_err(of_target)?;
        let mut image = build.take_down(image);
        if build.wanted.inline_only {
            for statement in &mut image.attestations {
                statement.images_only |= file_name(&statement.predicate_type) == "provenance.json";
            }
        }
        images.push(image);
    }
    Ok((images, journey))
}

/// The images of a graph, where nobody says how they were named.
fn materials(definition: &Definition) -> Vec<Material> {
    let material = |vertex: &Vertex| {
        let Op::Source(source) = &vertex.op else { return None };
        let SourceIdentifier::DockerImage { reference } = &source.identifier else { return None };
        Some(Material {
            reference: reference.clone(),
            platform: vertex.platform.clone().unwrap_or_else(stave_oci::Platform::host),
            digest: reference.digest()?.clone(),
            is_layout: false,
        })
    };
    definition.vertices().iter().filter_map(material).collect()
}

async fn export(
    build: &Build,
    images: &[Image],
    id: usize,
    target: &ExportTarget,
) -> Result<Exported, Failure> {
    let parts = build.parts(None);
    match target {
        ExportTarget::Local { options, .. } => {
            let scratch = build.engine().store().scratch_dir()?;
            let here = scratch.path().join("files");
            let local = ExportTarget::Local { dest: here.clone(), options: options.clone() };
            let exported = parts.export(images, &local, std::io::sink()).await.map_err(failed)?;
            let step = build.journal.begin("copying files".to_owned());
            let sent = files_to(Arc::clone(&build.session), id, here).await;
            step.end(sent)?;
            drop(scratch);
            Ok(exported)
        }
        ExportTarget::Oci(archive) | ExportTarget::Docker(archive)
            if matches!(archive.dest, ArchiveDestination::Directory(_)) =>
        {
            let scratch = build.engine().store().scratch_dir()?;
            let here = scratch.path().join("layout");
            let exported =
                parts.export(images, &at(target, here.clone()), std::io::sink()).await.map_err(failed)?;
            let step = build.journal.begin("copying content".to_owned());
            let sent = layout_to(build, &here).await;
            step.end(sent)?;
            drop(scratch);
            Ok(exported)
        }
        target if target.writes_stdout() => {
            let (exported, delivered) = match target {
                ExportTarget::Oci(_) | ExportTarget::Docker(_) => archived(build, images, id, target).await,
                _ => {
                    let (writer, delivery) = stream_to(&build.session, id, &[])?;
                    let exported = parts.export(images, target, writer).await;
                    (exported, delivery.finish().await)
                }
            };
            // What the client said is the cause of a write that failed.
            match (exported, delivered) {
                (Ok(exported), Ok(()) | Err(OutputError::Unwanted)) => Ok(exported),
                // What the result is called is told all the same.
                (Err(_), Err(OutputError::Unwanted)) => {
                    parts.export(images, target, std::io::sink()).await.map_err(failed)
                }
                (_, Err(error)) => Err(error.into()),
                (Err(error), Ok(())) => Err(failed(error)),
            }
        }
        target => parts.export(images, target, std::io::sink()).await.map_err(failed),
    }
}

/// Sends an archive of images, of which the client is told first what it is.
async fn archived(
    build: &Build,
    images: &[Image],
    id: usize,
    target: &ExportTarget,
) -> (Result<Exported, BuildError>, Result<(), OutputError>) {
    let stream = Announced::default();
    let announce = {
        let (session, stream) = (Arc::clone(&build.session), stream.clone());
        move |exported: &Exported| {
            let mut about = HashMap::new();
            tell(&mut about, exported);
            let about: Vec<_> = about.iter().map(|(name, value)| (name.as_str(), value.clone())).collect();
            stream.open(&session, id, &about);
        }
    };
    let exported = build.parts(None).export_announced(images, target, stream.clone(), announce).await;
    (exported, stream.finish().await)
}

/// The same target as a layout in a directory of ours.
fn at(target: &ExportTarget, directory: std::path::PathBuf) -> ExportTarget {
    let dest = ArchiveDestination::Directory(directory);
    match target.clone() {
        ExportTarget::Oci(archive) => ExportTarget::Oci(ArchiveTarget { dest, ..archive }),
        ExportTarget::Docker(archive) => ExportTarget::Docker(ArchiveTarget { dest, ..archive }),
        other => other,
    }
}

/// Sends the blobs of a layout to the client, which writes the index itself.
async fn layout_to(build: &Build, layout: &std::path::Path) -> Result<(), Failure> {
    let store = ClientStore::new(Arc::clone(&build.session), LAYOUT_STORE.to_owned());
    let blobs = layout.join("blobs").join("sha256");
    let entries = std::fs::read_dir(&blobs).map_err(ContentError::File)?;
    for entry in entries {
        let entry = entry.map_err(ContentError::File)?;
        let Ok(digest) = format!("sha256:{}", entry.file_name().to_string_lossy()).parse() else { continue };
        let file = std::fs::File::open(entry.path()).map_err(ContentError::File)?;
        store.put(&digest, file).await?;
    }
    Ok(())
}

/// The target that a client's exporter describes. Paths are the client's: what has one comes back to it.
pub(crate) fn target(exporter: &Exporter) -> Result<ExportTarget, Failure> {
    let mut fields: BTreeMap<&str, &str> =
        exporter.attrs.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    fields.remove("dest");
    let kind = exporter.r#type.as_str();
    if is_undated(exporter) && fields.contains_key("rewrite-timestamp") {
        // Nothing is rewritten to a time that was taken away.
        fields.insert("rewrite-timestamp", "false");
    }
    match kind {
        "oci" | "docker" => {
            if kind == "docker" {
                // BuildKit's default; ours, for files on this machine, is not to compress.
                fields.entry("compression").or_insert("gzip");
            }
            // Replaced by a directory of ours, whose content travels.
            let is_layout = fields.get("tar").copied().is_some_and(is_false);
            fields.insert("dest", if is_layout { "/" } else { "-" });
        }
        "tar" => drop(fields.insert("dest", "-")),
        // Replaced by a directory of ours, whose content travels.
        "local" => {
            fields.remove("mode");
            fields.insert("dest", "/");
        }
        "image" => {
            // A store that nobody asked for would keep every result for ever.
            fields.entry("store").or_insert("false");
            // Results are always there, unpacked.
            fields.remove("unpack");
        }
        _ => {}
    }
    if matches!(kind, "image" | "oci") && !fields.get("oci-mediatypes").copied().is_some_and(is_false) {
        // BuildKit's default for what its clients export.
        fields.entry("oci-artifact").or_insert("true");
    }
    let mut spec = field("type", kind);
    for (key, value) in fields {
        spec.push(',');
        spec.push_str(&field(key, value));
    }
    if spec.len() > MAX_SPEC_LENGTH {
        return Err(Failure::Value(format!("exporter options are longer than {MAX_SPEC_LENGTH} bytes")));
    }
    let target: ExportTarget = spec.parse()?;
    target.validate()?;
    Ok(match target {
        // Docker's own default is its image store; a client that names this type wants the archive.
        ExportTarget::Docker(mut docker) if !matches!(docker.dest, ArchiveDestination::Directory(_)) => {
            docker.dest = ArchiveDestination::Tar(Destination::Stdout);
            ExportTarget::Docker(docker)
        }
        target => target,
    })
}

/// Whether an exporter takes away the time that the build was given.
fn is_undated(exporter: &Exporter) -> bool {
    exporter.attrs.get("source-date-epoch").is_some_and(String::is_empty)
}

/// Go's `strconv.ParseBool`, as far as it says no.
pub(crate) fn is_false(text: &str) -> bool {
    matches!(text, "0" | "f" | "F" | "false" | "FALSE" | "False")
}

/// One field of a line of options, quoted as CSV wants it.
pub(crate) fn field(key: &str, value: &str) -> String {
    format!("\"{}\"", format!("{key}={value}").replace('"', "\"\""))
}

fn tell(told: &mut HashMap<String, String>, exported: &Exported) {
    for (key, value) in exported.metadata() {
        let text = match &value {
            Value::String(text) => text.clone(),
            // Descriptors travel as base64 of their JSON.
            other => STANDARD.encode(other.to_string()),
        };
        told.insert(key, text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(kind: &str, attrs: &[(&str, &str)]) -> Result<ExportTarget, String> {
        let attrs = attrs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        target(&Exporter { r#type: kind.to_owned(), attrs }).map_err(|failure| failure.to_string())
    }

    #[test]
    fn exporters_of_clients() {
        let Ok(ExportTarget::Image(image)) = of("image", &[("name", "a.b/c:1,d"), ("push", "true")]) else {
            panic!("an image")
        };
        assert_eq!((image.names.len(), image.store, image.push.is_some()), (2, false, true));
        assert!(of("docker", &[("name", "x")]).expect("is one").writes_stdout());
        assert!(of("oci", &[]).expect("is one").writes_stdout());
        assert!(of("tar", &[]).expect("is one").writes_stdout());
        assert!(
            matches!(of("local", &[("dest", "/etc")]), Ok(ExportTarget::Local { dest, .. }) if dest.as_os_str() == "/")
        );
    }

    #[test]
    fn options_cannot_break_out_of_their_field() {
        let error = of("image", &[("name", "a\",push=true,\"x=")]).expect_err("no name");
        assert!(error.contains("invalid image name"), "{error}");
        let layout = of("oci", &[("tar", "false"), ("dest", "/etc")]).expect("is one");
        assert!(
            !layout.writes_stdout()
                && matches!(at(&layout, "/here".into()), ExportTarget::Oci(archive)
            if archive.dest == ArchiveDestination::Directory("/here".into()))
        );
        assert!(of("nonsense", &[]).is_err());
    }
}
