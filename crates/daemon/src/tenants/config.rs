//! `[tenancy]`, a table of our own in the configuration file. Start with [`TenancyConfig`].

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{Quota, Tenancy};
use crate::config::size::Size;
use crate::identity::token::{Issuer, KeyError, Tokens};

/// `[tenancy]`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct TenancyConfig {
    /// Whether callers are told apart.
    #[serde(default)]
    pub enabled: bool,
    /// Identities that write what all read, and see everything.
    #[serde(default)]
    pub trusted: Vec<String>,
    /// A file of tokens: lines `NAME SHA256`.
    #[serde(default)]
    pub tokens: Option<PathBuf>,
    /// Who signs tokens.
    #[serde(default)]
    pub oidc: Vec<OidcConfig>,
    /// What each identity may take that `quotas` does not name.
    #[serde(default)]
    pub quota: QuotaConfig,
    /// What an identity may take.
    #[serde(default)]
    pub quotas: BTreeMap<String, QuotaConfig>,
}

/// `[[tenancy.oidc]]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct OidcConfig {
    /// The file of its keys.
    pub jwks: PathBuf,
    /// What `iss` must be.
    pub issuer: String,
    /// What `aud` must hold one of.
    pub audience: Vec<String>,
    /// The claim that names the caller; `sub` when absent.
    #[serde(default)]
    pub claim: Option<String>,
}

/// `[tenancy.quota]`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct QuotaConfig {
    /// Builds at a time.
    #[serde(default)]
    pub builds: Option<usize>,
    /// Of its layers and directories.
    #[serde(default)]
    pub disk: Option<Size>,
    /// Of its steps together.
    #[serde(default)]
    pub memory: Option<Size>,
}

/// A table that cannot be honoured.
#[derive(Debug, thiserror::Error)]
pub enum TenancyError {
    /// A file it names.
    #[error("`tenancy`: {0}")]
    File(String),
    /// What is in it.
    #[error("`{}`: {source}", path.display())]
    Keys {
        /// Which.
        path: PathBuf,
        /// Why.
        source: KeyError,
    },
    /// A size that is none.
    #[error("invalid size `{0}` in `tenancy`")]
    Size(String),
    /// Tokens for nobody in particular are no use to anybody.
    #[error("`tenancy.oidc`: `audience` must not be empty")]
    Audience,
}

impl TenancyConfig {
    /// The rules, with the files that they name.
    ///
    /// # Errors
    /// [`TenancyError`].
    pub fn load(&self, read: &dyn Fn(&Path) -> Result<Vec<u8>, String>) -> Result<Tenancy, TenancyError> {
        let open = |path: &Path| read(path).map_err(TenancyError::File);
        let mut issuers = Vec::new();
        for oidc in &self.oidc {
            if oidc.audience.is_empty() {
                return Err(TenancyError::Audience);
            }
            let claim = oidc.claim.clone().unwrap_or_else(|| "sub".to_owned());
            let issuer = Issuer::new(oidc.issuer.clone(), oidc.audience.clone(), claim, &open(&oidc.jwks)?);
            issuers.push(issuer.map_err(|source| TenancyError::Keys { path: oidc.jwks.clone(), source })?);
        }
        let file = match &self.tokens {
            Some(path) => String::from_utf8_lossy(&open(path)?).into_owned(),
            None => String::new(),
        };
        let path = self.tokens.clone().unwrap_or_default();
        let tokens = Tokens::new(&file, issuers).map_err(|source| TenancyError::Keys { path, source })?;
        let quotas = self.quotas.iter().map(|(name, quota)| Ok((name.clone(), quota.quota()?)));
        Ok(Tenancy {
            is_on: self.enabled,
            trusted: self.trusted.iter().cloned().collect(),
            usual: self.quota.quota()?,
            quotas: quotas.collect::<Result<_, TenancyError>>()?,
            tokens,
        })
    }
}

impl QuotaConfig {
    fn quota(&self) -> Result<Quota, TenancyError> {
        let bytes = |size: &Option<Size>| {
            let bytes =
                size.as_ref().map(|size| size.bytes(0).ok_or_else(|| TenancyError::Size(size.to_string())));
            bytes.transpose()
        };
        Ok(Quota { builds: self.builds, disk: bytes(&self.disk)?, memory: bytes(&self.memory)? })
    }
}
