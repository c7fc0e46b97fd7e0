//! What things are called where people read it: nothing that opens a door. Pure. Start with [`without_credentials`].

use std::borrow::Cow;

/// The text without users and passwords of the addresses in it: `https://me:word@host/` is `https://xxxxx@host/`. A
/// user alone stays in an address of ssh or git, where it is no secret.
pub fn without_credentials(text: &str) -> Cow<'_, str> {
    let mut shown = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + "://".len());
        let end = after.find(|letter: char| matches!(letter, '/' | '?' | '#') || letter.is_whitespace());
        let authority = &after[..end.unwrap_or(after.len())];
        shown.push_str(before);
        let is_http = before.ends_with("http://") || before.ends_with("https://");
        match authority.rsplit_once('@') {
            Some((login, host)) if is_http || login.contains(':') => {
                shown.push_str("xxxxx@");
                shown.push_str(host);
            }
            _ => shown.push_str(authority),
        }
        rest = &after[authority.len()..];
    }
    if shown.is_empty() {
        return Cow::Borrowed(text);
    }
    shown.push_str(rest);
    Cow::Owned(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &str) {
        assert_eq!(without_credentials(text), expected);
    }

    #[test]
    fn credentials_of_addresses_are_left_out() {
        check("ADD https://me:word@a.test/b /", "ADD https://xxxxx@a.test/b /");
        check("ADD https://token@a.test/b.git#v1 /", "ADD https://xxxxx@a.test/b.git#v1 /");
        check("load git source ssh://git@a.test/b", "load git source ssh://git@a.test/b");
        check("ssh://git:word@a.test/b", "ssh://xxxxx@a.test/b");
        check("a http://x:y@h b https://h/@z c", "a http://xxxxx@h b https://h/@z c");
        check("RUN echo a@b: c", "RUN echo a@b: c");
        check("://", "://");
    }
}
