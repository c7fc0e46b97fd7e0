//! File ops: LLB's actions carried out on layers.
//! Owns the chain of actions (which state is changed in place, which is committed) and what names of owners mean.
//! Must not know how single actions work: see [`action`]. Read [`execute`] first.

pub(crate) mod action;
pub(crate) mod bare;
pub(crate) mod copy;
pub(crate) mod decoder;
pub(crate) mod place;
pub(crate) mod reuse;
pub(crate) mod unpack;
pub(crate) mod wildcard;

use std::path::Path;

use rustix::fs::FileType;
use stave_llb::{
    Chown, CopyAction, CopyMode, FileAction, FileActionKind, FileInput, FileOp, MkdirAction, MkfileAction,
    SymlinkAction, UserOrGroup,
};
use stave_oci::Digest;
use stave_store::{ActiveLayer, Snapshot};
use tokio_util::sync::CancellationToken;

use self::action::{CopyRequest, FileError, Means};
use self::bare::{Bare, Way};
use self::copy::{Copier, CopyRules};
use self::place::{Stamp, Time};
use self::reuse::Reuse;
use self::wildcard::has_wildcard;
use crate::base::Look;
use crate::input::Input;
use crate::mode::ModeChange;
use crate::root::{At as _, Last, RootDir, clean};
use crate::users::UserTable;
use crate::worker::{MountError, Ref, Shared, writable};

impl From<MountError> for FileError {
    fn from(error: MountError) -> Self {
        match error {
            MountError::Store(error) => Self::Store(error),
            MountError::View(error) => Self::View(error),
        }
    }
}

/// Carries out the actions; the outputs in order of their index. Blocks.
pub(crate) fn execute(
    shared: &Shared,
    op: &FileOp,
    inputs: &[Ref],
    step: &Step<'_>,
    cancel: &CancellationToken,
) -> Result<Vec<Ref>, FileError> {
    let mut chain = Chain { shared, op, inputs, step, cancel, states: Vec::new() };
    for (index, action) in op.actions.iter().enumerate() {
        let state = chain.act(index, action)?;
        chain.states.push(state);
    }
    chain.outputs()
}

/// Which vertex is carried out.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Step<'a> {
    pub vertex: &'a Digest,
    pub name: &'a str,
}

/// What an action made.
enum State {
    /// Still being written; nobody else may see it.
    Open(Box<Layer>),
    Done(Ref),
    /// Taken over by a later action.
    Consumed,
}

/// A layer being written, and whether something it holds changed while it was read.
struct Layer {
    root: Root,
    active: ActiveLayer,
    settled: bool,
    reuse: Option<Reuse>,
}

/// Where a layer is written.
enum Root {
    /// In its own directory: so far nothing needed more.
    Bare(Bare),
    /// In a view of it and all below it.
    Whole(RootDir),
}

impl Layer {
    fn on(shared: &Shared, base: &Snapshot, settled: bool, description: &str) -> Result<Self, FileError> {
        let active = shared.prepare(base, description)?;
        // Where there is nothing below, or nothing is mounted, the view is as cheap.
        let root = match active.lowers().is_empty() || !stave_sandbox::has_namespaces() {
            true => Root::Whole(writable(&active)?),
            false => Root::Bare(Bare::of(&active)?),
        };
        Ok(Self { root, active, settled, reuse: None })
    }

    /// The layer and all below it, for looking at.
    fn look(&self) -> &dyn Look {
        match &self.root {
            Root::Bare(bare) => bare,
            Root::Whole(root) => root,
        }
    }

    /// The layer's own directory, while it is written there.
    fn bare(&self) -> Option<&Bare> {
        match &self.root {
            Root::Bare(bare) => Some(bare),
            Root::Whole(_) => None,
        }
    }

    /// Where it is written.
    fn written(&self) -> &RootDir {
        match &self.root {
            Root::Bare(bare) => bare.upper(),
            Root::Whole(root) => root,
        }
    }

    /// The layer and all below it, to be changed at will.
    fn whole(&mut self) -> Result<&RootDir, FileError> {
        if let Root::Bare(_) = &self.root {
            self.root = Root::Whole(writable(&self.active)?);
        }
        Ok(self.written())
    }

