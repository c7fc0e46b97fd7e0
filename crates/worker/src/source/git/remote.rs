//! The address of a repository: which protocols are spoken, and credentials taken out of it before anybody sees it.
//! Must not know attributes. Read [`Remote::parse`] first.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::error::GitError;

/// Bytes of an address.
const LENGTH_LIMIT: usize = 8192;

/// A repository's address.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Remote {
    /// What git gets: nothing secret.
    address: String,
    /// Host and port; `None` in the form `user@host:path`.
    authority: Option<String>,
    protocol: Protocol,
    /// `user:password` of the address, for http.
    login: Option<String>,
}

/// How a remote is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    Http,
    Ssh,
    Git,
}

/// Shows no credentials.
impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Remote").field(&self.address).finish()
    }
}

impl Remote {
    /// Reads an address. As in BuildKit, one without a protocol is https, unless it is `user@host:path`.
    pub(crate) fn parse(text: &str) -> Result<Self, GitError> {
        let fault = |fault| GitError::Address { shown: without_login(text), fault };
        if text.len() > LENGTH_LIMIT {
            return Err(GitError::Address { shown: String::new(), fault: "it is too long" });
        }
        if text.contains(|letter: char| letter.is_control() || letter.is_whitespace()) {
            return Err(fault("it contains white space or control characters"));
        }
        let (scheme, rest) = match text.split_once("://") {
            Some((scheme, rest)) => (scheme.to_ascii_lowercase(), rest),
            None if is_scp(text) => return Self::scp(text).ok_or_else(|| fault("a part begins with `-`")),
            None => ("https".to_owned(), text),
        };
        let protocol = match scheme.as_str() {
            "http" | "https" => Protocol::Http,
            "ssh" => Protocol::Ssh,
            "git" => Protocol::Git,
            _ => return Err(fault("the protocols are http, https, ssh and git")),
        };
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (login, host) = match authority.rsplit_once('@') {
            Some((login, host)) => (Some(login), host),
            None => (None, authority),
        };
        if host.is_empty() {
            return Err(fault("it has no host"));
        }
        // git hands both on to other programs.
        if host.starts_with('-') || path.starts_with('-') || login.is_some_and(|login| login.starts_with('-'))
        {
            return Err(fault("a part begins with `-`"));
        }
        let user = login.map(|login| login.split(':').next().unwrap_or(login));
        let (kept, login) = match protocol {
            Protocol::Http => (String::new(), login.map(decoded)),
            // There is no way to hand a password to ssh.
            Protocol::Ssh | Protocol::Git => (user.map(|user| format!("{user}@")).unwrap_or_default(), None),
        };
        Ok(Self {
            address: format!("{scheme}://{kept}{host}/{path}"),
            authority: Some(host.to_owned()),
            protocol,
            login,
        })
    }

    fn scp(text: &str) -> Option<Self> {
        let (user, rest) = text.split_once('@')?;
        let (host, path) = rest.split_once(':')?;
        let is_safe = ![user, host, path].iter().any(|part| part.starts_with('-'));
        is_safe.then(|| Self {
            address: text.to_owned(),
            authority: None,
            protocol: Protocol::Ssh,
            login: None,
        })
    }

    /// The address for git's own arguments.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// The address for messages; it has no credentials in it any more.
    pub(crate) fn shown(&self) -> &str {
        &self.address
    }

    /// How it is spoken to.
    pub(crate) fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// Host and port, where the address has them as a URL does.
    pub(crate) fn authority(&self) -> Option<&str> {
        self.authority.as_deref()
    }

    /// The header that the address's own user and password come to, and for which addresses it is.
    pub(crate) fn login(&self) -> Option<(String, String)> {
        let login = self.login.as_ref()?;
        let login = if login.contains(':') { login.clone() } else { format!("{login}:") };
        let scheme = self.address.split("://").next()?;
        let scope = format!("{scheme}://{}/", self.authority.as_deref()?);
        Some((scope, format!("basic {}", STANDARD.encode(login))))
    }

    /// For which addresses a token is that was given for this one. As in BuildKit, one for a repository of GitHub
    /// is for all of them, so that submodules can be had.
    pub(crate) fn token_scope(&self) -> &str {
        let github = ["https://github.com/", "https://www.github.com/"];
        github.into_iter().find(|prefix| self.address.starts_with(prefix)).unwrap_or(&self.address)
    }
}

/// `user@host:path`, as BuildKit recognises it.
fn is_scp(text: &str) -> bool {
    let Some((user, rest)) = text.split_once('@') else { return false };
    let Some((host, _)) = rest.split_once(':') else { return false };
    let word = |text: &str, more: &str| {
        !text.is_empty() && text.chars().all(|letter| letter.is_ascii_alphanumeric() || more.contains(letter))
    };
    word(user, "-_") && word(host, "-.")
}

/// An address that could not be read, for a message.
fn without_login(text: &str) -> String {
    match text.rsplit_once('@') {
        Some((_, rest)) => rest.chars().take(200).collect(),
        None => text.chars().take(200).collect(),
    }
}

/// `%41` and the like as what they stand for.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let digits = after.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.filter(|_| *first == b'%').and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Result<&str, &str>) {
        let found = Remote::parse(text).map(|remote| remote.address).map_err(|error| error.to_string());
        assert_eq!(found.as_deref().map_err(String::as_str), expected);
    }

    #[test]
    fn addresses() {
        check("https://a.test/b.git", Ok("https://a.test/b.git"));
        check("a.test/b.git", Ok("https://a.test/b.git"));
        check("https://me:secret@a.test:8443/b.git", Ok("https://a.test:8443/b.git"));
        check("ssh://git@a.test:2222/b", Ok("ssh://git@a.test:2222/b"));
        check("ssh://git:secret@a.test/b", Ok("ssh://git@a.test/b"));
        check("git@a.test:b/c.git", Ok("git@a.test:b/c.git"));
        check("git://a.test/b", Ok("git://a.test/b"));
    }

    #[test]
    fn addresses_that_are_refused() {
        let protocols = "the protocols are http, https, ssh and git";
        check("file:///etc", Err(&format!("invalid git address `file:///etc`: {protocols}")));
        check(
            "ext::sh -c x",
            Err("invalid git address `ext::sh -c x`: it contains white space or control characters"),
        );
        check(
            "ssh://-oProxyCommand=x/b",
            Err("invalid git address `ssh://-oProxyCommand=x/b`: a part begins with `-`"),
        );
        check("git@a.test:-b", Err("invalid git address `a.test:-b`: a part begins with `-`"));
        check("https:///b", Err("invalid git address `https:///b`: it has no host"));
    }

    #[test]
    fn credentials_become_a_header_for_the_host() {
        let remote = Remote::parse("https://me:se%40cret@a.test/b.git").expect("valid");
        let expected = ("https://a.test/".to_owned(), "basic bWU6c2VAY3JldA==".to_owned());
        assert_eq!(remote.login(), Some(expected));
        assert!(!format!("{remote:?}").contains("cret"));
        let token = Remote::parse("https://token@a.test/b.git").expect("valid");
        assert_eq!(token.login().map(|(_, header)| header), Some("basic dG9rZW46".to_owned()));
        assert_eq!(Remote::parse("https://a.test/b").expect("valid").login(), None);
    }

    #[test]
    fn tokens_are_for_their_repository() {
        let scope = |text: &str| Remote::parse(text).expect("valid").token_scope().to_owned();
        assert_eq!(scope("https://a.test/b.git"), "https://a.test/b.git");
        assert_eq!(scope("https://github.com/a/b.git"), "https://github.com/");
    }
}
