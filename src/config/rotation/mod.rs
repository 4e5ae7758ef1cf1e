//! Keys in two slots, turned: secondary := primary, primary := 32 random bytes. In `identities.toml` itself, or in the key
//! files that it names; atomically, with comments, layout, mode and owner kept.
//!
//! Who is killed in between loses no key: the order of the writes leaves the old primary in a slot, and a rotation that was
//! begun is remembered until it is known to be done ([`finish`]). The same rotation done again ends where the first would
//! have ended.

mod error;
mod key_file;
mod owner;
mod state;
mod steps;
mod survey;

use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::{
    Config,
    identities::{load_identities, read_identities},
};
use crate::{
    admin::Ledger,
    audit::{Action, Audit},
    credential::ListEntry,
    gate::{GateConfig, Identities},
    time::UnixSeconds,
};
use key_file::{KeyFile, Slot};
use state::{Begun, State, Turn};
use steps::{Step, new_key, plan};

pub use error::RotateError;
pub use owner::KeyOwner;
pub use state::await_rotation;
pub(super) use steps::is_marked;
pub use survey::{Schedule, survey};

/// The files that a rotation is about.
#[derive(Clone, Debug)]
pub struct KeySite {
    /// `identities.toml`.
    pub identities: PathBuf,
    /// The revocation list: an entry may name a slot.
    pub revocations: PathBuf,
    /// `state_dir`: when what was rotated, and the audit log.
    pub state_dir: PathBuf,
    /// What identities are read with.
    pub gate: GateConfig,
}

impl KeySite {
    /// The files of a gateway.
    pub fn of(config: &Config) -> Self {
        let gateway = &config.gateway;
        let (identities, revocations) = (gateway.identities.clone(), gateway.revocations.clone());
        Self { identities, revocations, state_dir: gateway.state_dir.clone(), gate: config.gate.clone() }
    }
}

/// Which keys are replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replace {
    /// The primary; the old one becomes the secondary.
    Primary,
    /// Both, at once: after a compromise. Every token of theirs is dead.
    Both,
}

/// What becomes of entries of the revocation list that name a slot which is rotated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lift {
    /// They stay, and forbid the rotation: they would be about another key afterwards.
    Nothing,
    /// They are taken out when both keys were replaced: the key that they meant is in no slot.
    Entries,
}

/// Who rotates.
#[derive(Clone, Copy)]
pub struct Turner<'a> {
    /// As it stands in the audit log.
    pub by: &'a str,
    /// What time it is.
    pub now: &'a dyn Fn() -> UnixSeconds,
    /// Called as soon as the new keys are written: whoever reads them there may sign with them from then on.
    pub written: &'a dyn Fn(),
}

/// A rotation that was done. Fingerprints are safe to print.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rotated {
    /// Primary and secondary before.
    pub before: [Option<u64>; 2],
    /// Primary and secondary now.
    pub after: [Option<u64>; 2],
    /// Files that were written.
    pub files: Vec<PathBuf>,
    /// The new primary key as it is printed, for whoever programs a device.
    pub primary: Zeroizing<String>,
}

/// Rotates. The clock is asked again when the new key is written: the next period begins when nobody can sign with the old
/// one any more.
///
/// # Errors
/// [`RotateError`]. Before anything was written, but for [`RotateError::Io`]: then the keys in force are those before or
/// those that the rotation makes, and the same rotation may be asked for again.
pub fn rotate(
    site: &KeySite,
    owner: &KeyOwner,
    what: (Replace, Lift),
    turner: &Turner<'_>,
) -> Result<Rotated, RotateError> {
    rotate_by(site, (owner, what), turner, &mut Step::run)
}

/// Fingerprints of the keys that a rotation would remove.
///
/// # Errors
/// [`RotateError`]: it would be refused.
pub fn leaving(site: &KeySite, owner: &KeyOwner, what: Replace) -> Result<Vec<u64>, RotateError> {
    KeyFile::read(&site.identities)?.home(owner)?;
    let [primary, secondary] = survey::fingerprints(&load(site)?, owner);
    let primary = primary.filter(|_| what == Replace::Both);
    Ok([primary, secondary].into_iter().flatten().collect())
}

/// What a schedule asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Due {
    /// Now.
    pub owners: Vec<Schedule>,
    /// When the next is due.
    pub next: UnixSeconds,
}

