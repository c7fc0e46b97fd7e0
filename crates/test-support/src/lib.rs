//! Fixtures for tests and benchmarks.
//!
//! Start with [`TestRegistry`] and [`workloads::Workload`].

pub mod bucket;
pub mod fake_worker;
pub mod git_server;
pub mod registry;
pub mod workloads;

pub use bucket::TestBucket;
pub use fake_worker::FakeWorker;
pub use git_server::GitServer;
pub use registry::TestRegistry;
