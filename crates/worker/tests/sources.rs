//! Sources solved as a build solves them, where it is the worker that decides whether they may be used.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use stave_cache::CacheIndex;
use stave_llb::builder::{About, GraphBuilder};
use stave_llb::{Definition, SourceOp};
use stave_oci::{Digest, ImageConfig, Platform};
use stave_registry::{Client, ClientConfig, Keychain, Limits as RegistryLimits, RegistryTables};
use stave_sandbox::Launcher;
use stave_solver::{Job, Limits, Solver};
use stave_store::Store;
use stave_test_support::registry::Misbehaviour;
use stave_test_support::{GitServer, TestRegistry};
use stave_worker::{
    Confinement, ContextModes, LocalWorker, LocalWorkerConfig, Namespace, Pins, Ref, Session, StepNetwork,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

struct Machine {
    directory: tempfile::TempDir,
    store: Store,
}

fn machine() -> Machine {
    let directory = tempfile::tempdir().expect("tempdir");
    let store = Store::open(&directory.path().join("store")).expect("store");
    Machine { directory, store }
}

fn session() -> Session {
    let client = Client::new(ClientConfig {
        registries: RegistryTables::default(),
        keychain: Keychain::anonymous(),
        limits: RegistryLimits::default(),
        user_agent: "test".into(),
    });
    Session {
        context_modes: ContextModes::Kept,
        asks_for_tags: false,
        contexts: BTreeMap::new(),
        remote: None,
        layouts: BTreeMap::new(),
        ssh: BTreeMap::new(),
        known_hosts: None,
        pins: Pins::default(),
        secrets: BTreeMap::new(),
        registry: client.expect("client"),
        resolved: BTreeMap::new(),
        travel: None,
        confinement: Confinement { network: StepNetwork::None, ..Confinement::default() },
        namespace: Namespace::Shared,
    }
}

fn source(raw: &str, attrs: &[(&str, &str)]) -> SourceOp {
    let attrs = attrs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    SourceOp::new(raw.to_owned(), attrs)
}

impl Machine {
    fn worker(&self) -> LocalWorker {
        let worker = LocalWorker::new(LocalWorkerConfig {
            device_directories: Vec::new(),
            runtime: None,
            store: self.store.clone(),
            launcher: Launcher::new(),
            fingerprints: Some(self.directory.path().join("fingerprints")),
        });
        worker.expect("worker")
    }

    /// What a source is, or why it is not.
    async fn solve(&self, raw: &str, attrs: &[(&str, &str)], session: Session) -> Result<Ref, String> {
        let mut graph = GraphBuilder::default();
        let platform = Platform::new("linux", "amd64", None);
        let made = graph.source(source(raw, attrs), &platform, About::default());
        let solved = self.solve_all(&graph.finish(Some(made)), session).await;
        solved.map(|mut found| found.remove(0))
    }

    /// What the outputs of a graph are.
    async fn solve_all(&self, definition: &Definition, session: Session) -> Result<Vec<Ref>, String> {
        let index = CacheIndex::open(&self.store.cache_index_path()).expect("index");
        let solver = Solver::new(Arc::new(self.worker()), index, Limits::for_processors(2));
        let solved = solver.solve(definition, &Job::new(Arc::new(session))).await;
        solver.shutdown().await;
        let words = |error: &dyn std::error::Error| {
            std::iter::successors(Some(error), |error| error.source())
                .map(ToString::to_string)
                .collect::<Vec<_>>()
        };
        solved.map_err(|error| words(&error).join(": "))
    }

    fn read(&self, result: &Ref, path: &str) -> String {
        let view = self.store.view(result.snapshot().expect("layers")).expect("view");
        std::io::read_to_string(view.open(Path::new(path)).expect("opens").expect("is there")).expect("reads")
    }
}

#[tokio::test]
async fn a_checksum_holds_for_what_was_resolved_before() {
    let (machine, registry) = (machine(), TestRegistry::start());
    let lease = machine.store.lease().expect("lease");
    let config = ImageConfig { os: "linux".into(), architecture: "amd64".into(), ..ImageConfig::default() };
    registry.put_image("app", "1", &config.to_bytes(), &[]);
    let (name, platform) = (registry.reference("app:1"), Platform::new("linux", "amd64", None));
    let resolved = session().registry.resolve(&name, &platform).await.expect("is there");
    let pin = resolved.root.descriptor.digest.clone();
    let known = || Session { resolved: [(pin.clone(), resolved.clone())].into(), ..session() };
    let source = format!("docker-image://{}", name.pinned(pin.clone()));
    let other = Digest::sha256(b"another");
    let refused = machine.solve(&source, &[("image.checksum", other.as_str())], known()).await;
    let refused = refused.expect_err("is another");
    assert!(refused.contains(&format!("does not match expected checksum {other}")), "{refused}");
    machine.solve(&source, &[("image.checksum", pin.as_str())], known()).await.expect("is the one");
    // And for what the store has by now.
    let refused = machine.solve(&source, &[("image.checksum", other.as_str())], session()).await;
    assert!(refused.expect_err("is another").contains("does not match expected checksum"));
    drop(lease);
}

/// A server that gives each request these headers and this body.
async fn answering(headers: String, body: Vec<u8>) -> (SocketAddr, JoinHandle<()>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let place = listener.local_addr().expect("is known");
    let head = format!("HTTP/1.1 200 OK\r\n{headers}connection: close\r\n\r\n");
    let server = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = Vec::new();
            // To a client that tries TLS first, an answer in the clear says that there is none.
            while !request.ends_with(b"\r\n\r\n")
                && request.first() != Some(&0x16)
                && stream.read_buf(&mut request).await.is_ok_and(|read| read > 0)
            {}
            stream.write_all(head.as_bytes()).await.ok();
            if !request.starts_with(b"HEAD") {
                stream.write_all(&body).await.ok();
            }
        }
    });
    (place, server)
}

