//! Limits of processes: the flags that `build` and `run` share, with docker's names, meaning and words.
//!
//! Must not know what is limited. Read [`Flags::limits`] first.

use std::time::Duration;

use stave_sandbox::{CgroupLimits, CpuQuota};

use super::build::size;
use crate::report::Failure;

/// docker refuses less: nothing starts in it.
const MIN_MEMORY: u64 = 6 << 20;
/// docker's default period of the CPU scheduler, in microseconds.
const PERIOD: u64 = 100_000;
/// Periods the kernel takes, in microseconds.
const PERIODS: std::ops::RangeInclusive<u64> = 1_000..=1_000_000;
/// Smallest quota the kernel takes, in microseconds.
const MIN_QUOTA: u64 = 1_000;

// Limits by control group
#[derive(Debug, Clone, Default, clap::Args)]
#[group(skip)]
pub(crate) struct Flags {
    /// Memory limit (`512m`)
    #[arg(short, long, value_name = "BYTES")]
    memory: Option<String>,
    /// Limit of memory and swap together, -1 for no limit of swap (default: twice the memory)
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    memory_swap: Option<String>,
    /// Number of CPUs (`1.5`)
    #[arg(long, value_name = "NUMBER", conflicts_with_all = ["cpu_period", "cpu_quota"])]
    cpus: Option<String>,
    /// Share of the CPUs while others want them too (1024 is one share)
    #[arg(short = 'c', long, value_name = "SHARES")]
    cpu_shares: Option<u64>,
    /// Period of the CPU quota in microseconds
    #[arg(long, value_name = "MICROSECONDS")]
    cpu_period: Option<u64>,
    /// CPU time in each period, in microseconds
    #[arg(long, value_name = "MICROSECONDS")]
    cpu_quota: Option<u64>,
    /// CPUs to use (`0-3`, `0,1`)
    #[arg(long, value_name = "LIST", value_parser = list)]
    cpuset_cpus: Option<String>,
    /// Memory nodes to use
    #[arg(long, value_name = "LIST", value_parser = list)]
    cpuset_mems: Option<String>,
    /// Limit of processes and threads, -1 for none
    #[arg(long, value_name = "NUMBER", allow_hyphen_values = true)]
    pids_limit: Option<i64>,
    /// Control group in which those of the processes are made
    #[arg(long, value_name = "GROUP")]
    pub(crate) cgroup_parent: Option<String>,
}

impl Flags {
    /// What the flags say.
    pub(crate) fn limits(&self) -> Result<CgroupLimits, Failure> {
        let usage = |text: String| Failure::usage(text);
        let mut limits = CgroupLimits {
            cpu_shares: self.cpu_shares.filter(|shares| *shares > 0),
            cpuset_cpus: self.cpuset_cpus.clone(),
            cpuset_mems: self.cpuset_mems.clone(),
            // docker: 0 and -1 are no limit.
            pids: self.pids_limit.and_then(|limit| u64::try_from(limit).ok()).filter(|limit| *limit > 0),
            ..CgroupLimits::default()
        };
        (limits.memory, limits.memory_swap) =
            memory(self.memory.as_deref(), self.memory_swap.as_deref()).map_err(usage)?;
        limits.cpu = match &self.cpus {
            Some(cpus) => Some(whole(cpus).map_err(usage)?),
            None => quota(self.cpu_period, self.cpu_quota).map_err(usage)?,
        };
        Ok(limits)
    }
}

