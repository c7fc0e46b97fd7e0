//! Secrets that a build would give away with its image.
//!
//! Owns which parts of an image are looked at: layers made here (those that were pulled are others' affair), and every
//! text of the config. Must not know how values are recognised. Start with [`Engine::refuse_leaks`].

use stave_exporter::{ConfigDocument, Image};
use stave_oci::ImageConfig;
use stave_store::LayerId;
use stave_worker::{SecretLeak, Session};
use tokio_util::sync::CancellationToken;

use crate::{BuildError, Engine};

impl Engine {
    /// Fails if an image of a build with secrets holds the value of one of them, unless the build said not to look.
    pub(crate) async fn refuse_leaks(
        &self,
        session: &Session,
        images: &[Image],
        cancel: &CancellationToken,
    ) -> Result<(), BuildError> {
        if session.secrets.is_empty() || !session.confinement.secret_scan {
            return Ok(());
        }
        for image in images {
            if let ConfigDocument::Built(config) = &image.config
                && let Some(leak) = self.worker.find_secret_in_texts(session, &texts(config))
            {
                return Err(leak.into());
            }
            let made = image.layers.iter().filter(|layer| layer.blob.is_none());
            let layers: Vec<LayerId> = made.map(|layer| layer.layer).collect();
            let found = self.worker.find_secret(session, layers, cancel).await;
            if let Some(leak) = found.map_err(BuildError::Scan)? {
                return Err(leak.into());
            }
        }
        Ok(())
    }
}

impl From<SecretLeak> for BuildError {
    fn from(leak: SecretLeak) -> Self {
        Self::SecretLeak(Box::new(leak))
    }
}

/// What a config says, with words for where it says it.
fn texts(config: &ImageConfig) -> Vec<(String, String)> {
    let container = &config.config;
    let mut texts = Vec::new();
    let mut add = |what: &str, text: &str| texts.push((format!("the image's {what}"), text.to_owned()));
    for variable in &container.env {
        add(&format!("environment: `{}`", variable.split('=').next().unwrap_or_default()), variable);
    }
    for (name, value) in &container.labels {
        add(&format!("label `{name}`"), &format!("{name}={value}"));
    }
    let lists = [("ENTRYPOINT", &container.entrypoint), ("CMD", &container.cmd), ("SHELL", &container.shell)];
    for (what, list) in lists {
        add(what, &list.iter().flatten().map(String::as_str).collect::<Vec<_>>().join(" "));
    }
    if let Some(check) = &container.healthcheck {
        add("HEALTHCHECK", &check.test.join(" "));
    }
    for trigger in &container.on_build {
        add("ONBUILD", trigger);
    }
    for (what, text) in [
        ("USER", &container.user),
        ("WORKDIR", &container.working_dir),
        ("STOPSIGNAL", &container.stop_signal),
    ] {
        add(what, text);
    }
    for entry in &config.history {
        let text = serde_json::to_string(entry).unwrap_or_default();
        add(&format!("history: {text}"), &text);
    }
    texts
}
