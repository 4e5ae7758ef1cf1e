//! Keys: shared secrets that sign SAS tokens and HS tokens, public keys that verify JWTs. Secrets leave memory when
//! dropped and are never shown.

use std::{fmt, str::FromStr, sync::Arc};

use base64::{Engine, engine::general_purpose::STANDARD};
use hmac::{Hmac, KeyInit, Mac};
use jsonwebtoken::{AlgorithmFamily, DecodingKey, jwk};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::prepared::PreparedKey;
use crate::id::DeviceId;

/// A shared secret of at least 16 bytes.
#[derive(Clone)]
pub struct SecretKey {
    bytes: Zeroizing<Box<[u8]>>,
    fingerprint: u64,
}

impl SecretKey {
    /// The key as it is printed, read as `encoding` says.
    ///
    /// # Errors
    /// [`KeyError`]: no base64, fewer than 16 bytes, what somebody could guess.
    pub fn parse(text: &str, encoding: KeyEncoding) -> Result<Self, KeyError> {
        check_printed(text)?;
        match encoding {
            KeyEncoding::Base64 => {
                let bytes = Zeroizing::new(STANDARD.decode(text).map_err(|_| KeyError::NotBase64)?);
                Self::from_bytes(&bytes)
            }
            KeyEncoding::Utf8 => Self::from_bytes(text.as_bytes()),
        }
    }

    /// A key of these bytes.
    ///
    /// # Errors
    /// [`KeyError`]: fewer than 16 bytes, what somebody could guess.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, KeyError> {
        if bytes.len() < SECRET_BYTES_MIN {
            return Err(KeyError::TooShort { bytes: bytes.len(), bytes_min: SECRET_BYTES_MIN });
        }
        check_guessable(bytes)?;
        Ok(Self { bytes: Zeroizing::new(bytes.into()), fingerprint: fingerprint(bytes) })
    }

    /// The key of one device of a group: HMAC-SHA256(group key, device id), as in group enrolment.
    pub fn derive(&self, device: &DeviceId) -> SecretKey {
        let derived =
            Zeroizing::new(<[u8; 32]>::from(keyed(&self.bytes, &[device.as_str().as_bytes()]).finalize().into_bytes()));
        Self { bytes: Zeroizing::new(derived.as_slice().into()), fingerprint: fingerprint(derived.as_slice()) }
    }

    /// First 8 bytes of the SHA-256 of the key: safe to print, other for another key.
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    /// The bytes that sign.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretKey({:016x})", self.fingerprint)
    }
}

/// How the printed form of a key becomes bytes: a setting, never guessed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum KeyEncoding {
    /// Base64, as IoT Hub has it.
    #[default]
    Base64,
    /// The UTF-8 bytes of the printed key, as Service Bus and Event Hubs have it.
    Utf8,
}

/// Two places for a key, so that a rotation cuts nobody off.
#[derive(Clone, Debug, Default)]
pub struct Slots {
    /// Signs new tokens.
    pub primary: Option<SecretKey>,
    /// Still verifies old ones.
    pub secondary: Option<SecretKey>,
}

impl Slots {
    /// Both places with their names.
    pub fn each(&self) -> [(&'static str, Option<&SecretKey>); 2] {
        [("primary", self.primary.as_ref()), ("secondary", self.secondary.as_ref())]
    }

    /// Whether there is no key at all.
    pub fn is_empty(&self) -> bool {
        self.primary.is_none() && self.secondary.is_none()
    }

    /// Whether one of them is this key. A key that moved from primary to secondary is still there.
    pub fn hold(&self, fingerprint: u64) -> bool {
        self.each().into_iter().any(|(_, key)| key.is_some_and(|key| key.fingerprint == fingerprint))
    }
}

/// The signature algorithms of RFC 7518 §3.1 that a key may have. `none` is not among them.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the names are those of RFC 7518")]
pub enum Algorithm {
    HS256,
    HS384,
    HS512,
    RS256,
    RS384,
    RS512,
    PS256,
    PS384,
    PS512,
    ES256,
    ES384,
    EdDSA,
}

impl Algorithm {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::HS256,
        Self::HS384,
        Self::HS512,
        Self::RS256,
        Self::RS384,
        Self::RS512,
        Self::PS256,
        Self::PS384,
        Self::PS512,
        Self::ES256,
        Self::ES384,
        Self::EdDSA,
    ];

