//! How much memory the processes of a sandbox hold, without a control group.
//!
//! The kernel keeps the largest resident set of single processes; what many of them hold together is summed here from
//! `/proc`, when somebody asks. Pages of files do not count: the kernel can take them back. Read [`Meter`] first.

use std::fs;
use std::io::Read as _;
use std::os::fd::{AsRawFd as _, OwnedFd};

/// Processes looked at for one sum.
const MAX_PROCESSES: usize = 10_000;

/// Measures the processes below one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Meter {
    /// The first process, as this process sees it.
    first: u32,
}

impl Meter {
    /// For the process behind a pidfd; `None` when it has ended.
    pub(crate) fn of(pidfd: &OwnedFd) -> Option<Self> {
        let mut info = [0; 512];
        let mut file = fs::File::open(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd())).ok()?;
        let length = file.read(&mut info).ok()?;
        let info = std::str::from_utf8(&info[..length]).ok()?;
        let pid = info.lines().find_map(|line| line.strip_prefix("Pid:"))?;
        Some(Self { first: pid.trim().parse().ok()? })
    }

    /// Bytes of memory held now, files' pages left out; zero when all have ended.
    #[must_use]
    pub fn memory(&self) -> u64 {
        let page = rustix::param::page_size() as u64;
        let (mut waiting, mut seen, mut pages) = (vec![self.first], 0, 0);
        while let Some(pid) = waiting.pop() {
            seen += 1;
            if seen > MAX_PROCESSES {
                break;
            }
            // A process may end while it is looked at; then it holds nothing.
            pages += fs::read_to_string(format!("/proc/{pid}/statm")).map_or(0, |text| held(&text));
            for task in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
                let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
                waiting.extend(children.split_whitespace().filter_map(|child| child.parse::<u32>().ok()));
            }
        }
        pages * page
    }
}

/// Resident pages that are no file's, from `/proc/<pid>/statm`: size, resident, shared, …
fn held(statm: &str) -> u64 {
    let mut fields = statm.split_whitespace().skip(1).map(|field| field.parse::<u64>().unwrap_or(0));
    let (resident, shared) = (fields.next().unwrap_or(0), fields.next().unwrap_or(0));
    resident.saturating_sub(shared)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_do_not_count() {
        assert_eq!(held("1000 300 120 5 0 200 0\n"), 180);
        assert_eq!(held("1000 100 120"), 0);
        assert_eq!(held(""), 0);
    }

    #[test]
    fn own_memory_is_seen() {
        let block = vec![1_u8; 64 << 20];
        let meter = Meter { first: std::process::id() };
        assert!(meter.memory() >= 64 << 20, "{}", meter.memory());
        drop(block);
    }
}
