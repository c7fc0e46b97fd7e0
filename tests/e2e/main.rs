//! The program as a user runs it: real files, real sandboxes, a real registry, real clients.
//!
//! Each test has its own state directory. Tests that need base images take them from the registry that
//! `STAVE_TEST_REGISTRY` names (`cargo xtask test` makes and serves them). Start with [`environment`].

mod architecture;
mod bad_input;
mod browser;
mod build;
mod buildx;
mod cache;
mod certificates;
mod checks;
mod chroot;
mod confinement;
mod crash;
mod daemon;
mod elsewhere;
mod environment;
mod escapes;
mod explain;
mod exports;
mod failures;
mod gateway;
mod hostile;
mod images;
mod inputs;
mod interop;
mod language;
mod network;
mod outputs;
mod policy;
mod reproducible;
mod rootless;
mod run;
mod safety;
mod scenarios;
mod sources;
mod store;
mod team;
mod travel;
mod workloads;
