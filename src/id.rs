//! Names that identify things: devices, tokens, keys. Each is made by one door and is its own proof.

use std::{borrow::Borrow, fmt, str::FromStr, sync::Arc};

/// Who connects: a device, `{device}`, or a module of one, `{device}/{module}`. Each part has 1 to 128 bytes of
/// `[A-Za-z0-9-._:%=@!'(),]`; they are compared exactly.
///
/// MQTT's and NATS' special characters (`+ # / * $ ?`, NUL) are never part of either, so that each can stand in a
/// topic as one whole level.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceId(Arc<str>);

impl DeviceId {
    /// The id as it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The id of this text, without a copy of it where `known` is the same.
    ///
    /// # Errors
    /// [`DeviceIdError`].
    pub fn shared(text: &str, known: Option<&DeviceId>) -> Result<Self, DeviceIdError> {
        known.filter(|known| known.as_str() == text).map_or_else(|| Self::try_from(text), |known| Ok(known.clone()))
    }

    /// The device: itself, or the one that the module belongs to.
    pub fn device(&self) -> &str {
        self.parts().map_or(&*self.0, |(device, _)| device)
    }

    /// The module, where it is one.
    pub fn module(&self) -> Option<&str> {
        self.parts().map(|(_, module)| module)
    }

    /// The device that the module belongs to, where it is one.
    pub fn parent(&self) -> Option<DeviceId> {
        self.parts().map(|(device, _)| Self(device.into()))
    }

    /// Device and module. Asked for each token and message: ids are too short for what `str::split_once` does.
    #[inline]
    fn parts(&self) -> Option<(&str, &str)> {
        let (device, rest) = self.0.split_at_checked(self.0.bytes().position(|byte| byte == b'/')?)?;
        Some((device, rest.strip_prefix('/')?))
    }

    /// Itself, and for a module its device: what is said of either is said of it.
    pub fn and_parent(&self) -> impl Iterator<Item = DeviceId> {
        std::iter::once(self.clone()).chain(self.parent())
    }

    /// Whether what is said of `other` is said of this one, too: it is the same, or a module of that device.
    pub fn is_within(&self, other: &DeviceId) -> bool {
        self == other || self.device() == other.as_str()
    }
}

impl TryFrom<&str> for DeviceId {
    type Error = DeviceIdError;

    fn try_from(text: &str) -> Result<Self, DeviceIdError> {
        let id = || Self(text.into());
        // Most are devices.
        if text.len() <= DEVICE_ID_BYTES_MAX && !text.is_empty() && text.bytes().all(is_device_id_byte) {
            return Ok(id());
        }
        let (device, module) = text.split_once('/').map_or((text, None), |(device, module)| (device, Some(module)));
        std::iter::once(device).chain(module).try_for_each(check_part)?;
        Ok(id())
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
            Self::Empty => f.write_str("the id of a device or a module has at least one character"),
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
        // At once: a cut of thousands names each of their tokens twice.
        let mut text = [0; 32];
        for (place, byte) in text.iter_mut().zip(self.0.iter().flat_map(|byte| [byte >> 4, byte & 15])) {
            *place = if byte < 10 { b'0' + byte } else { b'a' + byte - 10 };
        }
        f.write_str(str::from_utf8(&text).expect("invariant: digits and letters"))
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
        Self::join(&[owner, "/", slot])
    }

    /// The same, of a `kind` (`device`, `policy`, `group`, `issuer`) and the owner's own name.
    pub fn of(kind: &str, name: &str, slot: &str) -> Self {
        Self::join(&[kind, ":", name, "/", slot])
    }

    /// One is made for each token: without a copy on the heap in between, where it is not very long.
    fn join(parts: &[&str]) -> Self {
        let mut buffer = [0; KEY_NAME_BYTES_USUAL];
        let mut len = 0;
        for part in parts {
            let Some(place) = buffer.get_mut(len..len + part.len()) else { return Self(parts.concat().into()) };
            place.copy_from_slice(part.as_bytes());
            len += part.len();
        }
        let text = buffer.get(..len).and_then(|text| str::from_utf8(text).ok());
        Self(text.map_or_else(|| parts.concat().into(), Arc::from))
    }

    /// The whole name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What stands before it: `device:ID`, `policy:NAME` and its like.
    pub fn owner(&self) -> &str {
        self.0.rsplit_once('/').map_or("", |(owner, _)| owner)
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

fn check_part(part: &str) -> Result<(), DeviceIdError> {
    if part.is_empty() {
        return Err(DeviceIdError::Empty);
    }
    if part.len() > DEVICE_ID_BYTES_MAX {
        return Err(DeviceIdError::TooLong { bytes: part.len() });
    }
    if part.bytes().all(is_device_id_byte) {
        return Ok(());
    }
    let found = part.chars().find(|c| !u8::try_from(*c).is_ok_and(is_device_id_byte));
    Err(DeviceIdError::Character { found: found.unwrap_or_default() })
}

fn is_device_id_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._:%=@!'(),".contains(&byte)
}

const KEY_NAME_BYTES_USUAL: usize = 64;
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
        for bad in ['+', '#', '*', '$', '?', '\0', ' ', 'é', '\n'] {
            assert_eq!(DeviceId::try_from(&*format!("a{bad}")), Err(DeviceIdError::Character { found: bad }));
            assert_eq!(DeviceId::try_from(&*format!("a/b{bad}")), Err(DeviceIdError::Character { found: bad }));
        }
    }

    #[test]
    fn a_module_is_named_behind_its_device() {
        let id = |text| DeviceId::try_from(text).expect(text);
        let (device, module) = (id("pump-17"), id("pump-17/camera"));
        assert_eq!(
            (module.device(), module.module(), module.parent()),
            ("pump-17", Some("camera"), Some(device.clone()))
        );
        assert_eq!((device.device(), device.module(), device.parent()), ("pump-17", None, None));
        assert!(module.is_within(&device) && module.is_within(&module) && !device.is_within(&module));
        assert!(!id("pump-170/camera").is_within(&device));
        let long = "x".repeat(128);
        assert!(DeviceId::try_from(&*format!("{long}/{long}")).is_ok());
        for (bad, error) in [
            ("/camera", DeviceIdError::Empty),
            ("pump-17/", DeviceIdError::Empty),
            ("a/b/c", DeviceIdError::Character { found: '/' }),
            (&*format!("a/{long}x"), DeviceIdError::TooLong { bytes: 129 }),
        ] {
            assert_eq!(DeviceId::try_from(bad), Err(error), "{bad}");
        }
    }

    #[test]
    fn a_key_name_knows_its_slot() {
        assert_eq!(KeyName::new("policy:device", "secondary").as_str(), "policy:device/secondary");
        assert_eq!(KeyName::of("policy", "device", "secondary"), KeyName::new("policy:device", "secondary"));
        for bytes in [63 - "device:/primary".len(), 64 - "device:/primary".len(), 65 - "device:/primary".len(), 257] {
            let id = "x".repeat(bytes);
            assert_eq!(KeyName::of("device", &id, "primary").as_str(), format!("device:{id}/primary"));
        }
        assert_eq!(KeyName::new("issuer:factory", "k1").slot(), "k1");
    }
}
