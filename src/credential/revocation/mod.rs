//! What is revoked: tokens, `jti`s, devices, keys, and whatever was issued or expires before a time.
//!
//! The *canonical form* of an entry is what it selects, without its reason or end: the parts joined by line feeds,
//! `jti`, issuer (empty: any), id · `token`, 32 hexadecimal digits · `device`, id · `key`, name ·
//! `issued_before` or `expires_before`, seconds since 1970, `device` or `issuer` or `policy` (empty: all), its name.
//! The id of an entry is the first 8 hexadecimal digits of the SHA-256 of that form.
//!
//! A million entries must be cheap, so `jti`s and tokens are kept as sorted arrays of 16 bytes.

mod compact;
mod parse;

pub use parse::BadLine;

use std::{collections::HashMap, fmt, sync::Arc};

use sha2::{Digest, Sha256};

use self::compact::CompactSet;
use crate::{
    id::{DeviceId, KeyName, TokenId},
    time::UnixSeconds,
};

/// First 16 bytes of the SHA-256 of the canonical form of a `jti` entry.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct JtiHash(pub [u8; 16]);

impl JtiHash {
    /// The two entries that would revoke this token: by issuer and `jti`, and by `jti` of any issuer.
    pub fn both(issuer: &str, jti: &str) -> [Self; 2] {
        [Self::of(issuer, jti), Self::of("", jti)]
    }

    fn of(issuer: &str, jti: &str) -> Self {
        Self(first_16(&["jti", issuer, jti]))
    }
}

/// An immutable snapshot of the list.
#[derive(Clone, Debug, Default)]
pub struct RevocationList {
    tokens: CompactSet,
    jtis: CompactSet,
    devices: HashMap<DeviceId, Until>,
    keys: HashMap<KeyName, Until>,
    before: HashMap<Before, Until>,
    /// Reasons by canonical hash; of the first 10,000 entries that have one.
    reasons: HashMap<[u8; 16], Box<str>>,
}

/// What the list looks at.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// Which token.
    pub token_id: TokenId,
    /// `jti` of a JWT.
    pub jti: Option<&'a str>,
    /// Name of the `[[issuer]]`, which is what an entry names.
    pub issuer: Option<&'a str>,
    /// Name of the `[[policy]]`.
    pub policy: Option<&'a str>,
    /// Whose token.
    pub device: &'a DeviceId,
    /// Which key verified it.
    pub key: &'a KeyName,
    /// `iat`, or for SAS the earliest second in which it may have been made. `None` counts as issued before any time.
    pub issued_at: Option<UnixSeconds>,
    /// `exp` or `se`.
    pub expires_at: UnixSeconds,
}

/// The entry that revokes something.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hit {
    /// Its id.
    pub id: String,
    /// What it selects, as a person says it.
    pub what: String,
    /// Its reason.
    pub reason: Option<Box<str>>,
}

impl fmt::Display for Hit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Entry {} of the revocation list names {}", self.id, self.what)?;
        match &self.reason {
            Some(reason) => write!(f, ": {reason}."),
            None => f.write_str("."),
        }
    }
}

/// What one list revokes and an older one did not: where live sessions are to be looked for.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Added {
    /// Tokens.
    pub tokens: Vec<TokenId>,
    /// `jti`s; see [`JtiHash::both`].
    pub jtis: Vec<JtiHash>,
    /// Devices.
    pub devices: Vec<DeviceId>,
    /// Keys.
    pub keys: Vec<KeyName>,
    /// How many entries speak of times: every session is to be asked.
    pub times: usize,
}

