//! A headless browser, driven over the pipe that Chromium offers: JSON messages, each ended by a zero byte.
//!
//! Knows nothing of pages. Start with [`Browser::start`].

use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use base64::Engine as _;
use serde_json::{Value, json};

/// How long the browser may take for anything.
const PATIENCE: Duration = Duration::from_secs(30);

/// A browser with one page; it ends with this.
pub(super) struct Browser {
    child: Child,
    to: ChildStdin,
    from: Receiver<Vec<u8>>,
    session: Option<String>,
    number: u64,
}

impl Browser {
    /// The first of the programs that is there, its profile in `folder`; `None` without any.
    pub(super) fn start(folder: &Path) -> Option<Self> {
        let named = std::env::var("STAVE_TEST_CHROMIUM").ok();
        let usual = ["chromium", "chromium-browser", "google-chrome"].map(str::to_owned);
        let is_there = |name: &String| {
            let version = Command::new(name).arg("--version").stderr(Stdio::null()).output();
            version.is_ok_and(|output| output.status.success())
        };
        let program = named.into_iter().chain(usual).find(is_there)?;
        // The browser reads from descriptor 3 and writes to 4.
        let mut command = Command::new("sh");
        command.args(["-c", "exec 3<&0 4>&1; exec \"$@\" </dev/null >/dev/null 2>&1", "sh", &program]);
        command.args(["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]);
        command.args(["--no-first-run", "--no-proxy-server", "--remote-debugging-pipe"]);
        command.args(["--hide-scrollbars", "--window-size=1280,1000"]);
        command.arg(format!("--user-data-dir={}", folder.display())).arg("about:blank");
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("starts");
        let (to, from) = (child.stdin.take().expect("is piped"), child.stdout.take().expect("is piped"));
        let mut browser = Self { child, to, from: messages(from), session: None, number: 0 };
        let target = browser.call("Target.createTarget", &json!({ "url": "about:blank" }));
        let attach = json!({ "targetId": target["targetId"], "flatten": true });
        let session = browser.call("Target.attachToTarget", &attach);
        browser.session = session["sessionId"].as_str().map(str::to_owned);
        Some(browser)
    }

    /// Goes to an address.
    pub(super) fn open(&mut self, address: &str) {
        let went = self.call("Page.navigate", &json!({ "url": address }));
        assert_eq!(went["errorText"], Value::Null, "{address}");
    }

    /// What an expression is in the page.
    #[track_caller]
    pub(super) fn ask(&mut self, expression: &str) -> Value {
        let wanted = json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let answer = self.call("Runtime.evaluate", &wanted);
        assert_eq!(answer["exceptionDetails"], Value::Null, "{expression}");
        answer["result"]["value"].clone()
    }

    /// Waits until an expression holds. The page may be between two addresses meanwhile.
    #[track_caller]
    pub(super) fn wait_for(&mut self, expression: &str) {
        let begin = Instant::now();
        loop {
            let held = self.answer(
                "Runtime.evaluate",
                &json!({ "expression": format!("Boolean({expression})"), "returnByValue": true }),
            );
            // Between two pages there is nothing to ask: an error is "not yet".
            if held["result"]["result"]["value"] == true {
                return;
            }
            if begin.elapsed() > PATIENCE {
                let page = self.ask("document.body.innerText");
                panic!("`{expression}` does not hold; the page says:\n{}", page.as_str().unwrap_or_default());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The page as a PNG.
    pub(super) fn picture(&mut self) -> Vec<u8> {
        let picture = self.call("Page.captureScreenshot", &json!({ "captureBeyondViewport": true }));
        let text = picture["data"].as_str().expect("a picture");
        base64::engine::general_purpose::STANDARD.decode(text).expect("is base64")
    }

    #[track_caller]
    fn call(&mut self, method: &str, parameters: &Value) -> Value {
        let answer = self.answer(method, parameters);
        assert_eq!(answer["error"], Value::Null, "{method}");
        answer["result"].clone()
    }

    /// What the browser says to a request, be it a result or an error.
    #[track_caller]
    fn answer(&mut self, method: &str, parameters: &Value) -> Value {
        self.number += 1;
        let mut message = json!({ "id": self.number, "method": method, "params": parameters });
        if let Some(session) = &self.session {
            message["sessionId"] = session.as_str().into();
        }
        let mut text = message.to_string().into_bytes();
        text.push(0);
        self.to.write_all(&text).expect("the browser reads");
        loop {
            let answer = self.from.recv_timeout(PATIENCE);
            let answer = answer.unwrap_or_else(|error| panic!("no answer to {method}: {error}"));
            let answer: Value = serde_json::from_slice(&answer).expect("is JSON");
            // Events come in between.
            if answer["id"] == self.number {
                return answer;
            }
        }
    }
}

/// What the browser says, read by a thread of its own that ends with it.
fn messages(from: impl Read + Send + 'static) -> Receiver<Vec<u8>> {
    let (sender, said) = channel();
    std::thread::spawn(move || {
        for message in BufReader::new(from).split(0).map_while(Result::ok) {
            if sender.send(message).is_err() {
                return;
            }
        }
    });
    said
}

impl Drop for Browser {
    fn drop(&mut self) {
        // It may be over already.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
