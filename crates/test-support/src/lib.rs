//! Fixtures for tests and benchmarks.
//!
//! Start with [`TestRegistry`] and [`workloads::Workload`].

pub mod fake_worker;
pub mod registry;
pub mod workloads;

pub use fake_worker::FakeWorker;
pub use registry::TestRegistry;
