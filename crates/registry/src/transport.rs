//! HTTP connections to one host: TLS trust, client certificates, proxies, timeouts, header bounds.
//!
//! Owns what a connection is made with; knows nothing of the distribution protocol. Start with [`Transport`].

use std::error::Error;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig as TlsConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use crate::client::ClientConfig;
use crate::config::{KeyPair, RegistryConfig};
use crate::endpoint::is_loopback;
use crate::error::{ErrorKind, TlsError};
use crate::limits::{Limits, MAX_HEADERS};

/// The connections of one host.
pub(crate) struct Transport {
    /// For the host itself.
    pub(crate) own: reqwest::Client,
    /// For hosts it redirects to: the same trust, but no client certificate.
    pub(crate) foreign: reqwest::Client,
}

impl Transport {
    pub(crate) fn new(host: &str, config: &ClientConfig) -> Result<Self, ErrorKind> {
        let table = config.registries.0.get(host).cloned().unwrap_or_default();
        let material = Material::load(&table)?;
        let proxied = !is_loopback(host);
        let build = |identity: Option<&Identity>| -> Result<reqwest::Client, TlsError> {
            http_client(material.tls(identity)?, config, proxied)
        };
        let foreign = build(None)?;
        let own = match &material.identity {
            Some(identity) => build(Some(identity))?,
            None => foreign.clone(),
        };
        Ok(Self { own, foreign })
    }
}

fn http_client(tls: TlsConfig, config: &ClientConfig, proxied: bool) -> Result<reqwest::Client, TlsError> {
    let Limits { connect_timeout, idle_timeout, .. } = config.limits;
    // HTTP/1.1 only, as BuildKit does: layers in parallel then get a connection each, not a share of one.
    let builder = reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .http1_only()
        .http1_max_headers(MAX_HEADERS)
        .user_agent(&config.user_agent)
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .referer(false)
        .connect_timeout(connect_timeout)
        .pool_idle_timeout(idle_timeout);
    // Nobody means this machine's own registry to be asked for through a proxy.
    let builder = if proxied { builder } else { builder.no_proxy() };
    builder.build().map_err(|error| TlsError::Setup(innermost(&error)))
}

struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    path: PathBuf,
}

struct Material {
    authorities: Vec<(PathBuf, CertificateDer<'static>)>,
    identity: Option<Identity>,
    insecure: bool,
}

impl Material {
    fn load(table: &RegistryConfig) -> Result<Self, TlsError> {
        let mut authority_files = table.ca.clone();
        let mut pairs = table.keypair.clone();
        for directory in &table.tlsconfigdir {
            let (authorities, found) = scan_directory(directory)?;
            authority_files.extend(authorities);
            pairs.extend(found);
        }
        let mut authorities = Vec::new();
        for path in authority_files {
            let found = certificates(&path)?;
            authorities.extend(found.into_iter().map(|certificate| (path.clone(), certificate)));
        }
        let identity = pairs.first().map(load_identity).transpose()?;
        Ok(Self { authorities, identity, insecure: table.insecure.unwrap_or(false) })
    }

    fn tls(&self, identity: Option<&Identity>) -> Result<TlsConfig, TlsError> {
        let provider = Arc::new(ring::default_provider());
        let builder = TlsConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| TlsError::Setup(error.to_string()))?;
        let verifier: Arc<dyn ServerCertVerifier> = if self.insecure {
            Arc::new(AcceptAny(provider))
        } else {
            Arc::new(OnFirstUse { own: self.own_roots()?, provider, verifier: OnceLock::new() })
        };
        let builder = builder.dangerous().with_custom_certificate_verifier(verifier);
        let Some(Identity { chain, key, path }) = identity else {
            return Ok(builder.with_no_client_auth());
        };
        builder
            .with_client_auth_cert(chain.clone(), key.clone_key())
            .map_err(|error| TlsError::Invalid { path: path.clone(), reason: error.to_string() })
    }

    /// The authorities that the configuration adds to the system's.
    fn own_roots(&self) -> Result<RootCertStore, TlsError> {
        let mut roots = RootCertStore::empty();
        for (path, certificate) in &self.authorities {
            roots
                .add(certificate.clone())
                .map_err(|error| TlsError::Invalid { path: path.clone(), reason: error.to_string() })?;
        }
        Ok(roots)
    }
}

/// Verification by authorities that are read when the first certificate is to be verified: a host that is
/// spoken to in the clear never shows one, and reading some hundred of them takes longer than a request.
#[derive(Debug)]
struct OnFirstUse {
    own: RootCertStore,
    provider: Arc<CryptoProvider>,
    verifier: OnceLock<Result<Arc<WebPkiServerVerifier>, String>>,
}

impl OnFirstUse {
    fn verifier(&self) -> Result<&WebPkiServerVerifier, rustls::Error> {
        let made = self.verifier.get_or_init(|| {
            let mut roots = RootCertStore::clone(&system_roots());
            roots.roots.extend(self.own.roots.iter().cloned());
            let builder =
                WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&self.provider));
            builder.build().map_err(|error| error.to_string())
        });
        made.as_deref().map_err(|reason| rustls::Error::General(reason.clone()))
    }
}

