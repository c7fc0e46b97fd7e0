//! What the owner of a builder wants statements to say of it: a directory of JSON files, each with an object. Start
//! with [`read`].

use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

/// Bytes of one file.
const MAX_FILE: u64 = 1 << 20;

/// Why such a directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum EnvironmentError {
    /// It cannot be read.
    #[error("cannot read `{}`", .path.display())]
    Read {
        /// The directory or a file in it.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file that holds no object.
    #[error("`{}` holds no JSON object", .path.display())]
    Object {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: serde_json::Error,
    },
}

/// The fields of all `*.json` in a directory; of two of one name, that of the later file. None where it is missing.
///
/// # Errors
/// [`EnvironmentError`].
pub fn read(directory: &Path) -> Result<Map<String, Value>, EnvironmentError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| EnvironmentError::Read { path, source }
    };
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Map::new()),
        Err(error) => return Err(failed(directory)(error)),
    };
    let mut paths = Vec::new();
    for entry in entries {
        paths.push(entry.map_err(failed(directory))?.path());
    }
    paths.sort();
    let mut fields = Map::new();
    for path in paths.into_iter().filter(|path| path.extension().is_some_and(|name| name == "json")) {
        let mut text = Vec::new();
        let file = fs::File::open(&path).map_err(failed(&path))?;
        file.take(MAX_FILE).read_to_end(&mut text).map_err(failed(&path))?;
        let found: Map<String, Value> = serde_json::from_slice(&text)
            .map_err(|source| EnvironmentError::Object { path: path.clone(), source })?;
        fields.extend(found);
    }
    Ok(fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_add_up() {
        let folder = tempfile::tempdir().expect("a folder");
        assert!(read(&folder.path().join("none")).expect("is nothing").is_empty());
        fs::write(folder.path().join("a.json"), r#"{"a":1,"b":1}"#).expect("writes");
        fs::write(folder.path().join("b.json"), r#"{"b":[2]}"#).expect("writes");
        fs::write(folder.path().join("c.txt"), "no").expect("writes");
        let found = Value::Object(read(folder.path()).expect("reads"));
        assert_eq!(found, serde_json::json!({"a": 1, "b": [2]}));
        fs::write(folder.path().join("c.json"), "1").expect("writes");
        let error = read(folder.path()).expect_err("is no object");
        assert!(error.to_string().ends_with("c.json` holds no JSON object"));
    }
}
