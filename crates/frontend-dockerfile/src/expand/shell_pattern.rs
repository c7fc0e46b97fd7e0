//! The patterns of `${x#…}`, `${x%…}` and `${x/…/…}`: `*`, `?` and escapes, no bracket expressions.
//!
//! Owns matching by state sets, so that the time is bounded by pattern times text. Must not know
//! variables. Semantics are those of a leftmost regular expression in which `*` does not cross a
//! newline and takes as much (or, for the short forms, as little) as it can.

use super::ExpandErrorKind;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    Star,
    Any,
    Letter(char),
}

fn tokens(pattern: &[char], whole: &str) -> Result<Vec<Token>, ExpandErrorKind> {
    let mut tokens = Vec::with_capacity(pattern.len());
    let mut letters = pattern.iter().copied().peekable();
    while let Some(letter) = letters.next() {
        tokens.push(match letter {
            '*' => Token::Star,
            '?' => Token::Any,
            // A brace or slash is escaped for the sake of the substitution, not of the pattern.
            '\\' if matches!(letters.peek(), Some('}' | '/')) => continue,
            '\\' => match letters.next() {
                Some(escaped @ ('*' | '?' | '\\')) => Token::Letter(escaped),
                other => {
                    return Err(ExpandErrorKind::InvalidPattern {
                        pattern: whole.to_owned(),
                        escaped: other.unwrap_or('\u{fffd}'),
                    });
                }
            },
            other => Token::Letter(other),
        });
    }
    Ok(tokens)
}

/// The length of the shortest or longest match at the start of `text`.
fn match_start(tokens: &[Token], text: &[char], longest: bool) -> Option<usize> {
    let mut states = vec![false; tokens.len() + 1];
    states[0] = true;
    let mut found = None;
    for position in 0..=text.len() {
        // A star may match nothing.
        for index in 0..tokens.len() {
            states[index + 1] |= states[index] && tokens[index] == Token::Star;
        }
        if states[tokens.len()] {
            found = Some(position);
            if !longest {
                return found;
            }
        }
        let Some(&letter) = text.get(position) else { break };
        let mut next = vec![false; tokens.len() + 1];
        for (index, token) in tokens.iter().enumerate().filter(|&(index, _)| states[index]) {
            match token {
                Token::Star if letter != '\n' => next[index] = true,
                Token::Any if letter != '\n' => next[index + 1] = true,
                Token::Letter(wanted) if *wanted == letter => next[index + 1] = true,
                _ => {}
            }
        }
        if !next.contains(&true) {
            break;
        }
        states = next;
    }
    found
}

/// `value` without the shortest or longest start that matches.
pub(super) fn trim_prefix(pattern: &str, value: &str, greedy: bool) -> Result<String, ExpandErrorKind> {
    let letters: Vec<char> = pattern.chars().collect();
    let tokens = tokens(&letters, pattern)?;
    let value: Vec<char> = value.chars().collect();
    let length = match_start(&tokens, &value, greedy).unwrap_or(0);
    Ok(value[length..].iter().collect())
}

/// `value` without the shortest or longest end that matches.
pub(super) fn trim_suffix(pattern: &str, value: &str, greedy: bool) -> Result<String, ExpandErrorKind> {
    let letters: Vec<char> = pattern.chars().collect();
    let reversed = reverse(&letters);
    let shown: String = reversed.iter().collect();
    let tokens = tokens(&reversed, &shown)?;
    let value: Vec<char> = value.chars().rev().collect();
    let length = match_start(&tokens, &value, greedy).unwrap_or(0);
    Ok(value[length..].iter().rev().collect())
}

/// The pattern backwards, each escape still before what it escapes.
fn reverse(pattern: &[char]) -> Vec<char> {
    let mut reversed = Vec::with_capacity(pattern.len());
    let mut at = 0;
    while at < pattern.len() {
        let escapes = pattern[at] == '\\' && at + 1 < pattern.len();
        if escapes {
            reversed.push(pattern[at + 1]);
        }
        reversed.push(pattern[at]);
        at += if escapes { 2 } else { 1 };
    }
    reversed.reverse();
    reversed
}

/// `value` with the first match, or all, replaced; matches are the longest, leftmost first.
pub(super) fn replace(
    pattern: &str,
    value: &str,
    replacement: &str,
    all: bool,
) -> Result<String, ExpandErrorKind> {
    let letters: Vec<char> = pattern.chars().collect();
    let tokens = tokens(&letters, pattern)?;
    let value: Vec<char> = value.chars().collect();
    let mut output = String::new();
    let mut at = 0;
    let mut after_match = false;
    while at <= value.len() {
        let length = match_start(&tokens, &value[at..], true);
        match length {
            Some(0) if after_match => {}
            Some(length) => {
                output.push_str(replacement);
                at += length;
                after_match = length > 0;
                if !all {
                    output.extend(&value[at..]);
                    return Ok(output);
                }
                if length > 0 {
                    continue;
                }
            }
            None => {}
        }
        after_match = false;
        output.extend(value.get(at));
        at += 1;
    }
    Ok(output)
}
