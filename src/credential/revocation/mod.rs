//! What is revoked: tokens, `jti`s, devices, keys, and whatever was issued or expires before a time.
//!
//! The *canonical form* of an entry is what it selects, without its reason or end: the parts joined by line feeds,
//! `jti`, issuer (empty: any), id · `token`, 32 hexadecimal digits · `device`, id · `key`, name ·
//! `issued_before` or `expires_before`, seconds since 1970, `device` or `issuer` or `policy` (empty: all), its name.
//! The id of an entry is the first 8 hexadecimal digits of the SHA-256 of that form.
//!
//! A million entries must be cheap, to hold and to change. A list is two layers: a large one that is shared by every
//! list that grew from it, and what was added since. What stands in either is revoked.

mod compact;
mod layer;
mod parse;
mod signed;
mod times;

pub use parse::{BadLine, ListEntry, ListReader, ReadList};
pub use signed::{Highest, ListDigest, ListKey, ListRules, ListSigner, ListStamp, SignedHeader, SignedLine, WhenStale};
pub use times::Whose;

use std::{collections::HashMap, fmt, sync::Arc};

use sha2::{Digest, Sha256};

use self::{
    compact::Hash,
    layer::{Layer, LayerBuilder},
    times::Before,
};
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

/// An immutable snapshot of the list. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct RevocationList {
    base: Arc<Layer>,
    /// What was added after the base was made; it may say of an entry of the base that it holds for longer.
    recent: Arc<Layer>,
    /// How many are in both.
    said_twice: usize,
    stamp: Option<ListStamp>,
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
    /// Its reason, of the first 10,000 entries that have one, and of those that were added since.
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
    /// Whose tokens are held to a time, each once.
    pub times: Vec<Whose>,
    /// More than these, or some that are known by their hash alone: every session is to be asked.
    pub everybody: bool,
}

impl Added {
    /// Whether nothing was added.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What an older list revoked and a newer one does not: for the log.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Lifted {
    /// How many entries.
    pub count: usize,
    /// Ids of the first hundred, sorted.
    pub ids: Vec<String>,
}

impl RevocationList {
    /// Reads the lines of the file. Every good line counts; the bad ones are named.
    pub fn parse(text: &str) -> (Self, Vec<BadLine>) {
        let mut reader = ListReader::default();
        reader.feed(text.as_bytes());
        let ReadList { list, bad_lines, .. } = reader.finish();
        (list, bad_lines)
    }

