//! The daemon's web page in a real browser: what it shows of builds that run, that are over and that failed.
//!
//! The browser is Chromium, as `STAVE_TEST_CHROMIUM` or the search path has it; without one, nothing is tested here, and
//! that is said (`cargo xtask browser` installs one). With `STAVE_TEST_PICTURES` naming a folder, the pages are kept there
//! as pictures. Start with [`Page`].

mod devtools;

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};

use serde_json::Value;

use crate::environment::Environment;
use devtools::Browser;

/// A daemon that serves its page.
struct Served {
    child: Child,
    address: String,
    page: String,
}

impl Drop for Served {
    fn drop(&mut self) {
        // It may be over already.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl Served {
    fn start(environment: &Environment) -> Self {
        let address = format!("unix://{}", environment.path("daemon.sock").display());
        let mut command = environment.command();
        command.args(["daemon", "--addr", &address, "--web-addr", "tcp://127.0.0.1:0"]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("starts");
        let mut lines = BufReader::new(child.stderr.take().expect("is piped")).lines();
        let page = lines
            .by_ref()
            .map_while(Result::ok)
            .find_map(|line| line.strip_prefix("watched at ").map(str::to_owned));
        // Whatever it says then must not fill the pipe.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, address, page: page.expect("the page is served") }
    }
}

/// A page of the daemon in a browser.
struct Page {
    browser: Browser,
    served: Served,
}

impl Page {
    fn show(&mut self, part: &str) {
        // A change of the part behind `#` alone loads nothing anew.
        self.browser.open("about:blank");
        let address = format!("{}#{part}", self.served.page);
        self.browser.open(&address);
    }

    /// Opens the build of this title from the list, as a person does.
    fn open_build(&mut self, title: &str) {
        self.show("");
        let links = "[...document.querySelectorAll('#list a')]";
        let link = format!("{links}.find((link) => link.textContent === {title:?})");
        self.browser.wait_for(&link);
        self.browser.ask(&format!("{link}.click()"));
        self.browser.wait_for(&format!("document.getElementById('title').textContent === {title:?}"));
    }

    #[track_caller]
    fn text(&mut self, selector: &str) -> String {
        let texts =
            format!("[...document.querySelectorAll({selector:?})].map((one) => one.textContent).join('\\n')");
        self.browser.ask(&texts).as_str().unwrap_or_default().to_owned()
    }

    #[track_caller]
    fn says(&mut self, selector: &str, part: &str) {
        let text = self.text(selector);
        assert!(text.contains(part), "expected `{part}` in `{selector}`:\n{text}");
    }

    /// Keeps a picture, where somebody wants to look.
    fn keep(&mut self, name: &str) {
        let Some(folder) = std::env::var_os("STAVE_TEST_PICTURES") else { return };
        let picture = self.browser.picture();
        let place = std::path::Path::new(&folder).join(format!("{name}.png"));
        std::fs::write(place, picture).expect("the folder for pictures is there");
    }

    /// Nothing that a build says may become a part of the page.
    #[track_caller]
    fn is_clean(&mut self) {
        let foreign = "document.querySelectorAll('img, iframe, object, #build script, #list script, #disk script, main b').length";
        assert_eq!(self.browser.ask(foreign), Value::from(0));
        assert_eq!(self.browser.ask("document.title"), Value::from("stave"), "no script of a build has run");
    }
}

const GOOD: &str = "FROM BUSYBOX AS base
RUN echo '<b>bold</b><script>document.title=\"taken\"</script>' && echo base
FROM base AS one
COPY file /file
RUN printf '\\033[31mred\\033[0m \\342\\200\\256turned\\n' && cat /file
FROM base
COPY --from=one /file /file
";
const BAD: &str = "FROM BUSYBOX
RUN echo fine
# what is next fails
RUN echo '<img src=x onerror=\"document.title=1\">' \\
    && exit 7
CMD [\"sh\"]
";
const LIVE: &str = "FROM BUSYBOX\nRUN echo it has begun; sleep 1000\n";

#[test]
fn the_page_shows_builds_as_they_are() {
    let environment = Environment::new();
    let Some(browser) = Browser::start(&environment.path("profile")) else {
        eprintln!("LEFT OUT: there is no Chromium (`cargo xtask browser` installs it)");
        return;
    };
    let served = Served::start(&environment);
    let address = served.address.clone();
    let mut page = Page { browser, served };
    let build = |tag: &str, dockerfile: &str| {
        environment.dockerfile(dockerfile);
        environment.stave(["build", "--builder", &address, "-t", tag, "."])
    };
    environment.write("file", "first");
    build("app:1", GOOD).success();
    environment.write("file", "second");
    build("app:2", GOOD).success();
    build("app:bad", BAD).exits(1);

    past(&mut page);
    failed(&mut page);
    disk(&mut page);
    live(&mut page, &environment);
}

fn past(page: &mut Page) {
    page.open_build("docker.io/library/app:2");
    page.browser.wait_for("document.querySelectorAll('#timeline .why').length >= 2");
    page.says("#summary", "3 cached, 0 running, 0 failed");
    page.says("#timeline .row", "[one 1/2] COPY file /file");
    page.says("#timeline .why", "ran because files changed: file");
    page.says("#timeline .why", "the step before it made another result: [one 1/2] COPY file /file");
    page.says("#timeline .time", "cached");
    // The critical path goes through what had to run, not through what was cached.
    let on_path = "[...document.querySelectorAll('#timeline .row')].filter((row) => row.querySelector('rect.path'))\
                   .map((row) => row.querySelector('.name').textContent).join('\\n')";
    let on_path = page.browser.ask(on_path).as_str().unwrap_or_default().to_owned();
    assert!(on_path.contains("[one 2/2] RUN") && on_path.contains("exporting"), "{on_path}");
    assert!(!on_path.contains("[base 2/2] RUN"), "{on_path}");
    page.says("#graph text", "[one 1/2] COPY file");
    assert_ne!(page.browser.ask("document.querySelectorAll('#graph path').length"), Value::from(0));
    // Colours are taken out, and so is what turns the direction of writing.
    page.says("#log", "red turned\n");
    page.keep("past");
    page.browser.ask("[...document.querySelectorAll('.row .name')].find((name) => name.textContent.includes('load build context')).click()");
    page.browser.wait_for("document.getElementById('log').textContent === ''");
    page.is_clean();
    page.open_build("docker.io/library/app:1");
    page.browser.wait_for("document.getElementById('log').textContent.includes('base')");
    page.says("#log", "<b>bold</b><script>document.title=\"taken\"</script>");
    page.is_clean();
}

fn failed(page: &mut Page) {
    page.open_build("docker.io/library/app:bad");
    page.browser.wait_for("!document.getElementById('error').hidden");
    page.says("#error", "did not complete successfully: exit code: 7");
    page.says("#error .marked", "   4 > RUN echo '<img src=x onerror=\"document.title=1\">' \\");
    page.says("#error .marked", "   5 >     && exit 7");
    page.says("#error .line", "   3   # what is next fails");
    page.browser.wait_for("document.querySelectorAll('#timeline .why').length >= 1");
    page.says("#timeline .why", "ran because no earlier build of it is known");
    page.says("#log", "<img src=x onerror=\"document.title=1\">");
    page.keep("failed");
    page.is_clean();
    page.show("");
    page.browser.wait_for("document.querySelectorAll('#list tr').length > 3");
    page.says("#list .tag", "failed");
    page.keep("list");
    page.is_clean();
}

fn disk(page: &mut Page) {
    page.show("disk");
    page.browser.wait_for("document.querySelectorAll('#disk tr').length > 3");
    page.says("#totals", "could be freed");
    page.says("#disk td", "pulled from");
    page.keep("disk");
    page.is_clean();
}

fn live(page: &mut Page, environment: &Environment) {
    environment.dockerfile(LIVE);
    let address = page.served.address.clone();
    let mut client = environment.start(&["build", "--builder", &address, "-t", "app:live", "."]);
    page.show("");
    page.browser.wait_for("document.querySelector('#list .tag.running + *, #list .tag.running')");
    page.browser.ask("document.querySelector('#list tr:has(.tag.running) a').click()");
    page.browser.wait_for("document.getElementById('log').textContent.includes('it has begun')");
    page.browser
        .wait_for("document.getElementById('summary').textContent.includes('1 running, 0 failed — live')");
    page.keep("live");
    // Its client goes away: the page hears of the end without being asked anew.
    client.kill().expect("it runs");
    client.wait().expect("it ends");
    page.browser.wait_for("!document.getElementById('summary').textContent.includes('live')");
    page.browser.wait_for("!document.getElementById('error').hidden");
}
