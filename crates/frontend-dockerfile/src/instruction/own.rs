//! `UNSET` and `INCLUDE`, which only our own language has.
//!
//! Owns what they take. Reading an included file is the parser's part, and finding it the caller's.

use super::{Arguments, Reading, Split};
use crate::{
    ast::{Unset, Word},
    diagnostic::Diagnostic,
    dialect::Dialect,
    suggest,
};

/// What `UNSET` takes away, and whether names may follow.
const FIELDS: [(&str, bool); 10] = [
    ("CMD", false),
    ("ENTRYPOINT", false),
    ("ENV", true),
    ("EXPOSE", true),
    ("HEALTHCHECK", false),
    ("LABEL", true),
    ("STOPSIGNAL", false),
    ("USER", false),
    ("VOLUME", true),
    ("WORKDIR", false),
];

impl Reading<'_> {
    /// The file to read in place of the line, if it is an `INCLUDE`.
    pub(crate) fn include(&self, split: &Split) -> Result<Option<Word>, Diagnostic> {
        if self.dialect < Dialect::Own || !split.keyword.text.eq_ignore_ascii_case("INCLUDE") {
            return Ok(None);
        }
        self.flags(split, &[])?;
        match split.words() {
            [word] => Ok(Some(word.clone())),
            _ => Err(self
                .error(split.span, "INCLUDE requires exactly one argument")
                .with_help("write `INCLUDE path/of/file`; variables are not expanded in it")),
        }
    }

    pub(super) fn unset(&self, split: &Split) -> Result<Unset, Diagnostic> {
        let names = || FIELDS.map(|(name, _)| name);
        let Arguments::Words(words) = &split.arguments else {
            return Err(self.error(split.span, "UNSET requires at least one argument"));
        };
        let Some((field, rest)) = words.split_first() else {
            return Err(self
                .error(split.keyword.span, "UNSET requires at least one argument")
                .with_help(format!("what can be unset are {}", names().join(", "))));
        };
        let wanted = field.text.to_ascii_uppercase();
        let Some((name, takes_names)) = FIELDS.iter().find(|(name, _)| *name == wanted) else {
            return Err(self
                .error(field.span, format!("{} cannot be unset", field.text))
                .with_suggestion(suggest::similar_ignoring_case(&field.text, names()))
                .with_help(format!("what can be unset are {}", names().join(", "))));
        };
        if let (false, Some(extra)) = (takes_names, rest.first()) {
            return Err(self.error(extra.span, format!("UNSET {name} takes no names")));
        }
        let names = rest.to_vec();
        Ok(match *name {
            "CMD" => Unset::Cmd,
            "ENTRYPOINT" => Unset::Entrypoint,
            "ENV" => Unset::Env(names),
            "EXPOSE" => Unset::Expose(names),
            "HEALTHCHECK" => Unset::Healthcheck,
            "LABEL" => Unset::Label(names),
            "STOPSIGNAL" => Unset::StopSignal,
            "USER" => Unset::User,
            "VOLUME" => Unset::Volume(names),
            _ => Unset::Workdir,
        })
    }
}