/// `--resource`: the same limits as `name=value` fields, those of each step.
pub(crate) fn resources(words: &[String]) -> Result<CgroupLimits, Failure> {
    let mut flags = Flags::default();
    for field in words.iter().flat_map(|word| fields(word)) {
        let wrong = || Failure::usage(format!("invalid resource `{field}`"));
        let (name, value) = field.split_once('=').filter(|(_, value)| !value.is_empty()).ok_or_else(wrong)?;
        let value = value.to_owned();
        let number = || value.parse::<u64>().map_err(|_| wrong());
        match name {
            "memory" => flags.memory = Some(value),
            "memory-swap" => flags.memory_swap = Some(value),
            "cpus" => flags.cpus = Some(value),
            "cpu-shares" => flags.cpu_shares = Some(number()?),
            "cpu-period" => flags.cpu_period = Some(number()?),
            "cpu-quota" => flags.cpu_quota = Some(number()?),
            "cpuset-cpus" => flags.cpuset_cpus = Some(list(&value).map_err(Failure::usage)?),
            "cpuset-mems" => flags.cpuset_mems = Some(list(&value).map_err(Failure::usage)?),
            "pids" => flags.pids_limit = Some(value.parse().map_err(|_| wrong())?),
            other => return Err(Failure::usage(format!("unknown resource `{other}`"))),
        }
    }
    flags.limits()
}

/// Fields are parted by commas; so are the parts of a list (`cpuset-cpus=0,2`), which have no name.
fn fields(word: &str) -> Vec<String> {
    let mut fields: Vec<String> = Vec::new();
    for part in word.split(',') {
        match fields.last_mut().filter(|_| !part.contains('=')) {
            Some(last) => *last = format!("{last},{part}"),
            None => fields.push(part.to_owned()),
        }
    }
    fields
}

fn memory(memory: Option<&str>, swap: Option<&str>) -> Result<(Option<u64>, Option<u64>), String> {
    let bytes = |text: &str| size(text).map_err(|error| error.to_string());
    let memory = memory.map(bytes).transpose()?.filter(|memory| *memory > 0);
    if memory.is_some_and(|memory| memory < MIN_MEMORY) {
        return Err("Minimum memory limit allowed is 6MB".to_owned());
    }
    let swap = match swap {
        Some("-1") => Some(u64::MAX),
        Some(text) => Some(bytes(text)?).filter(|swap| *swap > 0),
        None => None,
    };
    match (memory, swap) {
        (None, Some(swap)) if swap != u64::MAX => {
            Err("You should always set the Memory limit when using Memoryswap limit, see usage".to_owned())
        }
        (Some(memory), Some(swap)) if swap < memory => {
            Err("Minimum memoryswap limit should be larger than memory limit, see usage".to_owned())
        }
        (Some(memory), None) => Ok((Some(memory), Some(memory.saturating_mul(2)))),
        both => Ok(both),
    }
}

/// `1.5` CPUs as a quota.
fn whole(text: &str) -> Result<CpuQuota, String> {
    let number: f64 = text.parse().map_err(|_| format!("invalid number of CPUs `{text}`"))?;
    let here = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    // docker: neither nothing nor more than there is.
    if !(0.01..=here as f64).contains(&number) {
        return Err(format!(
            "range of CPUs is from 0.01 to {here}.00, as there are only {here} CPUs available"
        ));
    }
    Ok(CpuQuota { quota_us: (number * PERIOD as f64).round() as u64, period_us: PERIOD })
}

fn quota(period: Option<u64>, quota: Option<u64>) -> Result<Option<CpuQuota>, String> {
    let period = period.filter(|period| *period > 0);
    if period.is_some_and(|period| !PERIODS.contains(&period)) {
        return Err(
            "CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)".to_owned()
        );
    }
    let Some(quota_us) = quota.filter(|quota| *quota > 0) else { return Ok(None) };
    if quota_us < MIN_QUOTA {
        return Err("CPU cfs quota can not be less than 1ms (i.e. 1000)".to_owned());
    }
    Ok(Some(CpuQuota { quota_us, period_us: period.unwrap_or(PERIOD) }))
}

