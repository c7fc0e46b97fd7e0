//! One difference between two builds of a step, and how it is said. Pure. Start with [`Change`].

use std::fmt;

use serde::{Deserialize, Serialize};
use stave_worker::manifest::FileChange;

/// Paths named one by one; of more only the number is said.
pub(super) const MAX_NAMED: usize = 3;
/// The field of a key that changes when results of earlier programs are not believed any more.
const RESULT_VERSION: &str = "result-version";
/// What stands for a value that nobody else should read.
pub(super) const HIDDEN: &str = "***";
/// Characters of a quoted value.
const MAX_VALUE: usize = 60;
/// Characters shown before the first one that differs, where a long value is not shown from its beginning.
const BEFORE_DIFFERENCE: usize = 16;

/// Something that takes part in a step's key and is not what it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "kebab-case")]
pub enum Change {
    /// Files that it reads.
    Files {
        /// How they changed.
        summary: FileSummary,
        /// Which: the first few.
        paths: Vec<String>,
        /// How many.
        count: usize,
    },
    /// What it reads, but not which files: the earlier ones are not known any more.
    Content,
    /// The instruction itself.
    Instruction {
        /// As it was.
        before: String,
        /// As it is.
        after: String,
    },
    /// A build argument or environment variable.
    Variable {
        /// Its name.
        name: String,
        /// Its value; `None` when it was not set.
        before: Option<String>,
        /// Its value; `None` when it is not set any more.
        after: Option<String>,
    },
    /// The base image.
    Base {
        /// As it was.
        before: String,
        /// As it is.
        after: String,
    },
    /// The step it stands on made another result.
    Input {
        /// That step.
        step: String,
    },
    /// A secret whose value counts (`cache=keyed`).
    Secrets,
    /// Another field of the key, by its path.
    Field {
        /// Labels from the outside in.
        path: String,
        /// Its value before.
        before: Option<String>,
        /// Its value now.
        after: Option<String>,
    },
}

/// How a group of files changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FileSummary {
    /// Content, or kind.
    Changed,
    /// New.
    Added,
    /// Gone.
    Removed,
    /// Permission bits alone: before and after.
    Mode(u32, u32),
    /// Owner alone.
    Owner,
}

impl Change {
    /// Whether git's model of modes would not see it.
    pub(super) fn is_git_mode(&self) -> bool {
        match self {
            Self::Files { summary: FileSummary::Mode(before, after), .. } => {
                (before & 0o100 == after & 0o100) && (before | after) & 0o7000 == 0
            }
            _ => false,
        }
    }

    /// The same without what `hidden` replaces in texts. What has or had such a value had another one of its kind before or
    /// since, which nobody knows any more: neither is told.
    pub(super) fn without(self, hidden: &dyn Fn(&str) -> Option<String>) -> Self {
        let plain = |text: String| hidden(&text).unwrap_or(text);
        let both = |before: Option<String>, after: Option<String>| {
            let is_hidden = before.iter().chain(&after).any(|value| hidden(value).is_some());
            let told = |value: String| if is_hidden { HIDDEN.to_owned() } else { value };
            (before.map(told), after.map(told))
        };
        match self {
            Self::Variable { name, before, after } => {
                let (before, after) = both(before, after);
                Self::Variable { name, before, after }
            }
            Self::Files { summary, paths, count } => {
                Self::Files { summary, paths: paths.into_iter().map(plain).collect(), count }
            }
            Self::Instruction { before, after } => {
                let is_hidden = [&before, &after].iter().any(|text| hidden(text).is_some());
                let told = |text: String| if is_hidden { HIDDEN.to_owned() } else { text };
                Self::Instruction { before: told(before), after: told(after) }
            }
            Self::Base { before, after } => Self::Base { before: plain(before), after: plain(after) },
            Self::Input { step } => Self::Input { step: plain(step) },
            Self::Field { path, before, after } => {
                let (before, after) = both(before, after);
                Self::Field { path, before, after }
            }
            Self::Content | Self::Secrets => self,
        }
    }
}

