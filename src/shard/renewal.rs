//! What a session is granted changes while it lives: its scope becomes narrower, or it renews its token, by AUTH of
//! MQTT 5.0 or by a PUBLISH to [`RENEW`].

use std::{sync::Arc, time::Duration};

use serde_json::json;

use super::{
    Shard,
    connection::{count_verified, stamp_of},
    deadlines::reschedule,
    sessions::{Pause, SessionCell, State},
    subscribe, wills,
};
use crate::{
    credential::{Credential, Refused},
    denial::{CloseReason, Denial},
    journal::Who,
    packet::QoS,
    policy::{Grant, TokenKind},
    registry::NotRenewed,
    session::server::{Inbound, OutgoingMessage, Room},
    time::Tick,
    topic::{TopicFilter, TopicName},
};

/// What became of a renewal.
pub(super) enum Renewed {
    /// The session has a new token.
    Done,
    /// Not so soon after the last one.
    Wait(Pause),
}

/// Its scope became narrower while it lived: subscriptions that fall out are taken back, at the hub too, and what waits
/// for the device by them is dropped. What it publishes is held to the new scope from here on.
#[cold]
pub(super) fn narrowed(shard: &Shard, cell: &SessionCell, state: &mut State, now: Tick) {
    let grant = cell.live.grant();
    cell.set_grant(grant.clone());
    cell.narrowed.set(true);
    wills::regranted(shard, cell);
    let (device, token_id) = (grant.device.as_str(), grant.token_id);
    tracing::info!(peer = %cell.live.peer, device, %token_id, "scope narrowed");
    subscribe::withdraw(shard, cell, state, &grant.scope, now);
}

/// A fresh token: the session goes on with what it gives, or ends.
///
/// # Errors
/// Why the connection is to be closed.
pub(super) fn renew(shard: &Shard, cell: &SessionCell, token: &[u8], now: Tick) -> Result<Renewed, CloseReason> {
    if now < cell.renews_from.get() {
        shard.resting.borrow_mut().push(cell.who);
        return Ok(Renewed::Wait(Pause::Rate));
    }
    cell.renews_from.set(now.plus(RENEWED_EVERY));
    let site = &shard.site;
    // Found by its new token first, asked again after: a change that comes between finds it, or is found.
    let grant = match site.threshold().renew(&cell.live, token, || site.clock.now()) {
        Ok(grant) => grant,
        Err(NotRenewed::Refused(refused)) => return Err(refuse(shard, cell, &refused)),
        Err(NotRenewed::Ended(reason)) => return Err(reason),
    };
    take_up(shard, cell, grant);
    Ok(Renewed::Done)
}

/// A fresh token in AUTH, which is of the kind that the session's method says.
///
/// # Errors
/// Why the connection is to be closed.
pub(super) fn by_auth(
    shard: &Shard,
    cell: &SessionCell,
    (method, token): (&str, &[u8]),
    now: Tick,
) -> Result<Renewed, CloseReason> {
    check_method(method, token).map_err(|refused| refuse(shard, cell, &refused))?;
    renew(shard, cell, token, now)
}

/// MQTT 5.0 §4.12: what is exchanged is what the Authentication Method says.
///
/// # Errors
/// [`Denial::AuthenticationMethodMismatch`]. What is like no token at all is for the gate to name.
pub(super) fn check_method(method: &str, token: &[u8]) -> Result<(), Refused> {
    let (kind, said) = match Credential::kind_meant(token) {
        Some(TokenKind::Sas) => ("SAS", "a SAS token"),
        Some(TokenKind::Jwt) => ("JWT", "a JWT"),
        _ => return Ok(()),
    };
    if method == kind {
        return Ok(());
    }
    let detail = format!("The authentication method is {method}, and the authentication data holds {said}.");
    Err(Refused::new(Denial::AuthenticationMethodMismatch, detail))
}

