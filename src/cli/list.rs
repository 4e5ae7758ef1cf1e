//! Listings of a running gateway, for people at 100 columns or for programs as JSON.

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Serialize;

use super::{ConfigFile, Outcome, desk::Desk, local::print};
use crate::{
    admin::{AwayView, RefusalList, SessionList, SessionView, UpstreamList},
    id::DeviceId,
    journal::Entry,
};

/// `tollgate refusals`.
pub(super) fn refusals(at: &ConfigFile, device: Option<&str>, last: usize, json: bool) -> Result<(), Outcome> {
    let list: RefusalList = Desk::new(at, None)?.get(&query("/v1/refusals", device, last))?;
    if json {
        return print_json(&list.refusals);
    }
    if list.refusals.is_empty() {
        print(&format!("nobody{} was refused or cut since the gateway started\n", of(device)));
    }
    list.refusals.iter().for_each(|entry| print(&refusal(entry)));
    Ok(())
}

/// `tollgate sessions list`.
pub(super) fn sessions(at: &ConfigFile, device: Option<&str>, last: usize, json: bool) -> Result<(), Outcome> {
    let list: SessionList = Desk::new(at, None)?.get(&query("/v1/sessions", device, last))?;
    if json {
        let connected = list.sessions.iter().map(serde_json::to_value);
        let away = list.away.iter().map(serde_json::to_value);
        let all: Vec<_> = connected.chain(away).collect::<Result<_, _>>().map_err(Outcome::failed)?;
        return print_json(&all);
    }
    if list.sessions.is_empty() {
        print(&format!("no live session{}\n", of(device)));
    } else {
        connected(&list);
    }
    away(&list);
    Ok(())
}

fn connected(list: &SessionList) {
    let mut rows = vec![["device", "peer", "mqtt", "token ends", "key"].map(String::from)];
    rows.extend(list.sessions.iter().map(session_row));
    print(&table(&rows));
    if list.total > list.sessions.len() {
        print(&format!("… and {} more: --last {}\n", list.total - list.sessions.len(), list.total));
    }
}

/// Sessions whose devices are away: what waits, and for how long it may.
fn away(list: &SessionList) {
    if list.away.is_empty() {
        return;
    }
    let mut rows = vec![["away", "since", "ends", "waiting", "filters"].map(String::from)];
    rows.extend(list.away.iter().map(|away| {
        let AwayView { device, away_since, ends_at, queued, subscriptions, .. } = away;
        [device.clone(), away_since.clone(), ends_at.clone(), queued.to_string(), subscriptions.to_string()]
    }));
    print(&format!("\n{}", table(&rows)));
    if list.away_total > list.away.len() {
        print(&format!("… and {} more: --last {}\n", list.away_total - list.away.len(), list.away_total));
    }
}

/// `tollgate sessions close DEVICE`.
pub(super) fn close(at: &ConfigFile, device: &DeviceId) -> Result<(), Outcome> {
    let path = format!("/v1/sessions/{}", utf8_percent_encode(device.as_str(), NON_ALPHANUMERIC));
    let _: serde_json::Value = Desk::new(at, None)?.delete(&path)?;
    print(&format!("closed the session of {device}; it may connect again, unless it is revoked\n"));
    Ok(())
}

/// `tollgate upstreams`.
pub(super) fn upstreams(at: &ConfigFile, json: bool) -> Result<(), Outcome> {
    let list: UpstreamList = Desk::new(at, None)?.get("/v1/upstreams")?;
    if json {
        return print_json(&list.upstreams);
    }
    let head = ["hub", "address", "state", "links", "in flight", "window", "msgs/s", "kept bytes", "on disk", "oldest"];
    let mut rows = vec![head.map(String::from)];
    rows.extend(list.upstreams.iter().map(|hub| {
        let links = format!("{}/{}", hub.connected, hub.connections);
        let numbers = [hub.inflight, hub.window, hub.backlog].map(|n| n.to_string());
        let [inflight, window, backlog] = numbers;
        let rate = hub.messages_per_second.to_string();
        let state = if hub.spooling { format!("{}, spooling", hub.state.as_str()) } else { hub.state.as_str().into() };
        let oldest = hub.oldest_seconds.map_or_else(String::new, |seconds| format!("{seconds} s"));
        let (name, address, spooled) = (hub.name.clone(), hub.address.clone(), hub.spooled.to_string());
        [name, address, state, links, inflight, window, rate, backlog, spooled, oldest]
    }));
    print(&table(&rows));
    for hub in &list.upstreams {
        if let Some(error) = &hub.last_error {
            print(&folded(&format!("{}: last error: {error}", hub.name), ""));
        }
        if hub.set_aside > 0 {
            let text =
                format!("{}: {} messages are set aside: tollgate spool aside, retry, discard", hub.name, hub.set_aside);
            print(&folded(&text, ""));
        }
    }
    if let Some(error) = list.upstreams.iter().find_map(|hub| hub.spool_error.as_ref()) {
        print(&folded(&format!("spool: {error}"), ""));
    }
    Ok(())
}

