//! Scripted runs.

use super::*;

#[track_caller]
fn check(world: &mut World, vertices: &[&Vertex], target: &Vertex, expected: &[&str]) {
    assert_eq!(solve(world, vertices, target), expected);
}

#[test]
fn a_chain_runs_once_and_then_comes_from_one_key() {
    let mut world = World::default();
    let (base, other) = (image("base"), image("other"));
    let a = run("a", &base);
    let b = run("b", &a);
    let all = [&base, &other, &a, &b];
    check(&mut world, &all, &b, &["run base", "run a", "run b"]);
    check(&mut world, &all, &b, &["load b", "cached base", "cached a", "cached b"]);
    let mut bench = Bench::new(&mut world);
    bench.submit(1, 1, &all, &b);
    bench.drain();
    assert_eq!(bench.lookups, 1, "nothing below a hit is looked up");
}

#[test]
fn a_changed_step_reruns_it_and_what_follows() {
    let mut world = World::default();
    let base = image("base");
    let a = run("a", &base);
    let b = run("b", &a);
    let c = run("c", &b);
    check(&mut world, &[&base, &a, &b, &c], &c, &["run base", "run a", "run b", "run c"]);
    let new_b = run("new b", &a);
    let new_c = run("c", &new_b);
    check(
        &mut world,
        &[&base, &a, &new_b, &new_c],
        &new_c,
        &["cached base", "cached a", "load a", "run new b", "run c"],
    );
}

fn with_context() -> [Vertex; 6] {
    let base = image("base");
    let a = run("a", &base);
    let context = context();
    let copied = copy("copy", &a, &context);
    let b = run("b", &copied);
    let c = run("c", &b);
    [base, a, context, copied, b, c]
}

#[test]
fn a_context_in_the_middle_hits_by_content_and_then_by_result() {
    let mut world = World::default();
    let graph = with_context();
    let all: Vec<&Vertex> = graph.iter().collect();
    world.content.insert("context".into(), "files".into());
    let cold = solve(&mut world, &all, &graph[5]);
    assert_eq!(cold.iter().filter(|line| line.starts_with("run ")).count(), 6, "{cold:?}");
    let again = ["run context", "cached base", "cached a", "cached copy", "cached b", "load c", "cached c"];
    let mut sorted = solve(&mut world, &all, &graph[5]);
    let mut expected = again.map(str::to_owned).to_vec();
    sorted.sort();
    expected.sort();
    assert_eq!(sorted, expected);

    world.content.insert("context".into(), "changed".into());
    let changed = solve(&mut world, &all, &graph[5]);
    let ran: Vec<&String> = changed.iter().filter(|line| line.starts_with("run ")).collect();
    assert_eq!(ran, ["run context", "run copy", "run b", "run c"]);

    world.content.insert("context".into(), "files".into());
    let back = solve(&mut world, &all, &graph[5]);
    assert!(back.iter().all(|line| !line.starts_with("run ") || line == "run context"), "{back:?}");
}

#[test]
fn an_unchanged_output_of_a_changed_stage_cuts_off() {
    let mut world = World::default();
    let (base, tools) = (image("base"), image("tools"));
    world.content.insert("make".into(), "binary".into());
    world.content.insert("make faster".into(), "binary".into());
    let make = run("make", &tools);
    let take = copy("take", &base, &make);
    let last = run("last", &take);
    solve(&mut world, &[&base, &tools, &make, &take, &last], &last);
    let faster = run("make faster", &tools);
    let take = copy("take", &base, &faster);
    let last = run("last", &take);
    let log = solve(&mut world, &[&base, &tools, &faster, &take, &last], &last);
    let ran: Vec<&String> = log.iter().filter(|line| line.starts_with("run ")).collect();
    assert_eq!(ran, ["run make faster"], "{log:?}");
    // Next time the new definition is known by itself.
    let log = solve(&mut world, &[&base, &tools, &faster, &take, &last], &last);
    assert!(
        log.contains(&"load last".to_owned()) && !log.iter().any(|line| line.starts_with("run ")),
        "{log:?}"
    );
}

#[test]
fn what_is_gone_is_made_again() {
    let mut world = World::default();
    let base = image("base");
    let a = run("a", &base);
    let b = run("b", &a);
    let all = [&base, &a, &b];
    solve(&mut world, &all, &b);
    world.gone.insert("b(a(base()))".into());
    let log = solve(&mut world, &all, &b);
    assert_eq!(log, ["load b", "cached base", "cached a", "load a", "run b"]);
    world.gone.insert("a(base())".into());
    world.gone.insert("base()".into());
    let log = solve(&mut world, &all, &b);
    let ran: Vec<&String> = log.iter().filter(|line| line.starts_with("run ")).collect();
    assert_eq!(ran, ["run base", "run a", "run b"], "{log:?}");
}