/// A PUBLISH to [`RENEW`] whose token was judged: answered on [`RESULT`], and by PUBACK.
///
/// # Errors
/// Why the connection is to be closed: the answer is among its last words.
pub(super) fn by_publish(
    outcome: Result<Renewed, CloseReason>,
    cell: &SessionCell,
    state: &mut State,
    (packet_id, qos): (u16, QoS),
    now: Tick,
) -> Result<Renewed, CloseReason> {
    match outcome {
        Ok(Renewed::Wait(_)) => {}
        Ok(Renewed::Done) => {
            let expires_at = cell.grant().expires_at.to_string();
            tell(state, &json!({ "result": "renewed", "expires_at": expires_at }), now);
            if packet_id != 0 {
                state.session.publish_accepted(packet_id, qos);
                state.session.publish_stored(packet_id, &mut state.out);
            }
        }
        Err(reason) => {
            let told = match reason {
                CloseReason::RenewalRefused(denial) => denial.as_told().tag(),
                other => other.tag(),
            };
            tell(state, &json!({ "result": "refused", "reason": told }), now);
            if let CloseReason::RenewalRefused(denial) = reason {
                state.session.publish_accepted(packet_id, qos);
                // 3.1.1, and QoS 0, have no word for it but the end.
                let _ = state.session.publish_refused(packet_id, denial, &mut state.out);
            }
        }
    }
    outcome
}

/// On [`RESULT`]: at the QoS that the device subscribed with, and at QoS 0 to one that has not.
fn tell(state: &mut State, result: &serde_json::Value, now: Tick) {
    let Ok(topic) = TopicName::new(RESULT.as_bytes()) else { return };
    let held = state.session.subscriptions().iter().filter(|held| held.filter.matches(topic));
    let qos = held.map(|held| held.qos).max().unwrap_or(QoS::AtMostOnce);
    let payload = result.to_string();
    let message = OutgoingMessage {
        topic,
        payload: payload.as_bytes(),
        qos,
        retain: false,
        properties: &[],
        expiry: None,
        receipt: None,
        asked: &[],
        room: Room::Some,
    };
    // A device that does not read is told by PUBACK, or by the end of its connection.
    let _ = state.session.deliver(&message, &mut state.out, now);
}

/// Whether a filter of the gateway's own is one that it answers on.
pub(super) fn is_answered(filter: &TopicFilter) -> bool {
    TopicName::new(RESULT.as_bytes()).is_ok_and(|result| filter.matches(result))
}

/// Whether a PUBLISH is a renewal: it is for the gateway itself, and never forwarded.
#[inline]
pub(super) fn is_renewal(inbound: &Inbound<'_>) -> bool {
    inbound.topic.as_str() == RENEW
}

/// Whether a topic or filter is the gateway's own: none of it reaches a hub, whatever a scope says.
#[inline]
pub(super) fn is_own(name: &str) -> bool {
    name.starts_with(OWN)
}

fn take_up(shard: &Shard, cell: &SessionCell, grant: Arc<Grant>) {
    count_verified(shard, &grant);
    let (device, token_id, key) = (grant.device.as_str(), grant.token_id, grant.key.as_str());
    let expires_at = grant.expires_at;
    tracing::info!(peer = %cell.live.peer, device, %token_id, key, %expires_at, "token renewed");
    *cell.stamp.borrow_mut() = stamp_of(shard, &grant);
    let closes_at = grant.closes_at;
    cell.set_grant(grant);
    wills::regranted(shard, cell);
    reschedule(shard, cell, closes_at);
}

fn refuse(shard: &Shard, cell: &SessionCell, refused: &Refused) -> CloseReason {
    let who = Who { token_id: refused.token_id, ..cell.identified() };
    shard.site.journal.action_refused(&who, refused.denial, &format!("renewal: {}", refused.detail));
    match refused.denial {
        // Ours, not the token's: the device connects again, and is told to wait.
        Denial::Unavailable => CloseReason::InternalError,
        denial => CloseReason::RenewalRefused(denial),
    }
}

/// Where a device publishes a fresh token, in either version.
pub(super) const RENEW: &str = "$tollgate/auth/renew";
/// Where it is answered.
pub(super) const RESULT: &str = "$tollgate/auth/result";
/// What begins so is the gateway's own.
const OWN: &str = "$tollgate/";
/// A signature costs what a thousand messages cost: an honest device renews once in its token's life.
const RENEWED_EVERY: Duration = Duration::from_secs(1);
