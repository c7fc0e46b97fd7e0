//! Files that a Dockerfile of our own syntax includes, read from beside it.
//!
//! Owns that they stay below the Dockerfile's directory, whatever links there are. What an included file says
//! is the front end's. Start with [`add`].

use std::fs;
use std::io::{self, Read as _};
use std::path::Path;

use stave_frontend_dockerfile::{Includes, Source};

use super::input::InputError;

/// The source with all files that it includes, directly or not. Files that are not there are left out: the
/// parser says so where they are named.
pub(super) fn add(source: Source, folder: &Path) -> Result<Source, InputError> {
    let mut includes = Includes::new(source);
    loop {
        let wanted = includes.wanted();
        if wanted.is_empty() {
            return Ok(includes.finish());
        }
        for name in wanted {
            let path = folder.join(&name);
            let text = match read(folder, &path, includes.left() as u64) {
                Ok(text) => text,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(source) => return Err(InputError::Read { path, source }),
            };
            let too_large = |error| io::Error::new(io::ErrorKind::FileTooLarge, error);
            includes.add(name, &text).map_err(|error| InputError::Read { path, source: too_large(error) })?;
        }
    }
}

fn read(folder: &Path, path: &Path, left: u64) -> io::Result<String> {
    let real = path.canonicalize()?;
    if !real.starts_with(folder.canonicalize()?) {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "it leads out of the Dockerfile's directory",
        ));
    }
    let mut text = String::new();
    fs::File::open(real)?.take(left + 1).read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use stave_frontend_dockerfile::parse;

    use super::*;

    #[test]
    fn files_are_found_beside_those_that_include_them() {
        let folder = tempfile::tempdir().expect("a folder");
        fs::create_dir(folder.path().join("parts")).expect("made");
        fs::write(folder.path().join("parts/one"), "INCLUDE two\nINCLUDE gone\n").expect("written");
        fs::write(folder.path().join("parts/two"), "RUN x\n").expect("written");
        let main = "# syntax=stave/1\nFROM a\nINCLUDE parts/one\n";
        let source = add(Source::new("Dockerfile", main), folder.path()).expect("reads");
        let names: Vec<_> = source.parts().map(|part| part.name.to_owned()).collect();
        assert_eq!(names, ["Dockerfile", "parts/one", "parts/two"]);
        assert_eq!(parse(&source).missing_includes.len(), 1);
        let plain =
            add(Source::new("Dockerfile", "FROM a\nINCLUDE parts/one\n"), folder.path()).expect("reads");
        assert_eq!(plain.parts().count(), 1);
    }

    #[test]
    fn links_do_not_lead_out() {
        let folder = tempfile::tempdir().expect("a folder");
        std::os::unix::fs::symlink("/etc/hostname", folder.path().join("out")).expect("linked");
        let main = "# syntax=stave/1\nFROM a\nINCLUDE out\n";
        let failure = add(Source::new("Dockerfile", main), folder.path()).expect_err("is outside");
        assert!(matches!(failure, InputError::Read { .. }), "{failure:?}");
    }
}