/// Who is due. Keys that are seen for the first time are taken to be new: how old they are nobody knows. One whose last
/// rotation lies ahead of the clock counts from now.
///
/// # Errors
/// [`RotateError`] where what is remembered cannot be read or written.
pub fn due(site: &KeySite, schedules: &[Schedule], now: UnixSeconds) -> Result<Due, RotateError> {
    let _lock = state::lock(&site.state_dir)?;
    let mut state = State::read(&site.state_dir)?;
    let (mut due, mut is_changed) = (Due { owners: Vec::new(), next: UnixSeconds(u64::MAX) }, false);
    for schedule in schedules {
        let turn = state.keys.entry(schedule.owner.to_string()).or_insert_with(|| {
            is_changed = true;
            Turn { since: now.0, ..Turn::default() }
        });
        if turn.since > now.0 {
            tracing::warn!(key = %schedule.owner, since = %UnixSeconds(turn.since), "rotated in the future? it counts from now");
            (turn.since, is_changed) = (now.0, true);
        }
        let at = UnixSeconds(turn.since).plus(schedule.every);
        if at <= now {
            due.owners.push(schedule.clone());
        } else {
            due.next = due.next.min(at);
        }
    }
    if is_changed {
        state.write(&site.state_dir)?;
    }
    Ok(due)
}

/// Gives keys to an owner that has none, or a secondary to one that has no more than a primary. A device, group or policy
/// that is not there is added; `more` are further texts of a new entry, as its `resource`.
///
/// # Errors
/// [`RotateError`]; nothing was written.
pub fn add(
    site: &KeySite,
    owner: &KeyOwner,
    more: &[(&str, &str)],
    by: &str,
    now: UnixSeconds,
) -> Result<Rotated, RotateError> {
    let _lock = state::lock(&site.state_dir)?;
    let before = load(site)?;
    let held = survey::fingerprints(&before, owner);
    let mut file = KeyFile::read(&site.identities)?;
    if matches!(owner, KeyOwner::Issuer { .. }) {
        return Err(RotateError::IssuerKeysAreTheirs { owner: owner.clone() });
    }
    if !file.has(owner) {
        file.add_entry(owner, more)?;
    }
    let slots = match held {
        [Some(_), Some(_)] => return Err(RotateError::HasBoth { owner: owner.clone() }),
        [Some(_), None] => &[Slot::Secondary][..],
        _ => &[Slot::Primary, Slot::Secondary],
    };
    let mut primary = Zeroizing::new(String::new());
    for slot in slots {
        let key = new_key()?;
        file.set_key(owner, *slot, &key)?;
        if *slot == Slot::Primary {
            primary = key;
        }
    }
    // A file with a mistake would be refused by the next start, and by every command until it is corrected.
    read_identities(&site.identities, &file.text(), &site.gate).map_err(RotateError::Mistakes)?;
    Step::Write(site.identities.clone(), file.text()).run()?;
    let after = survey::fingerprints(&load(site)?, owner);
    audit(site, Action::KeyAdded, (owner, by), &survey::told(held, after), now);
    Ok(Rotated { before: held, after, files: vec![site.identities.clone()], primary })
}

/// Looks whether a rotation that was begun was done; to be asked at the start. One that was not is left to be asked for
/// again: by the schedule, which finds it due, or by the operator, whom the check of the files tells.
///
/// # Errors
/// [`RotateError`] where the state cannot be read or written.
pub fn finish(site: &KeySite, now: UnixSeconds) -> Result<(), RotateError> {
    let _lock = state::lock(&site.state_dir)?;
    let mut state = State::read(&site.state_dir)?;
    if state.begun.is_some() {
        settle(site, &mut state, &load(site)?, now);
        state.write(&site.state_dir)?;
    }
    Ok(())
}

/// Entries in force of the revocation list that name a slot of this owner: id and slot.
pub fn revoked_slots(revocations: &Path, owner: &KeyOwner, now: UnixSeconds) -> Vec<(String, String)> {
    let (slots, mut found) = (owner.slot_names(), Vec::new());
    // A list may have a million lines, and few of them name a key.
    let read = Ledger::new(revocations).each_line(|_, line| {
        let entry = Some(line).filter(|line| line.contains("\"key\"")).and_then(|line| ListEntry::parse(line).ok()?);
        let Some(entry) = entry.filter(|entry| !entry.has_ended(now)) else { return };
        let fields: serde_json::Value = serde_json::from_str(line.trim()).unwrap_or_default();
        if let Some(key) = fields["key"].as_str().filter(|key| slots.iter().any(|slot| slot == key)) {
            found.push((entry.id(), key.to_owned()));
        }
    });
    // A list that cannot be read holds nobody up here: the gateway itself says so.
    let _ = read;
    found
}

