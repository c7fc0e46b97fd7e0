//! Steps that fail and steps that hang: times, tries, what they leave, how it is shown.

use std::fs;
use std::time::{Duration, Instant};

use crate::environment::{Environment, Outcome, own_sleep, processes_with};

/// How long a program at a terminal may show nothing: machines are slow.
const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn a_step_that_hangs_is_ended() {
    let world = Environment::new();
    let step = own_sleep(7021);
    world.dockerfile(&format!("FROM BUSYBOX\nRUN echo begun; {step}\n"));
    let start = Instant::now();
    let failed = world.stave(["build", "--step-timeout", "500ms", "."]).exits(1);
    failed.says("did not end within 500ms");
    assert!(start.elapsed() < Duration::from_secs(20), "took {:?}", start.elapsed());
    assert_eq!(processes_with(&step), [""; 0]);
    world.stave(["build", "--step-timeout", "soon", "."]).exits(2);
}

#[test]
fn a_step_that_fails_is_tried_again() {
    let world = Environment::new();
    // Each try begins anew, so only a cache mount can tell them apart.
    world.dockerfile(
        "FROM BUSYBOX\nRUN --mount=type=cache,target=/c test ! -e /left && touch /left && \
         echo x >> /c/n && test $(wc -l < /c/n) -ge 3\n",
    );
    world.stave(["build", "--retry", "1", "-t", "tried", "."]).exits(1).says("again in 500ms (1 of 1)");
    world.stave(["build", "--retry", "1", "-t", "tried", "."]).success();
}

fn failing(world: &Environment) -> Outcome {
    world.dockerfile(
        "FROM BUSYBOX\nENV COLOUR=blue\nWORKDIR /src\nRUN mkdir -p -m 1777 /tmp && echo 'me:x:1000:1000::/:/bin/sh' >> /etc/passwd\nUSER me\n\
         RUN --mount=type=secret,id=token,uid=1000,required --mount=type=cache,target=/cache,uid=1000 \
         echo partial > /tmp/report && mkdir /tmp/reports && echo 3 > /tmp/reports/failed.txt && exit 9\n",
    );
    fs::write(world.path("token"), "s3cr3t-t0ken-value\n").expect("writes");
    let secret = format!("id=token,src={}", world.path("token").display());
    let output = format!("type=local,src=/tmp/reports,dest={}", world.path("out").display());
    world.stave(["build", "--secret", &secret, "--output-on-failure", &output, "-t", "x", "."]).exits(1)
}

#[test]
fn a_failed_step_can_be_entered_and_copied_out_of() {
    let world = Environment::new();
    failing(&world).says("exit code: 9").says("copied /tmp/reports of the failed step to");
    assert_eq!(fs::read_to_string(world.path("out/failed.txt")).expect("was copied"), "3\n");
    let secret = format!("id=token,src={}", world.path("token").display());
    let script = "cat /tmp/report; echo $COLOUR; pwd; id -un; echo \"$STAVE_COMMAND\"; ls -d /cache; \
                  cat /run/secrets/token; echo changed > /tmp/report";
    let inside = world.stave(["debug", "--secret", &secret, "--", "sh", "-c", script]).success();
    let expected = "partial\nblue\n/src\nme\n/bin/sh -c 'echo partial > /tmp/report && mkdir /tmp/reports && echo 3 > \
                    /tmp/reports/failed.txt && exit 9'\n/cache\ns3cr3t-t0ken-value\n";
    assert_eq!(inside.stdout, expected, "{}", inside.stderr);
    // Without the secret it is said; changes of the shell are gone; the exit code is the command's.
    world.stave(["debug", "--", "true"]).exits(1).says("secret token: not found");
    let again =
        world.stave(["debug", "--secret", &secret, "--", "sh", "-c", "cat /tmp/report; exit 7"]).exits(7);
    assert_eq!(again.stdout, "partial\n");
}

