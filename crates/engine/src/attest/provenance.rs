//! SLSA provenance predicates with BuildKit's content: what was asked for, what went in, which steps ran.
//!
//! Pure: from facts to JSON. Owns both versions of the predicate and what `min` leaves out. Must not
//! contain secrets: of them, only ids are facts. Start with [`Facts`].

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use stave_exporter::{Attestation, package_url};
use stave_frontend_dockerfile::PlanRequest;
use stave_frontend_dockerfile::request::NoCache;
use stave_llb::{Definition, Mount, NetMode, Op, SourceIdentifier};
use stave_oci::{Digest, Platform, Reference};

use super::{AttestError, Provenance, ProvenanceMode, SlsaVersion};

const BUILD_TYPE_V1: &str =
    "https://github.com/moby/buildkit/blob/master/docs/attestations/slsa-definitions.md";
const BUILD_TYPE_V02: &str = "https://mobyproject.org/buildkit@v1";
/// The version of the Dockerfile language that the front end serves, as BuildKit's names its own.
const FRONTEND: &str = "dockerfile.v0";

/// What is known of one platform's build.
#[derive(Debug)]
pub(crate) struct Facts<'a> {
    pub(crate) plan: &'a PlanRequest,
    /// The Dockerfile's name.
    pub(crate) filename: &'a str,
    pub(crate) definition: &'a Definition,
    /// The images that went in, pinned.
    pub(crate) images: Vec<(Reference, Platform, Digest)>,
    pub(crate) started: Timestamp,
    pub(crate) finished: Timestamp,
    /// Names this one build.
    pub(crate) invocation: String,
}

