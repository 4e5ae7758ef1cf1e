//! Profiles: what the listeners of one ecosystem have in common.

use std::{str::FromStr, sync::LazyLock, time::Duration};

use crate::{id::DeviceId, topic::TopicFilter};

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
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Strict, Self::Azure, Self::Google];

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
    /// a year comes in under the limit in its last days; Google documented `iat` and `aud` as required.
    pub fn require(self) -> &'static [&'static str] {
        match self {
            Self::Strict => &["exp", "iat"],
            Self::Azure => &["exp"],
            Self::Google => &["exp", "iat", "aud"],
        }
    }

    /// The highest QoS of a PUBLISH, and of a subscription. Azure IoT Hub and Google Cloud IoT Core offered no QoS 2.
    pub fn qos_max(self) -> u8 {
        match self {
            Self::Strict => 2,
            Self::Azure | Self::Google => 1,
        }
    }

    /// What a device or a module may publish to and subscribe to where the identities do not say: its own telemetry and
    /// its own commands, as the ecosystem names them.
    pub(super) fn default_filters(self, who: &DeviceId) -> (&'static [&'static str], &'static [&'static str]) {
        match (self, who.module()) {
            (Self::Google, _) => (
                &["/devices/{device}/events/#", "/devices/{device}/state"],
                &["/devices/{device}/config", "/devices/{device}/commands/#"],
            ),
            (_, None) => (&["devices/{device}/messages/events/#"], &["devices/{device}/messages/devicebound/#"]),
            (_, Some(_)) => (
                &["devices/{device}/modules/{module}/messages/events/#"],
                &[
                    "devices/{device}/modules/{module}/messages/devicebound/#",
                    "devices/{device}/modules/{module}/inputs/#",
                ],
            ),
        }
    }

    /// What goes with a device's own telemetry, and with its own commands: whoever has all of them has these, too, also
    /// where its scope is written out. IoT Hub's twin and methods are topics that every device calls alike.
    pub(super) fn companions(self) -> Option<&'static Companions> {
        (self == Self::Azure).then_some(&*IOT_HUB)
    }
}

/// Topics that a profile adds to those that a scope names.
pub(super) struct Companions {
    pub(super) publish: Vec<TopicFilter>,
    pub(super) subscribe: Vec<TopicFilter>,
}

static IOT_HUB: LazyLock<Companions> = LazyLock::new(|| {
    let filters = |all: [&str; 3]| all.map(|text| TopicFilter::try_from(text).expect("invariant: tested")).into();
    Companions {
        publish: filters(["$iothub/twin/GET/#", "$iothub/twin/PATCH/properties/reported/#", "$iothub/methods/res/#"]),
        subscribe: filters(["$iothub/twin/res/#", "$iothub/twin/PATCH/properties/desired/#", "$iothub/methods/POST/#"]),
    }
});

impl FromStr for Profile {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let named = Self::ALL.into_iter().find(|profile| profile.as_str() == text);
        named.ok_or_else(|| format!("{text:?} is no profile: there are strict, azure and google"))
    }
}
