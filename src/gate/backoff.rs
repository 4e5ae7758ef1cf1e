//! What becomes of an address from which somebody guesses. It never becomes the trouble of a device that shares the
//! address with whoever guesses: a token that verifies is admitted, ban or no ban.
//!
//! Guesses are counted for each address in a bucket that refills; the same bad text again and again, from however many
//! addresses, is counted by its fingerprint in the same way. That is of the whole text, signature included: nobody who
//! knows a part of a device's good token can have that one counted. When it is empty the address is *banned*: what does
//! not verify is told so, its refusals are shown as one, and signatures of public keys that were not seen before are
//! checked within a budget, beyond which a device is asked to try again. SAS tokens and HMAC are always checked:
//! refusing costs as much as checking. No device is ever banned by its id: whoever knows the id could lock it out.

use std::{
    collections::hash_map::DefaultHasher,
    hash::{Hash, Hasher},
    net::IpAddr,
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
    time::Duration,
};

use dashmap::{
    DashMap,
    mapref::{entry::Entry, one::RefMut},
};

use super::limiter::site_of;
use crate::{credential::Refused, denial::Denial, time::Tick};

/// Guesses by address. Called from every listener; `now` of different callers may differ by little.
#[derive(Debug)]
pub struct Backoff {
    /// Guesses a minute that are borne with; 0: off.
    per_minute: u32,
    sites: DashMap<IpAddr, Site>,
    /// Texts that were refused as guesses.
    texts: DashMap<u64, Site>,
    /// Counted here: asking the map would lock all of it.
    count: AtomicUsize,
    texts_count: AtomicUsize,
    sites_max: usize,
    /// Millisecond of the last sweep: a table that is full of addresses that go on is not walked for each of them.
    swept_at: AtomicU64,
}

/// What a refused CONNECT is told, and whether somebody should look.
#[derive(Debug, PartialEq, Eq)]
pub struct Judged {
    /// The refusal itself, or [`Denial::Banned`] in its place.
    pub refused: Refused,
    /// Set for the one guess with which a ban began.
    pub ban_begins: Option<BanOf>,
}

/// What is banned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BanOf {
    /// An address, whatever it sends.
    Address,
    /// A text that is no token, or none of ours, wherever it comes from.
    Text,
}

#[derive(Debug, Clone, Copy)]
struct Site {
    /// Guesses that are left, each [`GUESS`] large.
    left: u64,
    /// Checks of public keys that are left, each [`CHECK`] large. Counts only while banned.
    checks: u64,
    at: Tick,
    banned: bool,
    /// Guesses that this ban has answered.
    answered: u64,
}

impl Backoff {
    /// `per_minute` guesses a minute, ten times that at once; 0: nothing is counted and nobody is banned.
    pub fn new(per_minute: u32) -> Self {
        Self::with_sites_max(per_minute, SITES_MAX)
    }

    /// Whether a token is looked at. Always, unless the address is banned, the token `is_costly` (it needs the check of
    /// a public key) and the budget for those is used up. A costly one that is allowed takes a check.
    pub fn allows_check(&self, address: IpAddr, is_costly: impl FnOnce() -> bool, now: Tick) -> bool {
        if self.per_minute == 0 {
            return true;
        }
        let Some(mut site) = self.sites.get_mut(&site_of(address)) else { return true };
        self.refill(&mut site, now);
        if !site.banned || !is_costly() {
            return true;
        }
        let allowed = site.checks >= CHECK;
        if allowed {
            site.checks -= CHECK;
        }
        allowed
    }

