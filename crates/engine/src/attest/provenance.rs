//! SLSA provenance predicates with BuildKit's content: what was asked for, what went in, which steps ran.
//!
//! Pure: from facts to JSON. Owns both versions of the predicate and what `min` leaves out. Must not
//! contain secrets: of them, only ids are facts. Start with [`Facts`].

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use stave_exporter::{Attestation, blob_url, layout_blob_url, package_url};
use stave_frontend_dockerfile::PlanRequest;
use stave_frontend_dockerfile::request::NoCache;
use stave_llb::builder::{About, GraphBuilder};
use stave_llb::{BlobPlace, Definition, Mount, NetMode, Op, SourceIdentifier, SourceInfo, SourceOp};
use stave_oci::{Descriptor, Digest, Platform, Reference};
use stave_worker::{Pinned, Pins};

use super::{Asked, AttestError, Provenance, ProvenanceMode, SlsaVersion};

const BUILD_TYPE_V1: &str =
    "https://github.com/moby/buildkit/blob/master/docs/attestations/slsa-definitions.md";
const BUILD_TYPE_V02: &str = "https://mobyproject.org/buildkit@v1";
/// What is known of one platform's build.
#[derive(Debug)]
pub(crate) struct Facts<'a> {
    pub(crate) asked: &'a Asked,
    pub(crate) definition: &'a Definition,
    /// The images that went in.
    pub(crate) images: Vec<Material>,
    /// What moving sources turned out to be.
    pub(crate) pins: &'a Pins,
    /// Layers of results, by the step and output that has them.
    pub(crate) layers: BTreeMap<(Digest, u32), Vec<Descriptor>>,
    pub(crate) started: Timestamp,
    pub(crate) finished: Timestamp,
    /// Names this one build.
    pub(crate) invocation: String,
}

/// An image that went in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Material {
    /// As it was named.
    pub reference: Reference,
    /// For which platform.
    pub platform: Platform,
    /// What that turned out to be.
    pub digest: Digest,
    /// Whether it came from an OCI layout and no registry.
    pub is_layout: bool,
}

impl Asked {
    /// What a plan was made from.
    pub(crate) fn of_plan(plan: &PlanRequest, filename: &str) -> Self {
        let mut args = BTreeMap::new();
        for (prefix, values) in [("build-arg:", &plan.build_args), ("label:", &plan.labels)] {
            args.extend(values.iter().map(|(key, value)| (format!("{prefix}{key}"), value.clone())));
        }
        args.extend(plan.target.iter().map(|target| ("target".to_owned(), target.clone())));
        match &plan.no_cache {
            NoCache::Nothing => {}
            NoCache::Everything => drop(args.insert("no-cache".to_owned(), String::new())),
            NoCache::Stages(stages) => drop(args.insert("no-cache".to_owned(), stages.join(","))),
        }
        Self {
            frontend: super::FRONTEND.to_owned(),
            args,
            filename: Some(filename.to_owned()),
            ..Self::default()
        }
    }

    /// The same in the words of the predicate. The second value tells whether nothing was left out.
    fn request(&self, mode: ProvenanceMode) -> (Map<String, Value>, bool) {
        let is_own = |key: &str| key.starts_with("build-arg:") || key.starts_with("label:");
        let mut is_complete = !self.frontend.is_empty();
        let mut args = self.args.clone();
        if mode == ProvenanceMode::Min {
            is_complete &= !args.keys().any(|key| is_own(key));
            args.retain(|key, _| !is_own(key));
        }
        let mut request = Map::new();
        if !self.frontend.is_empty() {
            request.insert("frontend".to_owned(), json!(self.frontend));
        }
        if !args.is_empty() {
            request.insert("args".to_owned(), json!(args));
        }
        if !self.inputs.is_empty() {
            let inputs = self.inputs.iter().map(|(name, input)| {
                let (request, input_complete) = input.request(mode);
                is_complete &= mode == ProvenanceMode::Max || input_complete || input.frontend.is_empty();
                (name.clone(), json!({"configSource": input.config_source(&[]), "request": request}))
            });
            let inputs: Map<String, Value> = inputs.collect();
            request.insert("inputs".to_owned(), Value::Object(inputs));
        }
        if let Some(root) = &self.root {
            let (words, root_complete) = root.request(mode);
            is_complete &= mode == ProvenanceMode::Max || root_complete || root.frontend.is_empty();
            let root = json!({"configSource": root.config_source(&[]), "request": words});
            request.insert("root".to_owned(), root);
        }
        (request, is_complete)
    }

