//! What vouches for an image: the statements that its index lists beside it, and who signed them.
//!
//! Owns which documents belong to that chain, as BuildKit's policies look for them. Must not know what statements say, nor
//! whether signatures hold: whoever asks decides. Start with [`chain`].

use std::collections::HashMap;

use bollard_buildkit_proto::moby::buildkit::v1::frontend::{self as proto, Blob};
use stave_oci::{Descriptor, Digest, Manifest, ManifestOrIndex, Platform, Reference, media_type};
use stave_registry::{Client, FetchedManifest, RegistryError};

use crate::failure::Failure;

/// Annotations of an index's entry that is no image: what it is, and about which one.
const ENTRY_KIND: &str = "vnd.docker.reference.type";
const ENTRY_SUBJECT: &str = "vnd.docker.reference.digest";
/// The kind of an entry that holds statements.
const ATTESTATION: &str = "attestation-manifest";
/// The annotation of a statement that says what it is about.
const PREDICATE: &str = "in-toto.io/predicate-type";
/// Signatures, the preferred first.
const SIGNATURES: [&str; 2] =
    ["application/vnd.dev.sigstore.bundle.v0.3+json", "application/vnd.dev.cosign.artifact.sig.v1+json"];
/// Documents of one chain.
const MAX_BLOBS: usize = 64;
/// Types of statements that are asked for at a time.
const MAX_PREDICATES: usize = 64;
/// Bytes of all of them: they travel in one message.
const MAX_BYTES: u64 = 64 << 20;

/// What a name stands for, and the chain of its image for a platform: none where that is no index of OCI's. Statements of
/// the types in `predicates` come with it. Always the registry's word: what lies in the store does not count.
pub(super) async fn chain(
    registry: &Client,
    name: &Reference,
    platform: &Platform,
    predicates: &[String],
) -> Result<(Digest, Option<proto::AttestationChain>), Failure> {
    if predicates.len() > MAX_PREDICATES {
        return Err(Failure::Value(format!("more than {MAX_PREDICATES} types of statements")));
    }
    let image = registry.resolve(name, platform).await.map_err(failed)?;
    let root = &image.root;
    if root.descriptor.media_type != media_type::OCI_INDEX {
        return Ok((root.descriptor.digest.clone(), None));
    }
    let mut chain = Chain { registry, name, blobs: HashMap::new(), bytes: 0 };
    chain.add(&root.descriptor, root.bytes.to_vec())?;
    let manifest = &image.manifest.descriptor.digest;
    let (mut attestation_manifest, mut signature_manifests) = (String::new(), Vec::new());
    if let Some(attestation) = attestation_of(&root.bytes, manifest) {
        let (found, parsed) = chain.manifest(&attestation).await?;
        chain.add(&attestation, found.bytes.to_vec())?;
        if let Some(signature) = chain.signature(&attestation.digest).await? {
            let (found, parsed) = chain.manifest(&signature).await?;
            chain.add(&signature, found.bytes.to_vec())?;
            chain.fetch(&parsed.layers).await?;
            signature_manifests.push(signature.digest.to_string());
        }
        let is_wanted = |layer: &Descriptor| {
            layer.annotations.get(PREDICATE).is_some_and(|kind| predicates.contains(kind))
        };
        let statements: Vec<Descriptor> = parsed.layers.into_iter().filter(is_wanted).collect();
        chain.fetch(&statements).await?;
        attestation_manifest = attestation.digest.to_string();
    }
    let answer = proto::AttestationChain {
        root: root.descriptor.digest.to_string(),
        image_manifest: manifest.to_string(),
        attestation_manifest,
        signature_manifests,
        blobs: chain.blobs,
    };
    Ok((root.descriptor.digest.clone(), Some(answer)))
}

struct Chain<'a> {
    registry: &'a Client,
    name: &'a Reference,
    blobs: HashMap<String, Blob>,
    bytes: u64,
}

