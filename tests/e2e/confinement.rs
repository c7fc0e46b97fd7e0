//! How far steps may go: rights, limits, devices, certificates, proxies, secrets.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use crate::environment::{Environment, is_privileged, own_capabilities, tool};

#[test]
fn rights_are_refused_unless_granted() {
    let world = Environment::new();
    world.dockerfile("FROM BUSYBOX\nRUN --security=insecure grep CapEff /proc/self/status > /caps\n");
    world.build("rights").exits(1).says("security.insecure is not allowed");
    world.stave(["build", "--allow", "security.insecure", "-t", "rights", "."]).success();
    // Root passes on what it has; in a user namespace of one's own there is everything.
    let own = match is_privileged() {
        true => own_capabilities(),
        false => {
            let last = fs::read_to_string("/proc/sys/kernel/cap_last_cap").expect("readable");
            (2 << last.trim().parse::<u32>().expect("a number")) - 1
        }
    };
    assert_eq!(world.run("rights", &["cut", "-f2", "/caps"]).trim(), format!("{own:016x}"));
    world.stave(["build", "--allow", "root", "."]).exits(2).says("unknown entitlement root");
}

#[test]
fn an_insecure_step_has_nothing_masked_and_no_filter() {
    let world = Environment::new();
    world.dockerfile(
        "FROM BUSYBOX\nRUN --security=insecure --network=none mkdir -p /mnt && grep Seccomp: /proc/self/status > /filter && \
         mount -t tmpfs none /mnt && umount /mnt && ls /sys/firmware > /firmware && \
         mount | grep ' /sys ' | grep -c '(rw' > /sys-mode\n",
    );
    world.stave(["build", "--allow", "security.insecure", "-t", "insecure", "."]).success();
    let printed = world.run("insecure", &["sh", "-c", "cat /filter /sys-mode"]);
    assert_eq!(printed, "Seccomp:\t0\n1\n");
}

#[test]
fn a_step_beyond_its_memory_says_so() {
    let world = Environment::new();
    world.dockerfile("FROM BUSYBOX\nRUN dd if=/dev/zero of=/dev/null bs=100M count=1\n");
    let failed = world.stave(["build", "--resource", "memory=64m", "-t", "oom", "."]).exits(1);
    let failed = failed.says("was killed: out of memory (limit 64MiB, peak ");
    failed.says("exit code: 137");
    world.stave(["build", "-m", "64m", "-t", "oom", "."]).exits(1).says("out of memory (limit 64MiB");
    world.stave(["build", "-t", "oom", "."]).success();
    let left = tool("find", &["/sys/fs/cgroup", "-maxdepth", "4", "-name", "stave-*", "-empty"]);
    assert!(!left.contains(&format!("stave-{}-", std::process::id())), "{left}");
}

#[test]
fn limits_are_seen_from_inside() {
    let world = Environment::new();
    world.dockerfile("FROM BUSYBOX\nRUN i=0; while [ $i -lt 30 ]; do sleep 5 & i=$((i+1)); done; wait\n");
    world.stave(["build", "--pids-limit", "10", "."]).exits(1).says("can't fork");
    world.dockerfile("FROM BUSYBOX\nRUN grep Cpus_allowed_list /proc/self/status | cut -f2 > /cpus\n");
    world.stave(["build", "--cpuset-cpus", "0", "-t", "cpus", "."]).success();
    assert_eq!(world.run("cpus", &["cat", "/cpus"]), "0\n");
    for words in [["--cpuset-cpus", "65535"], ["--resource", "cpuset-cpus=65535"]] {
        let told = world.stave(["build", "--no-cache", words[0], words[1], "."]).success();
        told.says("does not hold: cpuset: ");
    }
    world.stave(["run", "--cpuset-cpus", "65535", "cpus", "true"]).success().says("does not hold: cpuset: ");
    world.stave(["build", "-m", "1m", "."]).exits(2).says("Minimum memory limit allowed is 6MB");
    let printed =
        world.stave(["run", "-m", "64m", "cpus", "sh", "-c", "dd if=/dev/zero of=/dev/null bs=100M count=1"]);
    assert_ne!(printed.code, Some(0), "{}", printed.stderr);
}

