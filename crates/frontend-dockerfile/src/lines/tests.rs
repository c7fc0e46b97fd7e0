//! How bytes become logical lines: directives, continuations, comments, heredocs.

use super::*;

#[track_caller]
fn check(text: &str, expected: &[(&str, u32, u32)]) {
    let mut reader = LineReader::new(text);
    let mut found = Vec::new();
    while let Some(line) = reader.next_line() {
        found.push((line.line.text().to_owned(), line.lines.first, line.lines.last));
    }
    let expected: Vec<_> =
        expected.iter().map(|&(text, first, last)| (text.to_owned(), first, last)).collect();
    assert_eq!(found, expected);
}

#[test]
fn continuations_join_and_drop_comments() {
    check(
        "FROM a\n\n# c\nRUN x \\\n  # in between\n\n  y\\\nz\nRUN w",
        &[("FROM a", 1, 1), ("RUN x   yz", 4, 8), ("RUN w", 9, 9)],
    );
    check("\u{feff}FROM a\r\nRUN x \\\r\n y\r\n", &[("FROM a", 1, 1), ("RUN x  y", 2, 3)]);
    check("RUN x \\  \t\ny", &[("RUN x y", 1, 2)]);
    check("RUN x\\\\\ny", &[("RUN x\\\\", 1, 1), ("y", 2, 2)]);
    check("RUN x \\", &[("RUN x ", 1, 1)]);
    check("\\\nRUN x", &[("RUN x", 1, 2)]);
    check("  \n\t# c\n", &[]);
}

#[test]
fn the_escape_directive_changes_continuations() {
    check("# escape=`\nRUN x `\n y\\\nRUN z", &[("RUN x  y\\", 2, 3), ("RUN z", 4, 4)]);
    check("# c\n# escape=`\nRUN x `\nRUN y", &[("RUN x `", 3, 3), ("RUN y", 4, 4)]);
    check("#!/bin/x\n# escape=`\nRUN x `\nRUN y", &[("RUN x `", 3, 3), ("RUN y", 4, 4)]);
}

#[test]
fn only_the_parsers_own_directive_may_be_indented() {
    let kinds = |text: &str| {
        let mut reader = LineReader::new(text);
        let found = reader.take_directives().0.into_iter().map(|directive| directive.kind);
        (found.collect::<Vec<_>>(), reader.escape())
    };
    assert_eq!(
        kinds("# check=skip=all\n # escape=`\n"),
        (vec![DirectiveKind::Check, DirectiveKind::Escape], '`')
    );
    assert_eq!(kinds(" # escape=`\n# check=skip=all\n"), (vec![DirectiveKind::Escape], '`'));
    assert_eq!(kinds(" # syntax=x\n"), (Vec::new(), '\\'));
    assert_eq!(kinds("#!sh\n# check=a\n# check=b\n# syntax=c\n"), (vec![DirectiveKind::Check], '\\'));
}

#[test]
fn bad_directives_are_reported() {
    let errors = |text: &str| -> Vec<String> {
        LineReader::new(text).take_directives().1.into_iter().map(|(error, _)| error.to_string()).collect()
    };
    assert_eq!(errors("# escape=x\n"), ["invalid escape token 'x' does not match ` or \\"]);
    assert_eq!(errors("# check=a\n# CHECK=b\n"), ["only one check parser directive can be used"]);
}

#[test]
fn spans_lead_back_to_the_file() {
    let text = "RUN aé \\\n# c\n  b\\\nc\n";
    let line = LineReader::new(text).next_line().expect("an instruction");
    let joined = line.line.text().to_owned();
    assert_eq!(joined, "RUN aé   bc");
    let at = joined.find('b').expect("b is in it");
    assert_eq!(&text[Range::from(line.source_span(at..at + 2))], "b\\\nc");
    assert_eq!(&text[Range::from(line.source_span(4..7))], "aé");
    assert_eq!(&text[Range::from(line.span)], "RUN aé \\\n# c\n  b\\\nc");
}

#[test]
fn heredocs_end_at_their_terminator() {
    let text = "RUN <<-A\n\tx\r\n\tA\nRUN y";
    let mut reader = LineReader::new(text);
    reader.next_line().expect("an instruction");
    let body = reader.heredoc("A", true).expect("terminated");
    assert_eq!((body.content.as_str(), body.last_line), ("\tx\r\n", 3));
    assert_eq!(reader.next_line().map(|line| line.lines.first), Some(4));
    assert_eq!(reader.heredoc("A", false), None);
}

#[test]
fn comments_gather_above_an_instruction() {
    let mut reader = LineReader::new("# gone\n#\n# one\n\n# two\nRUN x\nRUN y");
    assert_eq!(reader.next_line().map(|line| line.comments), Some(vec!["one".to_owned(), "two".to_owned()]));
    assert_eq!(reader.next_line().map(|line| line.comments), Some(Vec::new()));
}

#[test]
fn long_lines_are_refused() {
    let errors = |text: &str| LineReader::new(text).take_directives().1.len();
    assert_eq!(errors(&format!("FROM {}\n", "a".repeat(MAX_LINE_LENGTH - 5))), 0);
    assert_eq!(errors(&format!("FROM {}\n", "a".repeat(MAX_LINE_LENGTH))), 1);
}
