//! Words with variables, as the shell rules of Dockerfiles expand them.

use super::*;
use crate::scope::Variables;

fn variables() -> Variables {
    Variables::from_entries(["USER=ann", "EMPTY=", "FILE=/srv/data.tar.gz", "TWO=left  right", "UMLAUT=äöü"])
}

#[track_caller]
fn check(word: &str, expected: &str) {
    let found = Expander::new('\\').text(word, &variables());
    assert_eq!(found.as_deref().map_err(ToString::to_string), Ok(expected), "{word}");
}

#[track_caller]
fn check_error(word: &str, expected: &str) {
    let found = Expander::new('\\').text(word, &variables()).map_err(|error| error.kind.to_string());
    assert_eq!(found, Err(expected.to_owned()), "{word}");
}

#[track_caller]
fn check_words(word: &str, expected: &[&str]) {
    let found = Expander::new('\\').expand(word, &variables()).map(|expansion| expansion.words);
    assert_eq!(found, Ok(expected.iter().map(|&word| word.to_owned()).collect()), "{word}");
}

#[test]
fn names_end_where_they_must() {
    for (word, expected) in [
        ("$USER", "ann"),
        ("$USER.x", "ann.x"),
        ("$USERx", ""),
        ("${USER}x", "annx"),
        ("a$", "a$"),
        ("$.", "$."),
        ("$1USER", "USER"),
        ("$*USER", "USER"),
        ("${UMLAUT}", "äöü"),
    ] {
        check(word, expected);
    }
}

#[test]
fn words_of_a_list_forget_what_stands_before_a_word_in_braces() {
    check("a${EMPTY:-b}c", "abc");
    check_words("x a${EMPTY:-b}c d", &["x", "bc", "d"]);
    check_words("x a\"${EMPTY:-b}\"c", &["x", "bc"]);
    check_words("a${USER}b", &["aannb"]);
    check_words("\u{feff}a", &["a"]);
}

#[test]
fn quotes_and_escapes_act_as_in_a_shell() {
    for (word, expected) in [
        ("a'$USER'b", "a$USERb"),
        ("a\"$USER\"b", "aannb"),
        ("\\$USER", "$USER"),
        ("\"\\$USER \\n \\\\ \\\"\"", "$USER \\n \\ \""),
        ("a\\nb", "anb"),
        ("a\\", "a"),
        ("'a\\'", "a\\"),
    ] {
        check(word, expected);
    }
    assert_eq!(Expander::new('`').text("`$USER \\$USER", &variables()), Ok("$USER \\ann".to_owned()));
}

#[test]
fn modifiers_choose_defaults() {
    for (word, expected) in [
        ("${USER:-x}", "ann"),
        ("${NO:-x}", "x"),
        ("${EMPTY:-x}", "x"),
        ("${EMPTY-x}", ""),
        ("${NO-x y}", "x y"),
        ("${USER:+x}", "x"),
        ("${USER+x}", "x"),
        ("${EMPTY:+x}", ""),
        ("${EMPTY+x}", "x"),
        ("${NO+x}", ""),
        ("${NO:-${EMPTY:-$USER}}", "ann"),
        ("${NO:-'}'}", "}"),
        ("${USER:?no}", "ann"),
        ("${EMPTY?no}", ""),
    ] {
        check(word, expected);
    }
    check_error("${NO?}", "NO: is not allowed to be unset");
    check_error("${NO:?say it}", "NO: say it");
    check_error("${EMPTY:?}", "EMPTY: is not allowed to be empty");
}

#[test]
fn patterns_trim_and_replace() {
    for (word, expected) in [
        ("${FILE#*/}", "srv/data.tar.gz"),
        ("${FILE##*/}", "data.tar.gz"),
        ("${FILE%.*}", "/srv/data.tar"),
        ("${FILE%%.*}", "/srv/data"),
        ("${FILE#x}", "/srv/data.tar.gz"),
        ("${FILE%???}", "/srv/data.tar"),
        ("${FILE/a/A}", "/srv/dAta.tar.gz"),
        ("${FILE//a/A}", "/srv/dAtA.tAr.gz"),
        ("${FILE//a*/A}", "/srv/dA"),
        ("${FILE/\\//}", "srv/data.tar.gz"),
        ("${FILE//\\//:}", ":srv:data.tar.gz"),
        ("${UMLAUT/ö/o}", "äoü"),
        ("${NO#x}", ""),
        ("${NO//x/y}", ""),
    ] {
        check(word, expected);
    }
    check_error("${FILE#\\a}", "invalid pattern (\\a) in substitution: invalid escape '\\a'");
}

#[test]
fn broken_words_are_errors() {
    for (word, expected) in [
        ("${", "syntax error: missing '}'"),
        ("${USER", "unsupported modifier (\u{fffd}) in substitution"),
        ("${USER:-x", "syntax error: missing '}'"),
        ("${}", "syntax error: bad substitution"),
        ("${:x}", "syntax error: bad substitution"),
        ("${{x}", "syntax error: bad substitution"),
        ("${USER:x}", "unsupported modifier (:x) in substitution"),
        ("${USER:#x}", "unsupported modifier (:#) in substitution"),
        ("${USER!x}", "unsupported modifier (!) in substitution"),
        ("${FILE/x}", "syntax error: missing '/' in ${}"),
        ("${FILE/x/y", "syntax error: missing '}'"),
        ("'x", "unexpected end of statement while looking for matching single-quote"),
        ("\"x", "unexpected end of statement while looking for matching double-quote"),
    ] {
        check_error(word, expected);
    }
    let error = Expander::new('\\').text("${NO?}", &()).expect_err("NO is not set");
    assert_eq!(error.to_string(), "failed to process \"${NO?}\": NO: is not allowed to be unset");
}

#[test]
fn words_split_at_unquoted_space() {
    check_words("a  b\tc ", &["a", "b", "c"]);
    check_words("x$TWO", &["xleft", "right"]);
    check_words("x\"$TWO\"", &["xleft  right"]);
    check_words("a\\ b c", &["a b", "c"]);
    check_words("a 'b c'd", &["a", "b cd"]);
    check_words("a << b", &["a", "<< b"]);
    check_words("", &[]);
}

#[test]
fn display_leaves_quotes_and_unset_variables() {
    let found = Expander::display('\\').text("RUN \"$USER\" ${NO:-x} $NO", &variables());
    assert_eq!(found, Ok("RUN \"ann\" ${NO:-x} $NO".to_owned()));
    let found = Expander::content().text("it's $USER\n", &variables());
    assert_eq!(found, Ok("it's ann\n".to_owned()));
}

#[test]
fn lookups_are_told_apart() {
    let expansion = Expander::new('\\').expand("$USER ${NO:-x}", &variables()).expect("expands");
    assert_eq!(expansion.matched.into_iter().collect::<Vec<_>>(), ["USER"]);
    assert_eq!(expansion.unmatched.into_iter().collect::<Vec<_>>(), ["NO"]);
}

#[test]
fn nesting_is_bounded() {
    let deep = format!("{}x{}", "${A:-".repeat(5000), "}".repeat(5000));
    assert!(Expander::new('\\').text(&deep, &()).is_err());
}
