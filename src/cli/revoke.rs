//! `tollgate revoke`: it adds to the file, and asks a running gateway what will be cut, and then whether it is in force.

use super::{
    ConfigFile, Outcome,
    arguments::{RevokeCommand, Why},
    desk::{Desk, DeskError},
    in_force::{Change, told_in_force},
    list::{folded, session_table},
    local::{note, now_by, print, token_from_input},
    signature,
};
use crate::{
    admin::{Keep, Ledger, NewRevocation, Revocation, RevocationAdded, honest_refused},
    audit::{Action, Audit},
    config::{self, Config},
    credential::Credential,
    file::make_private_directory,
    id::DeviceId,
    time::UnixSeconds,
};

/// `tollgate revoke …`.
pub(super) fn revoke(at: &ConfigFile, what: RevokeCommand) -> Result<(), Outcome> {
    let config = at.load()?;
    let now = now_by(&config);
    let (selected, why) = select(what)?;
    let by = why.by.unwrap_or_else(who);
    let entry = NewRevocation {
        reason: why.reason,
        until: why.until,
        by: Some(by.clone()),
        at: Some(now.to_string()),
        ..selected
    };
    let revocation = Revocation::new(&entry).map_err(Outcome::Usage)?;
    let until = entry.until.as_deref().and_then(|time| UnixSeconds::parse_rfc3339(time).ok());
    if let Some(until) = until.filter(|until| *until <= now) {
        return Err(Outcome::Usage(format!(
            "nothing is written: --until {until} is past, and the entry would revoke nothing"
        )));
    }
    let path = &config.gateway.revocations;
    let ledger = Ledger::new(path);
    let signer = signature::of_list(&config, &ledger, &why.sign)?;
    let loaded = config::load_identities(&config.gateway.identities, &config.gate).ok();
    let identities = loaded.as_ref().map(|loaded| &loaded.identities);
    let told = honest_refused(&entry, &config.gate, identities, now).map_err(Outcome::Failed)?;
    let (cuts, has_gateway) = preview(at, &config, &entry);
    print(&format!("{cuts}\n"));
    match &signer {
        Some(signer) => ledger.edit(|_| Keep::Yes, std::slice::from_ref(&revocation.line), Some(&signer.signature())),
        None => ledger.append(&revocation.line).map(|()| 0),
    }
    .map_err(Outcome::failed)?;
    audited(&config, Action::RevocationAdded, &by, &format!("revocation:{}", revocation.id), &revocation.line);
    print(&format!("entry {} is written to {}\n", revocation.id, path.display()));
    told.iter().for_each(|sentence| print(&folded(sentence, "")));
    if let Some(told) = unknown(&config, &entry) {
        note(&told);
    }
    if has_gateway { told_in_force(at, &config, Change::Adds) } else { Ok(()) }
}

/// Who sits at the keyboard, as far as the system says.
pub(super) fn who() -> String {
    let mut named = ["SUDO_USER", "USER", "LOGNAME"].into_iter().filter_map(|name| std::env::var(name).ok());
    let known = named.find(|name| !name.is_empty());
    known.unwrap_or_else(|| format!("uid {}", rustix::process::getuid().as_raw()))
}

/// Records what was done. A log that cannot be written undoes nothing.
pub(super) fn audited(config: &Config, action: Action, by: &str, object: &str, detail: &str) {
    // Before the first start of a gateway there is no such directory; what stands in its way the log says.
    let _ = make_private_directory(&config.gateway.state_dir);
    if let Err(error) = Audit::open(&config.gateway.state_dir).record(action, by, object, detail, now_by(config)) {
        note(&format!("note: this is not in the audit log: {error}"));
    }
}

fn select(what: RevokeCommand) -> Result<(NewRevocation, Why), Outcome> {
    let entry = NewRevocation::default();
    let text = |id: DeviceId| id.to_string();
    Ok(match what {
        RevokeCommand::Token { why, .. } => {
            let token = token_from_input()?;
            let credential = Credential::parse(token.as_bytes()).map_err(|refused| {
                Outcome::Failed(format!("what is on standard input is no token: {}", refused.detail))
            })?;
            (NewRevocation { token: Some(format!("sha256:{}", credential.token_id())), ..entry }, why)
        }
        RevokeCommand::Jti { id, issuer, why } => (NewRevocation { jti: Some(id), issuer, ..entry }, why),
        RevokeCommand::Device { id, why } => (NewRevocation { device: Some(text(id)), ..entry }, why),
        RevokeCommand::Key { name, why } => (NewRevocation { key: Some(name), ..entry }, why),
        RevokeCommand::IssuedBefore { time, device, issuer, policy, why } => {
            let device = device.map(text);
            (NewRevocation { issued_before: Some(time), device, issuer, policy, ..entry }, why)
        }
        RevokeCommand::ExpiresBefore { time, policy, why } => {
            (NewRevocation { expires_before: Some(time), policy, ..entry }, why)
        }
    })
}

/// An entry may name who is not here yet, or is here no more; more often it is a slip of the hand.
fn unknown(config: &Config, entry: &NewRevocation) -> Option<String> {
    let loaded = config::load_identities(&config.gateway.identities, &config.gate).ok()?;
    let why = config::names_nobody(entry, loaded.identities.keyring())?;
    Some(format!("note: {why}; if that was a slip, `tollgate revocations remove` takes the entry out"))
}

/// Which live sessions the entry will cut, as far as a running gateway can be asked, and whether there is one. A revocation
/// is never held up by it.
fn preview(at: &ConfigFile, config: &Config, entry: &NewRevocation) -> (String, bool) {
    let Ok(desk) = Desk::new(at, Some(config)) else {
        return ("no gateway could be asked which live sessions this cuts, and whether it is in force".into(), false);
    };
    let answer: Result<RevocationAdded, DeskError> = desk.post("/v1/revocations?dry_run=true", entry);
    let told = match answer {
        Ok(asked) if asked.cuts.is_empty() => "no live session is cut by it".into(),
        Ok(asked) => {
            let shown = asked.cuts.get(..SHOWN).unwrap_or(&asked.cuts);
            let mut text = format!("live sessions that it cuts: {}\n{}", asked.cuts.len(), session_table(shown));
            if asked.cuts.len() > SHOWN {
                text.push_str(&format!("… and {} more\n", asked.cuts.len() - SHOWN));
            }
            text.trim_end().to_owned()
        }
        Err(DeskError::Away(_)) => return ("no gateway answers: it will be applied when one starts".into(), false),
        Err(DeskError::Refused(why)) => format!("which live sessions it cuts could not be asked: {why}"),
    };
    (told, true)
}

/// A screen.
const SHOWN: usize = 20;