impl Added {
    /// Whether nothing was added.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl RevocationList {
    /// Reads the lines of the file. Every good line counts; the bad ones are named.
    pub fn parse(text: &str) -> (Self, Vec<BadLine>) {
        parse::parse(text)
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.tokens.len() + self.jtis.len() + self.devices.len() + self.keys.len() + self.before.len()
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The entry that revokes this token, if there is one in force.
    pub fn matches(&self, facts: &Facts<'_>, now: UnixSeconds) -> Option<Hit> {
        if self.tokens.holds(&facts.token_id.0, now) {
            let token = facts.token_id.to_string();
            return Some(self.hit(&["token", &token], format!("the token {token}")));
        }
        if let Some(jti) = facts.jti {
            for issuer in [facts.issuer.unwrap_or_default(), ""] {
                if self.jtis.holds(&JtiHash::of(issuer, jti).0, now) {
                    return Some(self.hit(&["jti", issuer, jti], format!("the jti {}", super::shown(jti))));
                }
            }
        }
        if in_force(self.devices.get(facts.device), now) {
            return Some(self.hit(&["device", facts.device.as_str()], format!("the device {}", facts.device)));
        }
        if in_force(self.keys.get(facts.key), now) {
            return Some(self.hit(&["key", facts.key.as_str()], format!("the key {}", facts.key)));
        }
        let mut times =
            self.before.iter().filter(|(before, until)| in_force(Some(until), now) && before.selects(facts));
        times.next().map(|(before, _)| self.hit_by(before.hash(), before.to_string()))
    }

    /// What this list revokes and `old` does not.
    pub fn added_since(&self, old: &Self) -> Added {
        fn fresh<K: Clone + std::hash::Hash + Eq + Ord>(new: &HashMap<K, Until>, old: &HashMap<K, Until>) -> Vec<K> {
            let mut keys: Vec<K> = new
                .iter()
                .filter(|(key, until)| old.get(*key).is_none_or(|old| old < until))
                .map(|(key, _)| key.clone())
                .collect();
            keys.sort();
            keys
        }
        Added {
            tokens: self.tokens.not_in(&old.tokens).map(TokenId).collect(),
            jtis: self.jtis.not_in(&old.jtis).map(JtiHash).collect(),
            devices: fresh(&self.devices, &old.devices),
            keys: fresh(&self.keys, &old.keys),
            times: fresh(&self.before, &old.before).len(),
        }
    }

    /// Ids of what `old` revokes and this list does not, sorted: for the log.
    pub fn lifted(&self, old: &Self) -> Vec<String> {
        let gone = old.added_since(self);
        let tokens = gone.tokens.iter().map(|id| entry_id(&first_16(&["token", &id.to_string()])));
        let jtis = gone.jtis.iter().map(|hash| entry_id(&hash.0));
        let devices = gone.devices.iter().map(|id| entry_id(&first_16(&["device", id.as_str()])));
        let keys = gone.keys.iter().map(|name| entry_id(&first_16(&["key", name.as_str()])));
        let times = old.before.iter().filter(|(key, until)| self.before.get(*key).is_none_or(|new| new < *until));
        let times = times.map(|(before, _)| entry_id(&before.hash()));
        let mut ids: Vec<String> = tokens.chain(jtis).chain(devices).chain(keys).chain(times).collect();
        ids.sort();
        ids
    }

    /// This list, and everything that `old` has in force: while the file has a bad line, nothing is lifted.
    #[must_use]
    pub fn merge_for_safety(mut self, old: &Self) -> Self {
        fn merge<K: Clone + std::hash::Hash + Eq>(new: &mut HashMap<K, Until>, old: &HashMap<K, Until>) {
            for (key, until) in old {
                let longest = new.entry(key.clone()).or_insert(*until);
                *longest = (*longest).max(*until);
            }
        }
        self.tokens = self.tokens.union(&old.tokens);
        self.jtis = self.jtis.union(&old.jtis);
        merge(&mut self.devices, &old.devices);
        merge(&mut self.keys, &old.keys);
        merge(&mut self.before, &old.before);
        for (hash, reason) in &old.reasons {
            self.reasons.entry(*hash).or_insert_with(|| reason.clone());
        }
        self
    }

    fn hit(&self, canonical: &[&str], what: String) -> Hit {
        self.hit_by(first_16(canonical), what)
    }

    fn hit_by(&self, hash: [u8; 16], what: String) -> Hit {
        Hit { id: entry_id(&hash), what, reason: self.reasons.get(&hash).cloned() }
    }
}

/// When an entry ends. No end is later than any.
type Until = UnixSeconds;
const FOR_EVER: Until = UnixSeconds(u64::MAX);

/// Everything that was issued, or expires, before a time.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
struct Before {
    which: Moment,
    time: UnixSeconds,
    of: Selector,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
enum Moment {
    Issued,
    Expires,
}

#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
enum Selector {
    All,
    Device(DeviceId),
    Issuer(Arc<str>),
    Policy(Arc<str>),
}

impl Before {
    fn selects(&self, facts: &Facts<'_>) -> bool {
        let of = match &self.of {
            Selector::All => true,
            Selector::Device(id) => id == facts.device,
            Selector::Issuer(name) => facts.issuer == Some(name),
            Selector::Policy(name) => facts.policy == Some(name),
        };
        of && match self.which {
            Moment::Issued => facts.issued_at.is_none_or(|at| at < self.time),
            Moment::Expires => facts.expires_at < self.time,
        }
    }

    fn parts(&self) -> (&'static str, &'static str, &str) {
        let which = match self.which {
            Moment::Issued => "issued_before",
            Moment::Expires => "expires_before",
        };
        match &self.of {
            Selector::All => (which, "", ""),
            Selector::Device(id) => (which, "device", id.as_str()),
            Selector::Issuer(name) => (which, "issuer", name),
            Selector::Policy(name) => (which, "policy", name),
        }
    }

    fn hash(&self) -> [u8; 16] {
        let (which, kind, name) = self.parts();
        first_16(&[which, &self.time.0.to_string(), kind, name])
    }
}

impl fmt::Display for Before {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (which, kind, name) = self.parts();
        write!(f, "{which} {}", self.time)?;
        if kind.is_empty() { Ok(()) } else { write!(f, " of the {kind} {name}") }
    }
}

fn in_force(until: Option<&Until>, now: UnixSeconds) -> bool {
    until.is_some_and(|until| now < *until)
}

fn first_16(canonical: &[&str]) -> [u8; 16] {
    let mut hash = Sha256::new();
    for (index, part) in canonical.iter().enumerate() {
        if index > 0 {
            hash.update(b"\n");
        }
        hash.update(part);
    }
    super::token_id_of(hash).0
}

fn entry_id(hash: &[u8; 16]) -> String {
    hash.iter().take(4).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;
