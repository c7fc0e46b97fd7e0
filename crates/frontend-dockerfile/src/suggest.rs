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
    let length = word.chars().count();
    let mut best = None;
    let mut nearest = (DISTANCE_LIMIT, 0);
    for option in options {
        if option == word {
            return None;
        }
        if option.chars().count().abs_diff(length) >= DISTANCE_LIMIT {
            continue;
        }
        // Among equals the one that swaps letters wins: people swap letters.
        let distance = (distance(word, option, false), distance(word, option, true));
        if distance < nearest {
            (best, nearest) = (Some(option.to_owned()), distance);
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

/// The Levenshtein distance; with `swaps`, two letters swapped count as one edit.
fn distance(one: &str, other: &str, swaps: bool) -> usize {
    let one: Vec<char> = one.chars().collect();
    let other: Vec<char> = other.chars().collect();
    let mut rows: Vec<Vec<usize>> = vec![(0..=other.len()).collect()];
    for (i, letter) in one.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, wanted) in other.iter().enumerate() {
            let substituted = rows[i][j] + usize::from(letter != wanted);
            let mut least = substituted.min(rows[i][j + 1] + 1).min(row[j] + 1);
            if swaps && i > 0 && j > 0 && *letter == other[j - 1] && one[i - 1] == *wanted {
                least = least.min(rows[i - 1][j - 1] + 1);
            }
            row.push(least);
        }
        rows.push(row);
    }
    rows[one.len()][other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_words_are_suggested() {
        let options = ["build", "test", "release"];
        assert_eq!(similar("bulid", options), Some("build".to_owned()));
        assert_eq!(similar("tests", options), Some("test".to_owned()));
        assert_eq!(similar("chwon", ["chmod", "chown"]), Some("chown".to_owned()));
        assert_eq!(similar("test", options), None);
        assert_eq!(similar("deploy", options), None);
        assert_eq!(similar_ignoring_case("FRMO", ["from", "run"]), Some("FROM".to_owned()));
        assert_eq!(similar_ignoring_case("Frmo", ["from", "run"]), Some("from".to_owned()));
    }
}
