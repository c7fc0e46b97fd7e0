//! A client that takes one host as it is: plain HTTP, or a certificate nobody vouches for.

use stave_oci::Reference;

use crate::{Client, ClientConfig};

impl Client {
    /// A client that does not check who answers for the registry of `name`; other hosts as before. Which of the two
    /// it speaks is found out by asking: plain HTTP first, as BuildKit does.
    pub async fn trusting(&self, name: &Reference) -> Self {
        let host = name.registry();
        let table = |http: bool| {
            let mut config: ClientConfig = self.shared.config.clone();
            let entry = config.registries.0.entry(host.to_owned()).or_default();
            (entry.http, entry.insecure) = (Some(http), Some(true));
            // The tables were checked when this client was made, and no host was added but one of a name.
            Self::new(config).unwrap_or_else(|_| self.clone())
        };
        let plain = table(true);
        match plain.resolve_digest(name).await {
            Ok(_) => plain,
            Err(error) if error.is_not_found() || error.is_access_denied() => plain,
            Err(_) => table(false),
        }
    }
}
