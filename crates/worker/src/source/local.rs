//! Directories as sources: what their attributes mean. Owns the reading of the attributes; that one is not known or
//! makes no sense is an error, never passed over. Must not know where directories are. Start with [`LocalSource`].

use stave_llb::SourceOp;

use super::SourceError;
use crate::remote::Differ;

/// Attributes that mean something; `local.unique` only tells sources apart.
const KNOWN: [&str; 9] = [
    "local.session",
    "local.unique",
    "local.includepattern",
    "local.excludepatterns",
    "local.followpaths",
    "local.sharedkeyhint",
    "local.differ",
    "local.metadatatransfer",
    EXCEPTIONS,
];
const EXCEPTIONS: &str = "local.metadatatransferexclude";

/// Which part of which directory is wanted, and how it travels.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct LocalSource {
    pub(crate) name: String,
    /// The session whose directory it is; `None` is the build's own.
    pub(crate) session: Option<String>,
    pub(crate) shared_key_hint: String,
    pub(crate) include: Vec<String>,
    pub(crate) exclude: Vec<String>,
    pub(crate) follow: Vec<String>,
    pub(crate) differ: Differ,
    /// Only what these patterns match comes with its content; `None` for everything.
    pub(crate) metadata_but: Option<Vec<String>>,
}

impl LocalSource {
    pub(crate) fn new(name: &str, op: &SourceOp) -> Result<Self, SourceError> {
        let unknown = |key: &&String| key.starts_with("local.") && !KNOWN.contains(&key.as_str());
        if let Some(key) = op.attrs.keys().find(unknown) {
            return Err(SourceError::UnknownAttribute(key.clone()));
        }
        let text = |key: &str| op.attrs.get(key).map(String::as_str).filter(|text| !text.is_empty());
        // A session may stand behind a word that is part of the directory's name, then.
        let (name, session) = match text("local.session").map(|session| (session, session.split_once(':'))) {
            None => (name.to_owned(), None),
            Some((_, Some((prefix, session)))) => (format!("{prefix}-{name}"), Some(session.to_owned())),
            Some((session, None)) => (name.to_owned(), Some(session.to_owned())),
        };
        let differ = match text("local.differ") {
            None | Some("metadata") => Differ::Metadata,
            Some("none") => Differ::None,
            Some(value) => return Err(invalid("local.differ", value)),
        };
        let is_metadata = match text("local.metadatatransfer") {
            None | Some("0" | "f" | "F" | "false" | "False" | "FALSE") => false,
            Some("1" | "t" | "T" | "true" | "True" | "TRUE") => true,
            Some(value) => return Err(invalid("local.metadatatransfer", value)),
        };
        let exceptions = list(op, EXCEPTIONS)?;
        Ok(Self {
            name,
            session,
            shared_key_hint: text("local.sharedkeyhint").unwrap_or_default().to_owned(),
            include: list(op, "local.includepattern")?,
            exclude: list(op, "local.excludepatterns")?,
            follow: list(op, "local.followpaths")?,
            differ,
            metadata_but: is_metadata.then_some(exceptions),
        })
    }
}

fn invalid(name: &str, value: &str) -> SourceError {
    SourceError::Attribute { name: name.to_owned(), value: value.to_owned() }
}

/// A JSON list of strings, as BuildKit's client writes patterns.
fn list(op: &SourceOp, name: &str) -> Result<Vec<String>, SourceError> {
    let Some(value) = op.attrs.get(name).filter(|value| !value.is_empty()) else { return Ok(Vec::new()) };
    serde_json::from_str(value).map_err(|_| invalid(name, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(attrs: &[(&str, &str)]) -> Result<LocalSource, SourceError> {
        let attrs = attrs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        LocalSource::new("dir", &SourceOp::new("local://dir", attrs))
    }

    #[track_caller]
    fn check(attrs: &[(&str, &str)], differ: Differ, metadata_but: Option<&[&str]>) {
        let source = source(attrs).expect("makes sense");
        let expected =
            metadata_but.map(|paths| paths.iter().map(|path| (*path).to_owned()).collect::<Vec<_>>());
        assert_eq!((source.differ, source.metadata_but), (differ, expected), "{attrs:?}");
    }

    #[test]
    fn attributes_say_what_travels() {
        check(&[], Differ::Metadata, None);
        check(&[("local.differ", "metadata"), ("local.unique", "x")], Differ::Metadata, None);
        check(&[("local.differ", "none")], Differ::None, None);
        check(&[("local.metadatatransfer", "true")], Differ::Metadata, Some(&[]));
        let exceptions = ("local.metadatatransferexclude", r#"["a/**","b"]"#);
        check(&[("local.metadatatransfer", "1"), exceptions], Differ::Metadata, Some(&["a/**", "b"]));
        check(&[("local.metadatatransfer", "false"), exceptions], Differ::Metadata, None);
    }

    #[test]
    fn a_session_may_bring_part_of_the_name() {
        let other = source(&[("local.session", "abc")]).expect("makes sense");
        assert_eq!((other.name.as_str(), other.session.as_deref()), ("dir", Some("abc")));
        let other = source(&[("local.session", "host:abc")]).expect("makes sense");
        assert_eq!((other.name.as_str(), other.session.as_deref()), ("host-dir", Some("abc")));
    }

    #[track_caller]
    fn check_refused(attrs: &[(&str, &str)], expected: &str) {
        assert_eq!(source(attrs).expect_err("makes no sense").to_string(), expected);
    }

    #[test]
    fn what_makes_no_sense_is_said() {
        check_refused(
            &[("local.differ", "content")],
            "source attribute `local.differ` has the invalid value `content`",
        );
        check_refused(
            &[("local.metadatatransfer", "yes")],
            "source attribute `local.metadatatransfer` has the invalid value `yes`",
        );
        check_refused(&[("local.new", "1")], "source attribute `local.new` is not known");
    }
}
