//! Source policies of a build without a daemon.

use crate::environment::Environment;

#[test]
fn rules_about_digests_hold_for_images_that_are_here() {
    let world = Environment::new();
    world.dockerfile("FROM BUSYBOX\nCOPY Dockerfile /\n");
    world.build("x").success();
    world.dockerfile("FROM x\nCOPY Dockerfile /\n");
    let rules = |selector: &str| {
        let rules = format!(
            r#"{{"rules":[{{"action":"DENY","selector":{{"identifier":"docker-image://{selector}"}}}}]}}"#
        );
        let file = world.path("policy.json");
        std::fs::write(&file, rules).expect("is written");
        let mut command = world.command();
        command.args(["build", "."]).env("EXPERIMENTAL_BUILDKIT_SOURCE_POLICY", file);
        let output = command.output().expect("runs");
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (built, said) = rules("*@sha256:*");
    assert!(!built && said.contains("denied by policy"), "{said}");
    let (built, said) = rules("other@sha256:*");
    assert!(built, "{said}");
}
