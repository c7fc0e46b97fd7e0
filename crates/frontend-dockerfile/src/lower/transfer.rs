//! `COPY` and `ADD`.
//!
//! Owns what each source becomes: files of the context or a stage, heredocs, downloads, repositories.
//! Start with [`Lowering::copy`] and [`Lowering::add`].

use std::collections::BTreeMap;

use stave_llb::{
    Chown, CopyAction, CopyMode, FileActionKind, MkfileAction, ProgressGroup, SourceOp, UserOrGroup,
    builder::{About, FileSpec, FileStep, Output},
};
use stave_oci::{Digest, DigestError};

use super::{Lowering, chmod, error, history::commit, own::optional, stage::StageState};
use crate::{
    ast::{Add, Copy, Transfer, Word},
    diagnostic::Diagnostic,
    expand::Expander,
    git::{self, GitRef},
    path::{self, windows::WindowsPathError},
    plan::PlannedInstruction,
    url::{file_name, is_url},
};

/// A transfer with its words expanded.
struct Expanded<'a> {
    planned: &'a PlannedInstruction,
    transfer: &'a Transfer,
    keyword: &'static str,
    sources: Vec<String>,
    /// The same as the history shows them.
    shown_sources: Vec<String>,
    destination: String,
    /// Whether the paths are those of an image for Windows.
    is_windows: bool,
    chown: String,
    chmod: String,
    /// The content of each heredoc.
    contents: Vec<String>,
    parents: bool,
    /// Only of `ADD`.
    add: Option<&'a Add>,
    checksum: String,
    keep_git_dir: Option<bool>,
    /// Where local sources are; `None` is an empty file system.
    from: Option<Output>,
    /// The name of the step.
    name: String,
    mode: CopyMode,
}

