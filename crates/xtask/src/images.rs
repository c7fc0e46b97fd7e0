//! Base images without a hub: Debian's packages, put together by stave itself.
//!
//! The recipes are the Dockerfiles under `testdata/images/`. They carry this machine's package sources
//! and certificates, so that RUN steps reach what the machine reaches; they are for tests on this
//! machine and are never published.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::registry::Registry;
use crate::{Failure, machine};

/// Debian packages that making the images needs.
pub(crate) const PACKAGES: &[&str] = &["busybox-static", "ca-certificates", "docker-registry", "mmdebstrap"];

/// Every base image, each after those it builds on.
pub(crate) const ALL: &[&str] = &["busybox", "debian", "python", "node", "gcc", "golang", "nginx"];

/// Makes `names` with the `stave` at `program` and pushes them to `registry`; what is there already stays.
pub(crate) fn make(program: &Path, registry: &Registry, names: &[&str]) -> Result<(), Failure> {
    for name in names {
        if exists(name) {
            continue;
        }
        eprintln!("xtask: making the base image {name}");
        let context = context(name)?;
        let reference = format!("{}/{name}", registry.host());
        let mut build = Command::new(program);
        build.args(["build", "--progress=plain", "--push", "-t", &reference, "--build-arg"]);
        build.arg(format!("REGISTRY={}", registry.host())).arg(&context);
        build.arg("--root").arg(crate::root().join("target/images/state"));
        machine::run(&mut build)?;
    }
    Ok(())
}

/// Whether the image was made before: the registry's storage outlives its process.
fn exists(name: &str) -> bool {
    let repository = storage().join("docker/registry/v2/repositories").join(name);
    repository.join("_manifests/tags/latest/current/link").is_file()
}

/// Where the local registry keeps the base images.
pub(crate) fn storage() -> PathBuf {
    crate::root().join("target/images/registry")
}

/// Writes the build context of one image: its recipe and what the machine gives.
fn context(name: &str) -> Result<PathBuf, Failure> {
    let folder = crate::root().join("target/images/contexts").join(name);
    std::fs::create_dir_all(&folder)?;
    let recipe = crate::root().join("testdata/images").join(name);
    for entry in std::fs::read_dir(&recipe)? {
        let entry = entry?;
        std::fs::copy(entry.path(), folder.join(entry.file_name()))?;
    }
    match name {
        "busybox" => drop(std::fs::copy("/bin/busybox", folder.join("busybox"))?),
        "debian" => debian(&folder)?,
        _ => {}
    }
    Ok(folder)
}

/// A minimal Debian of the machine's own release, from the machine's own sources.
fn debian(folder: &Path) -> Result<(), Failure> {
    let bundle =
        std::env::var("SSL_CERT_FILE").unwrap_or_else(|_| "/etc/ssl/certs/ca-certificates.crt".to_owned());
    std::fs::copy(bundle, folder.join("ca-certificates.crt"))?;
    let release = std::fs::read_to_string("/etc/os-release")?;
    let suite = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    let suite = suite.ok_or("/etc/os-release names no release")?.trim_matches('"');
    let sources = sources(suite)?;
    std::fs::write(folder.join("debian.sources"), &sources)?;
    let mut command = Command::new("mmdebstrap");
    command.args(["--quiet", "--variant=minbase", "--include=ca-certificates"]);
    for path in ["/usr/share/man/*", "/usr/share/locale/*", "/usr/share/doc/*"] {
        command.arg(format!("--dpkgopt=path-exclude={path}"));
    }
    command.arg("--dpkgopt=path-include=/usr/share/doc/*/copyright");
    command.arg(suite).arg(folder.join("rootfs.tar")).arg(folder.join("debian.sources"));
    machine::run(&mut command)
}

/// The machine's package sources for `suite` in deb822 form.
fn sources(suite: &str) -> Result<String, Failure> {
    let mut stanzas = Vec::new();
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    for entry in std::fs::read_dir("/etc/apt/sources.list.d")? {
        files.push(entry?.path());
    }
    files.sort();
    for file in files {
        let Ok(text) = std::fs::read_to_string(&file) else { continue };
        if file.extension().is_some_and(|extension| extension == "sources") {
            stanzas.extend(deb822(&text, suite));
        } else {
            stanzas.extend(text.lines().filter_map(|line| one_line(line, suite)));
        }
    }
    if stanzas.is_empty() {
        return Err(format!("this machine has no package sources for Debian {suite}").into());
    }
    Ok(stanzas.join("\n\n") + "\n")
}

fn of_suite(name: &str, suite: &str) -> bool {
    name == suite || name.strip_prefix(suite).is_some_and(|rest| rest.starts_with('-'))
}

fn deb822(text: &str, suite: &str) -> Vec<String> {
    let kept: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    let stanzas = kept.join("\n");
    let mut matching = Vec::new();
    for stanza in stanzas.split("\n\n").map(str::trim).filter(|stanza| !stanza.is_empty()) {
        let suites = stanza.lines().find_map(|line| line.strip_prefix("Suites:")).unwrap_or("");
        if suites.split_whitespace().any(|name| of_suite(name, suite)) {
            matching.push(stanza.to_owned());
        }
    }
    matching
}

fn one_line(line: &str, suite: &str) -> Option<String> {
    let rest = line.trim().strip_prefix("deb ")?.trim();
    let rest = if rest.starts_with('[') { rest.split_once(']')?.1.trim() } else { rest };
    let mut words = rest.split_whitespace();
    let (uri, name) = (words.next()?, words.next()?);
    let components = words.collect::<Vec<_>>().join(" ");
    of_suite(name, suite).then(|| {
        format!(
            "Types: deb\nURIs: {uri}\nSuites: {name}\nComponents: {components}\n\
             Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg"
        )
    })
}

/// `cargo xtask images`.
pub(crate) fn serve() -> Result<(), Failure> {
    machine::require_root()?;
    machine::install(PACKAGES)?;
    let program = machine::release_binary()?;
    let registry = Registry::start(&storage())?;
    make(&program, &registry, ALL)?;
    println!("base images are at {}: {}", registry.host(), ALL.join(" "));
    println!("press Enter to stop the registry");
    let mut line = String::new();
    std::io::stdin().read_line(&mut line)?;
    Ok(())
}
