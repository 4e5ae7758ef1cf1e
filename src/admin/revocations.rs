//! Entries of the revocation list: made, named, listed, and asked which live sessions they cut.

use std::collections::{BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Keep, Ledger, LedgerError, SessionView, Signature};
use crate::{
    credential::{JTI_BYTES_MAX, ListEntry, RevocationList},
    registry::Registry,
    time::UnixSeconds,
};

/// An entry that is to be written: what it selects, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NewRevocation {
    /// `jti` of a JWT.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jti: Option<String>,
    /// With `jti` or `issued_before`: of this issuer only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub issuer: Option<String>,
    /// `sha256:` and the fingerprint of a token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// `policy:NAME/SLOT` and its like: all that this slot verifies.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// What was issued before this time (RFC 3339), of a device, an issuer, a policy or of everybody.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub issued_before: Option<String>,
    /// What expires before this time (RFC 3339), of a policy or of everybody.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_before: Option<String>,
    /// With a time: of this policy only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// A device, with all its tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// For the log, and for whoever reads the list.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Who wrote it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// When it was written (RFC 3339).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
    /// When it ends (RFC 3339); absent: never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<String>,
}

/// An entry that holds: its line, its id, and what it selects.
#[derive(Clone, Debug)]
pub struct Revocation {
    /// As it stands in the file.
    pub line: String,
    /// Names it.
    pub id: String,
    list: RevocationList,
}

impl Revocation {
    /// Checks an entry as the gateway will read it.
    ///
    /// # Errors
    /// A sentence that says what is wrong with it.
    pub fn new(entry: &NewRevocation) -> Result<Self, String> {
        if let Some(jti) = entry.jti.as_ref().filter(|jti| jti.len() > JTI_BYTES_MAX) {
            return Err(format!(
                "the `jti` has {} bytes, and no token with more than {JTI_BYTES_MAX} is admitted: the entry would revoke \
                 nothing. Take it as the token has it: `tollgate token inspect` shows it",
                jti.len()
            ));
        }
        let line = serde_json::to_string(entry).map_err(|error| error.to_string())?;
        let id = ListEntry::parse(&line)?.ok_or("the entry selects nothing")?.id();
        let (list, _) = RevocationList::parse(&line);
        Ok(Self { line, id, list })
    }

    /// Live sessions that it cuts, by device.
    pub fn cuts(&self, registry: &Registry, now: UnixSeconds) -> Vec<SessionView> {
        let mut cuts = Vec::new();
        registry.for_each(|live| {
            if live.grant().all_facts().any(|facts| self.list.revokes(&facts, now)) {
                cuts.push(SessionView::of(live));
            }
        });
        cuts.sort_by(|a, b| a.device.cmp(&b.device));
        cuts
    }
}

/// Answer of `GET /v1/revocations`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevocationListing {
    /// In the order of the file, each with its `id`.
    pub revocations: Vec<Map<String, Value>>,
    /// How many there are, also where fewer are shown.
    pub total: usize,
    /// Lines that are no entry: `LINE: what is wrong`.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub bad_lines: Vec<String>,
}

impl RevocationListing {
    /// With what a gateway added by itself, which is named as such, behind the list; the newest `last` of both.
    ///
    /// # Errors
    /// [`LedgerError`] where it cannot be read.
    pub fn and_local(mut self, local: &Ledger, last: usize) -> Result<Self, LedgerError> {
        let added = local.list(last)?;
        for mut entry in added.revocations {
            entry.insert("origin".into(), Value::from(OF_GATEWAY));
            self.revocations.push(entry);
        }
        self.bad_lines.extend(added.bad_lines.into_iter().map(|bad| format!("{OF_GATEWAY}: {bad}")));
        self.total += added.total;
        self.revocations.drain(..self.revocations.len().saturating_sub(last));
        Ok(self)
    }
}

impl Ledger {
    /// Its newest `last` entries, as they stand in the file, each with its id.
    ///
    /// # Errors
    /// [`LedgerError`] where it cannot be read.
    pub fn list(&self, last: usize) -> Result<RevocationListing, LedgerError> {
        let (mut total, mut kept) = (0, VecDeque::new());
        self.each_line(|number, line| {
            let line = line.trim_start_matches('\u{feff}').trim();
            if !line.is_empty() && !line.starts_with('#') {
                total += 1;
                kept.push_back((number, line.to_owned()));
                while kept.len() > last {
                    kept.pop_front();
                }
            }
        })?;
        Ok(shown(kept, total))
    }

