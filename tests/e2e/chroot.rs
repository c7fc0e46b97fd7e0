//! A container whose filter lets nobody make namespaces or mounts, as docker's does: it still builds and runs there.
//!
//! Each test is one container of podman's with docker's capabilities. Only root can start those.

use std::fs;
use std::process::{Command, Stdio};

use crate::environment::{Environment, Outcome, program, registry, with_images};

/// What docker's profile refuses to those without `CAP_SYS_ADMIN`, as far as it matters here.
const PROFILE: &str = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
  {"names": ["unshare", "setns", "mount", "umount2", "umount", "pivot_root", "fsopen", "fsconfig", "fsmount", "fspick",
             "move_mount", "open_tree", "mount_setattr", "keyctl", "sethostname"],
   "action": "SCMP_ACT_ERRNO", "errnoRet": 1},
  {"names": ["clone"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1,
   "args": [{"index": 0, "value": 268435456, "valueTwo": 268435456, "op": "SCMP_CMP_MASKED_EQ"}]},
  {"names": ["clone"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1,
   "args": [{"index": 0, "value": 536870912, "valueTwo": 536870912, "op": "SCMP_CMP_MASKED_EQ"}]},
  {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}]}"#;

const DOCKER: &str = "chown,dac_override,fsetid,fowner,mknod,net_raw,setgid,setuid,setfcap,setpcap,net_bind_service,\
                      sys_chroot,kill,audit_write";

/// A container, with the test's files at the same place inside.
struct Container {
    world: Environment,
    capabilities: &'static str,
}

impl Container {
    fn new(capabilities: &'static str) -> Self {
        let world = Environment::new();
        fs::write(world.path("profile.json"), PROFILE).expect("writes");
        fs::copy(program(), world.path("stave")).expect("copies the program");
        Self { world, capabilities }
    }

    fn dockerfile(&self, text: &str) -> &Self {
        self.world.write("Dockerfile", &with_images(text));
        self
    }

    /// Runs a script in the container; `$S` is the program, the context the directory.
    fn run(&self, script: &str) -> Outcome {
        let place = self.world.path("").display().to_string();
        let mut command = Command::new("podman");
        command.args(["run", "--rm", "--runtime", "runc", "--network", "host", "--tls-verify=false", "-q"]);
        command.args(["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=4096:4096", "--log-driver", "none"]);
        command.args(["--cap-drop", "all", "--cap-add", self.capabilities, "--security-opt"]);
        command.arg(format!("seccomp={place}/profile.json"));
        command.args(["-v", &format!("{place}:{place}"), "-w", &self.world.context().display().to_string()]);
        for variable in [
            format!("S={place}/stave"),
            format!("STAVE_ROOT={place}/state"),
            format!("HOME={place}"),
            "BUILDKIT_PROGRESS=plain".to_owned(),
        ] {
            command.args(["-e", &variable]);
        }
        command.args([&format!("{}/busybox", registry()), "sh", "-c", script]).stdin(Stdio::null());
        Outcome::of(command.output().expect("podman starts"))
    }
}

const STAGES: &str = "FROM BUSYBOX AS made\n\
    RUN --mount=type=cache,target=/cache mkdir -p /out/d && echo hello > /out/d/f && chown 7:8 /out/d/f && \
      ln /out/d/f /out/hard && ln -s d/f /out/link && echo >> /cache/n && wc -l < /cache/n > /out/n && rm /etc/group\n\
    RUN --mount=type=cache,target=/cache test $(wc -l < /cache/n) = 1 && echo app:x:1234:1234::/home/app:/bin/sh >> /etc/passwd\n\
    FROM made\n\
    COPY --from=made /out /copy\n\
    COPY --chown=5:6 given /given\n\
    RUN --mount=type=bind,from=made,source=/out,target=/bound --mount=type=tmpfs,target=/memory \
      cp /bound/d/f /from-bound && touch /memory/x && test ! -e /copy/none && rm -r /copy/d && (setsid sleep 4242 >/dev/null 2>&1 &)\n\
    USER app\nWORKDIR /home/app\nRUN id -u > uid; ! touch /etc/x 2>/dev/null\n";

#[test]
fn a_container_without_namespaces_builds_and_runs() {
    let container = Container::new(DOCKER);
    container.world.write("given", "given\n");
    let done = container
        .dockerfile(STAGES)
        .run(
            "$S info | grep -A1 ^Privileges && $S build -q -t made . && ps | grep -c '[s]leep 4242'; \
             $S run --rm made sh -c 'cat uid; cat /from-bound; ls /copy /memory /bound /cache /etc/group 2>&1; stat -c %u:%g:%h \
             /copy/hard /given' ; $S run --rm -u 0 made sh -c 'exit 9'; echo $?; $S doctor > /dev/null; echo $?",
        )
        .success();
    let (info, rest) = done.stdout.split_once("sha256:").expect("a digest");
    assert!(info.contains("chroot alone"), "{info}");
    let rest = rest.split_once('\n').expect("lines").1;
    let expected = "0\n1234\nhello\n\
        ls: /memory: No such file or directory\nls: /bound: No such file or directory\n\
        ls: /cache: No such file or directory\nls: /etc/group: No such file or directory\n\
        /copy:\nhard\nlink\nn\n7:8:1\n5:6:1\n9\n0\n";
    assert_eq!(rest, expected, "{}", done.stderr);
    // The same image, to the byte, as where everything can be had.
    let digest = done.stdout.split("sha256:").nth(1).and_then(|rest| rest.lines().next()).expect("a digest");
    let own = container
        .world
        .command()
        .env("STAVE_ROOT", container.world.path("own"))
        .args(["build", "-q", "."])
        .output();
    let own = String::from_utf8_lossy(&own.expect("builds").stdout).into_owned();
    assert_eq!(own.trim(), format!("sha256:{digest}"));
}

