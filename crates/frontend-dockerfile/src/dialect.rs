//! Which Dockerfile language a file is written in.
//!
//! Owns what `# syntax=` says about it. Must not know what the languages differ in. Start with [`Dialect`].

use crate::ast::{DirectiveKind, Dockerfile};

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

#[cfg(test)]
mod tests {
    use super::*;

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
