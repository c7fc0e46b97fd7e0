//! What clients are told of the worker.

use bollard_buildkit_proto::moby::buildkit::v1::types::{BuildkitVersion, GcPolicy, WorkerRecord};
use bollard_buildkit_proto::pb;
use stave_oci::Platform;

use crate::state::Shared;

/// What BuildKit's labels are called after.
const LABEL: &str = "org.mobyproject.buildkit.worker.";

/// Clients look at the version of the API here, not at the program's, which is in `revision`.
pub(crate) fn version(shared: &Shared) -> BuildkitVersion {
    BuildkitVersion {
        package: "stave".to_owned(),
        version: "v0.29.0".to_owned(),
        revision: shared.worker.version.clone(),
    }
}

/// The one worker there is.
pub(crate) fn record(shared: &Shared) -> WorkerRecord {
    let own = [
        ("executor", "oci"),
        ("snapshotter", "overlayfs"),
        ("network", "host"),
        ("oci.process-mode", "sandbox"),
    ];
    let own = own.map(|(name, value)| (format!("{LABEL}{name}"), value.to_owned()));
    let mut labels: std::collections::HashMap<_, _> = own.into_iter().collect();
    labels.extend(shared.worker.labels.clone());
    let gc_policy = shared.worker.keep_bytes.map(|bytes| GcPolicy {
        all: true,
        max_used_space: i64::try_from(bytes).unwrap_or(i64::MAX),
        ..GcPolicy::default()
    });
    WorkerRecord {
        id: shared.worker.id.clone(),
        labels,
        platforms: vec![platform(&Platform::host())],
        gc_policy: gc_policy.into_iter().collect(),
        buildkit_version: Some(version(shared)),
        cdi_devices: Vec::new(),
    }
}

fn platform(platform: &Platform) -> pb::Platform {
    pb::Platform {
        architecture: platform.architecture.clone(),
        os: platform.os.clone(),
        variant: platform.variant.clone().unwrap_or_default(),
        ..pb::Platform::default()
    }
}
