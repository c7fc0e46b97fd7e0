//! What the headers of a response and an address say: a file's name and its time. Pure. Read [`url_name`] first.

use std::path::Path;

/// Bytes of a file name.
const NAME_LIMIT: usize = 255;

/// A name that is one component and can be a file.
pub(super) fn safe_name(name: &str) -> Option<String> {
    let base = Path::new(name).file_name()?.to_str()?;
    (base == name && name.len() <= NAME_LIMIT && !name.contains('\0')).then(|| base.to_owned())
}

/// The last part of an address's path.
pub(super) fn url_name(path: &str) -> Option<String> {
    let base = path.rsplit('/').next().filter(|base| !base.is_empty())?;
    safe_name(&percent_decode(base))
}

/// The name that `Content-Disposition` gives.
pub(super) fn disposition_name(header: &str) -> Option<String> {
    let value = header.split(';').map(str::trim).find_map(|part| part.strip_prefix("filename="))?;
    // Only the last component counts: a server must not choose directories.
    safe_name(value.trim_matches('"').rsplit(['/', '\\']).next()?)
}

fn percent_decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = text.get(at + 1..at + 3).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match (bytes[at], hex) {
            (b'%', Some(byte)) => {
                decoded.push(byte);
                at += 3;
            }
            (byte, _) => {
                decoded.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

/// `Sun, 06 Nov 1994 08:49:37 GMT` as seconds since the epoch.
pub(super) fn http_date(text: &str) -> Option<i64> {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    // The older form has dashes, and two digits of a year.
    let mut words = text.split_once(", ")?.1.split([' ', ':', '-']);
    let day: i64 = words.next()?.parse().ok()?;
    let name = words.next()?;
    let month = i64::try_from(MONTHS.iter().position(|month| *month == name)?).ok()? + 1;
    let year = words.next()?;
    let century = match year.len() {
        2 if year < "70" => 2000,
        2 => 1900,
        _ => 0,
    };
    let year = year.parse::<i64>().ok()? + century;
    let mut clock = || words.next()?.parse::<i64>().ok();
    let (hours, minutes, seconds) = (clock()?, clock()?, clock()?);
    if !(1..=31).contains(&day) || !(0..=9999).contains(&year) {
        return None;
    }
    // Days since the epoch with years that begin in March, so that the leap day is the last.
    let shifted = if month <= 2 { year - 1 } else { year };
    let era = shifted.div_euclid(400);
    let year_of_era = shifted.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let days =
        era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468;
    Some(days * 86_400 + hours * 3600 + minutes * 60 + seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        assert_eq!(http_date("Sun, 06 Nov 1994 08:49:37 GMT"), Some(784_111_777));
        assert_eq!(http_date("Sunday, 06-Nov-94 08:49:37 GMT"), Some(784_111_777));
        assert_eq!(http_date("Thu, 01 Jan 1970 00:00:00 GMT"), Some(0));
        assert_eq!(http_date("Tue, 29 Feb 2028 23:59:59 GMT"), Some(1_835_481_599));
        assert_eq!(http_date("yesterday"), None);
    }

    #[test]
    fn names_are_single_components() {
        assert_eq!(url_name("/a/b.tar.gz"), Some("b.tar.gz".into()));
        assert_eq!(url_name("/a/b%20c"), Some("b c".into()));
        assert_eq!(url_name("/a/..%2f..%2fetc"), None);
        assert_eq!(url_name("/a/.."), None);
        assert_eq!(url_name("/"), None);
        assert_eq!(disposition_name("attachment; filename=\"x.deb\""), Some("x.deb".into()));
        assert_eq!(disposition_name("attachment; filename=\"../../x\""), Some("x".into()));
        assert_eq!(disposition_name("attachment; filename=\"..\""), None);
        assert_eq!(disposition_name("inline"), None);
    }
}
