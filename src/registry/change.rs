//! A change comes into force while devices connect, publish and renew. Whoever comes or renews, and whoever changes
//! something, take their steps in such an order that one of the two sees the other: nothing that is read after a change
//! has been applied is accepted.
//!
//! | a device | a change |
//! |---|---|
//! | notes the epoch, and is judged | is read, and those whom it concerns are asked before it holds |
//! | is registered, or its new grant is in its place | holds for newcomers, and the epoch is another |
//! | is asked again where the epoch is another | flags are set; those whom it concerns are looked up and asked again |

use std::{sync::Arc, time::Instant};

use super::{Live, Registry};
use crate::{
    credential::{Added, Refused, RevocationList, Whose},
    denial::CloseReason,
    gate::{Gate, Identities, Standing, Touched},
    policy::Grant,
    time::UnixSeconds,
};

/// What decides about newcomers, and the table of those who are in.
#[derive(Clone, Copy, Debug)]
pub struct Threshold<'a> {
    /// Decides.
    pub gate: &'a Gate,
    /// Knows who is in.
    pub registry: &'a Registry,
}

/// How a change reaches sessions, which are on shards.
pub trait Reach {
    /// It holds for newcomers.
    fn in_force(&self);
    /// All of them are made deaf, and then closed. Says how many were alive.
    fn end(&self, sessions: Vec<(Arc<Live>, CloseReason)>, applied: Instant) -> usize;
    /// They go on with a narrower grant, which is in its place.
    fn narrowed(&self, sessions: &[Arc<Live>], applied: Instant);
}

/// Why a session could not go on with a fresh token.
#[derive(Debug)]
pub enum NotRenewed {
    /// The token was refused.
    Refused(Refused),
    /// Something changed while it was judged.
    Ended(CloseReason),
}

