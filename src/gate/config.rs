//! What the gate is told by `config/gateway.toml`.

use std::{path::PathBuf, sync::Arc, time::Duration};

use crate::{
    credential::{Issuer, VerifyRules},
    policy::{Profile, TokenKind},
};

/// `[gateway]` names and `[credentials]`, as they were written: what is absent the profile presets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GateConfig {
    /// What SAS `sr` and Azure user names must name; compared without regard to case.
    pub hostname: String,
    /// Other names of the same.
    pub aliases: Vec<String>,
    /// The gateway's profile, which a listener may set otherwise.
    pub profile: Profile,
    /// Those of its listeners.
    pub listener_profiles: Vec<Profile>,
    /// How far clocks may be apart. `None`: 30 s, as the listener's profile presets it (azure: 300 s, google: 600 s). Longer
    /// keeps dead tokens alive, shorter refuses devices with poor clocks.
    pub clock_skew: Option<Duration>,
    /// The longest life of a token from now (SAS) or from `iat` (JWT). `None`: 24 h, as the listener's profile presets it
    /// (azure: 366 d).
    pub token_lifetime_max: Option<Duration>,
    /// Kinds of token that are accepted at all.
    pub accept: Vec<TokenKind>,
    /// Whether a token that is not scoped to one device is accepted. Default no.
    pub hub_wide_tokens: bool,
    /// Where devices of the google profile are: `projects/{p}/locations/{r}/registries/{g}`. Their client ids lie in one of
    /// them, and what they sign themselves is for its project.
    pub google_registries: Vec<String>,
    /// The issuer that this gateway is itself: its token service. It stands beside those of the identities.
    pub own_issuer: Option<OwnIssuer>,
    /// The directory where key sets that were fetched are kept.
    pub key_sets: PathBuf,
}

impl GateConfig {
    /// Every profile by which a token may be judged here: the gateway's, and that of each listener.
    pub fn profiles(&self) -> impl Iterator<Item = Profile> {
        self.listener_profiles.iter().copied().chain([self.profile])
    }

    /// The longest life of a token whose maker has no limit of its own, on whichever listener.
    pub fn token_lifetime_max_anywhere(&self) -> Duration {
        let preset = self.profiles().map(|profile| profile.token_lifetime_max()).max();
        self.token_lifetime_max.or(preset).unwrap_or(Duration::MAX)
    }

    /// For how long a token is admitted after its end, on whichever listener.
    pub fn clock_skew_anywhere(&self) -> Duration {
        let preset = self.profiles().map(|profile| profile.clock_skew()).max();
        self.clock_skew.or(preset).unwrap_or_default()
    }

    /// What tokens are held to on a listener with this profile: what is written, else what the profile presets.
    pub fn rules(&self, profile: Profile) -> VerifyRules {
        let hosts: Vec<String> = std::iter::once(&self.hostname).chain(&self.aliases).cloned().collect();
        let projects: Vec<String> = self.google_registries.iter().filter_map(|path| project_of(path)).collect();
        let device_audience = if profile == Profile::Google && !projects.is_empty() { projects } else { hosts.clone() };
        VerifyRules {
            accept: self.accept.clone(),
            hosts,
            clock_skew: self.clock_skew.unwrap_or_else(|| profile.clock_skew()),
            token_lifetime_max: self.token_lifetime_max.unwrap_or_else(|| profile.token_lifetime_max()),
            hub_wide_tokens: self.hub_wide_tokens,
            require: profile.require(),
            device_audience,
        }
    }
}

/// Public keys of the gateway's own token service, as an issuer of JWTs.
#[derive(Clone, Debug)]
pub struct OwnIssuer(Arc<Issuer>);

impl OwnIssuer {
    /// With these keys.
    pub fn new(issuer: &Issuer) -> Self {
        Self(Arc::new(issuer.clone()))
    }

    /// As an issuer among others.
    pub fn issuer(&self) -> &Issuer {
        &self.0
    }
}

impl PartialEq for OwnIssuer {
    fn eq(&self, other: &Self) -> bool {
        let keys = |own: &Self| own.0.keys.iter().map(|(_, key)| key.fingerprint()).collect::<Vec<_>>();
        self.0.iss == other.0.iss && keys(self) == keys(other)
    }
}

impl Eq for OwnIssuer {}

impl Default for GateConfig {
    fn default() -> Self {
        Self {
            hostname: "localhost".into(),
            aliases: Vec::new(),
            profile: Profile::default(),
            listener_profiles: Vec::new(),
            clock_skew: None,
            token_lifetime_max: None,
            accept: vec![TokenKind::Sas, TokenKind::Jwt],
            hub_wide_tokens: false,
            google_registries: Vec::new(),
            own_issuer: None,
            key_sets: "var/jwks".into(),
        }
    }
}

/// `{p}` of `projects/{p}/…`.
fn project_of(path: &str) -> Option<String> {
    path.split('/').nth(1).map(str::to_owned)
}
