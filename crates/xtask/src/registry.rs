//! Debian's `docker-registry` on a loopback port, for as long as the guard lives.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::Failure;

/// How long a registry may take to answer its port.
const START: Duration = Duration::from_secs(20);

/// A running registry; ends with the guard.
pub(crate) struct Registry {
    process: Child,
    address: SocketAddr,
}

impl Registry {
    /// Serves `storage` on a free loopback port.
    pub(crate) fn start(storage: &Path) -> Result<Self, Failure> {
        std::fs::create_dir_all(storage)?;
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let config = storage.join("config.yml");
        let text = format!(
            "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\nstorage:\n  cache: {{blobdescriptor: inmemory}}\n  \
             filesystem: {{rootdirectory: {}}}\n  delete: {{enabled: true}}\nhttp: {{addr: \"{address}\"}}\n",
            storage.display()
        );
        std::fs::write(&config, text)?;
        let log = std::fs::File::create(storage.join("log"))?;
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(&config).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let process = command.spawn().map_err(|error| format!("cannot start docker-registry: {error}"))?;
        let mut registry = Self { process, address };
        registry.wait()?;
        Ok(registry)
    }

    fn wait(&mut self) -> Result<(), Failure> {
        let deadline = Instant::now() + START;
        while Instant::now() < deadline {
            if TcpStream::connect(self.address).is_ok() {
                return Ok(());
            }
            if let Some(status) = self.process.try_wait()? {
                return Err(format!("docker-registry ended at once: {status}").into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Err(format!("docker-registry does not answer on {}", self.address).into())
    }

    /// `host:port`.
    pub(crate) fn host(&self) -> String {
        self.address.to_string()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // Already ended is as good as killed.
        drop(self.process.kill());
        drop(self.process.wait());
    }
}
