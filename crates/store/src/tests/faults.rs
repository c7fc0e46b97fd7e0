//! A disk that refuses one change: a typed error or none at all, nothing half-written, and the next try works.
//!
//! Every change of the disk that the store makes has a name and can be refused ([`crate::fault`]). Here everything
//! that writes is done again and again, with the first, the second, the third of its changes refused, until none is.

use std::collections::BTreeSet;
use std::path::Path;

use rustix::io::Errno;

use super::{TestStore, count, layer};
use crate::fault::{fired, refuse_nth};
use crate::{ApplyOptions, LocalImage, PruneRequest, Sharing, Snapshot, Store, StoreError, examine};

type Work = fn(&Path) -> Result<(), StoreError>;

/// An archive with an entry of each kind that is unpacked in its own way.
fn tar() -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut add = |name: &str, kind: tar::EntryType, target: Option<&str>, data: &[u8]| {
        let mut header = tar::Header::new_ustar();
        header.set_size(data.len() as u64);
        header.set_entry_type(kind);
        header.set_mode(0o644);
        if let Some(target) = target {
            header.set_link_name(target).expect("a short name");
        }
        tar.append_data(&mut header, name, data).expect("an entry");
    };
    add("d/", tar::EntryType::Directory, None, b"");
    add("d/file", tar::EntryType::Regular, None, b"1");
    add("e/f/file", tar::EntryType::Regular, None, b"2");
    add("d/link", tar::EntryType::Symlink, Some("file"), b"");
    add("d/again", tar::EntryType::Link, Some("d/file"), b"");
    add("d/pipe", tar::EntryType::Fifo, None, b"");
    add("d/file", tar::EntryType::Regular, None, b"3");
    add("e/.wh.gone", tar::EntryType::Regular, None, b"");
    add("e/.wh..wh..opq", tar::EntryType::Regular, None, b"");
    let mut attributes = tar::Header::new_ustar();
    attributes.set_size(1);
    attributes.set_mode(0o755);
    tar.append_pax_extensions([("SCHILY.xattr.user.note", &b"kept"[..])]).expect("an extension");
    tar.append_data(&mut attributes, "g", &b"4"[..]).expect("an entry");
    tar.into_inner().expect("an archive")
}

/// Everything that writes, one after the other; the first error ends it.
fn work(root: &Path) -> Result<(), StoreError> {
    let store = Store::open(root)?;
    let _lease = store.lease()?;
    store.secret_key()?;
    let active = store.prepare(&Snapshot::scratch())?;
    std::fs::write(active.upper().join("a"), "1").expect("a file");
    let made = active.commit()?;
    store.prepare(&made)?.commit()?;
    let applied = store.apply_layer(&tar()[..], &ApplyOptions::default())?;
    let mut writer = store.blob_writer(None, 100)?;
    writer.push(b"blob")?;
    writer.commit()?;
    store.mutable_dir("cache", Sharing::Shared)?.initialised()?;
    let top = made.top().expect("a layer");
    let diff_id = store.diff_id(top)?;
    let image = LocalImage {
        id: stave_oci::Digest::sha256(b"{}"),
        config: b"{}".to_vec(),
        layers: vec![
            crate::ImageLayer { layer: top, diff_id, blob: None },
            crate::ImageLayer { layer: applied.layer, diff_id: applied.diff_id, blob: None },
        ],
        manifest: None,
        platform: stave_oci::Platform::new("linux", "amd64", None),
    };
    let name = "it".parse().expect("a name");
    store.put_image(&[name], &image)?;
    store.untag(&"it".parse().expect("a name"))?;
    store.remove_image(&image.id)?;
    store.prune(&PruneRequest::unused())?;
    Ok(())
}

/// What waits for the disk, which takes long.
fn synced_work(root: &Path) -> Result<(), StoreError> {
    let store = Store::open(root)?;
    store.prepare(&Snapshot::scratch())?.commit()?;
    store.sync()
}

/// Does the work with the change after `allowed` ones refused; its name, or `None` when there are no more.
fn with_refused(work: Work, allowed: usize, error: Errno) -> Option<&'static str> {
    let test = TestStore::in_memory();
    let kept = layer(&test.store, &Snapshot::scratch(), "kept", "1");
    let lease = test.store.lease().expect("a lease");
    assert!(test.store.exists(&kept).expect("an answer"));
    refuse_nth(allowed, error);
    let outcome = work(test.root());
    let point = fired()?;
    match (outcome, error) {
        // What is only tidied up later may fail unheard.
        (Ok(()), _) => {}
        (Err(StoreError::StorageFull { .. }), Errno::NOSPC) => {}
        (Err(StoreError::Io { .. } | StoreError::Layer(_)), Errno::IO) => {}
        (Err(other), _) => panic!("{point}: {other:?}"),
    }
    assert!(test.store.exists(&kept).expect("an answer"), "{point}");
    work(test.root()).unwrap_or_else(|error| panic!("after {point}: {error:?}"));
    assert!(test.store.exists(&kept).expect("an answer"), "{point}");
    drop(lease);
    test.store.prune(&PruneRequest::unused()).expect("a collection");
    let root = test.directory;
    drop(test.store);
    // What could not be removed falls to the next opening.
    drop(Store::open(root.path()).expect("an opening"));
    assert_eq!(examine(root.path(), false).expect("an examination"), [], "{point}");
    for slot in std::fs::read_dir(root.path().join("tmp")).expect("a directory").flatten() {
        assert_eq!(count(&slot.path()), 0, "{point}");
    }
    Some(point)
}

#[test]
fn each_change_may_be_refused_by_the_disk() {
    let points: Vec<_> = (0..).map_while(|allowed| with_refused(work, allowed, Errno::NOSPC)).collect();
    let names: BTreeSet<_> = points.iter().collect();
    assert!(points.len() > 100 && names.len() > 30, "{} changes: {names:?}", points.len());
    // In another way once for each name.
    for name in names {
        let first = points.iter().position(|point| point == name).expect("it is one of them");
        assert_eq!(with_refused(work, first, Errno::IO), Some(*name));
    }
}

#[test]
fn a_sync_may_fail() {
    let names: BTreeSet<_> = (0..).map_while(|at| with_refused(synced_work, at, Errno::IO)).collect();
    assert!(names.contains("sync"), "{names:?}");
}
