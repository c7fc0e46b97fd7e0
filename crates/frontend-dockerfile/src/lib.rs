//! Dockerfile text to AST, plan and LLB: the front end.
//!
//! A map, in the order a Dockerfile travels:
//!
//! - [`source`], [`diagnostic`]: text, spans and what is said about them;
//! - [`ast`]: the syntax tree, the result of [`parse()`]. Behind it: `lines` joins continuations and
//!   heredocs, `grammar` reads a line with pest (`dockerfile.pest`), `instruction` types it;
//! - [`request`], [`input`]: what the caller wants, where files come from, which images were found;
//! - [`plan()`]: stages, scopes of `ARG`, triggers, reachability: [`BuildPlan`];
//! - [`scope`], [`expand`], [`mount`]: variables and words, used while lowering;
//! - [`lower()`]: operations and image config;
//! - [`check`]: build checks; [`outline()`] and [`targets()`]: what a file can be asked for; `view`: the
//!   tree and the plan as JSON; `include`: files a Dockerfile of our own includes; [`dockerignore`]: the ignore file; [`attributes`]: requests as BuildKit's
//!   clients write them; [`exchange`]: all of it as JSON lines, to be compared.
//!
//! Nothing here does I/O, waits, reads a clock or an environment: images are asked for with
//! [`BuildPlan::missing`] and handed in as [`ResolvedSources`]. Start with [`Dockerfile`],
//! [`BuildPlan`] and, for the result, [`Lowered`].

pub mod ast;
pub mod attributes;
mod boolean;
pub mod check;
pub mod diagnostic;
mod dialect;
pub mod dockerignore;
mod duration;
mod epoch;
pub mod exchange;
pub mod expand;
mod flags;
mod git;
mod grammar;
mod heredoc;
mod include;
pub mod input;
mod instruction;
mod lines;
pub mod lower;
pub mod mount;
pub mod outline;
mod parse;
mod path;
pub mod plan;
mod quote;
pub mod request;
pub mod scope;
pub mod source;
mod suggest;
mod url;
mod view;

pub use ast::Dockerfile;
pub use check::CheckReport;
pub use diagnostic::{Code, Diagnostic, Severity};
pub use dialect::{Dialect, OWN_SYNTAX, syntax_of};
pub use include::{Includes, TooMuchIncluded};
pub use input::{ContextSource, NamedContext};
pub use lower::{LowerError, Lowered, lower};
pub use outline::{Outline, Target, outline, targets};
pub use parse::{IncludeRequest, Parsed, parse};
pub use plan::{BuildPlan, PlanError, plan};
pub use request::{CommandRequest, ImageOrigin, PlanRequest, ResolvedImage, ResolvedSources, SourceRequest};
pub use source::{Source, Span};
