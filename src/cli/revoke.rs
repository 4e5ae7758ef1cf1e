//! `tollgate revoke` and `tollgate revocations`: they edit the file, and ask a running gateway only what will be cut.

use super::{
    ConfigFile, Outcome,
    arguments::{RevokeCommand, Why},
    desk::{Desk, DeskError},
    list::{folded, print_json, session_table},
    local::{now, print, token_from_input},
};
use crate::{
    admin::{Ledger, NewRevocation, Revocation, RevocationAdded, RevocationListing, listed},
    config::Config,
    credential::Credential,
};

/// `tollgate revoke token - | jti ID | device ID`.
pub(super) fn revoke(at: &ConfigFile, what: RevokeCommand) -> Result<(), Outcome> {
    let config = at.load()?;
    let (selected, why) = select(what)?;
    let entry = NewRevocation {
        reason: why.reason,
        until: why.until,
        by: Some(who()),
        at: Some(now().to_string()),
        ..selected
    };
    let revocation = Revocation::new(&entry).map_err(Outcome::Usage)?;
    print(&format!("{}\n", preview(at, &config, &entry)));
    let path = &config.gateway.revocations;
    Ledger::new(path).append(&revocation.line).map_err(Outcome::failed)?;
    print(&format!("entry {} is written to {}\n", revocation.id, path.display()));
    Ok(())
}

/// `tollgate revocations list`.
pub(super) fn list(at: &ConfigFile, last: usize, json: bool) -> Result<(), Outcome> {
    let path = at.load()?.gateway.revocations;
    let text = Ledger::new(&path).read().map_err(Outcome::failed)?;
    let listing = listed(&text, last);
    if json {
        return print_json(&listing);
    }
    print(&listing_text(&listing));
    for bad in &listing.bad_lines {
        eprintln!("{}:{bad}", path.display());
    }
    Ok(())
}

fn listing_text(listing: &RevocationListing) -> String {
    if listing.total == 0 {
        return "the list is empty\n".into();
    }
    let mut text = String::new();
    for entry in &listing.revocations {
        let fields = FIELDS.iter().filter_map(|name| Some(format!("{name} {}", entry.get(*name)?.as_str()?)));
        let id = entry.get("id").and_then(|id| id.as_str()).unwrap_or_default();
        text.push_str(&folded(&format!("{id} {}", fields.collect::<Vec<_>>().join(", ")), ""));
    }
    let shown = listing.revocations.len() + listing.bad_lines.len();
    if listing.total > shown {
        text.push_str(&format!("… and {} older: --last {}\n", listing.total - shown, listing.total));
    }
    text
}

fn select(what: RevokeCommand) -> Result<(NewRevocation, Why), Outcome> {
    let entry = NewRevocation::default();
    Ok(match what {
        RevokeCommand::Token { why, .. } => {
            let token = token_from_input()?;
            let credential = Credential::parse(token.as_bytes()).map_err(|refused| {
                Outcome::Failed(format!("what is on standard input is no token: {}", refused.detail))
            })?;
            (NewRevocation { token: Some(format!("sha256:{}", credential.token_id())), ..entry }, why)
        }
        RevokeCommand::Jti { id, issuer, why } => (NewRevocation { jti: Some(id), issuer, ..entry }, why),
        RevokeCommand::Device { id, why } => (NewRevocation { device: Some(id.to_string()), ..entry }, why),
    })
}

/// Who sits at the keyboard, as far as the system says.
pub(super) fn who() -> String {
    let mut named = ["USER", "LOGNAME"].into_iter().filter_map(|name| std::env::var(name).ok());
    let known = named.find(|name| !name.is_empty());
    known.unwrap_or_else(|| format!("uid {}", rustix::process::getuid().as_raw()))
}

/// Which live sessions the entry will cut, as far as a running gateway can be asked. A revocation is never held up by it.
fn preview(at: &ConfigFile, config: &Config, entry: &NewRevocation) -> String {
    let desk = match Desk::new(at, Some(config)) {
        Ok(desk) => desk,
        Err(_) => return "no gateway could be asked which live sessions this cuts".into(),
    };
    let answer: Result<RevocationAdded, DeskError> = desk.post("/v1/revocations?dry_run=true", entry);
    match answer {
        Ok(asked) if asked.cuts.is_empty() => "no live session is cut by it".into(),
        Ok(asked) => {
            let shown = asked.cuts.get(..SHOWN).unwrap_or(&asked.cuts);
            let mut text = format!("live sessions that it cuts: {}\n{}", asked.cuts.len(), session_table(shown));
            if asked.cuts.len() > SHOWN {
                text.push_str(&format!("… and {} more\n", asked.cuts.len() - SHOWN));
            }
            text.trim_end().to_owned()
        }
        Err(DeskError::Away(_)) => "no gateway answers: it will be applied when one starts".into(),
        Err(DeskError::Refused(why)) => format!("which live sessions it cuts could not be asked: {why}"),
    }
}

/// Of an entry, what it selects first.
const FIELDS: [&str; 12] = [
    "jti",
    "token",
    "key",
    "issued_before",
    "expires_before",
    "device",
    "issuer",
    "policy",
    "reason",
    "by",
    "at",
    "until",
];
/// A screen.
const SHOWN: usize = 20;