impl Facts<'_> {
    /// The attestation that `wanted` asks for.
    pub(crate) fn attest(&self, wanted: &Provenance) -> Result<Attestation, AttestError> {
        let locals = self.locals();
        if let (true, Some(local)) = (wanted.complete_materials, locals.first()) {
            return Err(AttestError::IncompleteMaterials(local.clone()));
        }
        let (predicate_type, predicate) = match wanted.version {
            SlsaVersion::V1 => ("https://slsa.dev/provenance/v1", self.v1(wanted)),
            SlsaVersion::V02 => ("https://slsa.dev/provenance/v0.2", self.v02(wanted)),
        };
        Ok(Attestation {
            predicate_type: predicate_type.to_owned(),
            predicate: predicate.to_string().into_bytes(),
            file_name: "provenance.json".to_owned(),
        })
    }

    fn v1(&self, wanted: &Provenance) -> Value {
        let (request, is_complete) = self.request(wanted.mode);
        let mut internal = json!({"builderPlatform": self.plan.build_platform.to_string()});
        let mut metadata = self.metadata(wanted);
        metadata["buildkit_completeness"] =
            json!({"request": is_complete, "resolvedDependencies": self.locals().is_empty()});
        metadata["buildkit_reproducible"] = json!(wanted.reproducible);
        if wanted.mode == ProvenanceMode::Max {
            internal["buildConfig"] = self.build_config();
        }
        json!({
            "buildDefinition": {
                "buildType": BUILD_TYPE_V1,
                "externalParameters": {"configSource": {"path": self.filename}, "request": request},
                "internalParameters": internal,
                "resolvedDependencies": self.materials(),
            },
            "runDetails": {
                "builder": {"id": wanted.builder_id},
                "metadata": metadata,
            },
        })
    }

    fn v02(&self, wanted: &Provenance) -> Value {
        let (request, is_complete) = self.request(wanted.mode);
        let v1 = self.metadata(wanted);
        let mut predicate = json!({
            "builder": {"id": wanted.builder_id},
            "buildType": BUILD_TYPE_V02,
            "materials": self.materials(),
            "invocation": {
                "configSource": {"entryPoint": self.filename},
                "parameters": request,
                "environment": {"platform": self.plan.build_platform.to_string()},
            },
            "metadata": {
                "buildInvocationID": v1["invocationId"],
                "buildStartedOn": v1["startedOn"],
                "buildFinishedOn": v1["finishedOn"],
                "completeness": {
                    "parameters": is_complete,
                    "environment": true,
                    "materials": self.locals().is_empty(),
                },
                "reproducible": wanted.reproducible,
                "https://mobyproject.org/buildkit@v1#metadata": v1["buildkit_metadata"],
                "https://mobyproject.org/buildkit@v1#hermetic": v1["buildkit_hermetic"],
            },
        });
        if wanted.mode == ProvenanceMode::Max {
            predicate["buildConfig"] = self.build_config();
        }
        predicate
    }

    fn metadata(&self, wanted: &Provenance) -> Value {
        let mut own = Map::new();
        if wanted.mode == ProvenanceMode::Max {
            own.insert("source".to_owned(), self.source());
        }
        json!({
            "invocationId": self.invocation,
            "startedOn": self.started.to_string(),
            "finishedOn": self.finished.to_string(),
            "buildkit_metadata": own,
            "buildkit_hermetic": self.locals().is_empty() && !self.uses_network(),
        })
    }

    /// What was asked for, in the names of the front end's options; and whether nothing is left out.
    fn request(&self, mode: ProvenanceMode) -> (Value, bool) {
        let mut is_complete = true;
        let mut args = BTreeMap::new();
        let prefixed = [("build-arg:", &self.plan.build_args), ("label:", &self.plan.labels)];
        for (prefix, values) in prefixed {
            is_complete &= mode == ProvenanceMode::Max || values.is_empty();
            if mode == ProvenanceMode::Max {
                args.extend(values.iter().map(|(key, value)| (format!("{prefix}{key}"), value.clone())));
            }
        }
        args.extend(self.plan.target.iter().map(|target| ("target".to_owned(), target.clone())));
        match &self.plan.no_cache {
            NoCache::Nothing => {}
            NoCache::Everything => drop(args.insert("no-cache".to_owned(), String::new())),
            NoCache::Stages(stages) => drop(args.insert("no-cache".to_owned(), stages.join(","))),
        }
        let mut request = json!({"frontend": FRONTEND});
        if !args.is_empty() {
            request["args"] = json!(args);
        }
        if mode == ProvenanceMode::Max {
            let (secrets, agents) = self.borrowed();
            for (key, ids) in [("secrets", secrets), ("ssh", agents)] {
                if !ids.is_empty() {
                    let ids = ids.into_iter().map(|(id, optional)| match optional {
                        true => json!({"id": id, "optional": true}),
                        false => json!({"id": id}),
                    });
                    request[key] = ids.collect();
                }
            }
        }
        let locals: Vec<Value> = self.locals().into_iter().map(|name| json!({"name": name})).collect();
        if !locals.is_empty() {
            request["locals"] = json!(locals);
        }
        (request, is_complete)
    }

    /// Ids of the secrets and agents that steps may see.
    fn borrowed(&self) -> (BTreeMap<String, bool>, BTreeMap<String, bool>) {
        let (mut secrets, mut agents) = (BTreeMap::new(), BTreeMap::new());
        for vertex in self.definition.vertices() {
            let Op::Exec(exec) = &vertex.op else { continue };
            for mount in &exec.mounts {
                match mount {
                    Mount::Secret { id, optional, .. } => drop(secrets.insert(id.clone(), *optional)),
                    Mount::Ssh { id, optional, .. } => drop(agents.insert(id.clone(), *optional)),
                    _ => {}
                }
            }
            secrets.extend(exec.secret_env.iter().map(|secret| (secret.id.clone(), secret.optional)));
        }
        (secrets, agents)
    }

    fn locals(&self) -> Vec<String> {
        let mut names: Vec<String> = self
            .identifiers()
            .filter_map(|identifier| match identifier {
                SourceIdentifier::Local { name, .. } => Some(name.clone()),
                _ => None,
            })
            .collect();
        names.sort();
        names.dedup();
        names
    }

    fn identifiers(&self) -> impl Iterator<Item = &SourceIdentifier> {
        self.definition.vertices().iter().filter_map(|vertex| match &vertex.op {
            Op::Source(source) => Some(&source.identifier),
            _ => None,
        })
    }

    fn uses_network(&self) -> bool {
        self.definition.vertices().iter().any(|vertex| match &vertex.op {
            Op::Exec(exec) => exec.network != NetMode::None,
            _ => false,
        })
    }

    fn materials(&self) -> Vec<Value> {
        let mut materials = Vec::new();
        for (reference, platform, digest) in &self.images {
            let uri = package_url(&reference.pinned(digest.clone()), platform);
            materials.push(json!({"uri": uri, "digest": digest_set(digest)}));
        }
        for vertex in self.definition.vertices() {
            let Op::Source(source) = &vertex.op else { continue };
            match &source.identifier {
                SourceIdentifier::Http { url, .. } => {
                    let mut material = json!({"uri": without_credentials(url)});
                    let checksum = source.attrs.get("http.checksum").and_then(|text| text.parse().ok());
                    if let Some(digest) = checksum {
                        material["digest"] = digest_set(&digest);
                    }
                    materials.push(material);
                }
                SourceIdentifier::Git(git) => {
                    let mut material = json!({"uri": without_credentials(&git.remote)});
                    if let Some(commit) = source.attrs.get("git.checksum").filter(|sum| sum.len() >= 40) {
                        let algorithm = if commit.len() == 64 { "sha256" } else { "sha1" };
                        material["digest"] = json!({algorithm: commit});
                    }
                    materials.push(material);
                }
                _ => {}
            }
        }
        materials
    }

    /// The steps, in BuildKit's form: inputs name steps, not digests.
    fn build_config(&self) -> Value {
        let vertices = self.definition.vertices();
        let name = |digest: &Digest| self.definition.position(digest).map(|at| format!("step{at}"));
        let mut steps = Vec::with_capacity(vertices.len());
        let mut mapping = Map::new();
        for (at, vertex) in vertices.iter().enumerate() {
            let mut op = stave_llb::json::op(vertex);
            if let Some(op) = op.as_object_mut() {
                op.remove("inputs");
            }
            let inputs: Vec<String> = vertex
                .inputs
                .iter()
                .filter_map(|edge| Some(format!("{}:{}", name(&edge.vertex)?, edge.output)))
                .collect();
            let mut step = json!({"id": format!("step{at}"), "op": op});
            if !inputs.is_empty() {
                step["inputs"] = json!(inputs);
            }
            steps.push(step);
            mapping.insert(vertex.digest.to_string(), json!(format!("step{at}")));
        }
        json!({"llbDefinition": steps, "digestMapping": mapping})
    }

    /// The Dockerfile, and which lines of it each step comes from.
    fn source(&self) -> Value {
        let map = self.definition.source_map();
        let infos = map.infos.iter().map(|info| {
            json!({
                "filename": info.filename,
                "language": info.language,
                "data": STANDARD.encode(&info.data),
            })
        });
        let mut locations = Map::new();
        for (at, vertex) in self.definition.vertices().iter().enumerate() {
            let places = self.definition.source_location(&vertex.digest).iter().map(|place| {
                let ranges = place.ranges.iter().map(
                    |range| json!({"start": {"line": range.start.line}, "end": {"line": range.end.line}}),
                );
                json!({"ranges": ranges.collect::<Vec<_>>()})
            });
            let places: Vec<Value> = places.collect();
            if !places.is_empty() {
                locations.insert(format!("step{at}"), json!({"locations": places}));
            }
        }
        json!({"locations": locations, "infos": infos.collect::<Vec<_>>()})
    }
}

