//! The front end alone, as JSON in and out: cases with a Dockerfile, answers with what it lowers to.
//!
//! Owns that form, by which our lowering is held against other front ends'. Images resolve through one
//! table; nothing is fetched. Must not be used by a build. Start with [`answer`].

use std::collections::BTreeMap;

use serde_json::{Value, json};
use stave_oci::{Digest, Platform};

use crate::{
    attributes::Attributes,
    diagnostic::Diagnostic,
    dockerignore,
    input::{ContextForm, ContextSource, NamedContext, is_archive},
    lower::{Lowered, lower, report},
    parse::parse,
    plan::{BuildPlan, PlanError, plan},
    request::{ImageOrigin, PlanRequest, ResolvedImage, ResolvedSources, SourceRequest},
    source::Source,
};

/// What images stand for, by canonical name and platform.
#[derive(Clone, Debug, Default)]
pub struct Images(BTreeMap<(String, String), ResolvedImage>);

/// A line that is not of the exchange's form.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// It is no JSON, or a value in it has another type.
    #[error("malformed line")]
    Json(#[from] serde_json::Error),
    /// A field is missing.
    #[error("no `{0}`")]
    Missing(&'static str),
    /// A digest or platform that is none.
    #[error("{0}")]
    Value(String),
}

impl Images {
    /// Reads one object a line: `ref`, `platform`, `digest`, `config`.
    ///
    /// # Errors
    /// For a line of another form.
    pub fn parse(text: &str) -> Result<Self, ExchangeError> {
        let mut images = BTreeMap::new();
        for line in text.lines() {
            let row: Value = serde_json::from_str(line)?;
            let field = |name: &'static str| row[name].as_str().ok_or(ExchangeError::Missing(name));
            let digest = field("digest")?.parse::<Digest>();
            let digest = digest.map_err(|error| ExchangeError::Value(error.to_string()))?;
            let config = serde_json::from_value(row["config"].clone())?;
            let key = (field("ref")?.to_owned(), field("platform")?.to_owned());
            images.insert(key, ResolvedImage { digest, config });
        }
        Ok(Self(images))
    }

    fn find(&self, plan: &BuildPlan, request: &SourceRequest) -> Result<ResolvedImage, String> {
        let mut name = request.reference.canonical();
        if let (ImageOrigin::OciLayout { .. }, Some(digest)) = (&request.origin, request.reference.digest()) {
            name = format!("oci-layout/{digest}");
        }
        let Platform { os, architecture, variant, .. } = &request.platform;
        let platform = Platform::new(os, architecture, variant.as_deref()).to_string();
        let found = self.0.get(&(name.clone(), platform)).cloned();
        found.ok_or_else(|| plan.unresolved(request, &format!("{name}: not found")).to_string())
    }
}

/// The answer to a case: `id`, `dockerfile`, and perhaps `target`, `build_args`, `platform`. With
/// `"mode": "gw"` also `opts` (front end options), `locals` (files by directory and path, of which ignore
/// files count) and `http` (downloads by address).
///
/// # Errors
/// For a line of another form. An unsound Dockerfile is an answer with `error`.
pub fn answer(line: &str, images: &Images) -> Result<Value, ExchangeError> {
    let case: Value = serde_json::from_str(line)?;
    let id = case["id"].clone();
    let text = case["dockerfile"].as_str().ok_or(ExchangeError::Missing("dockerfile"))?;
    let source = Source::new("Dockerfile", text);
    let requests = match case["mode"].as_str() {
        Some("gw") => of_options(&case),
        _ => Ok(vec![of_case(&case)?]),
    };
    let requests = match requests {
        Ok(requests) => requests,
        Err(message) => return Ok(json!({"id": id, "error": message})),
    };
    let mut rows = Vec::new();
    for request in &requests {
        match lowered(&source, request, images) {
            Err(Refused { message, warnings }) => {
                let warnings = report::warnings(&source, &warnings);
                return Ok(json!({"id": id, "error": message, "warnings": warnings}));
            }
            Ok(lowered) => rows.push((request.platform().to_string(), lowered.report(&source))),
        }
    }
    if requests.iter().any(|request| request.multi_platform) {
        return Ok(json!({"id": id, "platforms": serde_json::Map::from_iter(rows)}));
    }
    let mut row = rows.into_iter().next().map(|(_, row)| row).unwrap_or_default();
    row["id"] = id;
    Ok(row)
}

fn strings(value: &Value) -> BTreeMap<String, String> {
    let fields = value.as_object().into_iter().flatten();
    fields.filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned()))).collect()
}

fn build_platform() -> Platform {
    Platform::new("linux", "amd64", None)
}

fn of_case(case: &Value) -> Result<PlanRequest, ExchangeError> {
    let build = build_platform();
    let target = case["platform"].as_str().filter(|text| !text.is_empty());
    let target = target.map(str::parse::<Platform>).transpose();
    let target = target.map_err(|error| ExchangeError::Value(error.to_string()))?;
    Ok(PlanRequest {
        target_platform: Some(target.unwrap_or_else(|| build.clone())),
        build_args: strings(&case["build_args"]),
        target: case["target"].as_str().map(str::to_owned),
        ..PlanRequest::new(build)
    })
}

