//! What a front end says of its results: attestations whose content lies in results of their own, alone or bundled.
//!
//! Owns their limits and what a front end may not say. Must not know how statements are written. Start with
//! [`Statement`] and [`read_all`].

use std::collections::{BTreeMap, HashMap};
use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;

use bollard_buildkit_proto::moby::buildkit::v1::frontend::{
    Attestation as Message, AttestationKind, Attestations, InTotoSubject, InTotoSubjectKind, Ref,
};
use rustix::fs::FileType;
use serde::Deserialize;
use serde_json::Value;
use stave_exporter::{Attestation, AttestedSubject};
use stave_oci::Digest;
use stave_store::MergedView;

use crate::build::{Build, Target};
use crate::failure::Failure;

/// Most statements of one build's front end, bundles as one.
const MAX_STATEMENTS: usize = 1_000;
/// Most statements of one bundle.
const MAX_BUNDLED: usize = 64;
/// Bytes of the longest one, as BuildKit limits it.
const MAX_BYTES: u64 = 40 << 20;
/// Bytes of all that are about the results of one export, whatever their number: they are held at the same time.
const MAX_ALL_BYTES: usize = 64 << 20;
/// How the types of provenance begin, which only the builder may state.
const PROVENANCE: &str = "https://slsa.dev/provenance/";
/// The type of a bill of materials.
const SPDX: &str = "https://spdx.dev/Document";
/// Says that a statement is for images alone.
const INLINE_ONLY: &str = "inline-only";
/// Names the file of a bill of materials that comes first.
const CORE: &str = "sbom-core";

/// One statement, or a bundle of them, as a front end returned it.
#[derive(Debug, Clone)]
pub(crate) struct Statement {
    message: Message,
    target: Option<Arc<Target>>,
}

/// Room for the statements of one export.
#[derive(Debug)]
pub(crate) struct Room(usize);

impl Default for Room {
    fn default() -> Self {
        Self(MAX_ALL_BYTES)
    }
}

impl Room {
    /// Takes what a statement needs.
    fn take(&mut self, statement: &Attestation) -> Result<(), Failure> {
        let left = self.0.checked_sub(statement.predicate.len());
        let full = || Failure::Value(format!("attestations of more than {MAX_ALL_BYTES} bytes"));
        self.0 = left.ok_or_else(full)?;
        Ok(())
    }
}

/// By the id of the platform that they are about.
pub(crate) type Statements = BTreeMap<String, Vec<Statement>>;

/// Takes up what a front end returned.
pub(crate) fn taken(build: &Build, said: HashMap<String, Attestations>) -> Result<Statements, Failure> {
    let wrong = |text: &str| Failure::Value(text.to_owned());
    if said.values().map(|list| list.attestation.len()).sum::<usize>() > MAX_STATEMENTS {
        return Err(Failure::Value(format!("more than {MAX_STATEMENTS} attestations")));
    }
    let one = |message: Message| {
        let kind = AttestationKind::try_from(message.kind);
        let kind = kind.map_err(|_| Failure::Value(format!("unknown attestation kind {}", message.kind)))?;
        let is_provenance = message.in_toto_predicate_type.starts_with(PROVENANCE);
        if kind == AttestationKind::InToto && is_provenance {
            return Err(wrong("frontend may not set provenance attestations"));
        }
        let id = message.r#ref.as_ref().map_or("", |target| target.id.as_str());
        let target = match id {
            "" => None,
            id => Some(build.target(id)?),
        };
        Ok(Statement { message, target })
    };
    said.into_iter()
        .filter(|(_, list)| !list.attestation.is_empty())
        .map(|(id, list)| {
            Ok((id, list.attestation.into_iter().map(one).collect::<Result<Vec<_>, Failure>>()?))
        })
        .collect()
}

