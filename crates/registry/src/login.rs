//! `login` and `logout`: credentials are tried before they are stored.

use crate::{Client, Credential, RegistryError, StoredIn};

impl Client {
    /// Tries a credential at a registry host and, if it is accepted, stores it in the keychain.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Unauthorized`] if it is refused; whatever else keeps the registry from answering; a keychain
    /// that cannot be written.
    pub async fn login(&self, registry: &str, credential: &Credential) -> Result<StoredIn, RegistryError> {
        let _ = (registry, credential);
        todo!()
    }

    /// Forgets the credential for a registry host; says whether there was one.
    ///
    /// # Errors
    /// A keychain that cannot be read or written.
    pub async fn logout(&self, registry: &str) -> Result<bool, RegistryError> {
        let _ = registry;
        todo!()
    }
}
