//! Live sessions, found by device, token, `jti`, and whose key it was (policy, group, issuer), so that a change reaches
//! exactly those that it concerns.
//!
//! What a session was granted may change while it lives: it renews its token, or its scope becomes narrower. Whoever
//! changes it puts the new grant in its place *before* looking whether identities or list have changed since they were
//! asked, and whoever changes those puts them in force *before* looking for sessions: one of the two sees the other.

mod change;

pub use change::{NotRenewed, Reach, Threshold};

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, OnceLock,
        atomic::{
            AtomicU8,
            Ordering::{AcqRel, Acquire, SeqCst},
            fence,
        },
    },
    time::Instant,
};

use arc_swap::ArcSwap;
use dashmap::DashMap;

use crate::{
    credential::JtiHash,
    denial::CloseReason,
    id::{DeviceId, KeyName, TokenId},
    packet::ProtocolVersion,
    policy::Grant,
    time::UnixSeconds,
};

/// What is known of one live session; shared by its shard, which owns the session, and the registry.
#[derive(Debug)]
pub struct Live {
    device: DeviceId,
    grant: ArcSwap<Grant>,
    /// Where it comes from.
    pub peer: SocketAddr,
    /// What it speaks.
    pub version: ProtocolVersion,
    /// Since when.
    pub connected_at: UnixSeconds,
    /// Index of its home shard.
    pub shard: usize,
    /// Its place in the shard.
    pub slot: u32,
    /// Which use of that place.
    pub generation: u32,
    attention: AtomicU8,
    cut: OnceLock<Cut>,
}

/// What a session has to look at before it takes the next packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Attention {
    /// Its end was decided.
    Cut(Cut),
    /// What it was granted is not what it was.
    Regranted,
}

/// An end that was decided outside the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// Why.
    pub reason: CloseReason,
    /// When the change that decided it had been applied.
    pub applied: Instant,
}

impl Live {
    /// A session that is alive.
    pub fn new(
        grant: Grant,
        (peer, version): (SocketAddr, ProtocolVersion),
        (shard, slot, generation): (usize, u32, u32),
        connected_at: UnixSeconds,
    ) -> Self {
        let (attention, cut) = (AtomicU8::new(0), OnceLock::new());
        let (device, grant) = (grant.device.clone(), ArcSwap::from_pointee(grant));
        Self { device, grant, peer, version, connected_at, shard, slot, generation, attention, cut }
    }

    /// Who: the same for as long as it lives.
    pub fn device(&self) -> &DeviceId {
        &self.device
    }

    /// What it is granted now.
    pub fn grant(&self) -> Arc<Grant> {
        self.grant.load_full()
    }

    /// Puts a narrower grant of the same token in the place of `old`; the session is told before its next packet. Says
    /// whether it did: a session that has renewed meanwhile is to be asked again.
    pub fn narrow(&self, old: &Arc<Grant>, narrower: Arc<Grant>) -> bool {
        let replaced = Arc::ptr_eq(&self.grant.compare_and_swap(old, narrower), old);
        if replaced {
            self.attention.fetch_or(REGRANTED, AcqRel);
        }
        replaced
    }

    /// What has to be looked at before the next packet is taken. Costs one load where there is nothing. That the grant
    /// changed is told once.
    #[inline]
    pub fn attention(&self) -> Option<Attention> {
        if self.attention.load(Acquire) == 0 { None } else { self.what() }
    }

    /// Has the session look at what it is granted before its next packet.
    pub fn look_again(&self) {
        self.attention.fetch_or(REGRANTED, AcqRel);
    }

    #[cold]
    fn what(&self) -> Option<Attention> {
        if let Some(cut) = self.cut() {
            return Some(Attention::Cut(cut));
        }
        let regranted = self.attention.fetch_and(!REGRANTED, AcqRel) & REGRANTED != 0;
        regranted.then_some(Attention::Regranted)
    }

    /// Makes the session deaf: nothing that is read after this is accepted. The first reason stands; says whether
    /// this was it.
    pub fn deafen(&self, reason: CloseReason, applied: Instant) -> bool {
        let first = self.cut.set(Cut { reason, applied }).is_ok();
        self.attention.fetch_or(CUT, AcqRel);
        first
    }