impl ServerCertVerifier for OnFirstUse {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.verifier()?.verify_server_cert(end_entity, intermediates, name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier()?.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier()?.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// The system's authorities, or the bundled ones on a machine that has none. Read once per process.
fn system_roots() -> Arc<RootCertStore> {
    static ROOTS: OnceLock<Arc<RootCertStore>> = OnceLock::new();
    Arc::clone(ROOTS.get_or_init(|| {
        let mut roots = RootCertStore::empty();
        let found = rustls_native_certs::load_native_certs();
        let (_, ignored) = roots.add_parsable_certificates(found.certs);
        tracing::debug!(count = roots.len(), ignored, errors = ?found.errors, "system certificate authorities");
        if roots.is_empty() {
            roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        }
        Arc::new(roots)
    }))
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    fs::read(path).map_err(|source| TlsError::Read { path: path.to_owned(), source })
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let text = read(path)?;
    let invalid = |error: rustls::pki_types::pem::Error| TlsError::Invalid {
        path: path.to_owned(),
        reason: error.to_string(),
    };
    let found: Vec<_> = CertificateDer::pem_slice_iter(&text).collect::<Result<_, _>>().map_err(invalid)?;
    if found.is_empty() {
        return Err(TlsError::Empty { path: path.to_owned(), what: "certificate" });
    }
    Ok(found)
}

fn load_identity(pair: &KeyPair) -> Result<Identity, TlsError> {
    let chain = certificates(&pair.cert)?;
    let text = read(&pair.key)?;
    let key = PrivateKeyDer::from_pem_slice(&text)
        .map_err(|_| TlsError::Empty { path: pair.key.clone(), what: "private key" })?;
    Ok(Identity { chain, key, path: pair.cert.clone() })
}

/// Docker's `certs.d/<host>` layout. Sorted, so that which pair is first does not depend on the file system.
fn scan_directory(directory: &Path) -> Result<(Vec<PathBuf>, Vec<KeyPair>), TlsError> {
    let failed = |source| TlsError::Read { path: directory.to_owned(), source };
    let mut paths = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed)? {
        paths.push(entry.map_err(failed)?.path());
    }
    paths.sort();
    let with = |extension: &'static str| {
        let is_wanted = move |path: &&PathBuf| path.extension().is_some_and(|found| found == extension);
        paths.iter().filter(is_wanted).cloned()
    };
    let pairs = with("cert").map(|cert| KeyPair { key: cert.with_extension("key"), cert }).collect();
    Ok((with("crt").collect(), pairs))
}

/// `insecure = true`: any certificate will do.
#[derive(Debug)]
struct AcceptAny(Arc<CryptoProvider>);

impl ServerCertVerifier for AcceptAny {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Why a request got no answer, in our kinds. `patience` is what a timeout waited for.
pub(crate) fn connection_fault(error: &reqwest::Error, patience: Duration) -> ErrorKind {
    let reason = innermost(error);
    if error.is_timeout() {
        return ErrorKind::Timeout(patience);
    }
    // A server that does not accept our certificate may say so only after the handshake.
    let is_certificate = matches!(
        tls_fault(error),
        Some(rustls::Error::InvalidCertificate(_) | rustls::Error::AlertReceived(_))
    );
    if error.is_dns() {
        // The resolver spells the whole query out.
        let reason = if reason.starts_with("no records found") { "no such host".to_owned() } else { reason };
        return ErrorKind::Connect { reason, is_dns: true, is_certificate };
    }
    if error.is_connect() || is_certificate {
        return ErrorKind::Connect { reason, is_dns: false, is_certificate };
    }
    ErrorKind::Interrupted(reason)
}

/// Whether the host answered, but not in TLS.
pub(crate) fn is_not_tls(error: &reqwest::Error) -> bool {
    matches!(tls_fault(error), Some(rustls::Error::InvalidMessage(_)))
}

/// Whether the host took the connection and ended it without a word: it may not speak TLS.
pub(crate) fn is_broken_off(error: &reqwest::Error) -> bool {
    let mut reasons = sources(error).filter_map(|source| source.downcast_ref::<io::Error>());
    let ends = |error: &io::Error| {
        matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset)
    };
    tls_fault(error).is_none() && error.is_connect() && reasons.any(ends)
}

fn tls_fault(error: &reqwest::Error) -> Option<&rustls::Error> {
    sources(error).find_map(|source| source.downcast_ref())
}

/// An error and all those beneath it. An `io::Error` hides the one it wraps: its source is that one's source.
fn sources(error: &reqwest::Error) -> impl Iterator<Item = &(dyn Error + 'static)> {
    std::iter::successors(Some(error as &(dyn Error + 'static)), beneath)
}

fn beneath<'a>(error: &&'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
    let error = *error;
    match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        Some(wrapped) => Some(wrapped),
        None => error.source(),
    }
}

/// The last error of a chain: the system's word for it. Outer ones repeat the URL, which can hold secrets.
fn innermost(error: &reqwest::Error) -> String {
    sources(error).last().map(ToString::to_string).unwrap_or_default()
}
