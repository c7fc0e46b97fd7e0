//! Whether a builder made the right image: a fast wrong one is worth nothing.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};

use stave_test_support::workloads::{Content, Expected};

use super::builder::Builder;
use crate::Failure;

/// Longest file that is compared byte by byte.
const MAX_TEXT: u64 = 4096;

enum Found {
    Text(Vec<u8>),
    Length(u64),
}

/// Builds `context` into a tar and compares it with what must be in it.
///
/// # Errors
/// Names the first file that is missing or wrong.
pub(crate) fn check(builder: &Builder, context: &Path, expected: &[Expected]) -> Result<(), Failure> {
    let words = builder.tar(context).0;
    let mut command = Command::new(&words[0]);
    let mut child = command.args(&words[1..]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut errors = child.stderr.take().ok_or("no standard error")?;
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        // Only shown when the build fails.
        drop(errors.read_to_string(&mut text));
        text
    });
    let found = contents(child.stdout.take().ok_or("no standard output")?);
    let status = child.wait()?;
    let errors = reader.join().unwrap_or_default();
    if !status.success() {
        return Err(format!("{} cannot build {}:\n{errors}", builder.name(), context.display()).into());
    }
    compare(&found?, expected).map_err(|problem| {
        format!("{} built {} wrongly: {problem}", builder.name(), context.display()).into()
    })
}

fn contents(stream: impl Read) -> Result<BTreeMap<String, Found>, Failure> {
    let mut found = BTreeMap::new();
    let mut archive = tar::Archive::new(stream);
    for entry in archive.entries()? {
        let mut entry = entry?;
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let name = entry.path()?.to_string_lossy().trim_start_matches(['.', '/']).to_owned();
        let length = entry.size();
        let content = if length > MAX_TEXT {
            Found::Length(length)
        } else {
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes)?;
            Found::Text(bytes)
        };
        found.insert(name, content);
    }
    // Some print an id after the archive, and would die of a closed pipe.
    std::io::copy(&mut archive.into_inner(), &mut std::io::sink())?;
    Ok(found)
}

fn compare(found: &BTreeMap<String, Found>, expected: &[Expected]) -> Result<(), String> {
    for Expected { path, content } in expected {
        let length = |file: &Found| match file {
            Found::Text(bytes) => bytes.len() as u64,
            Found::Length(length) => *length,
        };
        if let Content::Folder { files, bytes } = content {
            let below = found.iter().filter(|(name, _)| name.starts_with(path.as_str()));
            let (count, total) =
                below.fold((0, 0), |(count, total), (_, file)| (count + 1, total + length(file)));
            if (count, total) != (*files, *bytes) {
                return Err(format!("{path} holds {count} files, {total} bytes; {files}, {bytes} expected"));
            }
            continue;
        }
        let file = found.get(path).ok_or_else(|| format!("{path} is missing"))?;
        let is_right = match (content, file) {
            (Content::Text(text), Found::Text(bytes)) => text.as_bytes() == bytes,
            (Content::Text(_), Found::Length(_)) => false,
            (Content::Bytes(bytes), file) => length(file) == *bytes,
            (Content::AtLeast(bytes), file) => length(file) >= *bytes,
            (Content::Folder { .. }, _) => true,
        };
        if !is_right {
            return Err(format!("{path} is not {content:?} but {} bytes", length(file)));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(files: &[(&str, &str)]) -> BTreeMap<String, Found> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, text) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(text.len() as u64);
            header.set_cksum();
            builder.append_data(&mut header, name, text.as_bytes()).expect("appends");
        }
        contents(builder.into_inner().expect("finishes").as_slice()).expect("reads")
    }

    #[track_caller]
    fn check(files: &[(&str, &str)], content: Content, expected: Option<&str>) {
        let wanted = [Expected { path: "out/a".to_owned(), content }];
        assert_eq!(compare(&archive(files), &wanted).err().as_deref(), expected);
    }

    #[test]
    fn a_wrong_image_is_found() {
        check(&[("out/a", "one\n")], Content::Text("one\n".to_owned()), None);
        check(
            &[("out/a", "two\n")],
            Content::Text("one\n".to_owned()),
            Some("out/a is not Text(\"one\\n\") but 4 bytes"),
        );
        check(&[("out/b", "one\n")], Content::AtLeast(1), Some("out/a is missing"));
        check(&[("out/a", "one\n")], Content::Bytes(3), Some("out/a is not Bytes(3) but 4 bytes"));
        check(
            &[("out/a/1", "one\n"), ("out/a/2", "two\n")],
            Content::Folder { files: 2, bytes: 7 },
            Some("out/a holds 2 files, 8 bytes; 2, 7 expected"),
        );
    }
}
