//! What the registry holds and knows.

use std::collections::{BTreeMap, HashMap};

use stave_oci::Digest;

use super::http::Head;
use super::{Auth, Fault, Misbehaviour, Recorded};

/// Everything behind the registry's lock.
#[derive(Debug)]
pub(super) struct State {
    pub(super) host: String,
    pub(super) auth: Auth,
    /// If set, nobody is let in, and this is what they are told.
    pub(super) challenge: Option<String>,
    pub(super) faults: Vec<Fault>,
    pub(super) requests: Vec<Recorded>,
    /// Tokens given out, with the scopes each is good for.
    pub(super) tokens: HashMap<String, Vec<String>>,
    pub(super) uploads: BTreeMap<u64, Vec<u8>>,
    pub(super) counter: u64,
    pub(super) is_closing: bool,
    /// Whether it has the referrers end point.
    pub(super) lists_referrers: bool,
    blobs: HashMap<(String, Digest), Vec<u8>>,
    manifests: HashMap<(String, String), (String, Vec<u8>)>,
}

impl Default for State {
    fn default() -> Self {
        Self {
            host: String::new(),
            auth: Auth::Open,
            challenge: None,
            faults: Vec::new(),
            requests: Vec::new(),
            tokens: HashMap::new(),
            uploads: BTreeMap::new(),
            counter: 0,
            is_closing: false,
            lists_referrers: false,
            blobs: HashMap::new(),
            manifests: HashMap::new(),
        }
    }
}

impl State {
    /// Notes a request and takes the first fault that matches it.
    pub(super) fn record(&mut self, head: &Head) -> Option<Misbehaviour> {
        self.requests.push(Recorded {
            method: head.method.clone(),
            path: head.target.clone(),
            authorization: head.header("authorization").map(str::to_owned),
            range: head.header("range").map(str::to_owned),
            length: head.length(),
            condition: head.header("if-match").map(str::to_owned),
        });
        let matches = |fault: &Fault| fault.method == head.method && head.target.contains(&fault.path);
        let position = self.faults.iter().position(matches)?;
        Some(self.faults.remove(position).misbehaviour)
    }

    /// Keeps what came of an upload before its connection was cut.
    pub(super) fn keep_partial(&mut self, head: &Head, part: &[u8]) {
        let id = head.path().rsplit('/').next().and_then(|id| id.parse().ok());
        if let Some(upload) = id.and_then(|id: u64| self.uploads.get_mut(&id)) {
            upload.extend_from_slice(part);
        }
    }

    pub(super) fn put_blob(&mut self, repository: &str, bytes: Vec<u8>) -> Digest {
        let digest = Digest::sha256(&bytes);
        self.blobs.insert((repository.to_owned(), digest.clone()), bytes);
        digest
    }

    pub(super) fn blob(&self, repository: &str, digest: &Digest) -> Option<&[u8]> {
        self.blobs.get(&(repository.to_owned(), digest.clone())).map(Vec::as_slice)
    }

    pub(super) fn put_manifest(
        &mut self,
        repository: &str,
        name: &str,
        kind: &str,
        bytes: Vec<u8>,
    ) -> Digest {
        let digest = Digest::sha256(&bytes);
        for name in [name, digest.as_str()] {
            self.manifests.insert((repository.to_owned(), name.to_owned()), (kind.to_owned(), bytes.clone()));
        }
        digest
    }

    pub(super) fn manifest(&self, repository: &str, name: &str) -> Option<&(String, Vec<u8>)> {
        self.manifests.get(&(repository.to_owned(), name.to_owned()))
    }

    /// Media type and bytes of the manifests of a repository, each once, in the order of their digests.
    pub(super) fn manifests(&self, repository: &str) -> Vec<(&str, &[u8])> {
        let own = self.manifests.iter().filter(|((at, name), _)| at == repository && name.contains(':'));
        let mut found: Vec<_> = own.collect();
        found.sort_by_key(|((_, name), _)| name);
        found.into_iter().map(|(_, (kind, bytes))| (kind.as_str(), bytes.as_slice())).collect()
    }

    pub(super) fn next_number(&mut self) -> u64 {
        self.counter += 1;
        self.counter
    }
}
