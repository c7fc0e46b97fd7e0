//! Fingerprints of secrets: enough to see that one changed, nothing to guess it from.
//!
//! A fingerprint is a BLAKE3 hash keyed with random bytes of the store that never leave it. So two stores, and
//! whoever has a record without its store, can tell nothing from it. It takes part in a key only where the
//! Dockerfile says so (`cache=keyed`); elsewhere it only serves to warn. Start with [`fingerprint`].

use std::collections::BTreeMap;
use std::io::Read as _;

use stave_cache::{KeyBuilder, KeyPart};
use stave_llb::{ExecOp, Mount, Op, Vertex};
use stave_store::{Store, StoreError};

use crate::session::{Secret, Session};

/// The description key under which a step lists the secrets whose values are part of its key. The front end
/// writes it.
const KEYED: &str = "stave.secrets.keyed";

/// Bytes of a secret that count, as BuildKit limits secrets.
const MAX_SECRET: u64 = 500 << 10;

/// What the plain message is set apart with, so that a fingerprint is no hash of anything else.
const DOMAIN: &[u8] = b"stave secret fingerprint 1\0";

/// The fingerprint of a secret's value; `None` when it cannot be read, which the step will say if it matters.
///
/// # Errors
/// When the store's key cannot be had.
pub fn fingerprint(store: &Store, secret: &Secret) -> Result<Option<String>, StoreError> {
    let value = match secret {
        Secret::Value(value) => value.clone(),
        Secret::File(path) => {
            let mut value = Vec::new();
            let read =
                std::fs::File::open(path).and_then(|file| file.take(MAX_SECRET).read_to_end(&mut value));
            match read {
                Ok(_) => value,
                Err(_) => return Ok(None),
            }
        }
    };
    let mut hasher = blake3::Hasher::new_keyed(&store.secret_key()?);
    hasher.update(DOMAIN).update(&value);
    Ok(Some(hasher.finalize().to_hex()[..32].to_owned()))
}

/// The ids of the secrets a vertex may see.
pub fn secrets_of(vertex: &Vertex) -> Vec<String> {
    let Op::Exec(ExecOp { mounts, secret_env, .. }) = &vertex.op else { return Vec::new() };
    let mounted = mounts.iter().filter_map(|mount| match mount {
        Mount::Secret { id, .. } => Some(id.clone()),
        _ => None,
    });
    let mut ids: Vec<String> = mounted.chain(secret_env.iter().map(|env| env.id.clone())).collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}

/// The operation's part of the keys with the secrets that the Dockerfile wants in it.
pub(crate) fn with_keyed_secrets(
    store: &Store,
    vertex: &Vertex,
    session: &Session,
    part: KeyPart,
) -> Result<KeyPart, StoreError> {
    let Some(list) = vertex.metadata.description.get(KEYED) else { return Ok(part) };
    let mut fingerprints = BTreeMap::new();
    for id in list.split(',').filter(|id| !id.is_empty()) {
        let found = session.secrets.get(id).map(|secret| fingerprint(store, secret)).transpose()?.flatten();
        fingerprints.insert(id.to_owned(), found.unwrap_or_else(|| "absent".to_owned()));
    }
    Ok(KeyBuilder::new("op.exec.keyed").part("op", &part).map("keyed-secrets", &fingerprints).finish())
}
