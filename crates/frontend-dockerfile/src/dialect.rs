//! Which Dockerfile language a file is written in.
//!
//! Owns what `# syntax=` says about it. Must not know what the languages differ in. Start with [`Dialect`].

use crate::{
    ast::{DirectiveKind, Dockerfile},
    grammar,
};

/// The name of our own language in `# syntax=`.
pub const OWN_SYNTAX: &str = "stave/1";

/// A Dockerfile language; each has all of those before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Dialect {
    /// The reference's stable one, and that of files without `# syntax=`.
    #[default]
    Stable,
    /// The reference's `labs` channel: `RUN --device`.
    Labs,
    /// Ours: see `docs/syntax.md`.
    Own,
}

impl Dialect {
    /// What a `syntax` directive's value asks for; `None` for a front end that is not built in.
    ///
    /// Reference's images are taken under any registry, because mirrors rename only that.
    pub fn of(value: &str) -> Option<Self> {
        // The reference takes the first word and ignores the rest.
        let Some(image) = value.split_whitespace().next() else { return Some(Self::Stable) };
        if image == OWN_SYNTAX {
            return Some(Self::Own);
        }
        let name = image.split('@').next().unwrap_or(image);
        let (path, last) = name.rsplit_once('/')?;
        let (last, tag) = last.split_once(':').unwrap_or((last, ""));
        let is_reference = matches!(last, "dockerfile" | "dockerfile-upstream")
            && (path == "docker" || path.ends_with("/docker"));
        let labs = tag == "labs" || tag.ends_with("-labs");
        is_reference.then_some(if labs { Self::Labs } else { Self::Stable })
    }
}

impl Dockerfile {
    /// The language that its `# syntax=` names; the stable one if it names a foreign front end.
    pub fn dialect(&self) -> Dialect {
        let directive = self.directives.iter().find(|directive| directive.kind == DirectiveKind::Syntax);
        directive.and_then(|directive| Dialect::of(&directive.value)).unwrap_or_default()
    }
}

/// The value of `syntax` in a text of whatever language: `# syntax=`, `// syntax=`, or a JSON object's member. A line
/// `#!` before the first two is passed over.
pub fn syntax_of(text: &str) -> Option<String> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let text = if text.starts_with("#!") { text.split_once('\n').map_or("", |(_, rest)| rest) } else { text };
    directive_behind("#", text).or_else(|| directive_behind("//", text)).or_else(|| {
        let object: serde_json::Map<String, serde_json::Value> = serde_json::from_str(text).ok()?;
        object.get("syntax")?.as_str().map(str::to_owned)
    })
}

/// `syntax` among the directives that the text begins with.
fn directive_behind(comment: &str, text: &str) -> Option<String> {
    let mut seen = Vec::new();
    for line in text.lines() {
        let (name, value) = grammar::directive(line.strip_prefix(comment)?.trim_start())?;
        let name = name.to_ascii_lowercase();
        if name == "syntax" {
            return Some(value.to_owned());
        }
        if !matches!(name.as_str(), "escape" | "check") || seen.contains(&name) {
            return None;
        }
        seen.push(name);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_syntax_of_any_text() {
        let check =
            |text: &str, expected: Option<&str>| assert_eq!(syntax_of(text).as_deref(), expected, "{text}");
        check("# syntax = a/b // opts\nFROM x", Some("a/b // opts"));
        check("\u{feff}#!/bin/sh\r\n# escape=`\r\n# SYNTAX=a\r\n", Some("a"));
        check("#!/bin/sh\n\n# syntax=a", None);
        check("# other=1\n# syntax=a", None);
        check(" # syntax=a", None);
        check("//syntax=a\n//key=value", Some("a"));
        check("{\"syntax\": \"a\", \"bar\": [\"b\"]}", Some("a"));
        check("{\"syntax\": \"a\"", None);
        check("{\"syntax\": \"a\"}\n# syntax=b", None);
        check("", None);
    }

    #[track_caller]
    fn check(value: &str, expected: Option<Dialect>) {
        assert_eq!(Dialect::of(value), expected, "{value}");
    }

    #[test]
    fn languages_by_name() {
        check("docker/dockerfile:1", Some(Dialect::Stable));
        check("docker.io/docker/dockerfile-upstream:master", Some(Dialect::Stable));
        check("mirror.example/docker/dockerfile:1.7-labs", Some(Dialect::Labs));
        check("docker/dockerfile:labs extra words", Some(Dialect::Labs));
        check("docker/dockerfile:1@sha256:0123", Some(Dialect::Stable));
        check("stave/1", Some(Dialect::Own));
        check("stave/2", None);
        check("example/dockerfile", None);
        check("docker/other:1", None);
        check("dockerfile", None);
        check("", Some(Dialect::Stable));
    }
}
