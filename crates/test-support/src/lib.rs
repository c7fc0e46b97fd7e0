//! Fixtures for tests and benchmarks.
//!
//! Start with [`TestRegistry`] and [`workloads::Workload`].

pub mod registry;
pub mod workloads;

pub use registry::TestRegistry;
