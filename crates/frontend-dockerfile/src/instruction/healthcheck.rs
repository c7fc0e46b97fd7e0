//! `HEALTHCHECK`.
//!
//! Owns its two forms, its flags and their units.

use std::ops::Range;

use crate::{
    ast::{CommandLine, Healthcheck, Word},
    diagnostic::Diagnostic,
    duration,
    flags::{FlagKind, Flags},
    lines::LogicalLine,
    quote::quote,
};

use super::{Arguments, Reading, Split, split::json};

const FLAGS: [(&str, FlagKind); 5] = [
    ("interval", FlagKind::Value),
    ("retries", FlagKind::Value),
    ("start-interval", FlagKind::Value),
    ("start-period", FlagKind::Value),
    ("timeout", FlagKind::Value),
];
/// The shortest time an option may ask for, in nanoseconds.
const MIN_DURATION: i64 = 1_000_000;

/// The type, and behind it the command in one piece or as JSON.
pub(super) fn split(line: &LogicalLine, range: Range<usize>) -> Result<Arguments, Diagnostic> {
    let Some((head, body)) = line.line.headed(range) else { return Ok(Arguments::Words(Vec::new())) };
    let mut words = vec![Word::new(head.text, line.source_span(head.range))];
    let Some(body) = body else { return Ok(Arguments::Words(words)) };
    match json(line, body.range.clone())? {
        Some(command) => {
            words.extend(command);
            Ok(Arguments::Json(words))
        }
        None => {
            words.push(Word::new(body.text, line.source_span(body.range)));
            Ok(Arguments::Words(words))
        }
    }
}

impl Reading<'_> {
    pub(super) fn healthcheck(&self, split: Split) -> Result<Healthcheck, Diagnostic> {
        self.some_words(&split, "HEALTHCHECK")?;
        let words = split.words();
        let kind = words[0].text.to_uppercase();
        if kind == "NONE" {
            return match words.len() {
                1 => Ok(Healthcheck::None),
                _ => Err(self.error(split.span, "HEALTHCHECK NONE takes no arguments")),
            };
        }
        let flags = self.flags(&split, &FLAGS)?;
        if kind != "CMD" {
            let message = format!("Unknown type {} in HEALTHCHECK (try CMD)", quote(&kind));
            return Err(self.error(words[0].span, message).with_help("write `HEALTHCHECK CMD command`"));
        }
        let command = match (&split.arguments, &words[1..]) {
            (_, []) => return Err(self.error(split.span, "Missing command after HEALTHCHECK CMD")),
            (Arguments::Json(_), words) => {
                CommandLine::Exec(words.iter().map(|word| word.text.clone()).collect())
            }
            (_, words) => CommandLine::Shell(words[0].clone()),
        };
        Ok(Healthcheck::Command {
            command,
            interval: self.duration(&flags, "interval")?,
            timeout: self.duration(&flags, "timeout")?,
            start_period: self.duration(&flags, "start-period")?,
            start_interval: self.duration(&flags, "start-interval")?,
            retries: self.retries(&flags)?,
        })
    }

    fn duration(&self, flags: &Flags, name: &str) -> Result<i64, Diagnostic> {
        let Some(word) = flags.filled(name) else { return Ok(0) };
        let duration = duration::parse(&word.text).map_err(|error| {
            self.error(word.span, error.to_string()).with_help("write a number and a unit, such as `30s`")
        })?;
        if duration != 0 && duration < MIN_DURATION {
            return Err(self.error(word.span, format!("Interval {} cannot be less than 1ms", quote(name))));
        }
        Ok(duration)
    }

    fn retries(&self, flags: &Flags) -> Result<u32, Diagnostic> {
        let Some(word) = flags.filled("retries") else { return Ok(0) };
        let complain = |what: &str| {
            self.error(word.span, format!("strconv.ParseInt: parsing {}: {what}", quote(&word.text)))
                .with_help("write a number")
        };
        let digits = word.text.strip_prefix(['+', '-']).unwrap_or(&word.text);
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(complain("invalid syntax"));
        }
        let retries: i32 = word.text.parse().map_err(|_| complain("value out of range"))?;
        u32::try_from(retries)
            .map_err(|_| self.error(word.span, format!("--retries cannot be negative ({retries})")))
    }
}
