//! Devices by the Container Device Interface: specifications on this machine, and what a device changes in a step.
//!
//! Owns the reading of specifications, which devices a name means, and who may have them; semantics and words are
//! BuildKit's. Must not know sandboxes or ops. Hooks and whatever else an ordinary step cannot be given are errors, never
//! left out. Read [`Devices::edits`] first.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::confinement::DeviceGrant;

/// Where specifications lie; those of a later directory win.
pub const SPEC_DIRECTORIES: [&str; 2] = ["/etc/cdi", "/var/run/cdi"];

/// Bytes of one specification.
const MAX_SPEC: u64 = 4 << 20;
/// Specifications read.
const MAX_SPECS: usize = 1000;
/// Versions begin so.
const VERSION: &str = "0.";

/// The class that a device says it is of.
const CLASS_ANNOTATION: &str = "org.mobyproject.buildkit.device.class";
/// Whether a device needs no grant.
const AUTO_ALLOW_ANNOTATION: &str = "org.mobyproject.buildkit.device.autoallow";

/// Why a step does not get its devices.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// There is none of this name; the words are BuildKit's.
    #[error("required device {0:?} is not registered")]
    Unknown(String),
    /// The build was not granted one.
    #[error("device {0} is requested by the build but not allowed")]
    NotAllowed(String),
    /// The build was not granted some.
    #[error("devices {} are requested by the build but not allowed", .0.join(", "))]
    SomeNotAllowed(Vec<String>),
    /// Two specifications of the same directory have it.
    #[error("device {0} has conflicting definitions")]
    Conflict(String),
    /// A specification that cannot be read; named only when a device is asked for.
    #[error("CDI specification `{path}`: {problem}")]
    Spec {
        /// The file.
        path: String,
        /// What is wrong.
        problem: String,
    },
    /// Something of a device that a step cannot be given.
    #[error("device {device}: {what} cannot be applied to a build step")]
    Unsupported {
        /// The device.
        device: String,
        /// What it asks for.
        what: &'static str,
    },
}

/// What devices change in a step.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Edits {
    /// `NAME=value`.
    pub env: Vec<String>,
    /// Device nodes: path on this machine, path inside.
    pub nodes: Vec<(PathBuf, PathBuf)>,
    /// Files and directories of this machine.
    pub mounts: Vec<DeviceMount>,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

