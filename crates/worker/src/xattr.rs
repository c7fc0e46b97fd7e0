//! Extended attributes of open files. Owns which names travel with a copy and which never do.
//! Must not know ops. Read [`read`] first.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};

use rustix::fs::XattrFlags;
use rustix::io::Errno;

/// Bytes of one attribute, and of the list of names (the kernel's `XATTR_SIZE_MAX`, `XATTR_LIST_MAX`).
const VALUE_LIMIT: usize = 64 << 10;

/// Names that describe the file's place on this machine, or steer an overlay mount: a context or a layer that
/// carries one of them must not be able to redirect lookups.
const NEVER: [&str; 5] =
    ["trusted.overlay.", "user.overlay.", "security.selinux", "security.ima", "security.evm"];

/// Name and value, sorted by name.
pub(crate) type Xattrs = Vec<(OsString, Vec<u8>)>;

/// Whether an attribute of this name is part of a file's content.
pub(crate) fn travels(name: &[u8]) -> bool {
    !NEVER.iter().any(|prefix| name.starts_with(prefix.as_bytes())) && !stave_store::owner::is_record(name)
}

/// Reads the attributes that travel. A file system without attributes has none.
pub(crate) fn read(fd: impl AsFd) -> io::Result<Xattrs> {
    let mut list = vec![0; 1024];
    let length = loop {
        match rustix::fs::flistxattr(&fd, list.as_mut_slice()) {
            Ok(length) => break length,
            Err(Errno::RANGE) if list.len() < VALUE_LIMIT => list.resize(VALUE_LIMIT, 0),
            Err(Errno::NOTSUP | Errno::BADF) => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        }
    };
    let mut attributes = Vec::new();
    for name in list[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty() && travels(name)) {
        let mut value = vec![0; VALUE_LIMIT];
        match rustix::fs::fgetxattr(&fd, OsStr::from_bytes(name), value.as_mut_slice()) {
            Ok(length) => value.truncate(length),
            Err(Errno::NODATA) => continue,
            Err(error) => return Err(error.into()),
        }
        attributes.push((OsString::from_vec(name.to_vec()), value));
    }
    attributes.sort_unstable();
    Ok(attributes)
}

/// Writes attributes; those that the destination cannot hold are left out, as every copy tool does.
pub(crate) fn write(fd: impl AsFd, attributes: &Xattrs) -> io::Result<()> {
    for (name, value) in attributes {
        match rustix::fs::fsetxattr(&fd, name.as_os_str(), value, XattrFlags::empty()) {
            Ok(()) | Err(Errno::NOTSUP | Errno::PERM) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Takes off what a new file got from its directory's default list of rights.
pub(crate) fn disinherit(fd: impl AsFd) -> io::Result<()> {
    for name in ["system.posix_acl_access", "system.posix_acl_default"] {
        match rustix::fs::fremovexattr(&fd, name) {
            Ok(()) | Err(Errno::NODATA | Errno::NOTSUP) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// The name part of a pax record that carries an attribute, if it is one that travels.
pub(crate) fn from_pax(key: &str) -> Option<&str> {
    key.strip_prefix("SCHILY.xattr.").filter(|name| !name.is_empty() && travels(name.as_bytes()))
}