#[test]
fn what_a_shell_can_try_leads_nowhere() {
    let container = Container::new(DOCKER);
    container.world.write("try.sh", include_str!("confinement/escapes.sh"));
    container.dockerfile("FROM BUSYBOX\nCOPY try.sh /try.sh\nRUN sh /try.sh > /tried 2>/dev/null; true\n");
    let tried = container.run("$S build -q -t tried . > /dev/null && $S run --rm tried cat /tried").success();
    let done: Vec<&str> = tried.stdout.lines().filter(|line| !line.ends_with(": refused")).collect();
    // Its devices are nodes of its own, made for it and gone with it.
    assert_eq!(done, ["change a shared device: DONE"], "{}", tried.stdout);
    assert!(tried.stdout.lines().count() >= 40, "{}", tried.stdout);
}

/// A cache is moved in and back: whatever a step puts on its way, nothing else of the machine is moved.
#[test]
fn what_is_lent_comes_home_and_nothing_else() {
    let container = Container::new(DOCKER);
    let world = &container.world;
    let theirs = world.path("theirs");
    fs::create_dir_all(theirs.join("lib")).expect("makes directories");
    fs::write(theirs.join("lib/file"), "theirs").expect("writes");
    let link = format!("mv /a /b && ln -s {} /a", theirs.display());
    let steps = [
        ("moves", format!("--mount=type=cache,id=c,target=/a/lib {link}")),
        ("dev", "--mount=type=cache,id=d,target=/dev true".to_owned()),
        ("below", "--mount=type=cache,id=e,target=/k --mount=type=cache,id=f,target=/k/l true".to_owned()),
        ("above", "--mount=type=cache,id=f,target=/k/l --mount=type=cache,id=e,target=/k true".to_owned()),
    ];
    for (name, step) in &steps {
        world.write(name, &with_images(&format!("FROM BUSYBOX\nRUN {step}\n")));
    }
    let script = "$S build -q -f moves . > /dev/null; echo $?; \
                  for f in dev below above; do $S build -q -f $f . 2>&1 | grep -c '^ERROR.*needs a mount'; done; \
                  $S run --rm -v $PWD:/x BUSYBOX true 2>&1 | grep -c 'needs a mount'; ls moves";
    let done = container.run(&with_images(script)).success();
    assert_eq!(done.stdout, "0\n1\n1\n1\n1\nmoves\n", "{}", done.stderr);
    assert_eq!(fs::read(theirs.join("lib/file")).expect("is where it was"), b"theirs");
}

/// Each step of a chain finds what the one before left, in the same tree, and nothing else of it.
#[test]
fn a_chain_of_steps_is_one_tree() {
    let container = Container::new(DOCKER);
    container.dockerfile(
        "FROM BUSYBOX AS one\nRUN mkdir /d && echo 1 > /d/f && echo x > /tmp/left && rm /tmp/left\n\
         RUN --mount=type=tmpfs,target=/m echo 2 >> /d/f && touch /m/x && rm /etc/group && mv /d /e\n\
         RUN test ! -e /d && test ! -e /m && test ! -e /etc/group && mkdir /etc/group && cat /e/f > /seen\n\
         FROM one AS two\nRUN rm -r /e && ln -s seen /e && cat /e > /again\n\
         FROM BUSYBOX\nRUN test -f /etc/group && test ! -e /seen && test ! -e /again && echo new > /new\n\
         COPY --from=two /again /again\n",
    );
    let build =
        "$S build -q -t chain . && $S run --rm chain sh -c 'cat /again /new; ls -d /e /seen 2>&1; true'";
    let done = container.run(build).success();
    let (digest, printed) = done.stdout.split_once('\n').expect("lines");
    let expected = "1\n2\nnew\nls: /e: No such file or directory\nls: /seen: No such file or directory\n";
    assert_eq!(printed, expected);
    let own = container
        .world
        .command()
        .env("STAVE_ROOT", container.world.path("own"))
        .args(["build", "-q", "."])
        .output();
    assert_eq!(String::from_utf8_lossy(&own.expect("builds").stdout).trim(), digest);
}

#[test]
fn what_cannot_be_had_without_mounts_is_said() {
    let container = Container::new(DOCKER);
    container.world.write("token", "s3cr3t-t0ken-value");
    container.dockerfile("FROM BUSYBOX\nRUN --mount=type=secret,id=t cat /run/secrets/t | wc -c > /n\n");
    let refused = container.run("$S build --secret id=t,src=token .");
    refused.exits(1).says("a secret file at `/run/secrets/t` needs a file system in memory");
    container.dockerfile("FROM BUSYBOX\nRUN --mount=type=secret,id=t,env=T test ${#T} = 18\n");
    container.run("$S build --secret id=t,src=token .").success();
    container.dockerfile("FROM BUSYBOX\nRUN --network=none true\n");
    container.run("$S build .").exits(1).says("a network of its own needs a network namespace");
}

#[test]
fn without_the_right_to_change_the_root_nothing_is_built() {
    let container = Container::new("chown,dac_override,fowner,setgid,setuid");
    container.dockerfile("FROM BUSYBOX\nRUN true\n");
    let refused = container.run("$S build .").exits(1).says("cannot create a user namespace");
    refused.says("a container's root can build by chroot, but: CAP_SYS_CHROOT not held");
}
