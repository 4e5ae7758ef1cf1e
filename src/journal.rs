//! What was refused and what was cut: counted, logged once, and kept for `tollgate refusals`.

mod unexplained;

pub use unexplained::Unexplained;

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::SystemTime,
};

use serde::{Deserialize, Serialize};
use unexplained::Queue;
use zeroize::Zeroizing;

use crate::{
    denial::{CloseReason, Denial},
    gate::Wake,
    id::TokenId,
    policy::Profile,
    time::Tick,
};

/// The last refusals and cuts. One a gateway; written only when something was refused or cut.
#[derive(Debug)]
pub struct Journal {
    entries: Mutex<VecDeque<Kept>>,
    entries_max: usize,
    snapshot: AtomicU64,
    /// Of the entry that came last.
    number: AtomicU64,
    unexplained: Queue,
}

/// One refusal or cut, as the operator reads it. Texts of a peer are escaped, and cut where they are long.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Entry {
    /// RFC 3339, milliseconds.
    pub at: String,
    /// `refused` (CONNECT, PUBLISH or SUBSCRIBE), `cut` (a live session was ended) or `alarm` (somebody should look).
    pub event: String,
    /// The device, or what the client called itself.
    pub device: String,
    /// Where it came from.
    pub peer: String,
    /// Number of the denial; 0 for a cut without one.
    pub number: u16,
    /// Tag of the denial or of the close reason.
    pub tag: String,
    /// Azure's number for the same, where it has one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub azure: Option<u32>,
    /// By which state of identities, list and authorities it was decided: the number that the log has for it.
    #[serde(default)]
    pub snapshot: u64,
    /// Fingerprint of the token.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub token_id: Option<String>,
    /// The values that were compared, in one sentence.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub detail: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub remedy: String,
    /// Which mistake it is, where one was tried and found true: said a moment after the refusal.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub near_misses: Vec<String>,
}

/// An entry as it is kept: it is written out when somebody asks. A cut of ten thousand makes ten thousand of them, of which
/// few are ever read.
#[derive(Debug)]
struct Kept {
    /// As the log has it, and the logs of other machines: the wall clock, also while decisions do not follow it.
    at: SystemTime,
    event: &'static str,
    device: String,
    peer: SocketAddr,
    why: Why,
    snapshot: u64,
    token_id: Option<TokenId>,
    detail: String,
    near_misses: Vec<String>,
    /// Names it within this process.
    entry: u64,
}

impl Kept {
    fn written(&self) -> Entry {
        let Why { number, tag, azure, remedy } = self.why;
        Entry {
            at: humantime::format_rfc3339_millis(self.at).to_string(),
            event: self.event.into(),
            device: self.device.clone(),
            peer: self.peer.to_string(),
            number,
            tag: tag.into(),
            azure,
            snapshot: self.snapshot,
            token_id: self.token_id.map(|id| id.to_string()),
            detail: self.detail.clone(),
            remedy: remedy.into(),
            near_misses: self.near_misses.clone(),
        }
    }
}

impl Default for Journal {
    fn default() -> Self {
        Self {
            entries: Mutex::default(),
            entries_max: ENTRIES_MAX,
            snapshot: AtomicU64::new(0),
            number: AtomicU64::new(0),
            unexplained: Queue::default(),
        }
    }
}

impl Journal {
    /// From here on decisions are made by this state of identities, list and authorities (threat T43).
    pub fn decided_by(&self, snapshot: u64) {
        self.snapshot.store(snapshot, Relaxed);
    }

    /// From here on there is somebody who finds out which mistakes refused tokens have.
    pub fn explained_by(&self, whom: Arc<dyn Wake>) {
        self.unexplained.taken_by(whom);
    }

    /// The refused token that waits for the longest time.
    pub fn unexplained(&self) -> Option<Unexplained> {
        self.unexplained.take()
    }

