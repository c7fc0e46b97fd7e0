//! Changing files without a process.
//!
//! Owns [`FileOp`] and its actions. Must not know how files are copied. Start with [`FileOp`], then
//! [`FileActionKind`].

/// Actions, one after the other; at least one has an output.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileOp {
    /// The actions in order.
    pub actions: Vec<FileAction>,
}

/// One action: takes a file system, changes it, hands it on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileAction {
    /// The file system it changes.
    pub input: FileInput,
    /// The file system it copies from; only of a copy.
    pub secondary: FileInput,
    /// The index of the output its result becomes; `None` is for later actions only.
    pub output: Option<u32>,
    /// What it does.
    pub kind: FileActionKind,
}

/// Where an action takes a file system from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum FileInput {
    /// An empty file system, or nothing at all.
    #[default]
    Scratch,
    /// The vertex's input of this index.
    Input(u32),
    /// What the earlier action of this index made.
    Action(u32),
}

/// What an action does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileActionKind {
    /// Copies files.
    Copy(CopyAction),
    /// Writes a file.
    Mkfile(MkfileAction),
    /// Makes a directory.
    Mkdir(MkdirAction),
    /// Removes files.
    Rm(RmAction),
    /// Makes a symbolic link.
    Symlink(SymlinkAction),
}

/// Copying from the secondary input.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CopyAction {
    /// The path to copy, absolute; a pattern if `allow_wildcard`.
    pub src: String,
    /// Where to, absolute; a final `/` means into the directory.
    pub dest: String,
    /// The new owner; `None` keeps it.
    pub owner: Option<Chown>,
    /// The new mode.
    pub mode: CopyMode,
    /// Whether a link named as the source is followed.
    pub follow_symlink: bool,
    /// Whether a directory's content is copied and not the directory.
    pub dir_copy_contents: bool,
    /// Whether an archive is unpacked.
    pub attempt_unpack: bool,
    /// Whether missing directories above the destination are made.
    pub create_dest_path: bool,
    /// Whether `src` is a pattern.
    pub allow_wildcard: bool,
    /// Whether a pattern may match nothing.
    pub allow_empty_wildcard: bool,
    /// Time for what is copied in nanoseconds since 1970; `None` keeps it.
    pub timestamp: Option<i64>,
    /// Only what matches one of these is copied; empty for all.
    pub include_patterns: Vec<String>,
    /// What matches one of these is not copied.
    pub exclude_patterns: Vec<String>,
    /// Whether what stands at the destination is removed first if of another kind.
    pub always_replace_existing_dest_paths: bool,
    /// Paths that must exist in the source.
    pub required_paths: Vec<String>,
}

/// The mode of what is copied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum CopyMode {
    /// As it was.
    #[default]
    Keep,
    /// These permission bits.
    Bits(u32),
    /// A symbolic mode as `chmod` takes it, such as `u=rwX,go=rX`.
    Symbolic(String),
}

/// Writing a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MkfileAction {
    /// Its path, absolute.
    pub path: String,
    /// Its permission bits.
    pub mode: u32,
    /// Its content.
    pub data: Vec<u8>,
    /// Its owner; `None` is root.
    pub owner: Option<Chown>,
    /// Its time in nanoseconds since 1970; `None` is now.
    pub timestamp: Option<i64>,
}

/// Making a directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MkdirAction {
    /// Its path, absolute.
    pub path: String,
    /// Its permission bits.
    pub mode: u32,
    /// Whether missing parents are made and an existing directory is fine.
    pub make_parents: bool,
    /// Its owner; `None` is root.
    pub owner: Option<Chown>,
    /// Its time in nanoseconds since 1970; `None` is now.
    pub timestamp: Option<i64>,
}

/// Removing files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RmAction {
    /// The path, absolute; a pattern if `allow_wildcard`.
    pub path: String,
    /// Whether it may be missing.
    pub allow_not_found: bool,
    /// Whether `path` is a pattern.
    pub allow_wildcard: bool,
}

/// Making a symbolic link.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SymlinkAction {
    /// What it points to.
    pub target: String,
    /// Its own path, absolute.
    pub path: String,
    /// Its owner; `None` is root.
    pub owner: Option<Chown>,
    /// Its time in nanoseconds since 1970; `None` is now.
    pub timestamp: Option<i64>,
}

/// A new owner.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chown {
    /// The user; `None` is root.
    pub user: Option<UserOrGroup>,
    /// The group; `None` is the user's own, or root.
    pub group: Option<UserOrGroup>,
}

/// A user or a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UserOrGroup {
    /// By name, to be looked up in the files of a file system.
    Name {
        /// The name.
        name: String,
        /// Whose `/etc/passwd` or `/etc/group`; only [`FileInput::Input`] or scratch.
        input: FileInput,
    },
    /// By number.
    Id(u32),
}
