//! The keys of file operations (BuildKit `solver/llbsolver/ops/file.go`).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use stave_llb::{Chown, CopyAction, CopyMode, FileAction, FileActionKind, FileInput, FileOp, UserOrGroup};
use stave_oci::Digest;

use super::json::{Object, go_text};
use super::{ContentPath, InputKeys, OpKeys, outermost};

pub(super) fn keys(op: &FileOp, inputs: usize) -> Option<OpKeys> {
    let mut uses = Uses { content: vec![Vec::new(); inputs], changed: vec![false; inputs] };
    let (mut actions, mut indexes) = (Vec::new(), Vec::new());
    for action in &op.actions {
        let index = |input| file_input(input, inputs);
        if let FileInput::Input(changed) = action.input {
            *uses.changed.get_mut(changed as usize)? = true;
        }
        actions.push(Value::from(STANDARD.encode(go_text(&text(action, inputs, &mut uses)?))));
        indexes.push([index(action.input), index(action.secondary), action.output.map_or(-1, i64::from)]);
    }
    let indexes = if is_default(&indexes) { Vec::new() } else { indexes };
    let whole = Object::new()
        .always("Type", "buildkit.file.v0")
        .list_always("Actions", actions)
        .list("indexes", indexes.iter().map(|index| Value::from(index.to_vec())).collect());
    let digests = vec![Digest::sha256(go_text(&whole).as_bytes())];
    Some(OpKeys { digests, inputs: uses.keys() })
}

/// The common shape, which early BuildKit did not write down: a chain over the first input that copies from
/// the second.
fn is_default(indexes: &[[i64; 3]]) -> bool {
    let count = i64::try_from(indexes.len()).unwrap_or(i64::MAX);
    !indexes.is_empty()
        && (0..).zip(indexes).all(|(at, [input, secondary, output])| {
            let expected = if at == 0 { 0 } else { count + at - 1 };
            *input == expected
                && matches!(secondary, -1 | 1)
                && *output == if at == count - 1 { 0 } else { -1 }
        })
}

struct Uses {
    content: Vec<Vec<ContentPath>>,
    changed: Vec<bool>,
}

impl Uses {
    fn add(&mut self, input: FileInput, path: ContentPath) -> Option<()> {
        if let FileInput::Input(input) = input {
            self.content.get_mut(input as usize)?.push(path);
        }
        Some(())
    }

    fn owner(&mut self, owner: Option<&Chown>) -> Option<()> {
        let Some(Chown { user, group }) = owner else { return Some(()) };
        for (who, path) in [(user, "/etc/passwd"), (group, "/etc/group")] {
            if let Some(UserOrGroup::Name { input, .. }) = who {
                let path =
                    ContentPath { path: path.to_owned(), follow_links: true, ..ContentPath::default() };
                self.add(*input, path)?;
            }
        }
        Some(())
    }

    fn keys(self) -> Vec<InputKeys> {
        let key = |(content, changed): (Vec<ContentPath>, bool)| {
            // What is changed counts by its definition: the rest of it stays in the result.
            if content.is_empty() || changed {
                return InputKeys::default();
            }
            let mut paths: Vec<&str> = content.iter().map(|path| path.path.as_str()).collect();
            paths.sort_unstable_by(|a, b| b.cmp(a));
            let selector = Some(Digest::sha256(paths.join("\0").as_bytes()));
            InputKeys { selector, content: Some(distinct(&content)) }
        };
        self.content.into_iter().zip(self.changed).map(key).collect()
    }
}

/// Plain paths without those below another, then the rest; sorted by path.
fn distinct(all: &[ContentPath]) -> Vec<ContentPath> {
    let mut kept = Vec::new();
    for follow_links in [false, true] {
        let plain = all.iter().filter(|path| !path.is_filtered() && path.follow_links == follow_links);
        let paths: Vec<String> = plain.map(|path| path.path.clone()).collect();
        kept.extend(outermost(&paths).into_iter().map(|path| ContentPath {
            path,
            follow_links,
            ..ContentPath::default()
        }));
    }
    kept.extend(all.iter().filter(|path| path.is_filtered()).cloned());
    kept.sort_by(|a, b| a.path.cmp(&b.path));
    kept
}

