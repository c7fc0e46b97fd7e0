//! Our own syntax (`# syntax=stave/1`), from the file to the image.

use crate::daemon::Daemon;
use crate::environment::{Environment, registry};

#[test]
fn a_variable_is_what_a_command_writes() {
    let world = Environment::new();
    world.write("version", "1.2.3\n").dockerfile(
        "# syntax=stave/1\nFROM BUSYBOX\nWORKDIR /w\nCOPY version .\nUSER 1000\nENV VERSION=$(cat version)\n\
         RUN test \"$VERSION\" = 1.2.3 && test ! -e /run/stave\nCMD [\"sh\", \"-c\", \"echo is $VERSION\"]\n",
    );
    world.build("it").success();
    assert_eq!(world.run("it", &[]).trim(), "is 1.2.3");
    let again = world.build("it").success();
    assert!(again.cached() >= 3, "{}", again.stderr);
    world.write("version", "2\n");
    world.dockerfile(
        "# syntax=stave/1\nFROM BUSYBOX\nCOPY version .\nENV V=$(cat version) W=$V\nCMD echo $V\n",
    );
    world.build("it").success();
    assert_eq!(world.run("it", &[]).trim(), "2");
    world.dockerfile("# syntax=stave/1\nFROM BUSYBOX\nENV V=$(exit 3)\n");
    world.build("it").exits(1).says("exit code: 3").says("ENV V=$(exit 3)");
}

#[test]
fn files_are_included() {
    let world = Environment::new();
    world
        .write("parts/tools.df", "RUN echo tools > /tools\nINCLUDE more.df\n")
        .write("parts/more.df", "RUN echo more >> /tools\n")
        .dockerfile("# syntax=stave/1\nFROM BUSYBOX\nINCLUDE parts/tools.df\nCMD cat /tools\n");
    world.build("it").success();
    assert_eq!(world.run("it", &[]), "tools\nmore\n");
    world.write("parts/more.df", "RUN true\nRUM echo\n");
    world.build("it").exits(1).says("unknown instruction: RUM").says("parts/more.df:2:1");
    world.dockerfile("# syntax=stave/1\nFROM BUSYBOX\nINCLUDE gone.df\n");
    world.build("it").exits(1).says("cannot read the included file \"gone.df\"").says("Dockerfile:3");
    world.dockerfile("FROM BUSYBOX\nINCLUDE parts/tools.df\n");
    world.build("it").exits(1).says("unknown instruction: INCLUDE").says("# syntax=stave/1");
}

#[test]
fn clients_of_a_daemon_have_commands_included_files_and_named_images() {
    let world = Environment::new();
    world.write("version", "1.2.3\n").write("parts/tools.df", "COPY <<f /included\n$V\nf\n").dockerfile(
        "# syntax=stave/1\nFROM base AS made\nCOPY version .\nENV V=$(cat version) W=$V\nINCLUDE parts/tools.df\n\
         RUN echo \"$V\" > /v\nFROM scratch\nCOPY --from=made /v /included /\n",
    );
    let daemon = Daemon::start(&world, &[]);
    let (address, out) = (daemon.address(), world.path("out"));
    let (dest, image) = (out.display().to_string(), format!("{}/busybox", registry()));
    let context = format!("base=docker-image://{image}");
    let build =
        || world.stave(["build", "--builder", &address, "--build-context", &context, "-o", &dest, "."]);
    let text = |name: &str| std::fs::read_to_string(out.join(name)).expect("is there");
    build().success();
    assert_eq!((text("v"), text("included")), ("1.2.3\n".to_owned(), "1.2.3\n".to_owned()));
    world.write("version", "2\n");
    build().success();
    assert_eq!((text("v"), text("included")), ("2\n".to_owned(), "2\n".to_owned()));
    // The graph has the name as it was given; what is built is what was found for it.
    let graph = world.stave(["build", "--print", "llb", "--build-context", &context, "."]).success().stdout;
    assert!(graph.contains(&format!("\"docker-image://{image}:latest\"")), "{graph}");
    world.dockerfile("# syntax=stave/1\nFROM base\nENV V=$(exit 3)\n");
    build().exits(1).says("exit code: 3");
    daemon.stop(&world.root());
}

#[test]
fn sources_may_be_missing_and_config_taken_back() {
    let world = Environment::new();
    world.write("here", "h").write("dir/inner", "i").dockerfile(
        "# syntax=stave/1\nFROM BUSYBOX AS base\nENV A=1\nLABEL a=1 b=2\nVOLUME /v\nEXPOSE 80\n\
         RUN mkdir /d && echo x > /d/there\nFROM base\n\
         COPY --if-exists here gone no/such/file dir /to/\n\
         COPY --if-exists --from=base /d/there /d/gone /also/\n\
         UNSET ENV A\nUNSET LABEL b\nUNSET VOLUME /v\nUNSET EXPOSE\n\
         CMD find /to /also -type f | sort; echo \"A=$A\"\n",
    );
    world.build("it").success();
    assert_eq!(world.run("it", &[]), "/also/there\n/to/here\n/to/inner\nA=\n");
    let config = world.stave(["inspect", "it"]).success().stdout;
    assert!(
        !config.contains("\"b\"") && !config.contains("\"/v\"") && !config.contains("80/tcp"),
        "{config}"
    );
    world.dockerfile("FROM BUSYBOX\nCOPY --if-exists gone /\n");
    world.build("it").exits(1).says("unknown flag: --if-exists").says("# syntax=stave/1");
}
