//! Similar names, for "did you mean".
//!
//! Owns the distance and how near is near enough: at most two edits.

/// One more than the edits a suggestion may be away.
const DISTANCE_LIMIT: usize = 3;
/// Longer words are not compared.
const MAX_LENGTH: usize = 100;

/// The option nearest to `word`; `None` if none is near or `word` is one itself.
pub(crate) fn similar<'a>(word: &str, options: impl IntoIterator<Item = &'a str>) -> Option<String> {
    if word.len() > MAX_LENGTH {
        return None;
    }
    let mut best = None;
    let mut limit = DISTANCE_LIMIT;
    for option in options {
        if option == word {
            return None;
        }
        let distance = distance(word, option);
        if distance < limit {
            (best, limit) = (Some(option.to_owned()), distance);
        }
    }
    best
}

/// As [`similar`] without regard to case; the answer is in the case of `word` if that is of one case.
pub(crate) fn similar_ignoring_case<'a>(
    word: &str,
    options: impl IntoIterator<Item = &'a str>,
) -> Option<String> {
    let options: Vec<String> = options.into_iter().map(str::to_lowercase).collect();
    let found = similar(&word.to_lowercase(), options.iter().map(String::as_str))?;
    Some(match word {
        _ if word == word.to_lowercase() => found,
        _ if word == word.to_uppercase() => found.to_uppercase(),
        _ => found,
    })
}

/// The Levenshtein distance.
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (index, letter) in one.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = index + 1;
        for column in 0..other.len() {
            let substituted = diagonal + usize::from(other[column] != letter);
            diagonal = row[column + 1];
            row[column + 1] = substituted.min(row[column] + 1).min(diagonal + 1);
        }
    }
    row[other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_words_are_suggested() {
        let options = ["build", "test", "release"];
        assert_eq!(similar("bulid", options), Some("build".to_owned()));
        assert_eq!(similar("tests", options), Some("test".to_owned()));
        assert_eq!(similar("test", options), None);
        assert_eq!(similar("deploy", options), None);
        assert_eq!(similar_ignoring_case("FRMO", ["from", "run"]), Some("FROM".to_owned()));
        assert_eq!(similar_ignoring_case("Frmo", ["from", "run"]), Some("from".to_owned()));
    }
}
