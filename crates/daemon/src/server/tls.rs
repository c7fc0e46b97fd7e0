//! TLS of the TCP listeners: certificates that can be replaced while the daemon runs, and handshakes that hold nobody up.
//!
//! Owns which clients get a connection: those whose certificate the authority signed, or, where tokens are taken, also
//! those who show none. Whoever is refused is counted and taken down. Must not know who a client then is: that is
//! [`crate::identity`]'s. Start with [`Tls`].

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use futures::{Stream, StreamExt as _, stream};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::accepted;
use crate::config::TlsIdentity;
use crate::state::Shared;

/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Handshakes at a time; who comes then waits in the kernel.
const MAX_HANDSHAKES: usize = 1000;

/// Why certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsError {
    /// A file that is no PEM, or has none of what it should have.
    #[error("{what}: {reason}")]
    Pem {
        /// Which of the three.
        what: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// Certificate and key, or the authority, are not fit.
    #[error("{0}")]
    Unfit(String),
}

/// What a listener shows and wants to see; replaced whole, for connections from then on.
#[derive(Clone)]
pub(crate) struct Tls(Arc<RwLock<Arc<ServerConfig>>>);

impl Tls {
    pub(crate) fn new(identity: &TlsIdentity, takes_tokens: bool) -> Result<Self, TlsError> {
        Ok(Self(Arc::new(RwLock::new(Arc::new(config(identity, takes_tokens)?)))))
    }

    /// Puts others in force; what cannot be used changes nothing.
    pub(crate) fn replace(&self, identity: &TlsIdentity, takes_tokens: bool) -> Result<(), TlsError> {
        let config = Arc::new(config(identity, takes_tokens)?);
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = config;
        Ok(())
    }

    fn acceptor(&self) -> TlsAcceptor {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner)).into()
    }
}

fn config(identity: &TlsIdentity, takes_tokens: bool) -> Result<ServerConfig, TlsError> {
    let unfit = |error: &dyn std::error::Error| TlsError::Unfit(error.to_string());
    let mut roots = RootCertStore::empty();
    for authority in certificates("the authority of clients", &identity.client_authority)? {
        roots.add(authority).map_err(|error| unfit(&error))?;
    }
    let chain = certificates("the certificate", &identity.certificate)?;
    let key = PrivateKeyDer::from_pem_slice(&identity.key);
    let key = key.map_err(|error| TlsError::Pem { what: "the key", reason: error.to_string() })?;
    let provider = Arc::new(ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
    let verifier = if takes_tokens { verifier.allow_unauthenticated() } else { verifier };
    let verifier = verifier.build().map_err(|error| unfit(&error))?;
    let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| unfit(&error))?.with_client_cert_verifier(verifier);
    let mut config = builder.with_single_cert(chain, key).map_err(|error| unfit(&error))?;
    config.alpn_protocols.push(b"h2".to_vec());
    Ok(config)
}

fn certificates(what: &'static str, text: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text).collect();
    let found = found.map_err(|error| TlsError::Pem { what, reason: error.to_string() })?;
    match found.is_empty() {
        true => Err(TlsError::Pem { what, reason: "no certificate in it".to_owned() }),
        false => Ok(found),
    }
}

/// The connections of a listener whose handshakes came to something, in the order in which they did.
pub(super) fn connections(
    listener: TcpListener,
    tls: Tls,
    shared: Arc<Shared>,
) -> impl Stream<Item = io::Result<TlsStream<TcpStream>>> {
    let arrivals = stream::unfold(listener, |listener| async {
        Some((accepted(listener.accept().await).await, listener))
    });
    let shaken = arrivals.map(move |arrived| {
        let (acceptor, shared) = (tls.acceptor(), Arc::clone(&shared));
        async move {
            let (stream, from) = arrived.ok()?;
            stream.set_nodelay(true).ok();
            shake(&acceptor, stream, from, &shared).await
        }
    });
    shaken.buffer_unordered(MAX_HANDSHAKES).filter_map(async |stream| stream.map(Ok))
}

async fn shake(
    acceptor: &TlsAcceptor,
    stream: TcpStream,
    from: SocketAddr,
    shared: &Shared,
) -> Option<TlsStream<TcpStream>> {
    let why = match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => return Some(stream),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "no handshake in time".to_owned(),
    };
    tracing::debug!(%from, %why, "a connection was refused");
    shared.metrics.refused("tls");
    shared.audit.refused(&from.ip().to_string(), "connect", &why);
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_certificate_is_said() {
        let identity = TlsIdentity {
            certificate: b"nonsense".to_vec(),
            key: Vec::new(),
            client_authority: b"-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n".to_vec(),
        };
        let refused = |identity: &TlsIdentity| config(identity, false).expect_err("is refused").to_string();
        assert!(!refused(&identity).is_empty());
        let empty = TlsIdentity { client_authority: Vec::new(), ..identity };
        assert_eq!(refused(&empty), "the authority of clients: no certificate in it");
    }
}
