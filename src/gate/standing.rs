//! What is left of a grant after identities or list have changed.

use std::sync::Arc;

use super::{Gate, Identities, certificate, hit};
use crate::{
    credential::Rights,
    denial::{CloseReason, Denial},
    id::DeviceId,
    policy::{Grant, Scope},
    time::UnixSeconds,
};

/// What is left of a grant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// All of it.
    Given,
    /// The same token, with a narrower scope: what fell out is refused and taken back, the session goes on.
    Narrowed(Arc<Grant>),
    /// Nothing: the session must end.
    Ended(CloseReason),
}

impl Gate {
    /// What is left of the grant of a live session. Asked whenever identities or list change.
    pub fn standing(&self, grant: &Grant, now: UnixSeconds) -> Standing {
        match self.identities.load().as_deref() {
            Some(identities) => self.standing_by(grant, identities, now),
            None => Standing::Ended(CloseReason::InternalError),
        }
    }

    /// What would be left of it by these identities.
    pub fn standing_by(&self, grant: &Grant, identities: &Identities, now: UnixSeconds) -> Standing {
        let list = self.revocations.load();
        let Some(list) = list.as_deref() else { return Standing::Ended(CloseReason::InternalError) };
        if hit(list, grant, now).is_some() {
            return Standing::Ended(CloseReason::Revoked);
        }
        if !self.still_given(grant, identities, now) {
            return Standing::Ended(CloseReason::GrantWithdrawn);
        }
        if now >= grant.closes_at {
            return Standing::Ended(CloseReason::Expired);
        }
        if let Err(refused) = certificate::still_holds(grant, identities, now) {
            let is_revoked = refused.denial == Denial::Revoked;
            return Standing::Ended(if is_revoked { CloseReason::Revoked } else { CloseReason::GrantWithdrawn });
        }
        match scope_today(grant, identities) {
            Some(today) if today.includes(&grant.scope) => Standing::Given,
            Some(today) => narrowed(grant, &today),
            None => Standing::Ended(CloseReason::GrantWithdrawn),
        }
    }

    /// Whether a session that outlives its connections may go on waiting for this device: it is known, enabled and not
    /// revoked. With which token it came is asked when it comes back.
    pub fn awaits(&self, device: &DeviceId, now: UnixSeconds) -> bool {
        let (identities, list) = (self.identities.load(), self.revocations.load());
        // Nobody is admitted meanwhile, and nothing is lost for it.
        let (Some(identities), Some(list)) = (identities.as_deref(), list.as_deref()) else { return true };
        !list.revokes_device(device, now) && identities.keyring.find(device).is_some_and(|found| found.is_enabled())
    }

    /// Whether a session with this grant must end.
    pub fn recheck(&self, grant: &Grant, now: UnixSeconds) -> Option<CloseReason> {
        match self.standing(grant, now) {
            Standing::Ended(reason) => Some(reason),
            Standing::Given | Standing::Narrowed(_) => None,
        }
    }
}

/// What the device may do by the identities in force, as far as who signed its token may hand it out. `None`: the policy
/// that signed it is gone.
fn scope_today(grant: &Grant, identities: &Identities) -> Option<Scope> {
    let rights = match &grant.policy {
        Some(name) => identities.keyring.policy(name)?.rights,
        None => Rights::ALL,
    };
    Some(identities.scope_of(&grant.device, grant.profile)?.bounded_by(rights))
}

/// The session goes on with what is left, unless that is nothing, or CONNACK has announced what is not so any more: a 5.0
/// device would go on setting RETAIN, or a QoS, and be closed for it [MQTT-3.2.2-11].
fn narrowed(grant: &Grant, today: &Scope) -> Standing {
    let announced = today.retain() >= grant.scope.retain() && today.qos_max() >= grant.scope.qos_max();
    let scope = grant.scope.clone().narrowed_to(Some(today.publish()), Some(today.subscribe()));
    if !announced || (scope.publish().is_empty() && scope.subscribe().is_empty()) {
        return Standing::Ended(CloseReason::GrantWithdrawn);
    }
    Standing::Narrowed(Arc::new(Grant { scope, ..grant.clone() }))
}
