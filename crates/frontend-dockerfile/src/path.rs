//! Slash-separated paths as text.
//!
//! Owns cleaning and joining as Go's `path` does them. Must not look at a file system. Start with
//! [`clean`].

use std::borrow::Cow;

pub(crate) mod windows;

/// The shortest equal path: no `.`, no `..` that can be resolved, no doubled slashes; `.` for nothing.
pub(crate) fn clean(path: &str) -> String {
    let rooted = path.starts_with('/');
    if is_clean(path) {
        return path.to_owned();
    }
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => match parts.last() {
                Some(&last) if last != ".." => {
                    parts.pop();
                }
                _ if rooted => {}
                _ => parts.push(".."),
            },
            other => parts.push(other),
        }
    }
    match (rooted, parts.is_empty()) {
        (true, _) => ["/", &parts.join("/")].concat(),
        (false, true) => ".".to_owned(),
        (false, false) => parts.join("/"),
    }
}

/// Whether no part but what stands before the first slash is empty, `.` or `..`, as in most paths.
fn is_clean(path: &str) -> bool {
    let bytes = path.as_bytes();
    let mut start = usize::from(path.starts_with('/'));
    let sound = |part: &[u8]| !matches!(part, b"" | b"." | b"..");
    for (at, byte) in bytes.iter().enumerate().skip(start) {
        if *byte == b'/' {
            if !sound(&bytes[start..at]) {
                return false;
            }
            start = at + 1;
        }
    }
    sound(&bytes[start..])
}

/// `path` below `parent`, cleaned.
pub(crate) fn join(parent: &str, path: &str) -> String {
    match (parent.is_empty(), path.is_empty()) {
        (true, true) => String::new(),
        (true, false) => clean(path),
        (false, true) => clean(parent),
        (false, false) => clean(&[parent, "/", path].concat()),
    }
}

/// The last part of a path: `.` for nothing, `/` for slashes only.
pub(crate) fn base(path: &str) -> &str {
    if path.is_empty() {
        return ".";
    }
    let trimmed = path.trim_end_matches('/');
    if trimmed.is_empty() { "/" } else { trimmed.rsplit('/').next().unwrap_or(trimmed) }
}

/// `path` seen from directory `parent`, absolute. An absolute path is not cleaned.
pub(crate) fn absolute(parent: &str, path: &str) -> String {
    if path.starts_with('/') {
        return path.to_owned();
    }
    let parent = match parent {
        "" => Cow::Borrowed("/"),
        relative if !relative.starts_with('/') => Cow::Owned(join("/", relative)),
        absolute => Cow::Borrowed(absolute),
    };
    if path.is_empty() { parent.into_owned() } else { join(&parent, path) }
}

/// As [`absolute`], then cleaned, but a final `/` or `/.` stays: it says that a directory is meant.
pub(crate) fn destination(parent: &str, path: &str) -> String {
    let path = if matches!(path, "" | ".") { "./" } else { path };
    let mut result = clean(&absolute(parent, path));
    if path.ends_with('/') && !result.ends_with('/') {
        result.push('/');
    } else if path.ends_with("/.") {
        if result != "/" {
            result.push('/');
        }
        result.push('.');
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(input: &str, expected: &str) {
        assert_eq!(clean(input), expected);
    }

    #[test]
    fn paths_are_cleaned() {
        check("", ".");
        check("/", "/");
        check("//a//b/./c/..", "/a/b");
        check("/../a", "/a");
        check("../a/..", "..");
        check("a/b/../../..", "..");
    }

    #[test]
    fn destinations_keep_what_makes_them_directories() {
        assert_eq!(destination("/app", "."), "/app/");
        assert_eq!(destination("/app", ""), "/app/");
        assert_eq!(destination("/app", "x"), "/app/x");
        assert_eq!(destination("/app", "/x/"), "/x/");
        assert_eq!(destination("/", "/"), "/");
        assert_eq!(destination("/app", "/x/."), "/x/.");
        assert_eq!(destination("/", "."), "/");
    }

    #[test]
    fn last_parts() {
        assert_eq!([base(""), base("/"), base("/a/b/"), base("c")], [".", "/", "b", "c"]);
    }
}
