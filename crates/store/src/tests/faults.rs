//! A disk that refuses one operation: a typed error, nothing half-written, and the next try works.

use rustix::io::Errno;

use super::{TestStore, count, layer};
use crate::fault::{self, POINTS};
use crate::{ApplyOptions, LocalImage, PruneRequest, Snapshot, Store, StoreError, examine};

fn tar() -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(1);
    tar.append_data(&mut header, "file", &b"1"[..]).expect("an entry");
    tar.into_inner().expect("an archive")
}

/// Everything that writes, one after the other; the first error ends it.
fn work(store: &Store) -> Result<(), StoreError> {
    let _lease = store.lease()?;
    let active = store.prepare(&Snapshot::scratch())?;
    std::fs::write(active.upper().join("a"), "1").expect("a file");
    let made = active.commit()?;
    let applied = store.apply_layer(&tar()[..], &ApplyOptions::default())?;
    let mut writer = store.blob_writer(None, 100)?;
    writer.push(b"blob")?;
    writer.commit()?;
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
    store.put_image(&["it".parse().expect("a name")], &image)?;
    store.untag(&"it".parse().expect("a name"))?;
    store.remove_image(&image.id)?;
    store.prune(&PruneRequest::unused())?;
    Ok(())
}

#[test]
fn each_write_may_be_refused_by_the_disk() {
    for error in [Errno::NOSPC, Errno::IO] {
        for point in POINTS {
            let test = TestStore::new();
            let kept = layer(&test.store, &Snapshot::scratch(), "kept", "1");
            let lease = test.store.lease().expect("a lease");
            assert!(test.store.exists(&kept).expect("an answer"));
            fault::fail_at(point, error);
            let refused = work(&test.store).expect_err(point);
            fault::fail_nowhere();
            match error {
                Errno::NOSPC => {
                    assert!(matches!(refused, StoreError::StorageFull { .. }), "{point}: {refused:?}");
                }
                _ => {
                    assert!(matches!(refused, StoreError::Io { .. }), "{point}: {refused:?}");
                }
            }
            let session = test.root().join("tmp").join(test.store.inner.session.slot());
            assert!(test.store.exists(&kept).expect("an answer"), "{point}");
            work(&test.store).unwrap_or_else(|error| panic!("after {point}: {error:?}"));
            drop(lease);
            test.store.prune(&PruneRequest::unused()).expect("a collection");
            // The end of the session waits for what is removed beside it.
            let root = test.directory;
            drop(test.store);
            assert_eq!(count(&session), 0, "{point}");
            assert_eq!(examine(root.path(), false).expect("an examination"), [], "{point}");
        }
    }
}
