//! `login` and `logout`: credentials for registries, where docker keeps them.

use std::io::{BufRead as _, IsTerminal as _, Read as _, Write as _};

use stave_registry::{Credential, Secret, StoredIn};

use crate::output::say;
use crate::report::Failure;
use crate::runtime::with_engine;
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
    let username = match &arguments.username {
        Some(name) => name.clone(),
        None if arguments.password_stdin => {
            return Err(Failure::usage("must provide --username with --password-stdin"));
        }
        None => ask("Username: ")?,
    };
    let password = match &arguments.password {
        Some(password) => {
            eprintln!("WARNING! Using --password via the CLI is insecure. Use --password-stdin.");
            password.clone()
        }
        None if arguments.password_stdin => from_stdin()?,
        None => ask_hidden("Password: ")?,
    };
    let credential = Credential::Basic { username, password: Secret::new(password) };
    with_engine(global, async |engine, _| {
        let stored = engine.registry().login(&arguments.server, &credential).await;
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
    with_engine(global, async |engine, _| {
        let known =
            engine.registry().logout(&arguments.server).await.map_err(|error| Failure::new(&error))?;
        if known {
            say!("Removing login credentials for {}", arguments.server);
        } else {
            say!("Not logged in to {}", arguments.server);
        }
        Ok(0)
    })
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
    tcsetattr(&stdin, OptionalActions::Now, &silent).map_err(|error| io(error.into()))?;
    let answer = ask(prompt);
    tcsetattr(&stdin, OptionalActions::Now, &before).map_err(|error| io(error.into()))?;
    eprintln!();
    answer
}
