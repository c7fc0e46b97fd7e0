//! How long the front end takes for a Dockerfile of 200 lines, stage by stage. The bound is 1 ms in all.
//!
//! `cargo bench -p stave-frontend-dockerfile`; no harness, so that it needs no further crate.

use std::{fmt::Write as _, hint::black_box, time::Instant};

use stave_frontend_dockerfile::{PlanRequest, ResolvedImage, ResolvedSources, Source, lower, parse, plan};
use stave_oci::{Digest, ImageConfig, Platform};

const ROUNDS: u32 = 500;

/// 200 lines of everything that is common.
fn dockerfile() -> String {
    let mut text = "FROM alpine AS build\nARG V=1\nENV A=b C=${V:-x}\n".to_owned();
    for step in 0.. {
        let left = 200 - text.lines().count();
        let _infallible = match step % 6 {
            _ if left == 0 => break,
            0 if left > 1 => writeln!(
                text,
                "RUN --mount=type=cache,target=/root/.cache make step{step} && \\\n    echo ${{A}} $V"
            ),
            1 => writeln!(text, "COPY --chown=1:2 src/{step} /dst/{step}/"),
            2 => writeln!(text, "ENV X{step}=${{A}}{step}"),
            3 if left > 2 => writeln!(text, "RUN <<EOF\necho {step}\nEOF"),
            4 => writeln!(text, "WORKDIR /w/{step}"),
            _ => writeln!(text, "LABEL a{step}=\"b c\" d=${{V}}"),
        };
    }
    text
}

fn main() {
    let source = Source::new("Dockerfile", dockerfile());
    let request = PlanRequest::new(Platform::new("linux", "amd64", None));
    let parsed = parse(&source);
    let planned = match plan(&parsed.dockerfile, &request) {
        Ok(planned) => planned,
        Err(error) => panic!("the workload is sound: {error}"),
    };
    let mut resolved = ResolvedSources::default();
    for request in planned.missing(&ResolvedSources::default()) {
        let mut config = ImageConfig::default();
        config.rootfs.diff_ids = vec![Digest::sha256(b"layer")];
        resolved.insert(request, ResolvedImage { digest: Digest::sha256(b"image"), config });
    }
    let report = |what: &str, work: &dyn Fn()| {
        let start = Instant::now();
        (0..ROUNDS).for_each(|_| work());
        println!("{what:8} {:?}", start.elapsed() / ROUNDS);
    };
    println!("{} lines", source.text.lines().count());
    report("parse", &|| drop(black_box(parse(black_box(&source)))));
    report("plan", &|| drop(black_box(plan(black_box(&parsed.dockerfile), &request))));
    report("lower", &|| drop(black_box(lower(black_box(&planned), &resolved))));
}
