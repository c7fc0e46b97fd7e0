//! The registry's side of TLS, from files.

use std::path::Path;
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};

/// What a registry on https shows and asks for: PEM files.
#[derive(Debug, Clone, Copy)]
pub struct Tls<'a> {
    /// The server's certificate.
    pub certificate: &'a Path,
    /// Its key.
    pub key: &'a Path,
    /// The authority of clients' certificates, if clients must show one.
    pub client_authority: Option<&'a Path>,
}

impl Tls<'_> {
    /// # Panics
    /// When the files do not hold what they should.
    pub(super) fn config(&self) -> Arc<ServerConfig> {
        let certificate =
            CertificateDer::from_pem_file(self.certificate).expect("the file holds a certificate");
        let key = PrivateKeyDer::from_pem_file(self.key).expect("the file holds a key");
        let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let builder =
            builder.with_safe_default_protocol_versions().expect("ring speaks the default versions");
        let builder = match self.client_authority {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let mut roots = RootCertStore::empty();
                let authority = CertificateDer::from_pem_file(path).expect("the file holds a certificate");
                roots.add(authority).expect("the certificate is an authority's");
                let provider = Arc::new(ring::default_provider());
                let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider).build();
                builder.with_client_cert_verifier(verifier.expect("there is an authority"))
            }
        };
        Arc::new(builder.with_single_cert(vec![certificate], key).expect("the key is the certificate's"))
    }
}
