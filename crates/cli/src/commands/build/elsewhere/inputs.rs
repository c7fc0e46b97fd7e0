//! The context, the Dockerfile and the options of the front end. Start with [`read`] and [`attributes`].

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use stave_daemon::client::UPLOAD;
use stave_engine::looks_like_archive;
use stave_frontend_dockerfile::Source;
use stave_frontend_dockerfile::input::ContextForm;
use stave_frontend_dockerfile::request::NoCache;

use super::super::arguments::{Arguments, NetworkMode};
use super::super::request::Wishes;
use crate::report::Failure;

/// Bytes of the largest context on standard input.
const MAX_UPLOAD: u64 = 1 << 30;
const DOCKERFILE: &str = "Dockerfile";

/// What the build reads.
#[derive(Debug, Default)]
pub(super) struct Inputs {
    pub(super) attributes: BTreeMap<String, String>,
    pub(super) directories: BTreeMap<String, PathBuf>,
    pub(super) upload: Option<Arc<Vec<u8>>>,
    /// A Dockerfile that had no file; it lives as long as the build.
    _made: Vec<Made>,
}

/// A directory of ours with one file.
#[derive(Debug)]
struct Made(PathBuf);

impl Drop for Made {
    fn drop(&mut self) {
        // Somebody may have tidied up.
        fs::remove_dir_all(&self.0).ok();
    }
}

/// What was read already.
pub(super) struct Given<'a> {
    /// The context, if it is on this machine by now.
    pub(super) context: Option<&'a Path>,
    pub(super) dockerfile: &'a Source,
}

/// Finds what the flags name.
pub(super) fn read(arguments: &Arguments, given: Option<&Given<'_>>) -> Result<Inputs, Failure> {
    let mut inputs = Inputs::default();
    let context = &arguments.context;
    let text = context.to_string_lossy().into_owned();
    let form = ContextForm::of(&text);
    let form = form.map_err(|error| Failure::message(format!("unable to prepare context: {error}")))?;
    let is_stdin = context == Path::new("-");
    let is_here = !is_stdin && (context.is_dir() || form == ContextForm::Path);
    if is_stdin {
        inputs.standard_input(arguments, given)?;
    } else if is_here {
        if !context.is_dir() {
            return Err(Failure::message(format!("unable to prepare context: path \"{text}\" not found")));
        }
        inputs.directories.insert("context".to_owned(), context.clone());
    } else {
        inputs.attribute("context", &text);
    }
    match (&arguments.file, given) {
        (Some(file), given) if file == Path::new("-") => {
            if is_stdin {
                return Err(Failure::usage("can't use stdin for both build context and dockerfile"));
            }
            let text = match given {
                Some(given) => given.dockerfile.text.clone().into_bytes(),
                None => standard_input()?,
            };
            inputs.dockerfile(&text)?;
        }
        (Some(file), _) if is_here => inputs.dockerfile_at(file)?,
        (Some(file), _) => inputs.attribute("filename", &file.to_string_lossy()),
        (None, _) if is_here => inputs.dockerfile_at(&context.join(DOCKERFILE))?,
        (None, _) => {}
    }
    inputs.named(&arguments.build_contexts)?;
    Ok(inputs)
}

impl Inputs {
    fn attribute(&mut self, key: &str, value: &str) {
        self.attributes.insert(key.to_owned(), value.to_owned());
    }

    fn dockerfile_at(&mut self, file: &Path) -> Result<(), Failure> {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if !folder.is_dir() {
            let words = "failed to read dockerfile: open {}: no such file or directory";
            return Err(Failure::message(words.replace("{}", &file.display().to_string())));
        }
        self.attribute("filename", &name);
        self.directories.insert("dockerfile".to_owned(), folder.to_owned());
        Ok(())
    }

    /// Gives a Dockerfile that has no file a directory.
    fn dockerfile(&mut self, text: &[u8]) -> Result<(), Failure> {
        let failed =
            |error: std::io::Error| Failure::message(format!("cannot keep the Dockerfile aside: {error}"));
        let folder = std::env::temp_dir().join(format!("stave-{}-{}", std::process::id(), fastrand::u64(..)));
        fs::DirBuilder::new().mode(0o700).create(&folder).map_err(failed)?;
        let made = Made(folder.clone());
        fs::write(folder.join(DOCKERFILE), text).map_err(failed)?;
        self.attribute("filename", DOCKERFILE);
        self.directories.insert("dockerfile".to_owned(), folder);
        self._made.push(made);
        Ok(())
    }

