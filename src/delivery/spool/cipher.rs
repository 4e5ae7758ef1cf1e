//! Encryption at rest: the records of a frame are sealed with AES-256-GCM, under a key of its own for each segment.
//!
//! A segment's key is HKDF-SHA256 of the operator's key and of 16 random bytes in the segment's header. Nonces are random
//! for each group, and counted within it: a group that is written again after it failed is sealed anew, so that no nonce
//! comes twice, whatever a full disk or a power cut left behind. What a frame is (kind, hub, queue, numbers) is not secret
//! and is bound to what it holds.

use std::{fmt, sync::Arc};

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    hkdf::{HKDF_SHA256, KeyType, Salt},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use zeroize::Zeroizing;

use super::{SpoolError, format::Frame};

/// Keys of the spool: the first seals, all of them open. None: nothing is sealed.
#[derive(Clone, Default)]
pub struct SpoolKeys(Arc<[SpoolKey]>);

struct SpoolKey {
    bytes: Zeroizing<[u8; KEY_BYTES]>,
    id: KeyId,
}

/// Names a key without telling it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct KeyId(pub(super) [u8; 8]);

impl SpoolKeys {
    /// One key a line: base64 of 32 bytes. Blank lines and lines that begin with `#` are allowed.
    ///
    /// # Errors
    /// What is wrong, without the text.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut keys: Vec<SpoolKey> = Vec::new();
        for (at, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let number = at + 1;
            let decoded = STANDARD.decode(line).map(Zeroizing::new);
            let decoded = decoded.map_err(|_| format!("line {number} is not base64"))?;
            let bytes: [u8; KEY_BYTES] = decoded
                .as_slice()
                .try_into()
                .map_err(|_| format!("line {number} holds {} bytes, and a key has {KEY_BYTES}", decoded.len()))?;
            if bytes.iter().all(|byte| Some(byte) == bytes.first()) {
                return Err(format!("line {number} holds one byte again and again, and no random key"));
            }
            let bytes = Zeroizing::new(bytes);
            let mut id = [0; 8];
            derive(&bytes, b"", &[b"spool key id"], &mut id);
            if keys.iter().any(|known| known.id.0 == id) {
                return Err(format!("line {number} holds a key that stands above it"));
            }
            keys.push(SpoolKey { bytes, id: KeyId(id) });
        }
        if keys.is_empty() { Err("it holds no key".into()) } else { Ok(Self(keys.into())) }
    }

    /// The key that new segments are sealed with.
    pub(super) fn sealing(&self) -> Option<KeyId> {
        self.0.first().map(|key| key.id)
    }

    /// The key of a segment; `None`: its key is not among these.
    pub(super) fn of_segment(&self, seal: &Seal, number: u64) -> Option<SegmentKey> {
        let of_it = self.0.iter().find(|key| key.id == seal.key)?;
        let mut bytes = Zeroizing::new([0; KEY_BYTES]);
        derive(&of_it.bytes, &seal.salt, &[b"spool segment", &number.to_le_bytes()], &mut *bytes);
        let key = UnboundKey::new(&AES_256_GCM, &*bytes).expect("invariant: 32 bytes are a key of AES-256");
        Some(SegmentKey { id: of_it.id, key: LessSafeKey::new(key) })
    }
}

/// What a segment's header says of its key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Seal {
    pub(super) key: KeyId,
    pub(super) salt: [u8; 16],
}

impl Seal {
    pub(super) fn new(key: KeyId) -> Result<Self, SpoolError> {
        let mut salt = [0; 16];
        random(&mut salt)?;
        Ok(Self { key, salt })
    }
}

/// Seals and opens the frames of one segment.
pub(super) struct SegmentKey {
    pub(super) id: KeyId,
    key: LessSafeKey,
}

impl SegmentKey {
    /// For one group.
    pub(super) fn sealer(&self) -> Result<Sealer<'_>, SpoolError> {
        let mut nonce = [0; NONCE_LEN];
        random(&mut nonce)?;
        Ok(Sealer { key: self, nonce })
    }

    /// The records of a frame as they were before they were sealed; `None`: it is not what was written.
    pub(super) fn open(&self, frame: &Frame<'_>) -> Option<Vec<u8>> {
        let (nonce, sealed) = frame.body.split_first_chunk::<NONCE_LEN>()?;
        let mut body = sealed.to_vec();
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let len = self.key.open_in_place(nonce, Aad::from(identity(frame)), &mut body).ok()?.len();
        body.truncate(len);
        Some(body)
    }
}

/// Seals the frames of one group, each with a nonce of its own.
pub(super) struct Sealer<'k> {
    key: &'k SegmentKey,
    nonce: [u8; NONCE_LEN],
}

impl Sealer<'_> {
    /// The body that a frame is to have in place of its records: nonce, ciphertext, tag.
    pub(super) fn seal(&mut self, frame: &Frame<'_>) -> Vec<u8> {
        let mut body = Vec::with_capacity(frame.body.len() + SEAL_BYTES);
        body.extend_from_slice(&self.nonce);
        body.extend_from_slice(frame.body);
        let (_, records) = body.split_at_mut(NONCE_LEN);
        let nonce = Nonce::assume_unique_for_key(self.nonce);
        let tag = self.key.key.seal_in_place_separate_tag(nonce, Aad::from(identity(frame)), records);
        body.extend_from_slice(tag.expect("invariant: a frame is far below what a nonce may seal").as_ref());
        let (_, counter) = self.nonce.split_at_mut(NONCE_LEN - 8);
        let next = counter.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes)).wrapping_add(1);
        counter.copy_from_slice(&next.to_le_bytes());
        body
    }

    #[cfg(test)]
    pub(super) fn with_nonce(key: &SegmentKey, nonce: [u8; NONCE_LEN]) -> Sealer<'_> {
        Sealer { key, nonce }
    }
}

/// Whose records these are.
fn identity(frame: &Frame<'_>) -> Vec<u8> {
    let mut identity = vec![frame.kind as u8];
    identity.extend_from_slice(&frame.queue.to_le_bytes());
    identity.extend_from_slice(&frame.count.to_le_bytes());
    identity.extend_from_slice(&frame.first.to_le_bytes());
    identity.extend_from_slice(frame.upstream.as_bytes());
    identity
}

/// RFC 5869.
fn derive(key: &[u8; KEY_BYTES], salt: &[u8], info: &[&[u8]], out: &mut [u8]) {
    struct Length(usize);
    impl KeyType for Length {
        fn len(&self) -> usize {
            self.0
        }
    }
    let extracted = Salt::new(HKDF_SHA256, salt).extract(key);
    let expanded = extracted.expand(info, Length(out.len())).and_then(|okm| okm.fill(out));
    expanded.expect("invariant: shorter than 255 hashes");
}

fn random(bytes: &mut [u8]) -> Result<(), SpoolError> {
    getrandom::fill(bytes).map_err(|error| SpoolError::of("seal messages", std::io::Error::other(error)))
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyId({self})")
    }
}

/// By their names.
impl fmt::Debug for SpoolKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|key| key.id)).finish()
    }
}

impl PartialEq for SpoolKeys {
    fn eq(&self, other: &Self) -> bool {
        self.0.iter().map(|key| key.id).eq(other.0.iter().map(|key| key.id))
    }
}

impl Eq for SpoolKeys {}

const KEY_BYTES: usize = 32;
/// What a sealed body has beside its records: nonce and tag.
pub(super) const SEAL_BYTES: usize = NONCE_LEN + 16;
