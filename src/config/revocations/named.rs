//! Whom an entry of the list names. It may name who is not here yet, or is here no more; more often it is a slip of the
//! hand, and revokes nothing.

use super::super::mistake::Mistake;
use crate::{
    admin::{Ledger, NewRevocation},
    config::Config,
    credential::{JTI_BYTES_MAX, Keyring, ListEntry},
    id::DeviceId,
    time::UnixSeconds,
    token_service::OWN_ISSUER,
};

/// Why an entry can concern nobody; `None`: it may concern somebody.
pub fn names_nobody(entry: &NewRevocation, keyring: &Keyring) -> Option<String> {
    if let Some(jti) = entry.jti.as_ref().filter(|jti| jti.len() > JTI_BYTES_MAX) {
        return Some(format!("its `jti` has {} bytes, and a token's {JTI_BYTES_MAX} at most", jti.len()));
    }
    let key = entry.key.as_deref().and_then(|key| key_of_nobody(key, keyring));
    let device = || entry.device.as_deref().and_then(|id| unknown_device(id, keyring));
    let policy = || entry.policy.as_deref().and_then(|name| unknown_policy(name, keyring));
    let issuer = || entry.issuer.as_deref().and_then(|name| unknown_issuer(name, keyring));
    let who = key.or_else(device).or_else(policy).or_else(issuer)?;
    Some(format!("the identities have no {who}"))
}

/// A warning for each entry of the list that is in force and names nobody, as far as a screen goes.
pub fn warn_of_entries_for_nobody(config: &Config, keyring: &Keyring, now: UnixSeconds) -> Vec<Mistake> {
    let path = &config.gateway.revocations;
    let (mut found, mut more) = (Vec::new(), 0_usize);
    let look = |line: usize, text: &str| {
        let text = text.trim_start_matches('\u{feff}').trim();
        let is_in_force = ListEntry::parse(text).ok().flatten().is_some_and(|entry| !entry.has_ended(now));
        let entry = is_in_force.then(|| serde_json::from_str::<NewRevocation>(text).ok()).flatten();
        let Some(why) = entry.and_then(|entry| names_nobody(&entry, keyring)) else { return };
        if found.len() == NAMED_MAX {
            more += 1;
            return;
        }
        let what = format!("the entry revokes nothing: {why}.");
        found.push(Mistake::at_line(path, line, what, "Correct the name, or take the entry out."));
    };
    // One that cannot be read is told as a mistake.
    if Ledger::new(path).each_line(look).is_ok() && more > 0 {
        let what = format!("{more} more entries revoke nothing, for the same reasons.");
        found.push(Mistake::of_file(path, what, "Correct them, or take them out."));
    }
    found
}

fn key_of_nobody(key: &str, keyring: &Keyring) -> Option<String> {
    let (kind, name) = key.split_once(':')?;
    let (owner, slot) = name.rsplit_once('/')?;
    let unless = |is_slot: bool| (!is_slot).then(|| format!("key {key}"));
    let is_pair = matches!(slot, "primary" | "secondary");
    match kind {
        "policy" => unknown_policy(owner, keyring).or_else(|| unless(is_pair)),
        "group" if !keyring.groups().iter().any(|group| *group.prefix == *owner) => Some(format!("group {owner}")),
        "group" => unless(is_pair),
        "certificate" => unknown_device(owner, keyring).or_else(|| unless(is_pair || slot == "ca")),
        "device" => unknown_device(owner, keyring).or_else(|| unless(is_pair || has_public_key(owner, slot, keyring))),
        // Which keys an issuer publishes at an address is known to a running gateway, and changes.
        "issuer" => unknown_issuer(owner, keyring),
        _ => None,
    }
}

fn has_public_key(device: &str, slot: &str, keyring: &Keyring) -> bool {
    let device = DeviceId::try_from(device).ok().and_then(|id| keyring.device(&id));
    device.is_some_and(|device| device.public_keys.iter().any(|key| key.slot() == slot))
}

fn unknown_device(id: &str, keyring: &Keyring) -> Option<String> {
    let is_here = DeviceId::try_from(id).is_ok_and(|id| keyring.find(&id).is_some());
    (!is_here).then(|| format!("device {id}"))
}

fn unknown_policy(name: &str, keyring: &Keyring) -> Option<String> {
    keyring.policy(name).is_none().then(|| format!("policy {name}"))
}

fn unknown_issuer(name: &str, keyring: &Keyring) -> Option<String> {
    let is_here = name == OWN_ISSUER || keyring.issuers().any(|issuer| &*issuer.name == name);
    (!is_here).then(|| format!("issuer {name}"))
}

/// A screen.
const NAMED_MAX: usize = 20;