    fn commit(self, shared: &Shared) -> Result<Ref, FileError> {
        if let Root::Whole(root) = &self.root {
            root.collect(self.active.upper())?;
        }
        // The view must be gone first: a mounted layer cannot be committed.
        drop(self.root);
        let snapshot = self.active.commit()?;
        if let Some(reuse) = self.reuse.filter(|_| self.settled) {
            reuse.keep(&shared.store, &snapshot);
        }
        Ok(if self.settled { Ref::Snapshot(snapshot) } else { Ref::Unsettled(snapshot) })
    }
}

struct Chain<'a> {
    shared: &'a Shared,
    op: &'a FileOp,
    inputs: &'a [Ref],
    step: &'a Step<'a>,
    cancel: &'a CancellationToken,
    states: Vec<State>,
}

impl Chain<'_> {
    /// Whether a source has no files because it has no layers.
    fn is_nothing(&self, source: FileInput) -> bool {
        match source {
            FileInput::Scratch => true,
            FileInput::Input(index) => {
                let snapshot = self.inputs.get(index as usize).and_then(Ref::snapshot);
                snapshot.is_some_and(Snapshot::is_scratch)
            }
            FileInput::Action(_) => false,
        }
    }

    fn act(&mut self, index: usize, action: &FileAction) -> Result<State, FileError> {
        let mut layer = self.base(index, action)?;
        match &action.kind {
            FileActionKind::Copy(copy) => self.copy(index, action, copy, &mut layer)?,
            FileActionKind::Mkdir(MkdirAction { path, mode, make_parents, owner, timestamp }) => {
                let stamp = stamp(layer.look(), owner.as_ref(), *timestamp);
                match layer.bare().map(|bare| bare.mkdir(path, *make_parents)).transpose()?.flatten() {
                    Some(Way::Nothing) => {}
                    Some(Way::At(path)) => {
                        action::mkdir(layer.written(), &path, *mode, *make_parents, &stamp)?;
                    }
                    None => action::mkdir(layer.whole()?, path, *mode, *make_parents, &stamp)?,
                }
            }
            FileActionKind::Mkfile(MkfileAction { path, mode, data, owner, timestamp }) => {
                let stamp = stamp(layer.look(), owner.as_ref(), *timestamp);
                layer.active.room().take(data.len() as u64)?;
                match layer.bare().map(|bare| bare.mkfile(path)).transpose()?.flatten() {
                    Some(Way::At(path)) => action::mkfile(layer.written(), &path, *mode, data, &stamp)?,
                    _ => action::mkfile(layer.whole()?, path, *mode, data, &stamp)?,
                }
            }
            FileActionKind::Symlink(SymlinkAction { target, path, owner, timestamp }) => {
                let stamp = stamp(layer.look(), owner.as_ref(), *timestamp);
                action::symlink(layer.whole()?, target, path, &stamp)?;
            }
            FileActionKind::Rm(remove) => {
                action::remove(layer.whole()?, &remove.path, remove.allow_wildcard, remove.allow_not_found)?;
            }
        }
        Ok(State::Open(Box::new(layer)))
    }

    fn copy(
        &mut self,
        index: usize,
        action: &FileAction,
        copy: &CopyAction,
        layer: &mut Layer,
    ) -> Result<(), FileError> {
        let request = request(layer.look(), copy)?;
        let (source, request, is_lone) = self.source(action.secondary, request)?;
        let bare = layer.bare().filter(|_| is_lone).map(|bare| bare.copy(&request)).transpose()?.flatten();
        if bare.is_none() {
            layer.whole()?;
        }
        let is_local = matches!(source, Input::Context(_));
        if layer.reuse.is_none() && is_local && self.only_copies() && stave_sandbox::has_namespaces() {
            layer.reuse = Reuse::open(&self.shared.store, self.step.vertex, index, &layer.active);
        }
        let reuse = layer.reuse.as_ref().filter(|_| is_local);
        let means = Means { reuse, room: Some(layer.active.room()), cancel: self.cancel };
        let copied = action::copy(layer.written(), &source, bare.as_ref().unwrap_or(&request), means);
        let is_own = action.secondary == action.input || self.is_nothing(action.secondary);
        let copied = copied.map_err(|error| match error {
            FileError::NotFound(path) if is_own => FileError::Missing(path),
            error => error,
        });
        if copied? {
            layer.settled = false;
        }
        Ok(())
    }

    /// Whether nothing else touches what a copy made: other actions do not say what they replace.
    fn only_copies(&self) -> bool {
        self.op.actions.iter().all(|action| matches!(action.kind, FileActionKind::Copy(_)))
    }

    /// The layer an action writes: the one before, if nobody else needs it as it is now.
    fn base(&mut self, index: usize, action: &FileAction) -> Result<Layer, FileError> {
        if let FileInput::Action(earlier) = action.input {
            let earlier = earlier as usize;
            let exclusive = self.op.actions.get(earlier).is_some_and(|action| action.output.is_none())
                && self.uses(earlier, index) == 1;
            if exclusive && matches!(self.states.get(earlier), Some(State::Open(_))) {
                let taken = std::mem::replace(&mut self.states[earlier], State::Consumed);
                if let State::Open(layer) = taken {
                    return Ok(*layer);
                }
            }
        }
        let base = self.finished(action.input)?;
        let settled = !matches!(base, Some(Ref::Unsettled(_)));
        let snapshot = match &base {
            None => Snapshot::scratch(),
            Some(base) => snapshot_of(self.shared, base, self.cancel)?,
        };
        Layer::on(self.shared, &snapshot, settled, self.step.name)
    }

    /// How often the result of an action is used by this and later actions.
    fn uses(&self, earlier: usize, from: usize) -> usize {
        let wanted =
            |input: &FileInput| matches!(input, FileInput::Action(index) if *index as usize == earlier);
        let later = self.op.actions.iter().skip(from);
        later.flat_map(|action| [&action.input, &action.secondary]).filter(|input| wanted(input)).count()
    }

    /// What a copy reads from, the copy as it is there, and whether it is of a single file or symlink.
    fn source(
        &mut self,
        input: FileInput,
        request: CopyRequest,
    ) -> Result<(Input, CopyRequest, bool), FileError> {
        let Some(result) = self.finished(input)? else {
            return Ok((Input::View(self.shared.view(&Snapshot::scratch())?), request, false));
        };
        let is_literal = !has_wildcard(&request.source) && !request.source.contains('\\');
        let is_plain = is_literal && !request.attempt_unpack && request.takes_all();
        let last = if request.follow_symlinks { Last::Follow } else { Last::Keep };
        if let Some(snapshot) = result.snapshot().filter(|_| is_plain)
            && let Some((source, path)) = self.shared.lone(snapshot, &request.source, last)?
        {
            return Ok((source, CopyRequest { source: path, ..request }, true));
        }
        let source = self.shared.input(&result)?;
        let is_lone = is_plain && matches!(source, Input::Context(_)) && {
            let shown = clean(Path::new(&request.source));
            let real = source.resolve(&shown, last).at("resolving", &shown)?;
            let kind = source.file_type(&real).at("looking at", &shown)?;
            matches!(kind, Some(FileType::RegularFile | FileType::Symlink))
        };
        Ok((source, request, is_lone))
    }

    /// A state that others may see; `None` is scratch.
    fn finished(&mut self, input: FileInput) -> Result<Option<Ref>, FileError> {
        match input {
            FileInput::Scratch => Ok(None),
            FileInput::Input(index) => {
                let result = self.inputs.get(index as usize).ok_or(FileError::Reference("an input"))?;
                Ok(Some(result.clone()))
            }
            FileInput::Action(index) => {
                let state =
                    self.states.get_mut(index as usize).ok_or(FileError::Reference("an earlier action"))?;
                Ok(Some(finish(self.shared, state)?))
            }
        }
    }

    fn outputs(mut self) -> Result<Vec<Ref>, FileError> {
        let mut outputs: Vec<(u32, usize)> = Vec::new();
        for (index, action) in self.op.actions.iter().enumerate() {
            outputs.extend(action.output.map(|output| (output, index)));
        }
        outputs.sort_unstable();
        let mut results = Vec::with_capacity(outputs.len());
        for (position, (output, index)) in outputs.into_iter().enumerate() {
            if output as usize != position {
                return Err(FileError::Reference("an output"));
            }
            results.push(finish(self.shared, &mut self.states[index])?);
        }
        Ok(results)
    }
}

