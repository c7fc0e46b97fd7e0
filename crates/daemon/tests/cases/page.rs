//! The page in a real browser, where `chromedriver` and a Chromium are installed; elsewhere there is nothing to test.
//!
//! A build whose names and output are markup must show as text, with its error and graph. Speaks as much of the
//! WebDriver protocol as that takes. Start with [`Browser`].

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use stave_daemon::{Address, WebPage};

use crate::client::{Files, TestDaemon};

/// How long the page may take to show what there is.
const PATIENCE: Duration = Duration::from_secs(30);

/// A browser of this test.
struct Browser {
    driver: Child,
    port: u16,
    session: String,
}

impl Drop for Browser {
    fn drop(&mut self) {
        self.call("DELETE", &format!("/session/{}", self.session), &Value::Null);
        // It may be over already.
        self.driver.kill().ok();
        self.driver.wait().ok();
    }
}

impl Browser {
    /// `None` where there is none.
    fn start() -> Option<Self> {
        let mut driver = Command::new("chromedriver")
            .arg("--port=0")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        let said = BufReader::new(driver.stdout.take().expect("is piped"));
        let port = said.lines().map_while(Result::ok).find_map(|line| {
            let (_, port) = line.split_once("started successfully on port ")?;
            port.trim_end_matches('.').parse().ok()
        });
        let mut browser = Self { driver, port: port.expect("it says its port"), session: String::new() };
        let arguments = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"];
        let wanted = json!({ "goog:chromeOptions": { "args": arguments } });
        let made = browser.call("POST", "/session", &json!({ "capabilities": { "alwaysMatch": wanted } }));
        // A driver without its browser is none.
        browser.session = made["value"]["sessionId"].as_str()?.to_owned();
        Some(browser)
    }

    fn call(&self, method: &str, path: &str, body: &Value) -> Value {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).expect("it listens");
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
             content-length: {}\r\nconnection: close\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(head.as_bytes()).expect("is sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("is answered");
        let (_, body) = answer.split_once("\r\n\r\n").expect("an answer");
        serde_json::from_str(body).unwrap_or_default()
    }

    fn open(&self, address: &str) {
        self.call("POST", &format!("/session/{}/url", self.session), &json!({ "url": address }));
    }

    /// What a script returns in the page.
    fn ask(&self, script: &str) -> Value {
        let body = json!({ "script": format!("return {script}"), "args": [] });
        self.call("POST", &format!("/session/{}/execute/sync", self.session), &body)["value"].take()
    }

    #[track_caller]
    fn wait(&self, script: &str) {
        let begin = Instant::now();
        while self.ask(script) != json!(true) {
            let page = self.ask("document.body.innerText");
            assert!(begin.elapsed() < PATIENCE, "`{script}` never came true: {page}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn markup_of_a_build_is_text_in_the_page() {
    let daemon = TestDaemon::start_with(|config, _| {
        let address: Address = "tcp://127.0.0.1:0".parse().expect("an address");
        config.web = Some(WebPage { address, hosts: Vec::new() });
    })
    .await;
    let hostile = "<img/src=x/onerror=document.title='taken'>";
    let dockerfile =
        format!("FROM scratch AS one\nCOPY f /\nFROM one\nCOPY f /{hostile}\nCOPY {hostile} /\n");
    let mut client = daemon.client("s", "", Files::new(&[("f", "one")], &dockerfile)).await;
    client.build("<b>ref", "tar").await.expect_err("there is no such file");
    let address = daemon.watched[0].clone();
    let looked = tokio::task::spawn_blocking(move || {
        let Some(browser) = Browser::start() else { return };
        browser.open(&address);
        browser.wait("document.querySelectorAll('#list tbody tr').length === 1");
        browser.ask("document.querySelector('#list a').click()");
        browser.wait("!document.getElementById('error').hidden");
        browser.wait("document.querySelectorAll('#graph rect.box').length >= 3");
        browser.wait("document.querySelectorAll('#timeline .row').length >= 3");
        browser.wait("document.querySelectorAll('#timeline rect.path').length >= 1");
        browser.wait("document.querySelector('#error .marked').textContent.includes('<img/src=x')");
        // Nothing became an element, nothing ran.
        assert_eq!(browser.ask("document.querySelectorAll('img, b, script:not([src])').length"), json!(0));
        assert_eq!(browser.ask("document.title"), json!("stave"));
        browser.open(&format!("{address}#disk"));
        browser.wait("document.getElementById('totals') !== null");
    });
    looked.await.expect("no panic");
    daemon.stop().await;
}
