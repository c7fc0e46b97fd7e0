//! Platforms, `os/architecture[/variant]`, normalised as containerd does it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What an image runs on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Platform {
    /// GOARCH.
    pub architecture: String,
    /// GOOS.
    pub os: String,
    /// Windows build.
    #[serde(rename = "os.version", default, skip_serializing_if = "Option::is_none")]
    pub os_version: Option<String>,
    /// Windows features.
    #[serde(rename = "os.features", default, skip_serializing_if = "Vec::is_empty")]
    pub os_features: Vec<String>,
    /// CPU variant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

/// Text that is not a platform.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlatformError {
    /// The first part is no operating system, perhaps with a version and features in parentheses.
    #[error(
        "{0:?} is an invalid OS component of {1:?}: OSAndVersion specifier component must match {OS_FORM:?}"
    )]
    Os(String, String),
    /// A version or feature with a `%` that escapes nothing.
    #[error("{0:?} has an invalid OS version {1:?}: invalid URL escape {1:?}")]
    Escape(String, String),
    /// A part is empty or has other characters than letters, digits, `_`, `.` and `-`.
    #[error(
        "\"{0}\" is an invalid component of \"{1}\": platform specifier component must match \"^[A-Za-z0-9_.-]+$\""
    )]
    Component(String, String),
    /// One word that is neither an operating system nor an architecture.
    #[error("\"{0}\": unknown operating system or architecture")]
    Unknown(String),
    /// More than three parts.
    #[error("\"{0}\": cannot parse platform specifier")]
    Form(String),
}

/// What containerd says the first part must match.
const OS_FORM: &str = r"^([A-Za-z0-9_-]+)(?:\(([A-Za-z0-9_.%-]*)((?:\+[A-Za-z0-9_.%-]+)*)\))?$";

impl Platform {
    /// A normalised platform without a Windows version.
    pub fn new(os: &str, architecture: &str, variant: Option<&str>) -> Self {
        let os = match os.to_ascii_lowercase().as_str() {
            "macos" => "darwin".to_owned(),
            other => other.to_owned(),
        };
        let (architecture, variant) = normalize(architecture, variant.unwrap_or(""));
        Self { architecture, os, os_version: None, os_features: Vec::new(), variant }
    }

    /// The same in its usual form, as [`Platform::new`] has it; what a version and features say stays.
    #[must_use]
    pub fn normalized(&self) -> Self {
        let Self { os, architecture, variant, os_version, os_features } = self.clone();
        Self { os_version, os_features, ..Self::new(&os, &architecture, variant.as_deref()) }
    }

    /// The platform of this program: what RUN steps execute on without emulation.
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "x86" => "386",
            "powerpc64" => "ppc64le",
            other => other,
        };
        Self::new("linux", architecture, None)
    }

    /// Whether an image made for `self` is what somebody asking for `wanted` gets.
    ///
    /// Variants are compared after normalisation: `arm64` is `arm64/v8`, `arm` is `arm/v7`. Versions count for Windows,
    /// as containerd has it: an image runs on the release it was made for, and on later ones from Server 2022 on.
    pub fn matches(&self, wanted: &Self) -> bool {
        let [this, that] = [self, wanted].map(|p| Self::new(&p.os, &p.architecture, p.variant.as_deref()));
        let version = |of: &Self| of.os_version.as_deref().and_then(windows_version);
        this == that
            && match (version(self), version(wanted)) {
                (Some(image), Some(host)) if this.os == "windows" => runs_on(image, host),
                _ => true,
            }
    }
}

/// The first three numbers of a version of Windows; `None` if there are fewer.
fn windows_version(text: &str) -> Option<[u32; 3]> {
    let mut numbers = text.split('.').map(|part| part.parse().ok());
    Some([numbers.next()??, numbers.next()??, numbers.next()??])
}

/// Whether an image of one version of Windows runs on another.
fn runs_on(image: [u32; 3], host: [u32; 3]) -> bool {
    /// The build from which later releases run what was made for earlier ones.
    const SERVER_2022: u32 = 20348;
    let ([major, minor, build], [host_major, host_minor, host_build]) = (image, host);
    let fits = match host_build < SERVER_2022 {
        true => build == host_build,
        false => (SERVER_2022..=host_build).contains(&build),
    };
    (major, minor) == (host_major, host_minor) && fits
}

fn normalize(architecture: &str, variant: &str) -> (String, Option<String>) {
    let architecture = architecture.to_ascii_lowercase();
    let variant = variant.to_ascii_lowercase();
    let (architecture, variant) = match (architecture.as_str(), variant.as_str()) {
        ("i386", _) => ("386", ""),
        ("x86_64" | "x86-64" | "amd64", "v1" | "") => ("amd64", ""),
        ("x86_64" | "x86-64", other) => ("amd64", other),
        ("aarch64" | "arm64", "8" | "v8" | "") => ("arm64", ""),
        ("aarch64", other) => ("arm64", other),
        ("armhf", _) | ("arm", "" | "7") => ("arm", "v7"),
        ("armel", _) | ("arm", "6") => ("arm", "v6"),
        ("arm", "5") => ("arm", "v5"),
        ("arm", "8") => ("arm", "v8"),
        (architecture, variant) => (architecture, variant),
    };
    (architecture.to_owned(), Some(variant.to_owned()).filter(|variant| !variant.is_empty()))
}

