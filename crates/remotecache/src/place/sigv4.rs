//! Signatures of requests to object stores (AWS Signature Version 4). Pure: the time is a parameter.

use std::fmt::Write as _;

use hmac::{Hmac, Mac as _};
use sha2::{Digest as _, Sha256};
use url::Url;

use crate::spec::S3Credentials;

/// What is signed.
pub(super) struct Request<'a> {
    pub(super) method: &'a str,
    pub(super) url: &'a Url,
    /// Further headers to sign, names in lower case.
    pub(super) headers: &'a [(&'static str, String)],
    /// Hex SHA-256 of the body.
    pub(super) payload: &'a str,
    /// `20260102T030405Z`
    pub(super) time: &'a str,
    pub(super) region: &'a str,
}

/// The headers that carry the signature, beside those of the request itself.
pub(super) fn sign(request: &Request<'_>, credentials: &S3Credentials) -> Vec<(&'static str, String)> {
    let mut headers: Vec<(&'static str, String)> =
        vec![("x-amz-content-sha256", request.payload.to_owned()), ("x-amz-date", request.time.to_owned())];
    if let Some(token) = &credentials.session_token {
        headers.push(("x-amz-security-token", token.clone()));
    }
    let mut signed: Vec<(&str, String)> = vec![("host", host(request.url))];
    signed.extend(headers.iter().chain(request.headers).map(|(name, value)| (*name, value.clone())));
    signed.sort_unstable();
    let names: Vec<&str> = signed.iter().map(|(name, _)| *name).collect();
    let names = names.join(";");
    let mut canonical = format!("{}\n{}\n{}\n", request.method, request.url.path(), query(request.url));
    for (name, value) in &signed {
        writeln!(canonical, "{name}:{}", value.trim()).ok();
    }
    write!(canonical, "\n{names}\n{}", request.payload).ok();
    let date = request.time.get(..8).unwrap_or_default();
    let scope = format!("{date}/{}/s3/aws4_request", request.region);
    let text = format!("AWS4-HMAC-SHA256\n{}\n{scope}\n{}", request.time, hex(&Sha256::digest(&canonical)));
    let key = [date, request.region, "s3", "aws4_request"]
        .iter()
        .fold(format!("AWS4{}", credentials.secret_access_key).into_bytes(), |key, part| {
            mac(&key, part.as_bytes())
        });
    let signature = hex(&mac(&key, text.as_bytes()));
    let id = &credentials.access_key_id;
    let value =
        format!("AWS4-HMAC-SHA256 Credential={id}/{scope}, SignedHeaders={names}, Signature={signature}");
    headers.push(("authorization", value));
    headers
}

/// Host and port as the request's `Host` header has them.
fn host(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

fn query(url: &Url) -> String {
    let mut pairs: Vec<String> = url
        .query_pairs()
        .map(|(name, value)| format!("{}={}", encode(&name, false), encode(&value, false)))
        .collect();
    pairs.sort_unstable();
    pairs.join("&")
}

/// Percent-encoding as the signature wants it: all but letters, digits and `-._~` (and `/` in paths).
pub(super) fn encode(text: &str, is_path: bool) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                encoded.push(char::from(byte));
            }
            b'/' if is_path => encoded.push('/'),
            other => {
                write!(encoded, "%{other:02X}").ok();
            }
        }
    }
    encoded
}

fn mac(key: &[u8], data: &[u8]) -> Vec<u8> {
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else {
        unreachable!("HMAC takes keys of any length")
    };
    mac.update(data);
    mac.finalize().into_bytes().to_vec()
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").ok();
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example `GET Object` of the S3 documentation, "Signature Calculations for the Authorization Header".
    #[test]
    fn the_documented_example_is_signed_as_documented() {
        let url = Url::parse("https://examplebucket.s3.amazonaws.com/test.txt").expect("an address");
        let credentials = S3Credentials {
            access_key_id: "AKIAIOSFODNN7EXAMPLE".to_owned(),
            secret_access_key: "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY".to_owned(),
            session_token: None,
        };
        let request = Request {
            method: "GET",
            url: &url,
            headers: &[("range", "bytes=0-9".to_owned())],
            payload: "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            time: "20130524T000000Z",
            region: "us-east-1",
        };
        let headers = sign(&request, &credentials);
        let (_, value) = headers.last().expect("a header");
        assert!(
            value.ends_with("Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"),
            "{value}"
        );
    }
}
