//! Layers to tars and back, in a store of their own.

use std::fs;
use std::hint::black_box;
use std::io;

use stave_store::{ApplyOptions, LayerId, Snapshot, Store, TarOptions};
use tempfile::TempDir;

use stave_measure::sound;

struct Bench {
    store: Store,
    layer: LayerId,
    _folder: TempDir,
}

/// A store with one layer of 1,000 files.
fn bench() -> Bench {
    let folder = sound(tempfile::tempdir());
    let store = sound(Store::open(folder.path()));
    let active = sound(store.prepare(&Snapshot::scratch()));
    for file in 0..1000_usize {
        let parent = active.upper().join(format!("d{}", file / 50));
        sound(fs::create_dir_all(&parent));
        sound(fs::write(parent.join(format!("f{file}")), vec![b'x'; file * 7 % 9000]));
    }
    let snapshot = sound(active.commit());
    let layer = snapshot.layers()[0];
    Bench { store, layer, _folder: folder }
}

pub(crate) fn tar() -> Box<dyn FnMut()> {
    let bench = bench();
    Box::new(move || {
        // The whole of it belongs to the round: its folder goes with it.
        let bench = &bench;
        sound(bench.store.write_layer_tar(bench.layer, &mut io::sink(), &TarOptions::default()));
    })
}

pub(crate) fn unpack() -> Box<dyn FnMut()> {
    let bench = bench();
    let mut archive = Vec::new();
    sound(bench.store.write_layer_tar(bench.layer, &mut archive, &TarOptions::default()));
    Box::new(move || {
        // A store that knows the archive would not unpack it again.
        let folder = sound(tempfile::tempdir());
        let store = sound(Store::open(folder.path()));
        black_box(sound(store.apply_layer(archive.as_slice(), &ApplyOptions::default())));
    })
}

pub(crate) fn digest() -> Box<dyn FnMut()> {
    let bench = bench();
    let mut archive = Vec::new();
    sound(bench.store.write_layer_tar(bench.layer, &mut archive, &TarOptions::default()));
    Box::new(move || {
        black_box(stave_oci::Digest::sha256(black_box(&archive)));
    })
}