fn known_os(name: &str) -> bool {
    matches!(
        name,
        "aix"
            | "android"
            | "darwin"
            | "dragonfly"
            | "freebsd"
            | "illumos"
            | "ios"
            | "js"
            | "linux"
            | "macos"
            | "netbsd"
            | "openbsd"
            | "plan9"
            | "solaris"
            | "wasip1"
            | "windows"
            | "zos"
    )
}

fn known_architecture(name: &str) -> bool {
    matches!(
        name,
        "386"
            | "amd64"
            | "amd64p32"
            | "arm"
            | "armbe"
            | "arm64"
            | "arm64be"
            | "loong64"
            | "mips"
            | "mipsle"
            | "mips64"
            | "mips64le"
            | "mips64p32"
            | "mips64p32le"
            | "ppc"
            | "ppc64"
            | "ppc64le"
            | "riscv"
            | "riscv64"
            | "s390"
            | "s390x"
            | "sparc"
            | "sparc64"
            | "wasm"
    )
}

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let platform = Self::parse_as_written(text)?;
        Ok(match (platform.architecture.as_str(), &platform.variant) {
            ("arm", None) => Self { variant: Some("v7".to_owned()), ..platform },
            _ => platform,
        })
    }
}

impl Platform {
    /// As [`FromStr`] does it, but the usual variant of `arm` is added only where it was written: what BuildKit's front
    /// end makes of `FROM --platform`.
    ///
    /// # Errors
    /// For text that is not a platform.
    pub fn parse_as_written(text: &str) -> Result<Self, PlatformError> {
        let parts: Vec<&str> = text.splitn(4, '/').collect();
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
        let (name, os_version, os_features) = os_of(parts.first().copied().unwrap_or_default(), text)?;
        for part in parts.iter().skip(1) {
            if part.is_empty() || !part.bytes().all(allowed) {
                return Err(PlatformError::Component((*part).to_owned(), text.to_owned()));
            }
        }
        let usual = |platform: Self| match (platform.architecture.as_str(), platform.variant.as_deref()) {
            ("arm", Some("v7")) => Self { variant: None, ..platform },
            _ => platform,
        };
        let platform = match parts.as_slice() {
            [word] => {
                let lower = Self::new(&name, "", None).os;
                if known_os(&lower) {
                    Self::new(&lower, &Self::host().architecture, None)
                } else {
                    let platform = usual(Self::new("linux", word, None));
                    if !known_architecture(&platform.architecture) {
                        return Err(PlatformError::Unknown((*word).to_owned()));
                    }
                    platform
                }
            }
            [_, architecture] => usual(Self::new(&name, architecture, None)),
            [_, architecture, variant] => {
                let mut platform = Self::new(&name, architecture, Some(variant));
                // Written out, the default variant is kept: containerd formats `arm64/v8` back.
                if platform.architecture == "arm64" && platform.variant.is_none() {
                    platform.variant = Some("v8".to_owned());
                }
                platform
            }
            _ => return Err(PlatformError::Form(text.to_owned())),
        };
        Ok(Self { os_version, os_features, ..platform })
    }
}

/// `OS[(VERSION[+FEATURE…])]` apart.
fn os_of(part: &str, whole: &str) -> Result<(String, Option<String>, Vec<String>), PlatformError> {
    let malformed = || PlatformError::Os(part.to_owned(), whole.to_owned());
    let (name, options) = match part.split_once('(') {
        Some((name, options)) => (name, Some(options.strip_suffix(')').ok_or_else(malformed)?)),
        None => (part, None),
    };
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    if name.is_empty() || !name.bytes().all(is_name) {
        return Err(malformed());
    }
    let Some(options) = options else { return Ok((name.to_owned(), None, Vec::new())) };
    let mut options = options.split('+');
    let version = options.next().unwrap_or_default();
    let is_option = |text: &str| text.bytes().all(|byte| is_name(byte) || matches!(byte, b'.' | b'%'));
    if !is_option(version) {
        return Err(malformed());
    }
    let mut features = Vec::new();
    for feature in options {
        if feature.is_empty() || !is_option(feature) {
            return Err(malformed());
        }
        features.push(unescape(feature, whole)?);
    }
    features.sort();
    features.dedup();
    let version = unescape(version, whole)?;
    Ok((name.to_owned(), Some(version).filter(|version| !version.is_empty()), features))
}

