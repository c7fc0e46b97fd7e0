//! The little languages of build flags: `NAME=VALUE`, `name:address`, secrets, sizes. Pure but for the
//! environment and files that the values themselves name.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use stave_frontend_dockerfile::request::{ExtraHost, HostAddress};
use stave_oci::{Platform, PlatformError};

/// A flag's value that cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum ValueError {
    /// `--label` without `=`, or with an empty name.
    #[error("invalid label `{0}`: expected `NAME=VALUE`")]
    Label(String),
    /// `--build-arg` with an empty name.
    #[error("invalid build argument `{0}`: expected `NAME=VALUE` or `NAME`")]
    BuildArgument(String),
    /// `--add-host` of another form.
    #[error("invalid add-host `{0}`: expected `name:address`")]
    Host(String),
    /// `--secret` of another form.
    #[error("invalid secret `{spec}`: {problem}")]
    Secret {
        /// As typed.
        spec: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A size that is no number with a unit.
    #[error("invalid size `{0}`: expected a number of bytes with an optional unit `b`, `k`, `m` or `g`")]
    Size(String),
    /// `--ulimit` of another form.
    #[error("invalid ulimit `{0}`: expected `NAME=SOFT[:HARD]`, with -1 for unlimited")]
    Limit(String),
    /// Not a platform.
    #[error("{0}")]
    Platform(String),
}

/// `--platform`.
pub(super) fn platform(text: &str) -> Result<Platform, ValueError> {
    text.parse().map_err(|error: PlatformError| ValueError::Platform(error.to_string()))
}

/// `--ulimit` values as name, soft and hard limit; one number is both. The names are the kernel's to judge.
pub(crate) fn limits(words: &[String]) -> Result<Vec<(String, i64, i64)>, ValueError> {
    let limit = |word: &String| {
        let wrong = || ValueError::Limit(word.clone());
        let (name, values) = word.split_once('=').filter(|(name, _)| !name.is_empty()).ok_or_else(wrong)?;
        let (soft, hard) = values.split_once(':').unwrap_or((values, values));
        let number = |text: &str| text.parse::<i64>().ok().filter(|number| *number >= -1).ok_or_else(wrong);
        let (soft, hard) = (number(soft)?, number(hard)?);
        if hard != -1 && (soft == -1 || soft > hard) {
            return Err(wrong());
        }
        Ok((name.to_owned(), soft, hard))
    };
    words.iter().map(limit).collect()
}

/// Build arguments; a bare name takes the environment's value and is left out if that has none.
pub(crate) fn build_arguments(
    words: &[String],
    environment: impl Fn(&str) -> Option<String>,
) -> Result<BTreeMap<String, String>, ValueError> {
    let mut arguments = BTreeMap::new();
    for word in words {
        let (name, value) = match word.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (word.as_str(), environment(word)),
        };
        if name.is_empty() {
            return Err(ValueError::BuildArgument(word.clone()));
        }
        if let Some(value) = value {
            arguments.insert(name.to_owned(), value);
        }
    }
    Ok(arguments)
}

/// `--label` values.
pub(crate) fn labels(words: &[String]) -> Result<BTreeMap<String, String>, ValueError> {
    let label = |word: &String| match word.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        // docker takes a bare name as an empty value.
        None if !word.is_empty() => Ok((word.clone(), String::new())),
        _ => Err(ValueError::Label(word.clone())),
    };
    words.iter().map(label).collect()
}

/// `--add-host` values; `name=address` is docker's newer form of the same.
pub(crate) fn hosts(words: &[String]) -> Result<Vec<ExtraHost>, ValueError> {
    let host = |word: &String| {
        let split = word.split_once('=').or_else(|| word.split_once(':'));
        let (name, address) =
            split.filter(|(name, _)| !name.is_empty()).ok_or_else(|| ValueError::Host(word.clone()))?;
        if address == "host-gateway" {
            return Ok(ExtraHost { host: name.to_owned(), address: HostAddress::Gateway });
        }
        let bare = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(address);
        let address: IpAddr = bare.parse().map_err(|_| ValueError::Host(word.clone()))?;
        Ok(ExtraHost { host: name.to_owned(), address: HostAddress::Ip(address) })
    };
    words.iter().map(host).collect()
}

/// Where a secret's value is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SecretSource {
    /// A file.
    File(PathBuf),
    /// An environment variable.
    Environment(String),
}

/// One `--secret`: its id and where its value is.
pub(crate) fn secret(spec: &str) -> Result<(String, SecretSource), ValueError> {
    let wrong = |problem: &str| ValueError::Secret { spec: spec.to_owned(), problem: problem.to_owned() };
    let (mut id, mut file, mut variable, mut kind) = (None, None, None, None);
    for field in spec.split(',') {
        let (key, value) = field.split_once('=').ok_or_else(|| wrong("fields have the form `key=value`"))?;
        let place = match key.to_ascii_lowercase().as_str() {
            "id" => &mut id,
            "source" | "src" => &mut file,
            "env" => &mut variable,
            "type" if value == "file" || value == "env" => &mut kind,
            "type" => return Err(wrong("the type is `file` or `env`")),
            other => return Err(wrong(&format!("unexpected key `{other}`; known: id, src, env, type"))),
        };
        *place = Some(value.to_owned());
    }
    // docker: an id alone may be both the variable's and the file's name; a secret without id is its file's name.
    let source = match (file, variable, kind.as_deref()) {
        (Some(_), Some(_), _) => return Err(wrong("`src` and `env` exclude each other")),
        (Some(name), None, Some("env")) | (None, Some(name), _) => SecretSource::Environment(name),
        (Some(path), None, _) => SecretSource::File(PathBuf::from(path)),
        (None, None, Some("env")) => SecretSource::Environment(id.clone().unwrap_or_default()),
        (None, None, _) => {
            let name = id.clone().unwrap_or_default();
            if kind.is_none() && std::env::var_os(&name).is_some() {
                SecretSource::Environment(name)
            } else {
                SecretSource::File(PathBuf::from(name))
            }
        }
    };
    match id.filter(|id| !id.is_empty()) {
        Some(id) => Ok((id, source)),
        None => Err(wrong("`id` is missing")),
    }
}

