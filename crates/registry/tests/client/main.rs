//! The client against a scripted registry: every fault of a registry, and what becomes of it.

mod auth;
mod pull;
mod push;
mod referrers;
mod resolve;
mod tls;

use std::time::Duration;

use stave_registry::{Client, ClientConfig, Keychain, Limits, RegistryTables};
use stave_test_support::TestRegistry;

/// Limits under which a failing test does not wait.
fn limits() -> Limits {
    Limits {
        attempts: 4,
        backoff: Duration::from_millis(1),
        backoff_ceiling: Duration::from_millis(2),
        retry_after_ceiling: Duration::from_secs(2),
        connect_timeout: Duration::from_secs(10),
        idle_timeout: Duration::from_secs(10),
        commit_timeout: Duration::from_secs(10),
        requests_at_once: 16,
        upload_chunk: None,
    }
}

fn config(tables: &str, keychain: Keychain) -> ClientConfig {
    ClientConfig {
        registries: RegistryTables::parse(tables).expect("the tables are valid"),
        keychain,
        limits: limits(),
        user_agent: "stave/test".to_owned(),
    }
}

fn client() -> Client {
    Client::new(config("", Keychain::anonymous())).expect("the tables are valid")
}

/// A client that soon gives a silent server up.
fn impatient() -> Client {
    let mut config = config("", Keychain::anonymous());
    config.limits.idle_timeout = Duration::from_millis(100);
    Client::new(config).expect("the tables are valid")
}

/// A client that prefers mirrors for one registry.
fn client_with_mirrors(registry: &TestRegistry, mirrors: &[&TestRegistry]) -> Client {
    let mirrors: Vec<String> = mirrors.iter().map(|mirror| format!("{:?}", mirror.host())).collect();
    let tables = format!("[registry.{:?}]\nmirrors = [{}]", registry.host(), mirrors.join(", "));
    Client::new(config(&tables, Keychain::anonymous())).expect("the tables are valid")
}

/// A client with these tables.
fn client_with_tables(tables: &str) -> Client {
    Client::new(config(tables, Keychain::anonymous())).expect("the tables are valid")
}

/// Bytes that differ everywhere, so that a piece lost or doubled shows.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let step = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    (0..length).map(step).collect()
}