impl Lowering<'_> {
    pub(super) fn copy(
        &mut self,
        state: &mut StageState,
        planned: &PlannedInstruction,
        copy: &Copy,
    ) -> Result<(), Diagnostic> {
        let mut expanded = self.expanded(state, planned, &copy.transfer)?;
        expanded.parents = copy.parents;
        if copy.if_exists {
            expanded.sources = expanded.sources.iter().map(|source| optional(source)).collect();
        }
        let stage = planned.sources.first().copied().flatten();
        match (stage, &copy.from) {
            (Some(stage), from) => {
                let span = from.as_ref().map_or(planned.instruction.span, |from| from.span);
                let source = self.source_stage(stage, span)?;
                let root = source.root;
                expanded.from = source.output;
                for source in &expanded.sources {
                    self.locals.uses(root, source);
                }
            }
            (None, _) => {
                for source in &expanded.sources {
                    self.context.uses(source);
                }
            }
        }
        self.transfer(state, expanded)
    }

    pub(super) fn add(
        &mut self,
        state: &mut StageState,
        planned: &PlannedInstruction,
        add: &Add,
    ) -> Result<(), Diagnostic> {
        let mut expanded = self.expanded(state, planned, &add.transfer)?;
        expanded.keyword = "ADD";
        expanded.add = Some(add);
        expanded.keep_git_dir = add.keep_git_dir;
        if let Some(checksum) = &add.checksum {
            expanded.checksum = state.expand(self.escape(), checksum)?;
        }
        // Repositories count as used paths too; that is how the reference narrows the context.
        for source in expanded.sources.iter().filter(|source| !is_url(source)) {
            self.context.uses(source);
        }
        self.transfer(state, expanded)
    }

    fn expanded<'a>(
        &self,
        state: &StageState,
        planned: &'a PlannedInstruction,
        transfer: &'a Transfer,
    ) -> Result<Expanded<'a>, Diagnostic> {
        let expand = |word: &Word| state.expand(self.escape(), word);
        let optional = |word: &Option<Word>| word.as_ref().map_or_else(|| Ok(String::new()), expand);
        let (chown, chmod) = (optional(&transfer.chown)?, optional(&transfer.chmod)?);
        let sources = transfer.sources.iter().map(expand).collect::<Result<Vec<_>, _>>()?;
        let destination = expand(&transfer.destination)?;
        let contents = transfer.inline.iter().map(|file| match file.expand {
            true => Expander::content()
                .text(&file.content, &state.env)
                .map_err(|cause| error(file.span, cause.to_string())),
            false => Ok(file.content.clone()),
        });
        let contents = contents.collect::<Result<Vec<_>, _>>()?;
        let mode = match chmod.is_empty() {
            true => CopyMode::Keep,
            false => chmod::parse(&chmod).map_err(|cause| {
                let span = transfer.chmod.as_ref().map_or(planned.instruction.span, |word| word.span);
                error(span, cause.to_string())
                    .with_help("a mode is octal, such as `0755`, or symbolic, such as `u+x,g-w`")
            })?,
        };
        Ok(Expanded {
            planned,
            transfer,
            keyword: "COPY",
            shown_sources: sources.clone(),
            sources,
            destination: match state.is_windows() {
                true => path::windows::destination(state.directory(), &destination)
                    .map_err(|cause| error(transfer.destination.span, without_drive(&cause)))?,
                false => path::destination(state.directory(), &destination),
            },
            is_windows: state.is_windows(),
            chown,
            chmod,
            contents,
            parents: false,
            add: None,
            checksum: String::new(),
            keep_git_dir: None,
            from: self.context.output,
            name: String::new(),
            mode,
        })
    }

    fn transfer(&mut self, state: &mut StageState, mut of: Expanded<'_>) -> Result<(), Diagnostic> {
        let plan = self.plan;
        let instruction = &of.planned.instruction;
        check_checksum(&of)?;
        let shown = state.shown(Expander::new(self.escape()), &instruction.code, &state.env);
        of.name = state.step_name(plan, &shown);
        let mut steps = Vec::new();
        for at in 0..of.sources.len() {
            let span = of.transfer.sources.get(at).map_or(instruction.span, |word| word.span);
            let source = of.sources[at].clone();
            let step = self.source_step(&mut of, &source, state).map_err(|message| error(span, message))?;
            steps.push(step);
        }
        for at in 0..of.contents.len() {
            let span = of.transfer.inline[at].span;
            let step = self.inline_step(&of, at).map_err(|cause| error(span, without_drive(&cause)))?;
            steps.push(step);
        }
        let mut about = About::named(&of.name);
        about.locations.push(self.location(instruction));
        about.metadata.ignore_cache = plan.stages[state.index.0].ignore_cache;
        state.output = if of.transfer.link && of.chmod.is_empty() {
            self.linked(state, &shown, steps, about)
        } else {
            Some(self.graph.file(FileSpec { base: state.output, actions: steps, about }))
        };
        let message = self.message(state, &of)?;
        commit(&mut state.image, message, true, plan.epoch);
        Ok(())
    }

    /// `--link`: the files on their own, then laid over what was there.
    fn linked(
        &mut self,
        state: &StageState,
        shown: &str,
        actions: Vec<FileStep>,
        about: About,
    ) -> Option<Output> {
        let id = format!("{}-{}", state.index.0, state.step);
        let group = |weak| Some(ProgressGroup { id: id.clone(), name: about.name.clone(), weak });
        let mut files = about.clone();
        files.metadata.progress_group = group(true);
        let files = self.graph.file(FileSpec { base: None, actions, about: files });
        let mut merge = about.clone();
        merge.name = state.same_step_name(self.plan, &format!("LINK {shown}"));
        merge.metadata.progress_group = group(false);
        self.graph.merge([state.output, Some(files)], merge)
    }

    fn message(&self, state: &StageState, of: &Expanded<'_>) -> Result<String, Diagnostic> {
        let mut message = of.keyword.to_owned();
        if of.parents {
            message.push_str(" --parents");
        }
        for (flag, value) in [(" --chown=", &of.chown), (" --chmod=", &of.chmod)] {
            if !value.is_empty() {
                message.extend([flag, value]);
            }
        }
        for source in &of.shown_sources {
            message.extend([" ", source]);
        }
        for file in &of.transfer.inline {
            message.extend([" <<", &file.name]);
        }
        message.extend([" ", &state.expand(self.escape(), &of.transfer.destination)?, " # buildkit"]);
        Ok(message)
    }

    fn source_step(
        &mut self,
        of: &mut Expanded<'_>,
        source: &str,
        state: &StageState,
    ) -> Result<FileStep, String> {
        match git::parse(source).map_err(|cause| cause.to_string())? {
            Some(_) if of.add.is_none() => Err("source can't be a git ref for COPY".to_owned()),
            Some(git) => self.git_step(of, &git, state),
            None if is_url(source) && of.add.is_none() => Err("source can't be a URL for COPY".to_owned()),
            None if is_url(source) => self.http_step(of, source, state),
            None => {
                // Both the path and whoever asks for it say so in the reference.
                let copy = local(of, source)
                    .map_err(|cause| format!("removing drive letter: {}", without_drive(&cause)))?;
                Ok(FileStep { kind: FileActionKind::Copy(copy), source: of.from })
            }
        }
    }

    fn git_step(
        &mut self,
        of: &mut Expanded<'_>,
        git: &GitRef,
        state: &StageState,
    ) -> Result<FileStep, String> {
        let op = git.source(of.keep_git_dir, &of.checksum).map_err(|cause| cause.to_string())?;
        // What one address says counts for the sources behind it; so it does in the reference.
        of.keep_git_dir = git.keeps_git_dir().or(of.keep_git_dir);
        if !git.checksum().is_empty() {
            of.checksum = git.checksum().to_owned();
        }
        let source = self.source(op, &state.platform, About::named(&of.name));
        Ok(FileStep { kind: FileActionKind::Copy(whole(of, "/")), source: Some(source) })
    }

    fn http_step(&mut self, of: &Expanded<'_>, url: &str, state: &StageState) -> Result<FileStep, String> {
        let name = file_name(url);
        let mut attrs = BTreeMap::from([("http.filename".to_owned(), name.clone())]);
        if !of.checksum.is_empty() {
            let checksum: Digest = of.checksum.parse().map_err(|cause| complaint(&cause).to_owned())?;
            attrs.insert("http.checksum".to_owned(), checksum.to_string());
        }
        let about = About::named(&of.name).described("com.docker.dockerfile.v1.command", "");
        let source = self.source(SourceOp::new(url, attrs), &state.platform, about);
        let mut copy = whole(of, &path::join("/", &name));
        copy.attempt_unpack = of.add.and_then(|add| add.unpack).unwrap_or(false);
        Ok(FileStep { kind: FileActionKind::Copy(copy), source: Some(source) })
    }

    fn inline_step(&mut self, of: &Expanded<'_>, at: usize) -> Result<FileStep, WindowsPathError> {
        let name = &of.transfer.inline[at].name;
        let path = match of.is_windows {
            true => path::join("/", &path::windows::without_drive(name, false)?),
            false => path::join("/", name),
        };
        let file = MkfileAction {
            path: path.clone(),
            mode: 0o644,
            data: of.contents[at].clone().into_bytes(),
            owner: None,
            timestamp: None,
        };
        let source = self.graph.file(FileSpec {
            base: None,
            actions: vec![FileStep { kind: FileActionKind::Mkfile(file), source: None }],
            about: About::named("[internal] preparing inline document"),
        });
        Ok(FileStep { kind: FileActionKind::Copy(whole(of, &path)), source: Some(source) })
    }
}