    /// Which mistakes it has: they are kept with its entry, if that still stands.
    pub fn explained(&self, refused: &Unexplained, near_misses: Vec<String>) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = entries.iter_mut().rev().find(|entry| entry.entry == refused.entry) {
            entry.near_misses = near_misses.iter().take(NEAR_MISSES_MAX).map(|text| printable(text)).collect();
        }
    }

    /// A CONNECT with a token was refused: as [`connect_refused`](Self::connect_refused), and it is to be found out later
    /// which mistake the token has.
    pub fn token_refused(&self, who: &Who<'_>, (denial, detail): (Denial, &str), token: &Token<'_>, now: Tick) {
        let entry = self.connect_refused(who, denial, detail);
        if !denial.is_of_token() {
            return;
        }
        self.unexplained.offer(who.peer.ip(), now, || Unexplained {
            entry,
            client_id: who.device.to_owned(),
            profile: token.profile,
            token: Zeroizing::new(token.bytes.to_vec()),
        });
    }

    /// A CONNECT was refused. Answers with the number of its entry.
    pub fn connect_refused(&self, who: &Who<'_>, denial: Denial, detail: &str) -> u64 {
        metrics::counter!("tollgate_connects_total", "result" => "refused", "denial" => denial.tag()).increment(1);
        let (device, peer, detail) = (printable(who.device), who.peer, printable(detail));
        let (token_id, number, azure) = (who.token_text(), denial.number(), denial.row().azure);
        let snapshot = self.snapshot.load(Relaxed);
        // The ban itself was said aloud: its guesses are not, or whoever guesses fills the disk.
        if denial == Denial::Banned {
            tracing::debug!(%peer, device, denial = denial.tag(), number, token_id, detail, "connect refused");
        } else {
            let denial = denial.tag();
            tracing::info!(%peer, device, denial, number, azure, token_id, snapshot, detail, "connect refused");
        }
        let why = Why { number, tag: denial.tag(), azure, remedy: denial.row().remedy };
        self.push("refused", who, why, (device, detail))
    }

    /// A PUBLISH or SUBSCRIBE of a live session was refused.
    pub fn action_refused(&self, who: &Who<'_>, denial: Denial, detail: &str) {
        let (device, peer, detail) = (printable(who.device), who.peer, printable(detail));
        let (token_id, number, azure) = (who.token_text(), denial.number(), denial.row().azure);
        tracing::info!(%peer, device, denial = denial.tag(), number, azure, token_id, detail, "action refused");
        let why = Why { number, tag: denial.tag(), azure, remedy: denial.row().remedy };
        self.push("refused", who, why, (device, detail));
    }

    /// Sessions of a device are taken over again and again.
    pub fn took_over(&self, who: &Who<'_>, detail: &str) {
        let azure = CloseReason::TakenOver.azure();
        let why = Why { number: 0, tag: CloseReason::TakenOver.tag(), azure, remedy: "" };
        self.push("alarm", who, why, (printable(who.device), printable(detail)));
    }

    /// A session ended; kept only when the gateway ended it.
    pub fn closed(&self, who: &Who<'_>, reason: CloseReason, detail: &str) {
        metrics::counter!("tollgate_sessions_closed_total", "reason" => reason.tag()).increment(1);
        let (device, peer) = (printable(who.device), who.peer);
        let (tag, azure) = (reason.tag(), reason.azure());
        let snapshot = self.snapshot.load(Relaxed);
        if tracing::enabled!(tracing::Level::INFO) {
            let token_id = who.token_text();
            tracing::info!(%peer, device, reason = tag, azure, token_id, snapshot, "session closed");
        }
        if reason.is_cut() {
            let (number, tag, remedy) = match reason {
                CloseReason::Denied(denial) | CloseReason::RenewalRefused(denial) => {
                    (denial.number(), denial.tag(), denial.row().remedy)
                }
                _ => (0, tag, ""),
            };
            self.push("cut", who, Why { number, tag, azure, remedy }, (device, printable(detail)));
        }
    }

    /// The newest `last` entries, oldest first; of one device, if one is named.
    pub fn last(&self, device: Option<&str>, last: usize) -> Vec<Entry> {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        // What is asked about a device is asked about its modules.
        let is_of =
            |e: &Kept, d: &str| e.device.strip_prefix(d).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        let wanted = |e: &&Kept| device.is_none_or(|d| is_of(e, d));
        let mut found: Vec<Entry> = entries.iter().rev().filter(wanted).take(last).map(Kept::written).collect();
        found.reverse();
        found
    }

    /// `device` and `detail` are printable.
    fn push(&self, event: &'static str, who: &Who<'_>, why: Why, (device, detail): (String, String)) -> u64 {
        let id = self.number.fetch_add(1, Relaxed) + 1;
        let entry = Kept {
            at: SystemTime::now(),
            event,
            device,
            peer: who.peer,
            why,
            snapshot: self.snapshot.load(Relaxed),
            token_id: who.token_id,
            detail,
            near_misses: Vec::new(),
            entry: id,
        };
        let number = why.number;
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        // A 3.1.1 session that is closed because a PUBLISH was refused: one entry says both.
        let is_said = |last: &Kept| {
            number != 0 && last.why.number == number && last.device == entry.device && last.peer == entry.peer
        };
        if event == "cut" && entries.back().is_some_and(is_said) {
            return id;
        }
        // A ban is one entry, whose newest guess stands: or whoever guesses pushes out what an operator looks for.
        if number == Denial::Banned.number()
            && let Some(place) = entries.iter().rev().take(BANNED_LOOK_BACK).position(|e| is_same_ban(e, &entry))
        {
            let from_the_front = entries.len() - 1 - place;
            entries.remove(from_the_front);
        }
        if entries.len() >= self.entries_max {
            entries.pop_front();
        }
        entries.push_back(entry);
        id
    }
}

