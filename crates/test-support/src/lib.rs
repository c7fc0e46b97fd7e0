//! Fixtures for tests and benchmarks.
//!
//! Start with [`workloads::Workload`].

pub mod workloads;
