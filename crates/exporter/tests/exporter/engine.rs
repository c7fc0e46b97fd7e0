//! Images to other engines, each a script of docker's API: what is asked, what is sent, and what is made of answers.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::json;
use stave_exporter::{EngineName, EngineTarget, ExportTarget, Image, ImageFormat};
use stave_oci::Digest;

use crate::{Bench, names};

/// An engine of the kind under test.
#[derive(Debug, Default)]
struct Script {
    /// Ids and layers of its images.
    images: Vec<(String, Vec<String>)>,
    /// It keeps content, not layers.
    containerd: bool,
    /// It needs every layer's file, whatever it has.
    strict: bool,
    /// What it says instead of taking an archive.
    refusal: Option<(u16, &'static str)>,
    /// It says that it took an archive, and has nothing.
    forgetful: bool,
    /// Closes the connection after so many bytes of an archive.
    hangs_up_after: Option<usize>,
    requests: Vec<String>,
    /// The files of each archive.
    archives: Vec<BTreeSet<String>>,
}

struct Engine {
    address: String,
    script: Arc<Mutex<Script>>,
}

impl Engine {
    fn start(script: Script) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = format!("tcp://{}", listener.local_addr().expect("has one"));
        let script = Arc::new(Mutex::new(script));
        let shared = Arc::clone(&script);
        // Ends with the test's process.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                drop(answer(stream, &shared));
            }
        });
        Self { address, script }
    }

    fn script(&self) -> MutexGuard<'_, Script> {
        self.script.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn target(&self, list: &[&str]) -> ExportTarget {
        let engine = EngineName::At(self.address.parse().expect("an address"));
        ExportTarget::Engine(EngineTarget { engine, names: names(list), format: ImageFormat::default() })
    }

    fn asked(&self, part: &str) -> usize {
        self.script().requests.iter().filter(|request| request.contains(part)).count()
    }
}

fn answer(stream: TcpStream, script: &Mutex<Script>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut is_chunked = false;
    loop {
        let mut header = String::new();
        reader.read_line(&mut header)?;
        is_chunked |= header.to_ascii_lowercase().starts_with("transfer-encoding: chunked");
        if header.trim().is_empty() {
            break;
        }
    }
    let mut script = script.lock().unwrap_or_else(PoisonError::into_inner);
    script.requests.push(path.clone());
    let body = if is_chunked {
        match chunks(&mut reader, script.hangs_up_after)? {
            Some(body) => body,
            None => return Ok(()),
        }
    } else {
        Vec::new()
    };
    let (code, text) = respond(&mut script, &path, &body);
    let mut stream = stream;
    write!(stream, "HTTP/1.1 {code} X\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{text}", text.len())
}

/// The body, or nothing if the connection is to break.
fn chunks(reader: &mut impl std::io::BufRead, limit: Option<usize>) -> std::io::Result<Option<Vec<u8>>> {
    let mut body = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let length = usize::from_str_radix(line.trim(), 16).unwrap_or(0);
        let mut piece = vec![0; length + 2];
        reader.read_exact(&mut piece)?;
        body.extend_from_slice(&piece[..length]);
        if limit.is_some_and(|limit| body.len() >= limit) {
            return Ok(None);
        }
        if length == 0 {
            return Ok(Some(body));
        }
    }
}

fn respond(script: &mut Script, path: &str, body: &[u8]) -> (u16, String) {
    let path = path.strip_prefix("/v1.39/").unwrap_or(path);
    match path {
        "info" if script.containerd => {
            (200, json!({"DriverStatus": [["driver-type", "io.containerd.snapshotter.v1"]]}).to_string())
        }
        "info" => (200, json!({"DriverStatus": null}).to_string()),
        "images/json?all=1" => {
            let ids: Vec<_> = script.images.iter().map(|(id, _)| json!({"Id": id})).collect();
            (200, json!(ids).to_string())
        }
        "images/load?quiet=1" => load(script, body),
        _ if path.contains("/tag?") => (201, String::new()),
        _ => {
            let id = path.trim_start_matches("images/").trim_end_matches("/json");
            match script.images.iter().find(|(known, _)| known == id) {
                Some((id, layers)) => (200, json!({"Id": id, "RootFS": {"Layers": layers}}).to_string()),
                None => (404, json!({"message": "No such image"}).to_string()),
            }
        }
    }
}

fn load(script: &mut Script, body: &[u8]) -> (u16, String) {
    let mut archive = tar::Archive::new(body);
    let mut files = BTreeSet::new();
    let mut manifest = String::new();
    for entry in archive.entries().expect("a tar") {
        let mut entry = entry.expect("an entry");
        let name = entry.path().expect("a path").display().to_string();
        if name == "manifest.json" {
            entry.read_to_string(&mut manifest).expect("reads");
        }
        files.insert(name);
    }
    script.archives.push(files.clone());
    if let Some((code, text)) = script.refusal {
        return (code, text.to_owned());
    }
    let manifest: serde_json::Value = serde_json::from_str(&manifest).expect("JSON");
    let layers = manifest[0]["Layers"].as_array().expect("layers");
    let missing = layers.iter().find(|path| !files.contains(path.as_str().expect("a path")));
    if let (true, Some(missing)) = (script.strict, missing) {
        return (
            200,
            json!({"errorDetail": {}, "error": format!("open {missing}: no such file")}).to_string(),
        );
    }
    if !script.forgetful {
        let id = manifest[0]["Config"].as_str().expect("a path").replace("blobs/sha256/", "sha256:");
        script.images.push((id, Vec::new()));
    }
    (200, json!({"stream": "Loaded image: app:1\n"}).to_string() + "\r\n")
}

