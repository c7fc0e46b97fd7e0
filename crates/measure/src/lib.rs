//! What is measured in the small and is pure: one list of cases, for criterion's clock and for valgrind's counts.
//!
//! Owns the inputs (made, always the same) and what one round of each case does. A round does the same instructions
//! every time: no files, no threads; what needs these is beside the clock, in `benches/`. Must not know how rounds
//! are timed. Start with [`Case`].

mod inputs;

use std::hint::black_box;

use stave_frontend_dockerfile::{Lowered, PlanRequest, lower, parse, plan};
use stave_llb::Definition;
use stave_llb::pattern::PatternMatcher;
use stave_oci::ImageConfig;
use stave_solver::key;

/// One thing that is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Case {
    /// Text of 200 lines to an AST.
    Parse,
    /// The AST to a plan.
    Plan,
    /// The plan to a definition.
    Lower,
    /// A definition to bytes and back.
    Wire,
    /// The cache keys of a definition's vertices.
    Keys,
    /// 10,000 paths against a `.dockerignore`.
    Patterns,
    /// An image configuration from JSON and back.
    Config,
}

impl Case {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Parse, Self::Plan, Self::Lower, Self::Wire, Self::Keys, Self::Patterns, Self::Config];

    /// Its name on command lines and in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Parse => "parse",
            Self::Plan => "plan",
            Self::Lower => "lower",
            Self::Wire => "wire",
            Self::Keys => "keys",
            Self::Patterns => "patterns",
            Self::Config => "config",
        }
    }

    /// Prepares the inputs; each call of what is returned is one round.
    pub fn prepare(self) -> Box<dyn FnMut()> {
        match self {
            Self::Parse => {
                let source = inputs::dockerfile();
                Box::new(move || drop(black_box(parse(black_box(&source)))))
            }
            Self::Plan => {
                let parsed = parse(&inputs::dockerfile());
                let request = request();
                Box::new(move || drop(black_box(plan(black_box(&parsed.dockerfile), &request))))
            }
            Self::Lower => {
                let (planned, resolved) = inputs::planned(&request());
                Box::new(move || drop(black_box(lower(black_box(&planned), &resolved))))
            }
            Self::Wire => {
                let Lowered { definition, .. } = inputs::lowered(&request());
                Box::new(move || {
                    let bytes = black_box(&definition).to_wire();
                    drop(black_box(Definition::from_wire(&bytes)));
                })
            }
            Self::Keys => {
                let Lowered { definition, .. } = inputs::lowered(&request());
                Box::new(move || drop(black_box(key::definition_keys(black_box(&definition)))))
            }
            Self::Patterns => patterns(),
            Self::Config => {
                let json = inputs::config();
                Box::new(move || {
                    let config = serde_json::from_slice::<ImageConfig>(black_box(&json));
                    drop(black_box(config.map(|config| config.to_bytes())));
                })
            }
        }
    }
}

/// What the inputs are planned for.
pub fn request() -> PlanRequest {
    PlanRequest::new(stave_oci::Platform::new("linux", "amd64", None))
}

fn patterns() -> Box<dyn FnMut()> {
    let matcher =
        PatternMatcher::new(["**/node_modules", "*.log", "!keep.log", "docs/**/*.md", ".git", "build-*"]);
    let matcher = sound(matcher);
    let paths: Vec<String> =
        (0..10_000).map(|file| format!("src/p{}/q{}/f{file}.rs", file / 1000, file / 50 % 20)).collect();
    Box::new(move || {
        let hidden = paths.iter().filter(|path| matcher.matches(black_box(path))).count();
        black_box(hidden);
    })
}

/// The inputs are the project's own: one that is refused is a defect of this crate.
///
/// # Panics
/// Where it is refused.
pub fn sound<T, E: std::fmt::Display>(result: Result<T, E>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => panic!("an input of a measurement is not sound: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_runs_twice() {
        for case in Case::ALL {
            let mut round = case.prepare();
            round();
            round();
        }
    }
}
