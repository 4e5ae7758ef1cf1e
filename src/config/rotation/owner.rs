//! Whose keys a command means.

use std::{fmt, str::FromStr};

use crate::{config::identities::plain_name, credential::is_kid, id::DeviceId};

/// Who holds a pair of keys: `device:ID`, `device:ID/MODULE`, `policy:NAME`, `group:PREFIX` or `issuer:NAME/KID`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum KeyOwner {
    /// A `[[device]]`, or one of its modules.
    Device(DeviceId),
    /// A `[[policy]]`, by its name.
    Policy(Box<str>),
    /// A `[[group]]`, by its prefix.
    Group(Box<str>),
    /// An `[[issuer.key]]`.
    Issuer {
        /// `name` of the `[[issuer]]`.
        name: Box<str>,
        /// `kid` of the key; `None`: the issuer's single key, which has none.
        kid: Option<Box<str>>,
    },
}

impl KeyOwner {
    /// Whether the gateway may rotate its keys by itself: not where a device holds one, which could not follow.
    pub fn may_be_scheduled(&self) -> bool {
        matches!(self, Self::Policy(_) | Self::Issuer { .. })
    }

    /// The names under which a revocation list may name its keys.
    pub(super) fn slot_names(&self) -> Vec<String> {
        match self {
            Self::Issuer { name, kid } => {
                vec![format!("issuer:{name}/{}", kid.as_deref().unwrap_or(UNNAMED))]
            }
            _ => ["primary", "secondary"].iter().map(|slot| format!("{self}/{slot}")).collect(),
        }
    }
}

impl FromStr for KeyOwner {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let not_a_name = || {
            format!(
                "{text:?} names no key: write device:ID, device:ID/MODULE, policy:NAME, group:PREFIX or issuer:NAME/KID"
            )
        };
        let (kind, name) = text.split_once(':').ok_or_else(not_a_name)?;
        let device = |id: &str| DeviceId::try_from(id).map_err(|error| error.to_string());
        match kind {
            "device" => Ok(Self::Device(device(name)?)),
            "policy" => Ok(Self::Policy(plain_name(name)?.as_ref().into())),
            "group" => Ok(Self::Group(device(name)?.as_str().into())),
            "issuer" => {
                let (name, kid) = name.split_once('/').map_or((name, None), |(name, kid)| (name, Some(kid)));
                let kid = match kid {
                    None | Some(UNNAMED) => None,
                    Some(kid) if is_kid(kid) => Some(kid.into()),
                    Some(_) => return Err(not_a_name()),
                };
                Ok(Self::Issuer { name: plain_name(name)?.as_ref().into(), kid })
            }
            _ => Err(not_a_name()),
        }
    }
}

impl fmt::Display for KeyOwner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device(id) => write!(f, "device:{id}"),
            Self::Policy(name) => write!(f, "policy:{name}"),
            Self::Group(prefix) => write!(f, "group:{prefix}"),
            Self::Issuer { name, kid } => write!(f, "issuer:{name}/{}", kid.as_deref().unwrap_or(UNNAMED)),
        }
    }
}

/// The slot of a single key that has no `kid`, as the keyring has it.
const UNNAMED: &str = "key";
