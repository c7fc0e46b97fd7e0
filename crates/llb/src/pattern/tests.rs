//! Patterns against paths, and that a walk from the top agrees with asking for one path.

use super::*;

#[track_caller]
fn check(patterns: &[&str], path: &str, expected: bool) {
    let matcher = PatternMatcher::new(patterns).expect("sound patterns");
    assert_eq!(matcher.matches(path), expected, "{patterns:?} on {path}");
    // A walk that starts at the top comes to the same answer.
    let mut state = DirectoryMatches::default();
    let mut answer = false;
    for (end, _) in path.match_indices('/').chain([(path.len(), "")]) {
        (answer, state) = matcher.matches_within(&path[..end], &state);
    }
    assert_eq!(answer, expected, "walking {patterns:?} to {path}");
}

#[test]
fn plain_patterns_match_themselves_and_below() {
    check(&["src"], "src", true);
    check(&["src"], "src/main.rs", true);
    check(&["src"], "srcs", false);
    check(&["src/"], "src/a/b", true);
    check(&["./src//x/../y"], "src/y", true);
    check(&["src/main.rs"], "main.rs", false);
    check(&["a.b"], "axb", false);
    check(&["a(b)+{c}|$"], "a(b)+{c}|$", true);
    check(&["."], "a", false);
}

#[test]
fn wildcards_stay_within_a_component() {
    check(&["*"], "a", true);
    check(&["*"], "a/b", true);
    check(&["*.md"], "a/b.md", false);
    check(&["*/*.md"], "a/b.md", true);
    check(&["a?c"], "a/c", false);
    check(&["a?c"], "aéc", true);
    check(&["[a-c]x"], "bx", true);
    check(&["[^a-c]x"], "bx", false);
    check(&["[\\]\\-]"], "-", true);
    check(&["a\\*b"], "a*b", true);
    check(&["a\\*b"], "axb", false);
    check(&["x*y*z"], "xAyByCz", true);
}

#[test]
fn double_stars_cross_components() {
    check(&["**"], "a/b/c", true);
    check(&["**/x"], "x", true);
    check(&["**/x"], "a/b/x", true);
    check(&["**/x"], "a/bx", false);
    check(&["**x"], "a/bx", true);
    check(&["a/**"], "a/b/c", true);
    check(&["a/**"], "a", false);
    check(&["a/**/z"], "a/z", true);
    check(&["a/**/z"], "a/b/c/z", true);
    check(&["a/**/z"], "a/bz", false);
    check(&["**/*.log"], "a/b/c.log", true);
    check(&["**/a/**"], "x/a/y", true);
    check(&["**/a/**"], "x/a", false);
    check(&["a**b"], "ab", true);
    check(&["a**b"], "ax/b", true);
    check(&["a**b"], "axb", false);
}

#[test]
fn the_last_match_decides() {
    check(&["*", "!keep"], "keep", false);
    check(&["*", "!keep"], "keep/inside", false);
    check(&["*", "!keep", "keep/secret"], "keep/secret", true);
    check(&["*", "!keep", "keep/secret"], "keep/other", false);
    check(&["a", "!a/b"], "a/b", false);
    check(&["a", "!a/b"], "a/c", true);
    check(&["!a", "a"], "a", true);
    check(&["**", "!**/*.rs"], "x/y.rs", false);
}

#[test]
fn malformed_patterns_are_errors() {
    for (pattern, expected) in [
        ("[", "syntax error in pattern `[`"),
        ("[]a]", "syntax error in pattern `[]a]`"),
        ("[b-a]", "syntax error in pattern `[b-a]`"),
        ("[-x]", "syntax error in pattern `[-x]`"),
        ("a\\", "syntax error in pattern `a\\`"),
        ("!", "illegal exclusion pattern: \"!\""),
    ] {
        let error = PatternMatcher::new([pattern]).expect_err("malformed");
        assert_eq!(error.to_string(), expected);
    }
    let long = "a".repeat(MAX_PATTERN_LENGTH + 1);
    assert_eq!(PatternMatcher::new([&long]).err(), Some(PatternError::TooLong(long.len())));
    assert!(PatternMatcher::new(["", "  "]).is_ok_and(|matcher| matcher.is_empty()));
}

