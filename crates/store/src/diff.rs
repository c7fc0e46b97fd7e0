//! From a layer directory to a layer archive. Start with [`Store::write_layer_tar`].

use std::io::Write;

use crate::{LayerId, Store, StoreError};

/// How exactly modification times are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Timestamps {
    /// Whole seconds, as BuildKit's and containerd's differs write them.
    Seconds,
    /// Nanoseconds, in a pax record for each entry that has them.
    Nanoseconds,
}

/// How a layer archive is written. The default is what [`Store::diff_id`] stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TarOptions {
    /// Modification times' precision.
    pub timestamps: Timestamps,
    /// Modification times after this (seconds since the epoch) become this: `SOURCE_DATE_EPOCH`.
    pub clamp: Option<i64>,
}

impl Default for TarOptions {
    fn default() -> Self {
        Self { timestamps: Timestamps::Seconds, clamp: None }
    }
}

impl Store {
    /// Writes the layer as a deterministic pax tar: sorted, whiteouts as `.wh.` entries.
    pub fn write_layer_tar(
        &self,
        layer: LayerId,
        output: &mut impl Write,
        options: &TarOptions,
    ) -> Result<(), StoreError> {
        let _ = output;
        todo!("{layer} {options:?}")
    }
}
