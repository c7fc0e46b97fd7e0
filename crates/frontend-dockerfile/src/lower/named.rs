//! Named contexts as bases.
//!
//! Owns which source each kind becomes and which paths of a client's directory are asked for. Must not
//! choose between contexts; the plan did. Start with [`Lowering::named`].

use std::collections::{BTreeMap, BTreeSet};

use stave_llb::{
    SourceOp,
    builder::{About, GraphBuilder, Output},
};
use stave_oci::{ImageConfig, Platform};

use super::{
    Lowering,
    context::{follow_paths, json_list},
    error,
    stage::{StageState, empty_config},
};
use crate::{
    diagnostic::Diagnostic,
    input::{LocalContext, NamedContext, download_op, git_source},
    path,
    plan::{ContextBase, StageIndex},
    request::ResolvedImage,
};

/// The directories of the client that stages start from, with what is used of each.
#[derive(Default)]
pub(super) struct LocalContexts(Vec<(Output, BTreeSet<String>)>);

/// One of [`LocalContexts`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LocalRoot(usize);

impl LocalContexts {
    fn add(&mut self, output: Output) -> LocalRoot {
        self.0.push((output, BTreeSet::new()));
        LocalRoot(self.0.len() - 1)
    }

    /// Notes that the build uses a path of what a stage starts from.
    pub(super) fn uses(&mut self, root: Option<LocalRoot>, path: &str) {
        if let Some((_, paths)) = root.and_then(|root| self.0.get_mut(root.0)) {
            paths.insert(path::join("/", path));
        }
    }

    /// Narrows each down to what is used, now that all of it is known.
    pub(super) fn finish(&self, graph: &mut GraphBuilder) {
        for (output, paths) in &self.0 {
            graph.extend_source(*output, follow_paths(paths));
        }
    }
}

impl Lowering<'_> {
    /// A stage that starts from a named context, or is one.
    pub(super) fn named(
        &mut self,
        index: StageIndex,
        context: &ContextBase,
    ) -> Result<StageState, Diagnostic> {
        let plan = self.plan;
        let stage = &plan.stages[index.0];
        let platform = stage.platform.clone().unwrap_or_else(|| plan.request.platform().clone());
        let image = self.named_image(index, context)?;
        let mut state = StageState::new(index, &platform);
        state.step = stage.skipped_steps;
        match (&image, context.replaces_stage) {
            (Some(config), _) => state.image = ImageConfig { created: None, ..config.clone() },
            (None, true) => state.image = ImageConfig::default(),
            (None, false) => state.image = empty_config(&platform),
        }
        if context.replaces_stage {
            state.image.config.on_build.clear();
        }
        if let Some(config) = image.filter(|_| context.replaces_stage)
            && !config.os.is_empty()
            && !config.architecture.is_empty()
        {
            state.platform = config.platform();
        }
        let output = self.named_output(index, context, &platform)?;
        if matches!(context.source, NamedContext::Local(_)) {
            state.root = output.map(|output| self.locals.add(output));
        }
        state.output = output;
        Ok(state)
    }

    fn named_image(
        &self,
        index: StageIndex,
        context: &ContextBase,
    ) -> Result<Option<ImageConfig>, Diagnostic> {
        if let NamedContext::Graph { config, .. } = &context.source {
            return Ok(config.as_deref().cloned());
        }
        let Some(request) = self.plan.request_of(index) else { return Ok(None) };
        match self.resolved.get(&request) {
            Some(ResolvedImage { config, .. }) => Ok(Some(config.clone())),
            None => Err(self.unresolved(index)),
        }
    }

    /// What is said about an image that nobody looked up.
    pub(super) fn unresolved(&self, index: StageIndex) -> Diagnostic {
        let stage = &self.plan.stages[index.0];
        error(stage.span, format!("{}: image was not resolved", stage.written_base))
    }

    fn named_output(
        &mut self,
        index: StageIndex,
        context: &ContextBase,
        platform: &Platform,
    ) -> Result<Option<Output>, Diagnostic> {
        let shown = &context.shown;
        let titled = |text: &str| About::named(format!("[context {shown}] {text}"));
        let (op, about) = match &context.source {
            NamedContext::Scratch => return Ok(None),
            NamedContext::Graph { definition, .. } => return Ok(self.graph.import(definition)),
            NamedContext::Image { reference, written } => {
                // Not pinned, unlike images that `FROM` names: so the reference has it.
                let name = reference.canonical();
                (SourceOp::new(format!("docker-image://{name}"), BTreeMap::new()), titled(written))
            }
            NamedContext::OciLayout { store, digest } => {
                let request = self.plan.request_of(index).ok_or_else(|| self.unresolved(index))?;
                let name = request.reference;
                let name = format!("{}/{}@{digest}", name.registry(), name.repository());
                let attrs = BTreeMap::from([("oci.store".to_owned(), store.clone())]);
                (SourceOp::new(format!("oci-layout://{name}"), attrs), titled("OCI load from client"))
            }
            NamedContext::Local(local) => (local_op(local, shown), titled("load from client")),
            NamedContext::Http(url) => (download_op(url), titled(url)),
            NamedContext::Git(text) => {
                let span = self.plan.stages[index.0].span;
                git_source(text, false, false).map_err(|message| error(span, message))?
            }
        };
        Ok(Some(self.graph.source(op, platform, about)))
    }
}

fn local_op(local: &LocalContext, shown: &str) -> SourceOp {
    let hint = format!("context:{shown}-{}", local.shared_key);
    let mut attrs = BTreeMap::from([("local.sharedkeyhint".to_owned(), hint)]);
    if !local.excludes.is_empty() {
        attrs.insert("local.excludepatterns".to_owned(), json_list(local.excludes.iter()));
    }
    SourceOp::new(format!("local://{}", local.name), attrs)
}
