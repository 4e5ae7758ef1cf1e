//! Names that identify things: devices, tokens, keys. Each is made by one door and is its own proof.

use std::{borrow::Borrow, fmt, str::FromStr, sync::Arc};

/// The id of a device: 1 to 128 bytes of `[A-Za-z0-9-._:%=@!'(),]`, compared exactly.
///
/// MQTT's and NATS' special characters (`+ # / * $ ?`, NUL) are never part of one, so that an id can stand in a
/// topic as one whole level.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceId(Arc<str>);

impl DeviceId {
    /// The id as it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<&str> for DeviceId {
    type Error = DeviceIdError;

    fn try_from(text: &str) -> Result<Self, DeviceIdError> {
        if text.is_empty() {
            return Err(DeviceIdError::Empty);
        }
        if text.len() > DEVICE_ID_BYTES_MAX {
            return Err(DeviceIdError::TooLong { bytes: text.len() });
        }
        match text.chars().find(|c| !is_device_id_char(*c)) {
            Some(found) => Err(DeviceIdError::Character { found }),
            None => Ok(Self(text.into())),
        }
    }
}

impl FromStr for DeviceId {
    type Err = DeviceIdError;
    fn from_str(text: &str) -> Result<Self, DeviceIdError> {
        Self::try_from(text)
    }
}

impl Borrow<str> for DeviceId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

/// Why a text is no [`DeviceId`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceIdError {
    /// It has no byte.
    Empty,
    /// It has more than 128 bytes.
    TooLong {
        /// How many it has.
        bytes: usize,
    },
    /// It holds a character that no device id may hold.
    Character {
        /// The first such character.
        found: char,
    },
}

impl fmt::Display for DeviceIdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("a device id has at least one character"),
            Self::TooLong { bytes } => {
                write!(f, "a device id has at most {DEVICE_ID_BYTES_MAX} bytes, this one has {bytes}")
            }
            Self::Character { found } => {
                write!(f, "a device id may not hold {found:?}: letters, digits and -._:%=@!'(), may stand in it")
            }
        }
    }
}

impl std::error::Error for DeviceIdError {}

/// The first 16 bytes of the SHA-256 of what a token *means*: text can be re-escaped, a signature can have a twin.
/// Safe to print.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TokenId(pub [u8; 16]);

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Which key verified a token, as the operator names it: `device:pump-17/primary`, `policy:device/secondary`,
/// `group:line7-/primary`, `issuer:factory/KID`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyName(Arc<str>);

impl KeyName {
    /// `owner` is `device:ID`, `policy:NAME`, `group:PREFIX` or `issuer:NAME`; `slot` is `primary`, `secondary` or a `kid`.
    pub fn new(owner: &str, slot: &str) -> Self {
        Self(format!("{owner}/{slot}").into())
    }

    /// The whole name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What stands behind the last `/`: `primary`, `secondary` or a `kid`.
    pub fn slot(&self) -> &str {
        self.0.rsplit_once('/').map_or("", |(_, slot)| slot)
    }
}

impl fmt::Display for KeyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for KeyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn is_device_id_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || "-._:%=@!'(),".contains(c)
}

/// As Azure IoT Hub has it.
const DEVICE_ID_BYTES_MAX: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_id_is_one_to_128_bytes_of_the_allowed_characters() {
        for good in ["a", "pump-17", "A.b_c:d%e=f@g!h'i(j)k,l", &"x".repeat(128)] {
            assert_eq!(DeviceId::try_from(good).expect(good).as_str(), good);
        }
        assert_eq!(DeviceId::try_from(""), Err(DeviceIdError::Empty));
        assert_eq!(DeviceId::try_from(&*"x".repeat(129)), Err(DeviceIdError::TooLong { bytes: 129 }));
        for bad in ['+', '#', '/', '*', '$', '?', '\0', ' ', 'é', '\n'] {
            assert_eq!(DeviceId::try_from(&*format!("a{bad}")), Err(DeviceIdError::Character { found: bad }));
        }
    }

    #[test]
    fn a_key_name_knows_its_slot() {
        assert_eq!(KeyName::new("policy:device", "secondary").as_str(), "policy:device/secondary");
        assert_eq!(KeyName::new("issuer:factory", "k1").slot(), "k1");
    }
}
