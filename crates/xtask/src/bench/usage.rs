//! What an operation took of the machine.

use std::time::Duration;

use crate::Failure;

/// Wall and processor time, memory and disk of one operation, children and daemon included.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Usage {
    pub(crate) wall: Duration,
    /// User and system time of all processes.
    pub(crate) cpu: Duration,
    /// Most resident bytes of the client's largest process, plus the daemon's.
    pub(crate) memory: u64,
    /// Bytes handed to the block layer.
    pub(crate) written: u64,
}

impl Usage {
    /// The format that is asked of GNU time.
    pub(crate) const TIME_FORMAT: &'static str = "%U %S %M %O";

    /// Reads what GNU time wrote: seconds of user and system time, KiB, blocks of 512 bytes. A command
    /// that failed has a line of words before.
    pub(crate) fn parse(text: &str, wall: Duration) -> Result<Self, Failure> {
        let line = text.lines().last().unwrap_or_default();
        let fields: Vec<f64> = line.split_whitespace().filter_map(|field| field.parse().ok()).collect();
        let &[user, system, kibibytes, blocks] = fields.as_slice() else {
            return Err(format!("time wrote {text:?}").into());
        };
        let whole = |value: f64| format!("{value:.0}").parse::<u64>().unwrap_or(0);
        Ok(Self {
            wall,
            cpu: Duration::from_secs_f64(user + system),
            memory: whole(kibibytes) * 1024,
            written: whole(blocks) * 512,
        })
    }

    /// With what a daemon took meanwhile.
    pub(crate) fn plus(self, other: Self) -> Self {
        Self {
            wall: self.wall,
            cpu: self.cpu + other.cpu,
            memory: self.memory + other.memory,
            written: self.written + other.written,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_time_writes_is_read() {
        let usage = Usage::parse("1.50 0.25 2048 16\n", Duration::from_secs(3)).expect("is whole");
        assert_eq!(usage.cpu, Duration::from_millis(1750));
        assert_eq!((usage.memory, usage.written), (2 << 20, 8192));
        assert!(Usage::parse("no figures", Duration::ZERO).is_err());
    }
}
