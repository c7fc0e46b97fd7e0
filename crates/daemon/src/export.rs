//! A client's exporters: where results go, and what the client is told of them. Start with [`export_all`].

use std::collections::{BTreeMap, HashMap};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bollard_buildkit_proto::moby::buildkit::v1::Exporter;
use serde_json::Value;
use stave_exporter::{ArchiveDestination, Destination, ExportTarget, Exported, Image, MAX_SPEC_LENGTH};
use stave_oci::ImageConfig;

use crate::build::{Build, Outcome};
use crate::failure::Failure;
use crate::session::output::{files_to, stream_to};

/// Most exporters of one build.
const MAX_EXPORTERS: usize = 64;

/// Writes what a front end came to wherever the client wants it; returns what the client is told.
pub(crate) async fn export_all(
    build: &Build,
    outcome: &Outcome,
    exporters: &[Exporter],
) -> Result<HashMap<String, String>, Failure> {
    if exporters.len() > MAX_EXPORTERS {
        return Err(Failure::Value(format!("more than {MAX_EXPORTERS} exporters")));
    }
    // Options are looked at before anything runs for them.
    let targets: Vec<ExportTarget> = exporters.iter().map(target).collect::<Result<_, _>>()?;
    let mut told = HashMap::new();
    let images = images(build, outcome).await?;
    for (id, target) in targets.iter().enumerate() {
        if images.is_empty() {
            continue;
        }
        let exported = export(build, &images, id, target).await?;
        tell(&mut told, &exported);
    }
    Ok(told)
}

/// Solves all results and makes images of them.
async fn images(build: &Build, outcome: &Outcome) -> Result<Vec<Image>, Failure> {
    let mut images = Vec::new();
    let snapshots = build.solve_all(outcome).await?;
    for ((platform, target), snapshot) in outcome.targets.iter().zip(&snapshots) {
        let config = outcome.config(platform.as_deref())?.unwrap_or_else(ImageConfig::default);
        let platform = outcome.platform(platform.as_deref(), &config);
        let image = build.parts(None).image(config, snapshot, &target.definition, &platform, target.epoch);
        images.push(image.map_err(|error| Failure::of_definition(error, &target.definition))?);
    }
    Ok(images)
}

async fn export(
    build: &Build,
    images: &[Image],
    id: usize,
    target: &ExportTarget,
) -> Result<Exported, Failure> {
    let failed = |error| Failure::Build { error: std::sync::Arc::new(error), place: None, vertex: None };
    let parts = build.parts(None);
    match target {
        ExportTarget::Local { options, .. } => {
            let scratch = build.engine().store().scratch_dir()?;
            let here = scratch.path().join("files");
            let local = ExportTarget::Local { dest: here.clone(), options: options.clone() };
            let exported = parts.export(images, &local, std::io::sink()).await.map_err(failed)?;
            let step = build.journal.begin("copying files".to_owned());
            let sent = files_to(std::sync::Arc::clone(&build.session), id, here).await;
            step.end(sent)?;
            drop(scratch);
            Ok(exported)
        }
        target if target.writes_stdout() => {
            let (writer, delivery) = stream_to(&build.session, id, &[])?;
            let exported = parts.export(images, target, writer).await;
            let delivered = delivery.finish().await;
            // What the client said is the cause of a write that failed.
            match (exported, delivered) {
                (Ok(exported), Ok(())) => Ok(exported),
                (_, Err(error)) => Err(error.into()),
                (Err(error), Ok(())) => Err(failed(error)),
            }
        }
        target => parts.export(images, target, std::io::sink()).await.map_err(failed),
    }
}

/// The target that a client's exporter describes. Paths are the client's: what has one comes back to it.
pub(crate) fn target(exporter: &Exporter) -> Result<ExportTarget, Failure> {
    let mut fields: BTreeMap<&str, &str> =
        exporter.attrs.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    fields.remove("dest");
    let kind = exporter.r#type.as_str();
    match kind {
        "oci" | "docker" => {
            if fields.get("tar").copied().is_some_and(is_false) {
                return Err(Failure::Unsupported(format!("type={kind},tar=false to a client")));
            }
            fields.remove("tar");
            fields.insert("dest", "-");
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
        ExportTarget::Docker(mut docker) => {
            docker.dest = ArchiveDestination::Tar(Destination::Stdout);
            ExportTarget::Docker(docker)
        }
        target => target,
    })
}

/// Go's `strconv.ParseBool`, as far as it says no.
fn is_false(text: &str) -> bool {
    matches!(text, "0" | "f" | "F" | "false" | "FALSE" | "False")
}

/// One field of a line of options, quoted as CSV wants it.
fn field(key: &str, value: &str) -> String {
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
        assert!(of("oci", &[("tar", "false")]).expect_err("is not there").starts_with("not supported yet"));
        assert!(of("nonsense", &[]).is_err());
    }
}
