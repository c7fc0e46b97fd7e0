//! Any text: parsed, planned and lowered with images made up. `cargo fuzz run dockerfile` in the crate's folder.
#![no_main]

use libfuzzer_sys::fuzz_target;
use stave_frontend_dockerfile::{PlanRequest, exchange::drive};
use stave_oci::Platform;

fuzz_target!(|text: &str| {
    // Long texts find the same, slower.
    if text.len() < 4096 {
        drop(drive(text, &PlanRequest::new(Platform::new("linux", "amd64", None))));
    }
});