fn rotate_by(
    site: &KeySite,
    (owner, (what, lift)): (&KeyOwner, (Replace, Lift)),
    turner: &Turner<'_>,
    run: &mut dyn FnMut(&Step) -> Result<(), RotateError>,
) -> Result<Rotated, RotateError> {
    let Turner { by, now, written } = turner;
    let _lock = state::lock(&site.state_dir)?;
    let identities = load(site)?;
    let mut state = State::read(&site.state_dir)?;
    settle(site, &mut state, &identities, now());
    let (steps, primary) = plan(&site.identities, KeyFile::read(&site.identities)?, owner, what)?;
    let entries = revoked_slots(&site.revocations, owner, now());
    if !entries.is_empty() && (what, lift) != (Replace::Both, Lift::Entries) {
        return Err(RotateError::SlotRevoked { owner: owner.clone(), entries });
    }
    if !entries.is_empty() && Ledger::new(&site.revocations).is_signed() {
        return Err(RotateError::ListSigned { owner: owner.clone(), entries });
    }
    let before = survey::fingerprints(&identities, owner);
    let begun = Begun {
        owner: owner.to_string(),
        primary: survey::shown(before[0]),
        both: what == Replace::Both,
        at: now().0,
        by: (*by).to_owned(),
    };
    state.begun = Some(begun);
    state.write(&site.state_dir)?;
    steps.iter().try_for_each(run)?;
    written();
    let now = now();
    let after = survey::fingerprints(&load(site)?, owner);
    state.turned(&owner.to_string(), by, now);
    state.write(&site.state_dir)?;
    audit(site, action(what), (owner, by), &survey::told(before, after), now);
    if !entries.is_empty() {
        take_out(site, &entries, by, now)?;
    }
    let mut files: Vec<PathBuf> = steps.iter().filter_map(Step::file).map(Path::to_owned).collect();
    files.dedup();
    Ok(Rotated { before, after, files, primary })
}

/// A rotation that was begun and not noted as done: the primary key tells.
fn settle(site: &KeySite, state: &mut State, identities: &Identities, now: UnixSeconds) {
    let Some(begun) = state.begun.take() else { return };
    let Ok(owner) = begun.owner.parse::<KeyOwner>() else { return };
    let [primary, secondary] = survey::fingerprints(identities, &owner);
    if survey::shown(primary) == begun.primary {
        tracing::warn!(key = %owner, "a rotation was broken off before the new key was written");
        return;
    }
    state.turned(&begun.owner, &begun.by, UnixSeconds(begun.at));
    let detail = format!(
        "primary {}, secondary {}; begun at {}, and recorded late: it was broken off after the keys were written",
        survey::shown(primary),
        survey::shown(secondary),
        UnixSeconds(begun.at)
    );
    audit(site, action(begun.what()), (&owner, &begun.by), &detail, now);
}

/// Last of all: until the keys are replaced, the entries hold.
fn take_out(site: &KeySite, entries: &[(String, String)], by: &str, now: UnixSeconds) -> Result<(), RotateError> {
    let is_one = |line: &str| {
        let id = ListEntry::parse(line).ok().flatten().map(|entry| entry.id());
        id.is_some_and(|id| entries.iter().any(|(entry, _)| *entry == id))
    };
    let may_be_one = |line: &str| line.contains("\"key\"") && is_one(line);
    Ledger::new(&site.revocations).remove_lines(may_be_one).map_err(RotateError::NotLifted)?;
    for (id, slot) in entries {
        let detail = format!("it named {slot}, whose key was replaced");
        note(site, Action::RevocationRemoved, (&format!("revocation:{id}"), by), &detail, now);
    }
    Ok(())
}

fn action(what: Replace) -> Action {
    match what {
        Replace::Primary => Action::KeyRotated,
        Replace::Both => Action::KeysReplaced,
    }
}

fn audit(site: &KeySite, action: Action, (owner, by): (&KeyOwner, &str), detail: &str, now: UnixSeconds) {
    note(site, action, (&owner.to_string(), by), detail, now);
}

/// The file is written, and that is told in any case.
fn note(site: &KeySite, action: Action, (object, by): (&str, &str), detail: &str, now: UnixSeconds) {
    if let Err(error) = Audit::open(&site.state_dir).record(action, by, object, detail, now) {
        tracing::error!(%error, object, "not audited");
    }
}

/// What a running gateway would read. A file with mistakes is not edited: nobody would follow.
fn load(site: &KeySite) -> Result<Identities, RotateError> {
    let loaded = load_identities(&site.identities, &site.gate).map_err(RotateError::Mistakes)?;
    Ok(loaded.identities)
}

#[cfg(test)]
mod tests;
