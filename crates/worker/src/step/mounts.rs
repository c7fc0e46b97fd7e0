//! The mounts of a step: inputs, caches, memory, secrets, each as something the sandbox can bind.
//! Owns what has to be mounted in this process first, and what the step's writes become. Must not know processes.
//! Read [`prepare`] first.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::FileType;
use stave_llb::{ExecOp, Mount, MountOwner};
use stave_sandbox::{MountGuard, MountSpec, OverlayLayers, mount_overlay};
use stave_store::{ActiveLayer, FlatTree, Left, MutableDir, ScratchDir, Snapshot, StoreError, Taking};
use tokio_util::sync::CancellationToken;

use super::{StepError, secret_value};
use crate::base::Base;
use crate::context::Context;
use crate::file::copy::{Copier, CopyRules};
use crate::file::place::Stamp;
use crate::file::snapshot_of;
use crate::input::Input;
use crate::mode::ModeChange;
use crate::root::{At as _, Last, RootDir};
use crate::session::Session;
use crate::ssh::{AgentSocket, DEFAULT_AGENT, SocketOwner, SshAgent};
use crate::tree::Meta;
use crate::worker::{Ref, Shared};

/// Mode of a tmpfs's root.
const TMPFS_MODE: u32 = 0o1777;

/// Cache mounts of a step, by position of their mount.
pub(crate) type Caches = HashMap<usize, CacheMount>;

/// A cache mount of a step.
pub(crate) enum CacheMount {
    /// Held by the step.
    Held(MutableDir),
    /// The one that the mount at this earlier position holds, at another target.
    Same(usize),
}

/// What a step is prepared from.
pub(crate) struct Plan {
    pub shared: Arc<Shared>,
    pub op: ExecOp,
    pub inputs: Vec<Ref>,
    pub session: Arc<Session>,
    pub cancel: CancellationToken,
}

/// What a mount's output is.
pub(crate) enum Written {
    Layer(ActiveLayer),
    Unchanged(Ref),
}

/// Mounts ready to use. Fields are dropped in order: mounts before the directories below them.
pub(crate) struct Prepared {
    pub specs: Vec<MountSpec>,
    pub guards: Vec<Mounted>,
    /// Agents that answer while this lives.
    pub agents: Vec<AgentSocket>,
    /// The root's base, for looking at.
    pub root_view: Arc<Base>,
    pub root: ActiveLayer,
    pub root_output: Option<u32>,
    pub readonly_root: bool,
    pub written: Vec<(u32, Written)>,
    /// Layers whose content is thrown away, and where they are mounted.
    pub discarded: Vec<(String, ActiveLayer)>,
    /// Local contexts that were read.
    pub contexts: Vec<Arc<Context>>,
    pub caches: Vec<MutableDir>,
    /// Directories of generated files.
    pub scratch: Vec<ScratchDir>,
}

impl Prepared {
    /// The layers that the step writes.
    pub(crate) fn layers(&self) -> impl Iterator<Item = &ActiveLayer> {
        let written = self.written.iter().filter_map(|(_, written)| match written {
            Written::Layer(layer) => Some(layer),
            Written::Unchanged(_) => None,
        });
        let discarded = self.discarded.iter().map(|(_, layer)| layer);
        std::iter::once(&self.root).chain(written).chain(discarded)
    }
}

/// A mount of this process and the directory it is on.
#[derive(Debug)]
pub(crate) enum Mounted {
    /// Unmounted before its directory is removed.
    Mount { _mount: MountGuard, _place: ScratchDir },
    /// Where nothing can be mounted, a tree, and the layer that its changes become.
    Tree { tree: FlatTree, upper: Option<PathBuf>, _place: ScratchDir },
}

impl Mounted {
    /// Makes what was written a layer, where writing it did not.
    pub(crate) fn collect(&self) -> Result<(), StoreError> {
        match self {
            Self::Tree { tree, upper: Some(upper), .. } => tree.collect(upper, &Left::default()),
            Self::Tree { .. } | Self::Mount { .. } => Ok(()),
        }
    }
}

/// Prepares all mounts of a step. Blocks.
pub(crate) fn prepare(plan: &Plan, mut caches: Caches) -> Result<Prepared, StepError> {
    let mut building = Building::root(plan)?;
    let mut places = HashMap::new();
    for (index, mount) in plan.op.mounts.iter().enumerate() {
        if mount.target() == "/" {
            continue;
        }
        let place = match caches.remove(&index) {
            Some(CacheMount::Held(directory)) => Some(building.cache(mount, directory)?),
            Some(CacheMount::Same(earlier)) => places.get(&earlier).cloned(),
            None => None,
        };
        building.add(mount, place.clone())?;
        places.extend(place.map(|place| (index, place)));
    }
    Ok(building.prepared)
}

struct Building<'a> {
    plan: &'a Plan,
    prepared: Prepared,
}