    fn of_layer(layer: Layer) -> Self {
        Self { base: Arc::new(layer), ..Self::default() }
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.base.len() + self.recent.len() - self.said_twice
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// With what the header of a signed list says of its age.
    #[must_use]
    pub fn stamped(self, stamp: ListStamp) -> Self {
        Self { stamp: Some(stamp), ..self }
    }

    /// When it was signed, and from when on it is too old to be relied upon; `None`: it is not signed.
    pub fn stamp(&self) -> Option<ListStamp> {
        self.stamp
    }

    /// Whether it is so old that nobody may be admitted by it.
    pub fn is_stale(&self, now: UnixSeconds) -> bool {
        self.stamp.is_some_and(|stamp| now >= stamp.refuse_from)
    }

    /// The entry that revokes this token, if there is one in force.
    pub fn matches(&self, facts: &Facts<'_>, now: UnixSeconds) -> Option<Hit> {
        let what = self.find(facts, now)?;
        let hash = what.hash();
        let reason = [&self.recent, &self.base].into_iter().find_map(|layer| layer.reason(&hash)).map(Box::from);
        Some(Hit { id: entry_id(&hash), what: what.told(facts), reason })
    }

    /// Whether an entry in force revokes this token.
    pub fn revokes(&self, facts: &Facts<'_>, now: UnixSeconds) -> bool {
        self.find(facts, now).is_some()
    }

    /// Whether an entry in force revokes the device as a whole, or the one that it is a module of.
    pub fn revokes_device(&self, device: &DeviceId, now: UnixSeconds) -> bool {
        device.and_parent().map(What::Device).any(|what| {
            [&self.recent, &self.base].iter().any(|layer| layer.until(&what).is_some_and(|until| until.is_after(now)))
        })
    }

    fn find(&self, facts: &Facts<'_>, now: UnixSeconds) -> Option<What> {
        [&self.recent, &self.base].into_iter().find_map(|layer| layer.find(facts, now))
    }

    /// This list and the entries of lines that were appended to its file.
    #[must_use]
    pub fn with(&self, appended: &Self) -> Self {
        let (mut recent, mut is_same) = (LayerBuilder::default(), true);
        appended.each_not_in(self, &mut |entry| {
            is_same = false;
            recent.put(entry);
        });
        if is_same {
            return self.clone();
        }
        for layer in [&appended.base, &appended.recent, &self.recent] {
            layer.reasons().for_each(|(hash, reason)| recent.put_reason(*hash, reason.clone()));
        }
        self.recent.each(&mut |entry| recent.put(entry));
        let recent = recent.build();
        if recent.len() <= RECENT_MAX {
            let mut said_twice = 0;
            recent.each(&mut |entry| said_twice += usize::from(self.base.until(&entry.what).is_some()));
            return Self { base: self.base.clone(), recent: Arc::new(recent), said_twice, stamp: self.stamp };
        }
        let mut all = LayerBuilder::default();
        for layer in [&*self.base, &recent] {
            layer.each(&mut |entry| all.put(entry));
            layer.reasons().for_each(|(hash, reason)| all.put_reason(*hash, reason.clone()));
        }
        Self { stamp: self.stamp, ..Self::of_layer(all.build()) }
    }

    /// What this list revokes and `old` does not. Where that is more than `at_most` entries, the rest is not told:
    /// it is cheaper to ask every session than to look for each entry.
    pub fn added_since(&self, old: &Self, at_most: usize) -> Added {
        let (mut added, mut room) = (Added::default(), at_most);
        self.each_not_in(old, &mut |Entry { what, .. }| {
            if room == 0 {
                added.everybody = true;
                return;
            }
            room -= 1;
            match what {
                What::Token(id) => added.tokens.push(id),
                What::Jti(hash) => added.jtis.push(hash),
                What::Device(id) => added.devices.push(id),
                What::DeviceHash(_) => added.everybody = true,
                What::Key(name) => added.keys.push(name),
                What::Before(before) => added.times.push(before.of),
            }
        });
        sort_once(&mut added.tokens);
        sort_once(&mut added.jtis);
        sort_once(&mut added.devices);
        sort_once(&mut added.keys);
        sort_once(&mut added.times);
        added
    }

    /// What `old` has in force and this list does not.
    pub fn lifted(&self, old: &Self, now: UnixSeconds) -> Lifted {
        let mut lifted = Lifted::default();
        old.each_not_in(self, &mut |entry| {
            if entry.until.is_after(now) {
                lifted.count += 1;
                if lifted.ids.len() < LIFTED_NAMED {
                    lifted.ids.push(entry_id(&entry.what.hash()));
                }
            }
        });
        lifted.ids.sort();
        lifted
    }

    /// This list, and everything that `old` has in force: while the file has a bad line, nothing is lifted.
    #[must_use]
    pub fn merge_for_safety(self, old: &Self) -> Self {
        let mut kept = LayerBuilder::default();
        old.each_not_in(&self, &mut |entry| kept.put(entry));
        for layer in [&old.base, &old.recent] {
            layer.reasons().for_each(|(hash, reason)| kept.put_reason(*hash, reason.clone()));
        }
        self.with(&Self::of_layer(kept.build()))
    }

    /// Visits what this list holds and `old` does not, or not for as long. An entry may come twice, with two ends.
    fn each_not_in(&self, old: &Self, visit: &mut impl FnMut(Entry)) {
        let layers = [&old.recent, &old.base];
        let has_hashes = self.base.keeps_hashes() || self.recent.keeps_hashes();
        let named: HashMap<Hash, Until> =
            layers.into_iter().filter(|_| has_hashes).flat_map(|layer| layer.named_hashes()).collect();
        let mut fresh = |entry: Entry| {
            let is_long = |until: Option<Until>| until.is_some_and(|until| until >= entry.until);
            let in_layer = layers.into_iter().any(|layer| is_long(layer.until(&entry.what)));
            let by_name = || matches!(&entry.what, What::DeviceHash(hash) if is_long(named.get(hash).copied()));
            if !in_layer && !by_name() {
                visit(entry);
            }
        };
        if !Arc::ptr_eq(&self.base, &old.base) {
            self.base.each_not_in(&old.base, &mut fresh);
        }
        if !Arc::ptr_eq(&self.recent, &old.recent) {
            self.recent.each(&mut fresh);
        }
    }

    /// Ids of all entries, sorted, as the first 16 bytes of their hash; an entry of two layers comes once.
    pub fn ids(&self) -> Vec<[u8; 16]> {
        let mut ids = Vec::with_capacity(self.len());
        [&self.base, &self.recent].into_iter().for_each(|layer| layer.each(&mut |entry| ids.push(entry.what.hash())));
        ids.sort_unstable();
        ids.dedup();
        ids
    }
}

/// When an entry ends, in seconds since 1970. What ends after 2105 never does: four bytes an entry.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
struct Until(u32);

impl Until {
    const FOR_EVER: Self = Self(u32::MAX);

