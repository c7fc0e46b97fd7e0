//! The name in a client's certificate. Start with [`name`].
//!
//! Whether the certificate is any good was decided when the connection was made; here it is only read.

use x509_cert::Certificate;
use x509_cert::der::Decode as _;
use x509_cert::der::asn1::{PrintableStringRef, Utf8StringRef};
use x509_cert::der::oid::db::rfc4519::COMMON_NAME;
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;

/// The longest name.
const MAX_NAME: usize = 256;

/// A certificate that names nobody.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CertificateError {
    /// It is none.
    #[error("the client's certificate cannot be read")]
    Malformed,
    /// It has neither a common name nor an alternative one.
    #[error("the client's certificate has no name")]
    Nameless,
}

/// The common name; without one the first alternative name that is a URI, a host or an address of mail.
pub(crate) fn name(der: &[u8]) -> Result<String, CertificateError> {
    let certificate = Certificate::from_der(der).map_err(|_| CertificateError::Malformed)?;
    let found = common_name(&certificate).or_else(|| alternative_name(&certificate));
    found.filter(|name| is_fit(name)).ok_or(CertificateError::Nameless)
}

fn common_name(certificate: &Certificate) -> Option<String> {
    let parts = certificate.tbs_certificate.subject.0.iter().flat_map(|part| part.0.iter());
    let mut names = parts.filter(|part| part.oid == COMMON_NAME).filter_map(|part| {
        let utf8 = part.value.decode_as::<Utf8StringRef<'_>>().map(|text| text.as_str().to_owned());
        let printable =
            || part.value.decode_as::<PrintableStringRef<'_>>().map(|text| text.as_str().to_owned());
        utf8.or_else(|_| printable()).ok()
    });
    names.next()
}

fn alternative_name(certificate: &Certificate) -> Option<String> {
    let (_, names) = certificate.tbs_certificate.get::<SubjectAltName>().ok()??;
    names.0.iter().find_map(|name| match name {
        GeneralName::UniformResourceIdentifier(text)
        | GeneralName::DnsName(text)
        | GeneralName::Rfc822Name(text) => Some(text.as_str().to_owned()),
        _ => None,
    })
}

fn is_fit(name: &str) -> bool {
    !name.is_empty() && name.len() <= MAX_NAME && !name.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn der(pem: &str) -> Vec<u8> {
        use base64::Engine as _;
        let body: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
        base64::engine::general_purpose::STANDARD.decode(body).expect("base64")
    }

    #[test]
    fn names_of_certificates() {
        let common = include_str!("../../../../testdata/daemon/common-name.pem");
        assert_eq!(name(&der(common)), Ok("builder one".to_owned()));
        let alternative = include_str!("../../../../testdata/daemon/alternative-name.pem");
        assert_eq!(name(&der(alternative)), Ok("spiffe://team/ci".to_owned()));
        assert_eq!(name(b"no certificate"), Err(CertificateError::Malformed));
    }
}
