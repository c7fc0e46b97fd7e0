//! Cache keys, records and their index.
//!
//! Owns how a key is made from fields ([`KeyBuilder`]), what a key stands for later ([`KeyPreimage`]),
//! and the index from keys to results ([`CacheIndex`]), shared by all processes of one state directory.
//! Must not know: how operations run, what a result is, what lies in a snapshot. A [`ResultId`] is
//! opaque here, and so is the meaning of a field.
//!
//! Start with [`CacheKey`], [`KeyBuilder`] and [`CacheIndex`].
//!
//! # What goes into which key
//!
//! Every key is a blake3 hash over the magic text, [`CACHE_FORMAT`], a domain and typed,
//! length-prefixed, labelled fields (module [`key`]). A vertex has up to three keys, tried in this order:
//!
//! | key | domain | the operation | each input that takes part |
//! |---|---|---|---|
//! | definition | `definition` | operation part | position, output index, selector, the input's *definition key* |
//! | result | `result` | operation part | position, output index, selector, the input's *result id* |
//! | content | `content` | operation part | content based: position, selector, *content digest*; else as in the result key |
//!
//! A definition key exists when the operation is stable and every input that takes part has one; so it
//! is known before anything runs. A result key needs the inputs identified, not loaded. A content key
//! exists when at least one input is content based, and needs those inputs' content.
//!
//! The operation part (domain `op.exec`, `op.file`, …) holds what changes the operation's output:
//!
//! | operation | in | out, and why |
//! |---|---|---|
//! | source | what pins it (manifest digest, commit, checksum); for images the platform, for git the remote and subdirectory, for http the address; attributes that select content | an image's name once a digest pins it; session ids, tokens' names, progress hints: they say who asks or how. What nothing pins is volatile and has no part at all |
//! | exec | args, env, cwd, user, hostname, ulimits, names of extra hosts, valid exit codes, control group, mount-stub clean-up, network, security, secret variables' ids, devices, platform; per mount: kind, target, input, output, selector, read-only, cache id and sharing, tmpfs size, secret and ssh ids, owners and modes | secret values and ssh agents: the session's (a fingerprint keyed by the store takes part where the Dockerfile says `cache=keyed`); proxy settings and the addresses of extra hosts: how the network is reached; `content_cache`: how to look up |
//! | file | per action: its inputs, its output and every field of its kind | platform: the bytes are the same on all |
//! | merge, diff | the inputs' roles and order | – |
//! | build | attributes, inputs by name, the inline definition | – |
//! | all | – | vertex name, description, progress group, capabilities, `ignore_cache`, source locations |
//!
//! Which inputs count by content: what is only read. That is the source of a copy, the files a user is
//! looked up in, and mounts whose changes are thrown away; `content_cache` overrides for a mount. Root
//! file systems and what is changed into an output count by identity.
//!
//! The rules over the graph's own types live in the solver's `key` module, which alone knows them; this
//! crate fixes the encoding. Golden digests lie in `testdata/cache/`; a change there is a format break.

pub mod index;
pub mod key;
pub mod preimage;
pub mod record;

pub use index::{
    CacheIndex, Claim, IndexError, IndexErrorKind, POOL_LIMIT, PrunePolicy, Recreated, Scope,
    TOUCH_GRANULARITY,
};
pub use key::{CACHE_FORMAT, CacheKey, ContentDigest, IdError, KeyBuilder, KeyPart};
pub use preimage::{Field, FieldChange, FieldValue, KeyKind, KeyPreimage};
pub use record::{CacheRecord, KeyEntry, NewRecord, RecordId, ResultId, ResultIdError};
