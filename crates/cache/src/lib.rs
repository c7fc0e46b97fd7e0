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
//! | source | pinned identifier; attributes that select content; platform for images | session ids, progress hints: they name who asks, not what; a local source has no part at all, it is volatile |
//! | exec | args, env, cwd, user, hostname, ulimits, valid exit codes, cgroup parent, network, security, devices, platform; per mount: kind, target, selector, read-only, output, cache id and sharing, tmpfs size, secret and ssh ids, modes and owners | secret values, ssh agents (the session's, and never to be hashed); proxy environment (how to reach the network, not what is asked of it); extra hosts (same); mount-stub clean-up |
//! | file | platform; per action: kind, its inputs by position, output, and every field of the kind | nothing: all of it is semantic |
//! | merge, diff | the number and order of inputs | – |
//! | build | the definition's attributes | – |
//! | all | – | vertex name, description, progress group, capabilities, `ignore_cache`, source locations: how it is shown or whether to look it up |
//!
//! The rules over the graph's own types live in the solver's `key` module, which alone knows them; this
//! crate fixes the encoding. Golden digests lie in `testdata/cache/`; a change there is a format break.

pub mod index;
pub mod key;
pub mod preimage;
pub mod record;

pub use index::{CacheIndex, IndexError, PrunePolicy, Recreated};
pub use key::{CACHE_FORMAT, CacheKey, ContentDigest, IdError, KeyBuilder, KeyPart};
pub use preimage::{Field, FieldChange, FieldValue, KeyKind, KeyPreimage};
pub use record::{CacheRecord, KeyEntry, NewRecord, RecordId, ResultId, ResultIdError};
