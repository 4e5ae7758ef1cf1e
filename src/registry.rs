//! Live sessions, found by device, token and `jti`, so that a change reaches exactly those that it concerns.

use std::{
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::Instant,
};

use dashmap::DashMap;

use crate::{
    credential::JtiHash,
    denial::CloseReason,
    id::{DeviceId, TokenId},
    packet::ProtocolVersion,
    policy::Grant,
    time::UnixSeconds,
};

/// What is known of one live session; shared by its shard, which owns the session, and the registry.
#[derive(Debug)]
pub struct Live {
    /// What it was granted.
    pub grant: Grant,
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
    cut: OnceLock<Cut>,
}

/// An end that was decided outside the session.
#[derive(Debug, Clone, Copy)]
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
        Self { grant, peer, version, connected_at, shard, slot, generation, cut: OnceLock::new() }
    }

    /// Makes the session deaf: nothing that is read after this is accepted. The first reason stands; says whether
    /// this was it.
    pub fn deafen(&self, reason: CloseReason, applied: Instant) -> bool {
        self.cut.set(Cut { reason, applied }).is_ok()
    }

    /// The end that was decided, if one was. Asked before every packet.
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
}

impl Registry {
    /// Adds a session. The one that stood for the same device is answered: it is to be closed.
    pub fn register(&self, live: &Arc<Live>) -> Option<Arc<Live>> {
        for token in token_ids(live) {
            self.by_token.entry(token).or_default().push(live.clone());
        }
        for jti in jti_hashes(live) {
            self.by_jti.entry(jti).or_default().push(live.clone());
        }
        if let Some(device) = live.grant.device.parent() {
            self.modules.entry(device).or_default().push(live.clone());
        }
        self.by_device.insert(live.grant.device.clone(), live.clone())
    }

    /// Puts back the session that a newcomer had replaced, after the newcomer was removed: it goes on. A change that came
    /// between did not find it: it has to be asked for again.
    pub fn reinstate(&self, live: &Arc<Live>) {
        self.by_device.entry(live.grant.device.clone()).or_insert_with(|| live.clone());
    }

    /// Takes a session out; another one of the same device stays.
    pub fn remove(&self, live: &Arc<Live>) {
        self.by_device.remove_if(&live.grant.device, |_, held| Arc::ptr_eq(held, live));
        let without = |held: &mut Vec<Arc<Live>>| {
            held.retain(|other| !Arc::ptr_eq(other, live));
            held.is_empty()
        };
        for token in token_ids(live) {
            if let Some(mut held) = self.by_token.get_mut(&token) {
                without(&mut held);
            }
            self.by_token.remove_if(&token, |_, held| held.is_empty());
        }
        for jti in jti_hashes(live) {
            if let Some(mut held) = self.by_jti.get_mut(&jti) {
                without(&mut held);
            }
            self.by_jti.remove_if(&jti, |_, held| held.is_empty());
        }
        if let Some(device) = live.grant.device.parent() {
            if let Some(mut held) = self.modules.get_mut(&device) {
                without(&mut held);
            }
            self.modules.remove_if(&device, |_, held| held.is_empty());
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

/// Its token, and the certificate that it hangs on.
fn token_ids(live: &Live) -> impl Iterator<Item = TokenId> {
    std::iter::once(live.grant.token_id).chain(live.grant.certificate_id())
}

/// How an entry may name the session's `jti`: of its issuer, or of any.
fn jti_hashes(live: &Live) -> impl Iterator<Item = JtiHash> {
    let issuer = live.grant.issuer.as_deref().unwrap_or_default();
    live.grant.jti.as_deref().map(|jti| JtiHash::both(issuer, jti)).into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        id::KeyName,
        policy::{Profile, Scope, TokenKind},
    };

    fn live(device: &str, token: u8, jti: Option<&str>) -> Arc<Live> {
        let grant = Grant {
            device: DeviceId::try_from(device).expect("an id"),
            scope: Scope::new(vec![], vec![], false, 0),
            profile: Profile::Strict,
            expires_at: UnixSeconds(0),
            closes_at: UnixSeconds(0),
            token_id: TokenId([token; 16]),
            jti: jti.map(Into::into),
            kind: TokenKind::Jwt,
            key: KeyName::new("issuer:x", "k"),
            key_fingerprint: 0,
            issuer: jti.map(|_| "factory".into()),
            policy: None,
            issued_at: None,
            certificate: None,
        };
        let peer = "127.0.0.1:1".parse().expect("an address");
        Arc::new(Live::new(grant, (peer, ProtocolVersion::V5_0), (0, 0, 0), UnixSeconds(0)))
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
        assert!(registry.is_empty() && registry.by_token.is_empty() && registry.by_jti.is_empty());
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
