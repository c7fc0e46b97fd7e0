//! Each layer leaves once, however many steps have it.

use std::collections::BTreeMap;

use stave_llb::SourceOp;
use stave_llb::builder::{About, FileSpec, GraphBuilder};
use stave_oci::Platform;
use stave_registry::{Client, ClientConfig, Keychain, Limits, RegistryTables};
use stave_store::Store;

use super::*;

#[tokio::test]
async fn a_chain_of_steps_sends_each_layer_once() {
    const STEPS: usize = 5;
    let directory = tempfile::tempdir().expect("tempdir");
    let store = Store::open(&directory.path().join("store")).expect("a store");
    let client = Client::new(ClientConfig {
        registries: RegistryTables::default(),
        keychain: Keychain::anonymous(),
        limits: Limits::default(),
        user_agent: "test".to_owned(),
    });
    let client = client.expect("a client");
    // A graph of a source and a step over it stands for all of them.
    let mut graph = GraphBuilder::default();
    let op = SourceOp::new("local://x".to_owned(), BTreeMap::new());
    let source = graph.source(op, &Platform::host(), About::default());
    let step = graph.file(FileSpec { base: Some(source), actions: Vec::new(), about: About::default() });
    let definition = graph.finish(Some(step));
    let dest = directory.path().join("cache");
    let spec: ExportSpec = format!("type=local,dest={}", dest.display()).parse().expect("an export");
    let uploads = Uploads {
        place: stave_remotecache::place::local(dest.clone(), "latest".to_owned(), None),
        exporter: Exporter::new(store.clone(), client.clone()),
        compression: spec.compression,
        bases: Arc::new(Bases::new(store.clone(), client, Vec::new())),
        layers: Mutex::default(),
        permits: Semaphore::new(PARALLEL),
    };
    let out = Outgoing {
        spec,
        uploads: Some(Arc::new(uploads)),
        wanted: None,
        mounts: None,
        background: Arc::default(),
        digests: Arc::new(Semaphore::new(1)),
    };
    let listen = listener(std::slice::from_ref(&out), &definition, None);
    let vertex = &definition.vertices()[1].digest;
    let mut snapshot = Snapshot::scratch();
    for number in 0..STEPS {
        let layer = store.prepare(&snapshot).expect("a layer");
        std::fs::write(layer.upper().join("f"), number.to_string()).expect("writes");
        snapshot = layer.commit().expect("commits");
        listen(vertex, std::slice::from_ref(&snapshot));
    }
    let mut tasks = std::mem::take(&mut *out.background.lock().expect("not poisoned"));
    assert_eq!(tasks.len(), STEPS, "a step has the layers of all below it, which are on their way");
    while let Some(sent) = tasks.join_next().await {
        sent.expect("no panic");
    }
    let blobs = std::fs::read_dir(dest.join("blobs/sha256")).expect("a layout").count();
    assert_eq!(blobs, STEPS);
}
