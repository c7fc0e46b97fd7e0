//! Addresses of downloads as text.
//!
//! Owns which sources of `ADD` are downloads and what their files are called. Must not fetch anything.

use crate::path;

/// Whether a source is an address. Repositories are to be told apart first.
pub(crate) fn is_url(source: &str) -> bool {
    source.starts_with("http://") || source.starts_with("https://")
}

/// The name a download gets: the last part of the address's path.
pub(crate) fn file_name(url: &str) -> String {
    const UNNAMED: &str = "__unnamed__";
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let rest = rest.split(['?', '#']).next().unwrap_or_default();
    let Some((authority, path)) = rest.split_once('/') else { return UNNAMED.to_owned() };
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let port = host.rsplit_once(']').map_or(host, |(_, rest)| rest).split_once(':').map(|(_, port)| port);
    if port.is_some_and(|port| !port.bytes().all(|byte| byte.is_ascii_digit())) {
        return UNNAMED.to_owned();
    }
    match decoded(path).as_deref().map(path::base) {
        None | Some("." | "/") => UNNAMED.to_owned(),
        Some(name) => name.to_owned(),
    }
}

/// `%41` and the like as the bytes they stand for; `None` where that is not sound.
pub(crate) fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || char::from(rest.next()?).to_digit(16);
        let value = digit()? * 16 + digit()?;
        bytes.push(u8::try_from(value).ok()?);
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn downloads_are_named_by_their_path() {
        assert_eq!(file_name("https://a.test/b/c%20d.tar?x=/y"), "c d.tar");
        assert_eq!(file_name("https://a.test/b/"), "b");
        assert_eq!(file_name("https://a.test"), "__unnamed__");
        assert_eq!(file_name("https://a.test/"), "__unnamed__");
        assert_eq!(file_name("https://a.test/%zz"), "__unnamed__");
        assert_eq!(file_name("https://a.test:8x/b"), "__unnamed__");
        assert_eq!(file_name("https://u:p@[::1]:80/b"), "b");
    }
}
