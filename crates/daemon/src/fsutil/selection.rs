//! Which files of a directory a daemon asked for: patterns to leave out, patterns to take, and paths to follow.
//!
//! Reads links of the directory to follow them, and nothing else. Start with [`Selection`].

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use stave_llb::pattern::{DirectoryMatches, PatternError, PatternMatcher};

/// Links that are followed for one path.
const MAX_LINKS: usize = 255;
/// Most paths to follow.
const MAX_PATHS: usize = 10_000;

/// What is offered of a directory.
#[derive(Debug)]
pub(crate) struct Selection {
    excluded: PatternMatcher,
    /// `None` takes everything.
    included: Option<PatternMatcher>,
}

/// What a walk knows of the directory it is in.
#[derive(Debug, Clone, Default)]
pub(crate) struct Within {
    excluded: DirectoryMatches,
    included: DirectoryMatches,
}

/// What becomes of one entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is offered.
    Taken,
    /// Only if something in it is.
    Perhaps,
    /// Neither it nor anything in it.
    Left,
}

impl Selection {
    /// What these lists pick in `root`.
    pub(crate) fn new(
        root: &Path,
        exclude: &[String],
        include: &[String],
        follow: &[String],
    ) -> Result<Self, PatternError> {
        let mut wanted: Vec<String> = include.to_vec();
        let mut is_all = include.is_empty() && follow.is_empty();
        for path in follow.iter().take(MAX_PATHS) {
            let followed = followed(root, path);
            is_all |= followed.contains(Path::new(""));
            wanted.extend(followed.iter().filter_map(|path| path.to_str().map(str::to_owned)));
        }
        let included = (!is_all).then(|| PatternMatcher::new(&wanted)).transpose()?;
        Ok(Self { excluded: PatternMatcher::new(exclude)?, included })
    }

    /// What becomes of the entry at `path`, below a directory about which `within` is known.
    pub(crate) fn verdict(&self, path: &str, is_directory: bool, within: &Within) -> (Verdict, Within) {
        let (is_out, excluded) = self.excluded.matches_within(path, &within.excluded);
        if is_out && !(is_directory && self.excluded.exclusion_below(path)) {
            return (Verdict::Left, Within::default());
        }
        let (is_in, included) = match &self.included {
            None => (true, DirectoryMatches::default()),
            Some(matcher) => matcher.matches_within(path, &within.included),
        };
        let may_follow =
            is_directory && self.included.as_ref().is_none_or(|matcher| matcher.match_below(path));
        let verdict = match (is_in, is_out) {
            (true, false) => Verdict::Taken,
            (true, true) => Verdict::Perhaps,
            (false, _) if may_follow => Verdict::Perhaps,
            (false, _) => Verdict::Left,
        };
        (verdict, Within { excluded, included })
    }
}

/// The places that lead to `path`: every link on the way, and what stands at the end. A pattern is not followed.
fn followed(root: &Path, path: &str) -> BTreeSet<PathBuf> {
    let clean = |path: &Path| -> PathBuf {
        let mut parts = PathBuf::new();
        for part in path.components() {
            match part {
                Component::Normal(name) => parts.push(name),
                Component::ParentDir => drop(parts.pop()),
                Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
            }
        }
        parts
    };
    let mut found = BTreeSet::new();
    if path.contains(['*', '?', '[']) {
        found.insert(clean(Path::new(path)));
        return found;
    }
    let mut rest = clean(Path::new(path));
    for _ in 0..MAX_LINKS {
        let mut here = PathBuf::new();
        let mut next = None;
        let mut parts = rest.components();
        while let Some(part) = parts.next() {
            here.push(part);
            let Ok(target) = std::fs::read_link(root.join(&here)) else { continue };
            let folder = here.parent().unwrap_or(Path::new("")).to_owned();
            found.insert(here.clone());
            let target = if target.is_absolute() { target } else { folder.join(target) };
            next = Some(clean(&target.join(parts.as_path())));
            break;
        }
        match next {
            Some(path) => rest = path,
            None => break,
        }
    }
    found.insert(rest);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(exclude: &[&str], include: &[&str], follow: &[&str], expected: &[(&str, Verdict)]) {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(folder.path().join("real")).expect("made");
        std::os::unix::fs::symlink("real", folder.path().join("link")).expect("linked");
        let list = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let selection = Selection::new(folder.path(), &list(exclude), &list(include), &list(follow));
        let selection = selection.expect("patterns");
        for (path, verdict) in expected {
            let mut within = Within::default();
            let mut found = Verdict::Taken;
            let mut at = String::new();
            for part in path.split('/') {
                at = if at.is_empty() { part.to_owned() } else { format!("{at}/{part}") };
                let is_directory = at != *path || path.ends_with("dir");
                (found, within) = selection.verdict(&at, is_directory, &within);
                if found == Verdict::Left {
                    break;
                }
            }
            assert_eq!(found, *verdict, "{path}");
        }
    }

    #[test]
    fn files_are_picked() {
        use Verdict::{Left, Perhaps, Taken};
        check(&[], &[], &[], &[("a", Taken), ("dir", Taken), ("a/b", Taken)]);
        check(&["*.o", "dir"], &[], &[], &[("a.o", Left), ("dir", Left), ("a", Taken)]);
        check(&["dir", "!dir/keep"], &[], &[], &[("dir", Perhaps), ("dir/keep", Taken), ("dir/x", Left)]);
        check(&[], &["a/b"], &[], &[("a/b", Taken), ("a/c", Left), ("x", Left)]);
        check(&[], &["*.go"], &[], &[("m.go", Taken), ("m.c", Left)]);
        check(&[], &[], &["link/f"], &[("link", Taken), ("real/f", Taken), ("real/g", Left)]);
        check(&[], &[], &["."], &[("a", Taken)]);
        check(&[], &[], &["../../etc/passwd"], &[("etc/passwd", Taken), ("x", Left)]);
        check(&["b"], &["a", "b"], &[], &[("a", Taken), ("b", Left)]);
    }
}