/// A size such as `64m`, in bytes; units are powers of 1024, as docker's are here.
pub(crate) fn size(text: &str) -> Result<u64, ValueError> {
    let wrong = || ValueError::Size(text.to_owned());
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let shift = match &lower[digits.len()..] {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        _ => return Err(wrong()),
    };
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    number.checked_mul(1 << shift).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn build_arguments_take_missing_values_from_the_environment() {
        let environment = |name: &str| (name == "SET").then(|| "here".to_owned());
        let found =
            build_arguments(&words(&["A=1", "B=x=y", "SET", "UNSET", "EMPTY="]), environment).expect("valid");
        let expected = [("A", "1"), ("B", "x=y"), ("EMPTY", ""), ("SET", "here")];
        assert_eq!(found, expected.map(|(k, v)| (k.to_owned(), v.to_owned())).into());
        assert_eq!(
            build_arguments(&words(&["=x"]), environment),
            Err(ValueError::BuildArgument("=x".to_owned()))
        );
    }

    #[test]
    fn hosts_take_both_forms() {
        let found = hosts(&words(&["a:1.2.3.4", "b=::1", "c:[fe80::1]", "d:2001:db8::1"])).expect("valid");
        let shown: Vec<String> = found.iter().map(|h| format!("{} {}", h.host, h.address)).collect();
        assert_eq!(shown, ["a 1.2.3.4", "b ::1", "c fe80::1", "d 2001:db8::1"]);
        assert_eq!(hosts(&words(&["a"])), Err(ValueError::Host("a".to_owned())));
        assert_eq!(hosts(&words(&["a:x"])), Err(ValueError::Host("a:x".to_owned())));
        assert_eq!(hosts(&words(&["a:host-gateway"])).expect("a host")[0].address, HostAddress::Gateway);
    }

    #[track_caller]
    fn check_secret(spec: &str, expected: Result<(&str, SecretSource), &str>) {
        let found = secret(spec).map_err(|error| error.to_string());
        let expected = expected.map(|(id, source)| (id.to_owned(), source)).map_err(str::to_owned);
        assert_eq!(found, expected);
    }

    #[test]
    fn secrets() {
        check_secret("id=a,src=/f", Ok(("a", SecretSource::File("/f".into()))));
        check_secret("id=a,env=TOKEN", Ok(("a", SecretSource::Environment("TOKEN".into()))));
        check_secret("type=env,id=A_NAME", Ok(("A_NAME", SecretSource::Environment("A_NAME".into()))));
        check_secret(
            "id=no-such-variable",
            Ok(("no-such-variable", SecretSource::File("no-such-variable".into()))),
        );
        check_secret("src=/f", Err("invalid secret `src=/f`: `id` is missing"));
        check_secret(
            "id=a,x=1",
            Err("invalid secret `id=a,x=1`: unexpected key `x`; known: id, src, env, type"),
        );
        check_secret("a", Err("invalid secret `a`: fields have the form `key=value`"));
    }

    #[track_caller]
    fn check_limit(word: &str, expected: Option<(&str, i64, i64)>) {
        let found = limits(&words(&[word])).ok().and_then(|found| found.into_iter().next());
        assert_eq!(found, expected.map(|(name, soft, hard)| (name.to_owned(), soft, hard)));
    }

    #[test]
    fn limits_are_soft_and_hard() {
        check_limit("nofile=1024:2048", Some(("nofile", 1024, 2048)));
        check_limit("core=0", Some(("core", 0, 0)));
        check_limit("memlock=-1:-1", Some(("memlock", -1, -1)));
        check_limit("nproc=5:-1", Some(("nproc", 5, -1)));
        for wrong in ["nofile", "=1", "nofile=", "nofile=2:1", "nofile=-1:5", "nofile=-2", "nofile=a"] {
            check_limit(wrong, None);
        }
    }

    #[test]
    fn platforms() {
        assert_eq!(platform("linux/arm64").map(|found| found.architecture), Ok("arm64".to_owned()));
        assert!(matches!(platform("a b"), Err(ValueError::Platform(_))));
    }

    #[test]
    fn sizes() {
        assert_eq!(size("64m"), Ok(64 << 20));
        assert_eq!(size("1GiB"), Ok(1 << 30));
        assert_eq!(size("12"), Ok(12));
        assert_eq!(size("1.5m"), Err(ValueError::Size("1.5m".to_owned())));
        assert_eq!(size("99999999999g"), Err(ValueError::Size("99999999999g".to_owned())));
        assert_eq!(size(""), Err(ValueError::Size(String::new())));
    }
}