    /// Long ids of the entries that this id or beginning of a long id names, each once.
    ///
    /// # Errors
    /// [`LedgerError`] where it cannot be read.
    pub fn named(&self, id: &str) -> Result<Vec<String>, LedgerError> {
        let (id, mut found) = (id.to_ascii_lowercase(), BTreeSet::new());
        self.each_line(|_, line| {
            let named = entry_of(line).map(|entry| entry.long_id()).filter(|long_id| long_id.starts_with(&id));
            found.extend(named);
        })?;
        Ok(found.into_iter().collect())
    }

    /// Takes out the lines of one entry, by its long id.
    ///
    /// # Errors
    /// [`LedgerError`]; the file is then as it was.
    pub fn remove(&self, long_id: &str, signature: Option<&Signature<'_>>) -> Result<usize, LedgerError> {
        let is_it = |line: &str| entry_of(line).is_some_and(|entry| entry.long_id() == long_id);
        self.edit(|line| if is_it(line) { Keep::No } else { Keep::Yes }, &[], signature)
    }

    /// Takes out the entries whose `until` has passed, and nothing else.
    ///
    /// # Errors
    /// [`LedgerError`]; the file is then as it was.
    pub fn prune(&self, now: UnixSeconds, signature: Option<&Signature<'_>>) -> Result<usize, LedgerError> {
        let has_ended = |line: &str| entry_of(line).is_some_and(|entry| entry.has_ended(now));
        self.edit(|line| if has_ended(line) { Keep::No } else { Keep::Yes }, &[], signature)
    }
}

/// The entry of a line; a line that is none is nobody's to touch.
pub(super) fn entry_of(line: &str) -> Option<ListEntry> {
    ListEntry::parse(line.trim_start_matches('\u{feff}')).ok().flatten()
}

fn shown(kept: VecDeque<(usize, String)>, total: usize) -> RevocationListing {
    let mut shown = RevocationListing { total, ..RevocationListing::default() };
    for (number, line) in kept {
        let fields = serde_json::from_str::<Map<String, Value>>(&line).map_err(|error| error.to_string());
        let read = ListEntry::parse(&line).and_then(|entry| Ok((entry.ok_or("no entry")?, fields?)));
        match read {
            Ok((entry, fields)) => {
                let mut shown_entry = Map::from_iter([("id".to_owned(), Value::from(entry.id()))]);
                shown_entry.extend(fields);
                shown.revocations.push(shown_entry);
            }
            Err(what) => shown.bad_lines.push(format!("{number}: {what}")),
        }
    }
    shown
}

/// Where an entry comes from that is in no list of the operator's.
const OF_GATEWAY: &str = "this gateway";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_checked_and_named_before_it_is_written() {
        let entry = NewRevocation { device: Some("pump-17".into()), ..NewRevocation::default() };
        let made = Revocation::new(&entry).expect("an entry");
        assert_eq!((&*made.line, made.id.len()), ("{\"device\":\"pump-17\"}", 8));
        let with_reason = NewRevocation { reason: Some("scrapped \"twice\"\n".into()), ..entry.clone() };
        let other = Revocation::new(&with_reason).expect("an entry");
        assert_eq!(made.id, other.id, "the id is of what is selected");
        assert_eq!(other.line.lines().count(), 1, "a reason cannot begin another line: {}", other.line);
        for bad in [
            NewRevocation::default(),
            NewRevocation { jti: Some("x".into()), ..entry.clone() },
            NewRevocation { device: None, jti: Some("x".repeat(129)), ..entry.clone() },
            NewRevocation { device: Some("+".into()), ..entry.clone() },
            NewRevocation { until: Some("soon".into()), ..entry.clone() },
            NewRevocation { device: None, token: Some("sha256:zz".into()), ..entry },
        ] {
            assert!(Revocation::new(&bad).is_err(), "{bad:?}");
        }
        let longest = NewRevocation { jti: Some("x".repeat(128)), ..NewRevocation::default() };
        assert!(Revocation::new(&longest).is_ok(), "{longest:?}");
    }

    #[test]
    fn a_list_is_shown_as_it_stands_with_ids_and_bad_lines() {
        let text = "# by hand\n{\"device\": \"a\"}\n\nno\n{\"jti\": \"j\", \"by\": \"me\"}\n";
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), text).expect("written");
        let listed = |last| Ledger::new(file.path()).list(last).expect("read");
        let all = listed(10);
        assert_eq!((all.total, all.revocations.len(), all.bad_lines.len()), (3, 2, 1));
        assert!(all.bad_lines[0].starts_with("4: "), "{:?}", all.bad_lines);
        let keys: Vec<_> = all.revocations[1].keys().map(String::as_str).collect();
        assert_eq!(keys.len(), 3, "{keys:?}");
        assert_eq!(listed(1).revocations, all.revocations[1..]);
    }
}
