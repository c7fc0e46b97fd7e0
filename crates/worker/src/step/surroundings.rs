//! What the build, not the op, puts around a process: proxies, certificates, devices. None of it enters a layer or a key.
//!
//! Must not know how processes run. Read [`add_variables`] first.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use stave_llb::ExecOp;
use stave_sandbox::MountSpec;
use stave_store::StoreError;

use super::StepError;
use super::mounts::{Plan, Prepared};
use crate::authorities;
use crate::cdi::{DeviceError, Devices, Edits};
use crate::confinement::Confinement;

fn has(env: &[String], name: &str) -> bool {
    env.iter().any(|entry| entry.split('=').next() == Some(name))
}

/// Proxies, in capitals and small letters, and where certificates are; what the op says itself stays.
pub(super) fn add_variables(env: &mut Vec<String>, confinement: &Confinement) {
    for (name, value) in &confinement.proxies {
        for name in [name.clone(), name.to_lowercase()] {
            if !has(env, &name) {
                env.push(format!("{name}={value}"));
            }
        }
    }
    if confinement.authorities.is_some() {
        for (name, value) in authorities::variables() {
            if !has(env, name) {
                env.push(format!("{name}={value}"));
            }
        }
    }
}

/// Shows the build's certificates at every place the image has a bundle.
pub(super) fn show_authorities(plan: &Plan, prepared: &mut Prepared) -> Result<(), StepError> {
    let Some(additional) = &plan.session.confinement.authorities else { return Ok(()) };
    let scratch = plan.shared.store.scratch_dir()?;
    for (number, bundle) in authorities::bundles(&*prepared.root_view, additional).into_iter().enumerate() {
        let source = scratch.path().join(number.to_string());
        let written = std::fs::write(&source, &bundle.contents)
            .and_then(|()| std::fs::set_permissions(&source, std::fs::Permissions::from_mode(0o644)));
        written.map_err(|error| StoreError::Io { action: "write", path: source.clone(), source: error })?;
        let target = bundle.target;
        prepared.specs.push(MountSpec::Bind { source, target, readonly: true, recursive: false });
    }
    prepared.scratch.push(scratch);
    Ok(())
}

/// What the devices of the op and of the build change. Without any, no specification is read.
pub(super) fn devices(op: &ExecOp, plan: &Plan) -> Result<Edits, DeviceError> {
    let confinement = &plan.session.confinement;
    let asked = op.devices.iter().map(|device| (device.name.clone(), device.optional));
    let asked: Vec<_> = asked.chain(confinement.devices.iter().map(|name| (name.clone(), false))).collect();
    if asked.is_empty() {
        return Ok(Edits::default());
    }
    Devices::read(&plan.shared.device_directories).edits(&asked, &confinement.entitlements.devices)
}

/// The mounts of devices.
pub(super) fn device_mounts(devices: &Edits) -> impl Iterator<Item = MountSpec> {
    let node = |(source, target): &(std::path::PathBuf, std::path::PathBuf)| MountSpec::Device {
        source: source.clone(),
        target: Path::new("/").join(target),
    };
    let mount = |mount: &crate::cdi::DeviceMount| MountSpec::Bind {
        source: mount.source.clone(),
        target: Path::new("/").join(&mount.target),
        readonly: mount.readonly,
        recursive: true,
    };
    devices.nodes.iter().map(node).chain(devices.mounts.iter().map(mount))
}

/// A device's variables win over those of the same name, as with every runtime.
pub(super) fn add_device_variables(env: &mut Vec<String>, added: Vec<String>) {
    for entry in added {
        let name = entry.split('=').next().unwrap_or_default().to_owned();
        env.retain(|known| known.split('=').next() != Some(&name));
        env.push(entry);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_op_wins_over_the_build_and_devices_over_both() {
        let confinement = Confinement {
            proxies: vec![("HTTP_PROXY".into(), "http://p".into())],
            authorities: Some(b"pem".as_slice().into()),
            ..Confinement::default()
        };
        let mut env =
            vec!["http_proxy=own".to_owned(), "SSL_CERT_FILE=/mine".to_owned(), "GPU=no".to_owned()];
        add_variables(&mut env, &confinement);
        assert!(
            env.contains(&"HTTP_PROXY=http://p".to_owned()) && env.contains(&"http_proxy=own".to_owned())
        );
        assert!(env.contains(&"SSL_CERT_FILE=/mine".to_owned()), "{env:?}");
        assert!(env.contains(&format!("NODE_EXTRA_CA_CERTS={}", authorities::OWN)), "{env:?}");
        add_device_variables(&mut env, vec!["GPU=yes".to_owned()]);
        assert!(env.contains(&"GPU=yes".to_owned()) && !env.contains(&"GPU=no".to_owned()));
    }
}