    /// Counts a refused CONNECT where it was a guess, and says what it is told. `text` is what was sent as a token.
    pub fn judge(&self, address: IpAddr, text: &[u8], refused: Refused, now: Tick) -> Judged {
        if self.per_minute == 0 || !is_guess(refused.denial) {
            return Judged { refused, ban_begins: None };
        }
        let by_text = self.count_text(fingerprint(text), now);
        match self.count_guess(site_of(address), now) {
            None => match by_text {
                None => Judged { refused, ban_begins: None },
                Some(Ban { answered, lifts_in }) => {
                    let detail = format!(
                        "This token comes again and again, from this address or others: {answered} times in this ban, the \
                         last was {}. The ban lifts {} s after the last. {}",
                        refused.denial,
                        lifts_in.as_secs(),
                        refused.detail
                    );
                    let refused = Refused { denial: Denial::Banned, detail, ..refused };
                    Judged { refused, ban_begins: (answered == 1).then_some(BanOf::Text) }
                }
            },
            Some(Ban { answered, lifts_in }) => {
                let detail = format!(
                    "{address} guesses: {answered} in this ban, the last was {}. The ban lifts {} s after the last. {}",
                    refused.denial,
                    lifts_in.as_secs(),
                    refused.detail
                );
                let refused = Refused { denial: Denial::Banned, detail, ..refused };
                Judged { refused, ban_begins: (answered == 1).then_some(BanOf::Address) }
            }
        }
    }

    /// How many addresses are banned at this moment.
    pub fn banned(&self, now: Tick) -> usize {
        let is_banned = |site: &Site| {
            let mut site = *site;
            self.refill(&mut site, now);
            site.banned
        };
        self.sites.iter().filter(|site| is_banned(site)).count()
    }

    fn with_sites_max(per_minute: u32, sites_max: usize) -> Self {
        let (sites, texts) = (DashMap::new(), DashMap::new());
        let (count, texts_count, swept_at) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicU64::new(0));
        Self { per_minute, sites, texts, count, texts_count, sites_max, swept_at }
    }

    /// The same text: it is worth less patience than an address, behind which there may be many.
    fn count_text(&self, text: u64, now: Tick) -> Option<Ban> {
        if self.texts_count.load(Ordering::Relaxed) >= self.sites_max && !self.texts.contains_key(&text) {
            self.sweep(now);
            if self.texts_count.load(Ordering::Relaxed) >= self.sites_max {
                return None;
            }
        }
        let entry = match self.texts.entry(text) {
            Entry::Occupied(entry) => entry.into_ref(),
            Entry::Vacant(entry) => {
                self.texts_count.fetch_add(1, Ordering::Relaxed);
                entry.insert(self.fresh(now))
            }
        };
        // A tenth of what an address has: a device that tries with one token every few seconds is not banned.
        self.count_in(entry, (GUESS * TEXT_WEIGHT).min(self.lifts_at()), now)
    }

    fn fresh(&self, now: Tick) -> Site {
        Site { left: self.burst(), checks: CHECKS_BURST, at: now, banned: false, answered: 0 }
    }

    /// `None`: not banned, or the table is full of others who guess. Then the guess is told what it is: a ban protects
    /// the log and the processor, it is not what keeps a guess out.
    fn count_guess(&self, site: IpAddr, now: Tick) -> Option<Ban> {
        if self.count.load(Ordering::Relaxed) >= self.sites_max && !self.sites.contains_key(&site) {
            self.sweep(now);
            if self.count.load(Ordering::Relaxed) >= self.sites_max {
                return None;
            }
        }
        let entry = match self.sites.entry(site) {
            Entry::Occupied(entry) => entry.into_ref(),
            Entry::Vacant(entry) => {
                self.count.fetch_add(1, Ordering::Relaxed);
                entry.insert(self.fresh(now))
            }
        };
        self.count_in(entry, GUESS, now)
    }

    fn count_in<K: Eq + Hash>(&self, mut entry: RefMut<'_, K, Site>, weight: u64, now: Tick) -> Option<Ban> {
        self.refill(&mut entry, now);
        if entry.left < weight && !entry.banned {
            (entry.banned, entry.answered, entry.checks) = (true, 0, CHECKS_BURST);
        }
        entry.left = entry.left.saturating_sub(weight);
        if !entry.banned {
            return None;
        }
        entry.answered += 1;
        let missing = self.lifts_at().saturating_sub(entry.left);
        Some(Ban {
            answered: entry.answered,
            lifts_in: Duration::from_millis(missing.div_ceil(u64::from(self.per_minute))),
        })
    }

    fn refill(&self, site: &mut Site, now: Tick) {
        let milliseconds = u64::try_from(now.since(site.at).as_millis()).unwrap_or(u64::MAX);
        // So many a minute is the same in sixty-thousandths a millisecond.
        let earned = milliseconds.saturating_mul(u64::from(self.per_minute));
        site.left = site.left.saturating_add(earned).min(self.burst());
        site.checks = site.checks.saturating_add(milliseconds.saturating_mul(CHECKS_PER_SECOND)).min(CHECKS_BURST);
        site.at = site.at.max(now);
        site.banned &= site.left < self.lifts_at();
    }

    /// Forgets every address and every text whose bucket is full again: it is as if it had never guessed.
    fn sweep(&self, now: Tick) {
        let before = self.swept_at.load(Ordering::Relaxed);
        let is_due = now.since(Tick(before)) >= SWEEP_EVERY;
        if !is_due || self.swept_at.compare_exchange(before, now.0, Ordering::Relaxed, Ordering::Relaxed).is_err() {
            return;
        }
        let full = self.burst();
        self.sites.retain(|_, site| {
            self.refill(site, now);
            site.left < full
        });
        self.count.store(self.sites.len(), Ordering::Relaxed);
        self.texts.retain(|_, text| {
            self.refill(text, now);
            text.left < full
        });
        self.texts_count.store(self.texts.len(), Ordering::Relaxed);
    }

    fn burst(&self) -> u64 {
        self.lifts_at() * BURST_MINUTES
    }

    /// A ban lifts when a minute's worth of guesses is there again.
    fn lifts_at(&self) -> u64 {
        u64::from(self.per_minute) * GUESS
    }
}

