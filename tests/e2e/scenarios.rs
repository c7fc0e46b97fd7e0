//! Runs cache scenarios: pairs of builds, with what must hit, what must run and what is said of it.
//!
//! Owns the form of `testdata/cache/scenarios/*.toml` (its README tells it) and their run: the second build in the
//! store of the first one, and the same on an empty store that asks the cache the first one exported.
//! Start with [`run`].

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use serde::Deserialize;
use serde_json::Value;

use crate::environment::Environment;

/// Files that every scenario's context begins with.
const FILES: [(&str, &str); 4] = [("a.txt", "1"), ("b.txt", "1"), ("dir/d.txt", "d"), ("dir/sub/s.txt", "s")];

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    scenario: Vec<Scenario>,
}

/// Two builds.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Scenario {
    pub(crate) name: String,
    dockerfile: String,
    #[serde(default)]
    files: BTreeMap<String, String>,
    #[serde(default)]
    args: Vec<String>,
    #[serde(default)]
    secrets: BTreeMap<String, String>,
    #[serde(default)]
    edit: Edit,
    #[serde(default)]
    hits: Vec<String>,
    #[serde(default)]
    runs: Vec<String>,
    #[serde(default)]
    says: BTreeMap<String, String>,
    #[serde(default)]
    warns: Vec<String>,
    /// It is about this machine's own records.
    #[serde(default)]
    pub(crate) local: bool,
}

/// What changes between them.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Edit {
    dockerfile: Option<String>,
    args: Option<Vec<String>>,
    #[serde(default)]
    files: BTreeMap<String, String>,
    #[serde(default)]
    modes: BTreeMap<String, String>,
    #[serde(default)]
    links: BTreeMap<String, String>,
    #[serde(default)]
    remove: Vec<String>,
    #[serde(default)]
    touch: Vec<String>,
    secrets: Option<BTreeMap<String, String>>,
}

/// Where the first build's cache is, as its flags say it.
const CACHE: &str = "../cache";

/// Which store the second build is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Second {
    /// The first one's.
    Same,
    /// An empty one, with what the first one exported.
    Empty,
}

/// All scenarios.
pub(crate) fn all() -> Vec<Scenario> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/cache/scenarios");
    let mut files: Vec<PathBuf> = fs::read_dir(&folder)
        .expect("scenarios are there")
        .map(|entry| entry.expect("readable").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
        .collect();
    files.sort();
    let read = |path: &PathBuf| {
        let text = fs::read_to_string(path).expect("readable");
        let document: Document =
            toml::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        document.scenario
    };
    files.iter().flat_map(read).collect()
}

/// Runs scenarios on two threads, each in a copy of one state directory that has the base image. All that fail
/// are told at the end.
pub(crate) fn run(scenarios: &[Scenario]) {
    let prepared = Environment::new();
    prepared.dockerfile("FROM BUSYBOX\n");
    prepared.build("base").success();
    let next = AtomicUsize::new(0);
    let failures: Vec<String> = std::thread::scope(|scope| {
        let work = || {
            let mut failures = Vec::new();
            while let Some(scenario) = scenarios.get(next.fetch_add(1, Ordering::Relaxed)) {
                if let Err(problem) = one(&prepared, scenario) {
                    failures.push(format!("{}: {problem}", scenario.name));
                }
            }
            failures
        };
        let threads: Vec<_> = (0..2).map(|_| scope.spawn(work)).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("no panic")).collect()
    });
    assert!(failures.is_empty(), "{} of {}:\n{}", failures.len(), scenarios.len(), failures.join("\n"));
}

fn one(prepared: &Environment, scenario: &Scenario) -> Result<(), String> {
    let world = Environment::new();
    crate::environment::tool("cp", &["-a", &text(&prepared.root()), &text(&world.root())]);
    for (name, content) in FILES {
        write(&world, name, content);
    }
    std::os::unix::fs::symlink("a.txt", world.context().join("link.txt")).expect("a link");
    std::os::unix::fs::symlink("d.txt", world.context().join("dir/link")).expect("a link");
    scenario.files.iter().for_each(|(name, content)| write(&world, name, content));
    world.dockerfile(&scenario.dockerfile);
    let export = ["--cache-to".to_owned(), format!("type=local,dest={CACHE},mode=max")];
    let export: &[String] = if scenario.local { &[] } else { &export };
    build(&world, scenario, (&scenario.args, &scenario.secrets, export))?;
    edit(&world, &scenario.edit);
    again(&world, scenario, Second::Same)?;
    if scenario.local {
        return Ok(());
    }
    fs::remove_dir_all(world.root()).expect("a state directory");
    again(&world, scenario, Second::Empty).map_err(|problem| format!("after import: {problem}"))
}

