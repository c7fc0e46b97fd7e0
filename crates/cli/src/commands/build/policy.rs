//! Rules about what a build may be made from: the file that `EXPERIMENTAL_BUILDKIT_SOURCE_POLICY` names, as docker's and
//! BuildKit's clients take it.

use std::io::Read as _;
use std::path::PathBuf;

use stave_llb::policy::{PolicyError, RuleSpec, SourcePolicies, SourcePolicy};

use crate::report::Failure;

/// The variable that names the file.
const VARIABLE: &str = "EXPERIMENTAL_BUILDKIT_SOURCE_POLICY";
/// Bytes of the largest file.
const MAX_FILE: u64 = 16 << 20;

/// The rules, as they are followed here and as a daemon is sent them.
#[derive(Debug, Default)]
pub(super) struct Rules {
    pub(super) policies: SourcePolicies,
    pub(super) written: Vec<RuleSpec>,
}

/// Reads the file, if one is named.
pub(super) fn read() -> Result<Rules, Failure> {
    match std::env::var_os(VARIABLE).filter(|path| !path.is_empty()) {
        None => Ok(Rules::default()),
        Some(path) => read_file(&PathBuf::from(path)),
    }
}

fn read_file(path: &std::path::Path) -> Result<Rules, Failure> {
    let failed = |error: std::io::Error| {
        Failure::message(format!("failed to read policy file `{}`: {error}", path.display()))
    };
    let mut text = String::new();
    std::fs::File::open(path).map_err(failed)?.take(MAX_FILE).read_to_string(&mut text).map_err(failed)?;
    rules(&text).map_err(|error| {
        Failure::message(format!("failed to parse policy file `{}`: {error}", path.display()))
    })
}

fn rules(text: &str) -> Result<Rules, PolicyError> {
    let written = SourcePolicy::rules_of_json(text)?;
    let policies = SourcePolicies::new(vec![SourcePolicy::new(written.clone())?])?;
    Ok(Rules { policies, written })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_rules() {
        let found = rules(r#"{"rules":[{"action":"DENY","selector":{"identifier":"*"}}]}"#).expect("rules");
        assert_eq!(found.written.len(), 1);
        assert!(!found.policies.is_empty());
        assert!(rules("{").is_err());
    }
}
