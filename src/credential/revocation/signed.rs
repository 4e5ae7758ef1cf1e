//! A signed list: one comment line before its entries, so that it stays one file that people and programs can read.
//!
//! ```text
//! #tollgate-signed-list v1 epoch=1 sequence=42 signed=2026-11-22T03:00:00Z expires=2026-12-22T03:00:00Z
//!     entries=3 sha256=<64 hexadecimal digits> key=<16 hexadecimal digits> signature=<86 characters of base64url>
//! ```
//!
//! (One line, single spaces, in this order.) `sha256` is that of every byte behind the line break of this line.
//! The signature is Ed25519 (RFC 8032) over the bytes of this line from `#` to the last digit of `key`.

use std::{fmt, time::Duration};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{EncodingKey, crypto, jwk};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::super::{Algorithm, KeyError, MintError, VerifyingKey, key::fingerprint};
use crate::time::UnixSeconds;

/// The line before the entries.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SignedHeader {
    /// Comes before the sequence; raised by hand where a signer begins anew.
    pub epoch: u64,
    /// Of two lists of one epoch the higher is the newer.
    pub sequence: u64,
    /// By the signer's clock.
    pub signed_at: UnixSeconds,
    /// From then on the list says nothing.
    pub expires_at: UnixSeconds,
    /// How many entries follow.
    pub entries: u64,
    /// Of all that follows.
    pub sha256: [u8; 32],
}

/// A header as it stood in the file, not yet believed.
#[derive(Clone, Debug)]
pub struct SignedLine {
    header: SignedHeader,
    key: u64,
    message: String,
    signature: String,
}

/// The highest list that was ever in force: what comes before it is a rollback.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Highest {
    /// Its epoch.
    pub epoch: u64,
    /// Its sequence.
    pub sequence: u64,
    /// Of its entries: there are no two lists with one number.
    pub sha256: [u8; 32],
}

/// What a signed list is held to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListRules {
    /// One of these must have signed it.
    pub keys: Vec<ListKey>,
    /// How old it may be; `None`: as old as it says itself.
    pub age_max: Option<Duration>,
    /// What a list that is too old does.
    pub when_stale: WhenStale,
}

/// What happens while a list is older than it may be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum WhenStale {
    /// Nobody is admitted.
    #[default]
    Refuse,
    /// An alarm, and devices are admitted by the old list.
    Serve,
}

/// How old a list in force is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ListStamp {
    /// When it was signed; not later than it was loaded.
    pub signed_at: UnixSeconds,
    /// From then on it is older than it may be.
    pub stale_from: UnixSeconds,
    /// From then on nobody is admitted by it.
    pub refuse_from: UnixSeconds,
}

/// A public key that signs lists.
#[derive(Clone, Debug)]
pub struct ListKey(VerifyingKey);

impl ListKey {
    /// From PEM (`BEGIN PUBLIC KEY`), Ed25519.
    ///
    /// # Errors
    /// [`KeyError`]: another kind of key, a private one, no PEM.
    pub fn from_pem(pem: &str) -> Result<Self, KeyError> {
        VerifyingKey::from_pem(Algorithm::EdDSA, pem).map(Self)
    }

    /// First 8 bytes of the SHA-256 of its 32 bytes.
    pub fn id(&self) -> u64 {
        self.0.fingerprint()
    }
}

impl PartialEq for ListKey {
    fn eq(&self, other: &Self) -> bool {
        self.id() == other.id()
    }
}

impl Eq for ListKey {}

/// A private key that signs lists.
pub struct ListSigner {
    key: EncodingKey,
    id: u64,
}

impl ListSigner {
    /// From PEM (PKCS #8), Ed25519.
    ///
    /// # Errors
    /// [`KeyError::OtherFamily`].
    pub fn from_pem(pem: &str) -> Result<Self, KeyError> {
        let other = KeyError::OtherFamily { algorithm: Algorithm::EdDSA };
        let key = EncodingKey::from_ed_pem(pem.as_bytes()).map_err(|_| other)?;
        // RFC 8410 §7: what is written with its public half (version 1) begins as what is written without, but for
        // length and version. The library tells the public half of the short form only.
        let short = Zeroizing::new(key.as_bytes().get(..ED25519_BYTES).ok_or(other)?.to_vec());
        let short: Zeroizing<Vec<u8>> =
            Zeroizing::new(ED25519_HEAD.iter().chain(short.iter().skip(5)).copied().collect());
        let key = EncodingKey::from_ed_der(&short);
        let public = jwk::Jwk::from_encoding_key(&key, jsonwebtoken::Algorithm::EdDSA).map_err(|_| other)?;
        let public = jsonwebtoken::DecodingKey::from_jwk(&public).map_err(|_| other)?;
        let id = fingerprint(public.try_get_as_bytes().map_err(|_| other)?);
        Ok(Self { key, id })
    }

    /// As [`ListKey::id`] of its public half.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The line for these entries, without a line break.
    ///
    /// # Errors
    /// [`MintError`]: the key is damaged.
    pub fn sign(&self, header: &SignedHeader) -> Result<String, MintError> {
        let message = header.message(self.id);
        let signature = crypto::sign(message.as_bytes(), &self.key, jsonwebtoken::Algorithm::EdDSA);
        Ok(format!("{message}{SIGNATURE}{}", signature.map_err(|_| MintError)?))
    }
}

impl fmt::Debug for ListSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ListSigner({:016x})", self.id)
    }
}

impl SignedHeader {
    /// What is signed.
    fn message(&self, key: u64) -> String {
        let Self { epoch, sequence, signed_at, expires_at, entries, sha256 } = self;
        let sha256 = hex(sha256);
        format!(
            "{MARK} v1 epoch={epoch} sequence={sequence} signed={signed_at} expires={expires_at} entries={entries} \
             sha256={sha256} key={key:016x}"
        )
    }

