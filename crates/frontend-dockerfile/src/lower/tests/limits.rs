//! Hostile and random Dockerfiles: lowering ends, in bounds, without a panic.

use proptest::prelude::*;

use super::*;

#[test]
fn values_cannot_fill_the_memory() {
    let doubling = format!("FROM a\nENV X=0123456789\n{}", "ENV X=$X$X\n".repeat(40));
    let error = try_lower(&doubling, &request()).expect_err("too long");
    assert!(error.contains("values longer than 1048576 bytes"), "{error}");
    let steps =
        format!("FROM a\nENV X={}\nENV Y=$X$X$X$X$X$X$X$X\n{}", "x".repeat(60_000), "RUN x\n".repeat(600));
    let error = try_lower(&steps, &request()).expect_err("too much");
    assert!(error.contains("bytes of variables and history"), "{error}");
}

proptest! {
    #[test]
    fn lowering_never_panics(pieces in proptest::collection::vec(0..PIECES.len(), 0..12)) {
        let lines = pieces.into_iter().map(|at| PIECES[at]);
        let text = std::iter::once("FROM a AS first").chain(lines).collect::<Vec<_>>().join("\n");
        if let Ok(lowered) = try_lower(&text, &request()) {
            let wire = lowered.definition.to_wire();
            prop_assert_eq!(Definition::from_wire(&wire), Ok(lowered.definition));
        }
    }
}

/// Lines that go together in many ways.
const PIECES: [&str; 22] = [
    "FROM first",
    "FROM scratch AS second",
    "FROM trigger",
    "COPY --from=first /a /b",
    "COPY --from=0 --link --chown=a:b a b/ .",
    "COPY --parents a/./b ../c",
    "ADD git@a.test:b.git https://a.test/b.git?x=1 /",
    "ADD --checksum=$X https://a.test/%zz /",
    "RUN --mount=from=second,target=$X true",
    "RUN --mount=type=secret,target=x,env= --mount=type=ssh,target=/s true",
    "RUN --mount=type=cache,target=..,uid=5 true",
    "RUN <<E\n#!x\nE",
    "COPY <<$X <<\"/y\" /\n$X\n$X\n/y\n/y",
    "ENV X=${X:-/} Y=${X//a/b}",
    "ARG X=$Y Z",
    "WORKDIR $X",
    "USER $X",
    "EXPOSE $X 1-3",
    "ONBUILD RUN x",
    "HEALTHCHECK --retries=3 CMD []",
    "ENTRYPOINT []",
    "VOLUME $Y /x",
];