/// A list as the kernel reads it: numbers and ranges.
fn list(text: &str) -> Result<String, String> {
    let number = |text: &str| text.parse::<u32>().is_ok();
    let part = |part: &str| match part.split_once('-') {
        Some((first, last)) => number(first) && number(last),
        None => number(part),
    };
    match text.split(',').all(part) {
        true => Ok(text.to_owned()),
        false => Err(format!("invalid list `{text}`: expected numbers and ranges such as `0-2,7`")),
    }
}

/// A time such as `90s`, `1h30m`, `500ms`, or a number of seconds.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("invalid duration `{text}`: expected for instance `90s` or `1h30m`");
    if let Ok(seconds) = text.parse::<u32>() {
        return Ok(Duration::from_secs(seconds.into()));
    }
    let (mut rest, mut total) = (text, Duration::ZERO);
    while !rest.is_empty() {
        let digits = rest.find(|letter: char| !letter.is_ascii_digit() && letter != '.').ok_or_else(wrong)?;
        let number: f64 = rest[..digits].parse().map_err(|_| wrong())?;
        let unit = &rest[digits..];
        let (length, seconds) = match unit.as_bytes() {
            [b'm', b's', ..] => (2, 0.001),
            [b's', ..] => (1, 1.0),
            [b'm', ..] => (1, 60.0),
            [b'h', ..] => (1, 3600.0),
            _ => return Err(wrong()),
        };
        let part = Duration::try_from_secs_f64(number * seconds).map_err(|_| wrong())?;
        total = total.checked_add(part).ok_or_else(wrong)?;
        rest = &unit[length..];
    }
    Some(total).filter(|total| !total.is_zero()).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(word: &str, expected: Result<CgroupLimits, &str>) {
        let found = resources(&[word.to_owned()]).map_err(|failure| failure.message);
        assert_eq!(found, expected.map_err(str::to_owned));
    }

    #[test]
    fn resources_are_limits() {
        let none = CgroupLimits::default;
        let memory = |memory, swap| CgroupLimits { memory: Some(memory), memory_swap: Some(swap), ..none() };
        check("memory=64m", Ok(memory(64 << 20, 128 << 20)));
        check("memory=64m,memory-swap=-1", Ok(memory(64 << 20, u64::MAX)));
        check("memory=1m", Err("Minimum memory limit allowed is 6MB"));
        let small = "Minimum memoryswap limit should be larger than memory limit, see usage";
        check("memory=64m,memory-swap=32m", Err(small));
        let alone = "You should always set the Memory limit when using Memoryswap limit, see usage";
        check("memory-swap=64m", Err(alone));
        let cpu = |quota_us, period_us| Some(CpuQuota { quota_us, period_us });
        check("cpus=0.5", Ok(CgroupLimits { cpu: cpu(50_000, 100_000), ..none() }));
        check("cpu-quota=5000,cpu-period=10000", Ok(CgroupLimits { cpu: cpu(5000, 10_000), ..none() }));
        check("cpuset-cpus=0,2-3,pids=7", {
            Ok(CgroupLimits { cpuset_cpus: Some("0,2-3".to_owned()), pids: Some(7), ..none() })
        });
        check("pids=-1", Ok(none()));
        check("disk=1", Err("unknown resource `disk`"));
        check("memory", Err("invalid resource `memory`"));
        check("cpuset-cpus=x", Err("invalid list `x`: expected numbers and ranges such as `0-2,7`"));
    }

    #[track_caller]
    fn check_duration(text: &str, expected: Option<u64>) {
        assert_eq!(duration(text).ok(), expected.map(Duration::from_millis), "{text}");
    }

    #[test]
    fn durations() {
        check_duration("90", Some(90_000));
        check_duration("90s", Some(90_000));
        check_duration("1h30m", Some(5_400_000));
        check_duration("1.5s", Some(1500));
        check_duration("500ms", Some(500));
        for wrong in ["", "s", "5x", "-1s", "1h30", "0s", "99999999999999999999h"] {
            check_duration(wrong, None);
        }
    }
}