/// Groups the differences of two manifests, what tells most first.
pub(super) fn group(changes: &[(String, FileChange)]) -> Vec<Change> {
    let mut groups: Vec<(FileSummary, Vec<String>, usize)> = Vec::new();
    for (path, change) in changes {
        let summary = match change {
            FileChange::Content | FileChange::Kind => FileSummary::Changed,
            FileChange::Added => FileSummary::Added,
            FileChange::Removed => FileSummary::Removed,
            FileChange::Mode(before, after) => FileSummary::Mode(*before, *after),
            FileChange::Owner => FileSummary::Owner,
        };
        let place = groups.iter().position(|(known, ..)| *known == summary).unwrap_or(groups.len());
        if place == groups.len() {
            groups.push((summary, Vec::new(), 0));
        }
        let (_, paths, count) = &mut groups[place];
        *count += 1;
        if paths.len() < MAX_NAMED {
            paths.push(if path.is_empty() { ".".to_owned() } else { path.clone() });
        }
    }
    groups.sort();
    groups.into_iter().map(|(summary, paths, count)| Change::Files { summary, paths, count }).collect()
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Files { summary, paths, count } => {
                match summary {
                    // Modes concern many files at once, and their names say little.
                    FileSummary::Mode(..) if *count > 1 => write!(f, "{count} files")?,
                    _ if *count <= MAX_NAMED => f.write_str(&paths.join(", "))?,
                    _ => {
                        let shown = &paths[..paths.len().min(MAX_NAMED - 1)];
                        write!(f, "{} and {} more", shown.join(", "), count - shown.len())?;
                    }
                }
                match summary {
                    FileSummary::Changed => f.write_str(" changed"),
                    FileSummary::Added => f.write_str(" added"),
                    FileSummary::Removed => f.write_str(" removed"),
                    FileSummary::Mode(before, after) => write!(f, " mode {before:o} → {after:o}"),
                    FileSummary::Owner => f.write_str(" changed owner"),
                }
            }
            Self::Content => f.write_str("the files it reads changed"),
            Self::Instruction { before, after } => {
                write!(f, "the instruction changed: {}", quoted_difference(before, after))
            }
            Self::Variable { name, before, after } => match (before, after) {
                (None, Some(after)) => write!(f, "{name} is set now: {}", quoted(after)),
                (Some(before), None) => write!(f, "{name} is not set any more: was {}", quoted(before)),
                (before, after) => {
                    let [before, after] = [before, after].map(|value| value.as_deref().unwrap_or_default());
                    write!(f, "{name} changed: {}", quoted_difference(before, after))
                }
            },
            Self::Secrets => f.write_str("a secret changed that counts (`cache=keyed`)"),
            Self::Base { before, after } => write!(f, "the base image changed: {before} → {after}"),
            Self::Input { step } => write!(f, "{step} made another result"),
            Self::Field { path, .. } if path == RESULT_VERSION => {
                f.write_str("results that an earlier version of stave made are not used")
            }
            Self::Field { path, before, after } => {
                if let (Some(before), Some(after)) = (before, after) {
                    return write!(f, "{path} changed: {}", quoted_difference(before, after));
                }
                let shown = |value: &Option<String>| value.as_deref().map_or("none".to_owned(), quoted);
                write!(f, "{path} changed: {} → {}", shown(before), shown(after))
            }
        }
    }
}

fn quoted(text: &str) -> String {
    quoted_from(&text.replace('\n', " "), 0)
}

/// Both values, long ones from shortly before the place where they begin to differ.
fn quoted_difference(before: &str, after: &str) -> String {
    let [before, after] = [before, after].map(|text| text.replace('\n', " "));
    let is_long = |text: &str| text.chars().count() > MAX_VALUE;
    let mut start = 0;
    if is_long(&before) || is_long(&after) {
        let same = before.chars().zip(after.chars()).take_while(|(one, other)| one == other).count();
        // As long as the difference is seen, the beginning says more.
        if same + BEFORE_DIFFERENCE > MAX_VALUE {
            start = same - BEFORE_DIFFERENCE;
        }
    }
    format!("{} → {}", quoted_from(&before, start), quoted_from(&after, start))
}

