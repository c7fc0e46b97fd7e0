//! `stave debug lower`: the front end alone, on JSON lines. Images resolve through one file; nothing is
//! fetched. What comes out is how the lowering is held against other front ends'.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufRead as _, Write as _};
use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};
use stave_frontend_dockerfile::{
    BuildPlan, Lowered, PlanRequest, ResolvedImage, ResolvedSources, Source, SourceRequest, lower, parse,
    plan,
};
use stave_oci::{Digest, ImageConfig, Platform};

use crate::report::Failure;

/// One Dockerfile to lower.
#[derive(Deserialize)]
struct Case {
    id: String,
    dockerfile: String,
    target: Option<String>,
    #[serde(default)]
    build_args: BTreeMap<String, String>,
    platform: Option<PlatformText>,
}

/// A platform as text.
#[derive(Deserialize)]
#[serde(transparent)]
struct PlatformText(String);

#[derive(Deserialize)]
struct KnownImage {
    #[serde(rename = "ref")]
    reference: String,
    platform: String,
    digest: Digest,
    config: ImageConfig,
}

type Images = BTreeMap<(String, String), ResolvedImage>;

/// Answers every case of standard input.
pub(super) fn run(images: &Path) -> Result<u8, Failure> {
    let failed = |error: io::Error| Failure::message(format!("cannot read `{}`: {error}", images.display()));
    let images = known(&fs::read_to_string(images).map_err(failed)?)?;
    let mut out = io::BufWriter::new(io::stdout().lock());
    for line in io::stdin().lock().lines() {
        let line = line.map_err(|error| Failure::new(&error))?;
        let case: Case = serde_json::from_str(&line).map_err(|error| Failure::new(&error))?;
        writeln!(out, "{}", answer(&case, &images)?).map_err(|error| Failure::new(&error))?;
    }
    out.flush().map_err(|error| Failure::new(&error))?;
    Ok(0)
}

fn known(text: &str) -> Result<Images, Failure> {
    let mut images = Images::new();
    for line in text.lines() {
        let image: KnownImage = serde_json::from_str(line).map_err(|error| Failure::new(&error))?;
        let found = ResolvedImage { digest: image.digest, config: image.config };
        images.insert((image.reference, image.platform), found);
    }
    Ok(images)
}

fn answer(case: &Case, images: &Images) -> Result<Value, Failure> {
    let build = Platform::new("linux", "amd64", None);
    let target = case.platform.as_ref().map(|platform| platform.0.parse()).transpose();
    let request = PlanRequest {
        target_platform: Some(target.map_err(|error| Failure::new(&error))?.unwrap_or_else(|| build.clone())),
        build_args: case.build_args.clone(),
        target: case.target.clone(),
        ..PlanRequest::new(build)
    };
    let source = Source::new("Dockerfile", case.dockerfile.clone());
    Ok(match lowered(&source, &request, images) {
        Err(message) => json!({"id": case.id, "error": message}),
        Ok(lowered) => {
            let mut row = lowered.report(&source);
            row["id"] = json!(case.id);
            row
        }
    })
}

fn lowered(source: &Source, request: &PlanRequest, images: &Images) -> Result<Lowered, String> {
    let parsed = parse(source);
    let mut plan = plan(&parsed.dockerfile, request).map_err(|error| error.to_string())?;
    let mut resolved = ResolvedSources::default();
    loop {
        let missing = plan.missing(&resolved);
        if missing.is_empty() {
            return lower(&plan, &resolved).map_err(|error| error.to_string());
        }
        for request in missing {
            let image = image(&plan, &request, images)?;
            resolved.insert(request, image);
        }
        plan = plan.with_triggers(&resolved).map_err(|error| error.to_string())?;
    }
}

fn image(plan: &BuildPlan, request: &SourceRequest, images: &Images) -> Result<ResolvedImage, String> {
    let key = (request.reference.canonical(), request.platform.to_string());
    let found = images.get(&key).cloned();
    found.ok_or_else(|| plan.unresolved(request, &format!("{}: not found", key.0)).to_string())
}