impl Threshold<'_> {
    /// An admitted session comes in: registered first, asked again after. Answers with what `held` gives, which has to take
    /// it out again, and with the session that it replaces.
    ///
    /// # Errors
    /// Why it may not stay: something changed since `epoch`, when it was judged.
    pub fn enter<H>(
        self,
        live: &Arc<Live>,
        epoch: u64,
        held: impl FnOnce() -> H,
        now: impl Fn() -> UnixSeconds,
    ) -> (H, Option<Arc<Live>>, Result<(), CloseReason>) {
        let old = self.registry.register(live);
        let held = held();
        if self.gate.epoch() == epoch {
            return (held, old, Ok(()));
        }
        let granted = live.grant();
        let stays = match self.gate.standing(&granted, now()) {
            Standing::Given => Ok(()),
            Standing::Narrowed(narrower) => {
                // Lost to a change that found it in the registry: that one has narrowed it, too.
                live.narrow(&granted, narrower);
                Ok(())
            }
            Standing::Ended(reason) => Err(reason),
        };
        (held, old, stays)
    }

    /// A live session shows a fresh token. It is found by that first, and asked again after. Answers with what it gives; has
    /// the session look at its scope before its next packet, where that is another.
    ///
    /// # Errors
    /// [`NotRenewed`]: it has to end.
    pub fn renew(
        self,
        live: &Arc<Live>,
        token: &[u8],
        now: impl Fn() -> UnixSeconds,
    ) -> Result<Arc<Grant>, NotRenewed> {
        let epoch = self.gate.epoch();
        let old = live.grant();
        let grant = Arc::new(self.gate.renew(&old, token, now()).map_err(NotRenewed::Refused)?);
        self.registry.regrant(live, grant.clone());
        if self.gate.epoch() != epoch {
            match self.gate.standing(&grant, now()) {
                Standing::Given => {}
                Standing::Ended(reason) => return Err(NotRenewed::Ended(reason)),
                // It was judged by what was withdrawn meanwhile, and may be granted more than it had.
                Standing::Narrowed(_) => return Err(NotRenewed::Ended(CloseReason::GrantWithdrawn)),
            }
        }
        if grant.scope != old.scope {
            live.look_again();
        }
        Ok(grant)
    }

    /// Puts a list in the place of `old`. Answers with how many sessions it ended, and with what was in force, to be freed
    /// by the caller and not on a shard that happened to hold it last.
    pub fn put_list_in_force(
        self,
        list: &RevocationList,
        old: &RevocationList,
        reach: &impl Reach,
        now: UnixSeconds,
    ) -> (usize, Option<Arc<RevocationList>>) {
        // Beyond so many entries it costs less to ask every session.
        let added = list.added_since(old, self.registry.len().max(ENTRIES_LOOKED_FOR));
        let ask = |grant: &Grant| match grant.all_facts().any(|facts| list.revokes(&facts, now)) {
            true => Standing::Ended(CloseReason::Revoked),
            false => Standing::Given,
        };
        let mut freed = None;
        let swap = || freed = self.gate.load_revocations(Arc::new(list.clone()));
        let ended = self.put_in_force(|| self.named_by(&added), ask, swap, reach, now);
        (ended, freed)
    }

    /// Puts identities in force. Sessions of those who changed are asked what is left of them. Answers as
    /// [`put_list_in_force`](Self::put_list_in_force).
    pub fn put_identities_in_force(
        self,
        new: &Arc<Identities>,
        reach: &impl Reach,
        now: UnixSeconds,
    ) -> (usize, Option<Arc<Identities>>) {
        let old = self.gate.identities();
        let touched = old.as_deref().map_or(Touched::Everybody, |old| new.touched_since(old, self.registry.len()));
        let concerned = || match &touched {
            Touched::Everybody => self.everybody(),
            Touched::Some { devices, owners } => {
                let of_devices = devices.iter().flat_map(|device| self.registry.within_device(device.as_str()));
                of_devices.chain(owners.iter().flat_map(|owner| self.registry.of_owner(owner))).collect()
            }
        };
        let ask = |grant: &Grant| self.gate.standing_by(grant, new, now);
        let ended = self.put_in_force(concerned, ask, || drop(self.gate.load_identities(new.clone())), reach, now);
        (ended, old)
    }

    /// Asks the gate about each, and ends those that it no longer lets in.
    pub fn cut(self, concerned: &[Arc<Live>], applied: Instant, reach: &impl Reach, now: UnixSeconds) -> usize {
        let mut ended: Vec<(Arc<Live>, CloseReason)> = Vec::new();
        let mut narrowed: Vec<Arc<Live>> = Vec::new();
        for live in concerned {
            match self.left_of(live, now) {
                Standing::Given => {}
                Standing::Narrowed(_) => narrowed.push(live.clone()),
                Standing::Ended(reason) => ended.push((live.clone(), reason)),
            }
        }
        let count = reach.end(ended, applied);
        if !narrowed.is_empty() {
            reach.narrowed(&narrowed, applied);
        }
        count
    }

    /// All sessions.
    pub fn everybody(self) -> Vec<Arc<Live>> {
        let mut all = Vec::with_capacity(self.registry.len());
        self.registry.for_each(|live| all.push(live.clone()));
        all
    }

    /// A change comes into force and ends the sessions that it concerns. Whom it will end is asked before, so that between
    /// the moment in which it holds for newcomers and the one in which it holds for the living there is nothing but the
    /// setting of flags. Asked again after it: whoever came, or renewed, in between is found then.
    fn put_in_force(
        self,
        concerned: impl Fn() -> Vec<Arc<Live>>,
        ask: impl Fn(&Grant) -> Standing,
        swap: impl FnOnce(),
        reach: &impl Reach,
        now: UnixSeconds,
    ) -> usize {
        let ended = |live: Arc<Live>| {
            let grant = live.grant();
            let Standing::Ended(reason) = ask(&grant) else { return None };
            Some((live, grant, reason))
        };
        let foreseen: Vec<_> = concerned().into_iter().filter_map(ended).collect();
        swap();
        let applied = Instant::now();
        reach.in_force();
        let is_same = |(live, grant, _): &(Arc<Live>, Arc<Grant>, CloseReason)| Arc::ptr_eq(grant, &live.grant());
        let foreseen = foreseen.into_iter().filter(is_same).map(|(live, _, reason)| (live, reason)).collect();
        let closed = reach.end(foreseen, applied);
        let mut rest = concerned();
        rest.retain(|live| live.cut().is_none() && ask(&live.grant()) != Standing::Given);
        closed + self.cut(&rest, applied, reach, now)
    }

    /// Sessions that new entries of the list may mean.
    fn named_by(self, added: &Added) -> Vec<Arc<Live>> {
        let registry = self.registry;
        if added.everybody || added.times.contains(&Whose::All) {
            return self.everybody();
        }
        let devices = added.devices.iter().flat_map(|device| registry.within_device(device.as_str()));
        let tokens = added.tokens.iter().flat_map(|token| registry.of_token(*token));
        let jtis = added.jtis.iter().flat_map(|jti| registry.of_jti(*jti));
        let keys = added.keys.iter().flat_map(|key| registry.of_key(key));
        let times = added.times.iter().flat_map(|whose| match whose {
            Whose::All => Vec::new(),
            Whose::Device(device) => registry.within_device(device.as_str()),
            Whose::Issuer(name) => registry.of_owner(&format!("issuer:{name}")),
            Whose::Policy(name) => registry.of_owner(&format!("policy:{name}")),
        });
        devices.chain(tokens).chain(jtis).chain(keys).chain(times).collect()
    }

    /// Asks the gate about one session; a narrower grant is in its place when this returns.
    fn left_of(self, live: &Arc<Live>, now: UnixSeconds) -> Standing {
        loop {
            let grant = live.grant();
            let standing = self.gate.standing(&grant, now);
            match &standing {
                // It renewed its token in between: asked again, by what it has.
                Standing::Narrowed(narrower) if !live.narrow(&grant, narrower.clone()) => {}
                _ => return standing,
            }
        }
    }
}

/// A change of a few entries finds its sessions by index, however few there are.
const ENTRIES_LOOKED_FOR: usize = 1000;