/// `%28` and its like as what they stand for.
fn unescape(text: &str, whole: &str) -> Result<String, PlatformError> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let digit = |at: usize| tail.get(at).and_then(|byte| char::from(*byte).to_digit(16));
        let (Some(high), Some(low)) = (digit(0), digit(1)) else {
            return Err(PlatformError::Escape(whole.to_owned(), text.to_owned()));
        };
        bytes.extend(u8::try_from(high * 16 + low));
        rest = &tail[2..];
    }
    String::from_utf8(bytes).map_err(|_| PlatformError::Escape(whole.to_owned(), text.to_owned()))
}

/// A version or feature as it stands in parentheses.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '%' | '+' | '(' | ')' | '/' => {
                escaped.push_str(match letter {
                    '%' => "%25",
                    '+' => "%2B",
                    '(' => "%28",
                    ')' => "%29",
                    _ => "%2F",
                });
            }
            other => escaped.push(other),
        }
    }
    escaped
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.os)?;
        if self.os_version.is_some() || !self.os_features.is_empty() {
            write!(f, "({}", escape(self.os_version.as_deref().unwrap_or_default()))?;
            self.os_features.iter().try_for_each(|feature| write!(f, "+{}", escape(feature)))?;
            f.write_str(")")?;
        }
        write!(f, "/{}", self.architecture)?;
        self.variant.as_ref().map_or(Ok(()), |variant| write!(f, "/{variant}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Result<&str, &str>) {
        let found = text.parse::<Platform>().map(|p| p.to_string()).map_err(|e| e.to_string());
        assert_eq!(found, expected.map(str::to_owned).map_err(str::to_owned));
    }

    #[track_caller]
    fn check_version(image: &str, wanted: &str, expected: bool) {
        let parsed = |text: &str| text.parse::<Platform>().expect("is one");
        assert_eq!(parsed(image).matches(&parsed(wanted)), expected, "{image} for {wanted}");
    }

    #[test]
    fn versions_count_for_windows() {
        check_version("windows(10.0.17763.1)/amd64", "windows(10.0.17763)/amd64", true);
        check_version("windows(1.2.3)/amd64", "windows(1.1.0)/amd64", false);
        check_version("windows(10.0.20348)/amd64", "windows(10.0.26100)/amd64", true);
        check_version("windows(10.0.26100)/amd64", "windows(10.0.20348)/amd64", false);
        check_version("windows(10.0.17763)/amd64", "windows(10.0.20348)/amd64", false);
        check_version("windows/amd64", "windows(10.0.20348)/amd64", true);
        check_version("windows(10.0.20348)/amd64", "windows/amd64", true);
        check_version("linux(1.2.3)/amd64", "linux(1.1.0)/amd64", true);
    }

    #[test]
    fn platforms_normalise_as_containerd_does() {
        check("linux/amd64", Ok("linux/amd64"));
        check("linux/x86_64", Ok("linux/amd64"));
        check("linux/aarch64", Ok("linux/arm64"));
        check("linux/arm64/v8", Ok("linux/arm64/v8"));
        check("linux/arm", Ok("linux/arm/v7"));
        check("linux/armel", Ok("linux/arm/v6"));
        check("arm64", Ok("linux/arm64"));
        check("linux", Ok(&format!("linux/{}", Platform::host().architecture)));
        check("Linux/AMD64", Ok("linux/amd64"));
        check("foo", Err("\"foo\": unknown operating system or architecture"));
        check("a/b/c/d", Err("\"a/b/c/d\": cannot parse platform specifier"));
        check("windows(10.0.17763.1+win32k)/amd64", Ok("windows(10.0.17763.1+win32k)/amd64"));
        check("windows(a%2Bb)/amd64", Ok("windows(a%2Bb)/amd64"));
        check("windows()/amd64", Ok("windows/amd64"));
        let form = "\": OSAndVersion specifier component must match \"";
        for text in ["%s/amd64", "windows(1/amd64", "windows(1)x/amd64", "windows(1+)/amd64", "(1)/amd64"] {
            let message = text.parse::<Platform>().expect_err("is malformed").to_string();
            assert!(message.contains("is an invalid OS component of") && message.contains(form), "{message}");
        }
        check(
            "windows(%zz)/amd64",
            Err("\"windows(%zz)/amd64\" has an invalid OS version \"%zz\": invalid URL escape \"%zz\""),
        );
        let written = Platform::parse_as_written("linux/arm").expect("is sound");
        assert_eq!(written.to_string(), "linux/arm");
        assert_eq!(Platform::parse_as_written("linux/arm/v7").expect("is sound").to_string(), "linux/arm/v7");
        assert!("linux/".parse::<Platform>().is_err());
        assert!("".parse::<Platform>().is_err());
    }

    #[test]
    fn default_variants_match() {
        let wanted: Platform = "linux/arm64".parse().expect("valid");
        assert!(Platform::new("linux", "arm64", Some("v8")).matches(&wanted));
        assert!(!Platform::new("linux", "amd64", None).matches(&wanted));
        assert!("linux/arm64/v8".parse::<Platform>().expect("valid").matches(&wanted));
    }
}
