//! Running an image: exit codes, descriptors, binds, throw-away changes.

use std::io::Read as _;
use std::os::fd::OwnedFd;

use stave_llb::builder::GraphBuilder;
use stave_oci::Platform;
use stave_sandbox::{ExitStatus, Stdio};
use stave_store::Snapshot;
use stave_worker::{Bind, RunSpec, StepNetwork};
use tokio_util::sync::CancellationToken;

use crate::Test;
use crate::fixture::{Machine, shell};

pub(crate) const TESTS: &[Test] = &[
    ("run::codes_and_output_pass_through", codes_and_output_pass_through),
    ("run::binds_are_the_hosts_files", binds_are_the_hosts_files),
    ("run::a_read_only_root_refuses_writes", a_read_only_root_refuses_writes),
    ("run::signals_arrive", signals_arrive),
    ("run::what_cannot_start_has_dockers_code", what_cannot_start_has_dockers_code),
];

fn image(machine: &Machine) -> Snapshot {
    let mut graph = GraphBuilder::default();
    let output = shell(&mut graph);
    machine.build(&graph.finish(Some(output))).first().snapshot().expect("layers").clone()
}

fn spec(snapshot: Snapshot, script: &str) -> RunSpec {
    RunSpec {
        snapshot,
        platform: Platform::host(),
        args: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
        env: Vec::new(),
        cwd: String::new(),
        user: String::new(),
        hostname: "runner".into(),
        binds: Vec::new(),
        readonly_root: false,
        network: StepNetwork::None,
        extra_hosts: Vec::new(),
        rlimits: Vec::new(),
        shm_size: None,
        sysctls: Vec::new(),
        limits: stave_sandbox::CgroupLimits::default(),
        cgroup_parent: stave_sandbox::CgroupParent::Default,
        terminal: None,
    }
}

fn stdio() -> (Stdio, OwnedFd) {
    let null = std::fs::File::open("/dev/null").expect("open");
    let (read, write) = std::io::pipe().expect("pipe");
    let stderr = write.try_clone().expect("clone");
    (Stdio { stdin: null.into(), stdout: write.into(), stderr: stderr.into() }, read.into())
}

fn run(machine: &Machine, spec: RunSpec) -> (ExitStatus, String) {
    let (stdio, read) = stdio();
    let worker = machine.worker();
    let status = machine.runtime.block_on(async {
        let mut running = worker.start(spec, stdio).await.expect("start");
        running.wait(&CancellationToken::new()).await.expect("wait")
    });
    let mut output = String::new();
    std::fs::File::from(read).read_to_string(&mut output).expect("read");
    (status, output)
}

fn codes_and_output_pass_through() {
    let machine = Machine::new();
    let image = image(&machine);
    let (status, output) =
        run(&machine, spec(image.clone(), "echo out; echo err >&2; echo x > /left; exit 42"));
    assert_eq!((status, output.as_str()), (ExitStatus::Exited(42), "out\nerr\n"));
    let (_, output) = run(&machine, spec(image, "[ -e /left ] || echo clean"));
    assert_eq!(output, "clean\n");
}

fn binds_are_the_hosts_files() {
    let machine = Machine::new();
    let mut spec =
        spec(image(&machine), "echo inside > /host/file; (echo no > /fixed/file) 2>/dev/null || echo kept");
    let shared = machine.directory.path().join("shared");
    let bind = |target: &str, readonly| Bind { source: shared.clone(), target: target.into(), readonly };
    spec.binds = vec![bind("/host", false), bind("/fixed", true)];
    let (status, output) = run(&machine, spec);
    assert_eq!((status, output.as_str()), (ExitStatus::Exited(0), "kept\n"));
    assert_eq!(std::fs::read_to_string(shared.join("file")).expect("read"), "inside\n");
}

fn a_read_only_root_refuses_writes() {
    let machine = Machine::new();
    let mut spec = spec(image(&machine), "(echo x > /file) 2>/dev/null || echo refused");
    spec.readonly_root = true;
    assert_eq!(run(&machine, spec).1, "refused\n");
}

fn signals_arrive() {
    let machine = Machine::new();
    let spec = spec(image(&machine), "trap 'echo got; exit 7' TERM; echo ready; while :; do :; done");
    let (stdio, read) = stdio();
    let worker = machine.worker();
    let status = machine.runtime.block_on(async {
        let mut running = worker.start(spec, stdio).await.expect("start");
        let mut ready = [0; 6];
        let mut pipe = std::fs::File::from(read);
        pipe.read_exact(&mut ready).expect("ready");
        running.signal(15).expect("signal");
        running.wait(&CancellationToken::new()).await.expect("wait")
    });
    assert_eq!(status, ExitStatus::Exited(7));
}

fn what_cannot_start_has_dockers_code() {
    let machine = Machine::new();
    let image = image(&machine);
    let worker = machine.worker();
    for (program, expected) in
        [("/absent", 127), ("nothing-like-this", 127), ("/etc/passwd", 126), ("/tmp", 126)]
    {
        let mut spec = spec(image.clone(), "");
        spec.args = vec![program.into()];
        let error = machine.runtime.block_on(worker.start(spec, stdio().0)).expect_err("cannot start");
        assert_eq!(error.exit_code(), expected, "{program}: {error}");
    }
    let mut spec = spec(image, "");
    spec.args.clear();
    let error = machine.runtime.block_on(worker.start(spec, stdio().0)).expect_err("nothing to run");
    assert_eq!(error.exit_code(), 125);
}
