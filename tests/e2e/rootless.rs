//! Ordinary users: the program without root, with one id and with many, and what `info` says of it.
//!
//! Run as root these tests become a user for each call; run as a user they are that user.

use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;

use crate::environment::{Environment, program, tool, with_images};

/// Nobody has this id, so nobody granted it any others.
const LONELY: u32 = 61_234;

/// A user's world: a home of its own, and a copy of the program that the user may execute.
struct Home {
    world: Environment,
    program: PathBuf,
}

impl Home {
    fn new() -> Self {
        let world = Environment::new();
        let copy = world.path("stave");
        std::fs::copy(program(), &copy).expect("copies the program");
        let home = Self { world, program: copy };
        if is_root() {
            let folder = home.world.path("");
            tool("chown", &["-R", &LONELY.to_string(), folder.to_str().expect("is text")]);
            tool("chmod", &["755", folder.to_str().expect("is text")]);
        }
        home
    }

    /// Writes the Dockerfile.
    fn dockerfile(&self, text: &str) -> &Self {
        self.world.write("Dockerfile", &with_images(text));
        self
    }

    /// Calls the program as the user; what it printed on standard output and error.
    #[track_caller]
    fn stave(&self, words: &[&str]) -> (String, String) {
        let mut command = Command::new(&self.program);
        command.args(words).current_dir(self.world.context()).env_clear();
        command
            .env("HOME", self.world.path(""))
            .env("PATH", "/usr/bin:/bin")
            .env("BUILDKIT_PROGRESS", "plain");
        if is_root() {
            command.uid(LONELY).gid(LONELY);
        }
        let output = command.output().expect("the program starts");
        let [stdout, stderr] =
            [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned());
        assert!(output.status.success(), "{words:?}\n{stdout}\n{stderr}");
        (stdout, stderr)
    }

    /// Names, owners and kinds in the image's last layer, as tar lists them.
    fn layer(&self, image: &str) -> String {
        let folder = self.world.path("layout");
        let output = format!("type=oci,dest={},tar=false", folder.display());
        self.stave(&["build", "-q", "-t", image, "-o", &output, "."]);
        let read = |path: PathBuf| -> serde_json::Value {
            serde_json::from_slice(&std::fs::read(path).expect("a document")).expect("JSON")
        };
        let blob = |digest: &serde_json::Value| {
            folder.join("blobs").join(digest.as_str().expect("a digest").replace(':', "/"))
        };
        let mut document = read(folder.join("index.json"));
        while document["manifests"].is_array() {
            document = read(blob(&document["manifests"][0]["digest"]));
        }
        let layers = document["layers"].as_array().expect("layers").clone();
        let last = blob(&layers.last().expect("a layer")["digest"]);
        tool("tar", &["--numeric-owner", "-tvzf", last.to_str().expect("is text")])
    }
}

fn is_root() -> bool {
    tool("id", &["-u"]).trim() == "0"
}

#[track_caller]
fn has_line(listing: &str, start: &str, end: &str) {
    let found = listing.lines().any(|line| line.starts_with(start) && line.ends_with(end));
    assert!(found, "expected `{start} … {end}` in:\n{listing}");
}

#[test]
fn an_ordinary_user_builds_and_runs() {
    let home = Home::new();
    home.dockerfile(
        "FROM BUSYBOX AS base\nRUN echo app:x:1234:1234::/home/app:/bin/sh >> /etc/passwd && echo app:x:1234: >> /etc/group && mkdir /data && echo x > /data/own && \
         chown -R app:app /data && chmod 4755 /data/own\n\
         FROM base\nCOPY --from=base /data /copy\nCOPY --chown=5:6 Dockerfile /given\n\
         USER app\nWORKDIR /home/app\nRUN id -u > uid\n",
    );
    let image = home.stave(&["build", "-q", "-t", "user", "."]).0;
    // One id or all of them: it is the same image, to the byte.
    assert_eq!(home.world.stave(["build", "-q", "."]).success().stdout, image);
    assert_eq!(home.stave(&["run", "--rm", "user", "sh", "-c", "id -u; cat uid"]).0, "1234\n1234\n");
    assert_eq!(home.stave(&["run", "--rm", "-u", "0", "user", "id", "-u"]).0, "0\n");
}

#[test]
fn a_layer_has_the_owners_it_was_given() {
    let home = Home::new();
    home.dockerfile(
        "FROM BUSYBOX\nRUN mkdir /d && echo x > /d/f && chown 5:6 /d/f && chown 7:8 /d && echo y > /d/plain \
         && chmod 2750 /d/f && rm /etc/group\n",
    );
    let listing = home.layer("owners");
    has_line(&listing, "drwxr-xr-x 7/8", "d/");
    has_line(&listing, "-rwxr-s--- 5/6", "d/f");
    has_line(&listing, "-rw-r--r-- 0/0", "d/plain");
    has_line(&listing, "-", "etc/.wh.group");
    home.dockerfile(
        "FROM BUSYBOX AS a\nRUN echo x > /f && chown 5:6 /f\nFROM BUSYBOX\nCOPY --from=a /f /g\n",
    );
    has_line(&home.layer("copied"), "-rw-r--r-- 5/6", "g");
    home.dockerfile("FROM BUSYBOX\nCOPY --chown=70:80 Dockerfile /g\n");
    has_line(&home.layer("given"), "-rw-r--r-- 70/80", "g");
}

