//! What a daemon answered: files with ids and metadata, or an error with its place. Start with [`finish`].

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};
use stave_daemon::client::RemoteError;
use stave_frontend_dockerfile::Source;

use crate::commands::build::{Arguments, write};
use crate::output::say;
use crate::report::{self, Failure};

/// Writes the files that were asked for, and the id for `--quiet`.
pub(super) fn finish(arguments: &Arguments, told: &BTreeMap<String, String>) -> Result<(), Failure> {
    let id = told.get("containerimage.config.digest").or_else(|| told.get("containerimage.digest"));
    if let (Some(path), Some(id)) = (&arguments.iidfile, id) {
        write(path, id)?;
    }
    if let Some(path) = &arguments.metadata_file {
        let text = serde_json::to_string_pretty(&metadata(told)).map_err(|error| Failure::new(&error))?;
        write(path, &text)?;
    }
    if arguments.quiet
        && let Some(id) = id
    {
        say!("{id}");
    }
    Ok(())
}

/// Values are texts, or objects as base64 of their JSON.
fn metadata(told: &BTreeMap<String, String>) -> Map<String, Value> {
    let value = |text: &String| {
        let object =
            STANDARD.decode(text).ok().and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
        object.filter(Value::is_object).unwrap_or_else(|| Value::String(text.clone()))
    };
    told.iter().map(|(key, text)| (key.clone(), value(text))).collect()
}

/// A failed build with the part of the Dockerfile that it came from.
pub(super) fn explain(error: &RemoteError) -> Failure {
    match error {
        RemoteError::Build { message, place } => {
            let mut failure = Failure::message(format!("failed to build: failed to solve: {message}"));
            if let Some(place) = place {
                let source = Source::new(&place.name, place.text.clone());
                failure.details = report::excerpt(&source, place.lines.0, place.lines.1);
            }
            failure
        }
        other => Failure::new(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_travel_as_base64() {
        let object = STANDARD.encode(r#"{"size":1}"#);
        let told = [("d", object.as_str()), ("n", "aGk="), ("t", "a:b")];
        let told = told.map(|(key, text)| (key.to_owned(), text.to_owned())).into_iter().collect();
        let text = serde_json::to_string(&metadata(&told)).expect("is JSON");
        assert_eq!(text, r#"{"d":{"size":1},"n":"aGk=","t":"a:b"}"#);
    }
}
