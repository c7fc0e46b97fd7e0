//! Holds expansion, patterns and ignore files against recorded answers of the reference: `vectors FOLDER`, with
//! `shell.json`, `patternmatcher.json` and `dockerignore.json` in it. Prints what differs; the exit code says so.

use std::{env, error::Error, fs, path::Path, process::ExitCode};

use serde_json::Value;
use stave_frontend_dockerfile::{dockerignore, expand::Expander, scope::Variables};
use stave_llb::pattern::PatternMatcher;

/// What differs, and how many were looked at.
#[derive(Default)]
struct Tally {
    seen: usize,
    differing: usize,
}

impl Tally {
    fn check(&mut self, same: bool, what: &dyn Fn() -> String) {
        self.seen += 1;
        if !same {
            self.differing += 1;
            println!("differs: {}", what());
        }
    }
}

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let folder = env::args().nth(1).ok_or("usage: vectors FOLDER")?;
    let read = |name: &str| -> Result<Value, Box<dyn Error>> {
        Ok(serde_json::from_str(&fs::read_to_string(Path::new(&folder).join(name))?)?)
    };
    let mut tally = Tally::default();
    shell(&read("shell.json")?, &mut tally);
    patterns(&read("patternmatcher.json")?, &mut tally);
    ignore_files(&read("dockerignore.json")?, &mut tally);
    println!("{} vectors, {} differ", tally.seen, tally.differing);
    Ok(if tally.differing == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn rows(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn texts(value: &Value) -> Vec<String> {
    rows(value).map(|one| text(one).to_owned()).collect()
}

fn variables(value: &Value) -> Variables {
    let entries = value.as_object().into_iter().flatten();
    Variables::from_entries(entries.map(|(name, value)| format!("{name}={}", text(value))))
}

fn shell(vectors: &Value, tally: &mut Tally) {
    let expander = Expander::new('\\');
    let common = variables(&vectors["env_var_env"]);
    // `W` is how words are read on Windows.
    for row in rows(&vectors["env_var"]).filter(|row| row["platform"] != "W") {
        let found = expander.text(text(&row["word"]), &common);
        let same = match row["error"].as_bool() {
            Some(true) => found.is_err(),
            _ => found.as_deref().ok() == row["expect"].as_str(),
        };
        tally.check(same, &|| format!("{row}: {found:?}"));
    }
    for row in rows(&vectors["words"]) {
        let found = expander.expand(text(&row["input"]), &variables(&row["env"])).map(|found| found.words);
        let expected = texts(&row["expect"]);
        // The one word `error` stands for an error.
        let same = found.as_ref().map_or(expected == ["error"], |words| *words == expected);
        tally.check(same, &|| format!("{row}: {found:?}"));
    }
    for row in rows(&vectors["process_with_matches"]) {
        let found = expander.expand(text(&row["input"]), &variables(&row["envs"]));
        let same = match (&found, row["expectedErr"].as_bool().unwrap_or(row["error"].is_string())) {
            (Ok(found), false) => {
                let unmatched = row["unmatched"].as_object().into_iter().flatten().map(|(name, _)| name);
                found.text == text(&row["expected"]) && found.unmatched.iter().eq(unmatched)
            }
            (found, failing) => found.is_err() == failing,
        };
        tally.check(same, &|| format!("{row}: {found:?}"));
    }
}

fn patterns(vectors: &Value, tally: &mut Tally) {
    for row in rows(&vectors["matches"]) {
        let found = PatternMatcher::new([text(&row[0])]).map(|matcher| matcher.matches(text(&row[1])));
        tally.check(found.ok() == row[2].as_bool(), &|| format!("{row}"));
    }
    for row in rows(&vectors["multi"]) {
        let found = PatternMatcher::new(texts(&row[0])).map(|matcher| matcher.matches(text(&row[1])));
        tally.check(found.ok() == row[2].as_bool(), &|| format!("{row}"));
    }
}

fn ignore_files(vectors: &Value, tally: &mut Tally) {
    for row in rows(vectors) {
        let found = dockerignore::parse(text(&row["ignore"]));
        tally.check(found == texts(&row["patterns"]), &|| format!("patterns of {}: {found:?}", row["id"]));
        let Ok(matcher) = PatternMatcher::new(&found) else { continue };
        let excluded: Vec<String> =
            texts(&row["paths"]).into_iter().filter(|path| matcher.matches(path)).collect();
        tally.check(excluded == texts(&row["excluded"]), &|| format!("paths of {}", row["id"]));
    }
}
