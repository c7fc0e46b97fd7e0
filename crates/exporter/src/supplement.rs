//! What only an export knows of a bill of materials: the layer of each file, written into it as BuildKit writes it.
//!
//! Owns that text (`layerID: sha256:…`, the comment of a file that has none). What is no SPDX of version 2 stays as it is.
//! Must not know how bills are made. Start with [`supplemented`].

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::path::{Component, Path, PathBuf};

use serde_json::{Value, json};
use stave_oci::{Descriptor, Digest};
use stave_store::{Snapshot, Store, StoreError};

use crate::image::{Attestation, Image};

/// The versions of SPDX that are understood.
const VERSION: &str = "SPDX-2.";
/// Who has written something into a bill.
const CREATOR: &str = concat!("Tool: stave-", env!("CARGO_PKG_VERSION"));

/// Whether an image has anything that [`supplemented`] may change.
pub(crate) fn has_bills(image: &Image) -> bool {
    image.attestations.iter().any(|attestation| attestation.is_core_bill)
}

/// The image whose main bills of materials tell of `layers`, which are its layers as they leave. Reads what names the layers
/// hold, each layer once: nothing for a thread that others wait for.
///
/// # Errors
/// When a layer cannot be read.
pub(crate) fn supplemented<'a>(
    store: &Store,
    image: &'a Image,
    layers: &[Descriptor],
) -> Result<Cow<'a, Image>, StoreError> {
    let mut image = Cow::Borrowed(image);
    let read = |(at, attestation): (usize, &Attestation)| -> Option<(usize, Value)> {
        let bill =
            attestation.is_core_bill.then(|| serde_json::from_slice(&attestation.predicate).ok())??;
        is_understood(&bill).then_some((at, bill))
    };
    let bills: Vec<_> = image.attestations.iter().enumerate().filter_map(read).collect();
    let wanted = bills.iter().flat_map(|(_, bill)| bill.get("files")?.as_array()).flatten();
    let mut wanted: HashSet<PathBuf> = wanted.filter_map(untold).collect();
    let mut holders = HashMap::with_capacity(wanted.len());
    // The uppermost comes first: what a file is, it is there.
    for (layer, sent) in image.layers.iter().zip(layers).rev() {
        if wanted.is_empty() {
            break;
        }
        for entry in store.view(&Snapshot::new(vec![layer.layer]))?.walk() {
            if let Some(path) = wanted.take(entry?.path()) {
                holders.insert(path, &sent.digest);
            }
        }
    }
    for (at, bill) in bills {
        image.to_mut().attestations[at].predicate = told(bill, &holders).to_string().into_bytes();
    }
    Ok(image)
}

fn is_understood(bill: &Value) -> bool {
    let version = bill.get("spdxVersion").and_then(Value::as_str);
    version.is_some_and(|version| version.starts_with(VERSION))
}

/// Where a file of a bill is that nothing is said of yet: what scanners say is not overwritten.
fn untold(file: &Value) -> Option<PathBuf> {
    let comment = file.get("comment").and_then(Value::as_str);
    comment.is_none_or(str::is_empty).then(|| file.get("fileName")?.as_str().map(inside))?
}

/// The bill with what is known of its files.
fn told(mut bill: Value, holders: &HashMap<PathBuf, &Digest>) -> Value {
    for file in bill.get_mut("files").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(layer) = untold(file).and_then(|path| holders.get(&path)) {
            file["comment"] = json!(format!("layerID: {layer}"));
        }
    }
    if let Some(about) = bill.as_object_mut() {
        let about = about.entry("creationInfo").or_insert_with(|| json!({}));
        if let Some(about) = about.as_object_mut()
            && let Some(creators) = about.entry("creators").or_insert_with(|| json!([])).as_array_mut()
        {
            creators.push(json!(CREATOR));
        }
    }
    bill
}

/// A path as one below the root, whatever it says.
fn inside(name: &str) -> PathBuf {
    let mut path = PathBuf::new();
    for part in Path::new(name).components() {
        match part {
            Component::Normal(name) => path.push(name),
            Component::ParentDir => drop(path.pop()),
            _ => {}
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use std::fs;

    use stave_oci::ImageConfig;

    use super::*;

    #[test]
    fn files_of_a_bill_have_their_layers() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::open(folder.path()).expect("a store");
        let made = |below: &Snapshot, names: &[&str]| {
            let layer = store.prepare(below).expect("a layer");
            fs::create_dir(layer.upper().join("d")).expect("made");
            names.iter().try_for_each(|name| fs::write(layer.upper().join(name), name)).expect("written");
            layer.commit().expect("commits")
        };
        let below = made(&Snapshot::scratch(), &["d/a", "both"]);
        let snapshot = made(&below, &["d/b", "both"]);
        let bill = json!({
            "spdxVersion": "SPDX-2.3",
            "files": [
                { "fileName": "/d/a" }, { "fileName": "d/../d/b" }, { "fileName": "/both" },
                { "fileName": "/../../nowhere" }, { "fileName": "/d/a", "comment": "the scanner's" }, 7,
            ],
        });
        let attested = |predicate: &Value, is_core_bill| Attestation {
            predicate: predicate.to_string().into_bytes(),
            is_core_bill,
            ..Attestation::default()
        };
        let other = json!({ "name": "no SPDX", "files": [{ "fileName": "/d/a" }] });
        let mut image = Image::built(ImageConfig::default(), &snapshot, &[]);
        image.attestations = vec![attested(&bill, true), attested(&other, true), attested(&bill, false)];
        let sent = ["lower", "upper"].map(|name| Descriptor::of("application/x", name.as_bytes()));
        let told = supplemented(&store, &image, &sent).expect("reads");
        let read = |at: usize| -> Value {
            serde_json::from_slice(&told.attestations[at].predicate).expect("is JSON")
        };
        let comment = |name: &str| json!(format!("layerID: {}", Digest::sha256(name.as_bytes())));
        let files = read(0)["files"].clone();
        let comments: Vec<&Value> = (0..6).map(|at| &files[at]["comment"]).collect();
        let (lower, upper, own) = (comment("lower"), comment("upper"), json!("the scanner's"));
        assert_eq!(comments, [&lower, &upper, &upper, &Value::Null, &own, &Value::Null]);
        assert_eq!(read(0)["creationInfo"]["creators"], json!([CREATOR]));
        assert_eq!((read(1), read(2)), (other, bill));
        image.attestations.clear();
        let told = supplemented(&store, &image, &sent).expect("reads");
        assert!(matches!(told, Cow::Borrowed(_)));
    }
}