/// What all kinds of sources have in common.
fn whole(of: &Expanded<'_>, src: &str) -> CopyAction {
    CopyAction {
        src: src.to_owned(),
        dest: of.destination.clone(),
        owner: (!of.chown.is_empty()).then(|| chown(&of.chown)),
        mode: of.mode.clone(),
        create_dest_path: true,
        exclude_patterns: of.transfer.excludes.iter().map(|word| word.text.clone()).collect(),
        ..CopyAction::default()
    }
}

/// Files of the context or of a stage.
fn local(of: &Expanded<'_>, source: &str) -> Result<CopyAction, WindowsPathError> {
    let absolute = |path: &str| match of.is_windows {
        true => path::windows::normalize("/", path, false),
        false => Ok(path::absolute("/", path)),
    };
    let (root, pattern) = match of.parents {
        // What stands before `/./` is not made again at the destination.
        true => source.split_once("/./").map_or(("/", Some(source)), |(root, rest)| (root, Some(rest))),
        false => (source, None),
    };
    let mut copy = whole(of, &path::clean(&absolute(root)?));
    if let Some(pattern) = pattern {
        let pattern = absolute(pattern)?;
        if !is_pattern(root) && !is_pattern(&pattern) {
            copy.required_paths = vec![absolute(&path::join(root, &pattern))?];
        }
        copy.include_patterns = vec![pattern.strip_prefix('/').unwrap_or(&pattern).to_owned()];
    }
    copy.follow_symlink = true;
    copy.dir_copy_contents = true;
    copy.attempt_unpack = of.add.is_some_and(|add| add.unpack.unwrap_or(true));
    copy.allow_wildcard = true;
    copy.allow_empty_wildcard = true;
    Ok(copy)
}