/// Of whom an entry speaks.
#[derive(Clone, Copy, Debug)]
pub struct Who<'a> {
    /// The device, or what the client called itself.
    pub device: &'a str,
    /// Where it comes from.
    pub peer: SocketAddr,
    /// Its token, if it had a well-formed one.
    pub token_id: Option<TokenId>,
}

impl Who<'_> {
    fn token_text(&self) -> String {
        self.token_id.map_or_else(String::new, |id| id.to_string())
    }
}

/// A token that was refused.
#[derive(Clone, Copy)]
pub struct Token<'a> {
    /// As it was sent.
    pub bytes: &'a [u8],
    /// Of the listener.
    pub profile: Profile,
}

/// What an entry says by name and number.
#[derive(Clone, Copy, Debug)]
struct Why {
    number: u16,
    tag: &'static str,
    azure: Option<u32>,
    remedy: &'static str,
}

/// Text that quotes a peer, fit for a log line: escaped, and cut where it is long.
pub fn printable(text: &str) -> String {
    if text.len() < PRINTABLE_BYTES_MAX && text.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
        return text.to_owned();
    }
    let mut safe = String::new();
    for c in text.chars() {
        if safe.len() >= PRINTABLE_BYTES_MAX {
            safe.push('…');
            break;
        }
        if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}') {
            safe.extend(c.escape_unicode());
        } else {
            safe.push(c);
        }
    }
    safe
}

fn is_same_ban(one: &Kept, other: &Kept) -> bool {
    let is_same_token = one.token_id.is_some() && one.token_id == other.token_id;
    one.why.number == other.why.number && (one.peer.ip() == other.peer.ip() || is_same_token)
}