/// Commits a state that is still open.
fn finish(shared: &Shared, state: &mut State) -> Result<Ref, FileError> {
    match std::mem::replace(state, State::Consumed) {
        State::Open(layer) => {
            let result = layer.commit(shared)?;
            *state = State::Done(result.clone());
            Ok(result)
        }
        State::Done(result) => {
            *state = State::Done(result.clone());
            Ok(result)
        }
        State::Consumed => Err(FileError::Reference("an earlier action")),
    }
}

/// A result as layers: a local context is copied into one, once.
pub(crate) fn snapshot_of(
    shared: &Shared,
    result: &Ref,
    cancel: &CancellationToken,
) -> Result<Snapshot, FileError> {
    let context = match result {
        Ref::Snapshot(snapshot) | Ref::Unsettled(snapshot) => return Ok(snapshot.clone()),
        Ref::Context(context) => context,
    };
    if let Some(snapshot) = context.materialised().get() {
        return Ok(snapshot.clone());
    }
    let layer = Layer::on(shared, &Snapshot::scratch(), true, "local context")?;
    let rules = CopyRules {
        owner: None,
        mode: ModeChange::Keep,
        time: None,
        replace: false,
        keep_directories: false,
    };
    let input = Input::Context(std::sync::Arc::clone(context));
    let copier = Copier::new(context.root(), layer.written(), input.owners(), &rules, cancel);
    let copier = copier.of_context(input.has_context_times()).with_room(Some(layer.active.room()));
    copier.copy(context.tree(), Path::new(""), Path::new(""))?;
    if copier.source_changed() {
        context.mark_changed();
    }
    let made = layer.commit(shared)?;
    let snapshot = made.snapshot().cloned().unwrap_or_default();
    Ok(context.materialised().get_or_init(|| snapshot).clone())
}

