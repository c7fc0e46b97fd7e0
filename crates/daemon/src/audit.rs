//! The audit log: who did what, when, and what came of it; one JSON object a line.
//!
//! Names, sizes and outcomes only: no values of arguments, secrets or credentials. A line is written whole or not at
//! all, and a log that cannot be written stops no build. Start with [`Audit`].

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::tenants::Caller;

/// The longest text of one field.
const MAX_TEXT: usize = 1000;

/// Refusals that are taken down in each [`SPAN`]: anybody can cause any number of them.
const MAX_REFUSALS: u64 = 100;
const SPAN: Duration = Duration::from_secs(60);

/// Where it goes; nowhere by default.
#[derive(Debug, Clone, Default)]
pub(crate) struct Audit(Option<Arc<Log>>);

#[derive(Debug)]
struct Log {
    path: PathBuf,
    file: Mutex<File>,
    /// When the span began, and what was refused in it.
    refusals: (Mutex<Instant>, AtomicU64),
}

impl Audit {
    /// Appends to a file that its owner alone can read.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let file = Mutex::new(append(path)?);
        let refusals = (Mutex::new(Instant::now()), AtomicU64::new(0));
        Ok(Self(Some(Arc::new(Log { path: path.to_owned(), file, refusals }))))
    }

    /// Opens the file again: whoever rotates logs has moved it away.
    pub(crate) fn reopen(&self) -> io::Result<()> {
        let Some(log) = &self.0 else { return Ok(()) };
        *log.file.lock().unwrap_or_else(PoisonError::into_inner) = append(&log.path)?;
        Ok(())
    }

    /// Takes one thing down. `more` are its further fields.
    pub(crate) fn write(&self, who: &Caller, what: &str, result: Result<(), String>, more: Value) {
        let Some(log) = &self.0 else { return };
        log.append(&line(who, what, result, more));
    }

    /// Takes down that somebody was not let in. Of many in a short time only the first are told, and that there were
    /// more.
    pub(crate) fn refused(&self, from: &str, what: &str, why: &str) {
        let Some(log) = &self.0 else { return };
        let mut entry = json!({
            "time": jiff::Timestamp::now().to_string(),
            "from": short(from),
            "what": what,
            "result": "refused",
            "error": short(why),
        });
        match log.next_refusal() {
            number if number < MAX_REFUSALS => {}
            MAX_REFUSALS => entry["more"] = "further refusals of this minute are counted only".into(),
            _ => return,
        }
        log.append(&format!("{entry}\n"));
    }
}

impl Log {
    fn append(&self, line: &str) {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = file.write_all(line.as_bytes()) {
            tracing::error!(%error, path = %self.path.display(), "the audit log cannot be written");
        }
    }

    /// How many refusals there were before this one in its span.
    fn next_refusal(&self) -> u64 {
        let (begun, count) = &self.refusals;
        let mut begun = begun.lock().unwrap_or_else(PoisonError::into_inner);
        if begun.elapsed() > SPAN {
            *begun = Instant::now();
            count.store(0, Ordering::Relaxed);
        }
        count.fetch_add(1, Ordering::Relaxed)
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

fn line(who: &Caller, what: &str, result: Result<(), String>, more: Value) -> String {
    let mut entry = json!({
        "time": jiff::Timestamp::now().to_string(),
        "who": who.identity.as_str(),
        "trusted": who.is_trusted(),
        "what": what,
        "result": if result.is_ok() { "ok" } else { "failed" },
    });
    if let Err(why) = result {
        entry["error"] = short(&why).into();
    }
    if let (Some(entry), Value::Object(more)) = (entry.as_object_mut(), more) {
        entry.extend(more);
    }
    format!("{entry}\n")
}

/// A text as far as a line has room for it.
pub(crate) fn short(text: &str) -> String {
    text.chars().take(MAX_TEXT).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Identity;

    #[test]
    fn refusals_are_told_and_bounded() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("audit.jsonl");
        let audit = Audit::open(&path).expect("opens");
        for _ in 0..MAX_REFUSALS * 2 {
            audit.refused("192.0.2.1", "call", "no token\nhere");
        }
        let text = std::fs::read_to_string(&path).expect("is there");
        let lines: Vec<Value> =
            text.lines().map(|line| serde_json::from_str(line).expect("an object")).collect();
        assert_eq!(lines.len() as u64, MAX_REFUSALS + 1);
        assert_eq!((&lines[0]["result"], &lines[0]["error"]), (&json!("refused"), &json!("no token\nhere")));
        assert!(lines.last().is_some_and(|line| line["more"].is_string()));
    }

    #[test]
    fn a_line_is_one_object() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("audit.jsonl");
        let audit = Audit::open(&path).expect("opens");
        let caller =
            crate::tenants::Tenancy::default().caller(Identity::new("cert", "a\nb")).expect("is let in");
        audit.write(&caller, "build", Err("no\nway".to_owned()), json!({ "ref": "r1" }));
        std::fs::rename(&path, folder.path().join("audit.1")).expect("rotated");
        audit.reopen().expect("opens");
        audit.write(&caller, "prune", Ok(()), Value::Null);
        let text = std::fs::read_to_string(folder.path().join("audit.1")).expect("is there");
        let lines: Vec<Value> =
            text.lines().map(|line| serde_json::from_str(line).expect("an object")).collect();
        assert_eq!(lines.len(), 1);
        assert_eq!((&lines[0]["who"], &lines[0]["ref"]), (&json!("cert:a\nb"), &json!("r1")));
        assert_eq!((&lines[0]["result"], &lines[0]["error"]), (&json!("failed"), &json!("no\nway")));
        let text = std::fs::read_to_string(&path).expect("is there");
        assert!(text.ends_with("\"result\":\"ok\"}\n"), "{text}");
    }
}
