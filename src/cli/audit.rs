//! `tollgate audit`.

use serde_json::json;

use super::{
    ConfigFile, Outcome,
    list::{folded, print_json},
    local::print,
};
use crate::audit::{Audit, Verified};

/// `tollgate audit verify`.
pub(super) fn verify(at: &ConfigFile, json: bool) -> Result<(), Outcome> {
    let audit = Audit::open(&at.load()?.gateway.state_dir);
    let found = audit.verify().map_err(Outcome::failed)?;
    if json {
        print_json(&as_json(&found))?;
    } else {
        print(&text(&audit, &found));
    }
    match found.fault {
        None => Ok(()),
        Some(_) => Err(Outcome::Refused),
    }
}

fn text(audit: &Audit, found: &Verified) -> String {
    let mut text = String::new();
    for note in &found.notes {
        text.push_str(&folded(&format!("note: {note}"), ""));
    }
    match (&found.fault, &found.range, &found.sha256) {
        (Some(fault), ..) => {
            text.push_str(&folded(&format!("✗ {fault}"), ""));
            text.push_str(&format!("  {} entries before it hold\n", found.entries));
        }
        (None, Some((first, last)), Some(sha256)) => {
            text.push_str(&format!("✓ the chain holds from entry {first} to entry {last}\n"));
            text.push_str(&format!("  the last is sha256:{sha256}\n"));
        }
        (None, ..) => text.push_str(&format!("nothing was recorded in {} yet\n", audit.file().display())),
    }
    text
}

fn as_json(found: &Verified) -> serde_json::Value {
    let fault = found
        .fault
        .as_ref()
        .map(|fault| json!({ "file": fault.file.display().to_string(), "line": fault.line, "what": fault.what }));
    let (first, last) = found.range.unzip();
    json!({
        "holds": fault.is_none(),
        "entries": found.entries,
        "first": first,
        "last": last,
        "sha256": found.sha256,
        "notes": found.notes,
        "fault": fault,
    })
}
