//! What clients are told this daemon can do. Only what works stands here: a client asks for the rest in another way, or
//! says that it is missing.

use std::collections::BTreeSet;

use bollard_buildkit_proto::moby::buildkit::v1::apicaps::ApiCap;
use stave_llb::Definition;

use crate::failure::Failure;

/// Of the gateway.
const FRONTEND: &[&str] = &[
    "solve.base",
    "resolveimage",
    "resolveimage.resolvemode",
    "readfile",
    "return",
    "returnmap",
    "readdir",
    "statfile",
    "proto.refarray",
    "reference.output",
    "frontend.inputs",
    "gateway.solve.metadata",
    "frontend.caps",
    "gateway.solve.evaluate",
    "gateway.evaluate",
    "gateway.warnings",
    "gateway.exec",
    "gateway.exec.extrahosts",
    "gateway.exec.filesystem",
    "gateway.exec.secretenv",
    "gateway.exec.signals",
    "source.metaresolver",
    "source.metaresolver.image.attestations",
    "source.metaresolver.http.checksumrequest",
    "importcaches",
    "reference.attestations",
];

/// Of graphs.
const LLB: &[&str] = &[
    "source.image",
    "source.image.resolvemode",
    "source.image.checksum",
    "source.image.layerlimit",
    "source.local",
    "source.local.unique",
    "source.local.sessionid",
    "source.local.includepatterns",
    "source.local.followpaths",
    "source.local.excludepatterns",
    "source.local.sharedkeyhint",
    "source.local.differ",
    "source.local.metadatatransfer",
    "source.git",
    "source.git.keepgitdir",
    "source.git.fullurl",
    "source.git.knownsshhosts",
    "source.git.mountsshsock",
    "source.git.subdir",
    "source.git.checksum",
    "source.git.httpauth",
    "source.git.skipsubmodules",
    "source.git.mtime",
    "source.git.fetchbycommit",
    "source.http",
    "source.http.checksum",
    "source.http.perm",
    "source.http.auth",
    "source.http.header",
    // BuildKit's spelling.
    "soruce.http.uidgid",
    "source.ocilayout",
    "source.imageblob",
    "source.buildop.llbfilename",
    "source.policy",
    "source.policy.session",
    "exec.meta.base",
    "exec.meta.cdi",
    "exec.meta.cgroup.parent",
    "exec.meta.network",
    "exec.meta.proxyenv",
    "exec.meta.security",
    "exec.meta.setsdefaultpath",
    "exec.meta.ulimit",
    "exec.meta.removemountstubs.recursive",
    "exec.mount.bind",
    "exec.mount.bind.readwrite-nooutput",
    "exec.mount.cache",
    "exec.mount.cache.sharing",
    "exec.mount.selector",
    "exec.mount.tmpfs",
    "exec.mount.tmpfs.size",
    "exec.mount.secret",
    "exec.mount.ssh",
    "exec.mount.cache.content",
    "exec.secretenv",
    "exec.validexitcode",
    "file.base",
    "file.rm.wildcard",
    "file.rm.nofollowsymlink",
    "file.copy.includeexcludepatterns",
    "file.copy.requiredpaths",
    "file.copy.alwaysreplaceexistingdestpaths",
    "file.copy.modestring",
    "file.symlink.create",
    "constraints",
    "platform",
    "meta.ignorecache",
    "meta.description",
    "meta.exportcache",
    "mergeop",
    "diffop",
    "passthroughop",
    "cache.s3",
    "exporter.image.annotations",
    "exporter.image.attestations",
    "exporter.sourcedateepoch",
    "exporter.multiple",
    "exporter.session",
    "gc.freespacefilter",
    "history.filter",
];

/// A graph of a client, if nothing in it needs what is not there: a newer client's may say in words unknown here what shall
/// be done, which would not be done.
pub(crate) fn understood(definition: Definition) -> Result<Definition, Failure> {
    let wanted = definition.vertices().iter().flat_map(|vertex| &vertex.metadata.caps);
    let wanted: BTreeSet<&str> = wanted.map(AsRef::as_ref).collect();
    if let Some(unknown) = wanted.iter().find(|cap| !LLB.contains(*cap)) {
        return Err(Failure::Value(format!("unknown API capability {unknown}")));
    }
    Ok(definition)
}

pub(crate) fn frontend() -> Vec<ApiCap> {
    FRONTEND.iter().map(|id| capability(id)).collect()
}

pub(crate) fn llb() -> Vec<ApiCap> {
    LLB.iter().map(|id| capability(id)).collect()
}

fn capability(id: &str) -> ApiCap {
    ApiCap { id: id.to_owned(), enabled: true, ..ApiCap::default() }
}

#[cfg(test)]
mod tests {
    use bollard_buildkit_proto::pb;
    use prost::Message as _;
    use stave_oci::Digest;

    use crate::frontend::graph_of;

    #[test]
    fn a_graph_that_needs_what_is_not_there_is_refused() {
        let check = |caps: &[&str], expected: Option<&str>| {
            let source = pb::SourceOp { identifier: "local://x".to_owned(), ..pb::SourceOp::default() };
            let op = pb::Op { op: Some(pb::op::Op::Source(source)), ..pb::Op::default() }.encode_to_vec();
            let digest = Digest::sha256(&op).to_string();
            let input = pb::Input { digest: digest.clone(), index: 0 };
            let end = pb::Op { inputs: vec![input], ..pb::Op::default() }.encode_to_vec();
            let caps = caps.iter().map(|cap| ((*cap).to_owned(), true)).collect();
            let about = pb::OpMetadata { caps, ..pb::OpMetadata::default() };
            let graph = pb::Definition {
                def: vec![op, end],
                metadata: [(digest, about)].into(),
                ..Default::default()
            };
            let refused = graph_of(&graph).err().map(|error| error.to_string());
            assert_eq!(refused.as_deref(), expected);
        };
        check(&[], None);
        check(&["source.local", "meta.description"], None);
        let limits = "exec.meta.linux.resources";
        check(&["source.local", limits], Some(&*format!("unknown API capability {limits}")));
    }
}
