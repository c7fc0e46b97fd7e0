//! The machine that figures were taken on: they mean nothing without it.

use std::process::Command;

use crate::machine;

/// Processor, memory, kernel, and how busy it was at the start.
pub(crate) struct MachineFacts {
    processor: String,
    cores: usize,
    memory: String,
    kernel: String,
    load: String,
}

impl MachineFacts {
    pub(crate) fn read() -> Self {
        let field = |file: &str, name: &str| {
            let text = std::fs::read_to_string(file).unwrap_or_default();
            let line = text.lines().find(|line| line.starts_with(name)).map(str::to_owned);
            line.and_then(|line| line.split_once(':').map(|(_, value)| value.trim().to_owned()))
        };
        let unknown = || "unknown".to_owned();
        Self {
            processor: field("/proc/cpuinfo", "model name").unwrap_or_else(unknown),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory: field("/proc/meminfo", "MemTotal").unwrap_or_else(unknown),
            kernel: machine::read(Command::new("uname").arg("-sr"))
                .map_or_else(|_| unknown(), |text| text.trim().to_owned()),
            load: load(),
        }
    }

    /// One paragraph; `versions` are the builders'.
    pub(crate) fn describe(&self, versions: &[String]) -> String {
        format!(
            "{} cores of {}, {}, {}; load {} at the start, {} at the end (1, 5, 15 minutes). {}.\n",
            self.cores,
            self.processor,
            self.memory,
            self.kernel,
            self.load,
            load(),
            versions.join("; ")
        )
    }
}

fn load() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().take(3).collect::<Vec<_>>().join(" ")
}