#[test]
fn what_a_user_replaces_is_the_users() {
    let home = Home::new();
    home.dockerfile(
        "FROM BUSYBOX\nRUN echo app:x:70:80::/:/bin/sh >> /etc/passwd && mkdir /d /d/anew && cd /d && for f in replaced again changed \
         shared moved anew/old theirs; do echo x > $f; done && chmod 666 changed shared && ln shared second && chown 5:6 theirs && chmod 777 /d /d/anew\n\
         USER app\nRUN cd /d && sed -i s/x/y/ replaced && sed -i s/x/y/ theirs && rm again && echo y > again && \
         echo z >> changed && echo z >> shared && mv moved there && rm -r anew && \
         mkdir anew && echo y > anew/old && ln -s a link\n",
    );
    let listing = home.layer("replaced");
    for (mode, owner, name) in [
        ("-rw-r--r--", "70/80", "d/replaced"),
        ("-rw-r--r--", "70/80", "d/again"),
        ("-rw-r--r--", "70/80", "d/theirs"),
        ("-rw-rw-rw-", "0/0", "d/changed"),
        ("-rw-rw-rw-", "0/0", "d/shared"),
        ("-rw-r--r--", "0/0", "d/there"),
        ("drwxr-xr-x", "70/80", "d/anew/"),
        ("-rw-r--r--", "70/80", "d/anew/old"),
        ("drwxrwxrwx", "0/0", "d/"),
    ] {
        has_line(&listing, &format!("{mode} {owner} "), &format!(" {name}"));
    }
}

#[test]
fn packages_install_without_root() {
    let home = Home::new();
    // What package managers do: change to a user of theirs, make files of other owners, use file capabilities.
    home.dockerfile(
        "FROM REGISTRY/debian\nRUN perl -e '$) = \"65534 65534\"; $> = 65534; exit 0' && \
         install -o 33 -g 33 -m 640 /etc/passwd /srv/file && install -d -o 101 /srv/dir && \
         dpkg --version > /dev/null\n",
    );
    let listing = home.layer("packages");
    has_line(&listing, "-rw-r----- 33/33", "srv/file");
    has_line(&listing, "drwxr-xr-x 101/0", "srv/dir/");
}

#[test]
fn info_says_what_there_is_and_what_would_lift_it() {
    let home = Home::new();
    let said: serde_json::Value =
        serde_json::from_str(&home.stave(&["info", "--format", "json"]).0).expect("JSON");
    let value = said["Privileges"]["Value"].as_str().expect("a value");
    assert!(value.starts_with("user namespace with"), "{said}");
    if is_root() {
        assert!(value.contains("a single id"), "{said}");
        assert!(
            said["Privileges"]["LiftedBy"][0].as_str().expect("a word").contains("/etc/subuid"),
            "{said}"
        );
        let state = said["StateDirectory"].as_str().expect("a path");
        assert!(state.ends_with("/.local/share/stave"), "{said}");
        let own: serde_json::Value =
            serde_json::from_str(&home.world.stave(["info", "--format", "json"]).success().stdout)
                .expect("JSON");
        if own["Privileges"]["Value"] == "root" {
            assert_eq!(own["Snapshots"]["Value"], "overlay");
        }
    }
    assert_eq!(said["Snapshots"]["Value"], "overlay (userxattr)");
    let (lines, _) = home.stave(&["info"]);
    assert!(lines.contains("\nPrivileges: user namespace with"), "{lines}");
}

#[test]
fn a_users_files_are_nobody_elses() {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
    let home = Home::new();
    home.dockerfile("FROM BUSYBOX\nRUN echo x > /f && chmod 666 /f\n");
    home.stave(&["build", "-t", "private", "."]);
    let state = home.world.path(".local/share/stave");
    let metadata = std::fs::metadata(&state).expect("the state directory");
    assert_eq!(metadata.permissions().mode() & 0o777, 0o700);
    if is_root() {
        assert_eq!(metadata.uid(), LONELY);
    }
    let folder = home.world.path("out");
    home.stave(&["build", "-o", folder.to_str().expect("is text"), "."]);
    assert_eq!(std::fs::metadata(folder.join("f")).expect("the file").uid(), metadata.uid());
}

#[test]
fn a_network_of_a_steps_own_needs_no_privileges() {
    let world = Environment::new();
    let has = |program: &str| std::path::Path::new("/usr/bin").join(program).is_file();
    if !has("slirp4netns") || std::fs::File::options().write(true).open("/dev/net/tun").is_err() {
        world.dockerfile("FROM BUSYBOX\nRUN true\n");
        let refused = world.stave(["build", "--network", "slirp4netns", "."]).exits(1);
        refused.says("network `slirp4netns` is not available: ");
        return;
    }
    let listener = std::net::TcpListener::bind("0.0.0.0:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    // Any address of this machine but loopback, which the program keeps from the step.
    let routed = std::net::UdpSocket::bind("0.0.0.0:0").and_then(|socket| {
        socket.connect("192.0.2.1:9")?;
        socket.local_addr()
    });
    let Ok(address) = routed.map(|address| address.ip()) else {
        eprintln!("not run: this machine has no address");
        return;
    };
    let greeter = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a caller");
        std::io::Write::write_all(&mut stream, b"greetings\n").expect("a listener");
    });
    world.dockerfile(&format!(
        "FROM BUSYBOX\nRUN ls /sys/class/net > /devices; grep nameserver /etc/resolv.conf > /server; \
         nc {address} {port} < /dev/null > /said; ! nc -w 1 127.0.0.1 {port} < /dev/null\n"
    ));
    world.stave(["build", "--network", "slirp4netns", "-t", "own", "."]).success();
    greeter.join().expect("it was called");
    let seen = world.run("own", &["cat", "/devices", "/server", "/said"]);
    assert_eq!(seen, "lo\ntap0\nnameserver 10.0.2.3\ngreetings\n");
    world.stave(["run", "--rm", "--network", "slirp4netns", "own", "true"]).success();
}