/// A file or directory a device brings along.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DeviceMount {
    pub source: PathBuf,
    pub target: PathBuf,
    pub readonly: bool,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    cdi_version: String,
    kind: String,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    #[serde(default)]
    devices: Vec<SpecDevice>,
    #[serde(default)]
    container_edits: SpecEdits,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SpecDevice {
    name: String,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    #[serde(default)]
    container_edits: SpecEdits,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct SpecEdits {
    #[serde(default)]
    env: Vec<String>,
    #[serde(default)]
    device_nodes: Vec<SpecNode>,
    #[serde(default)]
    mounts: Vec<SpecMount>,
    #[serde(default)]
    hooks: Vec<serde_json::Value>,
    #[serde(default)]
    additional_gids: Vec<u32>,
    #[serde(default)]
    intel_rdt: Option<serde_json::Value>,
    #[serde(default)]
    net_devices: Vec<serde_json::Value>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SpecNode {
    path: PathBuf,
    host_path: Option<PathBuf>,
    file_mode: Option<u32>,
    uid: Option<u32>,
    gid: Option<u32>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SpecMount {
    host_path: PathBuf,
    container_path: PathBuf,
    #[serde(default)]
    options: Vec<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
}

/// One device of this machine.
#[derive(Debug)]
struct Device {
    annotations: BTreeMap<String, String>,
    /// Those of its specification, then its own.
    edits: Vec<SpecEdits>,
    /// The directory it comes from.
    priority: usize,
    conflicting: bool,
}

/// The devices of this machine, by qualified name.
#[derive(Debug, Default)]
pub(crate) struct Devices {
    known: BTreeMap<String, Device>,
    /// The first specification that could not be read.
    broken: Option<DeviceError>,
}

impl Devices {
    /// Reads the specifications of these directories, those of the later ones winning.
    pub(crate) fn read(directories: &[PathBuf]) -> Self {
        let mut devices = Self::default();
        for (priority, directory) in directories.iter().enumerate() {
            let mut paths: Vec<PathBuf> = std::fs::read_dir(directory)
                .into_iter()
                .flatten()
                .flatten()
                .map(|entry| entry.path())
                .filter(|path| path.extension().is_some_and(|end| end == "json" || end == "yaml"))
                .take(MAX_SPECS)
                .collect();
            paths.sort_unstable();
            for path in paths {
                match parse(&path) {
                    Ok(spec) => devices.add(spec, priority),
                    Err(problem) => {
                        let path = path.display().to_string();
                        devices.broken.get_or_insert(DeviceError::Spec { path, problem });
                    }
                }
            }
        }
        devices
    }

    /// Their names and what is said about them.
    pub(crate) fn described(self) -> Vec<(String, BTreeMap<String, String>)> {
        self.known.into_iter().map(|(name, device)| (name, device.annotations)).collect()
    }

    fn add(&mut self, spec: Spec, priority: usize) {
        for device in spec.devices {
            let name = format!("{}={}", spec.kind, device.name);
            let mut annotations = spec.annotations.clone();
            annotations.extend(device.annotations);
            let edits = vec![spec.container_edits.clone(), device.container_edits];
            // Directories are read in order, so what is known has no higher priority.
            let conflicting = self.known.get(&name).is_some_and(|known| known.priority == priority);
            self.known.insert(name, Device { annotations, edits, priority, conflicting });
        }
    }

    /// What the devices asked for (name, whether it may be missing) change, if the grant covers them.
    pub(crate) fn edits(&self, asked: &[(String, bool)], grant: &DeviceGrant) -> Result<Edits, DeviceError> {
        let granted: Vec<&str> = match grant {
            DeviceGrant::Named(names) => names.values().flat_map(|name| self.find(name)).collect(),
            DeviceGrant::None | DeviceGrant::All => Vec::new(),
        };
        let (mut chosen, mut forbidden): (Vec<&str>, Vec<String>) = (Vec::new(), Vec::new());
        for (name, optional) in asked {
            let found = self.find(grant.meant(name));
            if found.is_empty() && !optional {
                return Err(self.broken.clone().unwrap_or_else(|| DeviceError::Unknown(name.clone())));
            }
            for device in found {
                if *grant == DeviceGrant::All || granted.contains(&device) || self.is_free(device) {
                    chosen.push(device);
                } else {
                    forbidden.push(device.to_owned());
                }
            }
        }
        match forbidden.as_slice() {
            [] => {}
            [only] => return Err(DeviceError::NotAllowed(only.clone())),
            _ => return Err(DeviceError::SomeNotAllowed(forbidden)),
        }
        let mut edits = Edits::default();
        let mut done: Vec<&str> = Vec::new();
        for device in chosen {
            if !done.contains(&device) {
                done.push(device);
                self.apply(device, &mut edits)?;
            }
        }
        Ok(edits)
    }

    /// Qualified names of the devices that `name` means: one, all of a kind (`kind=*`), the first of a kind, a class.
    fn find(&self, name: &str) -> Vec<&str> {
        let (kind, device) = name.split_once('=').unwrap_or((name, ""));
        let of_kind = || {
            let prefix = format!("{kind}=");
            self.known.keys().map(String::as_str).filter(move |known| known.starts_with(&prefix))
        };
        let mut found: Vec<&str> = match device {
            _ if !kind.contains('/') => Vec::new(),
            "" => of_kind().take(1).collect(),
            "*" => of_kind().collect(),
            _ => self.known.get_key_value(name).map(|(known, _)| known.as_str()).into_iter().collect(),
        };
        if found.is_empty() {
            let is_class =
                |device: &Device| device.annotations.get(CLASS_ANNOTATION).is_some_and(|class| class == name);
            found.extend(
                self.known.iter().filter(|(_, device)| is_class(device)).map(|(known, _)| known.as_str()),
            );
        }
        found
    }

    fn is_free(&self, device: &str) -> bool {
        let value = self.known.get(device).and_then(|device| device.annotations.get(AUTO_ALLOW_ANNOTATION));
        value.is_some_and(|value| matches!(value.as_str(), "1" | "t" | "T" | "true" | "TRUE" | "True"))
    }

    fn apply(&self, name: &str, edits: &mut Edits) -> Result<(), DeviceError> {
        let Some(device) = self.known.get(name) else { return Err(DeviceError::Unknown(name.to_owned())) };
        if device.conflicting {
            return Err(DeviceError::Conflict(name.to_owned()));
        }
        let unsupported = |what| DeviceError::Unsupported { device: name.to_owned(), what };
        for edit in &device.edits {
            if !edit.hooks.is_empty() {
                return Err(unsupported("a hook"));
            }
            if edit.intel_rdt.is_some() {
                return Err(unsupported("`intelRdt`"));
            }
            if !edit.net_devices.is_empty() {
                return Err(unsupported("a network device"));
            }
            edits.env.extend(edit.env.iter().cloned());
            edits.groups.extend(edit.additional_gids.iter().copied());
            for node in &edit.device_nodes {
                if node.file_mode.is_some() || node.uid.is_some() || node.gid.is_some() {
                    return Err(unsupported("another owner or mode of a device node"));
                }
                let source = node.host_path.clone().unwrap_or_else(|| node.path.clone());
                edits.nodes.push((source, node.path.clone()));
            }
            for mount in &edit.mounts {
                let bound = |option: &String| option == "bind" || option == "rbind";
                if mount.kind.as_deref().is_some_and(|kind| kind != "bind" && !kind.is_empty())
                    && !mount.options.iter().any(bound)
                {
                    return Err(unsupported("a mount that is no bind mount"));
                }
                edits.mounts.push(DeviceMount {
                    source: mount.host_path.clone(),
                    target: mount.container_path.clone(),
                    readonly: mount.options.iter().any(|option| option == "ro"),
                });
            }
        }
        Ok(())
    }
}

fn parse(path: &Path) -> Result<Spec, String> {
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(|error| error.to_string())?;
    file.take(MAX_SPEC).read_to_string(&mut text).map_err(|error| error.to_string())?;
    let spec: Spec = if path.extension().is_some_and(|end| end == "json") {
        serde_json::from_str(&text).map_err(|error| error.to_string())?
    } else {
        serde_yaml_ng::from_str(&text).map_err(|error| error.to_string())?
    };
    if !spec.cdi_version.starts_with(VERSION) && !spec.cdi_version.starts_with("1.") {
        return Err(format!("unknown version `{}`", spec.cdi_version));
    }
    if !spec.kind.split_once('/').is_some_and(|(vendor, class)| !vendor.is_empty() && !class.is_empty()) {
        return Err(format!("invalid kind `{}`: expected `vendor/class`", spec.kind));
    }
    Ok(spec)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPEC: &str = r#"
cdiVersion: "0.6.0"
kind: "acme.com/gpu"
annotations:
  org.mobyproject.buildkit.device.class: "gpu"
containerEdits:
  env: ["GPU=yes"]
devices:
  - name: "0"
    containerEdits:
      deviceNodes: [{path: /dev/gpu0, hostPath: /dev/zero}]
      mounts: [{hostPath: /opt/gpu, containerPath: /usr/lib/gpu, options: [ro, rbind]}]
      additionalGids: [44]
  - name: "1"
    annotations: {org.mobyproject.buildkit.device.autoallow: "true"}
    containerEdits: {env: ["SECOND=1"]}
  - name: hooked
    containerEdits: {hooks: [{hookName: createContainer, path: /bin/true}]}
"#;

    fn devices() -> Devices {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("acme.yaml"), SPEC).expect("writes");
        let json = r#"{"cdiVersion":"0.5.0","kind":"acme.com/net","devices":[{"name":"a"}]}"#;
        std::fs::write(folder.path().join("net.json"), json).expect("writes");
        Devices::read(&[folder.path().to_owned()])
    }

    #[track_caller]
    fn check(name: &str, optional: bool, allow: &[&str], expected: Result<&[&str], &str>) {
        let mut grants = crate::confinement::Entitlements::default();
        for word in allow {
            grants.grant(word).expect("an entitlement");
        }
        let found = devices().edits(&[(name.to_owned(), optional)], &grants.devices);
        let found = found.map(|edits| edits.env).map_err(|error| error.to_string());
        let expected = expected.map(|env| env.iter().map(|one| (*one).to_owned()).collect::<Vec<_>>());
        assert_eq!(found, expected.map_err(str::to_owned));
    }

    #[test]
    fn names_and_grants() {
        let refused = "device acme.com/gpu=0 is requested by the build but not allowed";
        check("acme.com/gpu=0", false, &[], Err(refused));
        check("acme.com/gpu", false, &["device=acme.com/net=a"], Err(refused));
        check("acme.com/gpu=0", false, &["device"], Ok(&["GPU=yes"]));
        check("acme.com/gpu=0", false, &["device=acme.com/gpu=0"], Ok(&["GPU=yes"]));
        check("acme.com/gpu=0", false, &["device=gpu"], Ok(&["GPU=yes"]));
        check("card", false, &["device=acme.com/gpu=0,alias=card"], Ok(&["GPU=yes"]));
        check("acme.com/gpu=1", false, &[], Ok(&["GPU=yes", "SECOND=1"]));
        check(
            "acme.com/gpu=7",
            false,
            &["device"],
            Err("required device \"acme.com/gpu=7\" is not registered"),
        );
        check("acme.com/gpu=7", true, &["device"], Ok(&[]));
        check(
            "acme.com/gpu=hooked",
            false,
            &["device"],
            Err("device acme.com/gpu=hooked: a hook cannot be applied to a build step"),
        );
        check(
            "gpu",
            false,
            &[],
            Err("devices acme.com/gpu=0, acme.com/gpu=hooked are requested by the build but not allowed"),
        );
    }

    #[test]
    fn edits_are_those_of_the_specification_and_the_device() {
        let edits =
            devices().edits(&[("acme.com/gpu=0".to_owned(), false)], &DeviceGrant::All).expect("edits");
        let mount = DeviceMount { source: "/opt/gpu".into(), target: "/usr/lib/gpu".into(), readonly: true };
        let node = (PathBuf::from("/dev/zero"), PathBuf::from("/dev/gpu0"));
        let expected =
            Edits { env: vec!["GPU=yes".into()], nodes: vec![node], mounts: vec![mount], groups: vec![44] };
        assert_eq!(edits, expected);
    }

    #[test]
    fn later_directories_win_and_equals_conflict() {
        let (low, high) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        let spec = |env: &str| {
            format!(
                r#"{{"cdiVersion":"0.5.0","kind":"a.com/b","devices":[{{"name":"c","containerEdits":{{"env":["V={env}"]}}}}]}}"#
            )
        };
        std::fs::write(low.path().join("x.json"), spec("low")).expect("writes");
        std::fs::write(high.path().join("x.json"), spec("high")).expect("writes");
        let asked = [("a.com/b=c".to_owned(), false)];
        let directories = [low.path().to_owned(), high.path().to_owned()];
        let edits = Devices::read(&directories).edits(&asked, &DeviceGrant::All);
        assert_eq!(edits.expect("edits").env, ["V=high"]);
        std::fs::write(high.path().join("y.json"), spec("other")).expect("writes");
        let conflict = Devices::read(&directories).edits(&asked, &DeviceGrant::All);
        assert_eq!(conflict, Err(DeviceError::Conflict("a.com/b=c".to_owned())));
        std::fs::write(high.path().join("z.json"), "{").expect("writes");
        let broken =
            Devices::read(&directories).edits(&[("no.com/x=y".to_owned(), false)], &DeviceGrant::All);
        assert!(matches!(broken, Err(DeviceError::Spec { .. })), "{broken:?}");
    }
}