/// Live sessions, as a revocation shows them.
pub(super) fn session_table(sessions: &[SessionView]) -> String {
    let rows: Vec<_> = sessions.iter().map(session_row).collect();
    table(&rows)
}

/// One JSON text, readable.
pub(super) fn print_json(value: &impl Serialize) -> Result<(), Outcome> {
    print(&format!("{}\n", serde_json::to_string_pretty(value).map_err(Outcome::failed)?));
    Ok(())
}

/// Columns as wide as their widest cell, two spaces apart.
pub(super) fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|c| c.chars().count()).max();
    let widths: Vec<usize> = (0..N).map(|column| width(column).unwrap_or(0)).collect();
    let line = |row: &[String; N]| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        format!("{}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

/// Words in lines of at most 100 columns, each after `indent`. A word that is longer stands alone.
pub(super) fn folded(text: &str, indent: &str) -> String {
    let (mut all, mut line) = (String::new(), String::new());
    for word in text.split_whitespace() {
        let length = indent.chars().count() + line.chars().count() + 1 + word.chars().count();
        if !line.is_empty() && length > COLUMNS {
            all.push_str(&format!("{indent}{line}\n"));
            line.clear();
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    if line.is_empty() { all } else { format!("{all}{indent}{line}\n") }
}

/// Each line as [`folded`], where it is too wide, under its own indent.
pub(super) fn wrapped(text: &str) -> String {
    let line = |line: &str| {
        let indent: String = line.chars().take_while(|c| *c == ' ').collect();
        if line.chars().count() > COLUMNS { folded(line, &indent) } else { format!("{line}\n") }
    };
    text.lines().map(line).collect()
}

fn session_row(session: &SessionView) -> [String; 5] {
    let SessionView { device, peer, mqtt, expires_at, key, .. } = session;
    [device.clone(), peer.clone(), mqtt.clone(), expires_at.clone(), key.clone()]
}

/// A head line, then what was compared and what to do.
fn refusal(entry: &Entry) -> String {
    let number = if entry.number == 0 { String::new() } else { format!("{} ", entry.number) };
    let Entry { at, event, device, peer, tag, detail, remedy, .. } = entry;
    let mut text = folded(&format!("{at}  {event:<7}  {number}{tag}  {device}  from {peer}"), "");
    if let Some(token) = &entry.token_id {
        text.push_str(&folded(&format!("token sha256:{token}"), INDENT));
    }
    text.push_str(&folded(detail, INDENT));
    for near_miss in &entry.near_misses {
        text.push_str(&folded(&format!("near miss: {near_miss}"), INDENT));
    }
    if !remedy.is_empty() {
        text.push_str(&folded(&format!("→ {remedy}"), INDENT));
    }
    text
}

fn query(path: &str, device: Option<&str>, last: usize) -> String {
    let device = device.map(|id| format!("&device={}", utf8_percent_encode(id, NON_ALPHANUMERIC)));
    format!("{path}?last={last}{}", device.unwrap_or_default())
}

fn of(device: Option<&str>) -> String {
    device.map_or_else(String::new, |id| format!(" called {id}"))
}

const COLUMNS: usize = 100;
const INDENT: &str = "    ";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_reads_at_100_columns_and_says_what_to_do() {
        let entry = Entry {
            at: "2026-11-21T09:00:00.123Z".into(),
            event: "refused".into(),
            device: "pump-17".into(),
            peer: "10.0.0.9:4242".into(),
            number: 300,
            tag: "expired".into(),
            snapshot: 0,
            azure: Some(40_105),
            token_id: Some("07070707070707070707070707070707".into()),
            detail: "`se` is 2026-11-21T08:00:00Z, the clock says 2026-11-21T09:00:00Z, 30s of skew are allowed."
                .into(),
            remedy: "The device needs a new token; if it just made this one, its clock is wrong.".into(),
            near_misses: vec![],
        };
        let text = refusal(&entry);
        assert_eq!(
            text,
            "2026-11-21T09:00:00.123Z refused 300 expired pump-17 from 10.0.0.9:4242\n    \
             token sha256:07070707070707070707070707070707\n    \
             `se` is 2026-11-21T08:00:00Z, the clock says 2026-11-21T09:00:00Z, 30s of skew are allowed.\n    \
             → The device needs a new token; if it just made this one, its clock is wrong.\n"
        );
        assert!(text.lines().all(|line| line.chars().count() <= COLUMNS));
    }

    #[test]
    fn lines_are_folded_at_words() {
        assert_eq!(folded("", "  "), "");
        assert_eq!(folded(&"x".repeat(200), "  "), format!("  {}\n", "x".repeat(200)));
        let text = folded(&"word ".repeat(50), "    ");
        assert_eq!(text.split_whitespace().count(), 50);
        assert!(text.lines().all(|line| line.starts_with("    word") && line.chars().count() <= COLUMNS), "{text}");
    }

    #[test]
    fn columns_line_up() {
        let rows = [["a", "long cell", "x"], ["longer", "b", ""]].map(|row| row.map(String::from));
        assert_eq!(table(&rows), "a       long cell  x\nlonger  b\n");
    }
}
