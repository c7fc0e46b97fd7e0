//! Paths of images for Windows, as text with slashes and without a drive.
//!
//! Owns what the reference makes of them on any machine: backslashes are slashes, the drive can only be the system's,
//! and shares have no paths here. Must not look at a file system. Start with [`normalize`].

use super::{clean, join};
use crate::quote::quote;

/// A path that nothing in an image can have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WindowsPathError {
    #[error("No relative path specified in {}", quote(.0))]
    OnlyDrive(String),
    #[error("UNC paths are not supported")]
    Share,
    #[error("The specified path is not on the system drive (C:)")]
    OtherDrive,
}

/// `path` seen from `parent`, absolute; with `keep_slash`, a final `/` or `/.` stays.
pub(crate) fn normalize(parent: &str, path: &str, keep_slash: bool) -> Result<String, WindowsPathError> {
    let written = slashed(path);
    let parent = without_drive(if parent.is_empty() { "/" } else { parent }, keep_slash)?;
    let parent = if parent.starts_with('/') { parent } else { join("/", &parent) };
    let path = if written.is_empty() { parent.as_str() } else { written.as_str() };
    let path = without_drive(path, keep_slash)?;
    let mut path = if path.starts_with('/') { path } else { join(&parent, &path) };
    if !keep_slash {
        return Ok(path);
    }
    if written.ends_with('/') && !path.ends_with('/') {
        path.push('/');
    } else if written.ends_with("/.") {
        path.push_str(if path == "/" { "." } else { "/." });
    }
    Ok(path)
}

/// Where `COPY` puts files in directory `parent`.
pub(crate) fn destination(parent: &str, path: &str) -> Result<String, WindowsPathError> {
    let path = without_drive(path, true)?;
    match path.as_str() {
        "." | "" => normalize(parent, "./", true),
        path if path.starts_with('/') => normalize("/", path, true),
        path => normalize(parent, path, true),
    }
}

/// Whether a path does not depend on a directory.
pub(crate) fn is_absolute(path: &str) -> bool {
    without_drive(path, false).is_ok_and(|path| path.starts_with('/'))
}

/// The path without its drive, cleaned; `C:a` is a relative path.
pub(crate) fn without_drive(path: &str, keep_slash: bool) -> Result<String, WindowsPathError> {
    let path = slashed(path);
    if path.len() == 2 && path.ends_with(':') {
        return Err(WindowsPathError::OnlyDrive(path));
    }
    if path.starts_with("//") {
        return Err(WindowsPathError::Share);
    }
    let rest = match path.split_once(':') {
        None => path.as_str(),
        Some((drive, rest)) if drive.eq_ignore_ascii_case("c") => rest,
        Some(_) => return Err(WindowsPathError::OtherDrive),
    };
    let mut cleaned = clean(rest);
    if keep_slash && cleaned.len() > 1 && rest.ends_with('/') {
        cleaned.push('/');
    }
    Ok(cleaned)
}

fn slashed(path: &str) -> String {
    path.replace('\\', "/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(parent: &str, path: &str, expected: &str) {
        let found = destination(parent, path).unwrap_or_else(|error| error.to_string());
        assert_eq!(found, expected, "{path}");
    }

    #[test]
    fn drives_go_and_slashes_turn() {
        check("/", "C:\\out\\bar", "/out/bar");
        check("/app", "C:out\\", "/app/out/");
        check("/app", "\\a\\.\\b", "/a/b");
        check("/app", "", "/app/");
        check("C:\\app", ".", "/app/");
        check("/app", "c:/x/", "/x/");
        check("/", "D:\\x", "The specified path is not on the system drive (C:)");
        check("/", "C:", "No relative path specified in \"C:\"");
        check("/", "\\\\.\\C$\\a", "UNC paths are not supported");
        assert_eq!(normalize("C:\\base", "..\\x", false), Ok("/x".to_owned()));
        assert_eq!(normalize("", "a/", true), Ok("/a/".to_owned()));
        assert!(is_absolute("C:\\a") && is_absolute("\\a") && !is_absolute("C:a") && !is_absolute("C:"));
    }
}