fn digest_set(digest: &Digest) -> Value {
    let (algorithm, hex) = digest.as_str().split_once(':').unwrap_or_default();
    json!({algorithm: hex})
}

/// An address without a user's name and password.
fn without_credentials(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let end = rest.find('/').unwrap_or(rest.len());
    let host = rest[..end].rsplit_once('@').map_or(&rest[..end], |(_, host)| host);
    format!("{scheme}://{host}{}", &rest[end..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_stay_out() {
        for (url, expected) in [
            ("https://u:p@h/x@y", "https://h/x@y"),
            ("https://h/x", "https://h/x"),
            ("git@h:x", "git@h:x"),
            ("ssh://git@h", "ssh://h"),
        ] {
            assert_eq!(without_credentials(url), expected);
        }
    }

    fn wanted(mode: ProvenanceMode, version: SlsaVersion) -> Provenance {
        let builder_id = "https://builder.example".to_owned();
        Provenance { mode, version, builder_id, reproducible: true, complete_materials: false }
    }

    fn facts<T>(read: impl FnOnce(Facts<'_>) -> T) -> T {
        let platform = Platform::new("linux", "amd64", None);
        let mut plan = PlanRequest::new(platform.clone());
        plan.build_args.insert("A".to_owned(), "1".to_owned());
        plan.target = Some("app".to_owned());
        let digest = Digest::sha256(b"base");
        let time = Timestamp::constant(1_000_000_000, 0);
        read(Facts {
            plan: &plan,
            filename: "Dockerfile",
            definition: &Definition::empty(),
            images: vec![("base:1".parse().expect("a name"), platform, digest)],
            started: time,
            finished: time,
            invocation: "id".to_owned(),
        })
    }

    fn predicate(mode: ProvenanceMode, version: SlsaVersion) -> Value {
        let attestation = facts(|facts| facts.attest(&wanted(mode, version))).expect("complete");
        serde_json::from_slice(&attestation.predicate).expect("JSON")
    }

    #[test]
    fn min_tells_no_arguments_and_no_steps() {
        let min = predicate(ProvenanceMode::Min, SlsaVersion::V1);
        let definition = &min["buildDefinition"];
        assert_eq!(definition["externalParameters"]["request"]["args"], json!({"target": "app"}));
        assert_eq!(definition["internalParameters"]["buildConfig"], Value::Null);
        assert_eq!(min["runDetails"]["metadata"]["buildkit_completeness"]["request"], json!(false));
        let max = predicate(ProvenanceMode::Max, SlsaVersion::V1);
        let definition = &max["buildDefinition"];
        assert_eq!(
            definition["externalParameters"]["request"]["args"],
            json!({"build-arg:A": "1", "target": "app"})
        );
        assert_eq!(definition["internalParameters"]["buildConfig"]["llbDefinition"], json!([]));
        assert_eq!(max["runDetails"]["metadata"]["buildkit_completeness"]["request"], json!(true));
        assert_eq!(max["runDetails"]["builder"]["id"], json!("https://builder.example"));
    }

    #[test]
    fn both_versions_name_the_same_materials() {
        let hex = Digest::sha256(b"base").hex().to_owned();
        let uri = format!("pkg:docker/base@1?digest=sha256:{hex}&platform=linux%2Famd64");
        let expected = json!([{"uri": uri, "digest": {"sha256": hex}}]);
        let v1 = predicate(ProvenanceMode::Min, SlsaVersion::V1);
        assert_eq!(v1["buildDefinition"]["resolvedDependencies"], expected);
        let v02 = predicate(ProvenanceMode::Min, SlsaVersion::V02);
        assert_eq!(v02["materials"], expected);
        assert_eq!(v02["metadata"]["buildStartedOn"], json!("2001-09-09T01:46:40Z"));
        assert_eq!(v02["metadata"]["reproducible"], json!(true));
    }
}
