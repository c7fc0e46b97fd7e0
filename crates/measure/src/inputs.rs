//! The texts and values that pure cases work on. The same bytes every time.

use std::fmt::Write as _;

use stave_frontend_dockerfile::{
    BuildPlan, Lowered, PlanRequest, ResolvedImage, ResolvedSources, Source, lower, parse, plan,
};
use stave_oci::{Digest, ImageConfig};

use crate::sound;

/// 200 lines of what is common in Dockerfiles, in four stages.
pub(crate) fn dockerfile() -> Source {
    let mut text = String::from("# syntax=docker/dockerfile:1\nARG VERSION=1.0\n");
    for stage in 0..4 {
        let base = if stage == 0 { "debian:12".to_owned() } else { format!("s{}", stage - 1) };
        // Writing to a String cannot fail, here and below.
        let _infallible = writeln!(text, "FROM {base} AS s{stage}\nARG VERSION\nWORKDIR /srv/{stage}");
        for step in 0..6 {
            let _infallible = writeln!(
                text,
                "ENV NAME{step}=value{step} PATH=/opt/{step}/bin:${{PATH}}\nCOPY --chown=1000:1000 src/{step} ./{step}/\n\
                 RUN --mount=type=cache,target=/var/cache/apt,sharing=locked \\\n    apt-get update \\\n \
                 && apt-get install -y package{step}=${{VERSION}}\nLABEL part{step}=\"one two\" of=$VERSION"
            );
        }
        let _infallible =
            writeln!(text, "EXPOSE 80{stage}/tcp\nUSER app:app\nCMD [\"serve\", \"--port\", \"80{stage}\"]");
    }
    let mut missing = 200_usize.saturating_sub(text.lines().count());
    while missing > 0 {
        text.push_str("# a comment, as there are many\n");
        missing -= 1;
    }
    Source::new("Dockerfile", text)
}

/// The plan of [`dockerfile`], and its base image.
pub(crate) fn planned(request: &PlanRequest) -> (BuildPlan, ResolvedSources) {
    let parsed = parse(&dockerfile());
    let planned = match plan(&parsed.dockerfile, request) {
        Ok(planned) => planned,
        Err(error) => panic!("the Dockerfile is not sound: {:?}", error.diagnostics),
    };
    let mut resolved = ResolvedSources::default();
    for wanted in planned.missing(&ResolvedSources::default()) {
        let mut config = ImageConfig::default();
        config.rootfs.diff_ids = vec![Digest::sha256(b"layer")];
        resolved.insert(wanted, ResolvedImage { digest: Digest::sha256(b"image"), config });
    }
    (planned, resolved)
}

/// What [`planned`] lowers to.
pub(crate) fn lowered(request: &PlanRequest) -> Lowered {
    let (planned, resolved) = planned(request);
    match lower(&planned, &resolved) {
        Ok(lowered) => lowered,
        Err(error) => panic!("the plan is not sound: {}", error.diagnostic),
    }
}

/// The configuration of an image of forty layers.
pub(crate) fn config() -> Vec<u8> {
    let mut json = String::from(
        r#"{"architecture":"amd64","os":"linux","created":"2026-01-01T00:00:00Z","config":{"Env":["PATH=/usr/bin:/bin"],"Cmd":["sh"],"Labels":{"a":"b"}},"rootfs":{"type":"layers","diff_ids":["#,
    );
    let digests: Vec<String> = (0..40_u8).map(|layer| format!("\"{}\"", Digest::sha256(&[layer]))).collect();
    json.push_str(&digests.join(","));
    json.push_str("]},\"history\":[");
    let history: Vec<String> = (0..40)
        .map(|step| {
            format!(
                "{{\"created\":\"2026-01-01T00:00:00Z\",\"created_by\":\"RUN /bin/sh -c make step{step}\"}}"
            )
        })
        .collect();
    json.push_str(&history.join(","));
    json.push_str("]}");
    // What is measured must parse; the parser's own words say why if not.
    drop(sound(serde_json::from_slice::<ImageConfig>(json.as_bytes())));
    json.into_bytes()
}