    /// Its name in the header of a token.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::HS256 => "HS256",
            Self::HS384 => "HS384",
            Self::HS512 => "HS512",
            Self::RS256 => "RS256",
            Self::RS384 => "RS384",
            Self::RS512 => "RS512",
            Self::PS256 => "PS256",
            Self::PS384 => "PS384",
            Self::PS512 => "PS512",
            Self::ES256 => "ES256",
            Self::ES384 => "ES384",
            Self::EdDSA => "EdDSA",
        }
    }

    /// Whether its key is a shared secret.
    pub fn is_hmac(self) -> bool {
        self.family() == AlgorithmFamily::Hmac
    }

    pub(super) fn family(self) -> AlgorithmFamily {
        match self {
            Self::HS256 | Self::HS384 | Self::HS512 => AlgorithmFamily::Hmac,
            Self::ES256 | Self::ES384 => AlgorithmFamily::Ec,
            Self::EdDSA => AlgorithmFamily::Ed,
            _ => AlgorithmFamily::Rsa,
        }
    }

    pub(super) fn of_library(self) -> jsonwebtoken::Algorithm {
        use jsonwebtoken::Algorithm as Library;
        match self {
            Self::HS256 => Library::HS256,
            Self::HS384 => Library::HS384,
            Self::HS512 => Library::HS512,
            Self::RS256 => Library::RS256,
            Self::RS384 => Library::RS384,
            Self::RS512 => Library::RS512,
            Self::PS256 => Library::PS256,
            Self::PS384 => Library::PS384,
            Self::PS512 => Library::PS512,
            Self::ES256 => Library::ES256,
            Self::ES384 => Library::ES384,
            Self::EdDSA => Library::EdDSA,
        }
    }
}

impl FromStr for Algorithm {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        Self::ALL.into_iter().find(|algorithm| algorithm.as_str() == text).ok_or(KeyError::AlgorithmUnknown)
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A key that verifies JWTs, with the one algorithm that it is for.
#[derive(Clone)]
pub struct VerifyingKey {
    algorithm: Algorithm,
    key: DecodingKey,
    prepared: Arc<PreparedKey>,
    fingerprint: u64,
    /// Of a shared secret: the one before the last rotation.
    secondary: Option<Box<VerifyingKey>>,
    /// SHA-256 of the PEM text that it was read from, which is what HMAC-SHA256 makes of a key that long (RFC 2104 §2).
    pem_digest: Option<Box<[u8; 32]>>,
}

impl VerifyingKey {
    /// A shared secret for HS256, HS384 or HS512.
    ///
    /// # Errors
    /// [`KeyError`]: the algorithm is for public keys; fewer than 32 bytes; a PEM text, which is a public key that
    /// everybody has.
    pub fn from_secret(algorithm: Algorithm, secret: &[u8]) -> Result<Self, KeyError> {
        if !algorithm.is_hmac() {
            return Err(KeyError::OtherFamily { algorithm });
        }
        if secret.windows(PEM_MARK.len()).any(|window| window == PEM_MARK) {
            return Err(KeyError::PemAsSecret);
        }
        // RFC 7518 §3.2: at least as long as the hash's output; 32 bytes is that of HS256.
        if secret.len() < HMAC_BYTES_MIN {
            return Err(KeyError::TooShort { bytes: secret.len(), bytes_min: HMAC_BYTES_MIN });
        }
        SecretKey::from_bytes(secret)?;
        let prepared = PreparedKey::of_secret(algorithm, secret).ok_or(KeyError::OtherFamily { algorithm })?;
        Ok(Self::of(algorithm, DecodingKey::from_secret(secret), prepared, secret))
    }

