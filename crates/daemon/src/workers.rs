//! What clients are told of the worker.

use std::collections::BTreeMap;

use bollard_buildkit_proto::moby::buildkit::v1::types::{BuildkitVersion, CdiDevice, GcPolicy, WorkerRecord};
use bollard_buildkit_proto::pb;
use stave_oci::Platform;
use stave_store::GcRule;
use stave_worker::StepNetwork;

use crate::state::Shared;

/// What BuildKit's labels are called after.
const LABEL: &str = "org.mobyproject.buildkit.worker.";

/// Clients look at the version of the API here, not at the program's, which is in `revision`.
pub(crate) fn version(shared: &Shared) -> BuildkitVersion {
    BuildkitVersion {
        package: "stave".to_owned(),
        version: "v0.29.0".to_owned(),
        revision: shared.settings.now().worker.version.clone(),
    }
}

/// The one worker there is.
pub(crate) fn record(shared: &Shared) -> WorkerRecord {
    let network = match shared.settings.now().worker.confinement.network {
        StepNetwork::Bridge => "bridge",
        _ => "host",
    };
    let own = [
        ("executor", "oci"),
        ("snapshotter", "overlayfs"),
        ("network", network),
        ("oci.process-mode", "sandbox"),
    ];
    let own = own.map(|(name, value)| (format!("{LABEL}{name}"), value.to_owned()));
    let mut labels: std::collections::HashMap<_, _> = own.into_iter().collect();
    let settings = shared.settings.now();
    labels.extend(settings.worker.labels.clone());
    let gc_policy = settings.worker.gc.iter().map(policy).collect();
    WorkerRecord {
        id: settings.worker.id.clone(),
        labels,
        platforms: match settings.worker.platforms.as_slice() {
            [] => vec![platform(&Platform::host())],
            named => named.iter().map(platform).collect(),
        },
        gc_policy,
        buildkit_version: Some(version(shared)),
        cdi_devices: shared.engine.devices().into_iter().map(device).collect(),
    }
}

/// Who offers a device says whether steps may have it without asking.
const AUTO_ALLOW: &str = "org.mobyproject.buildkit.device.autoallow";

fn device((name, annotations): (String, BTreeMap<String, String>)) -> CdiDevice {
    let auto_allow = annotations.get(AUTO_ALLOW).is_some_and(|value| value == "true");
    CdiDevice { name, auto_allow, annotations: annotations.into_iter().collect(), on_demand: false }
}

fn policy(rule: &GcRule) -> GcPolicy {
    let bytes = |bytes: Option<u64>| i64::try_from(bytes.unwrap_or(0)).unwrap_or(i64::MAX);
    let nanos = rule.keep_duration.map_or(0, |span| span.as_nanos());
    GcPolicy {
        all: rule.filters.is_empty(),
        keep_duration: i64::try_from(nanos).unwrap_or(i64::MAX),
        max_used_space: bytes(rule.limits.max_used),
        reserved_space: bytes(rule.limits.reserved),
        min_free_space: bytes(rule.limits.min_free),
        ..GcPolicy::default()
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