#[test]
fn another_builds_step_is_entered_only_by_its_name() {
    let world = Environment::new();
    world.stave(["debug", "--", "true"]).exits(1).says("no build failed that is known");
    world.dockerfile("FROM BUSYBOX\nRUN echo one > /one; exit 1\n");
    world.build("x").exits(1);
    let entered = world.stave(["debug", "--", "cat", "/one"]).success();
    assert_eq!(entered.stdout, "one\n");
    // At no terminal, too, it is said which step of which build that is.
    assert!(
        entered.stderr.contains("RUN echo one") && entered.stderr.contains("build "),
        "{}",
        entered.stderr
    );
    let id = entered.stderr.split([' ', ':']).nth(1).expect("is named").to_owned();
    world.dockerfile("FROM BUSYBOX\nCOPY nothing-there /x\n");
    world.build("x").exits(1);
    let refused = world.stave(["debug", "--", "cat", "/one"]).exits(1);
    refused.says("COPY nothing-there").says(&format!("stave debug {id}"));
    assert_eq!(world.stave(["debug", &id, "--", "cat", "/one"]).success().stdout, "one\n");
    // What succeeds meanwhile changes nothing.
    world.dockerfile("FROM BUSYBOX\nRUN echo two > /two; exit 1\n");
    world.build("x").exits(1);
    world.dockerfile("FROM BUSYBOX\n");
    world.build("x").success();
    assert_eq!(world.stave(["debug", "--", "cat", "/two"]).success().stdout, "two\n");
}

#[test]
fn a_failed_step_is_entered_with_its_own_network() {
    let world = Environment::new();
    world.dockerfile("FROM BUSYBOX\nRUN readlink /proc/self/ns/net > /net; exit 1\n");
    let devices = |words: &[&str]| {
        world.stave([&["build"], words, &["."]].concat()).exits(1);
        world.stave(["debug", "--", "sh", "-c", "ls /sys/class/net"]).success().stdout
    };
    assert_eq!(devices(&["--network", "none"]), "lo\n");
    let hosts = fs::read_dir("/sys/class/net").expect("readable").count();
    assert_eq!(devices(&[]).lines().count(), hosts);
}

/// Runs a build at a terminal, by `script`: what it shows, and its code. `typed` is typed when `prompt` is there.
fn at_a_terminal(world: &Environment, words: &str, prompt: &str, typed: &str) -> (String, Option<i32>) {
    use std::io::{Read as _, Write as _};
    use std::process::Stdio;
    use std::sync::mpsc::{RecvTimeoutError, channel};
    let command = world.command();
    let program = command.get_program().to_string_lossy().into_owned();
    let mut at_terminal = std::process::Command::new("script");
    at_terminal.args(["-qec", &format!("{program} {words}"), "/dev/null"]).current_dir(world.context());
    at_terminal.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    at_terminal.env("SHELL", "/bin/sh").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    let mut child = at_terminal.spawn().expect("util-linux has `script`");
    let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
    let (mut stdin, mut stdout) = (stdin.expect("is piped"), stdout.expect("is piped"));
    let (mut shown, mut typed) = (String::new(), Some(typed));
    let (sender, said) = channel();
    std::thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok(length @ 1..) = stdout.read(&mut bytes) {
            // Nobody may listen any more.
            sender.send(bytes[..length].to_vec()).ok();
        }
    });
    loop {
        let bytes = match said.recv_timeout(PATIENCE) {
            Ok(bytes) => bytes,
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                // It may be over by now.
                child.kill().ok();
                child.wait().ok();
                panic!("nothing is shown any more, `{prompt}` or the end is missing:\n{shown}");
            }
        };
        shown.push_str(&String::from_utf8_lossy(&bytes));
        if let Some(text) = typed.take_if(|_| shown.contains(prompt)) {
            stdin.write_all(text.as_bytes()).expect("is read");
        }
    }
    (shown, child.wait().expect("ends").code())
}