#[test]
fn two_steps_that_need_sixty_percent_each_finish() {
    let world = Environment::new();
    let hog = "set -o pipefail; head -c 60m /dev/zero | tail -c 60m | (sleep 1; wc -c)";
    world.dockerfile(&format!(
        "FROM BUSYBOX AS a\nRUN {hog} > /a\nFROM BUSYBOX AS b\nRUN {hog} > /b\n\
         FROM BUSYBOX\nCOPY --from=a /a /a\nCOPY --from=b /b /b\n"
    ));
    // At first nothing is known: whoever is killed runs again alone.
    world.stave(["build", "-m", "100m", "--memory-swap", "100m", "-t", "both", "."]).success();
    assert_eq!(world.run("both", &["sh", "-c", "cat /a /b"]), "62914560\n62914560\n");
    let steps = world.stave(["builds", "inspect"]).success().stdout;
    assert!(steps.contains("DURATION   MEMORY   NAME"), "{steps}");
    // Then it is known, and one waits for the other.
    let again =
        world.stave(["build", "--no-cache", "-m", "100m", "--memory-swap", "100m", "-t", "both", "."]);
    again.success().says("stave: waiting for memory, it held ").never_says("running it again alone");
}

#[test]
fn devices_come_by_their_specification() {
    let world = Environment::new();
    let specs = world.path("cdi");
    fs::create_dir(&specs).expect("creates");
    let spec = r#"{"cdiVersion":"0.6.0","kind":"acme.com/zero","devices":[{"name":"0","containerEdits":{
        "env":["ZERO=yes"],"deviceNodes":[{"path":"/dev/acme","hostPath":"/dev/zero"}]}}]}"#;
    fs::write(specs.join("acme.json"), spec).expect("writes");
    let config = world.path("config.toml");
    fs::write(&config, format!("[cdi]\nspecDirs = [{:?}]\n", specs.display().to_string())).expect("writes");
    let config = config.display().to_string();
    world.dockerfile(
        "# syntax=docker/dockerfile:1-labs\nFROM BUSYBOX\nRUN --device=acme.com/zero=0,required \
         head -c 3 /dev/acme | wc -c > /n && echo $ZERO >> /n\n",
    );
    let build =
        |more: &[&str]| world.stave([&["build", "--config", &config, "-t", "device"], more, &["."]].concat());
    build(&[]).exits(1).says("device acme.com/zero=0 is requested by the build but not allowed");
    build(&["--allow", "device=acme.com/zero=0"]).success();
    assert_eq!(world.run("device", &["cat", "/n"]), "3\nyes\n");
    world.dockerfile("FROM BUSYBOX\nRUN head -c 3 /dev/acme | wc -c > /m\n");
    build(&["--device", "acme.com/zero=0"]).success();
    build(&["--device", "acme.com/none=0", "--no-cache"])
        .exits(1)
        .says("required device \"acme.com/none=0\" is not registered");
}

#[test]
fn certificates_and_proxies_reach_steps_but_not_the_image() {
    let world = Environment::new();
    let certificate = world.path("ca.pem");
    fs::write(&certificate, "-----BEGIN CERTIFICATE-----\nb3Vycw==\n-----END CERTIFICATE-----\n")
        .expect("writes");
    world.dockerfile(
        "FROM BUSYBOX\nRUN mkdir -p /etc/ssl/certs && echo own > /etc/ssl/certs/ca-certificates.crt\n\
         RUN grep -c b3Vycw /etc/ssl/certs/ca-certificates.crt > /seen; grep -c own $SSL_CERT_FILE >> /seen; \
         echo $HTTPS_PROXY $https_proxy >> /seen\n",
    );
    let certificate = certificate.display().to_string();
    let mut command = world.command();
    command.args(["build", "--ca", &certificate, "-t", "proxied", "."]).env("HTTPS_PROXY", "http://proxy:1");
    assert!(command.status().expect("runs").success());
    let printed = world
        .run("proxied", &["sh", "-c", "cat /seen /etc/ssl/certs/ca-certificates.crt; echo [$HTTPS_PROXY]"]);
    assert_eq!(printed, "1\n1\nhttp://proxy:1 http://proxy:1\nown\n[]\n");
    assert_eq!(
        world.run("proxied", &["sh", "-c", "ls /run/stave 2>&1 | wc -l; env | grep -c CERT; true"]),
        "1\n0\n"
    );
    // Neither is a part of the key.
    let again = world.build("proxied").success();
    assert_eq!(again.cached(), 2, "{}", again.stderr);
    fs::write(world.path("ca.pem"), "no certificate").expect("writes");
    world.stave(["build", "--ca", &certificate, "."]).exits(1).says("holds no certificate in PEM form");
}

#[test]
fn secrets_are_not_printed() {
    let world = Environment::new();
    fs::write(world.path("token"), "s3cr3t-t0ken-value\n").expect("writes");
    let secret = format!("id=token,src={}", world.path("token").display());
    world.dockerfile(
        "FROM BUSYBOX\nRUN --mount=type=secret,id=token cat /run/secrets/token; \
         printf s3cr3t-; sleep 0.2; printf 't0ken-value!\\n'; base64 /run/secrets/token\n",
    );
    let built = world.stave(["build", "--secret", &secret, "-t", "quiet", "."]).success();
    let built = built.says("***!").never_says("s3cr3t-t0ken-value").never_says("czNjcjN0LXQwa2VuLXZhbHV");
    drop(built);
    let logs = world.stave(["logs"]).success();
    assert!(!logs.stdout.contains("s3cr3t-t0ken-value") && logs.stdout.contains("***"), "{}", logs.stdout);
}

