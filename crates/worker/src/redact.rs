//! Known secrets in bytes: replaced in what steps print, found in what they leave behind.
//!
//! Owns the forms in which a value is recognised: as it is, without its last line break, each long line of one with
//! several, in base64 at every alignment, and percent-encoded. Values of fewer than [`MIN_SECRET`] bytes are left
//! alone: they would be found everywhere. Must not know where bytes come from. Read [`Redactions`] first.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use aho_corasick::{AhoCorasick, Input, MatchKind};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};

use crate::session::Session;
use crate::step::secret_value;

/// What stands for a secret.
const STARS: &[u8] = b"***";
/// Shortest value that is looked for.
pub(crate) const MIN_SECRET: usize = 6;
/// Shortest single line of a value that is looked for by itself.
const MIN_LINE: usize = 16;
/// Longest form that is looked for; of a longer one, its beginning.
const MAX_FORM: usize = 16 << 10;
/// Most forms of all secrets.
const MAX_FORMS: usize = 4096;

/// The secrets of a build, ready to be found.
pub(crate) struct Redactions {
    automaton: AhoCorasick,
    forms: Vec<Vec<u8>>,
    /// The secret's id, by form.
    ids: Vec<String>,
}

/// Never shows a value.
impl fmt::Debug for Redactions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redactions").field("forms", &self.forms.len()).finish_non_exhaustive()
    }
}

impl Redactions {
    /// The secrets of a session; `None` when there is nothing to look for. One that cannot be read is no secret that a
    /// step could know.
    pub(crate) fn of(session: &Session) -> Option<Arc<Self>> {
        let value = |id: &String| Some((id.clone(), secret_value(session, id, true).ok()??));
        Self::new(session.secrets.keys().filter_map(value))
    }

    /// For these ids and values.
    pub(crate) fn new(secrets: impl Iterator<Item = (String, Vec<u8>)>) -> Option<Arc<Self>> {
        let mut found: BTreeMap<Vec<u8>, String> = BTreeMap::new();
        for (id, value) in secrets {
            for form in forms(&value) {
                if found.len() < MAX_FORMS {
                    found.entry(form).or_insert_with(|| id.clone());
                }
            }
        }
        let (forms, ids): (Vec<_>, Vec<_>) = found.into_iter().unzip();
        if forms.is_empty() {
            return None;
        }
        let automaton = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(&forms).ok()?;
        Some(Arc::new(Self { automaton, forms, ids }))
    }

    /// The id of a secret that is in `bytes`.
    pub(crate) fn find(&self, bytes: &[u8]) -> Option<&str> {
        self.automaton.find(bytes).map(|found| self.ids[found.pattern().as_usize()].as_str())
    }

    /// Bytes that must be looked at together, less one.
    pub(crate) fn overlap(&self) -> usize {
        self.forms.iter().map(Vec::len).max().unwrap_or(1) - 1
    }

    /// For one stream of output.
    pub(crate) fn stream(self: &Arc<Self>) -> Redacting {
        Redacting { redactions: Arc::clone(self), held: Vec::new() }
    }

    /// Where the longest end of `bytes` begins that may be the beginning of a secret.
    fn begun(&self, bytes: &[u8]) -> usize {
        let begins = |form: &Vec<u8>| {
            let from = bytes.len().saturating_sub(form.len() - 1);
            (from..bytes.len()).find(|start| form.starts_with(&bytes[*start..]))
        };
        self.forms.iter().filter_map(begins).min().unwrap_or(bytes.len())
    }
}

/// A stream in which secrets are replaced, wherever it is cut. Nothing is held back but what may become a secret.
#[derive(Debug)]
pub(crate) struct Redacting {
    redactions: Arc<Redactions>,
    held: Vec<u8>,
}

impl Redacting {
    /// Takes the next bytes and gives what may be shown.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.held.extend_from_slice(bytes);
        let limit = self.redactions.begun(&self.held);
        self.take(limit)
    }

    /// The rest, at the end of the stream.
    pub(crate) fn finish(&mut self) -> Vec<u8> {
        self.take(self.held.len())
    }

    /// Gives what begins before `limit`.
    fn take(&mut self, limit: usize) -> Vec<u8> {
        let mut shown = Vec::with_capacity(limit);
        let mut position = 0;
        while let Some(found) = self.redactions.automaton.find(Input::new(&self.held).range(position..)) {
            if found.start() >= limit {
                break;
            }
            shown.extend_from_slice(&self.held[position..found.start()]);
            shown.extend_from_slice(STARS);
            position = found.end();
        }
        if position < limit {
            shown.extend_from_slice(&self.held[position..limit]);
            position = limit;
        }
        self.held.drain(..position);
        shown
    }
}

