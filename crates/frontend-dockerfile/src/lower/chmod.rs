//! The value of `--chmod`.
//!
//! Owns octal and symbolic modes; what a symbolic one does to a file is the worker's business. Start
//! with [`parse`].

use stave_llb::CopyMode;

/// Why a mode is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ChmodError {
    #[error("invalid chmod parameter: '{0}'. it should be octal string and between 0 and 07777")]
    Octal(String),
    #[error("invalid syntax")]
    Symbolic,
}

/// Reads `0644`, `u=rwX,go=rX`.
pub(super) fn parse(text: &str) -> Result<CopyMode, ChmodError> {
    let octal = !text.is_empty() && text.bytes().all(|byte| (b'0'..=b'7').contains(&byte));
    if octal {
        let bits = u32::from_str_radix(text, 8).ok().filter(|bits| *bits <= 0o7777);
        return bits.map(CopyMode::Bits).ok_or_else(|| ChmodError::Octal(text.to_owned()));
    }
    if text.starts_with(|letter: char| letter.is_ascii_digit()) {
        return Err(ChmodError::Octal(text.to_owned()));
    }
    match text.split(',').all(is_clause) {
        true => Ok(CopyMode::Symbolic(text.to_owned())),
        false => Err(ChmodError::Symbolic),
    }
}

/// `[ugoa]*` and then at least once an operator and what it sets.
fn is_clause(clause: &str) -> bool {
    let rest = clause.trim_start_matches(['u', 'g', 'o', 'a']);
    rest.starts_with(['+', '-', '=']) && rest.chars().all(|letter| "+-=rwxXstugo".contains(letter))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes() {
        assert_eq!(parse("0755"), Ok(CopyMode::Bits(0o755)));
        assert_eq!(parse("u=rwX,go=rX"), Ok(CopyMode::Symbolic("u=rwX,go=rX".into())));
        assert_eq!(parse("+x"), Ok(CopyMode::Symbolic("+x".into())));
        assert_eq!(parse("10000"), Err(ChmodError::Octal("10000".into())));
        assert_eq!(parse("0999"), Err(ChmodError::Octal("0999".into())));
        for bad in ["", "u", "u=rw,", "x+r", "u=q"] {
            assert_eq!(parse(bad), Err(ChmodError::Symbolic), "{bad}");
        }
    }
}