fn without_drive(cause: &WindowsPathError) -> String {
    format!("removing drive letter: {cause}")
}

/// An owner as `--chown` and `USER` write it.
pub(super) fn chown(text: &str) -> Chown {
    let one = |part: &str| {
        if part.is_empty() || part == "root" {
            return UserOrGroup::Id(0);
        }
        match part.parse::<i32>() {
            Ok(number) => UserOrGroup::Id(number.cast_unsigned()),
            Err(_) => UserOrGroup::Name { name: part.to_owned(), input: stave_llb::FileInput::Scratch },
        }
    };
    match text.split_once(':') {
        Some((user, group)) => Chown { user: Some(one(user)), group: Some(one(group)) },
        None => Chown { user: Some(one(text)), group: None },
    }
}

fn check_checksum(of: &Expanded<'_>) -> Result<(), Diagnostic> {
    if of.checksum.is_empty() {
        return Ok(());
    }
    let complaint = match of.sources.as_slice() {
        [source] if is_url(source) || matches!(git::parse_context(source), Ok(Some(_))) => return Ok(()),
        [_] => "checksum requires HTTP(S) or Git sources",
        _ => "checksum can't be specified for multiple sources",
    };
    Err(error(of.planned.instruction.span, complaint))
}

/// What the reference says about a checksum that is none.
fn complaint(cause: &DigestError) -> &'static str {
    match cause {
        DigestError::Form(_) => "invalid checksum digest format",
        DigestError::Algorithm(_) => "unsupported digest algorithm",
        DigestError::Hex(text, digits) => match text.split_once(':') {
            Some((_, hex)) if hex.len() == *digits => "invalid checksum digest format",
            _ => "invalid checksum digest length",
        },
    }
}

/// Whether a path holds wildcards.
pub(super) fn is_pattern(path: &str) -> bool {
    let mut letters = path.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '*' | '?' | '[' => return true,
            '\\' => drop(letters.next()),
            _ => {}
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners() {
        let name =
            |name: &str| Some(UserOrGroup::Name { name: name.into(), input: stave_llb::FileInput::Scratch });
        assert_eq!(chown("node:node"), Chown { user: name("node"), group: name("node") });
        assert_eq!(
            chown("root:5"),
            Chown { user: Some(UserOrGroup::Id(0)), group: Some(UserOrGroup::Id(5)) }
        );
        assert_eq!(chown("me"), Chown { user: name("me"), group: None });
    }

    #[test]
    fn wildcards() {
        assert!(is_pattern("a*") && is_pattern("[a]") && is_pattern("a?"));
        assert!(!is_pattern("a\\*") && !is_pattern("a"));
    }
}
