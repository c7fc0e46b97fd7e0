//! What a bill of materials looks at beside the result.

use stave_llb::SourceIdentifier;

use super::*;

#[track_caller]
fn check(text: &str, arguments: &[(&str, &str)], expected: &[&str]) {
    let arguments = arguments.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let lowered = lowered(text, &with(|request| request.build_args.extend(arguments)));
    let names: Vec<_> = lowered.scanned.keys().map(String::as_str).collect();
    assert_eq!(names, expected, "{text}");
    for (name, scanned) in lowered.scanned.iter().filter(|(name, _)| *name != "context") {
        let is_known = |vertex: &Vertex| lowered.definition.vertex(&vertex.digest).is_some();
        assert!(scanned.vertices().iter().all(is_known), "`{name}` is made for the scan alone");
    }
}

const STAGES: &str = "ARG BUILDKIT_SBOM_SCAN_CONTEXT=true\n\
    FROM scratch AS file\nARG BUILDKIT_SBOM_SCAN_STAGE=true\nCOPY a /\n\
    FROM scratch AS base\nARG BUILDKIT_SBOM_SCAN_STAGE=true\nCOPY --from=file /a /\n\
    FROM scratch AS unneeded\nARG BUILDKIT_SBOM_SCAN_STAGE=true\nCOPY --from=file /a /\n\
    FROM base\nARG BUILDKIT_SBOM_SCAN_STAGE=true\n";

#[test]
fn stages_and_the_context_are_scanned_where_the_dockerfile_says() {
    check("FROM scratch AS base\nCOPY a /\nFROM base\n", &[], &[]);
    check(STAGES, &[], &["base", "context", "file"]);
    // Arguments count only where they are declared.
    let undeclared = [("BUILDKIT_SBOM_SCAN_CONTEXT", "true"), ("BUILDKIT_SBOM_SCAN_STAGE", "true")];
    check("FROM scratch AS base\nCOPY a /\nFROM base\n", &undeclared, &[]);
    let off = [("BUILDKIT_SBOM_SCAN_CONTEXT", "false"), ("BUILDKIT_SBOM_SCAN_STAGE", "0")];
    check(STAGES, &off, &[]);
    check(STAGES, &[("BUILDKIT_SBOM_SCAN_STAGE", "unneeded,file")], &["context", "file"]);
    let all = "ARG BUILDKIT_SBOM_SCAN_STAGE=true\n\
        FROM scratch AS one\nCOPY a /\nFROM one AS two\nARG BUILDKIT_SBOM_SCAN_STAGE=false\nFROM two\n";
    check(all, &[], &["one"]);
}

#[test]
fn of_the_context_is_scanned_what_the_build_uses() {
    let scanned = lowered(STAGES, &request()).scanned;
    let Op::Source(source) = &scanned["context"].vertices()[0].op else { panic!("{scanned:?}") };
    assert_eq!(source.identifier, SourceIdentifier::Local { name: "context".into() });
    assert_eq!(source.attrs["local.followpaths"], "[\"a\"]");
}