    /// The end that was decided, if one was.
    #[inline]
    pub fn cut(&self) -> Option<Cut> {
        self.cut.get().copied()
    }
}

/// All live sessions.
#[derive(Debug, Default)]
pub struct Registry {
    by_device: DashMap<DeviceId, Arc<Live>>,
    by_token: DashMap<TokenId, Vec<Arc<Live>>>,
    by_jti: DashMap<JtiHash, Vec<Arc<Live>>>,
    /// Modules, by the device that they belong to.
    modules: DashMap<DeviceId, Vec<Arc<Live>>>,
    /// By `policy:NAME`, `group:PREFIX` or `issuer:NAME`; thousands may be under one.
    by_owner: DashMap<Box<str>, HashMap<Place, Arc<Live>>>,
}

/// Shard and slot of a session.
type Place = (usize, u32);

impl Registry {
    /// Adds a session. The one that stood for the same device is answered: it is to be closed.
    pub fn register(&self, live: &Arc<Live>) -> Option<Arc<Live>> {
        self.index(live, &live.grant());
        if let Some(device) = live.device.parent() {
            add(&self.modules, device, live);
        }
        self.by_device.insert(live.device.clone(), live.clone())
    }

    /// A session was granted something else by a token of its own: it is found by that from here on, and by what it had
    /// no more. Returns what it had. To be called by the session's own shard, which asks afterwards whether identities or
    /// list have changed since the token was judged.
    pub fn regrant(&self, live: &Arc<Live>, grant: Arc<Grant>) -> Arc<Grant> {
        self.index(live, &grant);
        let old = live.grant.swap(grant.clone());
        self.forget(live, &old, Some(&grant));
        // The look at the epoch that follows comes after the grant is in its place, also for other cores.
        fence(SeqCst);
        old
    }

    /// Puts back the session that a newcomer had replaced, after the newcomer was removed: it goes on. A change that came
    /// between did not find it: it has to be asked for again.
    pub fn reinstate(&self, live: &Arc<Live>) {
        self.by_device.entry(live.device.clone()).or_insert_with(|| live.clone());
    }

    /// Takes a session out; another one of the same device stays.
    pub fn remove(&self, live: &Arc<Live>) {
        self.by_device.remove_if(&live.device, |_, held| Arc::ptr_eq(held, live));
        self.forget(live, &live.grant(), None);
        if let Some(device) = live.device.parent() {
            take_out(&self.modules, &device, live);
        }
    }

    /// The session of a device and those of its modules; of a module, its own.
    pub fn within_device(&self, device: &str) -> Vec<Arc<Live>> {
        let mut all = self.modules.get(device).map_or_else(Vec::new, |held| held.clone());
        all.extend(self.of_device(device));
        all
    }

    /// The session of a device, or of a module.
    pub fn of_device(&self, device: &str) -> Option<Arc<Live>> {
        self.by_device.get(device).map(|held| held.clone())
    }

    /// Sessions that were admitted with a token.
    pub fn of_token(&self, token: TokenId) -> Vec<Arc<Live>> {
        self.by_token.get(&token).map_or_else(Vec::new, |held| held.clone())
    }

    /// Sessions that were admitted with a JWT that an entry of the revocation list names by its `jti`.
    pub fn of_jti(&self, jti: JtiHash) -> Vec<Arc<Live>> {
        self.by_jti.get(&jti).map_or_else(Vec::new, |held| held.clone())
    }

    /// Sessions whose token a key of `policy:NAME`, `group:PREFIX` or `issuer:NAME` verified. A device's own keys are
    /// found by the device.
    pub fn of_owner(&self, owner: &str) -> Vec<Arc<Live>> {
        match owner.strip_prefix(DEVICE).or_else(|| owner.strip_prefix(CERTIFICATE)) {
            Some(device) => self.of_device_by(device, |key| owner_of(key) == owner),
            None => self.by_owner.get(owner).map_or_else(Vec::new, |held| held.values().cloned().collect()),
        }
    }

