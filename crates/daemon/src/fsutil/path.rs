//! Paths as they travel: relative, clean, and in one strict order. Read [`Order`] first.

use std::cmp::Ordering;

use super::MAX_PATH;

/// Why a path of a tree is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PathFault {
    /// Absolute, empty, with `.`, `..` or a NUL, or not in its shortest form.
    #[error("invalid path `{0}`")]
    Invalid(String),
    /// Longer than any system takes.
    #[error("a path is longer than {MAX_PATH} bytes")]
    TooLong,
    /// Not after the one before it.
    #[error("path `{0}` is out of order")]
    Order(String),
    /// In something that is not a directory of the tree.
    #[error("path `{0}` has no parent directory")]
    NoParent(String),
}

/// Takes paths in turn and refuses one that cannot stand where it does.
#[derive(Debug, Default)]
pub(crate) struct Order {
    last: Option<String>,
    /// The directories that the next path may be in, the outermost first; the root itself is not among them.
    open: Vec<String>,
}

impl Order {
    /// Takes the next path.
    pub(crate) fn next(&mut self, path: &str, is_directory: bool) -> Result<(), PathFault> {
        if path.len() > MAX_PATH {
            return Err(PathFault::TooLong);
        }
        if !is_clean(path) {
            return Err(PathFault::Invalid(path.to_owned()));
        }
        if self.last.as_deref().is_some_and(|last| compare(last, path) != Ordering::Less) {
            return Err(PathFault::Order(path.to_owned()));
        }
        let parent = path.rsplit_once('/').map(|(parent, _)| parent);
        while self.open.last().is_some_and(|open| Some(open.as_str()) != parent) {
            self.open.pop();
        }
        if parent.is_some() && self.open.is_empty() {
            return Err(PathFault::NoParent(path.to_owned()));
        }
        if is_directory {
            self.open.push(path.to_owned());
        }
        self.last = Some(path.to_owned());
        Ok(())
    }
}

/// Whether a path is relative and leads down only.
pub(crate) fn is_clean(path: &str) -> bool {
    !path.contains('\0') && path.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

/// Part by part, so that what is in a directory comes right after it.
pub(crate) fn compare(one: &str, other: &str) -> Ordering {
    one.split('/').map(str::as_bytes).cmp(other.split('/').map(str::as_bytes))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(paths: &[&str], expected: Result<(), &str>) {
        let mut order = Order::default();
        let outcome = paths.iter().try_for_each(|path| {
            let directory = path.ends_with('/');
            order.next(path.trim_end_matches('/'), directory)
        });
        assert_eq!(outcome.map_err(|fault| fault.to_string()), expected.map_err(str::to_owned));
    }

    #[test]
    fn paths_come_in_order_and_stay_inside() {
        check(&["a/", "a/b", "a.txt", "b"], Ok(()));
        check(&["a/", "a/b/", "a/b/c", "a/d", "e"], Ok(()));
        check(&["a.txt", "a/"], Err("path `a` is out of order"));
        check(&["a", "a"], Err("path `a` is out of order"));
        check(&["a", "a/b"], Err("path `a/b` has no parent directory"));
        check(&["x/y"], Err("path `x/y` has no parent directory"));
        check(&["a/", "b/", "a/b"], Err("path `a/b` is out of order"));
        check(&["../a"], Err("invalid path `../a`"));
        check(&["a/", "a/../../etc"], Err("invalid path `a/../../etc`"));
        check(&["/etc"], Err("invalid path `/etc`"));
        check(&["a//b"], Err("invalid path `a//b`"));
        check(&["./a"], Err("invalid path `./a`"));
        check(&["a\0b"], Err("invalid path `a\0b`"));
        check(&[""], Err("invalid path ``"));
        check(&[&"x".repeat(MAX_PATH + 1)], Err("a path is longer than 4096 bytes"));
    }

    proptest! {
        #[test]
        fn whatever_is_taken_leads_down(paths in proptest::collection::vec("[a./]{0,6}", 0..8)) {
            let mut order = Order::default();
            for path in &paths {
                if order.next(path, true).is_ok() {
                    let mut parts = std::path::Path::new(path).components();
                    let leads_down = parts.all(|part| matches!(part, std::path::Component::Normal(_)));
                    prop_assert!(leads_down && !path.is_empty());
                }
            }
        }
    }
}
