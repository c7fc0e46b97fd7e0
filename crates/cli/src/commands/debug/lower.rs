//! `stave debug lower`: the front end alone, on JSON lines. Images resolve through one file; nothing is
//! fetched. What comes out is how the lowering is held against other front ends'.

use std::fs;
use std::io::{self, BufRead as _, Write as _};
use std::path::Path;

use stave_frontend_dockerfile::exchange::{Images, answer};

use crate::report::Failure;

/// Answers every case of standard input.
pub(super) fn run(images: &Path) -> Result<u8, Failure> {
    let failed = |error: io::Error| Failure::message(format!("cannot read `{}`: {error}", images.display()));
    let text = fs::read_to_string(images).map_err(failed)?;
    let images = Images::parse(&text).map_err(|error| Failure::new(&error))?;
    let mut out = io::BufWriter::new(io::stdout().lock());
    for line in io::stdin().lock().lines() {
        let line = line.map_err(|error| Failure::new(&error))?;
        let answer = answer(&line, &images).map_err(|error| Failure::new(&error))?;
        writeln!(out, "{answer}").map_err(|error| Failure::new(&error))?;
    }
    out.flush().map_err(|error| Failure::new(&error))?;
    Ok(0)
}
