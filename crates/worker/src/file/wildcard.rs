//! Single path components with wildcards: telling them from literal names, matching, unescaping.
//! The language is that of [`Glob`]. Must not know ops or directories. Read [`matches`] first.

use stave_llb::pattern::Glob;

/// Whether a path component carries a wildcard.
pub(crate) fn has_wildcard(component: &str) -> bool {
    let mut characters = component.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => {
                characters.next();
            }
            '*' | '?' | '[' => return true,
            _ => {}
        }
    }
    false
}

/// Matches one name against one component. A malformed pattern matches nothing.
pub(crate) fn matches(pattern: &str, name: &str) -> bool {
    Glob::new(pattern).is_ok_and(|glob| glob.matches(name))
}

/// The literal name a component without wildcards stands for.
pub(crate) fn unescape(component: &str) -> String {
    let mut literal = String::with_capacity(component.len());
    let mut characters = component.chars();
    while let Some(character) = characters.next() {
        literal.push(if character == '\\' { characters.next().unwrap_or('\\') } else { character });
    }
    literal
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(pattern: &str, name: &str, expected: bool) {
        assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
    }

    #[test]
    fn components() {
        check("abc", "abc", true);
        check("*", "abc", true);
        check("*", "", true);
        check("*c", "abc", true);
        check("a*", "a", true);
        check("a*b*c", "aXbYbZc", true);
        check("a*b*c", "aXbYbZ", false);
        check("ab[c]", "abc", true);
        check("ab[b-d]", "abc", true);
        check("ab[e-g]", "abc", false);
        check("ab[^c]", "abc", false);
        check("ab[^e-g]", "abc", true);
        check("a\\*b", "a*b", true);
        check("a\\*b", "ab", false);
        check("a?b", "a☺b", true);
        check("a[^a]b", "a☺b", true);
        check("[a-ζ]*", "α", true);
        check("[\\]a]", "]", true);
        check("[\\-x]", "-", true);
        check("[]a]", "]", false);
        check("[-x]", "x", false);
        check("[", "a", false);
        check("a[", "ab", false);
        check("*x", "xxx", true);
    }

    #[test]
    fn escapes() {
        assert!(!has_wildcard("a\\*b"));
        assert!(has_wildcard("a\\\\*"));
        assert_eq!(unescape("a\\[b\\]"), "a[b]");
    }
}
