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
    /// Variants are compared after normalisation: `arm64` is `arm64/v8`, `arm` is `arm/v7`.
    pub fn matches(&self, wanted: &Self) -> bool {
        let [this, that] = [self, wanted].map(|p| Self::new(&p.os, &p.architecture, p.variant.as_deref()));
        this == that
    }
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
        let parts: Vec<&str> = text.split('/').collect();
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
        for part in &parts {
            if part.is_empty() || !part.bytes().all(allowed) {
                return Err(PlatformError::Component((*part).to_owned(), text.to_owned()));
            }
        }
        match parts.as_slice() {
            [word] => {
                let lower = Self::new(word, "", None).os;
                if known_os(&lower) {
                    return Ok(Self::new(&lower, &Self::host().architecture, None));
                }
                let platform = Self::new("linux", word, None);
                if known_architecture(&platform.architecture) {
                    return Ok(platform);
                }
                Err(PlatformError::Unknown((*word).to_owned()))
            }
            [os, architecture] => Ok(Self::new(os, architecture, None)),
            [os, architecture, variant] => {
                let mut platform = Self::new(os, architecture, Some(variant));
                // Written out, the default variant is kept: containerd formats `arm64/v8` back.
                if platform.architecture == "arm64" && platform.variant.is_none() {
                    platform.variant = Some("v8".to_owned());
                }
                Ok(platform)
            }
            _ => Err(PlatformError::Form(text.to_owned())),
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
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
