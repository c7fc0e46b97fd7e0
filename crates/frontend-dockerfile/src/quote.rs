//! Text in double quotes as the reference prints it in messages and histories.
//!
//! Owns Go's `%q`: messages carry over, so their quoting must.

use std::fmt::Write as _;

/// `text` in double quotes, with quotes, backslashes and what is not printable escaped.
pub(crate) fn quote(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for letter in text.chars() {
        match letter {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\u{7}' => quoted.push_str("\\a"),
            '\u{8}' => quoted.push_str("\\b"),
            '\u{c}' => quoted.push_str("\\f"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            '\u{b}' => quoted.push_str("\\v"),
            '\0'..='\u{1f}' | '\u{7f}' => push_hex(&mut quoted, "\\x", 2, letter),
            _ if is_printable(letter) => quoted.push(letter),
            '\u{80}'..='\u{ffff}' => push_hex(&mut quoted, "\\u", 4, letter),
            _ => push_hex(&mut quoted, "\\U", 8, letter),
        }
    }
    quoted.push('"');
    quoted
}

/// Texts in quotes, separated by spaces, in brackets: Go's `%q` of a list.
pub(crate) fn quote_list<S: AsRef<str>>(texts: &[S]) -> String {
    let quoted: Vec<String> = texts.iter().map(|text| quote(text.as_ref())).collect();
    format!("[{}]", quoted.join(" "))
}

/// Beyond ASCII, Rust's own notion of what must be escaped when shown is used.
fn is_printable(letter: char) -> bool {
    match letter {
        ' '..='~' => true,
        // A combining mark is printable to Go; Rust escapes it only at the start of a string.
        _ => {
            !letter.is_control()
                && (!letter.is_whitespace())
                && format!("a{letter}").escape_debug().count() == 2
        }
    }
}

fn push_hex(quoted: &mut String, prefix: &str, width: usize, letter: char) {
    // Writing to a string cannot fail.
    let _infallible = write!(quoted, "{prefix}{:0width$x}", u32::from(letter));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_as_go_does() {
        assert_eq!(quote("a \"b\" \\ é\t\u{1}\u{7f}"), r#""a \"b\" \\ é\t\x01\x7f""#);
        assert_eq!(quote("\u{a0}\u{200b}\u{1f600}\u{301}"), "\"\\u00a0\\u200b\u{1f600}\u{301}\"");
        assert_eq!(quote_list(&["a", "b c"]), r#"["a" "b c"]"#);
    }
}