impl Chain<'_> {
    /// A document that is named by its descriptor.
    async fn manifest(&self, of: &Descriptor) -> Result<(FetchedManifest, Manifest), Failure> {
        let found =
            self.registry.fetch_manifest(&self.name.pinned(of.digest.clone())).await.map_err(failed)?;
        match ManifestOrIndex::parse(&found.bytes, Some(&found.descriptor.media_type)) {
            Ok(ManifestOrIndex::Manifest(parsed)) => Ok((found, *parsed)),
            Ok(ManifestOrIndex::Index(_)) => Err(Failure::Value(format!("{} is no manifest", of.digest))),
            Err(error) => Err(Failure::Value(format!("manifest {}: {error}", of.digest))),
        }
    }

    /// The signature of a manifest; of several, a bundle.
    async fn signature(&self, of: &Digest) -> Result<Option<Descriptor>, Failure> {
        let referrers = self.registry.referrers(self.name, of, None).await.map_err(failed)?;
        let by_kind = |kind: &&str| {
            let mut found = referrers.iter().filter(|found| found.artifact_type.as_deref() == Some(*kind));
            found.next().cloned()
        };
        Ok(SIGNATURES.iter().find_map(by_kind))
    }

    async fn fetch(&mut self, blobs: &[Descriptor]) -> Result<(), Failure> {
        for blob in blobs {
            if self.blobs.contains_key(blob.digest.as_str()) {
                continue;
            }
            self.room(blob.size)?;
            let within = ("attestation", MAX_BYTES - self.bytes);
            let bytes = self.registry.fetch_blob_within(self.name, blob, within).await.map_err(failed)?;
            self.add(blob, bytes.to_vec())?;
        }
        Ok(())
    }

    fn room(&self, bytes: u64) -> Result<(), Failure> {
        if self.blobs.len() >= MAX_BLOBS || self.bytes.saturating_add(bytes) > MAX_BYTES {
            let text = format!("more than {MAX_BLOBS} documents or {MAX_BYTES} bytes of attestations");
            return Err(Failure::Value(text));
        }
        Ok(())
    }

    fn add(&mut self, of: &Descriptor, data: Vec<u8>) -> Result<(), Failure> {
        self.room(data.len() as u64)?;
        self.bytes += data.len() as u64;
        let descriptor = proto::Descriptor {
            media_type: of.media_type.clone(),
            digest: of.digest.to_string(),
            size: i64::try_from(data.len()).unwrap_or(i64::MAX),
            annotations: of.annotations.clone().into_iter().collect(),
        };
        self.blobs.insert(of.digest.to_string(), Blob { descriptor: Some(descriptor), data });
        Ok(())
    }
}

/// The entry of an index that holds the statements about an image.
fn attestation_of(index: &[u8], image: &Digest) -> Option<Descriptor> {
    let Ok(ManifestOrIndex::Index(index)) = ManifestOrIndex::parse(index, Some(media_type::OCI_INDEX)) else {
        return None;
    };
    let says = |entry: &Descriptor, name: &str, value: &str| {
        entry.annotations.get(name).is_some_and(|said| said == value)
    };
    index
        .manifests
        .into_iter()
        .find(|entry| says(entry, ENTRY_KIND, ATTESTATION) && says(entry, ENTRY_SUBJECT, image.as_str()))
}

