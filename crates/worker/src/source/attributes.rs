//! Values of sources' attributes that mean the same for several kinds of sources. Pure.

/// A number as Go reads it: octal after `0`, hexadecimal after `0x`, else decimal.
pub(super) fn number(text: &str) -> Option<u32> {
    match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => match text.strip_prefix('0').filter(|rest| !rest.is_empty()) {
            Some(digits) => u32::from_str_radix(digits.trim_start_matches(['o', 'O']), 8).ok(),
            None => text.parse().ok(),
        },
    }
}

/// A file's name out of any text, as BuildKit makes it: the last part of a path.
pub(super) fn file_name(text: &str) -> String {
    let path = text.trim().trim_end_matches('/');
    let name = path.rsplit('/').next().unwrap_or_default();
    let is_name = !matches!(name, "" | "." | "..") && !name.contains(|letter: char| letter.is_control());
    if is_name { name.to_owned() } else { "download".to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_files() {
        let check = |text: &str, expected: &str| assert_eq!(file_name(text), expected, "{text:?}");
        for text in ["", " ", ".", "..", "../", "a/..", "/", "a\0b", "a\nb"] {
            check(text, "download");
        }
        check("foo.txt", "foo.txt");
        check("  a b.txt ", "a b.txt");
        check("a/b/c.txt", "c.txt");
        check("../../c", "c");
        check("c/", "c");
    }
}