struct Ban {
    answered: u64,
    lifts_in: Duration,
}

/// Refusals of tokens that nobody is shown to have signed. One that is expired, revoked or of another device *was*
/// signed: it is a mistake or a theft, no guess, and whoever presents it is told what it is.
fn is_guess(denial: Denial) -> bool {
    matches!(
        denial,
        Denial::CredentialMalformed
            | Denial::DeviceUnknown
            | Denial::SignatureInvalid
            | Denial::KeyUnknown
            | Denial::IssuerUnknown
            | Denial::AlgorithmMismatch
    )
}

/// Nobody gains by two texts that have the same: what verifies is never asked for.
fn fingerprint(text: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

/// A guess in a text's bucket weighs what ten do in an address's, and never more than lifts a ban.
const TEXT_WEIGHT: u64 = 10;
/// One guess: such that a rate in guesses a minute is the same number of these units a millisecond.
const GUESS: u64 = 60_000;
/// As with `connects_per_second_per_ip`, the burst is ten times the rate: 3,000 by default, more than any site has
/// devices that were left behind by a change of keys.
const BURST_MINUTES: u64 = 10;
/// One check of a public key: such that a rate in checks a second is the same number of these units a millisecond.
const CHECK: u64 = 1_000;
/// Checks a second that a banned address has: at 60 µs each (ES256) a hundredth and a half of one core. A device behind
/// a banned address that comes with a new token of this kind gets one after few tries.
const CHECKS_PER_SECOND: u64 = 250;
const CHECKS_BURST: u64 = CHECKS_PER_SECOND * CHECK;
/// Of addresses, and of texts. About 6 MiB each.
const SITES_MAX: usize = 65_536;
/// A walk over all of them takes some milliseconds.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(n: u32) -> IpAddr {
        IpAddr::from(n.to_be_bytes())
    }

    fn refused(denial: Denial) -> Refused {
        Refused::new(denial, "Why.")
    }

    /// Another text each time.
    fn judge(backoff: &Backoff, address: IpAddr, refused: Refused, now: Tick) -> Judged {
        thread_local!(static TEXTS: std::cell::Cell<u64> = const { std::cell::Cell::new(0) });
        let text = TEXTS.replace(TEXTS.get() + 1);
        backoff.judge(address, &text.to_be_bytes(), refused, now)
    }

    fn guess(backoff: &Backoff, address: IpAddr, now: Tick) -> Denial {
        judge(backoff, address, refused(Denial::SignatureInvalid), now).refused.denial
    }

    #[test]
    fn the_same_text_from_changing_addresses_is_banned_and_no_other_text_is() {
        let backoff = Backoff::new(6);
        let from = |n: u32, text: &[u8], now| {
            let Judged { refused, ban_begins } = backoff.judge(v4(n), text, refused(Denial::SignatureInvalid), now);
            (refused.denial, ban_begins)
        };
        for n in 0..10 {
            assert_eq!(from(n, b"bad", Tick(0)).0, Denial::SignatureInvalid, "address {n}");
        }
        assert_eq!(from(10, b"bad", Tick(0)), (Denial::Banned, Some(BanOf::Text)));
        assert_eq!(from(11, b"bad", Tick(0)), (Denial::Banned, None), "said once");
        assert_eq!(from(11, b"bad, too", Tick(0)).0, Denial::SignatureInvalid);
        let good = refused(Denial::Expired);
        assert_eq!(backoff.judge(v4(11), b"bad", good.clone(), Tick(0)).refused, good, "it was signed after all");
        assert!(backoff.allows_check(v4(11), || true, Tick(0)), "no address is banned by it");
        assert_eq!(from(8, b"bad", Tick(60_001)).0, Denial::SignatureInvalid, "it lifts");
    }

    #[test]
    fn the_table_of_texts_has_a_bound() {
        let backoff = Backoff::with_sites_max(6, 2);
        for text in [&b"a"[..], b"b", b"c", b"d"] {
            backoff.judge(v4(1), text, refused(Denial::SignatureInvalid), Tick(0));
        }
        assert_eq!(backoff.texts.len(), 2);
        backoff.judge(v4(1), b"e", refused(Denial::SignatureInvalid), Tick(600_000));
        assert_eq!(backoff.texts.len(), 1, "what was forgiven makes place");
    }

    #[test]
    fn a_ban_begins_after_ten_minutes_worth_and_lifts_a_minute_after_the_last_guess() {
        let backoff = Backoff::new(6);
        for n in 0..60 {
            assert_eq!(guess(&backoff, v4(1), Tick(0)), Denial::SignatureInvalid, "guess {n}");
        }
        let first = judge(&backoff, v4(1), refused(Denial::SignatureInvalid), Tick(0));
        assert_eq!((first.refused.denial, first.ban_begins), (Denial::Banned, Some(BanOf::Address)));
        assert!(first.refused.detail.contains("lifts 60 s after"), "{}", first.refused.detail);
        assert!(first.refused.detail.contains("201 signature_invalid"), "{}", first.refused.detail);
        let second = judge(&backoff, v4(1), refused(Denial::SignatureInvalid), Tick(59_999));
        assert_eq!((second.refused.denial, second.ban_begins), (Denial::Banned, None), "one millisecond too early");
        assert_eq!(backoff.banned(Tick(59_999)), 1);
        assert_eq!(guess(&backoff, v4(2), Tick(59_999)), Denial::SignatureInvalid, "another address has its own");
        // The guess before took a sixth of the minute again.
        assert_eq!(backoff.banned(Tick(69_999)), 1);
        assert_eq!(backoff.banned(Tick(70_000)), 0);
        assert_eq!(guess(&backoff, v4(1), Tick(70_000)), Denial::SignatureInvalid);
    }

    #[test]
    fn a_token_that_somebody_signed_is_no_guess() {
        let backoff = Backoff::new(1);
        for _ in 0..100 {
            for denial in [Denial::Expired, Denial::Revoked, Denial::DeviceMismatch, Denial::Unavailable] {
                assert_eq!(judge(&backoff, v4(1), refused(denial), Tick(0)).refused.denial, denial);
            }
        }
        assert!(backoff.sites.is_empty());
        while guess(&backoff, v4(1), Tick(0)) != Denial::Banned {}
        let expired = judge(&backoff, v4(1), refused(Denial::Expired), Tick(0)).refused;
        assert_eq!(expired, refused(Denial::Expired), "also from a banned address");
    }

    #[test]
    fn a_banned_address_has_a_budget_of_public_keys_and_others_have_all_they_want() {
        let backoff = Backoff::new(1);
        let checks = |address, now| (0..10_000).filter(|_| backoff.allows_check(address, || true, now)).count();
        assert_eq!(checks(v4(1), Tick(0)), 10_000);
        while guess(&backoff, v4(1), Tick(0)) != Denial::Banned {}
        assert_eq!(checks(v4(1), Tick(0)), 250);
        assert_eq!(checks(v4(1), Tick(3)), 0);
        assert_eq!(checks(v4(1), Tick(4)), 1);
        assert_eq!(checks(v4(1), Tick(1_004)), 250);
        assert_eq!(checks(v4(2), Tick(4)), 10_000);
        assert!((0..10_000).all(|_| backoff.allows_check(v4(1), || false, Tick(1_004))), "what costs nothing");
    }

    #[test]
    fn a_clock_that_is_behind_gives_nothing_twice() {
        let backoff = Backoff::new(6);
        while guess(&backoff, v4(1), Tick(5_000)) != Denial::Banned {}
        assert_eq!(guess(&backoff, v4(1), Tick(0)), Denial::Banned);
        assert_eq!(backoff.banned(Tick(5_000)), 1);
    }

    #[test]
    fn zero_is_off() {
        let backoff = Backoff::new(0);
        assert!((0..10_000).all(|_| guess(&backoff, v4(1), Tick(0)) == Denial::SignatureInvalid));
        assert!(backoff.allows_check(v4(1), || true, Tick(0)) && backoff.sites.is_empty());
    }

    #[test]
    fn a_million_addresses_take_bounded_memory_and_none_is_banned_for_the_others() {
        let backoff = Backoff::new(300);
        for n in 0..1_000_000 {
            // A hundred microseconds apart.
            assert_eq!(guess(&backoff, v4(n), Tick(u64::from(n) / 10)), Denial::SignatureInvalid);
        }
        assert!(backoff.sites.len() <= SITES_MAX, "{}", backoff.sites.len());
        assert_eq!(backoff.banned(Tick(100_000)), 0);
    }

    #[test]
    fn a_full_table_forgets_who_stopped_and_bans_nobody_that_it_cannot_count() {
        let backoff = Backoff::with_sites_max(60, 2);
        let later = Tick(SWEEP_EVERY.as_millis() as u64);
        for n in [1, 2, 3] {
            assert!((0..100).all(|_| guess(&backoff, v4(n), Tick(0)) == Denial::SignatureInvalid));
        }
        assert_eq!((backoff.sites.len(), backoff.banned(Tick(0))), (2, 0));
        while guess(&backoff, v4(1), Tick(0)) != Denial::Banned {}
        assert!((0..10_000).all(|_| guess(&backoff, v4(3), later) == Denial::SignatureInvalid));
        let much_later = Tick(10 * 60_000);
        assert_eq!(guess(&backoff, v4(3), much_later), Denial::SignatureInvalid);
        assert_eq!((backoff.sites.len(), backoff.banned(much_later)), (1, 0));
    }
}