#[test]
fn a_shell_opens_at_once_where_a_step_failed() {
    let world = Environment::new();
    world.dockerfile("FROM BUSYBOX\nENV COLOUR=blue\nWORKDIR /src\nRUN echo partial > report; exit 9\n");
    let words = "build --progress=plain --on-failure=shell .";
    let typed = "echo $COLOUR-$(cat report)-$(pwd)-$(tty)\nexit\n";
    let (shown, code) = at_a_terminal(&world, words, "/src # ", typed);
    assert!(shown.contains("blue-partial-/src-/dev/pts/0") && shown.contains("exit code: 9"), "{shown}");
    assert_eq!(code, Some(1));
}

#[test]
fn only_so_many_failures_are_kept() {
    let world = Environment::new();
    for number in 0..5 {
        world.dockerfile(&format!("FROM BUSYBOX\nRUN head -c 100k /dev/zero > /big{number}; exit 1\n"));
        world.build("x").exits(1);
    }
    let builds = world.root().join("builds");
    let kept = fs::read_dir(builds).expect("records").flatten();
    let kept = kept.filter(|entry| entry.path().join("failed.json").exists()).count();
    assert_eq!(kept, 3);
    let inside = world.stave(["debug", "--", "sh", "-c", "ls /big*"]).success();
    assert_eq!(inside.stdout, "/big4\n");
    world.stave(["debug", "nosuchbuild0"]).exits(1).says("no such build");
}

#[test]
fn grouped_progress_keeps_a_steps_lines_together() {
    let world = Environment::new();
    world.dockerfile(
        "FROM BUSYBOX AS a\nRUN for i in 1 2 3; do echo line-a; sleep 0.1; done\n\
         FROM BUSYBOX AS b\nRUN for i in 1 2 3; do echo line-b; sleep 0.1; done\n\
         FROM BUSYBOX\nRUN --mount=from=a,target=/a --mount=from=b,target=/b true\n",
    );
    let mut command = world.command();
    command.args(["build", "--progress=grouped", "."]).env("GITHUB_ACTIONS", "true");
    let printed = String::from_utf8(command.output().expect("runs").stderr).expect("text");
    let of_steps: Vec<&str> =
        printed.lines().filter_map(|line| line.split_once(' ')).map(|(_, text)| text).collect();
    let lines: Vec<&str> = of_steps.into_iter().filter(|text| text.starts_with("line-")).collect();
    assert!(
        lines == ["line-a", "line-a", "line-a", "line-b", "line-b", "line-b"]
            || lines == ["line-b", "line-b", "line-b", "line-a", "line-a", "line-a"],
        "{printed}"
    );
    assert!(printed.contains("::group::#") && printed.contains("::endgroup::"), "{printed}");
}

#[test]
fn rawjson_is_a_status_a_line() {
    let world = Environment::new();
    world.dockerfile("FROM BUSYBOX\nRUN echo said\nRUN exit 3\n");
    let failed = world.stave(["build", "--progress=rawjson", "."]).exits(1);
    let statuses: Vec<serde_json::Value> =
        failed.stderr.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let all = |field: &'static str| {
        statuses.iter().filter_map(move |status| status[field].as_array()).flatten().collect::<Vec<_>>()
    };
    assert!(
        all("logs").iter().any(|log| log["data"] == "c2FpZAo=" && log["stream"] == 1),
        "{}",
        failed.stderr
    );
    let ended = all("vertexes").into_iter().filter(|vertex| vertex["error"].is_string()).collect::<Vec<_>>();
    assert!(
        ended.iter().any(|vertex| vertex["error"].as_str().is_some_and(|text| text.contains("exit code: 3")))
    );
    assert!(
        all("vertexes")
            .iter()
            .all(|vertex| vertex["digest"].as_str().is_some_and(|text| text.starts_with("sha256:")))
    );
}