/// The second build, and what must hold of it.
fn again(world: &Environment, scenario: &Scenario, second: Second) -> Result<(), String> {
    let args = scenario.edit.args.as_ref().unwrap_or(&scenario.args);
    let secrets = scenario.edit.secrets.as_ref().unwrap_or(&scenario.secrets);
    let import = ["--cache-from".to_owned(), format!("type=local,src={CACHE}")];
    let more: &[String] = if second == Second::Empty { &import } else { &[] };
    let said = build(world, scenario, (args, secrets, more))?;
    let record = world.stave(["builds", "inspect", "--format", "json"]);
    let record: Value =
        serde_json::from_str(&record.stdout).map_err(|error| format!("{error}: {}", record.stderr))?;
    check(scenario, &record, &said, second)
}

fn build(
    world: &Environment,
    scenario: &Scenario,
    (args, secrets, more): (&[String], &BTreeMap<String, String>, &[String]),
) -> Result<String, String> {
    let mut words: Vec<String> = ["build", "-t", "it"].map(str::to_owned).to_vec();
    words.extend(args.iter().chain(more).cloned());
    for (id, value) in secrets {
        let path = world.path(&format!("secret-{id}"));
        fs::write(&path, value).expect("writes");
        words.extend(["--secret".to_owned(), format!("id={id},src={}", path.display())]);
    }
    words.push(".".to_owned());
    let outcome = world.stave(&words);
    match outcome.code {
        Some(0) => Ok(outcome.stderr),
        code => Err(format!("{:?} exits with {code:?}: {}", scenario.name, outcome.stderr)),
    }
}

fn edit(world: &Environment, edit: &Edit) {
    edit.files.iter().for_each(|(name, content)| write(world, name, content));
    for (name, mode) in &edit.modes {
        let mode = u32::from_str_radix(mode, 8).expect("octal");
        fs::set_permissions(world.context().join(name), fs::Permissions::from_mode(mode)).expect("changes");
    }
    for (name, target) in &edit.links {
        let path = world.context().join(name);
        drop(fs::remove_file(&path));
        std::os::unix::fs::symlink(target, path).expect("a link");
    }
    edit.remove.iter().for_each(|name| fs::remove_file(world.context().join(name)).expect("removes"));
    for name in &edit.touch {
        let file = fs::File::options().write(true).open(world.context().join(name)).expect("opens");
        file.set_modified(std::time::UNIX_EPOCH).expect("sets the time");
    }
    if let Some(dockerfile) = &edit.dockerfile {
        world.dockerfile(dockerfile);
    }
}

fn check(scenario: &Scenario, record: &Value, said: &str, second: Second) -> Result<(), String> {
    let steps = record["steps"].as_array().ok_or("no steps")?;
    // A reason, and what changed since, is known where there are earlier records.
    let explains = second == Second::Same;
    let find = |words: &String| {
        let name = |step: &&Value| step["name"].as_str().is_some_and(|name| name.contains(words.as_str()));
        steps.iter().find(name).ok_or_else(|| format!("no step `{words}` in {:?}", names(steps)))
    };
    for words in &scenario.hits {
        let step = find(words)?;
        if !matches!(step["state"].as_str(), Some("cached-local" | "cached-imported" | "shared" | "skipped"))
        {
            return Err(format!("`{words}` must hit: {} {}", step["state"], step["reason"]));
        }
    }
    for words in &scenario.runs {
        let step = find(words)?;
        if step["state"] != "ran" {
            return Err(format!("`{words}` must run: {}", step["state"]));
        }
    }
    for (words, expected) in scenario.says.iter().filter(|_| explains) {
        let reason = &find(words)?["reason"];
        let reason: stave_engine::explain::Reason = serde_json::from_value(reason.clone())
            .map_err(|error| format!("`{words}`: {error}: {reason}"))?;
        if !reason.to_string().contains(expected.as_str()) {
            return Err(format!("`{words}` must say `{expected}`, says `{reason}`"));
        }
    }
    for expected in scenario.warns.iter().filter(|_| explains) {
        if !said.contains(expected.as_str()) {
            return Err(format!("must warn `{expected}`:\n{said}"));
        }
    }
    if scenario.warns.is_empty() && said.contains("changed since") {
        return Err(format!("warns without need:\n{said}"));
    }
    Ok(())
}

fn names(steps: &[Value]) -> Vec<&str> {
    steps.iter().filter_map(|step| step["name"].as_str()).collect()
}

fn write(world: &Environment, name: &str, content: &str) {
    world.write(name, content);
    let path = world.context().join(name);
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).expect("changes");
}

fn text(path: &Path) -> String {
    path.display().to_string()
}
