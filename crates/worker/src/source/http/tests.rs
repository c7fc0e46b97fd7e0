//! What is read of requests, and what is refused.

use super::*;

fn attribute(name: &str, value: &str) -> BTreeMap<String, String> {
    BTreeMap::from([(name.to_owned(), value.to_owned())])
}

#[test]
fn attributes() {
    let source = HttpSource::new("http://h/x", &attribute("http.perm", "0755")).expect("valid");
    assert_eq!((source.mode, source.owner, source.checksum), (0o755, (0, 0), None));
    let source = HttpSource::new("http://h/x", &attribute("http.uid", "1000")).expect("valid");
    assert_eq!((source.mode, source.owner), (0o600, (1000, 0)));
    for (name, value) in [
        ("http.perm", "09"),
        ("http.uid", "x"),
        ("http.checksum", "md5:0"),
        ("http.filename", "a/b"),
        ("http.sig.pubkey", "key"),
    ] {
        assert!(HttpSource::new("http://h/x", &attribute(name, value)).is_err(), "{name}");
    }
}

#[test]
fn only_harmless_headers_are_set_by_definitions() {
    let mut attributes = attribute("http.header.accept", "text/plain");
    attributes.insert("http.header.cookie".to_owned(), "x".to_owned());
    let source = HttpSource::new("http://h/x", &attributes).expect("valid");
    assert_eq!(source.headers.keys().collect::<Vec<_>>(), ["accept"]);
}

#[test]
fn messages_show_no_credentials() {
    let shown = |url: &str| HttpSource::new(url, &BTreeMap::new()).expect("valid").shown();
    assert_eq!(shown("https://me:secret@h.test/a?token=secret"), "https://h.test/a");
    assert!(!shown("https://me:secret@[h/a").contains("secret"));
}

#[test]
fn another_look_is_another_file() {
    let of = |attributes: &BTreeMap<String, String>| {
        HttpSource::new("http://h/x", attributes).expect("valid").identity()
    };
    assert_ne!(of(&attribute("http.perm", "0755")), of(&attribute("http.perm", "0644")));
    assert_ne!(of(&attribute("http.filename", "a")), of(&attribute("http.filename", "b")));
}
