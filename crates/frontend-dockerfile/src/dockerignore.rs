//! The ignore file of a build context.
//!
//! Owns its lines: comments, blanks, and the shape in which patterns are handed to
//! [`stave_llb::pattern::PatternMatcher`]. Must not know the context.

use stave_llb::pattern;

/// The patterns of an ignore file, cleaned, in order; `!` stays in front.
pub fn parse(text: &str) -> Vec<String> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    text.lines().filter(|line| !line.starts_with('#')).filter_map(pattern_of).collect()
}

fn pattern_of(line: &str) -> Option<String> {
    let line = line.trim();
    let (sign, path) = line.strip_prefix('!').map_or(("", line), |path| ("!", path.trim()));
    if path.is_empty() {
        // A lone `!` is kept, so that compiling the patterns complains about it.
        return (!sign.is_empty()).then(|| sign.to_owned());
    }
    let cleaned = pattern::clean(path);
    let relative = cleaned.strip_prefix('/').filter(|rest| !rest.is_empty()).unwrap_or(&cleaned);
    Some(format!("{sign}{relative}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_become_patterns() {
        let text = "\u{feff}# comment\n\n  src/../a/  \r\n/abs\n! ./b//c\n #d\n!\n/\n**/\n";
        assert_eq!(parse(text), ["a", "abs", "!b/c", "#d", "!", "/", "**"]);
    }
}
