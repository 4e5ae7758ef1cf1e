//! What the gate is told by `config/gateway.toml`.

use std::time::Duration;

use crate::policy::TokenKind;

/// `[gateway]` names and `[credentials]`, with the profile's presets filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GateConfig {
    /// What SAS `sr` and Azure user names must name; compared without regard to case.
    pub hostname: String,
    /// Other names of the same.
    pub aliases: Vec<String>,
    /// How far clocks may be apart. Default 30 s (profile azure: 300 s). Longer keeps dead tokens alive, shorter
    /// refuses devices with poor clocks.
    pub clock_skew: Duration,
    /// The longest life of a token from now (SAS) or from `iat` (JWT). Default 24 h (profile azure: 366 d).
    pub token_lifetime_max: Duration,
    /// Claims that a JWT must have, where its issuer does not say. Default `exp` and `iat` (profile azure: `exp`).
    pub require: &'static [&'static str],
    /// Kinds of token that are accepted at all.
    pub accept: Vec<TokenKind>,
    /// Whether a token that is not scoped to one device is accepted. Default no.
    pub hub_wide_tokens: bool,
}

impl Default for GateConfig {
    fn default() -> Self {
        let profile = Profile::default();
        Self {
            hostname: "localhost".into(),
            aliases: Vec::new(),
            clock_skew: profile.clock_skew(),
            token_lifetime_max: profile.token_lifetime_max(),
            require: profile.require(),
            accept: vec![TokenKind::Sas, TokenKind::Jwt],
            hub_wide_tokens: false,
        }
    }
}

/// Presets and quirks of one ecosystem; set for the gateway, or for one listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Profile {
    /// RFC and MQTT to the letter, short lives, small skew.
    #[default]
    Strict,
    /// As Azure IoT Hub does it, for its device SDKs.
    Azure,
    /// As Google Cloud IoT Core did it.
    Google,
}

impl Profile {
    /// `strict`, `azure` or `google`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Strict => "strict",
            Self::Azure => "azure",
            Self::Google => "google",
        }
    }

    /// The preset of `clock_skew`. Azure's covers the time by which its SDKs renew too late; Google's is what it documented.
    pub fn clock_skew(self) -> Duration {
        Duration::from_secs(match self {
            Self::Strict => 30,
            Self::Azure => 300,
            Self::Google => 600,
        })
    }

    /// The preset of `token_lifetime_max`. Azure sets no limit; 366 days are one that its users do not notice.
    pub fn token_lifetime_max(self) -> Duration {
        Duration::from_hours(match self {
            Self::Strict | Self::Google => 24,
            Self::Azure => 366 * 24,
        })
    }
    /// The preset of an issuer's `require`. Without `iat` a token's lifetime is counted from now, so that one made for
    /// a year comes in under the limit in its last days; Google documented `iat` as required.
    pub fn require(self) -> &'static [&'static str] {
        match self {
            Self::Strict | Self::Google => &["exp", "iat"],
            Self::Azure => &["exp"],
        }
    }
}
