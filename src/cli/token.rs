//! `tollgate token inspect` and `tollgate token explain`: offline, from the files on this machine.

use super::{
    ConfigFile, Outcome,
    list::{folded, print_json, table},
    local::{note, now_by, print, token_from_input},
};
use crate::{
    admin::Explained,
    audit::Audit,
    config::{load_identities, load_revocations},
    credential::inspect as read,
    gate::{Gate, Profile},
    id::DeviceId,
};

/// Shows what a token says. Nothing is verified, and no secret is needed.
pub(super) fn inspect(json: bool) -> Result<(), Outcome> {
    let token = token_from_input()?;
    let fields = read(&token).map_err(|refused| Outcome::Failed(format!("no token: {}", refused.detail)))?;
    if json {
        let object = fields.into_iter().map(|(name, value)| (name, value.into()));
        return print_json(&object.collect::<serde_json::Map<String, serde_json::Value>>());
    }
    let rows: Vec<[String; 2]> = fields.into_iter().map(|(name, value)| [name, value]).collect();
    print(&table(&rows));
    Ok(())
}

/// Decides about a token as the gateway would, and says why.
pub(super) fn explain(
    at: &ConfigFile,
    device: Option<&DeviceId>,
    profile: Option<Profile>,
    json: bool,
) -> Result<(), Outcome> {
    let config = at.load()?;
    let (token, now) = (token_from_input()?, now_by(&config));
    let loaded = load_identities(&config.gateway.identities, &config.gate).map_err(|all| Outcome::mistakes(&all))?;
    let revocations = load_revocations(&config, now).map_err(|mistake| Outcome::mistakes(&[mistake]))?;
    for bad in &revocations.bad_lines {
        note(&format!("note: {bad}"));
    }
    let gate = Gate::new(config.gate.clone());
    let rules = gate.rules(profile.unwrap_or(gate.profile()));
    let keyring = loaded.identities.keyring();
    let explained = Explained::of(&token, device, (keyring, rules, &revocations.list), now).with_rotations(
        &token,
        keyring,
        &Audit::open(&config.gateway.state_dir),
    );
    if json {
        print_json(&explained)?;
    } else {
        print(&explanation(&explained));
    }
    if explained.admitted { Ok(()) } else { Err(Outcome::Refused) }
}

fn explanation(explained: &Explained) -> String {
    let mut text = String::new();
    for step in &explained.steps {
        let sign = if step.ok { '✓' } else { '✗' };
        let body = folded(&step.detail, INDENT);
        text.push_str(&format!("{sign} {:<12} {}\n", step.what, body.trim()));
    }
    let whose = explained.device.as_deref().map_or_else(String::new, |id| format!(" as {id}"));
    match (explained.number, &explained.denial) {
        (Some(number), Some(tag)) => text.push_str(&format!("\nrefused: {number} {tag}\n")),
        _ => text.push_str(&format!("\nadmitted{whose}\n")),
    }
    for near_miss in &explained.near_misses {
        text.push_str(&folded(&format!("! {near_miss}"), "  "));
    }
    if let Some(remedy) = remedy(explained) {
        text.push_str(&folded(&format!("→ {remedy}"), "  "));
    }
    text
}

/// What to do, for somebody who has asked this very command already.
fn remedy(explained: &Explained) -> Option<&str> {
    let is_this_command = explained.remedy.contains("token explain");
    match (is_this_command, explained.near_misses.is_empty()) {
        (false, _) => Some(explained.remedy.as_str()).filter(|remedy| !remedy.is_empty()),
        (true, true) if explained.denial.as_deref() == Some("signature_invalid") => {
            Some("It is none of the usual mistakes: another key has signed it, or it was changed on its way.")
        }
        (true, _) => None,
    }
}

/// As wide as a sign and the name of a step.
const INDENT: &str = "               ";
