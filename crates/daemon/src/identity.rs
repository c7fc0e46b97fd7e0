//! Who calls: a name that a certificate, a token or the kernel vouches for.
//!
//! Names carry their source in front (`cert:ci`, `token:ci`, `oidc:repo:org/app`, `uid:1000`), so that none can be taken
//! on by another way. Owns what a call must show to be let in, whatever it then asks for. Must not know what callers may
//! do: that is [`crate::tenants`]'. Start with [`Doorkeeper`].

pub(crate) mod certificate;
pub(crate) mod token;

use std::fmt;
use std::sync::Arc;

use stave_worker::Namespace;
use tonic::metadata::{Ascii, MetadataMap, MetadataValue};
use tonic::service::Interceptor;
use tonic::transport::server::{TcpConnectInfo, TlsConnectInfo, UdsConnectInfo};
use tonic::{Request, Status};

use crate::audit::Audit;
use crate::metrics::Metrics;
use crate::settings::Settings;
use crate::tenants::Caller;

/// The header in which a call carries the namespace it was let into.
const NAMESPACE: &str = "x-stave-namespace";
/// In front of a token.
const BEARER: &str = "Bearer ";

/// Who calls.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Identity(Arc<str>);

impl Identity {
    /// Whoever reached a listener that asks for nothing.
    pub(crate) fn anonymous() -> Self {
        Self("anonymous".into())
    }

    pub(crate) fn new(source: &str, name: &str) -> Self {
        Self(format!("{source}:{name}").into())
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    pub(crate) fn is_anonymous(&self) -> bool {
        &*self.0 == "anonymous"
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Stands in front of the services: every call gets its [`Caller`], or is refused.
#[derive(Debug, Clone)]
pub(crate) struct Doorkeeper {
    pub(crate) settings: Settings,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) audit: Audit,
}

impl Doorkeeper {
    /// A call is refused: it is counted, and taken down with where it came from.
    fn turned_away(&self, request: &Request<()>, why: &Status) {
        self.metrics.refused("identity");
        let extensions = request.extensions();
        let tls = extensions.get::<TlsConnectInfo<TcpConnectInfo>>().map(|tls| tls.get_ref().remote_addr);
        let address = tls.or_else(|| extensions.get::<TcpConnectInfo>().map(|tcp| tcp.remote_addr)).flatten();
        let peer = extensions.get::<UdsConnectInfo>().and_then(|peer| peer.peer_cred);
        let from = match (address, peer) {
            (Some(address), _) => address.ip().to_string(),
            (None, Some(peer)) => format!("uid:{}", peer.uid()),
            (None, None) => "unknown".to_owned(),
        };
        self.audit.refused(&from, "call", why.message());
    }

    fn identify(&self, request: &Request<()>) -> Result<Identity, Status> {
        let settings = self.settings.now();
        if let Some(header) = request.metadata().get("authorization") {
            let token = header.to_str().ok().and_then(|text| text.strip_prefix(BEARER));
            let token = token.ok_or_else(|| refused("expected a bearer token"))?;
            // Whoever shows a token means it: a wrong one is not passed over for the certificate.
            return settings.tenancy.tokens.verify(token).map_err(|error| refused(&error.to_string()));
        }
        let extensions = request.extensions();
        if let Some(tls) = extensions.get::<TlsConnectInfo<TcpConnectInfo>>() {
            let chain = tls.peer_certs();
            let own = chain.as_deref().and_then(|chain| chain.first());
            let own = own.ok_or_else(|| refused("neither a client certificate nor a token"))?;
            let name = certificate::name(own.as_ref()).map_err(|error| refused(&error.to_string()))?;
            return Ok(Identity::new("cert", &name));
        }
        let credentials = extensions.get::<UdsConnectInfo>().and_then(|peer| peer.peer_cred);
        Ok(credentials.map_or_else(Identity::anonymous, |peer| Identity::new("uid", &peer.uid().to_string())))
    }
}

impl Interceptor for Doorkeeper {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let identified = self.identify(&request).and_then(|identity| {
            let caller = self.settings.now().tenancy.caller(identity);
            caller.map_err(|error| refused(&error.to_string()))
        });
        let caller = identified.inspect_err(|why| self.turned_away(&request, why))?;
        // Set here whatever the client sent: what reads only headers must know whose call it is, too.
        request.metadata_mut().insert(NAMESPACE, header(&caller.namespace));
        request.extensions_mut().insert(caller);
        Ok(request)
    }
}

fn header(namespace: &Namespace) -> MetadataValue<Ascii> {
    let shared = MetadataValue::from_static("*");
    match namespace {
        Namespace::Shared => shared,
        // Letters and digits; anything else would see nothing.
        Namespace::Own(name) => name.parse().unwrap_or_else(|_| MetadataValue::from_static("-")),
    }
}

/// Whether a call with these headers may see what belongs to `owner`.
pub(crate) fn may_see(headers: &MetadataMap, owner: &Namespace) -> bool {
    let own = headers.get(NAMESPACE).and_then(|value| value.to_str().ok());
    match (own, owner) {
        (Some("*"), _) => true,
        (Some(own), Namespace::Own(owner)) => own == &**owner,
        _ => false,
    }
}

fn refused(why: &str) -> Status {
    Status::unauthenticated(why)
}

/// Who makes a call that [`Doorkeeper`] let in.
pub(crate) fn caller<T>(request: &Request<T>) -> Result<Caller, Status> {
    let caller = request.extensions().get::<Caller>().cloned();
    caller.ok_or_else(|| Status::internal("a call that nobody let in"))
}
