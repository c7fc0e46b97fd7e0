//! `login` and `logout`: credentials for registries, where docker keeps them.

use std::io::{BufRead as _, IsTerminal as _, Read as _, Write as _};

use stave_registry::{Credential, Secret, StoredIn};

use crate::output::say;
use crate::report::Failure;
use crate::runtime::{remember_terminal, restore_terminal, with_client, with_engine};
use crate::state::GlobalOptions;

/// The registry of a `login` without one.
const DEFAULT: &str = "docker.io";
/// Bytes of the longest password read.
const MAX_PASSWORD: u64 = 64 << 10;

/// Log in to a registry
#[derive(Debug, clap::Args)]
pub(crate) struct LoginArguments {
    /// User name
    #[arg(short, long)]
    username: Option<String>,
    /// Password (it shows in process listings: prefer --password-stdin)
    #[arg(short, long, conflicts_with = "password_stdin")]
    password: Option<String>,
    /// Take the password from standard input
    #[arg(long)]
    password_stdin: bool,
    /// The registry's host
    #[arg(default_value = DEFAULT)]
    server: String,
}

/// Log out of a registry
#[derive(Debug, clap::Args)]
pub(crate) struct LogoutArguments {
    /// The registry's host
    #[arg(default_value = DEFAULT)]
    server: String,
}

/// `stave login`
pub(crate) fn login(arguments: &LoginArguments, global: &GlobalOptions) -> Result<u8, Failure> {
    let server = host(&arguments.server);
    let credential = credential(arguments)?;
    with_engine(global, async |engine, _| {
        let stored = engine.registry().login(server, &credential).await;
        let stored = stored.map_err(|error| Failure::new(&error))?;
        if let StoredIn::File(path) = stored {
            eprintln!("WARNING! Your credentials are stored unencrypted in '{}'.", path.display());
        }
        say!("Login Succeeded");
        Ok(0)
    })
}

/// `stave logout`
pub(crate) fn logout(arguments: &LogoutArguments, global: &GlobalOptions) -> Result<u8, Failure> {
    let server = host(&arguments.server);
    with_engine(global, async |engine, _| {
        let known = engine.registry().logout(server).await.map_err(|error| Failure::new(&error))?;
        if known {
            say!("Removing login credentials for {server}");
        } else {
            say!("Not logged in to {server}");
        }
        Ok(0)
    })
}

/// The host of an address, as docker takes it: `https://registry.example/v2/` is `registry.example`.
fn host(server: &str) -> &str {
    let rest = server.strip_prefix("https://").or_else(|| server.strip_prefix("http://")).unwrap_or(server);
    match rest.split('/').next().unwrap_or(rest) {
        // The address that docker's configuration has for Docker Hub.
        "" | "index.docker.io" => DEFAULT,
        host => host,
    }
}

/// What the flags say, and what they leave out as somebody types it.
fn credential(arguments: &LoginArguments) -> Result<Credential, Failure> {
    if arguments.username.is_none() && arguments.password_stdin {
        return Err(Failure::usage("must provide --username with --password-stdin"));
    }
    let username = match &arguments.username {
        Some(name) => name.clone(),
        None => typed(|| ask("Username: "))?,
    };
    let password = match &arguments.password {
        Some(password) => {
            eprintln!("WARNING! Using --password via the CLI is insecure. Use --password-stdin.");
            password.clone()
        }
        None if arguments.password_stdin => from_stdin()?,
        None => typed(|| ask_hidden("Password: "))?,
    };
    Ok(Credential::Basic { username, password: Secret::new(password) })
}

/// What `asking` gets of somebody at the terminal, which is as it was before even if a signal ends the wait.
fn typed(asking: impl FnOnce() -> Result<String, Failure> + Send + 'static) -> Result<String, Failure> {
    let mut answer = String::new();
    with_client(async |interrupt| {
        tokio::select! {
            asked = tokio::task::spawn_blocking(asking) => {
                answer = asked.unwrap_or_else(|error| Err(Failure::new(&error)))?;
                Ok(0)
            }
            () = interrupt.token().cancelled() => {
                restore_terminal();
                eprintln!();
                Err(Failure::message("cancelled"))
            }
        }
    })?;
    Ok(answer)
}

fn io(error: std::io::Error) -> Failure {
    Failure::new(&error)
}

fn from_stdin() -> Result<String, Failure> {
    let mut password = String::new();
    std::io::stdin().lock().take(MAX_PASSWORD).read_to_string(&mut password).map_err(io)?;
    Ok(password.trim_end_matches(['\r', '\n']).to_owned())
}

fn ask(prompt: &str) -> Result<String, Failure> {
    if !std::io::stdin().is_terminal() {
        return Err(Failure::message(
            "cannot ask for a user name or password: standard input is not a terminal",
        )
        .with_hint("give --username and --password-stdin".to_owned()));
    }
    eprint!("{prompt}");
    std::io::stderr().flush().map_err(io)?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer).map_err(io)?;
    Ok(answer.trim().to_owned())
}

/// Asks without echo; the terminal is restored whatever happens.
fn ask_hidden(prompt: &str) -> Result<String, Failure> {
    use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
    let stdin = std::io::stdin();
    let Ok(before) = tcgetattr(&stdin) else { return ask(prompt) };
    let mut silent = before.clone();
    silent.local_modes.remove(LocalModes::ECHO);
    remember_terminal(before);
    tcsetattr(&stdin, OptionalActions::Now, &silent).map_err(|error| io(error.into()))?;
    let answer = ask(prompt);
    restore_terminal();
    eprintln!();
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_hosts() {
        for (server, expected) in [
            ("registry.example", "registry.example"),
            ("localhost:5000/", "localhost:5000"),
            ("https://registry.example:5000/v2/", "registry.example:5000"),
            ("http://registry.example", "registry.example"),
            ("docker.io", "docker.io"),
            ("https://index.docker.io/v1/", "docker.io"),
        ] {
            assert_eq!(host(server), expected, "{server}");
        }
    }
}