#[test]
fn a_vertex_that_ignores_the_cache_runs_and_is_recorded() {
    let mut world = World::default();
    let base = image("base");
    let a = run("a", &base);
    let b = run("b", &a);
    solve(&mut world, &[&base, &a, &b], &b);
    let mut fresh = a.clone();
    fresh.metadata.ignore_cache = true;
    let log = solve(&mut world, &[&base, &fresh, &b], &b);
    let ran: Vec<&String> = log.iter().filter(|line| line.starts_with("run ")).collect();
    assert_eq!(ran, ["run a", "run b"], "a hit of `b` would have hidden `a`: {log:?}");
    let log = solve(&mut world, &[&base, &a, &b], &b);
    assert_eq!(log, ["load b", "cached base", "cached a", "cached b"]);
}

#[test]
fn the_first_failure_stops_what_only_its_job_wants() {
    let mut world = World::default();
    world.failing.insert("bad".into());
    let (base, side) = (image("base"), image("side"));
    let (bad, slow) = (run("bad", &base), run("slow", &side));
    let both = copy("both", &bad, &slow);
    let shared = run("shared", &slow);
    let mut bench = Bench::new(&mut world);
    bench.submit(1, 1, &[&base, &side, &bad, &slow, &both], &both);
    bench.submit(2, 1, &[&side, &slow, &shared], &shared);
    bench.submit(3, 1, &[&base, &bad], &bad);
    bench.drain_to_runs();
    bench.answer_run("base");
    bench.answer_run("side");
    bench.drain_to_runs();
    bench.answer_run("bad");
    for job in [1, 3] {
        let error = bench.finished[&JobId(job)].as_ref().expect_err("it failed");
        let SolveError::Vertex { name, vertex, source } = error else { panic!("{error:?}") };
        assert_eq!((name.as_str(), vertex), ("bad", &bad.digest));
        assert!(source.downcast_ref::<Scripted>().is_some());
    }
    assert!(bench.stopped.is_empty(), "`slow` is still wanted by the second job");
    bench.drain();
    assert!(bench.finished[&JobId(2)].is_ok());
    bench.assert_idle();
}

#[test]
fn a_cancelled_job_waits_for_what_it_stopped() {
    let mut world = World::default();
    let base = image("base");
    let a = run("a", &base);
    let mut bench = Bench::new(&mut world);
    bench.submit(1, 1, &[&base, &a], &a);
    bench.drain_to_runs();
    bench.step(Event::Cancel { job: JobId(1) });
    assert_eq!(bench.stopped.len(), 1);
    assert!(bench.finished.is_empty(), "`base` still runs");
    bench.answer_run("base");
    assert!(matches!(bench.finished[&JobId(1)], Err(SolveError::Cancelled)));
    bench.step(Event::Cancel { job: JobId(1) });
    bench.assert_idle();
}

#[test]
fn what_another_job_still_wants_goes_on() {
    let mut world = World::default();
    let base = image("base");
    let (a, b) = (run("a", &base), run("b", &base));
    let mut bench = Bench::new(&mut world);
    bench.submit(1, 1, &[&base, &a], &a);
    bench.submit(2, 1, &[&base, &b], &b);
    bench.drain_to_runs();
    assert_eq!(bench.log, ["run base"], "one vertex, one run");
    bench.step(Event::Cancel { job: JobId(1) });
    assert!(bench.finished.contains_key(&JobId(1)) && bench.stopped.is_empty());
    bench.drain();
    assert_eq!(bench.log, ["run base", "run b"]);
    assert!(bench.finished[&JobId(2)].is_ok());
    bench.assert_idle();
}

/// Answers the first pending command that writes a record.
fn answer_record(bench: &mut Bench<'_>) {
    let is_record = |(_, command): &(_, Command<_>)| matches!(command, Command::Record { .. });
    let position = bench.pending.iter().position(is_record).expect("a record is to be written");
    bench.answer(position);
}

#[test]
fn users_of_a_result_do_not_wait_for_its_record_but_the_job_does() {
    let mut world = World::default();
    let base = image("base");
    let a = run("a", &base);
    let mut bench = Bench::new(&mut world);
    bench.submit(1, 1, &[&base, &a], &a);
    bench.drain_to_runs();
    bench.answer_run("base");
    while bench.log.len() < 2 {
        let next = bench.pending.iter().position(|(_, command)| !matches!(command, Command::Record { .. }));
        bench.answer(next.expect("its user goes on"));
    }
    assert_eq!(bench.log, ["run base", "run a"]);
    assert!(bench.world.index.is_empty());
    bench.answer_run("a");
    answer_record(&mut bench);
    assert!(bench.finished.is_empty(), "a record is not written yet");
    answer_record(&mut bench);
    assert!(bench.finished[&JobId(1)].is_ok() && !bench.world.index.is_empty());
    bench.assert_idle();
}