/// The diff ids of an image, which are the digests of its layers' files, too.
async fn diff_ids(bench: &Bench, image: &Image) -> Vec<String> {
    let path = bench.path("whole.tar");
    let target = ExportTarget::Docker(crate::tar_target(&path, &[]));
    let id =
        bench.exporter.export(std::slice::from_ref(image), &target).await.expect("exports").config_digest;
    let mut archive = tar::Archive::new(std::fs::File::open(&path).expect("opens"));
    let config = format!("blobs/sha256/{}", id.expect("has one").hex());
    for entry in archive.entries().expect("a tar") {
        let mut entry = entry.expect("an entry");
        if entry.path().expect("a path").display().to_string() == config {
            let mut text = String::new();
            entry.read_to_string(&mut text).expect("reads");
            let config: stave_oci::ImageConfig = serde_json::from_str(&text).expect("JSON");
            return config.rootfs.diff_ids.iter().map(ToString::to_string).collect();
        }
    }
    panic!("no config");
}

fn layer_file(diff_id: &str) -> String {
    diff_id.replace("sha256:", "blobs/sha256/")
}

async fn send(bench: &Bench, image: &Image, engine: &Engine) -> Result<u64, String> {
    let sent =
        bench.exporter.export(std::slice::from_ref(image), &engine.target(&["app:1", "r:5000/b"])).await;
    sent.map(|exported| exported.size).map_err(|error| {
        std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source())
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(": ")
    })
}

#[tokio::test]
async fn only_layers_that_are_not_there_are_sent() {
    let bench = Bench::new();
    let image = bench.built();
    let layers = diff_ids(&bench, &image).await;
    let base = (Digest::sha256(b"base").to_string(), vec![layers[0].clone(), "sha256:other".to_owned()]);
    let engine = Engine::start(Script { images: vec![base], ..Script::default() });
    let part = send(&bench, &image, &engine).await.expect("is taken");
    let archive = engine.script().archives[0].clone();
    assert!(!archive.contains(&layer_file(&layers[0])) && archive.contains(&layer_file(&layers[1])));
    let empty = Engine::start(Script::default());
    let whole = send(&bench, &image, &empty).await.expect("is taken");
    assert!(part + (3 << 20) <= whole, "{part} of {whole}");
    // Now it is there, and only named.
    assert_eq!(send(&bench, &image, &engine).await, Ok(0));
    assert_eq!((engine.asked("images/load"), engine.asked("/tag?repo=docker.io/library/app&tag=1")), (1, 1));
    assert_eq!(engine.asked("/tag?repo=r%3A5000/b&tag=latest"), 1);
}

#[tokio::test]
async fn an_engine_that_wants_every_layer_gets_them() {
    let bench = Bench::new();
    let image = bench.built();
    let layers = diff_ids(&bench, &image).await;
    let base = || vec![(Digest::sha256(b"base").to_string(), vec![layers[0].clone()])];
    let engine = Engine::start(Script { images: base(), strict: true, ..Script::default() });
    send(&bench, &image, &engine).await.expect("is taken the second time");
    let archives = engine.script().archives.clone();
    assert_eq!(
        archives.iter().map(|files| files.contains(&layer_file(&layers[0]))).collect::<Vec<_>>(),
        [false, true]
    );
    // One that would not notice what is missing is sent everything at once.
    let engine = Engine::start(Script { images: base(), containerd: true, ..Script::default() });
    send(&bench, &image, &engine).await.expect("is taken");
    assert!(engine.script().archives[0].contains(&layer_file(&layers[0])));
}

#[tokio::test]
async fn engines_that_fail_are_named() {
    let bench = Bench::new();
    let image = bench.built();
    let refuses = |code, text| Script { refusal: Some((code, text)), ..Script::default() };
    let cases = [
        (refuses(500, r#"{"message":"disk\nfull"}"#), "500 Internal Server Error: disk full"),
        (
            refuses(200, r#"{"stream":"a"}{"errorDetail":{"message":"x"},"error":"no\u001b[2J"}"#),
            "it says: no[2J",
        ),
        (refuses(200, "<html>"), "malformed answer"),
        (Script { forgetful: true, ..Script::default() }, "does not have it"),
        (Script { hangs_up_after: Some(1 << 20), ..Script::default() }, "connection broke"),
    ];
    for (script, expected) in cases {
        let engine = Engine::start(script);
        let error = send(&bench, &image, &engine).await.expect_err(expected);
        assert!(error.contains(expected) && error.contains(&engine.address), "{error}");
    }
    let gone = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("has one");
    let engine = Engine { address: format!("tcp://{gone}"), script: Arc::default() };
    let error = send(&bench, &image, &engine).await.expect_err("nobody is there");
    assert!(error.contains("cannot connect"), "{error}");
}
