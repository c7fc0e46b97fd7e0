//! The capabilities a definition asks of its solver.
//!
//! Owns which operation asks for what, by BuildKit's names (`solver/pb/caps.go`).

use std::borrow::Cow;
use std::collections::BTreeSet;

use crate::{
    definition::Vertex,
    exec::{ExecOp, Mount, NetMode, SecurityMode},
    source::SourceIdentifier,
};

/// What a source asks for.
pub(super) fn of_source(identifier: &SourceIdentifier) -> &'static [&'static str] {
    match identifier {
        SourceIdentifier::DockerImage { .. } => &["source.image"],
        SourceIdentifier::Local { .. } => &["source.local"],
        SourceIdentifier::Git(_) => &["source.git"],
        SourceIdentifier::Http { .. } => &["source.http"],
        SourceIdentifier::OciLayout { .. } => &["source.ocilayout"],
        SourceIdentifier::Blob { .. } => &["source.imageblob"],
        SourceIdentifier::Unknown { .. } => &[],
    }
}

/// What a process asks for.
pub(super) fn of_exec(exec: &ExecOp) -> Vec<&'static str> {
    let mut caps = vec!["exec.meta.base", "exec.meta.setsdefaultpath"];
    let mut when = |condition: bool, cap: &'static str| {
        if condition {
            caps.push(cap);
        }
    };
    when(!exec.valid_exit_codes.is_empty(), "exec.validexitcode");
    when(!exec.ulimits.is_empty(), "exec.meta.ulimit");
    when(exec.network != NetMode::Default, "exec.meta.network");
    when(exec.security == SecurityMode::Insecure, "exec.meta.security");
    when(exec.proxy_env.is_some(), "exec.meta.proxyenv");
    when(!exec.secret_env.is_empty(), "exec.secretenv");
    when(!exec.devices.is_empty(), "exec.meta.cdi");
    for mount in &exec.mounts {
        match mount {
            Mount::Bind { selector, input, .. } => {
                when(!selector.is_empty(), "exec.mount.selector");
                when(input.is_some(), "exec.mount.bind");
            }
            Mount::Cache { selector, .. } => {
                when(!selector.is_empty(), "exec.mount.selector");
                when(true, "exec.mount.cache");
                when(true, "exec.mount.cache.sharing");
            }
            Mount::Tmpfs { size, .. } => {
                when(true, "exec.mount.tmpfs");
                when(*size > 0, "exec.mount.tmpfs.size");
            }
            Mount::Secret { .. } => when(true, "exec.mount.secret"),
            Mount::Ssh { .. } => when(true, "exec.mount.ssh"),
        }
    }
    caps
}

/// What the definition as a whole asks for, said at its last operation.
pub(super) fn of_definition(vertices: &[Vertex]) -> BTreeSet<Cow<'static, str>> {
    let mut caps = BTreeSet::from(["constraints", "platform"].map(Cow::Borrowed));
    for Vertex { metadata, .. } in vertices {
        if metadata.ignore_cache {
            caps.insert("meta.ignorecache".into());
        }
        if !metadata.description.is_empty() {
            caps.insert("meta.description".into());
        }
        if metadata.export_cache.is_some() {
            caps.insert("meta.exportcache".into());
        }
    }
    caps
}
