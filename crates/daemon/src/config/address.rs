//! Addresses as clients and `--addr` write them. Start with [`Address`].

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

/// Where a daemon is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// `unix://PATH`
    Unix(PathBuf),
    /// `tcp://HOST:PORT`, the host being an IP address.
    Tcp(SocketAddr),
}

/// A text that is no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// There is no scheme, or another.
    #[error("invalid address `{0}`: expected `unix://PATH` or `tcp://IP:PORT`")]
    Scheme(String),
    /// After `tcp://`.
    #[error("invalid address `{0}`: expected `tcp://IP:PORT`")]
    Tcp(String),
    /// After `unix://`.
    #[error("invalid address `{0}`: the path of a socket must be absolute")]
    Path(String),
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        if let Some(path) = text.strip_prefix("unix://") {
            let path = PathBuf::from(path);
            return if path.is_absolute() {
                Ok(Self::Unix(path))
            } else {
                Err(AddressError::Path(text.to_owned()))
            };
        }
        let address = text.strip_prefix("tcp://").ok_or_else(|| AddressError::Scheme(text.to_owned()))?;
        // Go listens everywhere when no host is given.
        let address = if address.starts_with(':') { format!("0.0.0.0{address}") } else { address.to_owned() };
        address.parse().map(Self::Tcp).map_err(|_| AddressError::Tcp(text.to_owned()))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp(address) => write!(f, "tcp://{address}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Option<&str>) {
        assert_eq!(text.parse::<Address>().ok().map(|address| address.to_string()).as_deref(), expected);
    }

    #[test]
    fn addresses() {
        check("unix:///run/x.sock", Some("unix:///run/x.sock"));
        check("unix://x.sock", None);
        check("tcp://127.0.0.1:1234", Some("tcp://127.0.0.1:1234"));
        check("tcp://[::1]:1234", Some("tcp://[::1]:1234"));
        check("tcp://:1234", Some("tcp://0.0.0.0:1234"));
        check("tcp://127.0.0.1", None);
        check("fd://3", None);
        check("/run/x.sock", None);
    }
}
