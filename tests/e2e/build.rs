//! Dockerfiles become images: instructions, stages, contexts.

use crate::environment::{Environment, registry, with_images};

#[test]
fn a_static_program_is_copied_into_scratch_and_runs() {
    let world = Environment::new();
    world.dockerfile(
        "FROM BUSYBOX AS build\nWORKDIR /src\nCOPY greeting .\nRUN cat greeting > /out && cp /bin/busybox /sh\n\
         FROM scratch\nCOPY --from=build /sh /bin/sh\nCOPY --from=build /out /greeting\nENTRYPOINT [\"/bin/sh\"]\n\
         CMD [\"cat\", \"/greeting\"]\n",
    );
    world.write("greeting", "hello\n");
    world.build("app:1.0").success().says("naming to docker.io/library/app:1.0");
    // busybox goes by the name it was called with.
    let outcome = world.stave([
        "run",
        "--rm",
        "--entrypoint",
        "/bin/sh",
        "app:1.0",
        "-c",
        "echo $0; read line < /greeting; echo $line",
    ]);
    assert!(outcome.success().stdout.ends_with("hello\n"));
}

#[test]
fn instructions_reach_the_image() {
    let world = Environment::new();
    world.dockerfile(
        "FROM BUSYBOX\nARG VERSION=1\nENV A=one B=\"two words\" V=$VERSION\nLABEL maker=cooper kind=\"a cask\"\n\
         WORKDIR /deep/er\nRUN pwd > where && echo \"$A/$B/$V/$VERSION\" > env\nUSER nobody\nRUN id -u > /tmp/id\n\
         EXPOSE 80 53/udp\nVOLUME /data\nSTOPSIGNAL SIGINT\nHEALTHCHECK --interval=5s CMD true\nSHELL [\"/bin/sh\", \"-ec\"]\n\
         ENTRYPOINT [\"/bin/sh\", \"-c\"]\nCMD [\"cat /deep/er/where /deep/er/env /tmp/id; id -u; pwd; echo $B\"]\n",
    );
    world.stave(["build", "-t", "it", "--build-arg", "VERSION=7", "--label", "extra=yes", "."]).success();
    assert_eq!(world.run("it", &[]), "/deep/er\none/two words/7/7\n65534\n65534\n/deep/er\ntwo words\n");
    let inspect: serde_json::Value =
        serde_json::from_str(&world.stave(["inspect", "it"]).success().stdout).expect("JSON");
    let config = &inspect[0]["Config"];
    assert_eq!(config["Labels"], serde_json::json!({"extra": "yes", "kind": "a cask", "maker": "cooper"}));
    assert_eq!(config["ExposedPorts"], serde_json::json!({"53/udp": {}, "80/tcp": {}}));
    assert_eq!(config["Volumes"], serde_json::json!({"/data": {}}));
    assert_eq!(config["StopSignal"], "SIGINT");
    assert_eq!(config["User"], "nobody");
    assert_eq!(config["Healthcheck"]["Test"], serde_json::json!(["CMD-SHELL", "true"]));
}

#[test]
fn only_needed_stages_run_and_targets_stop_early() {
    let world = Environment::new();
    world.dockerfile(
        "FROM BUSYBOX AS one\nRUN echo 1 > /one\nFROM BUSYBOX AS broken\nRUN exit 9\nFROM one AS two\nRUN echo 2 > /two\n\
         FROM broken AS three\nRUN true\nFROM two\nRUN test -e /one -a -e /two\n",
    );
    world.build("all").success().never_says("exit 9");
    world.stave(["build", "--target", "one", "-t", "part", "."]).success();
    world.stave(["run", "--rm", "part", "test", "-e", "/two"]).exits(1);
    world.stave(["build", "--target", "three", "."]).exits(1).says("exit code: 9");
}

#[test]
fn copy_takes_owners_modes_patterns_and_ignore_files() {
    let world = Environment::new();
    world
        .write("a.txt", "a")
        .write("b.log", "b")
        .write("dir/c.txt", "c")
        .write("dir/skip/d.txt", "d")
        .write("keep.log", "k");
    world.write(".dockerignore", "# logs\n*.log\n!keep.log\ndir/skip\n");
    world.dockerfile(
        "FROM BUSYBOX\nCOPY . /all/\nCOPY --chown=nobody:nobody --chmod=640 a.txt /owned\nCOPY *.txt /only/\n\
         COPY dir /flat\nCOPY --chmod=u=rwx,go= a.txt /symbolic\nCOPY [\"a.txt\", \"/with space\"]\n",
    );
    world.build("it").success();
    let files = world.run("it", &["sh", "-c", "cd /all && find . -type f | sort; ls /only /flat; stat -c '%u:%g %a' /owned /symbolic /all/a.txt"]);
    assert_eq!(
        files,
        "./.dockerignore\n./Dockerfile\n./a.txt\n./dir/c.txt\n./keep.log\n/flat:\nc.txt\n\n/only:\na.txt\n65534:65534 640\n0:0 700\n0:0 644\n"
    );
    assert_eq!(world.run("it", &["cat", "/with space"]), "a");
}

#[test]
fn heredocs_and_json_and_continuations() {
    let world = Environment::new();
    world.dockerfile(
        "# escape=`\nFROM BUSYBOX\nARG WHO=world\nCOPY <<EOF <<\"RAW\" /made/\nhello $WHO\nEOF\nraw $WHO\nRAW\n\
         RUN <<EOF\nset -e\nx=1\necho $((x+1)) > /sum\nEOF\nRUN echo one `\n  # a comment inside\n  two > /joined\n\
         RUN [\"sh\", \"-c\", \"echo $0 > /exec\", \"zero\"]\n",
    );
    world.build("it").success();
    let text = world.run("it", &["sh", "-c", "cat /made/EOF /made/RAW /sum /joined /exec"]);
    assert_eq!(text, "hello world\nraw $WHO\n2\none two\nzero\n");
}

