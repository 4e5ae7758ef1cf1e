//! Entries of the revocation list: made, named, listed, and asked which live sessions they cut.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::SessionView;
use crate::{credential::RevocationList, registry::Registry, time::UnixSeconds};

/// An entry that is to be written: what it selects, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NewRevocation {
    /// `jti` of a JWT.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jti: Option<String>,
    /// With `jti`: of this issuer only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub issuer: Option<String>,
    /// `sha256:` and the fingerprint of a token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
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
        let line = serde_json::to_string(entry).map_err(|error| error.to_string())?;
        let (list, mut bad) = RevocationList::parse(&line);
        match (bad.pop(), id_of(&list)) {
            (None, Some(id)) => Ok(Self { line, id, list }),
            (Some(bad), _) => Err(bad.what),
            (None, None) => Err("the entry selects nothing".into()),
        }
    }

    /// Live sessions that it cuts, by device.
    pub fn cuts(&self, registry: &Registry, now: UnixSeconds) -> Vec<SessionView> {
        let mut cuts = Vec::new();
        registry.for_each(|live| {
            if self.list.matches(&live.grant.facts(), now).is_some() {
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

/// The newest `last` entries of a list, as they stand in the file, each with its id.
pub fn listed(text: &str, last: usize) -> RevocationListing {
    let lines = || text.lines().enumerate().map(|(n, line)| (n + 1, line.trim()));
    let entries = || lines().filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    let total = entries().count();
    let mut shown = RevocationListing { total, ..RevocationListing::default() };
    for (number, line) in entries().skip(total.saturating_sub(last)) {
        let (list, bad) = RevocationList::parse(line);
        match (id_of(&list), serde_json::from_str::<Map<String, Value>>(line), bad.first()) {
            (Some(id), Ok(fields), None) => {
                let mut entry = Map::from_iter([("id".to_owned(), Value::from(id))]);
                entry.extend(fields);
                shown.revocations.push(entry);
            }
            (_, _, bad) => {
                let what = bad.map_or("no entry", |bad| &bad.what);
                shown.bad_lines.push(format!("{number}: {what}"));
            }
        }
    }
    shown
}

/// The id of the one entry of a list.
fn id_of(list: &RevocationList) -> Option<String> {
    let first = list.ids().pop()?;
    Some(first.iter().take(4).map(|byte| format!("{byte:02x}")).collect())
}

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
            NewRevocation { device: Some("+".into()), ..entry.clone() },
            NewRevocation { until: Some("soon".into()), ..entry.clone() },
            NewRevocation { device: None, token: Some("sha256:zz".into()), ..entry },
        ] {
            assert!(Revocation::new(&bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_list_is_shown_as_it_stands_with_ids_and_bad_lines() {
        let text = "# by hand\n{\"device\": \"a\"}\n\nno\n{\"jti\": \"j\", \"by\": \"me\"}\n";
        let all = listed(text, 10);
        assert_eq!((all.total, all.revocations.len(), all.bad_lines.len()), (3, 2, 1));
        assert!(all.bad_lines[0].starts_with("4: "), "{:?}", all.bad_lines);
        let keys: Vec<_> = all.revocations[1].keys().map(String::as_str).collect();
        assert_eq!(keys.len(), 3, "{keys:?}");
        assert_eq!(listed(text, 1).revocations, all.revocations[1..]);
    }
}