    fn at(time: UnixSeconds) -> Self {
        Self(u32::try_from(time.0).unwrap_or(u32::MAX))
    }

    /// Guarded time: the entry ends in the second of its `until`.
    fn is_after(self, now: UnixSeconds) -> bool {
        self == Self::FOR_EVER || now.0 < u64::from(self.0)
    }
}

/// What one line says.
#[derive(Clone, Debug)]
struct Entry {
    what: What,
    until: Until,
}

/// What an entry selects.
#[derive(Clone, PartialEq, Eq, Debug)]
enum What {
    Token(TokenId),
    Jti(JtiHash),
    Device(DeviceId),
    /// A device of a list of very many: its name is not kept.
    DeviceHash(Hash),
    Key(KeyName),
    Before(Before),
}

impl What {
    fn hash(&self) -> Hash {
        match self {
            Self::Token(id) => first_16(&["token", &id.to_string()]),
            Self::Jti(hash) => hash.0,
            Self::Device(id) => device_hash(id),
            Self::DeviceHash(hash) => *hash,
            Self::Key(name) => first_16(&["key", name.as_str()]),
            Self::Before(before) => before.hash(),
        }
    }

    fn told(&self, facts: &Facts<'_>) -> String {
        match self {
            Self::Token(id) => format!("the token {id}"),
            Self::Jti(_) => format!("the jti {}", super::shown(facts.jti.unwrap_or_default())),
            Self::Device(id) => format!("the device {id}"),
            Self::DeviceHash(_) => format!("the device {}", facts.device),
            Self::Key(name) => format!("the key {name}"),
            Self::Before(before) => before.to_string(),
        }
    }
}

fn sort_once<T: Ord>(all: &mut Vec<T>) {
    all.sort_unstable();
    all.dedup();
}

fn device_hash(id: &DeviceId) -> Hash {
    first_16(&["device", id.as_str()])
}

fn first_16(canonical: &[&str]) -> Hash {
    let mut hash = Sha256::new();
    for (index, part) in canonical.iter().enumerate() {
        if index > 0 {
            hash.update(b"\n");
        }
        hash.update(part);
    }
    super::token_id_of(hash).0
}

fn entry_id(hash: &Hash) -> String {
    hash.iter().take(4).map(|byte| format!("{byte:02x}")).collect()
}

/// So many may be added before they are merged with the base: some hundred microseconds a change.
const RECENT_MAX: usize = 16_384;
/// One broken export must not fill a disk.
const LIFTED_NAMED: usize = 100;

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
