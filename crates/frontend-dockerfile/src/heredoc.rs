//! The `<<` words that announce heredocs.
//!
//! Owns what counts as one and how it says its terminator. Must not know lines; their bodies are cut
//! by `lines`.

use crate::expand::{ExpandError, Expander};

/// How many heredocs one instruction may announce.
const MAX_HEREDOCS: usize = 1000;

/// A `<<` word, read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HeredocWord {
    pub(crate) name: String,
    pub(crate) file_descriptor: u64,
    pub(crate) strip_tabs: bool,
    pub(crate) expand: bool,
}

/// How heredoc words are expanded: not at all, quotes apart, and `\` escapes whatever the file says.
const PLAIN: Expander =
    Expander { escape: '\\', raw_quotes: false, raw_escapes: false, skip_quotes: false, skip_unset: true };

/// Reads a word such as `3<<-'EOF'`; `None` if it is none.
pub(crate) fn parse_word(word: &str) -> Result<Option<HeredocWord>, ExpandError> {
    let digits = word.len() - word.trim_start_matches(|letter: char| letter.is_ascii_digit()).len();
    let Some(rest) = word[digits..].strip_prefix("<<") else { return Ok(None) };
    let (strip_tabs, rest) = rest.strip_prefix('-').map_or((false, rest), |rest| (true, rest));
    let rest = rest.trim_start_matches([' ', '\t', '\n', '\r', '\u{c}']);
    if rest.is_empty() || rest.contains('<') {
        return Ok(None);
    }
    let name = PLAIN.expand(rest, &())?;
    let raw = Expander { raw_quotes: true, ..PLAIN }.expand(rest, &())?;
    let ([name], [raw]) = (name.words.as_slice(), raw.words.as_slice()) else { return Ok(None) };
    let quotes = |text: &str| text.matches(['\'', '"']).count();
    Ok(Some(HeredocWord {
        name: name.clone(),
        file_descriptor: word[..digits].parse().unwrap_or(0),
        strip_tabs,
        expand: quotes(name) == quotes(raw),
    }))
}

/// All heredoc words of an instruction's line, in order.
pub(crate) fn words_of_line(line: &str) -> Result<Vec<HeredocWord>, ExpandError> {
    let lexer = Expander { raw_quotes: true, raw_escapes: true, ..PLAIN };
    // A line with an open quote announces nothing; the shell it is meant for will complain.
    let words = lexer.expand(line, &()).map(|expansion| expansion.words).unwrap_or_default();
    let mut found = Vec::new();
    for word in words {
        found.extend(parse_word(&word)?);
    }
    found.truncate(MAX_HEREDOCS);
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(line: &str, expected: &[(&str, u64, bool, bool)]) {
        let found = words_of_line(line).expect("readable");
        let found: Vec<_> = found
            .iter()
            .map(|word| (word.name.as_str(), word.file_descriptor, word.strip_tabs, word.expand))
            .collect();
        assert_eq!(found, expected, "{line}");
    }

    #[test]
    fn heredoc_words_are_found() {
        check("RUN cat <<EOF", &[("EOF", 0, false, true)]);
        check("RUN cat << EOF > x", &[("EOF", 0, false, true)]);
        check("RUN 3<<-'A B' cat <<\"C\"", &[("A B", 3, true, false), ("C", 0, false, false)]);
        check("RUN cat <<<x", &[]);
        check("RUN echo '<<EOF' \"<<EOF\"", &[]);
        check("RUN x<<EOF", &[]);
        check("RUN $((1<<2))", &[]);
        check("RUN <<'open", &[]);
        check("COPY <<$A /x", &[("$A", 0, false, true)]);
    }
}