#[test]
fn mounts_of_run_steps() {
    let world = Environment::new();
    world.write("input/file", "bound\n");
    std::fs::write(world.path("token"), "s3cr3t").expect("writes");
    world.dockerfile(
        "FROM BUSYBOX AS other\nRUN echo from-stage > /x\nFROM BUSYBOX\n\
         RUN --mount=type=bind,source=input,target=/in cat /in/file > /bound\n\
         RUN --mount=type=bind,from=other,source=/x,target=/x cat /x > /stage\n\
         RUN --mount=type=cache,target=/cache echo more >> /cache/count; wc -l < /cache/count > /count\n\
         RUN --mount=type=tmpfs,target=/t touch /t/f && grep -q ' /t tmpfs' /proc/mounts\n\
         RUN --mount=type=secret,id=token cat /run/secrets/token > /dev/null && test \"$(stat -c %a /run/secrets/token)\" = 400\n\
         RUN --mount=type=secret,id=token,env=TOKEN test ${#TOKEN} = 6\n",
    );
    let secret = format!("id=token,src={}", world.path("token").display());
    world.stave(["build", "-t", "it", "--secret", &secret, "."]).success().never_says("s3cr3t");
    assert_eq!(
        world.run(
            "it",
            &[
                "sh",
                "-c",
                "cat /bound /stage /count; ls -d /in /x /cache /t /run/secrets 2>/dev/null || true"
            ]
        ),
        "bound\nfrom-stage\n1\n"
    );
    world.stave(["build", "--no-cache", "-t", "it", "--secret", &secret, "."]).success();
    assert_eq!(world.run("it", &["cat", "/count"]), "2\n", "the cache mount outlives the build");
    let store = std::process::Command::new("grep")
        .args(["-rqa", "s3cr3t"])
        .arg(world.root())
        .status()
        .expect("grep runs");
    assert!(!store.success(), "a secret reached the state directory");
}

#[test]
fn triggers_of_a_base_run_in_the_child() {
    let world = Environment::new();
    world.dockerfile("FROM BUSYBOX\nONBUILD COPY data /data\nONBUILD RUN cat /data > /seen\n");
    world.build("parent").success();
    world.write("data", "from the child\n").write("Dockerfile", "FROM parent\nRUN echo after >> /seen\n");
    world.build("child").success();
    assert_eq!(world.run("child", &["cat", "/seen"]), "from the child\nafter\n");
}

#[test]
fn a_context_may_be_a_tar_or_a_dockerfile_on_stdin() {
    let world = Environment::new();
    let text = with_images("FROM BUSYBOX\nRUN echo typed > /how\n");
    world.stave_with_input(&["build", "-t", "typed", "-"], text.as_bytes()).success();
    assert_eq!(world.run("typed", &["cat", "/how"]), "typed\n");
    world.dockerfile("FROM BUSYBOX\nCOPY file /file\n").write("file", "packed\n");
    let tar = std::process::Command::new("tar")
        .args(["-cz", "."])
        .current_dir(world.context())
        .output()
        .expect("tar runs");
    world.stave_with_input(&["build", "-t", "packed", "-"], &tar.stdout).success();
    assert_eq!(world.run("packed", &["cat", "/file"]), "packed\n");
    world
        .stave_with_input(
            &["build", "-t", "named", "-f", "-", "."],
            with_images("FROM BUSYBOX\nCOPY file /other\n").as_bytes(),
        )
        .success();
    assert_eq!(world.run("named", &["cat", "/other"]), "packed\n");
}

#[test]
fn the_sandbox_hides_the_host() {
    let world = Environment::new();
    world.dockerfile(
        "FROM BUSYBOX\nRUN test $$ = 1 && test \"$(hostname)\" = buildkitsandbox\nRUN ! mount -t tmpfs none /mnt 2>/dev/null\n\
         RUN test -z \"$LEAKED\" && ! env | grep -q CARGO\nRUN ! echo x > /proc/sysrq-trigger\nRUN ! test -s /proc/kcore\n\
         RUN test \"$(ls /proc | grep -c '^[0-9]')\" -le 5\nRUN test -c /dev/null && test ! -e /dev/vda\n\
         RUN --network=none test \"$(ls /sys/class/net)\" = lo\nRUN grep -q 'Seccomp:.2' /proc/self/status\n\
         RUN grep -q 'CapBnd:.00000000a80425fb' /proc/self/status\n",
    );
    let mut command = world.command();
    let output = command.env("LEAKED", "yes").args(["build", "."]).output().expect("starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn steps_of_independent_stages_overlap() {
    let world = Environment::new();
    // Each stage waits for the other through a shared cache mount: in turn, they would never end.
    let stage = |name: &str, other: &str| {
        format!(
            "FROM BUSYBOX AS {name}\nRUN --mount=type=cache,id=meet,target=/meet touch /meet/{name}; i=0; \
             while ! test -e /meet/{other}; do i=$((i+1)); test $i -lt 200 || exit 4; sleep 0.1; done; touch /{name}\n"
        )
    };
    let last = "FROM BUSYBOX\nCOPY --from=left /left /\nCOPY --from=right /right /\n";
    world.dockerfile(&format!("{}{}{last}", stage("left", "right"), stage("right", "left")));
    world.build("it").success();
    assert!(!registry().is_empty());
}
