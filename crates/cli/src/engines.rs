//! Where other engines listen, as docker's client knows it: contexts and `DOCKER_HOST`.
//!
//! Owns the look-up of a context by its name. Must not know what is sent there. Start with [`address`].

use std::fs;
use std::path::Path;

use serde::Deserialize;
use stave_exporter::{EngineAddress, EngineAddressError};
use stave_oci::Digest;

use crate::report::Failure;
use crate::state;

/// The context that stands for `DOCKER_HOST`, else for docker's usual socket.
const DEFAULT: &str = "default";
/// Docker's usual socket.
const DEFAULT_ADDRESS: &str = "unix:///var/run/docker.sock";

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Context {
    name: String,
    #[serde(default)]
    endpoints: Endpoints,
}

#[derive(Default, Deserialize)]
struct Endpoints {
    docker: Option<Endpoint>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Endpoint {
    #[serde(default)]
    host: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct DockerConfig {
    #[serde(default)]
    current_context: Option<String>,
}

/// What the environment says of engines.
struct Variables {
    /// `DOCKER_HOST`
    host: Option<String>,
    /// `DOCKER_CONTEXT`
    context: Option<String>,
    /// `DOCKER_TLS_VERIFY`
    tls: bool,
}

/// The address of an engine by the name of a docker context; none means the one in use, and an address itself.
pub(crate) fn address(name: &str) -> Result<EngineAddress, Failure> {
    let config = state::docker_config();
    let folder = config.parent().unwrap_or(Path::new("/"));
    let text = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let (host_of, context) = (text("DOCKER_HOST"), text("DOCKER_CONTEXT"));
    let variables = Variables { host: host_of, context, tls: text("DOCKER_TLS_VERIFY").is_some() };
    let host = host(name, &variables, folder)?;
    host.parse().map_err(|error: EngineAddressError| Failure::new(&error).with_hint(
        "an engine elsewhere can be had through a forwarded socket, as of `ssh -L /tmp/docker.sock:/var/run/docker.sock HOST`"
            .to_owned(),
    ))
}

/// What `name` means, where docker's client has its files in `folder`.
fn host(name: &str, variables: &Variables, folder: &Path) -> Result<String, Failure> {
    if name.contains("://") {
        return Ok(name.to_owned());
    }
    let no_tls =
        |name: &str| Err(Failure::usage(format!("{name} asks for TLS, which is not supported here")));
    let current = || {
        let text = fs::read(folder.join("config.json")).ok()?;
        serde_json::from_slice::<DockerConfig>(&text).ok()?.current_context
    };
    // Which context is in use: docker's rules.
    let name = match (name, &variables.host) {
        ("", Some(_)) => DEFAULT.to_owned(),
        ("", None) => variables.context.clone().or_else(current).unwrap_or_default(),
        (name, _) => name.to_owned(),
    };
    if name.is_empty() || name == DEFAULT {
        return match &variables.host {
            Some(host) if host.starts_with("tcp:") && variables.tls => no_tls("`DOCKER_TLS_VERIFY`"),
            host => Ok(host.clone().unwrap_or_else(|| DEFAULT_ADDRESS.to_owned())),
        };
    }
    let id = Digest::sha256(name.as_bytes());
    let path = folder.join("contexts/meta").join(id.hex()).join("meta.json");
    let unknown =
        || Failure::usage(format!("docker context `{name}` is not there: {} cannot be used", path.display()));
    let text = fs::read(&path).map_err(|_| unknown())?;
    let context: Context = serde_json::from_slice(&text).map_err(|_| unknown())?;
    let endpoint = context.endpoints.docker.filter(|_| context.name == name).ok_or_else(unknown)?;
    if folder.join("contexts/tls").join(id.hex()).exists() {
        return no_tls(&format!("docker context `{name}`"));
    }
    Ok(if endpoint.host.is_empty() { DEFAULT_ADDRESS.to_owned() } else { endpoint.host })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contexts_are_dockers() {
        let folder = tempfile::tempdir().expect("a folder");
        let meta = folder.path().join("contexts/meta").join(Digest::sha256(b"remote").hex());
        fs::create_dir_all(&meta).expect("creates");
        let text = r#"{"Name":"remote","Metadata":{},"Endpoints":{"docker":{"Host":"tcp://h:2375","SkipTLSVerify":false}}}"#;
        fs::write(meta.join("meta.json"), text).expect("writes");
        let host = |name: &str, variable: Option<&str>| {
            let variables = Variables { host: variable.map(str::to_owned), context: None, tls: true };
            host(name, &variables, folder.path()).map_err(|failure| failure.message)
        };
        assert_eq!(host("remote", Some("unix:///x")).as_deref(), Ok("tcp://h:2375"));
        assert_eq!(host("unix:///y", Some("unix:///x")).as_deref(), Ok("unix:///y"));
        assert_eq!(host("", Some("unix:///x")).as_deref(), Ok("unix:///x"));
        assert_eq!(host("default", Some("unix:///x")).as_deref(), Ok("unix:///x"));
        assert_eq!(host("", None).as_deref(), Ok(DEFAULT_ADDRESS));
        fs::write(folder.path().join("config.json"), r#"{"currentContext":"remote"}"#).expect("writes");
        assert_eq!(host("", None).as_deref(), Ok("tcp://h:2375"));
        assert_eq!(host("default", None).as_deref(), Ok(DEFAULT_ADDRESS));
        assert!(host("other", None).expect_err("is not there").contains("docker context `other`"));
        assert!(host("default", Some("tcp://h:2376")).expect_err("TLS").contains("DOCKER_TLS_VERIFY"));
        let tls = folder.path().join("contexts/tls").join(Digest::sha256(b"remote").hex());
        fs::create_dir_all(tls).expect("creates");
        assert!(host("remote", None).expect_err("TLS").contains("asks for TLS"));
    }
}
