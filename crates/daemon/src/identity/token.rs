//! Bearer tokens: long-lived ones by their hashes, and JSON Web Tokens (OIDC) by configured keys.
//!
//! A file of tokens has lines `NAME SHA256`, the hash in hex; the tokens themselves are nowhere. Keys come from a JWKS
//! file, RS256, ES256 and EdDSA only: a key says what it is for, never the token. Must not fetch anything.
//! Start with [`Tokens`].

use std::collections::HashMap;

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, JwkSet};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use serde_json::{Map, Value};
use stave_oci::Digest;

use super::Identity;

/// The longest token, in bytes.
const MAX_TOKEN: usize = 16 << 10;
/// Most keys of one issuer.
const MAX_KEYS: usize = 100;
/// The longest name a token may give.
const MAX_NAME: usize = 256;

/// A token that lets nobody in. Why is said in words that help whoever has it, not whoever guesses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TokenError {
    /// Neither a known token nor a signed one.
    #[error("the token is not known")]
    Unknown,
    /// Signed by nobody known, expired, or for another.
    #[error("the token is not accepted: {0}")]
    Invalid(String),
    /// It does not say who has it.
    #[error("the token has no claim `{0}`")]
    Nameless(String),
}

/// Files that hold no tokens or keys.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// A line of a file of tokens.
    #[error("line {0} of the file of tokens: expected `NAME SHA256`")]
    Line(usize),
    /// Not a set of keys.
    #[error("not a JSON web key set: {0}")]
    Set(String),
    /// More keys than are kept.
    #[error("more than {MAX_KEYS} keys")]
    TooMany,
    /// A key for signatures that are not accepted.
    #[error("key `{0}`: only RS256, ES256 and EdDSA keys are accepted")]
    Kind(String),
}

/// All that vouches for a token.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tokens {
    known: HashMap<String, Identity>,
    issuers: Vec<Issuer>,
}

/// Who signs tokens, and what must be in them.
#[derive(Clone)]
pub(crate) struct Issuer {
    issuer: String,
    audiences: Vec<String>,
    claim: String,
    keys: Vec<Key>,
}

#[derive(Clone)]
struct Key {
    id: Option<String>,
    algorithm: Algorithm,
    key: DecodingKey,
}

impl std::fmt::Debug for Issuer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Issuer").field("issuer", &self.issuer).field("keys", &self.keys.len()).finish()
    }
}

impl Issuer {
    /// Reads a JWKS file.
    pub(crate) fn new(
        issuer: String,
        audiences: Vec<String>,
        claim: String,
        jwks: &[u8],
    ) -> Result<Self, KeyError> {
        let set: JwkSet = serde_json::from_slice(jwks).map_err(|error| KeyError::Set(error.to_string()))?;
        if set.keys.len() > MAX_KEYS {
            return Err(KeyError::TooMany);
        }
        let mut keys = Vec::new();
        for jwk in &set.keys {
            let id = jwk.common.key_id.clone();
            let refused = || KeyError::Kind(id.clone().unwrap_or_default());
            let algorithm = match &jwk.algorithm {
                AlgorithmParameters::RSA(_) => Algorithm::RS256,
                AlgorithmParameters::EllipticCurve(curve) if curve.curve == EllipticCurve::P256 => {
                    Algorithm::ES256
                }
                AlgorithmParameters::OctetKeyPair(pair) if pair.curve == EllipticCurve::Ed25519 => {
                    Algorithm::EdDSA
                }
                _ => return Err(refused()),
            };
            let named = jwk.common.key_algorithm.map(|named| named.to_string());
            if named.is_some_and(|named| named != format!("{algorithm:?}")) {
                return Err(refused());
            }
            let key = DecodingKey::from_jwk(jwk).map_err(|_| refused())?;
            keys.push(Key { id, algorithm, key });
        }
        Ok(Self { issuer, audiences, claim, keys })
    }

    /// Whose token it is; the last key's complaint when none fits.
    fn verify(&self, token: &str) -> Result<Identity, TokenError> {
        let invalid = |error: &jsonwebtoken::errors::Error| TokenError::Invalid(error.to_string());
        let header = decode_header(token).map_err(|_| TokenError::Unknown)?;
        let mut outcome = Err(TokenError::Invalid("no key of this id and algorithm".to_owned()));
        for key in &self.keys {
            let is_named = header.kid.is_none() || header.kid == key.id;
            if !is_named || header.alg != key.algorithm {
                continue;
            }
            let mut rules = Validation::new(key.algorithm);
            rules.set_issuer(&[&self.issuer]);
            rules.set_audience(&self.audiences);
            rules.set_required_spec_claims(&["exp", "iss", "aud"]);
            rules.validate_nbf = true;
            match decode::<Map<String, Value>>(token, &key.key, &rules) {
                Ok(found) => return self.name(&found.claims),
                Err(error) => outcome = Err(invalid(&error)),
            }
        }
        outcome
    }

    fn name(&self, claims: &Map<String, Value>) -> Result<Identity, TokenError> {
        let name = claims.get(&self.claim).and_then(Value::as_str);
        let is_fit =
            |name: &&str| !name.is_empty() && name.len() <= MAX_NAME && !name.contains(char::is_control);
        let name = name.filter(is_fit).ok_or_else(|| TokenError::Nameless(self.claim.clone()))?;
        Ok(Identity::new("oidc", name))
    }
}

impl Tokens {
    /// Reads a file of tokens.
    pub(crate) fn new(file: &str, issuers: Vec<Issuer>) -> Result<Self, KeyError> {
        let mut known = HashMap::new();
        for (at, line) in file.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let wrong = || KeyError::Line(at + 1);
            let (name, hash) = line.split_once(char::is_whitespace).ok_or_else(wrong)?;
            let hash = hash.trim().to_ascii_lowercase();
            if hash.len() != 64 || !hash.bytes().all(|byte| byte.is_ascii_hexdigit()) || name.len() > MAX_NAME
            {
                return Err(wrong());
            }
            known.insert(hash, Identity::new("token", name));
        }
        Ok(Self { known, issuers })
    }

    /// Whether any token could let somebody in.
    pub(crate) fn is_empty(&self) -> bool {
        self.known.is_empty() && self.issuers.is_empty()
    }

    /// Whose token it is. Known ones are found by their hash, so that the time it takes tells nothing of them.
    pub(crate) fn verify(&self, token: &str) -> Result<Identity, TokenError> {
        if token.len() > MAX_TOKEN {
            return Err(TokenError::Unknown);
        }
        if let Some(identity) = self.known.get(Digest::sha256(token.as_bytes()).hex()) {
            return Ok(identity.clone());
        }
        let mut outcome = Err(TokenError::Unknown);
        for issuer in &self.issuers {
            match issuer.verify(token) {
                Ok(identity) => return Ok(identity),
                Err(error) => outcome = Err(error),
            }
        }
        outcome
    }
}

#[cfg(test)]
mod tests;
