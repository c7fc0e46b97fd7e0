//! `RUN --mount`.
//!
//! Owns what each kind of mount becomes. Start with [`Lowering::mounts`].

use stave_llb::{
    ContentCache, FileActionKind, MkdirAction, Mount, MountOwner, SecretEnv, Sharing, UserOrGroup,
    builder::{About, FileSpec, FileStep, MountSpec, Output},
};

use super::{Lowering, error, stage::StageState};
use crate::{
    ast::{MountFlag, Run},
    diagnostic::Diagnostic,
    expand::Expander,
    mount::{self, Mount as Options, MountKind},
    path,
    plan::{PlannedInstruction, StageIndex},
};

/// The mounts of a step.
#[derive(Default)]
pub(super) struct Mounts {
    pub(super) all: Vec<MountSpec>,
    pub(super) secret_env: Vec<SecretEnv>,
    /// The ids of secrets whose values are part of the cache key.
    pub(super) keyed: Vec<String>,
}

impl Lowering<'_> {
    pub(super) fn mounts(
        &mut self,
        state: &StageState,
        planned: &PlannedInstruction,
        run: &Run,
    ) -> Result<Mounts, Diagnostic> {
        let mut mounts = Mounts::default();
        let sources = planned.sources.iter().copied().chain(std::iter::repeat(None));
        for (flag, source) in run.mounts.iter().zip(sources) {
            let options = self.options(state, flag)?;
            if let Some(value) = &options.cache {
                self.check_keyed(&flag.options, value)?;
            }
            match options.kind {
                MountKind::Secret { required } => secret(&options, required, &mut mounts),
                MountKind::Ssh { required } => mounts.all.push(ssh(flag, &options, required)?),
                _ => {
                    let mount = self.mount(state, flag, &options, source)?;
                    mounts.all.push(mount);
                }
            }
        }
        Ok(mounts)
    }

    fn options(&self, state: &StageState, flag: &MountFlag) -> Result<Options, Diagnostic> {
        let expander = Expander::new(self.escape());
        let options = mount::parse(&flag.options.text, |value| expander.text(value, &state.env));
        options.map_err(|cause| {
            let suggestion = cause.suggestion();
            error(flag.options.span, cause.to_string()).with_suggestion(suggestion)
        })
    }

    fn mount(
        &mut self,
        state: &StageState,
        flag: &MountFlag,
        options: &Options,
        source: Option<StageIndex>,
    ) -> Result<MountSpec, Diagnostic> {
        let span = flag.options.span;
        let written = options.target.as_deref().unwrap_or_default();
        let target = match path::clean(written).starts_with('/') {
            true => written.to_owned(),
            false => path::join("/", &path::join(state.directory(), written)),
        };
        if target == "/" {
            return Err(error(span, format!("invalid mount target \"{target}\"")));
        }
        // Without `from`, a cache is of the stage `scratch`, if there is one, and all else of the build context.
        let is_cache = matches!(options.kind, MountKind::Cache { .. });
        let source = source.filter(|_| options.from.is_some() || is_cache);
        let mut input = match (options.kind, source) {
            (MountKind::Tmpfs { .. }, _) => None,
            (_, Some(stage)) => self.source_stage(stage, span)?.output,
            (MountKind::Cache { .. }, None) => None,
            (_, None) => self.context.output,
        };
        let from = path::join("/", options.source.as_deref().unwrap_or_default());
        if let Some(stage) = source {
            let root = self.source_stage(stage, span)?.root;
            self.locals.uses(root, &from);
        }
        if source.is_none() && !is_cache {
            self.context.uses(&from);
        }
        let mut selector = String::new();
        if from != "/" {
            selector = from;
        } else if options.uid.is_some() || options.gid.is_some() || options.mode.is_some() {
            input = Some(self.owned_directory(input, options));
            selector = "/cache".to_owned();
        }
        Ok(match options.kind {
            MountKind::Tmpfs { size } => {
                let mount = Mount::Tmpfs { target, size, readonly: options.read_only };
                MountSpec { mount, source: None, no_output: true }
            }
            MountKind::Cache { sharing } => {
                let id = options.id.clone().unwrap_or_else(|| path::clean(written));
                let mount = Mount::Cache {
                    target,
                    input: None,
                    selector,
                    readonly: options.read_only,
                    id: format!("{}/{id}", self.plan.request.cache_id_namespace),
                    sharing: match sharing {
                        mount::Sharing::Shared => Sharing::Shared,
                        mount::Sharing::Private => Sharing::Private,
                        mount::Sharing::Locked => Sharing::Locked,
                    },
                };
                MountSpec { mount, source: input, no_output: true }
            }
            _ => {
                let mount = Mount::Bind {
                    target,
                    input: None,
                    selector,
                    readonly: options.read_only,
                    output: None,
                    content_cache: ContentCache::Default,
                };
                MountSpec { mount, source: input, no_output: true }
            }
        })
    }

    /// A directory of the wanted owner and mode, for a cache to start as.
    fn owned_directory(&mut self, base: Option<Output>, options: &Options) -> Output {
        let id = |number: Option<u32>| Some(UserOrGroup::Id(number.unwrap_or(0)));
        let kind = FileActionKind::Mkdir(MkdirAction {
            path: "/cache".to_owned(),
            mode: options.mode.unwrap_or(0o755) & 0o777,
            make_parents: false,
            owner: Some(stave_llb::Chown { user: id(options.uid), group: id(options.gid) }),
            timestamp: None,
        });
        self.graph.file(FileSpec {
            base,
            actions: vec![FileStep { kind, source: None }],
            about: About::named("[internal] setting cache mount permissions"),
        })
    }
}

fn owner(options: &Options, mode: u32) -> MountOwner {
    MountOwner {
        uid: options.uid.unwrap_or(0),
        gid: options.gid.unwrap_or(0),
        mode: options.mode.unwrap_or(mode),
    }
}

fn secret(options: &Options, required: bool, mounts: &mut Mounts) {
    let named = options.source.clone().or_else(|| options.id.clone());
    let target = options.target.clone();
    // The options were checked to hold one of these.
    let id = named.unwrap_or_else(|| path::base(target.as_deref().unwrap_or_default()).to_owned());
    let optional = !required;
    mounts.keyed.extend(options.cache.is_some().then(|| id.clone()));
    if let Some(name) = &options.env {
        mounts.secret_env.push(SecretEnv { id: id.clone(), name: name.clone(), optional });
    }
    let file = match (&options.env, target) {
        (_, Some(target)) => Some(target),
        (None, None) => Some(format!("/run/secrets/{}", path::base(&id))),
        (Some(_), None) => None,
    };
    if let Some(target) = file {
        let mount = Mount::Secret { target, id, owner: owner(options, 0o400), optional };
        mounts.all.push(MountSpec { mount, source: None, no_output: true });
    }
}

fn ssh(flag: &MountFlag, options: &Options, required: bool) -> Result<MountSpec, Diagnostic> {
    if options.source.is_some() {
        return Err(error(flag.options.span, "ssh does not support source"));
    }
    let mount = Mount::Ssh {
        target: options.target.clone().unwrap_or_default(),
        id: options.id.clone().unwrap_or_default(),
        owner: owner(options, 0o600),
        optional: !required,
    };
    Ok(MountSpec { mount, source: None, no_output: true })
}