    /// A public key in PEM (`BEGIN PUBLIC KEY`, or `BEGIN RSA PUBLIC KEY`).
    ///
    /// # Errors
    /// [`KeyError`]: a private key or a certificate, a key of another family or curve, RSA below 2048 bits or with a
    /// small exponent.
    pub fn from_pem(algorithm: Algorithm, pem: &str) -> Result<Self, KeyError> {
        if pem.contains("PRIVATE KEY-----") {
            return Err(KeyError::PrivateKey);
        }
        if !pem.contains("PUBLIC KEY-----") {
            return Err(KeyError::NotPublicPem);
        }
        if !is_on_curve(algorithm, pem) {
            return Err(KeyError::OtherFamily { algorithm });
        }
        let read = match algorithm.family() {
            AlgorithmFamily::Hmac => return Err(KeyError::PemAsSecret),
            AlgorithmFamily::Rsa => DecodingKey::from_rsa_pem(pem.as_bytes()),
            AlgorithmFamily::Ec => DecodingKey::from_ec_pem(pem.as_bytes()),
            AlgorithmFamily::Ed => DecodingKey::from_ed_pem(pem.as_bytes()),
        };
        let key = Self::checked(algorithm, read.map_err(|_| KeyError::OtherFamily { algorithm })?)?;
        Ok(Self { pem_digest: Some(Box::new(Sha256::digest(pem.as_bytes()).into())), ..key })
    }

    pub(super) fn checked(algorithm: Algorithm, key: DecodingKey) -> Result<Self, KeyError> {
        let other = KeyError::OtherFamily { algorithm };
        let (prepared, material) = match algorithm.family() {
            AlgorithmFamily::Rsa => {
                let (modulus, exponent) = checked_rsa(algorithm, &key)?;
                (PreparedKey::of_rsa(algorithm, &modulus, &exponent), [modulus, exponent].concat())
            }
            family => {
                let bytes = key.try_get_as_bytes().map_err(|_| other)?;
                let right = match (family, algorithm) {
                    // SEC 1 §2.3.3: 0x04 and two coordinates.
                    (_, Algorithm::ES256) => bytes.len() == 65 && bytes.first() == Some(&4),
                    (_, Algorithm::ES384) => bytes.len() == 97 && bytes.first() == Some(&4),
                    (AlgorithmFamily::Ed, _) => bytes.len() == 32,
                    _ => false,
                };
                (PreparedKey::of_point(algorithm, bytes).filter(|_| right), bytes.to_vec())
            }
        };
        Ok(Self::of(algorithm, key, prepared.ok_or(other)?, &material))
    }

    fn of(algorithm: Algorithm, key: DecodingKey, prepared: PreparedKey, material: &[u8]) -> Self {
        let (prepared, fingerprint) = (Arc::new(prepared), fingerprint(material));
        Self { algorithm, key, prepared, fingerprint, secondary: None, pem_digest: None }
    }

    /// With the shared secret that stood in its place before the last rotation: it still verifies.
    pub fn with_secondary(self, secondary: VerifyingKey) -> Self {
        Self { secondary: Some(Box::new(secondary)), ..self }
    }

    /// The shared secret before the last rotation.
    pub fn secondary(&self) -> Option<&VerifyingKey> {
        self.secondary.as_deref()
    }

    /// Itself, and then the one before.
    pub fn each(&self) -> impl Iterator<Item = &VerifyingKey> {
        std::iter::once(self).chain(self.secondary())
    }

    /// The algorithm that the key is for, whatever a token says.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// First 8 bytes of the SHA-256 of the key: safe to print, other for another key.
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    /// The shared secret, had its base64 text been taken as it is: for the operator's explanation.
    pub(super) fn of_its_text(&self) -> Option<VerifyingKey> {
        let bytes = self.key.try_get_as_bytes().ok().filter(|_| self.algorithm.is_hmac())?;
        Self::from_secret(self.algorithm, &Zeroizing::new(STANDARD.encode(bytes).into_bytes())).ok()
    }

    /// The shared secret, had it been decoded once more: for the operator's explanation.
    pub(super) fn of_what_it_decodes_to(&self) -> Option<VerifyingKey> {
        let bytes = self.key.try_get_as_bytes().ok().filter(|_| self.algorithm.is_hmac())?;
        Self::from_secret(self.algorithm, &Zeroizing::new(STANDARD.decode(bytes).ok()?)).ok()
    }