#[tokio::test]
async fn names_of_encodings_are_compared_without_case() {
    use std::io::Write as _;
    let mut body = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    body.write_all(b"what was sent").expect("packs");
    let body = body.finish().expect("packs");
    for name in ["gzip", "GZip", "GZIP"] {
        let head = format!("content-encoding: {name}\r\ncontent-length: {}\r\n", body.len());
        let (place, server) = answering(head, body.clone()).await;
        let source = format!("http://{place}/f");
        let machine = machine();
        let lease = machine.store.lease().expect("lease");
        let found = machine.solve(&source, &[], session()).await.expect("downloads");
        assert_eq!(machine.read(&found, "f"), "what was sent", "{name}");
        drop(lease);
        server.abort();
    }
}

#[tokio::test]
async fn objects_of_a_revision_are_gits_byte_for_byte() {
    let (machine, server) = (machine(), GitServer::start().expect("serves"));
    let lease = machine.store.lease().expect("lease");
    let repository = server.repository("a").expect("a repository");
    let commit = repository.commit("what, and\n\nwhy").expect("a commit");
    repository.git(&["tag", "--annotate", "--message", "the first", "v1"]).expect("a tag");
    repository.publish().expect("published");
    let tag = repository.git(&["rev-parse", "v1"]).expect("is there").trim().to_owned();
    let expected = |kind: &str, hash: &str| repository.git(&["cat-file", kind, hash]).expect("is there");
    let worker = machine.worker();
    let find = async |revision: &str| {
        let url = server.url("a");
        let raw = format!("git://{}#{revision}", url.strip_prefix("http://").expect("plain"));
        let op = source(&raw, &[("git.fullurl", &url)]);
        let found = worker.git_objects_of(&op, Arc::new(session()), &CancellationToken::new()).await;
        found.expect("is fetched").expect("is of git")
    };
    // A hash does not say what it is the hash of.
    for revision in ["v1", &tag] {
        let found = find(revision).await;
        assert_eq!((&found.pin.object, found.pin.peeled.as_deref()), (&tag, Some(&*commit)), "{revision}");
        assert_eq!(found.commit, expected("commit", &commit).into_bytes());
        assert_eq!(found.tag, Some(expected("tag", &tag).into_bytes()));
    }
    for revision in ["main", &commit] {
        let found = find(revision).await;
        assert_eq!((&found.pin.object, found.pin.peeled, found.tag), (&commit, None, None), "{revision}");
    }
    let other = source("local://x", &[]);
    let found = worker.git_objects_of(&other, Arc::new(session()), &CancellationToken::new()).await;
    assert!(matches!(found, Ok(None)));
    drop(lease);
}