#[test]
fn secrets_in_the_image_fail_the_build() {
    let world = Environment::new();
    fs::write(world.path("token"), "s3cr3t-t0ken-value\n").expect("writes");
    let secret = format!("id=token,src={}", world.path("token").display());
    let step = "RUN --mount=type=secret,id=token";
    world.dockerfile(&format!("FROM BUSYBOX\n{step} mkdir /app && cp /run/secrets/token /app/.npmrc\n"));
    let build =
        |more: &[&str]| world.stave([&["build", "--secret", &secret, "-t", "leak"], more, &["."]].concat());
    build(&[])
        .exits(1)
        .says("the value of secret `token` is in file `/app/.npmrc`, left by `")
        .says("cp /run/secrets/token");
    world.stave(["run", "--pull", "never", "leak", "true"]).exits(125);
    build(&["--no-secret-scan"]).success();
    world.dockerfile("FROM BUSYBOX\nENV TOKEN=s3cr3t-t0ken-value\n");
    build(&[]).exits(1).says("the value of secret `token` is in the image's environment: `TOKEN`");
    world
        .dockerfile(&format!("FROM BUSYBOX AS a\n{step} cp /run/secrets/token /x\nFROM BUSYBOX\nRUN true\n"));
    build(&[]).success();
}

#[test]
fn nothing_of_the_host_can_be_changed_from_a_step() {
    let world = Environment::new();
    world.write("try.sh", include_str!("confinement/escapes.sh"));
    let script = world.context().join("try.sh");
    fs::set_permissions(script, fs::Permissions::from_mode(0o755)).expect("changes the mode");
    world.dockerfile("FROM BUSYBOX\nCOPY try.sh /try.sh\nRUN /try.sh > /tried 2>/dev/null; true\n");
    world.build("tried").success();
    let tried = world.run("tried", &["cat", "/tried"]);
    // Where a container hides parts of its `/proc`, that is what steps see, themselves under other numbers; what is not
    // theirs in it they cannot touch.
    let own_proc = is_privileged() || std::fs::metadata(world.context()).is_ok_and(|own| own.uid() != 0);
    let is_known = |line: &str| line.contains(" processes outside:") && !own_proc;
    let escaped: Vec<&str> =
        tried.lines().filter(|line| !line.ends_with(": refused") && !is_known(line)).collect();
    assert!(escaped.is_empty() && tried.lines().count() >= 20, "{tried}");
}

/// An external runtime runs steps as the sandbox does, as far as a step can tell.
fn runs_under(runtime: &str) {
    tool(runtime, &["--version"]);
    let world = Environment::new();
    fs::write(world.path("token"), "s3cr3t-t0ken-value\n").expect("writes");
    let secret = format!("id=token,src={}", world.path("token").display());
    world.dockerfile(
        "FROM BUSYBOX\nWORKDIR /w\nRUN --mount=type=secret,id=token --mount=type=cache,target=/c --network=none \
         wc -c < /run/secrets/token > /seen && ls /sys/class/net >> /seen && touch /c/x && \
         grep -E 'CapEff|Seccomp:' /proc/self/status >> /seen && hostname >> /seen && pwd >> /seen\nRUN exit 5\n",
    );
    let build = |more: &[&str]| {
        world.stave(
            [&["build", "--oci-runtime", runtime, "--secret", &secret, "-t", "x"], more, &["."]].concat(),
        )
    };
    build(&[]).exits(1).says("exit code: 5");
    world.dockerfile(
        &fs::read_to_string(world.context().join("Dockerfile")).expect("reads").replace("RUN exit 5\n", ""),
    );
    let built = build(&[]).success();
    assert_eq!(built.cached(), 2, "{}", built.stderr);
    let printed = world.run("x", &["sh", "-c", "cat /seen; ls -d /c /run 2>&1; true"]);
    let expected = "19\nlo\nCapEff:\t00000000a80425fb\nSeccomp:\t2\nbuildkitsandbox\n/w\nls: /c: No such file or directory\n\
                    ls: /run: No such file or directory\n";
    assert_eq!(printed, expected);
    build(&["-m", "64m", "--no-cache"])
        .exits(1)
        .says("an external OCI runtime cannot be used for limits of a whole build");
    assert_eq!(crate::environment::mounts_below(&world.root()), [""; 0]);
}

#[test]
fn runc_runs_steps() {
    runs_under("runc");
}

#[test]
fn crun_runs_steps() {
    runs_under("crun");
}