/// A value from a character on, as far as there is room.
fn quoted_from(text: &str, start: usize) -> String {
    let mut shown = String::from(if start > 0 { "`…" } else { "`" });
    let rest = text.chars().count() - start;
    if rest <= MAX_VALUE {
        shown.extend(text.chars().skip(start));
    } else {
        shown.extend(text.chars().skip(start).take(MAX_VALUE - 1));
        shown.push('…');
    }
    shown.push('`');
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(changes: &[(&str, FileChange)], expected: &str) {
        let changes: Vec<_> = changes.iter().map(|(path, change)| ((*path).to_owned(), *change)).collect();
        let text: Vec<String> = group(&changes).iter().map(ToString::to_string).collect();
        assert_eq!(text.join("; "), expected);
    }

    #[test]
    fn files_are_named_while_they_are_few() {
        let mode = FileChange::Mode(0o664, 0o644);
        check(
            &[("src/a.rs", FileChange::Content), ("x", mode), ("y", mode)],
            "src/a.rs changed; 2 files mode 664 → 644",
        );
        check(&[("x", mode)], "x mode 664 → 644");
        check(&[("a", FileChange::Added), ("b", FileChange::Removed)], "a added; b removed");
        let many: Vec<_> = ["a", "b", "c", "d", "e"].map(|path| (path, FileChange::Content)).to_vec();
        check(&many, "a, b and 3 more changed");
        check(&many[..3], "a, b, c changed");
        check(&[("", FileChange::Owner)], ". changed owner");
    }

    #[test]
    fn known_values_are_in_no_change() {
        let hidden = |text: &str| text.contains("hunter22").then(|| text.replace("hunter22", HIDDEN));
        let check =
            |change: Change, expected: &str| assert_eq!(change.without(&hidden).to_string(), expected);
        let variable = |before: Option<&str>, after: Option<&str>| Change::Variable {
            name: "X".to_owned(),
            before: before.map(str::to_owned),
            after: after.map(str::to_owned),
        };
        check(variable(Some("hunter21"), Some("a hunter22")), "X changed: `***` → `***`");
        check(variable(None, Some("hunter22")), "X is set now: `***`");
        check(variable(Some("1"), Some("2")), "X changed: `1` → `2`");
        let instruction = |before: &str, after: &str| Change::Instruction {
            before: before.to_owned(),
            after: after.to_owned(),
        };
        // What stands beside a value that is known may be the one that it replaced.
        check(instruction("RUN hunter21", "RUN hunter22"), "the instruction changed: `***` → `***`");
        check(instruction("RUN hunter22", "RUN a"), "the instruction changed: `***` → `***`");
        check(instruction("RUN a", "RUN b"), "the instruction changed: `RUN a` → `RUN b`");
        check(Change::Input { step: "COPY hunter22 /".to_owned() }, "COPY *** / made another result");
        let field = |text: &str| Some(text.to_owned());
        let change = Change::Field { path: "args".to_owned(), before: None, after: field("-p hunter22") };
        check(change, "args changed: none → `***`");
        let change = Change::Field {
            path: "args".to_owned(),
            before: field("-p hunter21"),
            after: field("-p hunter22"),
        };
        check(change, "args changed: `***` → `***`");
        let change = Change::Field { path: "result-version".to_owned(), before: None, after: field("2") };
        check(change, "results that an earlier version of stave made are not used");
    }

    #[test]
    fn long_instructions_are_shown_where_they_differ() {
        let mounts = "RUN --mount=type=secret,id=token --mount=type=cache,target=/root/.cache";
        let shown = |before: &str, after: &str| {
            Change::Instruction { before: before.to_owned(), after: after.to_owned() }.to_string()
        };
        assert_eq!(
            shown(&format!("{mounts} make"), &format!("{mounts} make test")),
            "the instruction changed: `…root/.cache make` → `…root/.cache make test`"
        );
        assert_eq!(
            shown("RUN make", &format!("RUN cargo {}", "x".repeat(90))),
            format!("the instruction changed: `RUN make` → `RUN cargo {}…`", "x".repeat(49))
        );
        assert_eq!(shown("RUN a", "RUN b"), "the instruction changed: `RUN a` → `RUN b`");
        let long = "y".repeat(200);
        let (before, after) = (format!("RUN {long}1 {long}"), format!("RUN {long}2"));
        let expected = format!("`…{0}1 {1}…` → `…{0}2`", "y".repeat(16), "y".repeat(41));
        assert_eq!(shown(&before, &after), format!("the instruction changed: {expected}"));
    }

    #[test]
    fn only_bits_that_git_drops_are_gits_modes() {
        let mode = |before, after| {
            group(&[("a".to_owned(), FileChange::Mode(before, after))]).iter().all(Change::is_git_mode)
        };
        assert!(mode(0o664, 0o644) && mode(0o775, 0o755) && mode(0o600, 0o644));
        assert!(!mode(0o644, 0o755) && !mode(0o4755, 0o755));
    }
}
