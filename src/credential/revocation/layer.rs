//! One layer of a list: its entries by kind, each found without a search through the others.

use std::collections::HashMap;

use super::{
    Entry, Facts, JtiHash, Until, What,
    compact::{CompactBuilder, CompactSet, Hash},
    device_hash,
    times::Times,
};
use crate::{
    id::{DeviceId, KeyName, TokenId},
    time::UnixSeconds,
};

#[derive(Debug, Default)]
pub(super) struct Layer {
    tokens: CompactSet,
    jtis: CompactSet,
    /// Devices, or nothing where there are so many that their hashes are kept.
    named: HashMap<DeviceId, Until>,
    hashed: CompactSet,
    keys: HashMap<KeyName, Until>,
    times: Times,
    /// By canonical hash.
    reasons: HashMap<Hash, Box<str>>,
}

impl Layer {
    pub(super) fn len(&self) -> usize {
        let compact = self.tokens.len() + self.jtis.len() + self.hashed.len();
        compact + self.named.len() + self.keys.len() + self.times.len()
    }

    pub(super) fn find(&self, facts: &Facts<'_>, now: UnixSeconds) -> Option<What> {
        let in_force = |until: Option<&Until>| until.is_some_and(|until| until.is_after(now));
        if self.tokens.holds(&facts.token_id.0, now) {
            return Some(What::Token(facts.token_id));
        }
        if let Some(jti) = facts.jti.filter(|_| !self.jtis.is_empty()) {
            let both = JtiHash::both(facts.issuer.unwrap_or_default(), jti);
            if let Some(hash) = both.into_iter().find(|hash| self.jtis.holds(&hash.0, now)) {
                return Some(What::Jti(hash));
            }
        }
        // Who revokes a device revokes its modules.
        for id in facts.device.and_parent() {
            if in_force(self.named.get(&id)) {
                return Some(What::Device(id));
            }
            if !self.hashed.is_empty() {
                let hash = device_hash(&id);
                if self.hashed.holds(&hash, now) {
                    return Some(What::DeviceHash(hash));
                }
            }
        }
        if in_force(self.keys.get(facts.key)) {
            return Some(What::Key(facts.key.clone()));
        }
        self.times.find(facts, now).map(What::Before)
    }

    pub(super) fn until(&self, what: &What) -> Option<Until> {
        match what {
            What::Token(id) => self.tokens.until(&id.0),
            What::Jti(hash) => self.jtis.until(&hash.0),
            What::Device(id) if self.hashed.is_empty() => self.named.get(id).copied(),
            What::Device(id) => self.hashed.until(&device_hash(id)),
            What::DeviceHash(hash) => self.hashed.until(hash),
            What::Key(name) => self.keys.get(name).copied(),
            What::Before(before) => self.times.until(before),
        }
    }

    pub(super) fn keeps_hashes(&self) -> bool {
        !self.hashed.is_empty()
    }

    /// Devices by their hash, where their names are kept.
    pub(super) fn named_hashes(&self) -> impl Iterator<Item = (Hash, Until)> + '_ {
        self.named.iter().map(|(id, until)| (device_hash(id), *until))
    }

    pub(super) fn reason(&self, hash: &Hash) -> Option<&str> {
        self.reasons.get(hash).map(|reason| &**reason)
    }

    pub(super) fn reasons(&self) -> impl Iterator<Item = (&Hash, &Box<str>)> {
        self.reasons.iter()
    }

    pub(super) fn each(&self, visit: &mut impl FnMut(Entry)) {
        self.each_not_in(&Self::default(), visit);
    }

    /// Visits what this layer holds and, as far as that is cheap to tell, `old` does not.
    pub(super) fn each_not_in(&self, old: &Self, visit: &mut impl FnMut(Entry)) {
        for (hash, until) in self.tokens.not_in(&old.tokens) {
            visit(Entry { what: What::Token(TokenId(hash)), until });
        }
        for (hash, until) in self.jtis.not_in(&old.jtis) {
            visit(Entry { what: What::Jti(JtiHash(hash)), until });
        }
        for (hash, until) in self.hashed.not_in(&old.hashed) {
            visit(Entry { what: What::DeviceHash(hash), until });
        }
        self.named.iter().for_each(|(id, until)| visit(Entry { what: What::Device(id.clone()), until: *until }));
        self.keys.iter().for_each(|(name, until)| visit(Entry { what: What::Key(name.clone()), until: *until }));
        self.times.each(visit);
    }
}

/// Collects entries in any order. Of what is said twice, the longer counts.
#[derive(Debug, Default)]
pub(super) struct LayerBuilder {
    tokens: CompactBuilder,
    jtis: CompactBuilder,
    named: HashMap<DeviceId, Until>,
    hashed: CompactBuilder,
    keys: HashMap<KeyName, Until>,
    times: Times,
    reasons: HashMap<Hash, Box<str>>,
    keeps_hashes: bool,
}

impl LayerBuilder {
    pub(super) fn put(&mut self, Entry { what, until }: Entry) {
        let longest = |held: &mut Until| *held = (*held).max(until);
        match what {
            What::Token(id) => self.tokens.push(id.0, until),
            What::Jti(hash) => self.jtis.push(hash.0, until),
            What::DeviceHash(hash) => {
                self.keep_hashes();
                self.hashed.push(hash, until);
            }
            What::Device(id) if self.keeps_hashes => self.hashed.push(device_hash(&id), until),
            What::Device(id) => {
                longest(self.named.entry(id).or_insert(until));
                if self.named.len() > NAMED_MAX {
                    self.keep_hashes();
                }
            }
            What::Key(name) => longest(self.keys.entry(name).or_insert(until)),
            What::Before(before) => self.times.put(before, until),
        }
    }

    fn keep_hashes(&mut self) {
        self.keeps_hashes = true;
        let named = std::mem::take(&mut self.named);
        named.into_iter().for_each(|(id, until)| self.hashed.push(device_hash(&id), until));
    }

    /// A reason is a courtesy in a log line; the file has them all.
    pub(super) fn put_reason(&mut self, hash: Hash, reason: Box<str>) {
        if self.reasons.len() < REASONS_MAX {
            self.reasons.entry(hash).or_insert(reason);
        }
    }

    pub(super) fn wants_reasons(&self) -> bool {
        self.reasons.len() < REASONS_MAX
    }

    pub(super) fn build(self) -> Layer {
        let Self { tokens, jtis, named, hashed, keys, times, reasons, keeps_hashes: _ } = self;
        let (tokens, jtis, hashed) = (tokens.build(), jtis.build(), hashed.build());
        Layer { tokens, jtis, named, hashed, keys, times, reasons }
    }
}

/// Beyond it devices are kept as hashes, 16 bytes each.
const NAMED_MAX: usize = 16_384;
/// Some megabytes at most.
const REASONS_MAX: usize = 10_000;
