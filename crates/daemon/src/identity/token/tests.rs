//! Tokens that let somebody in, and those that do not; made with openssl by keys that are nowhere else.

use super::*;

const KEYS: &[u8] = include_bytes!("../../../../../testdata/daemon/keys.json");
const TOKENS: &str = include_str!("../../../../../testdata/daemon/tokens.json");

fn tokens() -> Tokens {
    let issuer =
        Issuer::new("https://issuer.example".to_owned(), vec!["stave".to_owned()], "sub".to_owned(), KEYS);
    let file = format!("# people\nalice {}\n", Digest::sha256(b"correct horse").hex());
    Tokens::new(&file, vec![issuer.expect("keys")]).expect("tokens")
}

#[track_caller]
fn check(name: &str, expected: Result<&str, &str>) {
    let all: HashMap<String, String> = serde_json::from_str(TOKENS).expect("an object");
    let found = tokens().verify(&all[name]).map_err(|error| error.to_string());
    match (&found, expected) {
        (Ok(identity), Ok(expected)) => assert_eq!(identity.as_str(), expected),
        (Err(words), Err(expected)) => assert!(words.contains(expected), "{name}: {words}"),
        _ => panic!("{name}: {found:?}"),
    }
}

#[test]
fn signed_tokens() {
    for algorithm in ["RS256", "ES256", "EdDSA", "without-key-id"] {
        check(algorithm, Ok("oidc:repo:team/app"));
    }
    check("expired", Err("ExpiredSignature"));
    check("not-yet", Err("ImmatureSignature"));
    check("other-audience", Err("InvalidAudience"));
    check("other-issuer", Err("InvalidIssuer"));
    check("without-name", Err("no claim `sub`"));
    check("without-end", Err("exp"));
    check("tampered", Err("InvalidSignature"));
    check("unsigned", Err("not known"));
    check("symmetric", Err("no key of this id and algorithm"));
}

#[test]
fn known_tokens() {
    let tokens = tokens();
    assert_eq!(tokens.verify("correct horse").expect("known").as_str(), "token:alice");
    assert_eq!(tokens.verify("wrong horse"), Err(TokenError::Unknown));
    assert_eq!(tokens.verify(&"x".repeat(MAX_TOKEN + 1)), Err(TokenError::Unknown));
    // The hash that is in the file is no token.
    assert_eq!(tokens.verify(Digest::sha256(b"correct horse").hex()), Err(TokenError::Unknown));
}

#[test]
fn files_that_hold_none() {
    assert_eq!(Tokens::new("alice", Vec::new()).err(), Some(KeyError::Line(1)));
    assert_eq!(Tokens::new("# x\nalice abc", Vec::new()).err(), Some(KeyError::Line(2)));
    let issuer = |keys: &str| Issuer::new(String::new(), Vec::new(), String::new(), keys.as_bytes()).err();
    assert!(matches!(issuer("{}"), Some(KeyError::Set(_))));
    let symmetric = r#"{"keys":[{"kty":"oct","kid":"s","k":"AAAA"}]}"#;
    assert_eq!(issuer(symmetric), Some(KeyError::Kind("s".to_owned())));
}
