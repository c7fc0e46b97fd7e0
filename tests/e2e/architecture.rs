//! The structure of the workspace is what `ARCHITECTURE.md` says.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Which workspace crates each crate may depend on, tests aside.
const ALLOWED: &[(&str, &[&str])] = &[
    ("cache", &["oci"]),
    (
        "cli",
        &[
            "daemon",
            "engine",
            "exporter",
            "frontend-dockerfile",
            "llb",
            "oci",
            "registry",
            "sandbox",
            "solver",
            "store",
            "worker",
        ],
    ),
    (
        "daemon",
        &["engine", "exporter", "frontend-dockerfile", "llb", "oci", "registry", "solver", "store", "worker"],
    ),
    (
        "engine",
        &[
            "cache",
            "exporter",
            "frontend-dockerfile",
            "llb",
            "oci",
            "registry",
            "remotecache",
            "sandbox",
            "solver",
            "store",
            "worker",
        ],
    ),
    ("exporter", &["oci", "registry", "store"]),
    ("remotecache", &["llb", "oci", "registry", "store"]),
    ("frontend-dockerfile", &["llb", "oci"]),
    ("llb", &["oci"]),
    ("measure", &["frontend-dockerfile", "llb", "oci", "solver"]),
    ("oci", &[]),
    ("registry", &["oci"]),
    ("sandbox", &[]),
    ("solver", &["cache", "llb", "oci"]),
    ("store", &["oci"]),
    ("worker", &["cache", "llb", "oci", "registry", "remotecache", "sandbox", "solver", "store"]),
];

fn workspace() -> cargo_metadata::Metadata {
    let mut command = cargo_metadata::MetadataCommand::new();
    command.manifest_path(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")).no_deps();
    command.exec().expect("cargo describes the workspace")
}

#[test]
fn crates_depend_downwards_only() {
    for package in workspace().packages {
        let Some(name) = package.name.strip_prefix("stave-") else { continue };
        if name == "test-support" {
            continue;
        }
        let allowed = ALLOWED.iter().find(|(of, _)| *of == name).map(|(_, to)| *to);
        let allowed = allowed.unwrap_or_else(|| panic!("crate `{name}` is not in the picture"));
        for dependency in package.dependencies {
            let is_normal = dependency.kind == cargo_metadata::DependencyKind::Normal;
            if let Some(to) = dependency.name.strip_prefix("stave-").filter(|_| is_normal) {
                assert!(allowed.contains(&to), "`{name}` must not know `{to}`");
            }
        }
    }
}

fn sources(folder: &Path, found: &mut Vec<std::path::PathBuf>) {
    for entry in fs::read_dir(folder).expect("readable").flatten() {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

fn all_sources() -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for entry in fs::read_dir(crates).expect("readable").flatten() {
        sources(&entry.path(), &mut found);
    }
    found
}

#[test]
fn every_module_says_what_it_owns() {
    let silent: Vec<_> = all_sources()
        .into_iter()
        .filter(|path| !fs::read_to_string(path).expect("text").starts_with("//!"))
        .collect();
    assert!(silent.is_empty(), "without `//!` at the top: {silent:?}");
}

#[test]
fn only_the_sandbox_is_unsafe() {
    let unsafe_outside: Vec<_> = all_sources()
        .into_iter()
        .filter(|path| !path.components().any(|part| part.as_os_str() == "sandbox"))
        .filter(|path| {
            let text = fs::read_to_string(path).expect("text");
            // This test's own words are not a use of the keyword.
            text.contains(concat!("unsafe", " {")) || text.contains(concat!("unsafe", " fn"))
        })
        .collect();
    assert!(unsafe_outside.is_empty(), "{unsafe_outside:?}");
}

#[test]
fn the_top_level_is_what_a_reader_expects() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let expected: BTreeSet<&str> = [
        ".cargo",
        ".ci",
        ".git",
        ".gitignore",
        "ARCHITECTURE.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "Cargo.lock",
        "Cargo.toml",
        "LICENSE",
        "README.md",
        "crates",
        "deploy",
        "docs",
        "rustfmt.toml",
        "target",
        "testdata",
        "tests",
    ]
    .into();
    for entry in fs::read_dir(root).expect("readable").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        assert!(expected.contains(name.as_str()), "`{name}` does not belong at the top");
    }
}
