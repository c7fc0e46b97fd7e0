//! What is said of a build's results, for its record: where a build came from is taken down whether or not it leaves with
//! the image.
//!
//! Start with [`Build::attest_for_record`] and [`Build::take_down`].

use std::collections::{BTreeMap, HashMap};
use std::sync::PoisonError;

use stave_engine::attest::{Attest, Provenance, ProvenanceMode, SlsaVersion};
use stave_exporter::Image;
use stave_oci::Descriptor;

use super::Build;
use crate::history::Attachment;

/// What BuildKit calls a statement.
const IN_TOTO: &str = "application/vnd.in-toto+json";
const PREDICATE_TYPE: &str = "in-toto.io/predicate-type";
/// How the types of provenance begin.
const PROVENANCE: &str = "https://slsa.dev/provenance/";
/// Most statements of one record.
const MAX_SAID: usize = 256;
/// Bytes of the longest statement that is kept.
const MAX_BYTES: usize = 16 << 20;

impl Build {
    /// What is to be said of a result: what the client wants, and where it came from in any case. Blobs of layers are
    /// made for nobody who did not ask.
    pub(crate) fn attest_for_record(&self, is_image: bool) -> Attest {
        let mut attest = self.wanted.attest.clone();
        if attest.provenance.is_none() && self.recorder.is_some() {
            attest.provenance = Some(Provenance {
                // The layers' blobs are only there if somebody wants them.
                mode: if is_image { ProvenanceMode::Min } else { ProvenanceMode::Max },
                version: SlsaVersion::V1,
                builder_id: String::new(),
                reproducible: false,
                complete_materials: false,
            });
        }
        attest
    }

    /// Takes down what is said of an image; what nobody asked for stays here.
    pub(crate) fn take_down(&self, mut image: Image) -> Image {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        for attestation in &image.attestations {
            if said.len() >= MAX_SAID || attestation.predicate.len() > MAX_BYTES {
                continue;
            }
            let kind = attestation.predicate_type.clone();
            said.push(Attachment {
                annotations: HashMap::from([(PREDICATE_TYPE.to_owned(), kind)]),
                ..Attachment::new(IN_TOTO, attestation.predicate.clone())
            });
        }
        if self.wanted.attest.provenance.is_none() {
            image.attestations.retain(|attestation| !attestation.predicate_type.starts_with(PROVENANCE));
        }
        image
    }

    /// Takes down what an exporter made.
    pub(crate) fn note_made(&self, exporter: usize, made: Descriptor) {
        self.made.lock().unwrap_or_else(PoisonError::into_inner).insert(exporter, made);
    }

    /// What the exporters made so far.
    pub(crate) fn made(&self) -> BTreeMap<usize, Descriptor> {
        std::mem::take(&mut *self.made.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What was said so far.
    pub(crate) fn said(&self) -> Vec<Attachment> {
        std::mem::take(&mut *self.said.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