    /// Where the Dockerfile came from.
    fn config_source(&self, materials: &[Value]) -> Map<String, Value> {
        let mut source = Map::new();
        if let Some(address) = &self.context {
            // The directory in a repository is part of the address, and of no material's.
            let whole = match address.split_once('#') {
                Some((remote, fragment)) => {
                    format!("{remote}#{}", fragment.split(':').next().unwrap_or_default())
                }
                None => address.clone(),
            };
            let whole = whole.trim_end_matches('#');
            source.insert("uri".to_owned(), json!(address));
            let known = materials.iter().find(|material| material["uri"] == json!(whole));
            if let Some(digest) = known.and_then(|material| material.get("digest")) {
                source.insert("digest".to_owned(), digest.clone());
            }
        }
        if let Some(filename) = &self.filename {
            source.insert("path".to_owned(), json!(filename));
        }
        source
    }
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
            ..Attestation::default()
        })
    }

    fn v1(&self, wanted: &Provenance) -> Value {
        let (request, is_complete) = self.request(wanted.mode);
        let mut internal = json!({"builderPlatform": Platform::host().to_string()});
        for (key, value) in self.environment() {
            internal[key] = value;
        }
        let materials = self.materials();
        let mut metadata = self.metadata(wanted);
        metadata["buildkit_completeness"] =
            json!({"request": is_complete, "resolvedDependencies": self.locals().is_empty()});
        metadata["buildkit_reproducible"] = json!(wanted.reproducible);
        if wanted.mode == ProvenanceMode::Max {
            internal["buildConfig"] = build_config(self.definition);
        }
        json!({
            "buildDefinition": {
                "buildType": BUILD_TYPE_V1,
                "externalParameters": {
                    "configSource": self.asked.config_source(&materials),
                    "request": request,
                },
                "internalParameters": internal,
                "resolvedDependencies": materials,
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
        let materials = self.materials();
        let mut source = self.asked.config_source(&materials);
        if let Some(path) = source.remove("path") {
            source.insert("entryPoint".to_owned(), path);
        }
        let mut environment = json!({"platform": Platform::host().to_string()});
        for (key, value) in self.environment() {
            environment[key] = value;
        }
        let mut predicate = json!({
            "builder": {"id": wanted.builder_id},
            "buildType": BUILD_TYPE_V02,
            "materials": materials,
            "invocation": {
                "configSource": source,
                "parameters": request,
                "environment": environment,
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
            predicate["buildConfig"] = build_config(self.definition);
        }
        predicate
    }

    fn metadata(&self, wanted: &Provenance) -> Value {
        let mut own = Map::new();
        if wanted.mode == ProvenanceMode::Max {
            own.insert("source".to_owned(), self.source());
            let layers = self.layers.iter().filter_map(|((vertex, output), layers)| {
                let at = self.definition.position(vertex)?;
                Some((format!("step{at}:{output}"), json!([layers])))
            });
            let layers: Map<String, Value> = layers.collect();
            if !layers.is_empty() {
                own.insert("layers".to_owned(), Value::Object(layers));
            }
        }
        if !self.asked.vcs.is_empty() {
            own.insert("vcs".to_owned(), json!(self.asked.vcs));
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
        let (mut request, is_complete) = self.asked.request(mode);
        if mode == ProvenanceMode::Max {
            let (secrets, agents) = self.borrowed();
            for (key, ids) in [("secrets", secrets), ("ssh", agents)] {
                if !ids.is_empty() {
                    let ids = ids.into_iter().map(|(id, optional)| match optional {
                        true => json!({"id": id, "optional": true}),
                        false => json!({"id": id}),
                    });
                    request.insert(key.to_owned(), ids.collect());
                }
            }
        }
        let locals: Vec<Value> = self.locals().into_iter().map(|name| json!({"name": name})).collect();
        if !locals.is_empty() {
            request.insert("locals".to_owned(), json!(locals));
        }
        (Value::Object(request), is_complete)
    }

    /// What is said of the builder itself.
    fn environment(&self) -> Map<String, Value> {
        let mut environment = self.asked.environment.clone();
        if let Some(version) = &self.asked.language {
            environment.insert("dockerfileVersion".to_owned(), json!(version));
        }
        environment
    }

    /// Ids of the secrets and agents that steps may see.
    fn borrowed(&self) -> (BTreeMap<String, bool>, BTreeMap<String, bool>) {
        let (mut secrets, mut agents) = (BTreeMap::new(), BTreeMap::new());
        for vertex in self.definition.vertices() {
            let Op::Exec(exec) = &vertex.op else { continue };
            for mount in &exec.mounts {
                match mount {
                    Mount::Secret { id, optional, .. } => drop(secrets.insert(id.clone(), *optional)),
                    Mount::Ssh { id, optional, .. } => {
                        let id = if id.is_empty() { stave_worker::DEFAULT_AGENT } else { id };
                        agents.insert(id.to_owned(), *optional);
                    }
                    _ => {}
                }
            }
            secrets.extend(exec.secret_env.iter().map(|secret| (secret.id.clone(), secret.optional)));
        }
        (secrets, agents)
    }

    fn locals(&self) -> Vec<String> {
        let read = self.identifiers().filter_map(|identifier| match identifier {
            SourceIdentifier::Local { name, .. } => Some(name.clone()),
            _ => None,
        });
        let names: BTreeSet<String> = read.chain(self.asked.locals.iter().cloned()).collect();
        names.into_iter().collect()
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
        for image in &self.images {
            let mut uri = package_url(&image.reference, &image.platform);
            if image.is_layout {
                uri = uri.replacen("pkg:docker/", "pkg:oci/", 1);
            }
            materials.push(json!({"uri": uri, "digest": digest_set(&image.digest)}));
        }
        materials.sort_by_key(|material| material["uri"].to_string());
        let sources = self.definition.vertices().iter().filter_map(|vertex| match &vertex.op {
            Op::Source(source) => Some(source),
            _ => None,
        });
        for source in sources.chain(&self.asked.sources) {
            if let Some(material) = self.fetched(source)
                && !materials.contains(&material)
            {
                materials.push(material);
            }
        }
        materials
    }

    /// What came from an address.
    fn fetched(&self, source: &SourceOp) -> Option<Value> {
        match &source.identifier {
            SourceIdentifier::Http { url, .. } => {
                let mut material = json!({"uri": redacted(url)});
                let checksum = || source.attrs.get("http.checksum").and_then(|text| text.parse().ok());
                let digest = match self.pins.of(source) {
                    Some(Pinned::Content(digest)) => Some(digest),
                    _ => checksum(),
                };
                if let Some(digest) = digest {
                    material["digest"] = digest_set(&digest);
                }
                Some(material)
            }
            SourceIdentifier::Git(git) => {
                let remote = source.attrs.get("git.fullurl").unwrap_or(&git.remote);
                let fragment =
                    if git.revision.is_empty() { String::new() } else { format!("#{}", git.revision) };
                let mut material = json!({"uri": format!("{}{fragment}", redacted(remote))});
                let checksum = || source.attrs.get("git.checksum").filter(|sum| sum.len() >= 40).cloned();
                let commit = match self.pins.of(source) {
                    Some(Pinned::Commit(commit)) => Some(commit),
                    _ => checksum(),
                };
                if let Some(commit) = commit {
                    let algorithm = if commit.len() == 64 { "sha256" } else { "sha1" };
                    material["digest"] = json!({algorithm: commit});
                }
                Some(material)
            }
            SourceIdentifier::Blob { reference, place } => {
                let Ok(name) = reference.parse::<Reference>() else {
                    let (name, digest) = reference.rsplit_once('@')?;
                    let digest: Digest = digest.parse().ok().filter(|_| *place == BlobPlace::Layout)?;
                    let uri = layout_blob_url(name, &digest);
                    return Some(json!({"uri": uri, "digest": digest_set(&digest)}));
                };
                let uri = blob_url(&name);
                let uri = match place {
                    BlobPlace::Registry => uri,
                    BlobPlace::Layout => uri.replacen("pkg:docker/", "pkg:oci/", 1),
                };
                Some(json!({"uri": uri, "digest": digest_set(name.digest()?)}))
            }
            _ => None,
        }
    }

    /// The Dockerfile, and which lines of it each step comes from.
    fn source(&self) -> Value {
        let map = self.definition.source_map();
        let infos = map.infos.iter().map(|info| {
            let mut told = json!({
                "filename": info.filename,
                "language": info.language,
                "data": STANDARD.encode(&info.data),
            });
            if let (Some(told), Some(origin)) = (told.as_object_mut(), origin(info))
                && let Value::Object(steps) = build_config(&origin)
            {
                told.extend(steps);
            }
            told
        });
        let mut locations = Map::new();
        for (at, vertex) in self.definition.vertices().iter().enumerate() {
            let places = self.definition.source_location(&vertex.digest).iter().map(|place| {
                let lines = place.ranges.iter().flat_map(|range| range.start.line..=range.end.line);
                let ranges = lines.map(|line| json!({"start": {"line": line}, "end": {"line": line}}));
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

/// The steps, in BuildKit's form: inputs name steps, not digests.
fn build_config(definition: &Definition) -> Value {
    let vertices = definition.vertices();
    let name = |digest: &Digest| definition.position(digest).map(|at| format!("step{at}"));
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
    // The last step is none: it says what the result is.
    if let Some(output) = definition.outputs().first()
        && let Some(name) = name(&output.vertex)
    {
        let input = format!("{name}:{}", output.output);
        let at = vertices.len();
        steps.push(json!({"id": format!("step{at}"), "op": {"Op": null}, "inputs": [input]}));
    }
    json!({"llbDefinition": steps, "digestMapping": mapping})
}

/// The graph that a file comes from: where nobody says, a Dockerfile is one of the client's directory.
fn origin(info: &SourceInfo) -> Option<Definition> {
    if !info.origin.is_empty() {
        return Definition::from_wire(&info.origin).ok();
    }
    if info.language != "Dockerfile" {
        return None;
    }
    let attrs = [("local.followpaths".to_owned(), json!([info.filename]).to_string())].into();
    let mut graph = GraphBuilder::default();
    let source = SourceOp::new("local://dockerfile", attrs);
    let made = graph.source(source, &Platform::host(), About::default());
    Some(graph.finish(Some(made)))
}

fn digest_set(digest: &Digest) -> Value {
    let (algorithm, hex) = digest.as_str().split_once(':').unwrap_or_default();
    json!({algorithm: hex})
}

/// An address with a user's name and password made unreadable, as BuildKit writes it.
pub fn redacted(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let Some((user, host)) = rest[..end].rsplit_once('@') else { return url.to_owned() };
    let user = match user.split_once(':') {
        None if user.is_empty() => "",
        None => "xxxxx",
        Some(_) => "xxxxx:xxxxx",
    };
    format!("{scheme}://{user}@{host}{}", &rest[end..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_stay_out() {
        for (url, expected) in [
            ("https://u:p@h/x@y", "https://xxxxx:xxxxx@h/x@y"),
            ("https://h/x", "https://h/x"),
            ("git@h:x", "git@h:x"),
            ("ssh://git@h", "ssh://xxxxx@h"),
        ] {
            assert_eq!(redacted(url), expected);
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
        let reference = "base:1".parse().expect("a name");
        read(Facts {
            asked: &Asked::of_plan(&plan, "Dockerfile"),
            definition: &Definition::empty(),
            images: vec![Material { reference, platform, digest, is_layout: false }],
            pins: &Pins::default(),
            layers: BTreeMap::new(),
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
        let uri = "pkg:docker/base@1?platform=linux%2Famd64";
        let expected = json!([{"uri": uri, "digest": {"sha256": hex}}]);
        let v1 = predicate(ProvenanceMode::Min, SlsaVersion::V1);
        assert_eq!(v1["buildDefinition"]["resolvedDependencies"], expected);
        let v02 = predicate(ProvenanceMode::Min, SlsaVersion::V02);
        assert_eq!(v02["materials"], expected);
        assert_eq!(v02["metadata"]["buildStartedOn"], json!("2001-09-09T01:46:40Z"));
        assert_eq!(v02["metadata"]["reproducible"], json!(true));
    }

    #[test]
    fn blobs_of_layouts_are_materials_whatever_they_are_called() {
        let digest = Digest::sha256(b"x");
        let check = |raw: String, expected: Option<&str>| {
            let found = facts(|facts| facts.fetched(&SourceOp::new(&raw, BTreeMap::new())));
            let digests = json!({"sha256": digest.hex()});
            let expected = expected.map(
                |name| json!({"uri": format!("{name}?digest={digest}&ref_type=blob"), "digest": digests}),
            );
            assert_eq!(found, expected, "{raw}");
        };
        check(format!("oci-layout+blob://store@{digest}"), Some("pkg:oci/store"));
        check(format!("oci-layout+blob://My_Store@{digest}"), Some("pkg:oci/My_Store"));
        check(format!("docker-image+blob://app@{digest}"), Some("pkg:docker/app"));
        check("oci-layout+blob://My_Store@x".to_owned(), None);
    }
}
