//! The program as a user runs it: real files, real sandboxes, a real registry, real clients.
//!
//! Each test has its own state directory. Tests that need base images take them from the registry that
//! `STAVE_TEST_REGISTRY` names (`cargo xtask test` makes and serves them). Start with [`environment`].

mod architecture;
mod bad_input;
mod build;
mod cache;
mod checks;
mod environment;
mod hostile;
mod images;
mod interop;
mod outputs;
mod run;
mod safety;
mod workloads;
