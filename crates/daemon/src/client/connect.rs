//! The way to a daemon. Start with [`connect`].

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity, Uri};

/// How long a connection may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// Between two signs of life, and how long one may take.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// Bytes of HTTP/2 content on their way, per stream.
const WINDOW: u32 = 1 << 20;

/// Where a daemon listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DaemonAddress {
    /// `unix://PATH`
    Unix(PathBuf),
    /// `tcp://HOST:PORT`
    Tcp {
        /// A name or an address; one of IPv6 without brackets.
        host: String,
        /// The port.
        port: u16,
    },
}

/// What a client shows and wants to see, all PEM.
#[derive(Clone, Default)]
pub struct ClientTls {
    /// The authority that signed the daemon's certificate.
    pub authority: Vec<u8>,
    /// The client's certificate and key.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
    /// The name in the daemon's certificate; `None` for its host.
    pub server_name: Option<String>,
}

impl std::fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ClientTls")
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// A text that is no address.
    #[error("invalid address `{0}`: expected `unix://PATH` or `tcp://HOST:PORT`")]
    Address(String),
    /// Nobody answers there, or not as this client wants it.
    #[error("cannot connect to `{place}`: {reason}")]
    Connect {
        /// Where.
        place: String,
        /// Why.
        reason: String,
    },
    /// Certificates for a socket of this machine.
    #[error("certificates are for `tcp://` addresses only")]
    TlsOverUnix,
}

impl FromStr for DaemonAddress {
    type Err = ConnectError;

    fn from_str(text: &str) -> Result<Self, ConnectError> {
        let invalid = || ConnectError::Address(text.chars().take(256).collect());
        if let Some(path) = text.strip_prefix("unix://") {
            return (!path.is_empty()).then(|| Self::Unix(path.into())).ok_or_else(invalid);
        }
        let address = text.strip_prefix("tcp://").ok_or_else(invalid)?;
        let (host, port) = address.rsplit_once(':').ok_or_else(invalid)?;
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let port = port.parse().map_err(|_| invalid())?;
        let is_name = |letter: char| letter.is_ascii_alphanumeric() || ".-_:".contains(letter);
        match !host.is_empty() && host.chars().all(is_name) {
            true => Ok(Self::Tcp { host: host.to_owned(), port }),
            false => Err(invalid()),
        }
    }
}

impl std::fmt::Display for DaemonAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp { host, port } if host.contains(':') => write!(f, "tcp://[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "tcp://{host}:{port}"),
        }
    }
}

pub(super) async fn connect(
    address: &DaemonAddress,
    tls: Option<ClientTls>,
) -> Result<Channel, ConnectError> {
    let place = address.to_string();
    let failed = |error: tonic::transport::Error| ConnectError::Connect {
        place: place.clone(),
        reason: crate::failure::one_line(&error),
    };
    let settings = |endpoint: Endpoint| {
        endpoint
            .connect_timeout(PATIENCE)
            .http2_keep_alive_interval(KEEPALIVE)
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(4 * WINDOW)
    };
    match (address, tls) {
        (DaemonAddress::Unix(_), Some(_)) => Err(ConnectError::TlsOverUnix),
        (DaemonAddress::Unix(path), None) => {
            let path = path.clone();
            let connector = tower::service_fn(move |_: Uri| {
                let path = path.clone();
                async move { tokio::net::UnixStream::connect(path).await.map(TokioIo::new) }
            });
            let endpoint = settings(Endpoint::from_static("http://localhost"));
            endpoint.connect_with_connector(connector).await.map_err(failed)
        }
        (DaemonAddress::Tcp { host, port }, tls) => {
            let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
            let scheme = if tls.is_some() { "https" } else { "http" };
            let endpoint = Endpoint::from_shared(format!("{scheme}://{host}:{port}")).map_err(failed)?;
            let mut endpoint = settings(endpoint);
            if let Some(tls) = tls {
                endpoint = endpoint.tls_config(config(tls)).map_err(failed)?;
            }
            endpoint.connect().await.map_err(failed)
        }
    }
}

fn config(tls: ClientTls) -> ClientTlsConfig {
    let mut config = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(tls.authority));
    if let Some((certificate, key)) = tls.identity {
        config = config.identity(Identity::from_pem(certificate, key));
    }
    match tls.server_name {
        Some(name) => config.domain_name(name),
        None => config,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Option<&str>) {
        let found = text.parse::<DaemonAddress>().ok().map(|address| address.to_string());
        assert_eq!(found.as_deref(), expected);
    }

    #[test]
    fn addresses() {
        check("unix:///run/x.sock", Some("unix:///run/x.sock"));
        check("tcp://builder:1234", Some("tcp://builder:1234"));
        check("tcp://[::1]:1", Some("tcp://[::1]:1"));
        for wrong in ["", "builder:1", "tcp://builder", "tcp://:1", "tcp://a/b:1", "unix://", "tcp://a:99999"]
        {
            check(wrong, None);
        }
    }
}
