//! `RUN` and its flags.
//!
//! Owns the flags' values; the options of `--mount` are read by [`crate::mount`].

use crate::{
    ast::{MountFlag, Run, RunNetwork, RunSecurity, Word},
    diagnostic::Diagnostic,
    flags::FlagKind,
    mount::{self, MountError},
    quote::quote,
};

use super::{Reading, Split, command_line};

const FLAGS: [(&str, FlagKind); 4] = [
    ("device", FlagKind::Values),
    ("mount", FlagKind::Values),
    ("network", FlagKind::Value),
    ("security", FlagKind::Value),
];

impl Reading<'_> {
    pub(super) fn run(&self, split: Split) -> Result<Run, Diagnostic> {
        let flags = self.flags(&split, &FLAGS)?;
        let mut devices = Vec::new();
        for word in flags.values("device") {
            let device = mount::parse_device(&word.text);
            devices.push(device.map_err(|error| self.mount_error(&word, &error))?);
        }
        let mut mounts = Vec::new();
        for word in flags.values("mount") {
            let from = mount::from_of(&word.text).map_err(|error| self.mount_error(&word, &error))?;
            mounts.push(MountFlag { options: word, from });
        }
        let network = match flags.value("network") {
            None => RunNetwork::Default,
            Some(word) => self.network(&word)?,
        };
        let security = match flags.value("security") {
            None => RunSecurity::Sandbox,
            Some(word) => self.security(&word)?,
        };
        let command = command_line(split.arguments, split.span);
        Ok(Run { command, heredocs: self.heredocs.clone(), mounts, network, security, devices })
    }

    fn mount_error(&self, word: &Word, error: &MountError) -> Diagnostic {
        self.error(word.span, error.to_string()).with_suggestion(error.suggestion())
    }

    fn network(&self, word: &Word) -> Result<RunNetwork, Diagnostic> {
        match word.text.as_str() {
            "default" => Ok(RunNetwork::Default),
            "none" => Ok(RunNetwork::None),
            "host" => Ok(RunNetwork::Host),
            other => Err(self
                .error(word.span, format!("invalid network mode {}", quote(other)))
                .with_help("the modes are default, none and host")),
        }
    }

    fn security(&self, word: &Word) -> Result<RunSecurity, Diagnostic> {
        match word.text.as_str() {
            "sandbox" => Ok(RunSecurity::Sandbox),
            "insecure" => Ok(RunSecurity::Insecure),
            other => Err(self
                .error(word.span, format!("security {} is not valid", quote(other)))
                .with_help("the modes are sandbox and insecure")),
        }
    }
}