#[test]
fn walks_know_where_exclusions_wait() {
    let below = |patterns: &[&str], directory: &str| {
        PatternMatcher::new(patterns).expect("sound").exclusion_below(directory)
    };
    assert!(below(&["*", "!a/b/c"], "a"));
    assert!(below(&["*", "!a/b/c"], "a/b"));
    assert!(!below(&["*", "!a/b/c"], "b"));
    assert!(!below(&["*", "!a/b/c"], "a/x"));
    assert!(below(&["*", "!**/x"], "anything"));
    assert!(below(&["*", "!a/*/c"], "a/x"));
    assert!(!below(&["*", "!a/*/c"], "b/x"));
    assert!(!below(&["*"], "a"));
    assert!(below(&["*", "!a/**"], "a/b"));
    assert!(below(&["*", "!a"], "a/b"));
    assert!(!below(&["*", "!ab"], "a"));
}

#[test]
fn globs_know_no_double_star() {
    let glob = |pattern: &str, text: &str| Glob::new(pattern).expect("sound").matches(text);
    assert!(glob("a*b?", "axxbc"));
    assert!(!glob("**", "a/b"));
    assert!(glob("**", "ab"));
    assert!(glob("*/x", "a/x"));
    assert!(Glob::new("a[").is_err());
}

proptest::proptest! {
    #[test]
    fn no_pattern_panics(pattern in "[a-c*?!/.\\\\\\[\\]^-]{0,12}", path in "[a-c/]{0,12}") {
        if let Ok(matcher) = PatternMatcher::new([&pattern]) {
            let found = matcher.matches(&path);
            // Below a directory that cannot hold a match, there is none.
            if let Some((directory, _)) = path.rsplit_once('/') {
                proptest::prop_assert!(!found || matcher.has_exclusions() || matcher.match_below(directory));
            }
        }
    }

    #[test]
    fn long_patterns_agree_with_short_ones(count in 1_usize..400) {
        let pattern = format!("{}z", "?".repeat(count));
        let matcher = PatternMatcher::new([&pattern]).expect("sound");
        let fits = format!("{}z", "a".repeat(count));
        let short = format!("{}z", "a".repeat(count - 1));
        proptest::prop_assert!(matcher.matches(&fits));
        proptest::prop_assert!(!matcher.matches(&short));
    }
}

#[test]
fn ends_of_wild_patterns_may_overlap_in_the_pattern_only() {
    check(&["ab*ba"], "aba", false);
    check(&["ab*ba"], "abba", true);
    check(&["a/**/*a"], "a/a", true);
    check(&["a/**/*a"], "a", false);
    check(&["\\[x*"], "[xy", true);
    check(&["x*\\]"], "xy]", true);
    let matcher = PatternMatcher::new(["src/**/gen/*.rs"]).expect("is a pattern");
    for (directory, expected) in [("src", true), ("src/a", true), ("sr", false), ("lib", false)] {
        assert_eq!(matcher.match_below(directory), expected, "{directory}");
    }
}

#[test]
fn all_short_paths_agree_with_the_states_alone() {
    let patterns = ["a*b", "**/a*", "a/**/b*", "?/a", "[ab]*a", "a**b", "*", "**a?"];
    let letters = ["a", "b", "/"];
    let mut paths = vec![String::new()];
    for _ in 0..4 {
        let longer = paths.iter().flat_map(|path| letters.map(|letter| format!("{path}{letter}")));
        paths = paths.iter().cloned().chain(longer).collect();
    }
    for pattern in patterns {
        let compiled = Pattern::new(pattern).expect("is a pattern");
        let Form::Wild { tokens, .. } = &compiled.form else { continue };
        for path in &paths {
            assert_eq!(compiled.matches(path), tokens.matches(path), "{pattern} {path}");
        }
    }
}