    /// Whether somebody took the text of this public key for a shared secret (RFC 8725 §2.1): for the operator's
    /// explanation.
    pub(super) fn was_taken_for_a_secret(&self, message: &[u8], signature: &[u8; 32]) -> bool {
        self.pem_digest.as_deref().is_some_and(|digest| hmac_matches(digest, &[message], signature))
    }

    /// Whether `signature` is this key's over `message`.
    pub(super) fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        self.prepared.verifies(message, signature)
    }
}

impl fmt::Debug for VerifyingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VerifyingKey({}, {:016x})", self.algorithm, self.fingerprint)
    }
}

/// Why a key is not taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum KeyError {
    /// The text is no base64.
    NotBase64,
    /// It has too few bytes.
    TooShort {
        /// How many it has.
        bytes: usize,
        /// How many it must have.
        bytes_min: usize,
    },
    /// All bytes are alike.
    Guessable,
    /// Too few of its bytes differ: somebody typed it, or repeated a short text.
    FewValues {
        /// How many values there are.
        values: usize,
    },
    /// What a manual or an example has in the place of a key.
    Placeholder,
    /// A PEM text where a shared secret is asked for.
    PemAsSecret,
    /// A private key, which only the issuer may have.
    PrivateKey,
    /// No public key in PEM.
    NotPublicPem,
    /// The key is for another algorithm.
    OtherFamily {
        /// The algorithm that was asked for.
        algorithm: Algorithm,
    },
    /// An RSA key below 2048 or above 8192 bits.
    RsaBits {
        /// How many it has.
        bits: usize,
    },
    /// An RSA key with a public exponent below 65537.
    RsaExponent,
    /// No algorithm that we know.
    AlgorithmUnknown,
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotBase64 => f.write_str("it is no base64 with padding"),
            Self::TooShort { bytes, bytes_min } => write!(f, "it has {bytes} bytes, at least {bytes_min} are needed"),
            Self::Guessable => f.write_str("all its bytes are alike"),
            Self::FewValues { values } => {
                write!(f, "its bytes have {values} different values, and random ones have more: it can be guessed")
            }
            Self::Placeholder => f.write_str("it is a placeholder, which everybody knows, and no key"),
            Self::PemAsSecret => f.write_str("it is a PEM text, and a public key is no secret"),
            Self::PrivateKey => f.write_str("it is a private key, and the gateway needs the public one only"),
            Self::NotPublicPem => f.write_str("it is no public key in PEM (BEGIN PUBLIC KEY)"),
            Self::OtherFamily { algorithm } => write!(f, "it is no key for {algorithm}"),
            Self::RsaBits { bits } => write!(f, "it has {bits} bits, and RSA needs 2048 to 8192"),
            Self::RsaExponent => f.write_str("its public exponent is below 65537"),
            Self::AlgorithmUnknown => {
                f.write_str("it is for an algorithm other than HS, RS, PS 256 to 512, ES256, ES384, EdDSA")
            }
        }
    }
}

impl std::error::Error for KeyError {}

/// Whether the printed form of a secret is what examples have in its place (threat T31).
///
/// # Errors
/// [`KeyError::Placeholder`].
pub fn check_printed(text: &str) -> Result<(), KeyError> {
    let lower = Zeroizing::new(text.to_ascii_lowercase());
    match PLACEHOLDERS.iter().any(|word| lower.contains(word)) {
        true => Err(KeyError::Placeholder),
        false => Ok(()),
    }
}

/// Threat T31. 16 random bytes have fewer than 8 different values once in 10^12 times.
fn check_guessable(bytes: &[u8]) -> Result<(), KeyError> {
    let mut seen = [false; 256];
    bytes.iter().for_each(|byte| seen[usize::from(*byte)] = true);
    match seen.iter().filter(|seen| **seen).count() {
        0 | 1 => return Err(KeyError::Guessable),
        values if values < VALUES_MIN => return Err(KeyError::FewValues { values }),
        _ => {}
    }
    std::str::from_utf8(bytes).map_or(Ok(()), check_printed)
}

/// Compares in constant time.
pub(super) fn hmac_matches(key: &[u8], parts: &[&[u8]], signature: &[u8; 32]) -> bool {
    keyed(key, parts).verify_slice(signature).is_ok()
}

