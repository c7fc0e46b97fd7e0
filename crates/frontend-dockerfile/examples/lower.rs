//! Lowers Dockerfiles given as JSON lines and writes what they come to as JSON lines.
//!
//! `lower --images FILE` reads `{"id", "dockerfile", "target"?, "build_args"?, "platform"?}` on standard
//! input. Images resolve through FILE alone: `{"ref", "platform", "digest", "config"}` a line.

use std::{
    collections::BTreeMap,
    error::Error,
    fs,
    io::{self, BufRead, Write},
};

use serde::Deserialize;
use serde_json::{Value, json};
use stave_frontend_dockerfile::{
    BuildPlan, Lowered, PlanRequest, ResolvedImage, ResolvedSources, Source, SourceRequest, lower, parse,
    plan,
};
use stave_oci::{Digest, ImageConfig, Platform};

#[derive(Deserialize)]
struct Case {
    id: String,
    dockerfile: String,
    target: Option<String>,
    #[serde(default)]
    build_args: BTreeMap<String, String>,
    platform: Option<String>,
}

#[derive(Deserialize)]
struct KnownImage {
    #[serde(rename = "ref")]
    reference: String,
    platform: String,
    digest: Digest,
    config: ImageConfig,
}

type Images = BTreeMap<(String, String), ResolvedImage>;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let path = match (args.next().as_deref(), args.next()) {
        (Some("--images"), Some(path)) => path,
        _ => return Err("usage: lower --images FILE".into()),
    };
    let images = images(&fs::read_to_string(path)?)?;
    let mut out = io::stdout().lock();
    for line in io::stdin().lock().lines() {
        let case: Case = serde_json::from_str(&line?)?;
        writeln!(out, "{}", answer(&case, &images)?)?;
    }
    Ok(())
}

fn images(text: &str) -> Result<Images, Box<dyn Error>> {
    let mut images = Images::new();
    for line in text.lines() {
        let KnownImage { reference, platform, digest, config } = serde_json::from_str(line)?;
        images.insert((reference, platform), ResolvedImage { digest, config });
    }
    Ok(images)
}

fn answer(case: &Case, images: &Images) -> Result<Value, Box<dyn Error>> {
    let build: Platform = "linux/amd64".parse()?;
    let mut request = PlanRequest::new(build.clone());
    request.target_platform = Some(case.platform.as_deref().map_or(Ok(build), str::parse)?);
    request.build_args.clone_from(&case.build_args);
    request.target.clone_from(&case.target);
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
