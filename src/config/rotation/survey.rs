//! What is known of keys: fingerprints, lives, when they were rotated and are to be rotated next.

use std::time::Duration;

use super::{KeyOwner, KeySite, RotateError, state::State};
use crate::{
    admin::{KeyView, SlotView},
    credential::{Keyring, Slots, VerifyingKey},
    gate::{GateConfig, Identities},
    time::UnixSeconds,
};

/// `rotate_every` of a policy or of an issuer's key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// Whose keys.
    pub owner: KeyOwner,
    /// How often.
    pub every: Duration,
}

/// Every owner of keys with what the files know; who uses them is known to a running gateway.
///
/// # Errors
/// [`RotateError`] where what is remembered of rotations cannot be read.
pub fn survey(site: &KeySite, identities: &Identities, schedules: &[Schedule]) -> Result<Vec<KeyView>, RotateError> {
    let state = State::read(&site.state_dir)?;
    let mut views = of_keyring(identities.keyring(), &site.gate);
    for view in &mut views {
        let turn = state.keys.get(&view.name).filter(|_| view.kid.is_none());
        view.rotated_at = turn.and_then(|turn| turn.rotated_at).map(|at| UnixSeconds(at).to_string());
        view.rotated_by = turn.and_then(|turn| turn.by.clone());
        let schedule = schedules.iter().find(|schedule| schedule.owner.to_string() == view.name);
        view.rotate_every_seconds = schedule.map(|schedule| schedule.every.as_secs());
        let next = turn.zip(schedule).map(|(turn, schedule)| UnixSeconds(turn.since).plus(schedule.every));
        view.next_rotation = next.map(|at| at.to_string());
    }
    Ok(views)
}

/// Of primary and secondary.
pub(super) fn fingerprints(identities: &Identities, owner: &KeyOwner) -> [Option<u64>; 2] {
    let ring = identities.keyring();
    let of_slots = |slots: Option<&Slots>| {
        slots.map_or([None; 2], |slots| slots.each().map(|(_, key)| key.map(|key| key.fingerprint())))
    };
    match owner {
        KeyOwner::Device(id) => of_slots(ring.devices().find(|(held, _)| *held == id).map(|(_, device)| &device.keys)),
        KeyOwner::Policy(name) => of_slots(ring.policy(name).map(|policy| &policy.keys)),
        KeyOwner::Group(prefix) => {
            of_slots(ring.groups().iter().find(|group| *group.prefix == **prefix).map(|group| &group.keys))
        }
        KeyOwner::Issuer { name, kid } => {
            let issuer = ring.issuers().find(|issuer| *issuer.name == **name);
            let key = issuer.and_then(|issuer| issuer.keys.iter().find(|(held, _)| held == kid));
            key.map_or([None; 2], |(_, key)| [Some(key.fingerprint()), key.secondary().map(VerifyingKey::fingerprint)])
        }
    }
}

/// A fingerprint as it is printed.
pub(super) fn shown(fingerprint: Option<u64>) -> String {
    fingerprint.map_or_else(|| "none".into(), |fingerprint| format!("{fingerprint:016x}"))
}

/// Which keys came and which left, for the audit log.
pub(super) fn told(before: [Option<u64>; 2], after: [Option<u64>; 2]) -> String {
    let [primary, secondary] = after.map(shown);
    let left: Vec<String> =
        before.iter().flatten().filter(|key| !after.contains(&Some(**key))).map(|key| shown(Some(*key))).collect();
    let left = if left.is_empty() { "none".into() } else { left.join(", ") };
    format!("primary {primary}, secondary {secondary}; left: {left}")
}

fn of_keyring(ring: &Keyring, gate: &GateConfig) -> Vec<KeyView> {
    let (default, skew) = (gate.token_lifetime_max_anywhere(), gate.clock_skew_anywhere());
    let limit = |own: Option<Duration>| own.unwrap_or(default).as_secs();
    let by_slots = |name: String, slots: &Slots, own: Option<Duration>| KeyView {
        name,
        kind: "sas".into(),
        primary: slots.primary.as_ref().map(|key| SlotView::of(key.fingerprint())),
        secondary: slots.secondary.as_ref().map(|key| SlotView::of(key.fingerprint())),
        token_lifetime_max_seconds: limit(own),
        ..KeyView::default()
    };
    let mut views: Vec<KeyView> = Vec::new();
    views.extend(
        ring.policies()
            .map(|policy| by_slots(format!("policy:{}", policy.name), &policy.keys, policy.token_lifetime_max)),
    );
    views.extend(
        ring.groups()
            .iter()
            .map(|group| by_slots(format!("group:{}", group.prefix), &group.keys, group.token_lifetime_max)),
    );
    for issuer in ring.issuers() {
        views.extend(issuer.keys.iter().map(|(kid, key)| KeyView {
            name: KeyOwner::Issuer { name: (*issuer.name).into(), kid: kid.clone() }.to_string(),
            kind: if key.algorithm().is_hmac() { "jwt".into() } else { PUBLIC.into() },
            primary: Some(SlotView::of(key.fingerprint())),
            secondary: key.secondary().map(|key| SlotView::of(key.fingerprint())),
            token_lifetime_max_seconds: limit(issuer.token_lifetime_max),
            ..KeyView::default()
        }));
    }
    let devices = ring.devices().filter(|(_, device)| !device.keys.is_empty());
    views.extend(devices.map(|(id, device)| by_slots(format!("device:{id}"), &device.keys, device.token_lifetime_max)));
    for (id, device) in ring.devices() {
        views.extend(device.public_keys.iter().map(|public| KeyView {
            name: format!("device:{id}"),
            kind: PUBLIC.into(),
            kid: Some(public.slot()),
            not_before: public.validity.not_before.map(|at| at.to_string()),
            not_after: public.validity.not_after.map(|at| at.to_string()),
            primary: Some(SlotView::of(public.key.fingerprint())),
            token_lifetime_max_seconds: limit(device.token_lifetime_max),
            ..KeyView::default()
        }));
    }
    views.iter_mut().for_each(|view| view.clock_skew_seconds = skew.as_secs());
    // Of a device's keys those that are rotated come first.
    let order = |view: &KeyView| (rank(&view.name), view.name.clone(), view.kid.clone());
    views.sort_by_cached_key(order);
    views
}

/// A key whose private half is elsewhere.
const PUBLIC: &str = "jwt, public";

/// What signs for many comes first.
fn rank(name: &str) -> usize {
    ["policy:", "group:", "issuer:", "device:"].iter().position(|kind| name.starts_with(kind)).unwrap_or(4)
}