fn text(action: &FileAction, inputs: usize, uses: &mut Uses) -> Option<Object> {
    let owner = |owner: &Option<Chown>| owner.as_ref().map(|owner| chown(owner, inputs));
    Some(match &action.kind {
        FileActionKind::Copy(copy) => {
            uses.owner(copy.owner.as_ref())?;
            copied(copy, action.secondary, owner(&copy.owner), uses)?
        }
        FileActionKind::Mkfile(file) => {
            uses.owner(file.owner.as_ref())?;
            Object::new()
                .text("path", &file.path)
                .number("mode", file.mode.into())
                .text("data", &STANDARD.encode(&file.data))
                .object("owner", owner(&file.owner))
                .number("timestamp", file.timestamp.unwrap_or(-1))
        }
        FileActionKind::Mkdir(dir) => {
            uses.owner(dir.owner.as_ref())?;
            Object::new()
                .text("path", &dir.path)
                .number("mode", dir.mode.into())
                .flag("makeParents", dir.make_parents)
                .object("owner", owner(&dir.owner))
                .number("timestamp", dir.timestamp.unwrap_or(-1))
        }
        // The reference leaves out whose files a link's owner is looked up in.
        FileActionKind::Symlink(link) => Object::new()
            .text("oldpath", &link.target)
            .text("newpath", &link.path)
            .object("owner", owner(&link.owner))
            .number("timestamp", link.timestamp.unwrap_or(-1)),
        FileActionKind::Rm(rm) => Object::new()
            .text("path", &rm.path)
            .flag("allowNotFound", rm.allow_not_found)
            .flag("allowWildcard", rm.allow_wildcard),
    })
}

fn copied(copy: &CopyAction, from: FileInput, owner: Option<Object>, uses: &mut Uses) -> Option<Object> {
    let mut src = copy.src.clone();
    if let FileInput::Input(_) = from {
        let path = ContentPath {
            path: copy.src.clone(),
            wildcard: copy.allow_wildcard && has_wildcard(&copy.src),
            follow_links: copy.follow_symlink,
            include_patterns: copy.include_patterns.clone(),
            exclude_patterns: copy.exclude_patterns.clone(),
        };
        uses.add(from, path)?;
        // Where it was found does not matter, only what it is called.
        src = base(&copy.src).to_owned();
    }
    let (mode, mode_text) = match &copy.mode {
        CopyMode::Keep => (-1, ""),
        CopyMode::Bits(bits) => (i64::from(*bits), ""),
        CopyMode::Symbolic(text) => (0, text.as_str()),
    };
    Some(
        Object::new()
            .text("src", &src)
            .text("dest", &copy.dest)
            .object("owner", owner)
            .number("mode", mode)
            .flag("followSymlink", copy.follow_symlink)
            .flag("dirCopyContents", copy.dir_copy_contents)
            .flag("attemptUnpackDockerCompatibility", copy.attempt_unpack)
            .flag("createDestPath", copy.create_dest_path)
            .flag("allowWildcard", copy.allow_wildcard)
            .flag("allowEmptyWildcard", copy.allow_empty_wildcard)
            .number("timestamp", copy.timestamp.unwrap_or(-1))
            .texts("include_patterns", &copy.include_patterns)
            .texts("exclude_patterns", &copy.exclude_patterns)
            .flag("alwaysReplaceExistingDestPaths", copy.always_replace_existing_dest_paths)
            .text("modeStr", mode_text)
            .texts("required_paths", &copy.required_paths),
    )
}

fn chown(owner: &Chown, inputs: usize) -> Object {
    let who = |who: &Option<UserOrGroup>| {
        who.as_ref().map(|who| {
            let user = match who {
                UserOrGroup::Id(id) => Object::new().number("byId", i64::from(*id)),
                UserOrGroup::Name { name, input } => {
                    let named = Object::new().text("name", name).number("input", file_input(*input, inputs));
                    Object::new().object("byName", Some(named))
                }
            };
            Object::new().object("User", Some(user))
        })
    };
    Object::new().object("user", who(&owner.user)).object("group", who(&owner.group))
}

fn file_input(input: FileInput, inputs: usize) -> i64 {
    match input {
        FileInput::Scratch => -1,
        FileInput::Input(at) => i64::from(at),
        FileInput::Action(at) => i64::from(at) + i64::try_from(inputs).unwrap_or(i64::MAX / 2),
    }
}

fn has_wildcard(path: &str) -> bool {
    let mut letters = path.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '\\' => {
                letters.next();
            }
            '*' | '?' | '[' => return true,
            _ => {}
        }
    }
    false
}

/// Go's `path.Base`.
fn base(path: &str) -> &str {
    if path.is_empty() {
        return ".";
    }
    let trimmed = path.trim_end_matches('/');
    if trimmed.is_empty() { "/" } else { trimmed.rsplit('/').next().unwrap_or(trimmed) }
}
