//! A shell in what a failed step left: later (`stave debug`), or at once (`--on-failure=shell`).
//!
//! Owns what is run and what is said before. Must not know how a step is entered. Start with [`enter`].

use std::io::IsTerminal as _;

use stave_engine::{Engine, Failed, Means};
use stave_worker::Enter;

use crate::commands::run::{Forwarded, attend, stdio, terminal_size};
use crate::progress::sanitise::clean;
use crate::report::Failure;
use crate::runtime::Interrupt;

/// The shells that are looked for.
const SHELLS: [&str; 2] = ["/bin/bash", "/bin/sh"];

/// The variable that holds the step's own command.
const COMMAND_VARIABLE: &str = "STAVE_COMMAND";

/// Starts `command`, or a shell, in a failed step; the exit code is its own.
pub(crate) async fn enter(
    engine: &Engine,
    failed: &Failed,
    command: &[String],
    means: Means,
    interrupt: &Interrupt,
) -> Result<u8, Failure> {
    let terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    let own = words(&failed.step.op.args);
    // Both come from files and programs that anybody may have written.
    let name = clean(&failed.name.replace('\n', " "));
    let error = failed.error.lines().map(clean).collect::<Vec<_>>().join("\n");
    if let Some(build) = &failed.build {
        eprintln!("build {build}: {name}\nfailed: {error}");
    } else if terminal {
        eprintln!("{name}\nfailed: {error}");
    }
    if terminal {
        eprintln!(
            "its command is in ${COMMAND_VARIABLE} (eval \"${COMMAND_VARIABLE}\"); changes are thrown away"
        );
    }
    let args = if command.is_empty() { shell(terminal) } else { command.to_vec() };
    let mut failed = failed.clone();
    failed.step.op.env.push(format!("{COMMAND_VARIABLE}={own}"));
    let enter = Enter { args, terminal: terminal.then(terminal_size) };
    let stdio = stdio(true).map_err(|error| Failure::new(&error))?;
    let signals = Forwarded::listen()?;
    let running = engine.enter(&failed, enter, means, stdio).await.map_err(|error| Failure::new(&error))?;
    interrupt.hand_over();
    let status = attend(running, signals).await?;
    Ok(u8::try_from(status.code()).unwrap_or(u8::MAX))
}

/// A command that becomes the first shell there is.
fn shell(interactive: bool) -> Vec<String> {
    let [best, fallback] = SHELLS;
    let option = if interactive { " -i" } else { "" };
    let script = format!("[ -x {best} ] && exec {best}{option} || exec {fallback}{option}");
    vec![fallback.to_owned(), "-c".to_owned(), script]
}

/// Arguments as a shell would read them.
fn words(args: &[String]) -> String {
    let plain = |text: &str| {
        let harmless = |letter: char| letter.is_ascii_alphanumeric() || "-_./=:@%+,".contains(letter);
        !text.is_empty() && text.chars().all(harmless)
    };
    let word = |text: &String| match plain(text) {
        true => text.clone(),
        false => format!("'{}'", text.replace('\'', "'\\''")),
    };
    args.iter().map(word).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_can_be_typed_again() {
        let args = ["/bin/sh", "-c", "echo 'a' > /x", ""].map(str::to_owned);
        assert_eq!(words(&args), r"/bin/sh -c 'echo '\''a'\'' > /x' ''");
    }
}
