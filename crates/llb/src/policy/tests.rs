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

/// One rule of each selector, and what it comes to for an image by its short name.
#[test]
fn an_image_is_matched_by_its_whole_name() {
    let denied = Err("source \"docker-image://alpine\" denied by policy: source denied by policy");
    let one = |action: &str, selector: &str| {
        format!(r#"{{"action":"{action}","selector":{{"identifier":"{selector}"}}}}"#)
    };
    let rules = |rules: &[String]| format!(r#"{{"rules":[{}]}}"#, rules.join(","));
    check(&rules(&[one("DENY", ALPINE)]), "docker-image://alpine", denied);
    check(&rules(&[one("DENY", "docker-image://docker.io/*")]), "docker-image://alpine", denied);
    check(&rules(&[one("DENY", "docker-image://alpine")]), "docker-image://alpine", denied);
    check(&rules(&[one("DENY", "*"), one("ALLOW", ALPINE)]), "docker-image://alpine", Ok(None));
    // Nothing is let in by a name that is not the one under which it is fetched.
    check(
        &rules(&[one("DENY", "*"), one("ALLOW", "docker-image://alpine")]),
        "docker-image://alpine",
        denied,
    );
    check(
        &rules(&[one("DENY", "https://*")]),
        "https://a\nb",
        Err("source \"https://a\\nb\" denied by policy: source denied by policy"),
    );
}

#[test]
fn a_repository_is_matched_by_what_is_fetched() {
    let deny = |selector: &str| {
        format!(r#"{{"rules":[{{"action":"DENY","selector":{{"identifier":"{selector}"}}}}]}}"#)
    };
    let below = deny("git://a.test/b.git#v1:d");
    let denied = |raw: &str| format!("source {raw:?} denied by policy: source denied by policy");
    for raw in ["git://a.test/b.git#v1:d", "git://a.test/b.git#v1:/d/", "git://A.test//b.git#v1:d"] {
        check(&below, raw, Err(&denied(raw)));
    }
    let raw = "git://elsewhere.test/x#v1:d";
    check(&below, &format!("{raw} git.fullurl=https://a.test/b.git"), Err(&denied(raw)));
    check(&below, "git://a.test/b.git#v1:e", Ok(None));
    let shown = denied("git://a.test/b.git#v1:d");
    check(&below, "git://me:secret@a.test/b.git#v1:d", Err(&shown));
    let only = r#"{"rules":[{"action":"DENY","selector":{"identifier":"*"}},
        {"action":"ALLOW","selector":{"identifier":"git://a.test/*"}}]}"#;
    check(only, "git://a.test/b.git", Ok(None));
    check(only, "git://a.test/b.git git.fullurl=git@a.test:b.git", Ok(None));
    check(only, "git://a.test/b.git git.fullurl=https://b.test/b.git", Err(&denied("git://a.test/b.git")));
}

#[test]
fn what_a_rule_makes_has_an_end() {
    let grows = r#"{"rules":[{"action":"CONVERT","selector":{"identifier":"https://*"},
        "updates":{"identifier":"https://$1$1$1$1$1$1$1$1"}}]}"#;
    let long = "an identifier of more than 4096 bytes under source policies";
    check(grows, "https://aaaaaaaaaa", Err(long));
    check(grows, &format!("https://{}", "a".repeat(5000)), Err(long));
    // Without rules nothing is asked of it.
    check(r#"{"version":1}"#, &format!("https://{}", "a".repeat(5000)), Ok(None));
}

#[test]
fn what_is_compiled_is_bounded() {
    let rule = |identifier: &str, match_type| RuleSpec {
        identifier: identifier.to_owned(),
        match_type,
        ..RuleSpec::default()
    };
    let pattern = rule("https://*", MatchType::Wildcard);
    let matches = |count| RuleSpec {
        constraints: vec![("k".to_owned(), "v".to_owned(), AttrMatch::Matches); count],
        ..rule("x", MatchType::Exact)
    };
    let refused = |rules: Vec<RuleSpec>| SourcePolicy::new(rules).expect_err("is refused");
    assert_eq!(refused(vec![pattern.clone(); MAX_PATTERNS + 1]), PolicyError::TooManyPatterns);
    assert_eq!(refused(vec![matches(MAX_CONSTRAINTS); 8]), PolicyError::TooManyPatterns);
    assert_eq!(refused(vec![matches(MAX_CONSTRAINTS + 1)]), PolicyError::TooManyConstraints);
    assert_eq!(refused(vec![rule(&"a".repeat(5000), MatchType::Exact)]), PolicyError::TooLong);
    assert!(matches!(refused(vec![rule(r"\w{900}", MatchType::Regex)]), PolicyError::Pattern { .. }));
    // A text without `*` is no pattern.
    let texts = vec![rule("https://a.test", MatchType::Wildcard); MAX_RULES];
    assert_eq!(SourcePolicy::new(texts.clone()).expect("are texts").patterns, 0);
    let several = |policies| SourcePolicy::several(policies).map(|_| ()).expect_err("is refused");
    assert_eq!(several(vec![vec![pattern.clone(); 300]; 2]), PolicyError::TooManyPatterns);
    assert_eq!(several(vec![texts, vec![pattern.clone()]]), PolicyError::TooManyRules);
    assert_eq!(several(vec![Vec::new(); MAX_POLICIES + 1]), PolicyError::TooManyPolicies);
    let one = SourcePolicy::new(vec![pattern; 300]).expect("few patterns");
    assert_eq!(SourcePolicies::new(vec![one.clone(), one]).expect_err("many"), PolicyError::TooManyPatterns);
}

#[test]
fn a_text_without_a_pattern_is_still_expanded() {
    let rules = r#"{"rules":[{"action":"CONVERT","selector":{"identifier":"https://a.test/b"},
        "updates":{"identifier":"${0}?c"}}]}"#;
    check(rules, "https://a.test/b", Ok(Some("https://a.test/b?c")));
}