#[expect(clippy::needless_pass_by_value, reason = "the form `map_err` takes")]
fn failed(error: RegistryError) -> Failure {
    Failure::Value(crate::failure::one_line(&error))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use stave_registry::{ClientConfig, Keychain, Limits, RegistryTables};
    use stave_test_support::TestRegistry;

    use super::*;

    const STATEMENT: &str = "https://slsa.dev/provenance/v1";

    fn client() -> Client {
        let config = ClientConfig {
            registries: RegistryTables::default(),
            keychain: Keychain::anonymous(),
            limits: Limits::default(),
            user_agent: "test".into(),
        };
        Client::new(config).expect("a client")
    }

    fn described(media_type: &str, bytes: &[u8], more: &Value) -> Value {
        let mut found =
            json!({"mediaType": media_type, "digest": Digest::sha256(bytes), "size": bytes.len()});
        let more = more.as_object().expect("an object").clone();
        found.as_object_mut().expect("an object").extend(more);
        found
    }

    fn manifest(layers: &[Value], more: &Value) -> Vec<u8> {
        let mut found = json!({
            "schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST,
            "config": described("application/vnd.oci.empty.v1+json", b"{}", &json!({})), "layers": layers,
        });
        found.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        serde_json::to_vec(&found).expect("JSON")
    }

    /// An image with statements and, if wanted, a signature and another; the index is tagged `1`.
    fn image(registry: &TestRegistry, signatures: &[&str]) -> (Digest, Digest) {
        image_with(registry, signatures, b"what")
    }

    fn image_with(registry: &TestRegistry, signatures: &[&str], other: &[u8]) -> (Digest, Digest) {
        let put =
            |tag: &str, bytes: &[u8]| registry.put_manifest("app", tag, media_type::OCI_MANIFEST, bytes);
        registry.put_blob("app", b"{}");
        let config = br#"{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":[]}}"#;
        registry.put_image("app", "image", config, &[]);
        let (_, bytes) = registry.manifest("app", "image").expect("was put");
        let own = Digest::sha256(&bytes);
        let statement = |kind: &str, bytes: &[u8]| {
            registry.put_blob("app", bytes);
            described("application/vnd.in-toto+json", bytes, &json!({"annotations": {PREDICATE: kind}}))
        };
        let layers = [statement(STATEMENT, b"how"), statement("other", other)];
        let attested = manifest(&layers, &json!({}));
        let attestation = put("attested", &attested);
        let mut listed = Vec::new();
        for (at, kind) in signatures.iter().enumerate() {
            let bundle = format!("signature {at}").into_bytes();
            registry.put_blob("app", &bundle);
            let subject = described(media_type::OCI_MANIFEST, &attested, &json!({}));
            let layer = described(kind, &bundle, &json!({}));
            let signed = manifest(&[layer], &json!({"artifactType": kind, "subject": subject}));
            put(&format!("signed{at}"), &signed);
            listed.push(described(media_type::OCI_MANIFEST, &signed, &json!({"artifactType": kind})));
        }
        let index = |entries: &[Value]| {
            let index = json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": entries});
            serde_json::to_vec(&index).expect("JSON")
        };
        let tag = attestation.as_str().replace(':', "-");
        registry.put_manifest("app", &tag, media_type::OCI_INDEX, &index(&listed));
        let platform = json!({"platform": {"os": "linux", "architecture": "amd64"}});
        let about = json!({
            "platform": {"os": "unknown", "architecture": "unknown"},
            "annotations": {ENTRY_KIND: ATTESTATION, ENTRY_SUBJECT: own},
        });
        let entries = [
            described(media_type::OCI_MANIFEST, &bytes, &platform),
            described(media_type::OCI_MANIFEST, &attested, &about),
        ];
        registry.put_manifest("app", "1", media_type::OCI_INDEX, &index(&entries));
        (own, attestation)
    }

    async fn found(
        registry: &TestRegistry,
        tag: &str,
        predicates: &[&str],
    ) -> Option<proto::AttestationChain> {
        let predicates: Vec<String> = predicates.iter().map(|kind| (*kind).to_owned()).collect();
        let name = registry.reference(&format!("app:{tag}"));
        let platform = Platform::new("linux", "amd64", None);
        chain(&client(), &name, &platform, &predicates).await.expect("is found").1
    }

    #[tokio::test]
    async fn statements_and_who_signed_them() {
        let registry = TestRegistry::start();
        let (own, attestation) = image(&registry, &[SIGNATURES[1], SIGNATURES[0], "application/other"]);
        let chain = found(&registry, "1", &[]).await.expect("a chain");
        assert_eq!(chain.image_manifest, own.to_string());
        assert_eq!(chain.attestation_manifest, attestation.to_string());
        // The bundle is preferred; the image itself and statements that nobody asked for stay where they are.
        let blobs: Vec<&[u8]> = chain.blobs.values().map(|blob| blob.data.as_slice()).collect();
        assert_eq!((chain.signature_manifests.len(), blobs.len()), (1, 4));
        assert!(blobs.contains(&b"signature 1".as_slice()) && !chain.blobs.contains_key(own.as_str()));
        for (digest, blob) in &chain.blobs {
            assert_eq!(Digest::sha256(&blob.data).as_str(), digest);
        }
        let asked = found(&registry, "1", &[STATEMENT]).await.expect("a chain");
        let statement = &asked.blobs[Digest::sha256(b"how").as_str()];
        assert_eq!((asked.blobs.len(), statement.data.as_slice()), (5, b"how".as_slice()));
        let annotations = &statement.descriptor.as_ref().expect("described").annotations;
        assert_eq!(annotations[PREDICATE], STATEMENT);
    }

    #[tokio::test]
    async fn a_large_statement_and_too_many_types() {
        let registry = TestRegistry::start();
        let large = vec![b' '; 9 << 20];
        image_with(&registry, &[], &large);
        let chain = found(&registry, "1", &["other"]).await.expect("a chain");
        assert_eq!(chain.blobs[Digest::sha256(&large).as_str()].data.len(), large.len());
        let many = vec![String::new(); MAX_PREDICATES + 1];
        let (name, platform) = (registry.reference("app:1"), Platform::new("linux", "amd64", None));
        let refused = super::chain(&client(), &name, &platform, &many).await.expect_err("too many");
        assert!(matches!(refused, Failure::Value(text) if text == "more than 64 types of statements"));
    }

    #[tokio::test]
    async fn what_nobody_vouches_for() {
        let registry = TestRegistry::start();
        image(&registry, &[]);
        let unsigned = found(&registry, "1", &[]).await.expect("a chain");
        assert!(unsigned.signature_manifests.is_empty() && unsigned.blobs.len() == 2);
        assert_eq!(found(&registry, "image", &[STATEMENT]).await, None, "no index");
    }
}
