//! A client whose registries' certificates were read when it was made: files that change or break later change nothing
//! until somebody says so. For programs that live long. Start with [`Client::with_registries`].

use std::collections::HashMap;
use std::sync::Arc;

use crate::Client;
use crate::client::ClientConfig;
use crate::config::{ConfigError, RegistryTables};
use crate::transport::Transport;

impl Client {
    /// This client, with the authorities, certificates and keys that its tables name read now. Clients with other
    /// credentials that are made from it share what was read, and the connections to these hosts.
    ///
    /// # Errors
    /// [`ConfigError`]: a file that cannot be used.
    pub fn loaded(&self) -> Result<Self, ConfigError> {
        self.with_registries(self.shared.config.registries.clone())
    }

    /// The same for these tables instead.
    ///
    /// # Errors
    /// [`ConfigError`]: also a host or mirror in the tables that is not one.
    pub fn with_registries(&self, registries: RegistryTables) -> Result<Self, ConfigError> {
        let config = ClientConfig { registries, ..self.shared.config.clone() };
        config.registries.check()?;
        let mut configured = HashMap::new();
        for host in config.registries.0.keys() {
            let transport = Transport::new(host, &config).map_err(|error| ConfigError::Certificates {
                registry: host.clone(),
                reason: reasons(&error),
            })?;
            configured.insert(host.clone(), Arc::new(transport));
        }
        Ok(Self::made_of(config, Arc::new(configured)))
    }
}

/// An error with its causes, in one line.
fn reasons(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    let mut words: Vec<String> = causes.map(ToString::to_string).collect();
    // Some tell their cause themselves.
    words.dedup_by(|cause, word| word.contains(cause.as_str()));
    words.join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Keychain, Limits};

    fn client() -> Client {
        Client::new(ClientConfig {
            registries: RegistryTables::default(),
            keychain: Keychain::anonymous(),
            limits: Limits::default(),
            user_agent: "test".to_owned(),
        })
        .expect("is a client")
    }

    fn tables(authority: &std::path::Path) -> RegistryTables {
        let text = format!("[registry.\"registry.example\"]\nca = [{:?}]\n", authority.display().to_string());
        RegistryTables::parse(&text).expect("is a table")
    }

    #[test]
    fn files_are_read_when_it_is_made_and_not_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("ca.pem");
        let refused = client().with_registries(tables(&file)).expect_err("no such file").to_string();
        assert!(refused.contains("registry.example") && refused.contains("ca.pem"), "{refused}");
        std::fs::write(&file, "nonsense").expect("is written");
        client().with_registries(tables(&file)).expect_err("no certificate");

        let authority = rustls_native_certs::load_native_certs().certs.into_iter().next();
        // A machine without authorities has none to test with.
        let Some(authority) = authority else { return };
        let text = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, &authority);
        let pem = format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n");
        std::fs::write(&file, pem).expect("is written");
        let made = client().with_registries(tables(&file)).expect("is fit");
        std::fs::remove_file(&file).expect("is removed");
        let other = made.with_keychain(Keychain::anonymous());
        let shared = other.shared.transport("registry.example").expect("was read before");
        assert!(Arc::ptr_eq(&shared, &made.shared.transport("registry.example").expect("the same")));
    }
}
