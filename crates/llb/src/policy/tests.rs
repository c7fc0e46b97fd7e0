//! Rules one by one, as BuildKit has them.

use super::*;

#[track_caller]
fn check(json: &str, source: &str, expected: Result<Option<&str>, &str>) {
    let policy = SourcePolicy::new(SourcePolicy::rules_of_json(json).expect("is JSON")).expect("is a policy");
    let policies = SourcePolicies::new(vec![policy]).expect("few rules");
    let (raw, attr) = source.split_once(' ').unwrap_or((source, ""));
    let attrs = attr.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
    let found = policies.evaluate(&SourceOp::new(raw, attrs.into_iter().collect()));
    let shown = found.map(|source| {
        source.map(|source| {
            let attrs = source.attrs.iter().map(|(name, value)| format!(" {name}={value}"));
            std::iter::once(source.raw.clone()).chain(attrs).collect::<String>()
        })
    });
    let shown = shown.map_err(|error| error.to_string());
    assert_eq!(shown, expected.map(|text| text.map(str::to_owned)).map_err(str::to_owned));
}

const ALPINE: &str = "docker-image://docker.io/library/alpine:latest";

#[test]
fn the_last_rule_that_allows_or_denies_counts() {
    let denied = Err(
        "source \"docker-image://docker.io/library/alpine:latest\" denied by policy: source denied by policy",
    );
    let deny = r#"{"action":"DENY","selector":{"identifier":"docker-image://docker.io/library/alpine*"}}"#;
    let allow = r#"{"action":"ALLOW","selector":{"identifier":"docker-image://*"}}"#;
    check(&format!(r#"{{"rules":[{deny}]}}"#), ALPINE, denied);
    check(&format!(r#"{{"rules":[{deny},{allow}]}}"#), ALPINE, Ok(None));
    check(&format!(r#"{{"rules":[{allow},{deny}]}}"#), ALPINE, denied);
    check(&format!(r#"{{"rules":[{deny}]}}"#), "docker-image://docker.io/library/busybox:1", Ok(None));
    check(r#"{"version":1}"#, ALPINE, Ok(None));
}

#[test]
fn what_a_rule_is_about() {
    let rule = |selector: &str| format!(r#"{{"rules":[{{"action":1,"selector":{selector}}}]}}"#);
    let denied = Err("source \"https://a.test/b\" denied by policy: source denied by policy");
    let url = "https://a.test/b";
    check(&rule(r#"{"identifier":"https://a.test/b","match_type":"EXACT"}"#), url, denied);
    check(&rule(r#"{"identifier":"https://a.test/*","matchType":"EXACT"}"#), url, Ok(None));
    check(&rule(r#"{"identifier":"a\\.te.t","matchType":"REGEX"}"#), url, denied);
    check(&rule(r#"{"identifier":"a.te.t"}"#), url, Ok(None));
    let constrained = |how: &str, value: &str| {
        rule(&format!(
            r#"{{"identifier":"https://*","constraints":[{{"key":"http.checksum","value":"{value}","condition":"{how}"}}]}}"#
        ))
    };
    check(&constrained("EQUAL", "x"), "https://a.test/b http.checksum=x", denied);
    check(&constrained("EQUAL", "x"), url, Ok(None));
    check(&constrained("NOTEQUAL", "x"), url, denied);
    check(&constrained("MATCHES", "^x+$"), "https://a.test/b http.checksum=xx", denied);
    check(&constrained("MATCHES", "^x+$"), url, Ok(None));
}

#[test]
fn what_takes_the_place_of_a_source() {
    let convert = |selector: &str, updates: &str| {
        format!(r#"{{"rules":[{{"action":"CONVERT","selector":{selector},"updates":{updates}}}]}}"#)
    };
    let pinned = "docker-image://docker.io/library/alpine:latest@sha256:0";
    let exact = format!(r#"{{"identifier":"{ALPINE}"}}"#);
    check(&convert(&exact, &format!(r#"{{"identifier":"{pinned}"}}"#)), ALPINE, Ok(Some(pinned)));
    check(
        &convert(
            r#"{"identifier":"docker-image://docker.io/library/golang:*"}"#,
            r#"{"identifier":"docker-image://docker.io/library/golang:${1}-alpine"}"#,
        ),
        "docker-image://docker.io/library/golang:1.19-alpine-alpine",
        Err("too many mutations on a single source: too many operations"),
    );
    check(
        &convert(
            r#"{"identifier":"https://([a-z]+)\\.test/(.*)","matchType":"REGEX"}"#,
            r#"{"identifier":"https://mirror.example/$1/$2"}"#,
        ),
        "https://a.test/b",
        Ok(Some("https://mirror.example/a/b")),
    );
    check(
        &convert(r#"{"identifier":"https://a.test/b"}"#, r#"{"attrs":{"http.checksum":"sha256:1"}}"#),
        "https://a.test/b",
        Ok(Some("https://a.test/b http.checksum=sha256:1")),
    );
    // What was put there is looked at again.
    let rules = format!(
        r#"{{"rules":[{{"action":"CONVERT","selector":{exact},"updates":{{"identifier":"{pinned}"}}}},
            {{"action":"DENY","selector":{{"identifier":"*@sha256:0"}}}}]}}"#
    );
    check(
        &rules,
        ALPINE,
        Err(
            "source \"docker-image://docker.io/library/alpine:latest@sha256:0\" denied by policy: source denied by policy",
        ),
    );
}

#[test]
fn what_is_no_policy() {
    let error = |json: &str| {
        let rules = SourcePolicy::rules_of_json(json).and_then(SourcePolicy::new);
        rules.expect_err("is refused").to_string()
    };
    assert_eq!(error(r#"{"rules":[null]}"#), "invalid nil rule in policy");
    assert_eq!(error(r#"{"rules":[{}]}"#), "invalid nil selector in policy");
    assert_eq!(
        error(r#"{"rules":[{"selector":{"constraints":[null]}}]}"#),
        "invalid nil constraint in policy"
    );
    assert_eq!(
        error(r#"{"rules":[{"action":"CONVERT","selector":{"identifier":"a"}}]}"#),
        "error mutating source policy: missing destination for convert rule"
    );
    assert_eq!(
        error(r#"{"rules":[{"action":"BURN","selector":{}}]}"#),
        "invalid value of `action` in the policy"
    );
    assert_eq!(
        error(r#"{"rules":[{"selector":{"identifier":"**"}}]}"#),
        "error matching source policy: invalid pattern \"**\": invalid wildcard: \"**\""
    );
    assert!(
        error(r#"{"rules":[{"selector":{"identifier":"(","matchType":"REGEX"}}]}"#)
            .contains("invalid pattern \"(\"")
    );
    assert!(error("[").contains("EOF"));
}