/// More than three mistakes in one token are none of the usual ones.
const NEAR_MISSES_MAX: usize = 3;
/// As many bans at once are shown as one entry each.
const BANNED_LOOK_BACK: usize = 64;
/// Enough for the last minutes of a bad day; about half a mebibyte.
const ENTRIES_MAX: usize = 1000;
/// A device id has at most 128 bytes; a sentence about it needs some more.
const PRINTABLE_BYTES_MAX: usize = 384;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_refusals_are_kept_and_found_by_device() {
        let journal = Journal { entries_max: 3, ..Journal::default() };
        let peer = "127.0.0.1:5".parse().expect("an address");
        for device in ["a", "b", "a", "c"] {
            let who = Who { device, peer, token_id: None };
            journal.connect_refused(&who, Denial::Expired, "se is 10 s past");
        }
        let devices: Vec<_> = journal.last(None, 10).iter().map(|e| e.device.clone()).collect();
        assert_eq!(devices, ["b", "a", "c"]);
        let of_a = journal.last(Some("a"), 10);
        assert_eq!((of_a.len(), of_a[0].number, &*of_a[0].tag), (1, 300, "expired"));
    }

    #[test]
    fn a_refusal_that_closes_is_one_entry() {
        let journal = Journal::default();
        let peer = "127.0.0.1:5".parse().expect("an address");
        let who = Who { device: "a", peer, token_id: None };
        journal.action_refused(&who, Denial::TopicOutOfScope, "PUBLISH to \"x\", QoS 1");
        journal.closed(&who, CloseReason::Denied(Denial::TopicOutOfScope), "");
        assert_eq!(journal.last(None, 10).len(), 1);
        journal.closed(&who, CloseReason::Denied(Denial::QosNotOffered), "");
        assert_eq!(journal.last(None, 10).len(), 2);
    }

    #[test]
    fn the_guesses_of_a_banned_address_are_one_entry_and_push_nothing_out() {
        let journal = Journal { entries_max: 5, ..Journal::default() };
        let refuse = |device: &str, peer: &str, denial, detail: &str| {
            let who = Who { device, peer: peer.parse().expect("an address"), token_id: None };
            journal.connect_refused(&who, denial, detail);
        };
        refuse("lost", "192.0.2.9:1", Denial::Expired, "");
        for n in 0..100 {
            refuse("guessed", &format!("192.0.2.1:{}", n + 1), Denial::Banned, &n.to_string());
            refuse("guessed", &format!("[2001:db8::1]:{}", n + 1), Denial::Banned, &n.to_string());
        }
        let seen: Vec<_> = journal.last(None, 10).into_iter().map(|e| (e.tag, e.peer, e.detail)).collect();
        let entry = |tag: &str, peer: &str, detail: &str| (tag.to_owned(), peer.to_owned(), detail.to_owned());
        let banned = [entry("banned", "192.0.2.1:100", "99"), entry("banned", "[2001:db8::1]:100", "99")];
        assert_eq!(seen, [[entry("expired", "192.0.2.9:1", "")].as_slice(), &banned].concat());
    }

    #[test]
    fn an_entry_says_by_which_state_it_was_decided() {
        let journal = Journal::default();
        let who = Who { device: "a", peer: "127.0.0.1:5".parse().expect("an address"), token_id: None };
        for snapshot in [7, 8] {
            journal.decided_by(snapshot);
            journal.connect_refused(&who, Denial::Expired, "");
        }
        journal.closed(&who, CloseReason::Revoked, "");
        let by: Vec<u64> = journal.last(None, 10).iter().map(|entry| entry.snapshot).collect();
        assert_eq!(by, [7, 8, 8]);
    }

    #[test]
    fn azures_number_stands_beside_ours() {
        let journal = Journal::default();
        let who = Who { device: "a", peer: "127.0.0.1:5".parse().expect("an address"), token_id: None };
        journal.connect_refused(&who, Denial::SignatureInvalid, "");
        journal.connect_refused(&who, Denial::Draining, "");
        for reason in [CloseReason::Expired, CloseReason::TakenOver, CloseReason::KeepAlive] {
            journal.closed(&who, reason, "");
        }
        let numbers: Vec<_> = journal.last(None, 10).iter().map(|entry| entry.azure).collect();
        assert_eq!(numbers, [Some(40_103), None, Some(40_105), Some(400_027), None]);
    }

    #[test]
    fn what_a_peer_says_cannot_forge_a_log_line() {
        assert_eq!(printable("a\nb\x1b[31m"), "a\\u{a}b\\u{1b}[31m");
        assert!(printable(&"x".repeat(10_000)).len() < 400);
    }
}
