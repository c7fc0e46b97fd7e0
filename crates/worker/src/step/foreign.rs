//! Steps whose programs are made for another processor than this machine's.
//! Owns what is said when the kernel does not know what to do with them. It is asked, not guessed: a kernel with an
//! emulator registered in binfmt_misc runs them like any other. Read [`explained`] first.

use stave_oci::Platform;

use super::StepError;

/// What the kernel says of a program it cannot run.
const REFUSAL: &[u8] = b"exec format error";

/// The error, and the cure where the platform is the cause.
pub(crate) fn explained(error: StepError, platform: Option<&Platform>) -> StepError {
    let host = Platform::host();
    let Some(platform) = platform.filter(|platform| platform.architecture != host.architecture) else {
        return error;
    };
    match error {
        StepError::Exit { command, tail, .. } if contains(&tail, REFUSAL) => {
            StepError::Foreign { command, platform: platform.to_string(), host: host.to_string() }
        }
        other => other,
    }
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(architecture: &str, tail: &str, expected: bool) {
        let tail = tail.as_bytes().to_vec();
        let error = StepError::Exit { command: "true".into(), code: 126, signal: None, tail };
        let platform = Platform::new("linux", architecture, None);
        assert_eq!(matches!(explained(error, Some(&platform)), StepError::Foreign { .. }), expected);
    }

    #[test]
    fn only_foreign_programs_that_the_kernel_refuses() {
        check("s390x", "/bin/sh: exec format error\n", true);
        check("s390x", "no such file or directory\n", false);
        check(&Platform::host().architecture, "/bin/sh: exec format error\n", false);
    }
}
