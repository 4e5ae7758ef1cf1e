//! Which signatures were checked already, and what came of it.
//!
//! What is remembered is a fact: that this signature over these bytes is, or is not, of this key. It says nothing of
//! who may connect: issuer, claims, times and the revocation list are looked at every time. It cannot become wrong: a
//! token or a key that differs in one bit is another fact, and the memo goes with its keyring. Only public keys are
//! remembered; an HMAC is checked in the time that it takes to look up (`docs/decisions.md`).

use std::{
    fmt,
    sync::{Mutex, OnceLock, PoisonError},
};

use super::{JwtToken, VerifyingKey};

/// What verified, and apart from it what did not: whoever sends garbage displaces garbage alone.
#[derive(Default)]
pub(super) struct SignatureMemo {
    good: Facts<GOOD_SETS>,
    bad: Facts<BAD_SETS>,
}

impl SignatureMemo {
    /// Whether this key made the token, whatever its header says.
    pub(super) fn verifies(&self, token: &JwtToken<'_>, key: &VerifyingKey) -> bool {
        if key.algorithm().is_hmac() {
            return token.is_signed_by(key);
        }
        self.recall(Fact { token: token.digest(), key_fingerprint: key.fingerprint() }, || token.is_signed_by(key))
    }

    /// Whether the token was checked before, under whichever key.
    pub(super) fn knows(&self, token: &JwtToken<'_>) -> bool {
        let token = token.digest();
        self.good.know(&token) || self.bad.know(&token)
    }

    /// What `check` says, or what it said of the same fact before.
    fn recall(&self, fact: Fact, check: impl FnOnce() -> bool) -> bool {
        if self.good.hold(&fact) {
            return true;
        }
        if self.bad.hold(&fact) {
            return false;
        }
        let verifies = check();
        if verifies {
            self.good.remember(fact)
        } else {
            self.bad.remember(fact)
        }
        verifies
    }
}

impl fmt::Debug for SignatureMemo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SignatureMemo")
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Default)]
struct Fact {
    /// SHA-256 of the whole text, signature included: whoever knows header and claims alone has no token.
    token: [u8; 32],
    key_fingerprint: u64,
}

/// `SETS` sets of [`WAYS`], found by hash; the oldest of a set makes room. Nothing is allocated before the first fact.
struct Facts<const SETS: usize>(OnceLock<Box<[Mutex<Set>]>>);

/// Its lock and its marks share one line of the processor's cache: that a token was not seen before, as a rule, costs no more
/// than that line.
#[derive(Clone, Default)]
#[repr(C)]
struct Set {
    /// A part of the digest of each token; what differs here differs.
    marks: [u32; WAYS],
    /// How many were remembered, up to [`WAYS`].
    count: u8,
    next: u8,
    facts: [Fact; WAYS],
}

impl Set {
    fn any(&self, token: &[u8; 32], is_it: impl Fn(&Fact) -> bool) -> bool {
        let mark = mark(token);
        let held = self.marks.iter().zip(&self.facts).take(self.count.into());
        held.filter(|(known, _)| **known == mark).any(|(_, fact)| is_it(fact))
    }

    fn remember(&mut self, fact: Fact) {
        let next = usize::from(self.next) % WAYS;
        if let (Some(place), Some(mark_place)) = (self.facts.get_mut(next), self.marks.get_mut(next)) {
            *mark_place = mark(&fact.token);
            *place = fact;
        }
        self.next = self.next.wrapping_add(1);
        self.count = self.count.saturating_add(1).min(WAYS as u8);
    }
}

impl<const SETS: usize> Default for Facts<SETS> {
    fn default() -> Self {
        Self(OnceLock::new())
    }
}

impl<const SETS: usize> Facts<SETS> {
    fn hold(&self, fact: &Fact) -> bool {
        self.any(&fact.token, |held| held == fact)
    }

    fn know(&self, token: &[u8; 32]) -> bool {
        self.any(token, |held| held.token == *token)
    }

    fn remember(&self, fact: Fact) {
        let sets = self.0.get_or_init(|| (0..SETS).map(|_| Mutex::default()).collect());
        let Some(set) = sets.get(Self::place(&fact.token)) else { return };
        set.lock().unwrap_or_else(PoisonError::into_inner).remember(fact);
    }

    fn any(&self, token: &[u8; 32], is_it: impl Fn(&Fact) -> bool) -> bool {
        let Some(set) = self.0.get().and_then(|sets| sets.get(Self::place(token))) else { return false };
        set.lock().unwrap_or_else(PoisonError::into_inner).any(token, is_it)
    }

    fn place(token: &[u8; 32]) -> usize {
        token.iter().take(4).fold(0, |place, byte| place << 8 | usize::from(*byte)) % SETS
    }
}

/// Bytes of the digest that [`Facts::place`] does not look at.
fn mark(token: &[u8; 32]) -> u32 {
    let (_, mark) = token.split_last_chunk::<4>().expect("invariant: 32 bytes hold 4");
    u32::from_be_bytes(*mark)
}

const WAYS: usize = 4;
/// 16,384 facts, 0.75 MiB: the devices of a large site, each with its token.
const GOOD_SETS: usize = 4096;
/// 4,096 facts, 0.2 MiB: devices that try again with a bad token.
const BAD_SETS: usize = 1024;

#[cfg(test)]
mod tests {
    use sha2::{Digest, Sha256};

    use super::*;

    #[test]
    fn a_signature_is_checked_once_for_each_token_and_key() {
        let memo = SignatureMemo::default();
        for (signature, key, verifies) in [("c", 1, true), ("d", 1, false), ("c", 2, false), ("d", 2, true)] {
            let fact = fact(signature, key);
            assert_eq!(memo.recall(fact, || verifies), verifies, "{signature}, key {key}: the first time");
            assert_eq!(memo.recall(fact, || !verifies), verifies, "{signature}, key {key}: remembered");
        }
        assert!(memo.good.know(&digest_of("c")) && !memo.good.know(&digest_of("")));
    }

    #[test]
    fn a_million_bad_tokens_take_bounded_memory_and_displace_no_good_one() {
        let memo = SignatureMemo::default();
        assert!(memo.recall(fact("good", 1), || true));
        for n in 0..1_000_000_u32 {
            // What a hash would be, without the time that hashing takes.
            let token = n.wrapping_mul(0x9E37_79B1).to_be_bytes().repeat(8).try_into().expect("32 bytes");
            assert!(!memo.recall(Fact { token, key_fingerprint: 1 }, || false));
        }
        assert!(memo.recall(fact("good", 1), || false), "remembered");
        let held = |sets: &OnceLock<Box<[Mutex<Set>]>>| {
            let sets = sets.get().expect("used");
            sets.iter().map(|set| usize::from(set.lock().expect("no panic").count)).sum::<usize>()
        };
        assert_eq!((held(&memo.good.0), held(&memo.bad.0)), (1, BAD_SETS * WAYS));
    }

    fn fact(signature: &str, key_fingerprint: u64) -> Fact {
        Fact { token: digest_of(signature), key_fingerprint }
    }

    fn digest_of(signature: &str) -> [u8; 32] {
        Sha256::digest(format!("a.b.{signature}")).into()
    }
}
