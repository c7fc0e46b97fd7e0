//! Registries, layers, archives and contexts made by somebody who means harm, and networks that fail.
//!
//! Whatever comes: one error that names what is wrong, the exit code, nothing written outside of the state
//! directory, nothing left inside of it, and the next honest command works. Start with [`Site`].

mod archives;
mod context;
mod layers;
mod login;
mod network;
mod push;
mod roots;
mod tar;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use stave_oci::{Digest, Platform, media_type};
use stave_test_support::TestRegistry;
use stave_test_support::registry::{Auth, PlacedImage, User};

use crate::environment::{Environment, Outcome};
use tar::Tar;

/// In every hostile file: not to be found anywhere afterwards.
const MARK: &str = "this content is hostile";
/// A fault scripted so often never ends: no request is made so many times.
const FOR_EVER: usize = 64;

/// A test's world and a registry of its own.
struct Site {
    world: Environment,
    registry: TestRegistry,
}

/// The ways to ask for an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Pull,
    Build,
    Run,
}

impl Way {
    const ALL: [Self; 3] = [Self::Pull, Self::Build, Self::Run];
}

impl Site {
    fn new() -> Self {
        Self::with_auth(Auth::Open)
    }

    fn with_auth(auth: Auth) -> Self {
        let site = Self { world: Environment::new(), registry: TestRegistry::with_auth(auth) };
        site.world.write("present", "honest\n");
        site
    }

    /// The name of an image at this site's registry.
    fn image(&self, name: &str) -> String {
        format!("{}/{name}", self.registry.host())
    }

    /// Places `app:1` with one layer and the diff id it should have.
    fn place(&self, layer: &[u8], plain: &[u8]) -> PlacedImage {
        self.registry.put_image("app", "1", &config(&[Digest::sha256(plain)]), &[layer])
    }

    /// Places `app:1` with one honest layer.
    fn place_honest(&self) -> PlacedImage {
        let plain = honest_layer();
        self.place(&tar::gzip(&plain), &plain)
    }

    /// Asks for `app:1` in one of the ways.
    fn ask(&self, way: Way) -> Outcome {
        let name = self.image("app:1");
        match way {
            Way::Pull => self.world.stave(["pull", &name]),
            Way::Run => self.world.stave(["run", "--rm", &name, "true"]),
            Way::Build => {
                self.world.dockerfile(&format!("FROM {name}\nCOPY present /present\n"));
                self.world.build("hostile")
            }
        }
    }

    /// `app:1` is refused in one of the ways, with these words and without traces.
    #[track_caller]
    fn refuses(&self, way: Way, words: &[&str]) -> Outcome {
        let before = outside(&self.world);
        let outcome = one_error(self.ask(way), if way == Way::Run { 125 } else { 1 }, words);
        self.is_untouched(&before);
        outcome
    }

    /// Nothing came into being outside of the state directory, nothing stayed inside, and the store works.
    #[track_caller]
    fn is_untouched(&self, before: &BTreeMap<PathBuf, Vec<u8>>) {
        let mut after = outside(&self.world);
        after.remove(Path::new("context/Dockerfile"));
        let mut before = before.clone();
        before.remove(Path::new("context/Dockerfile"));
        assert_eq!(before, after, "files outside of the state directory changed");
        assert_eq!(self.world.stave(["du", "--format", "json"]).success().stdout, "");
        let marked: Vec<PathBuf> = files(&self.world.root())
            .into_iter()
            .filter(|(_, bytes)| holds(bytes, MARK))
            .map(|(path, _)| path)
            .collect();
        assert!(marked.is_empty(), "left in the state directory: {marked:?}");
        self.world.dockerfile("FROM scratch\nCOPY present /present\n");
        self.world.build("honest").success();
        self.world.stave(["rmi", "honest"]).success();
        self.world.stave(["prune", "--all", "--force"]).success();
    }
}

/// Exactly one error, in these words, and nothing that looks like a crash.
#[track_caller]
fn one_error(outcome: Outcome, code: i32, words: &[&str]) -> Outcome {
    let mut outcome = outcome.exits(code).never_says("panicked").never_says("RUST_BACKTRACE");
    let errors = outcome.stderr.lines().filter(|line| line.starts_with("ERROR: ")).count();
    assert_eq!(errors, 1, "one error is wanted:\n{}", outcome.stderr);
    for word in words {
        outcome = outcome.says(word);
    }
    outcome
}

/// An image configuration for this machine.
fn config(diff_ids: &[Digest]) -> Vec<u8> {
    config_for(&Platform::host(), diff_ids)
}

fn config_for(platform: &Platform, diff_ids: &[Digest]) -> Vec<u8> {
    let config = serde_json::json!({
        "architecture": platform.architecture, "os": platform.os, "config": { "Cmd": ["/true"] },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    serde_json::to_vec(&config).expect("has a JSON form")
}

/// A layer large enough to be cut in the middle.
fn honest_layer() -> Vec<u8> {
    let numbers: Vec<u8> =
        (0..60_000_u32).flat_map(|number| number.wrapping_mul(0x9E37_79B9).to_le_bytes()).collect();
    Tar::default().file("numbers", numbers).end()
}

/// An OCI manifest of one layer, with what the caller wants in it.
fn manifest(config: &serde_json::Value, layer: &serde_json::Value) -> Vec<u8> {
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST, "config": config, "layers": [layer],
    });
    serde_json::to_vec(&manifest).expect("has a JSON form")
}

fn user() -> User {
    User::new("somebody", "correct horse")
}

/// All files of a test's world that are not in the state directory.
fn outside(world: &Environment) -> BTreeMap<PathBuf, Vec<u8>> {
    let root = world.path("");
    let state = world.root();
    let kept = files(&root).into_iter().filter(|(path, _)| !path.starts_with(&state));
    kept.map(|(path, bytes)| (path.strip_prefix(&root).expect("is below").to_owned(), bytes)).collect()
}

/// The files below a directory. Links are not followed.
fn files(directory: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        match entry.file_type().expect("has a type") {
            kind if kind.is_dir() => found.extend(files(&entry.path())),
            kind if kind.is_file() => {
                found.push((entry.path(), fs::read(entry.path()).expect("is readable")));
            }
            _ => found.push((entry.path(), Vec::new())),
        }
    }
    found
}

fn holds(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}