impl<'a> Building<'a> {
    fn root(plan: &'a Plan) -> Result<Self, StepError> {
        let Some(Mount::Bind { input, readonly, output, selector, .. }) = plan.op.root() else {
            return Err(StepError::NoRoot);
        };
        if !matches!(selector.as_str(), "" | "/") {
            return Err(StepError::Unsupported("a root mount of a part of an input"));
        }
        let mut contexts = Vec::new();
        let snapshot = snapshot(plan, *input, &mut contexts)?;
        let description = format!("run {}", plan.op.args.join(" "));
        let root = plan.shared.prepare(&snapshot, &description)?;
        let prepared = Prepared {
            specs: Vec::new(),
            guards: Vec::new(),
            agents: Vec::new(),
            root_view: Arc::new(Base::of(&plan.shared, &root)?),
            root,
            root_output: *output,
            readonly_root: *readonly,
            written: Vec::new(),
            discarded: Vec::new(),
            contexts,
            caches: Vec::new(),
            scratch: Vec::new(),
        };
        Ok(Self { plan, prepared })
    }

    /// Readies the directory of a cache mount and keeps it for the step.
    fn cache(&mut self, mount: &Mount, directory: MutableDir) -> Result<PathBuf, StepError> {
        let Mount::Cache { input, selector, .. } = mount else { return Err(StepError::NoInput) };
        let directory = self.seeded(directory, *input, selector)?;
        let place = directory.path().to_owned();
        self.prepared.caches.push(directory);
        Ok(place)
    }

    fn add(&mut self, mount: &Mount, cache: Option<PathBuf>) -> Result<(), StepError> {
        let target = self.plan.op.place_of(mount);
        match mount {
            Mount::Bind { input, selector, readonly: true, output, .. } => {
                self.readonly_bind(target, *input, selector, *output)
            }
            Mount::Bind { input, selector, readonly: false, output, .. } => {
                self.writable_bind(target, *input, selector, *output)
            }
            Mount::Cache { readonly, .. } => {
                let source = cache.ok_or(StepError::NoInput)?;
                self.bind(source, target, *readonly);
                Ok(())
            }
            // Nothing can ever be in it: an empty directory is the same.
            Mount::Tmpfs { readonly: true, .. } => {
                let empty = self.plan.shared.scratch.empty().map_err(StepError::Store)?;
                self.bind(empty, target, true);
                Ok(())
            }
            Mount::Tmpfs { size, .. } => {
                let size = u64::try_from(*size).ok().filter(|size| *size > 0);
                self.prepared.specs.push(MountSpec::Tmpfs { target, size, mode: TMPFS_MODE });
                Ok(())
            }
            Mount::Secret { id, owner, optional, .. } => {
                if let Some(contents) = secret_value(&self.plan.session, id, *optional)? {
                    let (mode, uid, gid) = (owner.mode & 0o777, owner.uid, owner.gid);
                    self.prepared.specs.push(MountSpec::File { target, contents, mode, uid, gid });
                }
                Ok(())
            }
            Mount::Ssh { id, owner, optional, .. } => self.agent(target, id, *owner, *optional),
        }
    }

    /// Lends an agent to the step: a socket that is answered while the step runs.
    fn agent(
        &mut self,
        target: PathBuf,
        id: &str,
        owner: MountOwner,
        optional: bool,
    ) -> Result<(), StepError> {
        let id = if id.is_empty() { DEFAULT_AGENT } else { id };
        let agents = &self.plan.session.ssh;
        let agent = match agents.get(id) {
            Some(SshAgent::Refused(_)) | None if optional => return Ok(()),
            Some(SshAgent::Refused(why)) => return Err(StepError::RefusedAgent(why.clone())),
            Some(agent) => agent,
            None if agents.is_empty() => return Err(StepError::NoAgent(id.to_owned())),
            None => return Err(StepError::UnknownAgent(id.to_owned())),
        };
        let owner = SocketOwner { uid: owner.uid, gid: owner.gid, mode: owner.mode };
        let socket = AgentSocket::open(agent, owner, &self.plan.shared)
            .map_err(|source| StepError::Agent { id: id.to_owned(), source })?;
        self.bind(socket.real_path(), target, false);
        self.prepared.agents.push(socket);
        Ok(())
    }

    fn bind(&mut self, source: PathBuf, target: PathBuf, readonly: bool) {
        self.prepared.specs.push(MountSpec::Bind { source, target, readonly, recursive: false });
    }

    fn readonly_bind(
        &mut self,
        target: PathBuf,
        input: Option<u32>,
        selector: &str,
        output: Option<u32>,
    ) -> Result<(), StepError> {
        let snapshot = snapshot(self.plan, input, &mut self.prepared.contexts)?;
        let lower = self.plan.shared.store.layer_paths(&snapshot).map_err(StepError::Store)?;
        let base = match lower.as_slice() {
            [] => self.plan.shared.scratch.empty().map_err(StepError::Store)?,
            [only] => only.clone(),
            _ => self.mount(OverlayLayers { lower, upper: None, volatile: false })?,
        };
        let source = select(&base, selector)?;
        self.bind(source, target, true);
        if let Some(output) = output {
            let unchanged = match input.and_then(|input| self.plan.inputs.get(input as usize)) {
                Some(input) => input.clone(),
                None => Ref::Snapshot(Snapshot::scratch()),
            };
            self.prepared.written.push((output, Written::Unchanged(unchanged)));
        }
        Ok(())
    }

