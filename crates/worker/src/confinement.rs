//! How far the steps of one build may go: rights, network, limits, time, tries.
//!
//! Plain data that the caller decides on; nothing here enters a digest, a key or a record. Must not know how any of it
//! is enforced. Read [`Confinement`] first.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use stave_sandbox::CgroupLimits;

use crate::session::StepNetwork;

/// How the steps of one build are confined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Confinement {
    /// Rights granted to steps that ask for them.
    pub entitlements: Entitlements,
    /// Network of steps that ask for no particular one.
    pub network: StepNetwork,
    /// Limits of each step.
    pub step_limits: CgroupLimits,
    /// Limits of all steps of the build together.
    pub build_limits: CgroupLimits,
    /// The control group in which those of the steps are made.
    pub cgroup_parent: Option<String>,
    /// Devices that every step gets, by their CDI names.
    pub devices: Vec<String>,
    /// How long a step may run; `None` is for ever.
    pub timeout: Option<Duration>,
    /// How often a step that failed is run again.
    pub retries: u32,
    /// Proxies of steps that the definition gives none: `NAME`, value. They reach processes, not images or keys.
    pub proxies: Vec<(String, String)>,
    /// Certificates (PEM) that programs in steps shall trust beside the image's own.
    pub authorities: Option<Arc<[u8]>>,
    /// Whether a layer or config that holds the value of one of the build's secrets fails the build.
    pub secret_scan: bool,
}

impl Default for Confinement {
    fn default() -> Self {
        Self {
            entitlements: Entitlements::default(),
            network: StepNetwork::default(),
            step_limits: CgroupLimits::default(),
            build_limits: CgroupLimits::default(),
            cgroup_parent: None,
            devices: Vec::new(),
            timeout: None,
            retries: 0,
            proxies: Vec::new(),
            authorities: None,
            secret_scan: true,
        }
    }
}

/// Rights that steps may ask for beyond the default sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Entitlements {
    /// `RUN --network=host` where the host's network is not what every step gets.
    pub network_host: bool,
    /// `RUN --security=insecure`.
    pub security_insecure: bool,
    /// `RUN --device`.
    pub devices: DeviceGrant,
}

/// Which devices steps may ask for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum DeviceGrant {
    /// None but those whose specification allows it.
    #[default]
    None,
    /// Those of these names (`vendor.com/class=name`, `vendor.com/class`, or a class), by what steps call them.
    Named(BTreeMap<String, String>),
    /// All.
    All,
}

/// An entitlement that does not exist, or a device list of another form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EntitlementError {
    /// No such entitlement; the words are BuildKit's.
    #[error("unknown entitlement {0}")]
    Unknown(String),
    /// An option of `device=` that is not known.
    #[error("invalid device config `{0}`")]
    Device(String),
}

impl Entitlements {
    /// Grants what `--allow` names: `network.host`, `security.insecure`, `device`, `device=NAME`.
    ///
    /// # Errors
    /// [`EntitlementError`].
    pub fn grant(&mut self, text: &str) -> Result<(), EntitlementError> {
        match text.split_once('=') {
            None if text == "network.host" => self.network_host = true,
            None if text == "security.insecure" => self.security_insecure = true,
            None if text == "device" => self.devices = DeviceGrant::All,
            Some(("device", names)) => {
                // `NAME[,alias=OTHER]`: steps then say OTHER.
                let mut fields = names.split(',');
                let name = fields.next().unwrap_or_default().to_owned();
                let mut asked = name.clone();
                for field in fields {
                    match field.split_once('=') {
                        Some(("alias", alias)) => asked = alias.to_owned(),
                        _ => return Err(EntitlementError::Device(names.to_owned())),
                    }
                }
                match &mut self.devices {
                    DeviceGrant::All => {}
                    devices if name.is_empty() => *devices = DeviceGrant::All,
                    DeviceGrant::Named(known) => {
                        known.insert(asked, name);
                    }
                    DeviceGrant::None => self.devices = DeviceGrant::Named([(asked, name)].into()),
                }
            }
            _ => return Err(EntitlementError::Unknown(text.to_owned())),
        }
        Ok(())
    }
}

impl DeviceGrant {
    /// What a name in a step stands for.
    pub(crate) fn meant<'a>(&'a self, asked: &'a str) -> &'a str {
        match self {
            Self::Named(names) => names.get(asked).map_or(asked, String::as_str),
            Self::None | Self::All => asked,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(words: &[&str], expected: Result<Entitlements, &str>) {
        let mut found = Entitlements::default();
        let outcome = words.iter().try_for_each(|word| found.grant(word));
        assert_eq!(
            outcome.map(|()| found).map_err(|error| error.to_string()),
            expected.map_err(str::to_owned)
        );
    }

    #[test]
    fn words_of_allow() {
        let host = Entitlements { network_host: true, ..Entitlements::default() };
        check(&["network.host"], Ok(host.clone()));
        check(&["network.host", "security.insecure"], Ok(Entitlements { security_insecure: true, ..host }));
        let named = |names: &[(&str, &str)]| Entitlements {
            devices: DeviceGrant::Named(
                names.iter().map(|(asked, name)| ((*asked).to_owned(), (*name).to_owned())).collect(),
            ),
            ..Entitlements::default()
        };
        let two = named(&[("a.com/gpu=0", "a.com/gpu=0"), ("b.com/x", "b.com/x")]);
        check(&["device=a.com/gpu=0", "device=b.com/x"], Ok(two));
        check(&["device=a.com/gpu=0,alias=gpu"], Ok(named(&[("gpu", "a.com/gpu=0")])));
        check(
            &["device", "device=x"],
            Ok(Entitlements { devices: DeviceGrant::All, ..Entitlements::default() }),
        );
        check(&["root"], Err("unknown entitlement root"));
        check(&["device=a,b=c"], Err("invalid device config `a,b=c`"));
    }
}
