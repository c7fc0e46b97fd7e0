//! A store, a worker and a solver in a temporary directory, and short ways to write definitions.
//! Read [`Machine`] first.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use stave_cache::CacheIndex;
use stave_llb::builder::{About, ExecSpec, FileSpec, FileStep, GraphBuilder, MountSpec, Output};
use stave_llb::{
    ContentCache, CopyAction, Definition, ExecOp, FileActionKind, MkfileAction, Mount, SourceOp,
};
use stave_oci::Platform;
use stave_registry::{Client, ClientConfig, Keychain, Limits as RegistryLimits, RegistryTables};
use stave_sandbox::Launcher;
use stave_solver::{Job, Limits, SolveError, SolveEvent, Solver, event_channel};
use stave_store::Store;
use stave_worker::{Confinement, LocalWorker, LocalWorkerConfig, Ref, Session, StepNetwork};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

/// Where the statically linked shell of the test images comes from.
const BUSYBOX: &str = "/bin/busybox";

/// One machine that builds.
pub(crate) struct Machine {
    pub(crate) runtime: Runtime,
    pub(crate) directory: tempfile::TempDir,
    pub(crate) store: Store,
}

/// What a build did.
#[derive(Debug)]
pub(crate) struct Built {
    pub(crate) results: Result<Vec<Ref>, SolveError>,
    pub(crate) events: Vec<SolveEvent>,
}

impl Machine {
    pub(crate) fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let directory = tempfile::tempdir().expect("tempdir");
        let store = Store::open(&directory.path().join("store")).expect("store");
        std::fs::create_dir(directory.path().join("context")).expect("mkdir");
        Self { runtime: runtime.expect("runtime"), directory, store }
    }

    pub(crate) fn context(&self) -> PathBuf {
        self.directory.path().join("context")
    }

    pub(crate) fn write(&self, path: &str, content: &str) {
        let path = self.context().join(path);
        std::fs::create_dir_all(path.parent().expect("parent")).expect("mkdir");
        std::fs::write(path, content).expect("write");
    }

    pub(crate) fn session(&self) -> Session {
        let client = Client::new(ClientConfig {
            registries: RegistryTables::default(),
            keychain: Keychain::anonymous(),
            limits: RegistryLimits::default(),
            user_agent: "test".into(),
        });
        let base = Path::new(BUSYBOX).parent().expect("parent").to_owned();
        Session {
            context_modes: stave_worker::ContextModes::Kept,
            asks_for_tags: false,
            contexts: BTreeMap::from([("context".to_owned(), self.context()), ("base".to_owned(), base)]),
            remote: None,
            layouts: BTreeMap::new(),
            ssh: BTreeMap::new(),
            known_hosts: None,
            pins: stave_worker::Pins::default(),
            secrets: BTreeMap::new(),
            registry: client.expect("client"),
            resolved: BTreeMap::new(),
            travel: None,
            confinement: Confinement { network: StepNetwork::None, ..Confinement::default() },
            namespace: stave_worker::Namespace::Shared,
        }
    }

    pub(crate) fn worker(&self) -> LocalWorker {
        LocalWorker::new(LocalWorkerConfig {
            device_directories: Vec::new(),
            runtime: None,
            store: self.store.clone(),
            launcher: Launcher::new(),
            fingerprints: Some(self.directory.path().join("fingerprints")),
        })
        .expect("worker")
    }

    /// Solves as a process of its own would: with a new worker and solver.
    pub(crate) fn build(&self, definition: &Definition) -> Built {
        self.build_in(definition, self.session(), &CancellationToken::new())
    }

    pub(crate) fn build_in(
        &self,
        definition: &Definition,
        session: Session,
        cancel: &CancellationToken,
    ) -> Built {
        let index = CacheIndex::open(&self.store.cache_index_path()).expect("index");
        let worker = Arc::new(self.worker());
        self.runtime.block_on(async {
            let solver = Solver::new(worker, index, Limits::for_processors(2));
            let (sender, mut receiver) = event_channel();
            let job = Job::new(Arc::new(session)).with_events(sender).with_cancel(cancel.clone());
            let listening = tokio::spawn(async move {
                let mut events = Vec::new();
                while let Some(event) = receiver.recv().await {
                    events.push(event);
                }
                events
            });
            let results = solver.solve(definition, &job).await;
            drop(job);
            let events = listening.await.expect("events");
            solver.shutdown().await;
            Built { results, events }
        })
    }

    /// The content of a file in a result, or why it is not there.
    pub(crate) fn read(&self, result: &Ref, path: &str) -> Option<String> {
        let view = self.store.view(result.snapshot().expect("layers")).expect("view");
        let mut file = view.open(Path::new(path)).expect("open")?;
        let mut text = String::new();
        std::io::Read::read_to_string(&mut file, &mut text).expect("read");
        Some(text)
    }
}