    fn writable_bind(
        &mut self,
        target: PathBuf,
        input: Option<u32>,
        selector: &str,
        output: Option<u32>,
    ) -> Result<(), StepError> {
        let snapshot = snapshot(self.plan, input, &mut self.prepared.contexts)?;
        let layer = self.plan.shared.prepare(&snapshot, "mount").map_err(StepError::Store)?;
        let base = if layer.lowers().is_empty() {
            layer.upper().to_owned()
        } else {
            let upper = Some((layer.upper().to_owned(), layer.work().to_owned()));
            self.mount(OverlayLayers { lower: layer.lowers().to_vec(), upper, volatile: true })?
        };
        let source = select(&base, selector)?;
        let place = target.to_string_lossy().into_owned();
        self.bind(source, target, false);
        match output {
            Some(output) => self.prepared.written.push((output, Written::Layer(layer))),
            None => self.prepared.discarded.push((place, layer)),
        }
        Ok(())
    }

    fn mount(&mut self, layers: OverlayLayers) -> Result<PathBuf, StepError> {
        let place = self.plan.shared.store.scratch_dir()?;
        if !stave_sandbox::has_namespaces() {
            let taking = if layers.upper.is_some() { Taking::Copies } else { Taking::Links };
            // A layer's changes are moved to it, which only works on its own file system.
            let tree = self.plan.shared.store.flatten(&layers.lower, place.path().join("tree"), taking)?;
            let at = tree.root().to_owned();
            let upper = layers.upper.map(|(upper, _)| upper);
            self.prepared.guards.push(Mounted::Tree { tree, upper, _place: place });
            return Ok(at);
        }
        let at = place.path().to_owned();
        let mount = mount_overlay(&layers, &at)?;
        self.prepared.guards.push(Mounted::Mount { _mount: mount, _place: place });
        Ok(at)
    }

    /// Gives a new cache directory its first content.
    fn seeded(
        &mut self,
        directory: MutableDir,
        input: Option<u32>,
        selector: &str,
    ) -> Result<MutableDir, StepError> {
        if !directory.is_fresh() {
            return Ok(directory);
        }
        if let Some(index) = input {
            let seed = self.plan.inputs.get(index as usize).ok_or(StepError::NoInput)?;
            if let Ref::Context(context) = seed {
                self.prepared.contexts.push(Arc::clone(context));
            }
            let source = self.plan.shared.input(seed)?;
            fill(&source, selector, directory.path(), &self.plan.cancel)?;
        }
        Ok(directory.initialised()?)
    }
}

/// Copies a directory of an input into an empty one, its owner and mode included.
fn fill(source: &Input, selector: &str, into: &Path, cancel: &CancellationToken) -> Result<(), StepError> {
    let shown = Path::new(selector);
    let real = source.resolve(shown, Last::Follow).at("resolving", shown)?;
    let Some(node) = source.node(&real).at("scanning", shown)? else { return Ok(()) };
    if !node.is_dir() {
        return Ok(());
    }
    let root = RootDir::open(into)?;
    let rules =
        CopyRules { owner: None, mode: ModeChange::Keep, time: None, replace: true, keep_directories: false };
    let copier = Copier::new(source.root(), &root, source.owners(), &rules, cancel);
    copier.copy(&node, &real, Path::new("")).map_err(crate::file::action::FileError::from)?;
    let stamp = Stamp { owner: Some((node.meta.uid, node.meta.gid)), time: None };
    let open = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY;
    let directory = root.open_at(Path::new(""), open, rustix::fs::Mode::empty()).at("opening", into)?;
    Ok(stamp.apply(directory, node.meta.permissions()).at("setting metadata of", into)?)
}

/// An input as layers; scratch without one.
fn snapshot(
    plan: &Plan,
    input: Option<u32>,
    contexts: &mut Vec<Arc<Context>>,
) -> Result<Snapshot, StepError> {
    let Some(index) = input else { return Ok(Snapshot::scratch()) };
    let input = plan.inputs.get(index as usize).ok_or(StepError::NoInput)?;
    if let Ref::Context(context) = input {
        contexts.push(Arc::clone(context));
    }
    Ok(snapshot_of(&plan.shared, input, &plan.cancel)?)
}

/// The path on this machine of a path in a mounted input. It is resolved while nobody writes there yet.
fn select(base: &Path, selector: &str) -> Result<PathBuf, StepError> {
    let root = RootDir::open(base)?;
    let shown = Path::new(selector);
    let real = root.resolve(shown, Last::Follow).at("resolving", shown)?;
    match root.stat(&real).at("looking at", shown)? {
        Some(stat) if Meta::from(&stat).file_type() != FileType::Symlink => Ok(base.join(real)),
        _ => {
            let missing: Result<(), std::io::Error> = Err(std::io::ErrorKind::NotFound.into());
            missing.at("mounting", shown)?;
            Ok(base.join(real))
        }
    }
}
