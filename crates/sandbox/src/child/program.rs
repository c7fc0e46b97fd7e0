//! Finding the program inside and executing it, with docker's words for what is wrong with it.
//!
//! Read [`execute`] first.

use std::ffi::CString;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD, FileType};
use rustix::io::Errno;

use crate::channel::Failure;
use crate::spec::{DEFAULT_PATH, Process};
use crate::sys;

/// Executes the process's program; returns only when that is impossible.
pub(super) fn execute(process: &Process) -> Failure {
    let name = process.args.first().map_or("", String::as_str);
    let program = match locate(name, &process.env) {
        Ok(program) => program,
        Err(failure) => return failure,
    };
    let strings = |strings: &[String]| -> Result<Vec<CString>, std::ffi::NulError> {
        strings.iter().map(|string| CString::new(string.as_str())).collect()
    };
    let (Ok(path), Ok(arguments), Ok(environment)) =
        (CString::new(program.as_os_str().as_encoded_bytes()), strings(&process.args), strings(&process.env))
    else {
        return Failure::NotExecutable(format!("exec: \"{name}\": invalid argument"));
    };
    let error = sys::execute(&path, &arguments, &environment);
    let reason = format!("exec {}: {}", program.display(), words(&error));
    match error.raw_os_error() {
        // The program itself was found: its interpreter or loader was not.
        Some(libc::ENOENT) => Failure::NotFound(reason),
        _ => Failure::NotExecutable(reason),
    }
}

/// The file to execute: a name with a slash as it is, another from the search path.
fn locate(name: &str, environment: &[String]) -> Result<PathBuf, Failure> {
    if name.contains('/') {
        return match executable(Path::new(name)) {
            Ok(()) => Ok(name.into()),
            Err(error) if matches!(error, Errno::NOENT | Errno::NOTDIR) => {
                Err(Failure::NotFound(format!("exec: \"{name}\": stat {name}: {}", words(&error.into()))))
            }
            Err(error) => Err(Failure::NotExecutable(format!("exec: \"{name}\": {}", words(&error.into())))),
        };
    }
    let path = environment.iter().find_map(|variable| variable.strip_prefix("PATH=")).unwrap_or(DEFAULT_PATH);
    let directories = path.split(':').map(|directory| if directory.is_empty() { "." } else { directory });
    let found =
        directories.map(|directory| Path::new(directory).join(name)).find(|file| executable(file).is_ok());
    match found {
        Some(file) if !name.is_empty() => Ok(file),
        _ => Err(Failure::NotFound(format!("exec: \"{name}\": executable file not found in $PATH"))),
    }
}

/// Whether this user may execute `file`, which must be no directory.
fn executable(file: &Path) -> Result<(), Errno> {
    let stat = rustix::fs::stat(file)?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        return Err(Errno::ISDIR);
    }
    // The ids were just made equal, so the real ones, which `access` goes by, are the effective ones.
    rustix::fs::accessat(CWD, file, Access::EXEC_OK, AtFlags::empty())
}

/// The kernel's words for an error as docker prints them, which is Go's lower case.
fn words(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::ENOENT) => "no such file or directory".into(),
        Some(libc::ENOTDIR) => "not a directory".into(),
        Some(libc::EISDIR) => "is a directory".into(),
        Some(libc::EACCES) => "permission denied".into(),
        Some(libc::EPERM) => "operation not permitted".into(),
        Some(libc::ENOEXEC) => "exec format error".into(),
        Some(libc::E2BIG) => "argument list too long".into(),
        Some(libc::ELOOP) => "too many levels of symbolic links".into(),
        Some(libc::ETXTBSY) => "text file busy".into(),
        _ => error.to_string(),
    }
}
