//! What must be part of a context so that given paths can be read: the paths, the symlinks on the way, and what
//! these lead to. Must not know ops. Read [`follow`] first.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::file::wildcard::{has_wildcard, matches, unescape};
use crate::root::{RootDir, absent};

/// Paths looked at while following; a malicious chain of links and wildcards ends here.
const STEP_LIMIT: usize = 1 << 20;

/// Include patterns for the paths. A result that holds `.` means everything.
pub(crate) fn follow(root: &RootDir, paths: &[String]) -> io::Result<Vec<String>> {
    let mut walk = Walk { root, found: BTreeSet::new(), seen: BTreeSet::new(), steps: 0 };
    for path in paths {
        let components = split(Path::new(path));
        walk.components(PathBuf::new(), &components)?;
    }
    Ok(walk.found.into_iter().collect())
}

struct Walk<'a> {
    root: &'a RootDir,
    found: BTreeSet<String>,
    /// Links already followed, with what was asked for behind them.
    seen: BTreeSet<(PathBuf, Vec<String>)>,
    steps: usize,
}

impl Walk<'_> {
    fn components(&mut self, current: PathBuf, rest: &[String]) -> io::Result<()> {
        self.steps += 1;
        if self.steps > STEP_LIMIT {
            return Err(Errno::LOOP.into());
        }
        let Some((first, rest)) = rest.split_first() else {
            self.found.insert(pattern(&current));
            return Ok(());
        };
        if first == ".." {
            let mut up = current;
            up.pop();
            return self.components(up, rest);
        }
        if !has_wildcard(first) {
            return self.entry(current.join(unescape(first)), rest);
        }
        let names = match self.root.list(&current) {
            Ok(names) => names,
            Err(error) if absent(&error) => Vec::new(),
            Err(error) => return Err(error),
        };
        for name in names {
            if matches(first, &name.to_string_lossy()) {
                self.entry(current.join(name), rest)?;
            }
        }
        Ok(())
    }

    fn entry(&mut self, path: PathBuf, rest: &[String]) -> io::Result<()> {
        let Some(target) = self.read_link(&path)? else { return self.components(path, rest) };
        self.found.insert(pattern(&path));
        let target = Path::new(&target);
        let base = if target.is_absolute() {
            PathBuf::new()
        } else {
            path.parent().map(Path::to_owned).unwrap_or_default()
        };
        let mut onward: Vec<String> = split(target).iter().map(|name| escape(name)).collect();
        onward.extend_from_slice(rest);
        if self.seen.insert((path, rest.to_vec())) {
            self.components(base, &onward)?;
        }
        Ok(())
    }

    fn read_link(&self, path: &Path) -> io::Result<Option<OsString>> {
        let fd = match self.root.open_at(path, OFlags::PATH | OFlags::NOFOLLOW, Mode::empty()) {
            Ok(fd) => fd,
            Err(error) if absent(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        if FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode) != FileType::Symlink {
            return Ok(None);
        }
        Ok(Some(OsString::from_vec(rustix::fs::readlinkat(&fd, "", Vec::new())?.into_bytes())))
    }
}

fn split(path: &Path) -> Vec<String> {
    let names = path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_string_lossy().into_owned()),
        Component::ParentDir => Some("..".to_owned()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    });
    names.collect()
}

/// A path as a pattern that matches only itself.
fn pattern(path: &Path) -> String {
    if path.as_os_str().is_empty() { ".".to_owned() } else { escape(&path.to_string_lossy()) }
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        if matches!(character, '*' | '?' | '[' | ']' | '\\') {
            escaped.push('\\');
        }
        escaped.push(character);
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[track_caller]
    fn check(paths: &[&str], expected: &[&str]) {
        let directory = tempfile::tempdir().expect("tempdir");
        let at = |path: &str| directory.path().join(path);
        std::fs::create_dir_all(at("dir/sub")).expect("mkdir");
        std::fs::write(at("dir/file"), "").expect("write");
        std::fs::write(at("odd[1]"), "").expect("write");
        symlink("dir", at("link")).expect("symlink");
        symlink("/link/sub", at("chain")).expect("symlink");
        symlink("loop2", at("loop1")).expect("symlink");
        symlink("loop1", at("loop2")).expect("symlink");
        symlink("../../..", at("dir/up")).expect("symlink");
        let root = RootDir::open(directory.path()).expect("root");
        let paths: Vec<String> = paths.iter().map(|path| (*path).to_owned()).collect();
        assert_eq!(follow(&root, &paths).expect("follow"), expected);
    }

    #[test]
    fn links_bring_their_targets() {
        check(&["dir/file"], &["dir/file"]);
        check(&["absent"], &["absent"]);
        check(&["link/file"], &["dir/file", "link"]);
        check(&["chain"], &["chain", "dir/sub", "link"]);
        check(&["l*k"], &["dir", "link"]);
        check(&["dir/*"], &[".", "dir/file", "dir/sub", "dir/up"]);
        check(&["loop1"], &["loop1", "loop2"]);
        check(&["odd\\[1\\]"], &["odd\\[1\\]"]);
        check(&["/"], &["."]);
    }
}
