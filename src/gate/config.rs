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
    /// Kinds of token that are accepted at all.
    pub accept: Vec<TokenKind>,
    /// Whether a token that is not scoped to one device is accepted. Default no.
    pub hub_wide_tokens: bool,
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