#[tokio::test]
async fn a_registry_that_claims_to_have_a_blob_must_give_it_to_a_tenant() {
    let (machine, registry) = (machine(), TestRegistry::start());
    let lease = machine.store.lease().expect("lease");
    let blob = registry.put_blob("app", b"of another");
    let mut kept = machine.store.blob_writer(Some(&blob), 16).expect("a writer");
    kept.push(b"of another").expect("writes");
    kept.commit().expect("is kept");
    let named = format!("docker-image+blob://{}/app@{blob}", registry.host());
    registry.script("GET", blob.hex(), Misbehaviour::Status(404, None, String::new()));
    let tenant = Session { namespace: Namespace::Own("a1".into()), ..session() };
    machine.solve(&named, &[], tenant).await.expect_err("is not given");
    assert_eq!(registry.count("GET", blob.hex()), 1);
    // To whom everything here belongs, it need not.
    let found = machine.solve(&named, &[("http.filename", "f")], session()).await.expect("is here");
    assert_eq!((machine.read(&found, "f").as_str(), registry.count("GET", blob.hex())), ("of another", 1));
    drop(lease);
}

#[tokio::test]
async fn a_blob_has_as_many_bytes_as_announced() {
    let machine = machine();
    let lease = machine.store.lease().expect("lease");
    let mut kept = machine.store.blob_writer(None, 16).expect("a writer");
    kept.push(b"of another").expect("writes");
    let (blob, _) = kept.commit().expect("is kept");
    let (place, server) = answering("content-length: 20\r\n".to_owned(), Vec::new()).await;
    let named = format!("docker-image+blob://{place}/app@{blob}");
    let refused = machine.solve(&named, &[], session()).await.expect_err("is not so long");
    assert!(refused.contains("it does not have the 20 bytes that were announced"), "{refused}");
    server.abort();
    drop(lease);
}

#[tokio::test]
async fn a_blob_becomes_a_file() {
    let (machine, registry) = (machine(), TestRegistry::start());
    let lease = machine.store.lease().expect("lease");
    let blob = registry.put_blob("app", b"layer");
    registry.put_image("app", "1", b"{}", &[]);
    let (_, manifest) = registry.manifest("app", "1").expect("was put");
    let named = |digest: &Digest| format!("docker-image+blob://{}/app@{digest}", registry.host());
    let attrs = [("http.filename", "l.tar"), ("http.perm", "0640"), ("http.uid", "0")];
    let found = machine.solve(&named(&blob), &attrs, session()).await.expect("is there");
    assert_eq!(machine.read(&found, "l.tar"), "layer");
    // Documents lie elsewhere in a registry, and go by their digest, too.
    let document = Digest::sha256(&manifest);
    let found = machine.solve(&named(&document), &[], session()).await.expect("is there");
    assert_eq!(machine.read(&found, document.hex()).into_bytes(), manifest);
    let missing = machine.solve(&named(&Digest::sha256(b"none")), &[], session()).await;
    assert!(missing.expect_err("is not there").contains("not found"));

    let layout = tempfile::tempdir().expect("tempdir");
    let place = layout.path().join("blobs/sha256");
    std::fs::create_dir_all(&place).expect("makes");
    std::fs::write(place.join(Digest::sha256(b"whole").hex()), "whole").expect("writes");
    std::fs::write(place.join(Digest::sha256(b"other").hex()), "damaged").expect("writes");
    std::os::unix::fs::symlink("/etc/passwd", place.join(Digest::sha256(b"link").hex())).expect("links");
    let session = || Session { layouts: [("s".to_owned(), layout.path().to_owned())].into(), ..session() };
    let attrs = [("oci.store", "s"), ("http.filename", "f")];
    let named = |bytes: &[u8]| format!("oci-layout+blob://not/real@{}", Digest::sha256(bytes));
    let found = machine.solve(&named(b"whole"), &attrs, session()).await.expect("is there");
    assert_eq!(machine.read(&found, "f"), "whole");
    let refused = async |bytes: &[u8], attrs: &[(&str, &str)]| {
        machine.solve(&named(bytes), attrs, session()).await.expect_err("is refused")
    };
    assert!(refused(b"other", &attrs).await.contains("it does not match its digest"));
    assert!(refused(b"link", &attrs).await.contains("not found"));
    assert!(refused(b"none", &[]).await.contains("oci-layout blob source requires store id"));
    assert!(refused(b"none", &[("oci.store", "t")]).await.contains("no OCI layout named `t`"));
    drop(lease);
}
