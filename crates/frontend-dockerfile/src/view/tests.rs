//! Trees and plans of small files as JSON.

use serde_json::json;
use stave_oci::Platform;

use crate::{PlanRequest, Source, parse, plan};

#[test]
fn a_tree() {
    let text = "# syntax=docker/dockerfile:1\nARG V=1\nFROM --platform=$P img:$V AS One\n# about\nRUN --mount=type=cache,target=/c \
                --network=none a \\\n  b\nCOPY --from=x --link a b /c/\nENV A=1 B=$V\nCMD [\"x\"]\n\
                HEALTHCHECK --retries=3 CMD y\nRUN <<E\nz\nE\n";
    let tree = parse(&Source::new("Dockerfile", text)).dockerfile.to_json();
    let expected = json!({
        "name": "Dockerfile",
        "escape": "\\",
        "directives": [{"name": "syntax", "value": "docker/dockerfile:1", "line": 1}],
        "arguments": [
            {"instruction": "ARG", "lines": [2, 2], "text": "ARG V=1", "arguments": [{"name": "V", "default": "1"}]},
        ],
        "stages": [{
            "name": "one",
            "from": {
                "instruction": "FROM", "lines": [3, 3], "text": "FROM --platform=$P img:$V AS One",
                "base": "img:$V", "platform": "$P", "as": "One",
            },
            "instructions": [
                {
                    "instruction": "RUN", "lines": [5, 6],
                    "text": "RUN --mount=type=cache,target=/c --network=none a   b", "comments": ["about"],
                    "command": {"shell": "a   b"}, "mounts": ["type=cache,target=/c"], "network": "none",
                },
                {
                    "instruction": "COPY", "lines": [7, 7], "text": "COPY --from=x --link a b /c/", "from": "x",
                    "sources": ["a", "b"], "destination": "/c/", "link": true,
                },
                {
                    "instruction": "ENV", "lines": [8, 8], "text": "ENV A=1 B=$V",
                    "variables": [{"name": "A", "value": "1"}, {"name": "B", "value": "$V"}],
                },
                {"instruction": "CMD", "lines": [9, 9], "text": "CMD [\"x\"]", "command": {"exec": ["x"]}},
                {
                    "instruction": "HEALTHCHECK", "lines": [10, 10], "text": "HEALTHCHECK --retries=3 CMD y",
                    "command": {"shell": "y"}, "retries": 3,
                },
                {
                    "instruction": "RUN", "lines": [11, 13], "text": "RUN <<E", "command": {"shell": "<<E"},
                    "heredocs": [{"name": "E", "expand": true, "content": "z\n"}],
                },
            ],
        }],
    });
    assert_eq!(tree, expected, "{tree:#}");
}

#[test]
fn a_plan() {
    let text =
        "FROM img AS a\nFROM scratch\nONBUILD RUN x\nFROM other\nCOPY --from=a /x /\nCOPY --from=tool /y /\n";
    let request = PlanRequest::new(Platform::new("linux", "amd64", None));
    let plan = plan(&parse(&Source::new("Dockerfile", text)).dockerfile, &request).expect("sound").to_json();
    assert_eq!(plan["target"], "2");
    assert_eq!(plan["platform"], "linux/amd64");
    assert_eq!(plan["arguments"]["TARGETARCH"], "amd64");
    let image = |name: &str| json!({"reference": name, "platform": "linux/amd64"});
    let names =
        ["docker.io/library/img:latest", "docker.io/library/other:latest", "docker.io/library/tool:latest"];
    assert_eq!(plan["images"], json!(names.map(image)));
    let expected = json!([
        {"stage": "a", "base": {"image": names[0]}, "needed": true, "lines": [1, 1]},
        {
            "stage": "1", "base": {"scratch": true}, "needed": false, "lines": [2, 2],
            "instructions": [{"text": "ONBUILD RUN x", "lines": [3, 3]}],
        },
        {
            "stage": "2", "base": {"image": names[1]}, "needed": true, "lines": [4, 4],
            "instructions": [
                {"text": "COPY --from=a /x /", "lines": [5, 5], "takes_from": ["a"]},
                {"text": "COPY --from=tool /y /", "lines": [6, 6], "takes_from": ["tool"]},
            ],
        },
        {"stage": "tool", "base": {"image": names[2]}, "needed": true, "lines": [6, 6]},
    ]);
    assert_eq!(plan["stages"], expected, "{plan:#}");
}
