//! Private keys that this process signs with, for builds whose owner runs no agent.
//! Owns which keys can be used and what they answer. They are never shown. Read [`SshKeys`] first.

use std::fmt;

use ssh_key::{Algorithm, PrivateKey};

use super::protocol::{IDENTITIES_ANSWER, REQUEST_IDENTITIES, SIGN_REQUEST, SIGN_RESPONSE};

/// The flag of a request that wants RSA with SHA-512.
const RSA_SHA512: u32 = 4;

/// Why a key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// Not an OpenSSH private key.
    #[error("not a private key in OpenSSH's format: {0}")]
    Format(String),
    /// Only its owner can read it.
    #[error("the key is protected by a passphrase: add it to an ssh agent and name the agent instead")]
    Encrypted,
    /// A kind of key that cannot sign here.
    #[error(
        "keys of the kind `{0}` are not supported: use ed25519, rsa or ecdsa-sha2-nistp256, or an ssh agent"
    )]
    Algorithm(String),
}

/// Private keys.
#[derive(Default)]
pub struct SshKeys {
    keys: Vec<Key>,
}

struct Key {
    private: PrivateKey,
    /// The public half as the protocol has it.
    blob: Vec<u8>,
}

/// Shows no key.
impl fmt::Debug for SshKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SshKeys({})", self.keys.len())
    }
}

impl SshKeys {
    /// Takes up a key as `ssh-keygen` writes it.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn add(&mut self, text: &str) -> Result<(), KeyError> {
        let private = PrivateKey::from_openssh(text).map_err(|error| KeyError::Format(error.to_string()))?;
        if private.is_encrypted() {
            return Err(KeyError::Encrypted);
        }
        let is_known = match private.algorithm() {
            Algorithm::Ed25519 | Algorithm::Rsa { .. } => true,
            Algorithm::Ecdsa { curve } => curve == ssh_key::EcdsaCurve::NistP256,
            _ => false,
        };
        if !is_known {
            return Err(KeyError::Algorithm(private.algorithm().as_str().to_owned()));
        }
        let blob = private.public_key().to_bytes().map_err(|error| KeyError::Format(error.to_string()))?;
        self.keys.push(Key { private, blob });
        Ok(())
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.keys.len()
    }

    /// The answer to a message; `None` where there is none but no.
    pub(super) fn answer(&self, request: &[u8]) -> Option<Vec<u8>> {
        let (kind, mut rest) = request.split_first()?;
        match *kind {
            REQUEST_IDENTITIES => {
                let mut answer = vec![IDENTITIES_ANSWER];
                answer.extend(u32::try_from(self.keys.len()).ok()?.to_be_bytes());
                for key in &self.keys {
                    put(&mut answer, &key.blob)?;
                    put(&mut answer, key.private.comment().as_bytes())?;
                }
                Some(answer)
            }
            SIGN_REQUEST => {
                let blob = take(&mut rest)?;
                let data = take(&mut rest)?;
                let flags = u32::from_be_bytes(rest.get(..4)?.try_into().ok()?);
                let key = self.keys.iter().find(|key| key.blob == blob)?;
                let mut answer = vec![SIGN_RESPONSE];
                put(&mut answer, &key.sign(data, flags)?)?;
                Some(answer)
            }
            _ => None,
        }
    }
}

impl Key {
    /// The signature with its algorithm's name. RSA is done with SHA-512 only: what asks for less is old.
    fn sign(&self, data: &[u8], flags: u32) -> Option<Vec<u8>> {
        use signature::Signer as _;
        let is_rsa = matches!(self.private.algorithm(), Algorithm::Rsa { .. });
        if is_rsa && flags & RSA_SHA512 == 0 {
            return None;
        }
        let signature = self.private.try_sign(data).ok()?;
        let mut bytes = Vec::new();
        put(&mut bytes, signature.algorithm().as_str().as_bytes())?;
        put(&mut bytes, signature.as_bytes())?;
        Some(bytes)
    }
}

/// Appends a string of the protocol.
fn put(message: &mut Vec<u8>, bytes: &[u8]) -> Option<()> {
    message.extend(u32::try_from(bytes.len()).ok()?.to_be_bytes());
    message.extend_from_slice(bytes);
    Some(())
}

/// Takes a string of the protocol off the front.
fn take<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, after) = rest.split_at_checked(4)?;
    let length = u32::from_be_bytes(length.try_into().ok()?) as usize;
    let (bytes, after) = after.split_at_checked(length)?;
    *rest = after;
    Some(bytes)
}