    /// As it is remembered.
    pub fn highest(&self) -> Highest {
        Highest { epoch: self.epoch, sequence: self.sequence, sha256: self.sha256 }
    }
}

impl SignedLine {
    /// Whether a file that begins with these bytes means to be signed.
    pub fn is_begun(file: &[u8]) -> bool {
        file.starts_with(MARK.as_bytes())
    }

    /// Reads the first line of a file, without its line break.
    ///
    /// # Errors
    /// A sentence: it is no header, or not written as one.
    pub fn parse(line: &str) -> Result<Self, String> {
        let wrong =
            || "its first line is no header of a signed list as `tollgate revocations sign` writes it".to_owned();
        let (message, signature) = line.split_once(SIGNATURE).ok_or_else(wrong)?;
        let mut words = message.split(' ');
        let mut next = |name: &str| {
            let word = words.next().and_then(|word| word.strip_prefix(name));
            word.ok_or_else(wrong)
        };
        next(MARK)?;
        if next("v")? != "1" {
            return Err("it is signed in a format that this version does not know".into());
        }
        let number = |text: &str| text.parse::<u64>().map_err(|_| wrong());
        let time = |text: &str| UnixSeconds::parse_rfc3339(text).map_err(|_| wrong());
        let header = SignedHeader {
            epoch: number(next("epoch=")?)?,
            sequence: number(next("sequence=")?)?,
            signed_at: time(next("signed=")?)?,
            expires_at: time(next("expires=")?)?,
            entries: number(next("entries=")?)?,
            sha256: from_hex(next("sha256=")?).ok_or_else(wrong)?,
        };
        let key = u64::from_str_radix(next("key=")?, 16).map_err(|_| wrong())?;
        // One way to write it: what is signed is what is read.
        if header.message(key) != message {
            return Err(wrong());
        }
        Ok(Self { header, key, message: message.to_owned(), signature: signature.to_owned() })
    }

    /// What it says, believed or not.
    pub fn claimed(&self) -> &SignedHeader {
        &self.header
    }

    /// Whether a list with this header may come into force.
    ///
    /// # Errors
    /// A sentence without its full stop, which continues "the revocation list is refused: ".
    pub fn judge(
        &self,
        rules: &ListRules,
        highest: Option<Highest>,
        now: UnixSeconds,
    ) -> Result<(&SignedHeader, ListStamp), String> {
        let header = &self.header;
        let Some(key) = rules.keys.iter().find(|key| key.id() == self.key) else {
            return Err(format!("it is signed by the key {:016x}, which `revocation_keys` does not name", self.key));
        };
        let signature = URL_SAFE_NO_PAD.decode(&self.signature).unwrap_or_default();
        if !key.0.verifies(self.message.as_bytes(), &signature) {
            return Err(format!("its signature is not that of the key {:016x}", self.key));
        }
        if let Some(highest) = highest {
            let (ours, theirs) = ((highest.epoch, highest.sequence), (header.epoch, header.sequence));
            let says = format!("it has epoch {} and sequence {}", theirs.0, theirs.1);
            if theirs < ours {
                return Err(format!(
                    "{says}, and epoch {}, sequence {} was in force already: it is older",
                    ours.0, ours.1
                ));
            }
            if theirs == ours && highest.sha256 != header.sha256 {
                return Err(format!("{says}, as another list that was in force"));
            }
        }
        if now >= header.expires_at && rules.when_stale == WhenStale::Refuse {
            return Err(format!("it expired at {}", header.expires_at));
        }
        Ok((header, header.stamp(rules, now)))
    }
}

impl SignedHeader {
    fn stamp(&self, rules: &ListRules, now: UnixSeconds) -> ListStamp {
        // A signer whose clock is ahead makes no list younger than it is.
        let signed_at = self.signed_at.min(now);
        let limit = rules.age_max.map_or(self.expires_at, |age_max| signed_at.plus(age_max));
        let stale_from = limit.min(self.expires_at);
        let refuse_from = if rules.when_stale == WhenStale::Refuse { stale_from } else { UnixSeconds(u64::MAX) };
        ListStamp { signed_at, stale_from, refuse_from }
    }
}

/// SHA-256 over bytes as they are read.
#[derive(Clone, Debug, Default)]
pub struct ListDigest(Sha256);

impl ListDigest {
    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// Of all bytes so far.
    pub fn so_far(&self) -> [u8; 32] {
        self.0.clone().finalize().into()
    }
}

impl Highest {
    /// As it is kept on disk: one line.
    pub fn line(&self) -> String {
        format!("epoch={} sequence={} sha256={}\n", self.epoch, self.sequence, hex(&self.sha256))
    }

    /// Reads what [`line`](Self::line) wrote, and nothing else.
    pub fn parse(text: &str) -> Option<Self> {
        let mut words = text.trim_end().split(' ');
        let mut next = |name: &str| words.next()?.strip_prefix(name);
        let (epoch, sequence) = (next("epoch=")?.parse().ok()?, next("sequence=")?.parse().ok()?);
        let read = Self { epoch, sequence, sha256: from_hex(next("sha256=")?)? };
        (read.line() == text).then_some(read)
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (place, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *place = u8::from_str_radix(str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}

/// RFC 8410 §7, RFC 5958 §2: a sequence of 46 bytes, version 0. The algorithm and 32 bytes of the key follow.
const ED25519_HEAD: [u8; 5] = [0x30, 0x2e, 0x02, 0x01, 0x00];
const ED25519_BYTES: usize = 48;
const MARK: &str = "#tollgate-signed-list";
const SIGNATURE: &str = " signature=";
