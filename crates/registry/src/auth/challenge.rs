//! `WWW-Authenticate` (RFC 9110 section 11): what a server wants to be shown. Pure, total, bounded.

use reqwest::header::{HeaderMap, WWW_AUTHENTICATE};

use crate::limits::{MAX_CHALLENGES, MAX_HEADER_VALUE_BYTES};

/// A challenge we can answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Challenge {
    Basic,
    Bearer(Bearer),
}

/// Where a token is to be had, and for what.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Bearer {
    pub(crate) realm: String,
    pub(crate) service: Option<String>,
    pub(crate) scope: Option<String>,
    /// Why the token that was shown did not do (`insufficient_scope`); for messages only.
    pub(crate) error: Option<String>,
}

/// All challenges of an answer that we understand, in its order.
pub(crate) fn challenges(headers: &HeaderMap) -> Vec<Challenge> {
    let values = headers.get_all(WWW_AUTHENTICATE).iter().take(MAX_CHALLENGES);
    let texts =
        values.filter(|value| value.len() <= MAX_HEADER_VALUE_BYTES).filter_map(|value| value.to_str().ok());
    texts.flat_map(parse).take(MAX_CHALLENGES).collect()
}

fn parse(text: &str) -> Vec<Challenge> {
    let mut found: Vec<(String, Vec<(String, String)>)> = Vec::new();
    let mut rest = text;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let (word, after) = token(rest);
        if word.is_empty() {
            break;
        }
        let after_blanks = after.trim_start_matches([' ', '\t']);
        match after_blanks.strip_prefix('=') {
            // A parameter of the challenge before it; without one it belongs to nothing.
            Some(value) => {
                let (value, after) = parameter_value(value.trim_start_matches([' ', '\t']));
                if let Some((_, parameters)) = found.last_mut() {
                    parameters.push((word.to_ascii_lowercase(), value));
                }
                rest = after;
            }
            None => {
                found.push((word.to_ascii_lowercase(), Vec::new()));
                rest = after;
            }
        }
    }
    found.into_iter().filter_map(|(scheme, parameters)| challenge(&scheme, parameters)).collect()
}

fn challenge(scheme: &str, parameters: Vec<(String, String)>) -> Option<Challenge> {
    match scheme {
        "basic" => Some(Challenge::Basic),
        "bearer" => {
            let mut bearer = Bearer::default();
            for (name, value) in parameters {
                match name.as_str() {
                    "realm" => bearer.realm = value,
                    "service" => bearer.service = Some(value),
                    "scope" => bearer.scope = Some(value),
                    "error" => bearer.error = Some(value),
                    _ => {}
                }
            }
            (!bearer.realm.is_empty()).then_some(Challenge::Bearer(bearer))
        }
        _ => None,
    }
}

/// Splits off a token (RFC 9110 section 5.6.2), widened by what base64 needs, so that a challenge in the
/// `token68` form is passed over as one word.
fn token(text: &str) -> (&str, &str) {
    let is_token = |letter: char| letter.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~/:".contains(letter);
    text.split_at(text.find(|letter| !is_token(letter)).unwrap_or(text.len()))
}

fn parameter_value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        // `=` signs that pad a `token68`, or a bare value.
        let (value, rest) = token(text.trim_start_matches('='));
        return (value.to_owned(), rest);
    };
    let mut value = String::new();
    let mut letters = quoted.char_indices();
    while let Some((position, letter)) = letters.next() {
        match letter {
            '"' => return (value, &quoted[position + 1..]),
            '\\' => value.extend(letters.next().map(|(_, escaped)| escaped)),
            other => value.push(other),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Challenge {
        let owned = |text: Option<&str>| text.map(str::to_owned);
        Challenge::Bearer(Bearer {
            realm: realm.into(),
            service: owned(service),
            scope: owned(scope),
            error: None,
        })
    }

    #[track_caller]
    fn check(text: &str, expected: &[Challenge]) {
        assert_eq!(parse(text), expected);
    }

    #[test]
    fn reads_the_challenges_registries_send() {
        check(
            "Bearer realm=\"https://auth.docker.io/token\",service=\"registry.docker.io\",scope=\"repository:library/busybox:pull\"",
            &[bearer(
                "https://auth.docker.io/token",
                Some("registry.docker.io"),
                Some("repository:library/busybox:pull"),
            )],
        );
        check("Basic realm=\"Registry Realm\"", &[Challenge::Basic]);
        check("basic", &[Challenge::Basic]);
        check("BEARER REALM = \"r\" , Service=plain", &[bearer("r", Some("plain"), None)]);
        check(
            "Basic realm=\"a, Bearer realm=b\", Bearer realm=\"c\"",
            &[Challenge::Basic, bearer("c", None, None)],
        );
        check("Bearer realm=\"a\\\"b\"", &[bearer("a\"b", None, None)]);
    }

    #[test]
    fn passes_over_what_it_does_not_know() {
        check("", &[]);
        check("Negotiate YIIabc/+==, Basic realm=\"x\"", &[Challenge::Basic]);
        check("Digest realm=\"d\", nonce=\"n\", Bearer realm=\"r\"", &[bearer("r", None, None)]);
        check("Bearer service=\"no realm\"", &[]);
        check("Bearer realm=\"unterminated", &[bearer("unterminated", None, None)]);
        check("realm=\"orphan\"", &[]);
        check("\u{e9} Basic", &[]);
        check("Bearer realm=\"x\\", &[bearer("x", None, None)]);
    }

    #[test]
    fn cut_and_mangled_headers_end_somewhere() {
        let whole = "Basic realm=\"a\\\"b\", Bearer realm=\"\u{e9}\" ,service=x,, scope = \"repository:a/b:pull\" Negotiate a==";
        for (position, _) in whole.char_indices() {
            let (front, back) = whole.split_at(position);
            for mark in ["", "\"", "\\", "=", ",", " ", "\u{e9}"] {
                let found =
                    parse(&format!("{front}{mark}{back}")).len() + parse(&format!("{front}{mark}")).len();
                assert!(found <= 6, "{front}{mark}{back}");
            }
        }
    }
}
