//! Sources solved as a build solves them, where it is the worker that decides whether they may be used.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use stave_cache::CacheIndex;
use stave_llb::SourceOp;
use stave_llb::builder::{About, GraphBuilder};
use stave_oci::{Digest, ImageConfig, Platform};
use stave_registry::{Client, ClientConfig, Keychain, Limits as RegistryLimits, RegistryTables};
use stave_sandbox::Launcher;
use stave_solver::{Job, Limits, Solver};
use stave_store::Store;
use stave_test_support::TestRegistry;
use stave_worker::{
    Confinement, ContextModes, LocalWorker, LocalWorkerConfig, Namespace, Pins, Ref, Session, StepNetwork,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

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

impl Machine {
    /// What a source is, or why it is not.
    async fn solve(&self, source: &str, attrs: &[(&str, &str)], session: Session) -> Result<Ref, String> {
        let attrs = attrs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let mut graph = GraphBuilder::default();
        let platform = Platform::new("linux", "amd64", None);
        let made = graph.source(SourceOp::new(source.to_owned(), attrs), &platform, About::default());
        let definition = graph.finish(Some(made));
        let worker = LocalWorker::new(LocalWorkerConfig {
            device_directories: Vec::new(),
            runtime: None,
            store: self.store.clone(),
            launcher: Launcher::new(),
            fingerprints: Some(self.directory.path().join("fingerprints")),
        });
        let index = CacheIndex::open(&self.store.cache_index_path()).expect("index");
        let solver = Solver::new(Arc::new(worker.expect("worker")), index, Limits::for_processors(2));
        let solved = solver.solve(&definition, &Job::new(Arc::new(session))).await;
        solver.shutdown().await;
        let words = |error: &dyn std::error::Error| {
            std::iter::successors(Some(error), |error| error.source())
                .map(ToString::to_string)
                .collect::<Vec<_>>()
        };
        solved.map(|mut found| found.remove(0)).map_err(|error| words(&error).join(": "))
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

#[tokio::test]
async fn names_of_encodings_are_compared_without_case() {
    use std::io::Write as _;
    let mut body = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    body.write_all(b"what was sent").expect("packs");
    let body = body.finish().expect("packs");
    for name in ["gzip", "GZip", "GZIP"] {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let source = format!("http://{}/f", listener.local_addr().expect("is known"));
        let (length, body) = (body.len(), body.clone());
        let head = format!("HTTP/1.1 200 OK\r\ncontent-encoding: {name}\r\ncontent-length: {length}\r\n");
        let server = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n")
                    && stream.read_buf(&mut request).await.is_ok_and(|read| read > 0)
                {}
                stream.write_all(format!("{head}connection: close\r\n\r\n").as_bytes()).await.ok();
                if !request.starts_with(b"HEAD") {
                    stream.write_all(&body).await.ok();
                }
            }
        });
        let machine = machine();
        let lease = machine.store.lease().expect("lease");
        let found = machine.solve(&source, &[], session()).await.expect("downloads");
        assert_eq!(machine.read(&found, "f"), "what was sent", "{name}");
        drop(lease);
        server.abort();
    }
}
