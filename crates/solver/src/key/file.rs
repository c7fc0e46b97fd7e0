//! The rules for changing files.

use stave_cache::{KeyBuilder, KeyPart};
use stave_llb::{
    Chown, CopyAction, CopyMode, FileAction, FileActionKind, FileInput, FileOp, MkdirAction, MkfileAction,
    RmAction, SymlinkAction, UserOrGroup,
};

use super::InputUse;
use crate::worker::{InputKey, SelectorPath};

pub(super) fn op_part(op: &FileOp) -> KeyPart {
    let FileOp { actions } = op;
    let actions: Vec<KeyPart> = actions.iter().map(action_part).collect();
    KeyBuilder::new("op.file").parts("actions", &actions).finish()
}

fn action_part(action: &FileAction) -> KeyPart {
    let FileAction { input, secondary, output, kind } = action;
    let mut builder = KeyBuilder::new("file-action");
    input_field(&mut builder, "input", *input);
    input_field(&mut builder, "secondary", *secondary);
    builder.optional_number("output", output.map(u64::from));
    match kind {
        FileActionKind::Copy(copy) => copy_fields(&mut builder, copy),
        FileActionKind::Mkfile(MkfileAction { path, mode, data, owner, timestamp }) => {
            builder.text("mkfile", path).number("mode", (*mode).into()).bytes("data", data);
            owner_field(&mut builder, owner.as_ref());
            time_field(&mut builder, *timestamp);
        }
        FileActionKind::Mkdir(MkdirAction { path, mode, make_parents, owner, timestamp }) => {
            builder.text("mkdir", path).number("mode", (*mode).into()).flag("make-parents", *make_parents);
            owner_field(&mut builder, owner.as_ref());
            time_field(&mut builder, *timestamp);
        }
        FileActionKind::Rm(RmAction { path, allow_not_found, allow_wildcard }) => {
            builder
                .text("rm", path)
                .flag("allow-not-found", *allow_not_found)
                .flag("wildcard", *allow_wildcard);
        }
        FileActionKind::Symlink(SymlinkAction { target, path, owner, timestamp }) => {
            builder.text("symlink", path).text("target", target);
            owner_field(&mut builder, owner.as_ref());
            time_field(&mut builder, *timestamp);
        }
    }
    builder.finish()
}

fn copy_fields(builder: &mut KeyBuilder, copy: &CopyAction) {
    let CopyAction {
        src,
        dest,
        owner,
        mode,
        follow_symlink,
        dir_copy_contents,
        attempt_unpack,
        create_dest_path,
        allow_wildcard,
        allow_empty_wildcard,
        timestamp,
        include_patterns,
        exclude_patterns,
        always_replace_existing_dest_paths,
        required_paths,
    } = copy;
    builder.text("copy", src).text("dest", dest);
    owner_field(builder, owner.as_ref());
    match mode {
        CopyMode::Keep => builder.absent("mode"),
        CopyMode::Bits(bits) => builder.number("mode", (*bits).into()),
        CopyMode::Symbolic(mode) => builder.text("mode", mode),
    };
    builder
        .flag("follow-symlink", *follow_symlink)
        .flag("dir-copy-contents", *dir_copy_contents)
        .flag("attempt-unpack", *attempt_unpack)
        .flag("create-dest-path", *create_dest_path)
        .flag("wildcard", *allow_wildcard)
        .flag("allow-empty-wildcard", *allow_empty_wildcard)
        .texts("include", include_patterns)
        .texts("exclude", exclude_patterns)
        .flag("always-replace", *always_replace_existing_dest_paths)
        .texts("required", required_paths);
    time_field(builder, *timestamp);
}

fn input_field(builder: &mut KeyBuilder, label: &'static str, input: FileInput) {
    let (kind, index) = match input {
        FileInput::Scratch => ("scratch", None),
        FileInput::Input(index) => ("input", Some(index)),
        FileInput::Action(index) => ("action", Some(index)),
    };
    builder.text(label, kind).optional_number("index", index.map(u64::from));
}

fn owner_field(builder: &mut KeyBuilder, owner: Option<&Chown>) {
    let Some(Chown { user, group }) = owner else {
        builder.absent("owner");
        return;
    };
    for (label, who) in [("user", user), ("group", group)] {
        match who {
            None => {
                builder.absent(label);
            }
            Some(UserOrGroup::Id(id)) => {
                builder.number(label, (*id).into());
            }
            Some(UserOrGroup::Name { name, input }) => {
                builder.text(label, name);
                input_field(builder, "looked-up-in", *input);
            }
        }
    }
}

fn time_field(builder: &mut KeyBuilder, timestamp: Option<i64>) {
    match timestamp {
        Some(nanoseconds) => builder.signed("timestamp", nanoseconds),
        None => builder.absent("timestamp"),
    };
}

/// Inputs that are changed count by identity, for what is not changed stays in the result; those that
/// are only copied from, or in which a user is looked up, count by the content used.
pub(super) fn input_keys(op: &FileOp, count: usize) -> Vec<InputKey> {
    let mut uses = vec![InputUse::default(); count];
    for action in &op.actions {
        if let Some(changed) = used(&mut uses, action.input) {
            changed.by_identity = true;
        }
        let owner = match &action.kind {
            FileActionKind::Copy(copy) => {
                if let Some(source) = used(&mut uses, action.secondary) {
                    source.add(SelectorPath {
                        path: copy.src.clone(),
                        wildcard: copy.allow_wildcard,
                        follow_links: copy.follow_symlink,
                        include_patterns: copy.include_patterns.clone(),
                        exclude_patterns: copy.exclude_patterns.clone(),
                    });
                }
                &copy.owner
            }
            FileActionKind::Mkfile(mkfile) => &mkfile.owner,
            FileActionKind::Mkdir(mkdir) => &mkdir.owner,
            FileActionKind::Symlink(symlink) => &symlink.owner,
            FileActionKind::Rm(_) => &None,
        };
        let Some(Chown { user, group }) = owner else { continue };
        for (who, path) in [(user, "/etc/passwd"), (group, "/etc/group")] {
            if let Some(UserOrGroup::Name { input, .. }) = who
                && let Some(looked_up_in) = used(&mut uses, *input)
            {
                looked_up_in.add(SelectorPath {
                    path: path.to_owned(),
                    wildcard: false,
                    follow_links: true,
                    include_patterns: Vec::new(),
                    exclude_patterns: Vec::new(),
                });
            }
        }
    }
    uses.into_iter().map(InputUse::into_key).collect()
}

fn used(uses: &mut [InputUse], input: FileInput) -> Option<&mut InputUse> {
    match input {
        FileInput::Input(index) => uses.get_mut(index as usize),
        FileInput::Scratch | FileInput::Action(_) => None,
    }
}
