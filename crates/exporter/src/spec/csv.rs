//! One record of comma separated values, as Go's `encoding/csv` reads it (RFC 4180): what docker's
//! and BuildKit's command lines use for options. Knows nothing of keys.

/// A quote inside an unquoted field, text after a closing quote, or no closing quote.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct QuoteError;

/// The fields of `record`.
pub(super) fn fields(record: &str) -> Result<Vec<String>, QuoteError> {
    let mut fields = Vec::new();
    let mut rest = record;
    loop {
        let (field, after) = match rest.strip_prefix('"') {
            Some(quoted) => quoted_field(quoted)?,
            None => {
                let end = rest.find(',').unwrap_or(rest.len());
                let field = &rest[..end];
                if field.contains('"') {
                    return Err(QuoteError);
                }
                (field.to_owned(), &rest[end..])
            }
        };
        fields.push(field);
        match after.strip_prefix(',') {
            Some(next) => rest = next,
            None if after.is_empty() => return Ok(fields),
            None => return Err(QuoteError),
        }
    }
}

/// A quoted field's text (its opening quote gone) and what follows its closing quote.
fn quoted_field(text: &str) -> Result<(String, &str), QuoteError> {
    let mut field = String::new();
    let mut rest = text;
    loop {
        let end = rest.find('"').ok_or(QuoteError)?;
        field.push_str(&rest[..end]);
        rest = &rest[end + 1..];
        match rest.strip_prefix('"') {
            // A doubled quote stands for itself.
            Some(after) => {
                field.push('"');
                rest = after;
            }
            None => return Ok((field, rest)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(record: &str, expected: Option<&[&str]>) {
        let found = fields(record).ok();
        assert_eq!(
            found.as_deref().map(|f| f.iter().map(String::as_str).collect()),
            expected.map(<[_]>::to_vec)
        );
    }

    #[test]
    fn records_split_like_go() {
        check("", Some(&[""]));
        check("a", Some(&["a"]));
        check("a,b", Some(&["a", "b"]));
        check("a,,b,", Some(&["a", "", "b", ""]));
        check("type=image,\"name=a,b\",push=true", Some(&["type=image", "name=a,b", "push=true"]));
        check("\"a\"\"b\"", Some(&["a\"b"]));
        check("\"\"", Some(&[""]));
        check("a\"b", None);
        check("\"a", None);
        check("\"a\"b", None);
        check(" \"a\"", None);
    }
}