fn request(root: &dyn Look, copy: &CopyAction) -> Result<CopyRequest, FileError> {
    let mode = match &copy.mode {
        CopyMode::Keep => ModeChange::Keep,
        CopyMode::Bits(bits) => ModeChange::Set(bits & 0o7777),
        CopyMode::Symbolic(text) => ModeChange::parse(text)?,
    };
    let rules = CopyRules {
        owner: owner(root, copy.owner.as_ref()),
        mode,
        time: copy.timestamp.map(time),
        replace: copy.always_replace_existing_dest_paths,
        keep_directories: !copy.include_patterns.is_empty(),
    };
    Ok(CopyRequest {
        source: copy.src.clone(),
        destination: copy.dest.clone(),
        follow_symlinks: copy.follow_symlink,
        directory_contents: copy.dir_copy_contents,
        attempt_unpack: copy.attempt_unpack,
        create_destination: copy.create_dest_path,
        wildcard: copy.allow_wildcard,
        allow_empty_wildcard: copy.allow_empty_wildcard,
        include: copy.include_patterns.clone(),
        exclude: copy.exclude_patterns.clone(),
        required: copy.required_paths.clone(),
        rules,
    })
}

fn stamp(root: &dyn Look, chown: Option<&Chown>, timestamp: Option<i64>) -> Stamp {
    Stamp { owner: owner(root, chown), time: timestamp.map(time) }
}

/// Numbers for an owner. Names are those of the file system being changed; a user brings its own group, also in
/// place of a group that is not known.
fn owner(root: &dyn Look, chown: Option<&Chown>) -> Option<(u32, u32)> {
    let chown = chown?;
    let named = [&chown.user, &chown.group].iter().any(|part| matches!(part, Some(UserOrGroup::Name { .. })));
    let table = if named { UserTable::read(root) } else { UserTable::default() };
    let (uid, own_gid) = match &chown.user {
        None => (0, 0),
        Some(UserOrGroup::Id(uid)) => (*uid, *uid),
        Some(UserOrGroup::Name { name, .. }) => table.owner(name),
    };
    let gid = match &chown.group {
        None => own_gid,
        Some(UserOrGroup::Id(gid)) => *gid,
        Some(UserOrGroup::Name { name, .. }) => table.gid(name).unwrap_or(own_gid),
    };
    Some((uid, gid))
}

fn time(nanoseconds: i64) -> Time {
    let rest = u32::try_from(nanoseconds.rem_euclid(1_000_000_000)).unwrap_or(0);
    (nanoseconds.div_euclid(1_000_000_000), rest)
}
