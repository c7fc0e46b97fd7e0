//! What a stage starts from.
//!
//! Owns `FROM`: the base's files, platform and config, and what a stage inherits from an earlier one.
//! Start with [`Lowering::base`].

use std::collections::BTreeMap;

use stave_llb::{SourceOp, builder::About, builder::Output};
use stave_oci::{ImageConfig, Platform};

use super::{
    Lowering, error,
    stage::{DEFAULT_PATH, StageState},
};
use crate::{
    diagnostic::Diagnostic,
    plan::{Base, PlannedStage, StageIndex},
    request::{ImageResolveMode, ResolvedImage},
    scope::{Lookup as _, Variables},
};

impl Lowering<'_> {
    /// A stage before its first instruction.
    pub(super) fn base(&mut self, index: StageIndex) -> Result<StageState, Diagnostic> {
        let plan = self.plan;
        let stage = &plan.stages[index.0];
        let mut state = match &stage.base {
            Base::Stage(base) => {
                let base = self.source_stage(*base, stage.span)?.clone();
                StageState { index, sets_command: false, step: 0, ..base }
            }
            Base::Scratch => StageState::new(index, plan.request.platform()),
            Base::Image(_) => self.image(index, stage)?,
            Base::Context(context) => self.named(index, context)?,
        };
        let is_context = matches!(&stage.base, Base::Context(context) if context.replaces_stage);
        if stage.implicit || is_context {
            return Ok(state);
        }
        state.image.config.on_build.clear();
        inherit(&mut state).map_err(|message| error(stage.span, message))?;
        Ok(state)
    }

    fn image(&mut self, index: StageIndex, stage: &PlannedStage) -> Result<StageState, Diagnostic> {
        let plan = self.plan;
        let found = plan.request_of(index).and_then(|request| {
            let image = self.resolved.get(&request)?;
            Some((request, image))
        });
        let Some((request, ResolvedImage { digest, config })) = found else {
            return Err(self.unresolved(index));
        };
        let mut platform = request.platform;
        if stage.platform.is_none() && plan.request.target_platform.is_none() {
            platform = detect(config, platform, &plan.request.build_platform);
        }
        let mut state = StageState::new(index, &platform);
        state.step = stage.skipped_steps;
        state.image = ImageConfig { created: None, ..config.clone() };
        let pinned = request.reference.pinned(digest.clone()).canonical();
        let name = state.base_step_name(plan, &format!("FROM {pinned}"));
        let without_files =
            config.rootfs.diff_ids.is_empty() && config.history.iter().all(|one| one.empty_layer);
        if !without_files {
            let mut about = About::named(name).described("com.docker.dockerfile.v1.command", &*stage.code);
            about.locations.extend(stage.lines.map(|lines| self.location_of(lines, stage.span)));
            state.output = Some(self.pull(&pinned, &platform, about));
        }
        Ok(state)
    }

    fn pull(&mut self, pinned: &str, platform: &Platform, about: About) -> Output {
        let mode = match self.plan.request.image_resolve_mode {
            ImageResolveMode::Default => None,
            ImageResolveMode::ForcePull => Some("pull"),
            ImageResolveMode::PreferLocal => Some("local"),
        };
        let attrs = mode.map(|mode| ("image.resolvemode".to_owned(), mode.to_owned()));
        let op = SourceOp::new(format!("docker-image://{pinned}"), BTreeMap::from_iter(attrs));
        self.source(op, platform, about)
    }
}

/// Takes environment, directory and user over from the base's config.
fn inherit(state: &mut StageState) -> Result<(), String> {
    let config = &mut state.image.config;
    let has_path = Variables::from_entries(&config.env).value("PATH").is_some();
    if !has_path && state.platform.os != "windows" {
        config.env.push(format!("PATH={DEFAULT_PATH}"));
    }
    for entry in &config.env {
        let (name, value) = entry.split_once('=').unwrap_or((entry, ""));
        state.env.set(name, value);
    }
    if !config.working_dir.is_empty() {
        let directory = config.working_dir.clone();
        state.change_directory(&directory)?;
    }
    if !state.image.config.user.is_empty() {
        state.user.clone_from(&state.image.config.user);
    }
    Ok(())
}

/// Where nobody chose a platform, an image for the build platform decides.
fn detect(image: &ImageConfig, wanted: Platform, build: &Platform) -> Platform {
    let is = |platform: &Platform| platform.os == image.os && platform.architecture == image.architecture;
    if !is(&wanted) && is(build) { build.clone() } else { wanted }
}