    /// Sessions whose token this key verified.
    pub fn of_key(&self, key: &KeyName) -> Vec<Arc<Live>> {
        let mut of_owner = self.of_owner(owner_of(key));
        of_owner.retain(|live| live.grant().keys().any(|held| held == key));
        of_owner
    }

    fn of_device_by(&self, device: &str, is_it: impl Fn(&KeyName) -> bool) -> Vec<Arc<Live>> {
        self.within_device(device).into_iter().filter(|live| live.grant().keys().any(&is_it)).collect()
    }

    /// Calls `visit` with every session; sessions that come or go meanwhile may be missed or seen.
    pub fn for_each(&self, mut visit: impl FnMut(&Arc<Live>)) {
        self.by_device.iter().for_each(|held| visit(held.value()));
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.by_device.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.by_device.is_empty()
    }
}

impl Registry {
    /// By all that `grant` names and an index is kept for.
    fn index(&self, live: &Arc<Live>, grant: &Grant) {
        token_ids(grant).for_each(|token| add(&self.by_token, token, live));
        jti_hashes(grant).for_each(|jti| add(&self.by_jti, jti, live));
        if let Some(owner) = shared_owner(grant) {
            self.by_owner.entry(owner.into()).or_default().insert(live.place(), live.clone());
        }
    }

    /// By what `grant` names and `kept` does not.
    fn forget(&self, live: &Arc<Live>, grant: &Grant, kept: Option<&Grant>) {
        let kept_tokens: Vec<TokenId> = kept.into_iter().flat_map(token_ids).collect();
        token_ids(grant).filter(|id| !kept_tokens.contains(id)).for_each(|id| take_out(&self.by_token, &id, live));
        let kept_jtis: Vec<JtiHash> = kept.into_iter().flat_map(jti_hashes).collect();
        jti_hashes(grant).filter(|jti| !kept_jtis.contains(jti)).for_each(|jti| take_out(&self.by_jti, &jti, live));
        let owner = shared_owner(grant).filter(|owner| kept.and_then(shared_owner) != Some(*owner));
        if let Some(owner) = owner {
            if let Some(mut held) = self.by_owner.get_mut(owner)
                && held.get(&live.place()).is_some_and(|other| Arc::ptr_eq(other, live))
            {
                held.remove(&live.place());
            }
            self.by_owner.remove_if(owner, |_, held| held.is_empty());
        }
    }
}

impl Live {
    fn place(&self) -> Place {
        (self.shard, self.slot)
    }
}

/// Once: a session that renews with the same token stands there already.
fn add<K: std::hash::Hash + Eq>(index: &DashMap<K, Vec<Arc<Live>>>, key: K, live: &Arc<Live>) {
    let mut held = index.entry(key).or_default();
    if !held.iter().any(|other| Arc::ptr_eq(other, live)) {
        held.push(live.clone());
    }
}

fn take_out<K: std::hash::Hash + Eq>(index: &DashMap<K, Vec<Arc<Live>>>, key: &K, live: &Arc<Live>) {
    if let Some(mut held) = index.get_mut(key) {
        held.retain(|other| !Arc::ptr_eq(other, live));
    }
    index.remove_if(key, |_, held| held.is_empty());
}

/// Its token, and the certificate that it hangs on.
fn token_ids(grant: &Grant) -> impl Iterator<Item = TokenId> {
    std::iter::once(grant.token_id).chain(grant.certificate_id())
}

/// How an entry may name the `jti`: of its issuer, or of any.
fn jti_hashes(grant: &Grant) -> impl Iterator<Item = JtiHash> {
    let issuer = grant.issuer.as_deref().unwrap_or_default();
    grant.jti.as_deref().map(|jti| JtiHash::both(issuer, jti)).into_iter().flatten()
}

/// Whose key verified the token, where others may have tokens of it too.
fn shared_owner(grant: &Grant) -> Option<&str> {
    Some(owner_of(&grant.key)).filter(|owner| !owner.starts_with(DEVICE) && !owner.starts_with(CERTIFICATE))
}

/// A group's prefix and a policy's name may hold a `/`; a slot and a `kid` do not.
fn owner_of(key: &KeyName) -> &str {
    key.as_str().rsplit_once('/').map_or(key.as_str(), |(owner, _)| owner)
}

