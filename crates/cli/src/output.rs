//! Results on standard output. A reader that stopped reading (`stave images | head -1`) ends the program
//! the way a broken pipe ends other programs, and never with a panic.

use std::fmt::Arguments;
use std::io::{ErrorKind, Write as _};

/// What a shell reports of a program that a broken pipe ended: 128 and the number of SIGPIPE.
const BROKEN_PIPE: i32 = 141;

/// Writes a line.
pub(crate) fn line(text: Arguments<'_>) {
    let mut stdout = std::io::stdout().lock();
    let Err(error) = writeln!(stdout, "{text}") else { return };
    if error.kind() == ErrorKind::BrokenPipe {
        std::process::exit(BROKEN_PIPE);
    }
    eprintln!("ERROR: cannot write to standard output: {error}");
    std::process::exit(1);
}

/// Prints a line of a command's result.
macro_rules! say {
    ($($part:tt)*) => { $crate::output::line(format_args!($($part)*)) };
}
pub(crate) use say;