#[test]
fn what_was_done_before_it_was_stopped_is_recorded() {
    let mut world = World { stubborn: ["base".to_owned()].into(), ..World::default() };
    let base = image("base");
    let mut bench = Bench::new(&mut world);
    bench.submit(1, 1, &[&base], &base);
    bench.drain_to_runs();
    bench.step(Event::Cancel { job: JobId(1) });
    bench.answer_run("base");
    assert!(bench.finished.is_empty() && bench.world.index.is_empty());
    answer_record(&mut bench);
    assert!(bench.finished[&JobId(1)].is_err());
    bench.assert_idle();
    check(&mut world, &[&base], &base, &["load base", "cached base"]);
}

#[test]
fn vertices_that_differ_only_outside_their_keys_run_once() {
    let mut world = World::default();
    let base = image("base");
    let with_ip = |ip: &str| {
        let extra_hosts = vec![stave_llb::HostIp { host: "h".into(), ip: ip.into() }];
        vertex("a", Op::Exec(ExecOp { extra_hosts, ..exec("a") }), &[&base])
    };
    let (one, two) = (with_ip("10.0.0.1"), with_ip("10.0.0.2"));
    assert_ne!(one.digest, two.digest);
    let mut bench = Bench::new(&mut world);
    bench.submit(1, 1, &[&base, &one], &one);
    bench.submit(2, 2, &[&base, &two], &two);
    bench.drain_to_runs();
    bench.answer_run("base");
    bench.drain_to_runs();
    assert_eq!(bench.log, ["run base", "run a"]);
    // The first job goes, and with it the session the run began in; the second still follows it.
    bench.step(Event::Cancel { job: JobId(1) });
    assert!(bench.stopped.is_empty());
    bench.drain();
    assert_eq!(bench.log, ["run base", "run a", "cached a"]);
    assert!(bench.finished[&JobId(2)].is_ok());
    bench.assert_idle();
}

#[test]
fn a_follower_tries_for_itself_when_the_leader_fails() {
    let mut world = World::default();
    world.failing.insert("a".into());
    let base = image("base");
    let a = run("a", &base);
    let proxied = ExecOp {
        proxy_env: Some(stave_llb::ProxyEnv { http_proxy: "p".into(), ..Default::default() }),
        ..exec("a")
    };
    let other = vertex("other", Op::Exec(proxied), &[&base]);
    let mut bench = Bench::new(&mut world);
    bench.submit(1, 1, &[&base, &a], &a);
    bench.submit(2, 1, &[&base, &other], &other);
    bench.drain();
    assert!(bench.finished[&JobId(1)].is_err() && bench.finished[&JobId(2)].is_ok());
    assert_eq!(bench.log, ["run base", "run a", "run other"]);
    bench.assert_idle();
}

#[test]
fn sessions_do_not_share_contexts_but_share_what_they_hold() {
    let mut world = World::default();
    let graph = with_context();
    let all: Vec<&Vertex> = graph.iter().collect();
    let mut bench = Bench::new(&mut world);
    bench.submit(1, 1, &all, &graph[5]);
    bench.submit(2, 2, &all, &graph[5]);
    bench.submit(3, 1, &all, &graph[5]);
    bench.drain();
    let count = |line: &str| bench.log.iter().filter(|found| *found == line).count();
    assert_eq!((count("run context"), count("run copy"), count("run b")), (2, 1, 1), "{:?}", bench.log);
    assert!((1..=3).all(|job| bench.finished[&JobId(job)].is_ok()));
    bench.assert_idle();
}

#[test]
fn a_missing_output_is_an_error_of_the_vertex() {
    let mut world = World::default();
    let base = image("base");
    let mut a = run("a", &base);
    a.inputs[0].output = 3;
    let log = solve(&mut world, &[&base, &a], &a);
    assert_eq!(log, ["run base", "failed a", "error failed to solve `a`"]);
}

#[test]
fn a_new_job_tries_again_what_failed_for_another() {
    let mut world = World::default();
    world.failing.insert("a".into());
    let (base, side) = (image("base"), image("side"));
    let (a, slow) = (run("a", &base), run("slow", &side));
    let both = copy("both", &a, &slow);
    let mut bench = Bench::new(&mut world);
    bench.submit(1, 1, &[&base, &side, &a, &slow, &both], &both);
    bench.drain_to_runs();
    bench.answer_run("base");
    bench.drain_to_runs();
    bench.answer_run("a");
    assert!(bench.finished.is_empty(), "`side` is still stopping");
    bench.world.failing.clear();
    bench.submit(2, 1, &[&base, &a], &a);
    bench.drain();
    assert!(bench.finished[&JobId(1)].is_err() && bench.finished[&JobId(2)].is_ok());
    bench.assert_idle();
}