/// Owners that are one device.
const DEVICE: &str = "device:";
const CERTIFICATE: &str = "certificate:";
/// Bits of `attention`.
const CUT: u8 = 1;
const REGRANTED: u8 = 2;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        id::KeyName,
        policy::{Profile, Scope, TokenKind},
    };

    fn grant(device: &str, token: u8, jti: Option<&str>, key: (&str, &str)) -> Grant {
        Grant {
            device: DeviceId::try_from(device).expect("an id"),
            scope: Scope::new(vec![], vec![], false, 0),
            profile: Profile::Strict,
            expires_at: UnixSeconds(0),
            closes_at: UnixSeconds(0),
            token_id: TokenId([token; 16]),
            jti: jti.map(Into::into),
            kind: TokenKind::Jwt,
            key: KeyName::new(key.0, key.1),
            key_fingerprint: 0,
            issuer: jti.map(|_| "factory".into()),
            policy: None,
            issued_at: None,
            certificate: None,
            terms: None,
        }
    }

    fn session(grant: Grant, slot: u32) -> Arc<Live> {
        let peer = "127.0.0.1:1".parse().expect("an address");
        Arc::new(Live::new(grant, (peer, ProtocolVersion::V5_0), (0, slot, 0), UnixSeconds(0)))
    }

    fn live(device: &str, token: u8, jti: Option<&str>) -> Arc<Live> {
        session(grant(device, token, jti, ("issuer:x", "k")), u32::from(token))
    }

    fn of_jti(registry: &Registry) -> [usize; 2] {
        JtiHash::both("factory", "j").map(|hash| registry.of_jti(hash).len())
    }

    #[test]
    fn a_session_is_found_by_device_token_and_jti_until_it_is_removed() {
        let registry = Registry::default();
        let (a, b) = (live("a", 1, Some("j")), live("b", 1, Some("j")));
        assert!(registry.register(&a).is_none());
        assert!(registry.register(&b).is_none());
        assert!(Arc::ptr_eq(&registry.of_device("a").expect("a"), &a));
        assert_eq!((registry.of_token(TokenId([1; 16])).len(), of_jti(&registry), registry.len()), (2, [2, 2], 2));
        registry.remove(&a);
        assert_eq!((registry.of_token(TokenId([1; 16])).len(), of_jti(&registry), registry.len()), (1, [1, 1], 1));
        registry.remove(&b);
        assert!(nothing_is_left(&registry));
    }

    fn nothing_is_left(registry: &Registry) -> bool {
        let tables = [registry.by_token.is_empty(), registry.by_jti.is_empty(), registry.by_owner.is_empty()];
        registry.is_empty() && tables.into_iter().all(|empty| empty)
    }

    #[test]
    fn a_session_is_found_by_whose_key_it_was_and_by_the_key_itself() {
        let registry = Registry::default();
        let keys = [
            ("a", ("policy:line/7", "primary")),
            ("b", ("policy:line/7", "secondary")),
            ("c", ("group:pump-", "primary")),
            ("d", ("device:d", "secondary")),
        ];
        let all: Vec<_> =
            (0u8..).zip(keys).map(|(n, (id, key))| session(grant(id, n, None, key), u32::from(n))).collect();
        all.iter().for_each(|live| drop(registry.register(live)));
        let found = |sessions: Vec<Arc<Live>>| {
            let mut ids: Vec<String> = sessions.iter().map(|live| live.device().to_string()).collect();
            ids.sort();
            ids.concat()
        };
        for (owner, expected) in
            [("policy:line/7", "ab"), ("policy:line", ""), ("group:pump-", "c"), ("device:d", "d"), ("device:a", "")]
        {
            assert_eq!(found(registry.of_owner(owner)), expected, "{owner}");
        }
        for (owner, slot, expected) in
            [("policy:line/7", "secondary", "b"), ("device:d", "secondary", "d"), ("device:d", "primary", "")]
        {
            assert_eq!(found(registry.of_key(&KeyName::new(owner, slot))), expected, "{owner}/{slot}");
        }
        all.iter().for_each(|live| registry.remove(live));
        assert!(nothing_is_left(&registry));
    }

    #[test]
    fn a_session_that_renewed_is_found_by_its_new_token_and_not_by_the_old_one() {
        let registry = Registry::default();
        let (old, new) = (grant("a", 1, Some("j"), ("policy:p", "primary")), grant("a", 2, None, ("issuer:x", "k")));
        let renewing = session(old.clone(), 0);
        registry.register(&renewing);
        for (give, token, jtis, owners) in [
            (&new, 2, [0, 0], ("issuer:x", "policy:p")),
            (&new, 2, [0, 0], ("issuer:x", "policy:p")),
            (&old, 1, [1, 1], ("policy:p", "issuer:x")),
        ] {
            registry.regrant(&renewing, Arc::new(give.clone()));
            assert_eq!((registry.by_token.len(), registry.of_token(TokenId([token; 16])).len()), (1, 1));
            assert_eq!(of_jti(&registry), jtis);
            assert_eq!((registry.of_owner(owners.0).len(), registry.of_owner(owners.1).len()), (1, 0));
            assert_eq!(*renewing.grant(), *give);
        }
        registry.remove(&renewing);
        assert!(nothing_is_left(&registry));
    }

    #[test]
    fn a_narrower_grant_takes_the_place_of_the_one_it_was_made_from_and_is_told_once() {
        let session = live("a", 1, None);
        let old = session.grant();
        assert_eq!(session.attention(), None);
        let narrower = Arc::new(Grant { closes_at: UnixSeconds(1), ..(*old).clone() });
        assert!(session.narrow(&old, narrower.clone()));
        assert!(!session.narrow(&old, Arc::new((*old).clone())), "made from what is not in force");
        assert_eq!(*session.grant(), *narrower);
        assert_eq!((session.attention(), session.attention()), (Some(Attention::Regranted), None));
        session.deafen(CloseReason::Revoked, Instant::now());
        assert!(matches!(session.attention(), Some(Attention::Cut(_))) && session.attention().is_some());
    }

    #[test]
    fn a_device_is_found_with_its_modules_and_each_has_a_session_of_its_own() {
        let registry = Registry::default();
        let all = [live("a", 1, None), live("a/m", 2, None), live("a/n", 3, None), live("ab/m", 4, None)];
        assert!(all.iter().all(|live| registry.register(live).is_none()));
        let within = |device| registry.within_device(device).len();
        assert_eq!((within("a"), within("a/m"), within("ab"), within("b")), (3, 1, 1, 0));
        all.iter().for_each(|live| registry.remove(live));
        assert!(registry.is_empty() && registry.modules.is_empty());
    }

    #[test]
    fn the_newest_session_of_a_device_stands_and_the_old_one_cannot_remove_it() {
        let registry = Registry::default();
        let (old, new) = (live("a", 1, None), live("a", 2, None));
        registry.register(&old);
        assert!(Arc::ptr_eq(&registry.register(&new).expect("the old one"), &old));
        registry.remove(&old);
        assert!(Arc::ptr_eq(&registry.of_device("a").expect("a"), &new));
        assert!(registry.of_token(TokenId([1; 16])).is_empty());
    }

    #[test]
    fn a_session_goes_on_where_the_newcomer_was_turned_away() {
        let registry = Registry::default();
        let (old, new) = (live("a", 1, None), live("a", 2, None));
        registry.register(&old);
        let replaced = registry.register(&new).expect("the old one");
        registry.remove(&new);
        registry.reinstate(&replaced);
        assert!(Arc::ptr_eq(&registry.of_device("a").expect("a"), &old));
        registry.remove(&old);
        assert!(registry.is_empty());
    }

    #[test]
    fn the_first_reason_to_cut_stands() {
        let session = live("a", 1, None);
        assert!(session.cut().is_none());
        assert!(session.deafen(CloseReason::Revoked, Instant::now()));
        assert!(!session.deafen(CloseReason::Expired, Instant::now()));
        assert_eq!(session.cut().expect("cut").reason, CloseReason::Revoked);
    }
}