/// Every form of a value that is looked for.
fn forms(value: &[u8]) -> Vec<Vec<u8>> {
    let bare = value.trim_ascii_end();
    let mut forms = Vec::new();
    if bare.len() < MIN_SECRET {
        return forms;
    }
    for text in [value, bare] {
        forms.push(text.to_vec());
    }
    if bare.contains(&b'\n') {
        // `-----BEGIN …` is in every key.
        let lines = bare.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
        let telling = lines.filter(|line| line.len() >= MIN_LINE && !line.starts_with(b"-----"));
        forms.extend(telling.map(<[u8]>::to_vec));
    }
    forms.extend((0..3).flat_map(|shift| encoded(bare, shift)));
    forms.extend([true, false].map(|upper| percent(bare, upper)));
    forms.retain(|form| form.len() >= MIN_SECRET);
    for form in &mut forms {
        form.truncate(MAX_FORM);
    }
    forms.sort_unstable();
    forms.dedup();
    forms
}

/// What is the same in the base64 of everything that holds `value` after a multiple of three bytes and `shift` more.
fn encoded(value: &[u8], shift: usize) -> [Vec<u8>; 2] {
    let padded: Vec<u8> = std::iter::repeat_n(0, shift).chain(value.iter().copied()).collect();
    // Characters with bits of what comes before or after differ.
    let (first, last) = ((shift * 8).div_ceil(6), padded.len() * 8 / 6);
    let cut = |text: String| text.into_bytes()[first..last].to_vec();
    [cut(STANDARD_NO_PAD.encode(&padded)), cut(URL_SAFE_NO_PAD.encode(&padded))]
}

fn percent(value: &[u8], upper: bool) -> Vec<u8> {
    let mut text = Vec::new();
    for byte in value {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => text.push(*byte),
            _ if upper => text.extend(format!("%{byte:02X}").into_bytes()),
            _ => text.extend(format!("%{byte:02x}").into_bytes()),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redactions(values: &[&str]) -> Arc<Redactions> {
        let secrets = values.iter().map(|value| ((*value).to_owned(), value.as_bytes().to_vec()));
        Redactions::new(secrets).expect("secrets")
    }

    /// Pushes a text cut at every place, and whole, and byte by byte.
    #[track_caller]
    fn check(values: &[&str], text: &str, expected: &str) {
        let redactions = redactions(values);
        let run = |chunks: &[&[u8]]| {
            let mut stream = redactions.stream();
            let mut shown: Vec<u8> = chunks.iter().flat_map(|chunk| stream.push(chunk)).collect();
            shown.extend(stream.finish());
            String::from_utf8(shown).expect("text")
        };
        for cut in 0..=text.len() {
            let (left, right) = text.as_bytes().split_at(cut);
            assert_eq!(run(&[left, right]), expected, "cut at {cut}");
        }
        assert_eq!(run(&text.as_bytes().chunks(1).collect::<Vec<_>>()), expected, "byte by byte");
    }

    #[test]
    fn values_are_replaced_wherever_the_stream_is_cut() {
        check(&["hunter22"], "a hunter22 b\n", "a *** b\n");
        check(&["hunter22\n"], "hunter22\nhunter22", "******");
        check(&["hunter22"], "hunter2", "hunter2");
        check(&["aaaaaab"], "aaaaaaaaab!", "aaa***!");
        check(&["abcdef", "abcdefghij"], "abcdefghij abcdefghi", "*** ***ghi");
        check(&["abcabc"], "abcabcabcabc abcab", "****** abcab");
        check(&["p@ss/word?"], "p%40ss%2Fword%3F p%40ss%2fword%3f", "*** ***");
    }

    #[test]
    fn short_values_are_left_alone() {
        assert!(Redactions::new([("a".to_owned(), b"12345\n".to_vec())].into_iter()).is_none());
    }

    #[test]
    fn base64_is_found_at_every_alignment() {
        let redactions = redactions(&["s3cr3t-token"]);
        for before in ["", "u", "us", "user:"] {
            for after in ["", "x", "xy"] {
                let text = STANDARD_NO_PAD.encode(format!("{before}s3cr3t-token{after}"));
                assert!(redactions.find(text.as_bytes()).is_some(), "{before} {after}");
            }
        }
        assert!(redactions.find(STANDARD_NO_PAD.encode("something else").as_bytes()).is_none());
    }

    #[test]
    fn lines_of_keys_are_found_but_not_their_heads() {
        let key = "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0B\n-----END PRIVATE KEY-----\n";
        check(&[key], "-----BEGIN PRIVATE KEY-----", "-----BEGIN PRIVATE KEY-----");
        check(&[key], "x MIIEvQIBADANBgkqhkiG9w0B x", "x *** x");
    }

    #[test]
    fn ordinary_output_is_not_held_back() {
        let mut stream = redactions(&["hunter22"]).stream();
        assert_eq!(stream.push(b"progress 10%\r"), b"progress 10%\r");
        assert_eq!(stream.push(b"the h"), b"the ");
        assert_eq!(stream.push(b"ost"), b"host");
    }
}