    /// An archive is a context, anything else a Dockerfile without one.
    fn standard_input(&mut self, arguments: &Arguments, given: Option<&Given<'_>>) -> Result<(), Failure> {
        if let Some(given) = given {
            self.dockerfile(given.dockerfile.text.as_bytes())?;
            return match given.context {
                Some(context) => {
                    self.directories.insert("context".to_owned(), context.to_owned());
                    Ok(())
                }
                None => self.no_context(),
            };
        }
        let bytes = standard_input()?;
        if looks_like_archive(&bytes) {
            self.attribute("context", UPLOAD);
            self.upload = Some(Arc::new(bytes));
            return Ok(());
        }
        if arguments.file.is_some() {
            let words = "standard input is a Dockerfile, and `-f` names another one";
            return Err(Failure::message(format!("invalid argument: {words}")));
        }
        self.dockerfile(&bytes)?;
        self.no_context()
    }

    /// A context with nothing in it.
    fn no_context(&mut self) -> Result<(), Failure> {
        let failed = |error: std::io::Error| Failure::message(format!("cannot make a context: {error}"));
        let folder = std::env::temp_dir().join(format!("stave-{}-{}", std::process::id(), fastrand::u64(..)));
        fs::DirBuilder::new().mode(0o700).create(&folder).map_err(failed)?;
        self._made.push(Made(folder.clone()));
        self.directories.insert("context".to_owned(), folder);
        Ok(())
    }

    fn named(&mut self, contexts: &[String]) -> Result<(), Failure> {
        for text in contexts {
            // Their form was checked already.
            let Some((name, source)) = text.split_once('=') else { continue };
            let form = ContextForm::of(source);
            let is_image = source.starts_with("docker-image://");
            match form {
                Ok(ContextForm::Path) if !is_image => {
                    self.attribute(&format!("context:{name}"), &format!("local:{name}"));
                    self.directories.insert(name.to_owned(), source.into());
                }
                _ => self.attribute(&format!("context:{name}"), source),
            }
        }
        Ok(())
    }
}

fn standard_input() -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let read = std::io::stdin().take(MAX_UPLOAD + 1).read_to_end(&mut bytes);
    read.map_err(|error| Failure::message(format!("failed to read standard input: {error}")))?;
    match bytes.len() as u64 > MAX_UPLOAD {
        true => Err(Failure::message(format!("standard input is longer than {MAX_UPLOAD} bytes"))),
        false => Ok(bytes),
    }
}

/// The options that say how to build.
pub(super) fn attributes(
    arguments: &Arguments,
    wishes: &Wishes,
) -> Result<BTreeMap<String, String>, Failure> {
    let plan = &wishes.plan;
    let mut found = BTreeMap::new();
    let mut add = |key: &str, value: String| drop(found.insert(key.to_owned(), value));
    for (name, value) in &plan.build_args {
        add(&format!("build-arg:{name}"), value.clone());
    }
    for (name, value) in &plan.labels {
        add(&format!("label:{name}"), value.clone());
    }
    if let Some(target) = &plan.target {
        add("target", target.clone());
    }
    if !wishes.platforms.is_empty() {
        let platforms: Vec<_> = wishes.platforms.iter().map(ToString::to_string).collect();
        add("platform", platforms.join(","));
    }
    match &plan.no_cache {
        NoCache::Nothing => {}
        NoCache::Everything => add("no-cache", String::new()),
        NoCache::Stages(stages) => add("no-cache", stages.join(",")),
    }
    if arguments.pull {
        add("image-resolve-mode", "pull".to_owned());
    }
    if !plan.extra_hosts.is_empty() {
        let hosts = plan.extra_hosts.iter().map(|host| format!("{}={}", host.host, host.address));
        add("add-hosts", hosts.collect::<Vec<_>>().join(","));
    }
    match arguments.network {
        NetworkMode::Host => add("force-network-mode", "host".to_owned()),
        NetworkMode::None => add("force-network-mode", "none".to_owned()),
        _ => {}
    }
    if plan.shm_size > 0 {
        add("shm-size", plan.shm_size.to_string());
    }
    if !plan.ulimits.is_empty() {
        let limits = plan.ulimits.iter().map(|(name, soft, hard)| format!("{name}={soft}:{hard}"));
        add("ulimit", limits.collect::<Vec<_>>().join(","));
    }
    if let Some(hostname) = &plan.hostname {
        add("hostname", hostname.clone());
    }
    Ok(found)
}