impl Built {
    #[track_caller]
    pub(crate) fn first(&self) -> &Ref {
        match &self.results {
            Ok(results) => &results[0],
            Err(error) => panic!("{}\n{}", chain(error), self.log()),
        }
    }

    pub(crate) fn log(&self) -> String {
        let mut log = Vec::new();
        for event in &self.events {
            if let SolveEvent::Log { bytes, .. } = event {
                log.extend_from_slice(bytes);
            }
        }
        String::from_utf8_lossy(&log).into_owned()
    }
}

/// An error with its causes.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        text = format!("{text}: {error}");
        next = error.source();
    }
    text
}

pub(crate) fn local(graph: &mut GraphBuilder, name: &str, follow: &[&str]) -> Output {
    let mut attrs = BTreeMap::new();
    if !follow.is_empty() {
        attrs.insert("local.followpaths".to_owned(), serde_json::to_string(follow).expect("json"));
    }
    graph.source(SourceOp::new(format!("local://{name}"), attrs), &Platform::host(), About::named(name))
}

pub(crate) fn copy_action(source: &str, destination: &str) -> CopyAction {
    CopyAction {
        src: source.into(),
        dest: destination.into(),
        follow_symlink: true,
        dir_copy_contents: true,
        create_dest_path: true,
        allow_wildcard: true,
        allow_empty_wildcard: true,
        ..CopyAction::default()
    }
}

pub(crate) fn copy(
    graph: &mut GraphBuilder,
    base: Option<Output>,
    from: Output,
    source: &str,
    to: &str,
) -> Output {
    let kind = FileActionKind::Copy(copy_action(source, to));
    let actions = vec![FileStep { kind, source: Some(from) }];
    graph.file(FileSpec { base, actions, about: About::named(format!("copy {source}")) })
}

/// A file system with a shell and a user called `app`.
pub(crate) fn shell(graph: &mut GraphBuilder) -> Output {
    let base = local(graph, "base", &["busybox"]);
    let file = |path: &str, data: &str| FileStep {
        kind: FileActionKind::Mkfile(MkfileAction {
            path: path.into(),
            mode: 0o644,
            data: data.as_bytes().to_vec(),
            owner: None,
            timestamp: None,
        }),
        source: None,
    };
    let mut mkdir = Vec::new();
    for path in ["/etc", "/tmp"] {
        let action = stave_llb::MkdirAction { path: path.into(), mode: 0o1777, ..Default::default() };
        mkdir.push(FileStep { kind: FileActionKind::Mkdir(action), source: None });
    }
    let mut actions =
        vec![FileStep { kind: FileActionKind::Copy(copy_action("/busybox", "/bin/sh")), source: Some(base) }];
    actions.extend(mkdir);
    actions.push(file("/etc/passwd", "root:x:0:0::/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\n"));
    actions.push(file("/etc/group", "root:x:0:\nstaff:x:50:app\napp:x:1001:\n"));
    graph.file(FileSpec { base: None, actions, about: About::named("shell") })
}

pub(crate) fn root_mount(base: Output) -> MountSpec {
    bind("/", Some(base), false)
}

pub(crate) fn bind(target: &str, source: Option<Output>, readonly: bool) -> MountSpec {
    let mount = Mount::Bind {
        target: target.into(),
        input: None,
        selector: String::new(),
        readonly,
        output: None,
        content_cache: ContentCache::Default,
    };
    MountSpec { mount, source, no_output: false }
}

pub(crate) fn script(text: &str) -> ExecOp {
    ExecOp { args: vec!["/bin/sh".into(), "-c".into(), text.into()], cwd: "/".into(), ..ExecOp::default() }
}

pub(crate) fn exec(graph: &mut GraphBuilder, op: ExecOp, mounts: Vec<MountSpec>) -> Output {
    let about = About::named(op.args.join(" "));
    graph.exec(ExecSpec { op, mounts, platform: Platform::host(), about })
}

/// A shell script over the test image; the definition of its result.
pub(crate) fn definition_of(op: ExecOp, more: Vec<MountSpec>) -> Definition {
    let mut graph = GraphBuilder::default();
    let base = shell(&mut graph);
    let mut mounts = vec![root_mount(base)];
    mounts.extend(more);
    let output = exec(&mut graph, op, mounts);
    graph.finish(Some(output))
}