/// The same, with the key that a group's derives for a device: two HMACs.
pub(super) fn derived_hmac_matches(key: &[u8], device: &DeviceId, parts: &[&[u8]], signature: &[u8; 32]) -> bool {
    let derived = Zeroizing::new(<[u8; 32]>::from(keyed(key, &[device.as_str().as_bytes()]).finalize().into_bytes()));
    hmac_matches(&*derived, parts, signature)
}

/// Costs what [`hmac_matches`] costs, where there is no key.
pub(super) fn hmac_matches_nothing(parts: &[&[u8]], signature: &[u8; 32]) {
    std::hint::black_box(hmac_matches(&[0; 32], parts, signature));
}

pub(super) fn keyed(key: &[u8], parts: &[&[u8]]) -> Hmac<Sha256> {
    #[cfg(test)]
    HMACS.with(|made| made.set(made.get() + 1));
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("invariant: HMAC takes a key of any length (RFC 2104 §2)");
    parts.iter().for_each(|part| mac.update(part));
    mac
}

pub(super) fn fingerprint(bytes: &[u8]) -> u64 {
    let digest = Sha256::digest(bytes);
    digest.iter().take(8).fold(0, |all, byte| all << 8 | u64::from(*byte))
}

/// Whether the key names the curve of the algorithm (RFC 5480 §2.1.1.1): the library looks at the length of the point
/// alone, which other curves share.
fn is_on_curve(algorithm: Algorithm, pem: &str) -> bool {
    let oid: &[u8] = match algorithm {
        Algorithm::ES256 => &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07],
        Algorithm::ES384 => &[0x2b, 0x81, 0x04, 0x00, 0x22],
        _ => return true,
    };
    let body: String = pem.lines().map(str::trim).filter(|line| !line.starts_with("-----")).collect();
    STANDARD.decode(body).is_ok_and(|der| der.windows(oid.len()).any(|window| window == oid))
}

/// Modulus and exponent, which are the same however the key was written.
fn checked_rsa(algorithm: Algorithm, key: &DecodingKey) -> Result<(Vec<u8>, Vec<u8>), KeyError> {
    let other = |_| KeyError::OtherFamily { algorithm };
    let jwk = jwk::Jwk::from_decoding_key(key, None).map_err(other)?;
    let jwk::AlgorithmParameters::RSA(rsa) = jwk.algorithm else {
        return Err(KeyError::OtherFamily { algorithm });
    };
    let [modulus, exponent] = [rsa.n, rsa.e].map(|part| {
        let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(part).unwrap_or_default();
        bytes.iter().copied().skip_while(|byte| *byte == 0).collect::<Vec<u8>>()
    });
    let bits = modulus.first().map_or(0, |first| modulus.len() * 8 - first.leading_zeros() as usize);
    if !(RSA_BITS_MIN..=RSA_BITS_MAX).contains(&bits) {
        return Err(KeyError::RsaBits { bits });
    }
    if exponent.as_slice() < [1, 0, 1].as_slice() && exponent.len() <= 3 || exponent.len() < 3 {
        return Err(KeyError::RsaExponent);
    }
    Ok((modulus, exponent))
}

#[cfg(test)]
thread_local! {
    /// How many this thread made: what a refusal costs is told by it, and not by a clock.
    pub(super) static HMACS: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

/// As IoT Hub has it; 128 bits cannot be tried.
const SECRET_BYTES_MIN: usize = 16;
const VALUES_MIN: usize = 8;
/// In lower case. Long enough to stand in no random key.
const PLACEHOLDERS: [&str; 9] = [
    "changeme",
    "change-me",
    "change_me",
    "change me",
    "replaceme",
    "replace-me",
    "replace_me",
    "password",
    "placeholder",
];
/// RFC 7518 §3.2.
const HMAC_BYTES_MIN: usize = 32;
/// RFC 7518 §3.3; the upper bound is the library's, and keeps a verification below a millisecond.
const RSA_BITS_MIN: usize = 2048;
const RSA_BITS_MAX: usize = 8192;
const PEM_MARK: &[u8] = b"-----BEGIN";