/// The same as messages.
pub(crate) fn messages(said: &Statements) -> HashMap<String, Attestations> {
    let message = |one: &Statement| {
        let reference =
            |target: &Arc<Target>| Ref { id: target.id.clone(), def: Some(target.message.clone()) };
        Message { r#ref: one.target.as_ref().map(reference), ..one.message.clone() }
    };
    let list = |list: &Vec<Statement>| Attestations { attestation: list.iter().map(message).collect() };
    // An empty message as the value of a map is left out, and Go's clients do not expect none.
    let said = said.iter().filter(|(_, statements)| !statements.is_empty());
    said.map(|(id, statements)| (id.clone(), list(statements))).collect()
}

/// The content of all statements about one result, the main bill of materials first.
pub(crate) async fn read_all(
    build: &Build,
    statements: &[Statement],
    room: &mut Room,
) -> Result<Vec<Attestation>, Failure> {
    let mut found: Vec<(bool, Attestation)> = Vec::new();
    for statement in statements {
        let message = &statement.message;
        let target = statement.target.as_ref();
        let Some(target) = target else {
            return Err(Failure::Value("no available content for attestation".to_owned()));
        };
        let snapshot = build.solve(target).await?;
        let view = build.engine().store().view(&snapshot)?;
        match message.kind() {
            AttestationKind::InToto => {
                let path = Path::new(&message.path);
                let predicate = content(&view, path)?;
                let subjects = message.in_toto_subjects.iter().map(subject);
                let attestation = Attestation {
                    predicate_type: message.in_toto_predicate_type.clone(),
                    predicate,
                    file_name: file_name(path),
                    subjects: subjects.collect::<Result<_, _>>()?,
                    images_only: is_images_only(message),
                    ..Attestation::default()
                };
                room.take(&attestation)?;
                found.push((is_core(message, &attestation.file_name), attestation));
            }
            AttestationKind::Bundle => found.extend(bundled(&view, message, room)?),
        }
    }
    found.sort_by_key(|(is_core, _)| !is_core);
    let told = |(is_core, attestation): (bool, Attestation)| Attestation {
        is_core_bill: is_core && attestation.predicate_type == SPDX,
        ..attestation
    };
    Ok(found.into_iter().map(told).collect())
}

fn bundled(
    view: &MergedView,
    message: &Message,
    room: &mut Room,
) -> Result<Vec<(bool, Attestation)>, Failure> {
    let folder = Path::new(&message.path);
    let missing = || Failure::NotFound(format!("open {}: no such file or directory", message.path));
    let names = view.read_dir_first(folder, MAX_BUNDLED + 1)?.ok_or_else(missing)?;
    if names.len() > MAX_BUNDLED {
        return Err(Failure::Value(format!("more than {MAX_BUNDLED} attestations in a bundle")));
    }
    let mut found = Vec::with_capacity(names.len());
    for name in names {
        let path = folder.join(&name);
        let attestation = unbundled(&content(view, &path)?, message, &path)?;
        room.take(&attestation)?;
        found.push((is_core(message, &attestation.file_name), attestation));
    }
    Ok(found)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct InToto {
    #[serde(default)]
    predicate_type: String,
    #[serde(default)]
    predicate: Value,
    #[serde(default)]
    subject: Option<Vec<InTotoName>>,
}

#[derive(Deserialize)]
struct InTotoName {
    #[serde(default)]
    name: String,
    #[serde(default)]
    digest: BTreeMap<String, String>,
}

fn unbundled(bytes: &[u8], bundle: &Message, path: &Path) -> Result<Attestation, Failure> {
    let wrong = |error| Failure::Value(format!("cannot decode in-toto statement: {error}"));
    let statement: InToto = serde_json::from_slice(bytes).map_err(wrong)?;
    let wanted = &bundle.in_toto_predicate_type;
    if !wanted.is_empty() && *wanted != statement.predicate_type {
        let found = &statement.predicate_type;
        let text = format!("bundle entry {found} does not match required predicate type {wanted}");
        return Err(Failure::Value(text));
    }
    if statement.predicate_type.starts_with(PROVENANCE) {
        return Err(Failure::Value("frontend may not bundle provenance attestations".to_owned()));
    }
    let subjects = statement.subject.unwrap_or_default().into_iter();
    let other = |subject: InTotoName| AttestedSubject::Other { name: subject.name, digests: subject.digest };
    Ok(Attestation {
        predicate_type: statement.predicate_type,
        predicate: match statement.predicate {
            Value::Null => Vec::new(),
            predicate => predicate.to_string().into_bytes(),
        },
        file_name: file_name(path),
        subjects: subjects.map(other).collect(),
        images_only: is_images_only(bundle),
        ..Attestation::default()
    })
}

/// A file inside a result, whatever its links say.
fn content(view: &MergedView, path: &Path) -> Result<Vec<u8>, Failure> {
    let shown = path.display();
    let entry = view.symlink_metadata(path)?;
    let file = match entry.map(|entry| entry.file_type()) {
        Some(FileType::RegularFile | FileType::Symlink) => view.open(path)?,
        Some(_) => return Err(Failure::Value(format!("{shown} is not a regular file"))),
        None => None,
    };
    let file = file.ok_or_else(|| Failure::NotFound(format!("open {shown}: no such file or directory")))?;
    if !file.metadata().is_ok_and(|metadata| metadata.is_file()) {
        return Err(Failure::Value(format!("{shown} is not a regular file")));
    }
    let mut bytes = Vec::new();
    let failed = |error: std::io::Error| Failure::Value(format!("read {shown}: {error}"));
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    match bytes.len() as u64 > MAX_BYTES {
        true => Err(Failure::Value(format!("{shown} exceeds {MAX_BYTES} bytes"))),
        false => Ok(bytes),
    }
}

fn subject(subject: &InTotoSubject) -> Result<AttestedSubject, Failure> {
    match InTotoSubjectKind::try_from(subject.kind) {
        Ok(InTotoSubjectKind::Self_) => Ok(AttestedSubject::Result),
        Ok(InTotoSubjectKind::Raw) => {
            let wrong = |text: &String| Failure::Value(format!("invalid digest {text:?} of a subject"));
            let digest = |text: &String| {
                let digest: Digest = text.parse().map_err(|_| wrong(text))?;
                let algorithm = text.split(':').next().unwrap_or_default().to_owned();
                Ok::<_, Failure>((algorithm, digest.hex().to_owned()))
            };
            let digests = subject.digest.iter().map(digest).collect::<Result<_, _>>()?;
            Ok(AttestedSubject::Other { name: subject.name.clone(), digests })
        }
        Err(_) => Err(Failure::Value(format!("unknown attestation subject type {}", subject.kind))),
    }
}

fn is_images_only(message: &Message) -> bool {
    message.metadata.get(INLINE_ONLY).is_some_and(|value| value == b"true")
}

/// Whether a statement is the main one of its bill of materials.
fn is_core(message: &Message, file: &str) -> bool {
    let stem = file.split('.').next().unwrap_or_default();
    message.metadata.get(CORE).is_some_and(|name| name == stem.as_bytes())
}

fn file_name(path: &Path) -> String {
    path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bundle(wanted: &str) -> Message {
        Message { in_toto_predicate_type: wanted.to_owned(), ..Message::default() }
    }

    #[test]
    fn statements_of_a_bundle() {
        let text = br#"{"_type":"x","predicateType":"t","subject":[{"name":"n","digest":{"sha256":"00"}}],
            "predicate":{"a":1}}"#;
        let found = unbundled(text, &bundle(""), Path::new("/b/x.json")).expect("is one");
        assert_eq!((found.file_name.as_str(), found.predicate.as_slice()), ("x.json", &br#"{"a":1}"#[..]));
        let digests = BTreeMap::from([("sha256".to_owned(), "00".to_owned())]);
        assert_eq!(found.subjects, [AttestedSubject::Other { name: "n".to_owned(), digests }]);
        let bare = unbundled(br#"{"predicateType":"t","subject":null}"#, &bundle("t"), Path::new("x"));
        assert!(bare.expect("is one").predicate.is_empty());
        let other = unbundled(text, &bundle("u"), Path::new("x")).expect_err("another type");
        assert_eq!(other.to_string(), "bundle entry t does not match required predicate type u");
        let own = br#"{"predicateType":"https://slsa.dev/provenance/v1"}"#;
        let own = unbundled(own, &bundle(""), Path::new("x")).expect_err("the builder's own");
        assert_eq!(own.to_string(), "frontend may not bundle provenance attestations");
        assert!(unbundled(b"{", &bundle(""), Path::new("x")).is_err());
    }

    #[test]
    fn what_is_held_of_statements_is_bounded() {
        let statement = |bytes| Attestation { predicate: vec![b' '; bytes], ..Attestation::default() };
        let mut room = Room::default();
        room.take(&statement(MAX_ALL_BYTES - 1)).expect("there is room");
        let full = room.take(&statement(2)).expect_err("no room").to_string();
        assert_eq!(full, format!("attestations of more than {MAX_ALL_BYTES} bytes"));
        room.take(&statement(1)).expect("what fits");

        // Bundles count, entry by entry.
        let folder = tempfile::tempdir().expect("a folder");
        let store = stave_store::Store::open(folder.path()).expect("a store");
        let layer = store.prepare(&stave_store::Snapshot::scratch()).expect("a layer");
        for name in ["a.json", "b.json"] {
            let text = br#"{"predicateType":"t","predicate":"12345678"}"#;
            std::fs::write(layer.upper().join(name), text).expect("writes");
        }
        let view = store.view(&layer.commit().expect("commits")).expect("a view");
        let message = Message { path: "/".to_owned(), ..bundle("t") };
        let found = bundled(&view, &message, &mut Room(20)).expect("there is room");
        assert_eq!(found.len(), 2);
        assert!(bundled(&view, &message, &mut Room(19)).is_err(), "the second finds none");
    }

    #[test]
    fn subjects() {
        let raw = |digest: &str| InTotoSubject {
            kind: InTotoSubjectKind::Raw.into(),
            digest: vec![digest.to_owned()],
            name: "n".to_owned(),
        };
        let digest = Digest::sha256(b"x");
        let AttestedSubject::Other { digests, .. } = subject(&raw(digest.as_str())).expect("is one") else {
            panic!("something else")
        };
        assert_eq!(digests["sha256"], digest.hex());
        assert!(subject(&raw("sha256:../x")).is_err());
        assert_eq!(subject(&InTotoSubject::default()).expect("is one"), AttestedSubject::Result);
        assert!(subject(&InTotoSubject { kind: 7, ..InTotoSubject::default() }).is_err());
    }
}
