//! Makes the host pass packets on for bridges, without making it a router for anybody else.
//!
//! The switch for all devices is never touched: other programs take it as a sign. Instead the devices that routes lead to
//! are switched on one by one and written down, so that whoever is the last to need them, or finds what a
//! killed process left, switches them off again. Read [`open`] first.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::address::{DEVICE_PREFIX, Version};
use super::route::Routes;

/// Bytes of the record that are looked at.
const MAX_RECORD: usize = 64 << 10;

/// Whether the host passes packets on for others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Router {
    /// It did before.
    Already,
    /// Only for bridges: then it must not for anybody else.
    ForBridges,
}

impl Version {
    /// The switch for every device.
    fn for_all(self) -> &'static str {
        match self {
            Self::V4 => "/proc/sys/net/ipv4/ip_forward",
            Self::V6 => "/proc/sys/net/ipv6/conf/all/forwarding",
        }
    }

    /// The switch of one device. That of IPv6 is there from Linux 6.17.
    fn for_device(self, device: &str) -> PathBuf {
        match self {
            Self::V4 => Path::new("/proc/sys/net/ipv4/conf").join(device).join("forwarding"),
            Self::V6 => Path::new("/proc/sys/net/ipv6/conf").join(device).join("force_forwarding"),
        }
    }
}

fn is_on(switch: &Path) -> bool {
    fs::read_to_string(switch).is_ok_and(|text| text.trim() != "0")
}

/// Whether the host can pass packets of IPv6 on, and has somewhere to.
pub(super) fn has_v6(routes: &mut Routes) -> Result<(), &'static str> {
    let known = routes.known_routes(libc::AF_INET6).unwrap_or_default();
    if !known.iter().any(|route| route.to.is_none()) {
        return Err("the host has no route to the Internet by it");
    }
    let possible = is_on(Path::new(Version::V6.for_all())) || Version::V6.for_device("lo").exists();
    possible
        .then_some(())
        .ok_or("`net.ipv6.conf.all.forwarding` is off, and older kernels have no other switch")
}

/// Sees to it that packets of a version that come from bridges, and answers to them, are passed on. `record` is where
/// what is switched is written down; the caller holds the lock it lies under. The calling thread is the host's.
pub(super) fn open(version: Version, routes: &mut Routes, record: &Path) -> io::Result<Router> {
    if is_on(Path::new(version.for_all())) {
        return Ok(Router::Already);
    }
    let links = routes.links()?;
    let mut switched = Vec::new();
    for route in routes.known_routes(version.family())? {
        let Some((_, device, _)) = links.iter().find(|(index, ..)| Some(*index) == route.link) else {
            continue;
        };
        let switch = version.for_device(device);
        if device.starts_with(DEVICE_PREFIX) || device == "lo" || is_on(&switch) || switched.contains(&switch)
        {
            continue;
        }
        switched.push(switch);
    }
    // Written down first: what is in the record may be on or off, what is not in it is as it was.
    let mut text = fs::read_to_string(record).unwrap_or_default();
    for switch in &switched {
        text.push_str(&format!("{}\n", switch.display()));
    }
    fs::write(record, text)?;
    for switch in &switched {
        fs::write(switch, "1")?;
    }
    Ok(Router::ForBridges)
}

/// Switches the device of a bridge itself on.
pub(super) fn open_device(version: Version, device: &str) -> io::Result<()> {
    let switch = version.for_device(device);
    if is_on(Path::new(version.for_all())) || is_on(&switch) {
        return Ok(());
    }
    fs::write(switch, "1")
}

/// Undoes what the record says, if nobody has since made the host a router, and removes it.
pub(super) fn close(record: &Path) -> io::Result<()> {
    let text = match fs::read_to_string(record) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for switch in recorded(&text) {
        let version = if switch.starts_with("/proc/sys/net/ipv4") { Version::V4 } else { Version::V6 };
        if !is_on(Path::new(version.for_all())) && switch.exists() {
            fs::write(&switch, "0")?;
        }
    }
    fs::remove_file(record)
}

/// The switches a record names; what is none is left out.
fn recorded(text: &str) -> Vec<PathBuf> {
    let text = text.get(..text.len().min(MAX_RECORD)).unwrap_or_default();
    let switch = |line: &str| {
        let device = |version: Version| {
            let path = Path::new(line);
            let device = path.parent()?.file_name()?.to_str()?;
            (version.for_device(device) == path && !line.contains("..")).then(|| path.to_owned())
        };
        device(Version::V4).or_else(|| device(Version::V6))
    };
    text.lines().filter_map(switch).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_names_switches_only() {
        let text = "/proc/sys/net/ipv4/conf/eth0/forwarding\n/etc/passwd\n\
                    /proc/sys/net/ipv6/conf/wg.7/force_forwarding\n/proc/sys/net/ipv4/conf/../../x/forwarding\n";
        let found = recorded(text);
        let expected = [Version::V4.for_device("eth0"), Version::V6.for_device("wg.7")];
        assert_eq!(found, expected);
    }

    #[test]
    fn nothing_recorded_is_nothing_to_undo() {
        assert!(close(Path::new("/nonexistent/record")).is_ok());
    }
}