fn of_options(case: &Value) -> Result<Vec<PlanRequest>, String> {
    let mut options: Attributes = strings(&case["opts"]);
    let arguments = strings(&case["build_args"]);
    options.extend(arguments.into_iter().map(|(name, value)| (format!("build-arg:{name}"), value)));
    for name in ["target", "platform"] {
        options.extend(case[name].as_str().map(|value| (name.to_owned(), value.to_owned())));
    }
    let text = options.get("context").map(String::as_str).unwrap_or_default();
    let context = match ContextForm::of(text).map_err(|error| error.to_string())? {
        ContextForm::Path => ContextSource::Local,
        ContextForm::Git => ContextSource::Git(text.to_owned()),
        ContextForm::Download => {
            let body = case["http"][text].as_str().unwrap_or_default();
            let archive = is_archive(body.as_bytes());
            if archive {
                ContextSource::Archive(text.to_owned())
            } else {
                ContextSource::File(text.to_owned())
            }
        }
    };
    let ignored =
        |name: &str| dockerignore::parse(case["locals"][name][".dockerignore"].as_str().unwrap_or_default());
    let requests =
        PlanRequest::of_attributes(&options, build_platform()).map_err(|error| error.to_string())?;
    let complete = |mut request: PlanRequest| {
        request.context = context.clone();
        request.dockerignore = ignored("context");
        for named in request.named_contexts.values_mut() {
            if let NamedContext::Local(local) = named {
                local.excludes = ignored(&local.name);
            }
        }
        request
    };
    Ok(requests.into_iter().map(complete).collect())
}

/// Why there is no graph, and what the checks found before.
struct Refused {
    message: String,
    warnings: Vec<Diagnostic>,
}

impl From<PlanError> for Refused {
    fn from(error: PlanError) -> Self {
        Self { message: error.to_string(), warnings: error.diagnostics }
    }
}

fn lowered(source: &Source, request: &PlanRequest, images: &Images) -> Result<Lowered, Refused> {
    let parsed = parse(source);
    let mut plan = plan(&parsed.dockerfile, request)?;
    let mut resolved = ResolvedSources::default();
    loop {
        let missing = plan.missing(&resolved);
        if missing.is_empty() {
            return lower(&plan, &resolved)
                .map_err(|error| Refused { message: error.to_string(), warnings: error.warnings });
        }
        for request in missing {
            let image = images.find(&plan, &request);
            let image = image.map_err(|message| Refused { message, warnings: plan.warnings.clone() })?;
            resolved.insert(request, image);
        }
        plan = plan.with_triggers(&resolved)?;
    }
}

/// How often [`drive`] answers what the front end asks for.
const MAX_ROUNDS: usize = 64;

/// Takes any text as far as it goes, with images, included files and outputs of commands made up, for tests
/// that hold that nothing panics. The result is the first error, or what it lowered to.
///
/// # Errors
/// With the message of the first error.
pub fn drive(text: &str, request: &PlanRequest) -> Result<Lowered, String> {
    let mut source = Source::new("Dockerfile", text);
    let mut parsed = parse(&source);
    for _ in 0..MAX_ROUNDS {
        let Some(include) = parsed.missing_includes.first() else { break };
        source = source.with_included(include.path.clone(), "ENV included=1\nRUN included\n");
        parsed = parse(&source);
    }
    let mut plan = plan(&parsed.dockerfile, request).map_err(|error| error.to_string())?;
    let mut resolved = ResolvedSources::default();
    for _ in 0..MAX_ROUNDS {
        let missing = plan.missing(&resolved);
        if missing.is_empty() {
            let commands = plan.commands(&resolved).map_err(|error| error.to_string())?;
            if commands.is_empty() {
                break;
            }
            for command in commands {
                resolved.insert_output(command.key, "output\n".to_owned());
            }
            continue;
        }
        for request in missing {
            let image = made_up(&request);
            resolved.insert(request, image);
        }
        plan = plan.with_triggers(&resolved).map_err(|error| error.to_string())?;
    }
    lower(&plan, &resolved).map_err(|error| error.to_string())
}

/// An image with a layer, variables and, for some names, triggers.
fn made_up(request: &SourceRequest) -> ResolvedImage {
    let name = request.reference.canonical();
    let mut config = stave_oci::ImageConfig::default();
    config.os.clone_from(&request.platform.os);
    config.architecture.clone_from(&request.platform.architecture);
    config.config.env = vec!["PATH=/bin".to_owned(), format!("NAME={name}")];
    config.rootfs.diff_ids = vec![Digest::sha256(name.as_bytes())];
    if name.contains("trigger") {
        config.config.on_build = vec!["COPY --from=scratch a b".to_owned(), format!("RUN {name}")];
    }
    ResolvedImage { digest: Digest::sha256(name.as_bytes()), config }
}
