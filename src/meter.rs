//! What is counted, under which name, and how a shard counts without a lock.
//!
//! Rare events are counted where they happen, with the macros of `metrics`. What happens for every message is
//! counted in a [`ShardMeter`], plain cells that one shard owns; [`ShardMeter::flush`] adds them up a few times a second.
//! No label holds a device or a topic.

use std::{
    cell::{Cell, RefCell},
    fmt::{self, Write},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use metrics::{Counter, counter, describe_counter, describe_gauge, describe_histogram, gauge};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

/// Makes the process count: installs the recorder that every metric goes to. Once a process.
///
/// # Errors
/// Where a recorder is installed already.
pub fn install() -> Result<Meters, AlreadyInstalled> {
    let recorder = recorder();
    let meters = Meters { prometheus: recorder.handle(), ack: Arc::default() };
    metrics::set_global_recorder(recorder).map_err(|_| AlreadyInstalled)?;
    describe_all();
    Ok(meters)
}

/// The process counts already: a second recorder would see nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AlreadyInstalled;

impl fmt::Display for AlreadyInstalled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a metrics recorder is installed already")
    }
}

impl std::error::Error for AlreadyInstalled {}

/// All that is counted, ready to be shown.
#[derive(Clone, Debug)]
pub struct Meters {
    prometheus: PrometheusHandle,
    ack: Arc<AckHistogram>,
}

impl Meters {
    /// The cells of one shard. `upstreams` are named in the order in which [`ShardMeter::forwarded`] counts them.
    pub fn shard(&self, upstreams: &[&str]) -> ShardMeter {
        let forwarded = upstreams.iter().map(|name| Cell64::new(counter!(FORWARDED, "upstream" => (*name).to_owned())));
        ShardMeter {
            accepted: Cell64::new(counter!(PUBLISHES, "result" => "accepted")),
            refused: Cell64::new(counter!(PUBLISHES, "result" => "refused")),
            forwarded: forwarded.collect(),
            dropped: RefCell::default(),
            ack_counts: std::array::from_fn(|_| Cell::new(0)),
            ack_micros: Cell::new(0),
            ack: self.ack.clone(),
        }
    }

    /// Apart from the process, for tests of who shows them.
    #[cfg(test)]
    pub(crate) fn apart() -> Self {
        Self { prometheus: recorder().handle(), ack: Arc::default() }
    }

    /// The text that `/metrics` answers with.
    pub fn render(&self) -> String {
        let mut text = self.prometheus.render();
        self.ack.render(&mut text);
        text
    }

    /// Folds what the recorder has collected; to be called every few seconds, so that it stays small without a reader.
    pub fn upkeep(&self) {
        self.prometheus.run_upkeep();
    }
}

/// What one shard counts for every message. Plain cells: it never leaves its core.
#[derive(Debug)]
pub struct ShardMeter {
    accepted: Cell64,
    refused: Cell64,
    forwarded: Vec<Cell64>,
    dropped: RefCell<Vec<(&'static str, Cell64)>>,
    ack_counts: [Cell<u64>; ACK_BUCKETS],
    ack_micros: Cell<u64>,
    ack: Arc<AckHistogram>,
}

impl ShardMeter {
    /// A PUBLISH was in scope and was taken.
    #[inline]
    pub fn publish_accepted(&self) {
        self.accepted.add(1);
    }

    /// A PUBLISH was refused.
    #[inline]
    pub fn publish_refused(&self) {
        self.refused.add(1);
    }

    /// A hub acknowledged `messages` of QoS 1, or was sent them at QoS 0. `upstream` counts as in [`Meters::shard`].
    #[inline]
    pub fn forwarded(&self, upstream: usize, messages: u64) {
        if let Some(cell) = self.forwarded.get(upstream) {
            cell.add(messages);
        }
    }

    /// So many messages were dropped; `reason` is a metric label, one of a few words.
    pub fn dropped(&self, reason: &'static str, messages: u64) {
        let mut dropped = self.dropped.borrow_mut();
        if let Some((_, cell)) = dropped.iter().find(|(name, _)| *name == reason) {
            return cell.add(messages);
        }
        let cell = Cell64::new(counter!(DROPPED, "reason" => reason));
        cell.add(messages);
        dropped.push((reason, cell));
    }

    /// A PUBACK went to a device so long after its PUBLISH was read.
    #[inline]
    pub fn acknowledged(&self, after: Duration) {
        let micros = u64::try_from(after.as_micros()).unwrap_or(u64::MAX);
        if let Some(count) = self.ack_counts.get(ack_bucket(micros)) {
            count.set(count.get() + 1);
        }
        self.ack_micros.set(self.ack_micros.get().saturating_add(micros));
    }

    /// Adds what was counted to what the process counts. For the shard's timer.
    pub fn flush(&self) {
        self.accepted.flush();
        self.refused.flush();
        self.forwarded.iter().for_each(Cell64::flush);
        self.dropped.borrow().iter().for_each(|(_, cell)| cell.flush());
        for (count, total) in self.ack_counts.iter().zip(&self.ack.counts) {
            if count.get() != 0 {
                total.fetch_add(count.take(), Relaxed);
            }
        }
        self.ack.micros.fetch_add(self.ack_micros.take(), Relaxed);
    }
}

impl Drop for ShardMeter {
    fn drop(&mut self) {
        self.flush();
    }
}

/// What an operator should look at by daylight, for as long as it lasts: `tollgate_alarm{kind}`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Alarm {
    /// The revocation list has a bad line, cannot be read, is refused, too old, or empty all of a sudden.
    List,
    /// `identities.toml` has a mistake: the last good one is in force.
    Identities,
    /// A certificate could not be loaded, or ends soon.
    Certificate,
    /// The wall clock jumped.
    Clock,
    /// The disk behind delivery takes nothing, or cannot be read.
    Spool,
    /// A hub cannot be reached.
    Hub,
    /// Keys are due and cannot be rotated.
    Keys,
    /// A key set cannot be fetched: the last good one is in force.
    KeySet,
    /// Sessions that outlive their connections cannot be written down, or some were lost at this start.
    Sessions,
    /// Two connect as one device and take the session from each other, again and again.
    Takeover,
}

impl Alarm {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::List,
        Self::Identities,
        Self::Certificate,
        Self::Clock,
        Self::Spool,
        Self::Hub,
        Self::Keys,
        Self::KeySet,
        Self::Sessions,
        Self::Takeover,
    ];

    /// Metric label.
    pub fn tag(self) -> &'static str {
        match self {
            Self::List => "list",
            Self::Identities => "identities",
            Self::Certificate => "certificate",
            Self::Clock => "clock",
            Self::Spool => "spool",
            Self::Hub => "hub",
            Self::Keys => "keys",
            Self::KeySet => "key_set",
            Self::Sessions => "sessions",
            Self::Takeover => "takeover",
        }
    }
}

/// Whether an alarm lasts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AlarmState {
    /// It lasts.
    On,
    /// It is over.
    Off,
}

/// Raises or ends an alarm.
pub fn alarm(kind: Alarm, state: AlarmState) {
    gauge!(ALARM, "kind" => kind.tag()).set(if state == AlarmState::On { 1.0 } else { 0.0 });
}

/// `tollgate_connects_total{result, denial}`: CONNECT decided; `result` is `admitted` or `refused`, `denial` its tag.
pub const CONNECTS: &str = "tollgate_connects_total";
/// `tollgate_bans_total`: times that an address was banned because of guesses.
pub const BANS: &str = "tollgate_bans_total";
/// `tollgate_banned_addresses`: addresses that are banned now.
pub const BANNED_ADDRESSES: &str = "tollgate_banned_addresses";
/// `tollgate_sessions`: live sessions.
pub const SESSIONS: &str = "tollgate_sessions";
/// `tollgate_sessions_away`: sessions whose devices are away.
pub const SESSIONS_AWAY: &str = "tollgate_sessions_away";
/// `tollgate_session_messages`: messages kept for sessions that outlive their connections.
pub const SESSION_MESSAGES: &str = "tollgate_session_messages";
/// `tollgate_session_bytes`: bytes of these.
pub const SESSION_BYTES: &str = "tollgate_session_bytes";
/// `tollgate_sessions_closed_total{reason}`.
pub const SESSIONS_CLOSED: &str = "tollgate_sessions_closed_total";
/// `tollgate_publishes_total{result}`: `accepted` or `refused`.
pub const PUBLISHES: &str = "tollgate_publishes_total";
/// `tollgate_forwarded_total{upstream}`.
pub const FORWARDED: &str = "tollgate_forwarded_total";
/// `tollgate_dropped_total{reason}`: messages of QoS 0.
pub const DROPPED: &str = "tollgate_dropped_total";
/// `tollgate_ack_seconds`: from a PUBLISH read to its PUBACK written.
pub const ACK_SECONDS: &str = "tollgate_ack_seconds";
/// `tollgate_revocation_apply_seconds`: from a change noticed to it in force.
pub const REVOCATION_APPLY_SECONDS: &str = "tollgate_revocation_apply_seconds";
/// `tollgate_revocation_deaf_seconds`: from a change in force to the last session concerned deaf, or told of its
/// narrower scope.
pub const REVOCATION_DEAF_SECONDS: &str = "tollgate_revocation_deaf_seconds";
/// `tollgate_revocation_cut_seconds`: from a change in force to a session concerned closed.
pub const REVOCATION_CUT_SECONDS: &str = "tollgate_revocation_cut_seconds";
/// `tollgate_alarm{kind}`: 1 while it lasts.
pub const ALARM: &str = "tollgate_alarm";
/// `tollgate_revocations`: entries in force.
pub const REVOCATIONS: &str = "tollgate_revocations";
/// `tollgate_revocation_list_age_seconds`: since the list in force was signed, or, where it is not, loaded.
pub const REVOCATION_LIST_AGE_SECONDS: &str = "tollgate_revocation_list_age_seconds";
/// `tollgate_certificate_not_after_seconds{file}`: when a listener's certificate ends, in seconds since 1970.
pub const CERTIFICATE_NOT_AFTER_SECONDS: &str = "tollgate_certificate_not_after_seconds";
/// `tollgate_key_set_fetches_total{result}`: `fetched`, `unchanged` or `failed`.
pub const KEY_SET_FETCHES: &str = "tollgate_key_set_fetches_total";
/// `tollgate_upstream_connected{upstream}`: connections of the pool that stand.
pub const UPSTREAM_CONNECTED: &str = "tollgate_upstream_connected";
/// `tollgate_upstream_earlier_connections{upstream}`: client ids of earlier starts under which the hub may keep something.
pub const UPSTREAM_EARLIER_CONNECTIONS: &str = "tollgate_upstream_earlier_connections";
/// `tollgate_upstream_duplicates_total{upstream}`: messages that the hub had when they came again, and said so.
pub const UPSTREAM_DUPLICATES: &str = "tollgate_upstream_duplicates_total";
/// `tollgate_upstream_inflight{upstream}`: messages sent and not acknowledged.
pub const UPSTREAM_INFLIGHT: &str = "tollgate_upstream_inflight";
/// `tollgate_spool_messages`: messages that wait on the disk.
pub const SPOOL_MESSAGES: &str = "tollgate_spool_messages";
/// `tollgate_spool_bytes`: bytes of the spool's files.
pub const SPOOL_BYTES: &str = "tollgate_spool_bytes";
/// `tollgate_spool_oldest_seconds`: since the oldest message that waits on the disk was received.
pub const SPOOL_OLDEST_SECONDS: &str = "tollgate_spool_oldest_seconds";
/// `tollgate_spool_set_aside`: messages that a hub would not take, or that waited for longer than `age_max`.
pub const SPOOL_SET_ASIDE: &str = "tollgate_spool_set_aside";
/// `tollgate_upstream_backlog{upstream}`: messages that wait on the disk for the hub.
pub const UPSTREAM_BACKLOG: &str = "tollgate_upstream_backlog";
/// `tollgate_upstream_oldest_seconds{upstream}`: since the oldest of them was received.
pub const UPSTREAM_OLDEST_SECONDS: &str = "tollgate_upstream_oldest_seconds";
/// `tollgate_upstream_window{upstream}`: messages that may be in flight, on all connections.
pub const UPSTREAM_WINDOW: &str = "tollgate_upstream_window";
/// `tollgate_upstream_errors_total{upstream,kind}`: connections to the hub that ended, or did not come about; `kind` is
/// `dial`, `lost`, `refused`, `session`, `stalled` or `too_much`.
pub const UPSTREAM_ERRORS: &str = "tollgate_upstream_errors_total";
/// `tollgate_set_aside_total{upstream,reason}`: messages that were set aside; `reason` is `closed` (the hub closes its
/// connection on it), `refused`, `too_large` or `too_old`.
pub const SET_ASIDE: &str = "tollgate_set_aside_total";
/// `tollgate_spool_syncs_total`: groups that were written to the disk.
pub const SPOOL_SYNCS: &str = "tollgate_spool_syncs_total";
/// `tollgate_spool_appended_bytes_total`: payloads of messages that were written to the disk.
pub const SPOOL_APPENDED_BYTES: &str = "tollgate_spool_appended_bytes_total";
/// `tollgate_spool_written_bytes_total`: everything that the spool wrote to the disk.
pub const SPOOL_WRITTEN_BYTES: &str = "tollgate_spool_written_bytes_total";
/// `tollgate_spool_torn_bytes_total`: bytes that a crash left half-written, cut at a start.
pub const SPOOL_TORN_BYTES: &str = "tollgate_spool_torn_bytes_total";
/// `tollgate_tokens_verified_total{kind, key_slot}`: `key_slot` is `primary`, `secondary`, or `jwt` for an issuer's key.
pub const TOKENS_VERIFIED: &str = "tollgate_tokens_verified_total";

/// `tollgate_tokens_issued_total{caller, kind}`: the token service; `caller` is `service`, `certificate` or `refresh`.
pub const TOKENS_ISSUED: &str = "tollgate_tokens_issued_total";
/// `tollgate_token_requests_refused_total{reason}`: the token service; `reason` is the `code` of the answer.
pub const TOKEN_REQUESTS_REFUSED: &str = "tollgate_token_requests_refused_total";

/// A count of one shard, and where it is added up.
#[derive(Debug)]
struct Cell64 {
    count: Cell<u64>,
    total: Counter,
}

impl Cell64 {
    fn new(total: Counter) -> Self {
        Self { count: Cell::new(0), total }
    }

    #[inline]
    fn add(&self, n: u64) {
        self.count.set(self.count.get() + n);
    }

    fn flush(&self) {
        match self.count.take() {
            0 => {}
            n => self.total.increment(n),
        }
    }
}

/// `tollgate_ack_seconds`, kept in fixed buckets: the recorder would keep every sample until somebody asks.
#[derive(Debug, Default)]
struct AckHistogram {
    counts: [AtomicU64; ACK_BUCKETS],
    micros: AtomicU64,
}

impl AckHistogram {
    fn render(&self, text: &mut String) {
        let mut total = 0;
        // Writing to a String cannot fail.
        let _ = writeln!(text, "# HELP {ACK_SECONDS} {ACK_HELP}\n# TYPE {ACK_SECONDS} histogram");
        for (bucket, count) in self.counts.iter().enumerate() {
            total += count.load(Relaxed);
            if bucket + 1 < ACK_BUCKETS {
                let bound = Duration::from_micros(ACK_FIRST_MICROS << bucket).as_secs_f64();
                let _ = writeln!(text, "{ACK_SECONDS}_bucket{{le=\"{bound}\"}} {total}");
            }
        }
        let sum = Duration::from_micros(self.micros.load(Relaxed)).as_secs_f64();
        let _ = writeln!(text, "{ACK_SECONDS}_bucket{{le=\"+Inf\"}} {total}");
        let _ = writeln!(text, "{ACK_SECONDS}_sum {sum}\n{ACK_SECONDS}_count {total}\n");
    }
}

/// The bucket of a time: bounds double, so that it is found without a search.
#[inline]
fn ack_bucket(micros: u64) -> usize {
    // A bound belongs to the bucket below it (`le`).
    let above = (micros.saturating_sub(1) / ACK_FIRST_MICROS).checked_ilog2().map_or(0, |log| log as usize + 1);
    above.min(ACK_BUCKETS - 1)
}

fn recorder() -> PrometheusRecorder {
    let with_bounds = |builder: PrometheusBuilder, name: &str| {
        let set = builder.set_buckets_for_metric(Matcher::Full(name.into()), CUT_BOUNDS);
        set.expect("invariant: CUT_BOUNDS is not empty, which is all that is asked of it")
    };
    [REVOCATION_APPLY_SECONDS, REVOCATION_DEAF_SECONDS, REVOCATION_CUT_SECONDS]
        .into_iter()
        .fold(PrometheusBuilder::new(), with_bounds)
        .build_recorder()
}

/// Help texts; and a 0 for what has not happened yet, so that an alarm rule finds the series.
fn describe_all() {
    describe_counter!(CONNECTS, "CONNECT packets decided, by result and by why not.");
    describe_counter!(BANS, "Times that an address was banned because of guesses.");
    describe_gauge!(BANNED_ADDRESSES, "Addresses that are banned now.");
    describe_gauge!(SESSIONS, "Live sessions.");
    describe_gauge!(SESSIONS_AWAY, "Sessions whose devices are away.");
    describe_gauge!(SESSION_MESSAGES, "Messages kept for sessions that outlive their connections.");
    describe_gauge!(SESSION_BYTES, "Bytes of messages kept for sessions that outlive their connections.");
    describe_counter!(SESSIONS_CLOSED, "Sessions that ended, by reason.");
    describe_counter!(PUBLISHES, "PUBLISH packets of devices, by result.");
    describe_counter!(FORWARDED, "Messages that a hub acknowledged, or was sent at QoS 0.");
    describe_counter!(DROPPED, "Messages of QoS 0 that were dropped, by reason.");
    describe_histogram!(REVOCATION_APPLY_SECONDS, "From a change noticed to it in force for newcomers.");
    describe_histogram!(REVOCATION_DEAF_SECONDS, "From a change in force to the last session concerned deaf.");
    describe_histogram!(REVOCATION_CUT_SECONDS, "From a change in force to a session concerned closed.");
    describe_gauge!(ALARM, "1 while it lasts.");
    describe_gauge!(REVOCATIONS, "Entries of the revocation list in force.");
    describe_gauge!(CERTIFICATE_NOT_AFTER_SECONDS, "When a listener's certificate ends, in seconds since 1970.");
    describe_gauge!(
        REVOCATION_LIST_AGE_SECONDS,
        "Seconds since the revocation list in force was signed, or else loaded."
    );
    describe_counter!(KEY_SET_FETCHES, "Key sets asked for at `jwks_url`, by result.");
    describe_gauge!(UPSTREAM_CONNECTED, "Connections of the pool that stand, by hub.");
    describe_gauge!(
        UPSTREAM_EARLIER_CONNECTIONS,
        "Client ids of earlier starts under which the hub may keep something, by hub."
    );
    describe_counter!(UPSTREAM_DUPLICATES, "Messages that the hub already had when they were sent again, by hub.");
    describe_gauge!(UPSTREAM_INFLIGHT, "Messages sent to a hub and not acknowledged.");
    describe_counter!(TOKENS_ISSUED, "Tokens that the token service issued, by who asked and by kind.");
    describe_counter!(TOKEN_REQUESTS_REFUSED, "Requests that the token service refused, by reason.");
    describe_gauge!(SPOOL_MESSAGES, "Messages that wait on the disk.");
    describe_gauge!(SPOOL_BYTES, "Bytes of the spool's files.");
    describe_gauge!(SPOOL_OLDEST_SECONDS, "Seconds since the oldest message that waits on the disk was received.");
    describe_gauge!(SPOOL_SET_ASIDE, "Messages kept that a hub would not take, or that waited for too long.");
    describe_gauge!(UPSTREAM_BACKLOG, "Messages that wait on the disk for a hub.");
    describe_gauge!(UPSTREAM_OLDEST_SECONDS, "Since the oldest message that waits for a hub was received.");
    describe_gauge!(UPSTREAM_WINDOW, "Messages that may be in flight to a hub.");
    describe_counter!(UPSTREAM_ERRORS, "Connections to a hub that ended or did not come about, by kind.");
    describe_counter!(SET_ASIDE, "Messages that were set aside.");
    describe_counter!(SPOOL_SYNCS, "Groups of messages that were written to the disk.");
    describe_counter!(SPOOL_TORN_BYTES, "Bytes that a crash left half-written, cut at a start.");
    describe_counter!(TOKENS_VERIFIED, "Tokens whose signature was verified, by kind and slot of the key.");
    for kind in Alarm::ALL {
        alarm(kind, AlarmState::Off);
    }
    for result in ["accepted", "refused"] {
        counter!(PUBLISHES, "result" => result).increment(0);
    }
    counter!(BANS).increment(0);
    gauge!(BANNED_ADDRESSES).set(0.0);
    gauge!(SESSIONS).set(0.0);
}

const ACK_HELP: &str = "From a PUBLISH of QoS 1 read to its PUBACK written.";

/// 64 µs: below it no hub answers over a socket.
const ACK_FIRST_MICROS: u64 = 64;
/// 64 µs doubled up to 8.4 s, and all above.
const ACK_BUCKETS: usize = 19;
/// Seconds; the goal is 10 ms for up to 100 sessions, and 25,000 sessions a second beyond.
const CUT_BOUNDS: &[f64] = &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0];

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts into a recorder of its own, and answers with what `/metrics` would show.
    fn counted(count: impl FnOnce(&Meters)) -> String {
        let recorder = recorder();
        let meters = Meters { prometheus: recorder.handle(), ack: Arc::default() };
        metrics::with_local_recorder(&recorder, || {
            describe_all();
            count(&meters);
        });
        meters.render()
    }

    #[test]
    fn what_a_shard_counts_shows_after_a_flush() {
        let text = counted(|meters| {
            let shard = meters.shard(&["hub", "lake"]);
            shard.publish_accepted();
            shard.publish_accepted();
            shard.publish_refused();
            shard.forwarded(1, 7);
            shard.forwarded(9, 1);
            shard.dropped("hub_away", 1);
            shard.dropped("hub_away", 1);
            assert!(meters.render().contains("tollgate_publishes_total{result=\"accepted\"} 0"), "not before");
            shard.flush();
            shard.publish_accepted();
        });
        for line in [
            "tollgate_publishes_total{result=\"accepted\"} 3",
            "tollgate_publishes_total{result=\"refused\"} 1",
            "tollgate_forwarded_total{upstream=\"lake\"} 7",
            "tollgate_dropped_total{reason=\"hub_away\"} 2",
            "tollgate_alarm{kind=\"list\"} 0",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
        }
    }

    #[test]
    fn acknowledgements_fall_into_buckets_that_hold_their_bound() {
        let text = counted(|meters| {
            let shard = meters.shard(&[]);
            for micros in [0, 64, 65, 128, 129, 10_000_000] {
                shard.acknowledged(Duration::from_micros(micros));
            }
        });
        for line in [
            "tollgate_ack_seconds_bucket{le=\"0.000064\"} 2",
            "tollgate_ack_seconds_bucket{le=\"0.000128\"} 4",
            "tollgate_ack_seconds_bucket{le=\"0.000256\"} 5",
            "tollgate_ack_seconds_bucket{le=\"8.388608\"} 5",
            "tollgate_ack_seconds_bucket{le=\"+Inf\"} 6",
            "tollgate_ack_seconds_count 6",
            "tollgate_ack_seconds_sum 10.000386",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
        }
    }

    #[test]
    fn an_alarm_lasts_until_it_is_over() {
        let text = counted(|_| {
            alarm(Alarm::Hub, AlarmState::On);
            alarm(Alarm::List, AlarmState::On);
            alarm(Alarm::List, AlarmState::Off);
        });
        assert!(text.contains("tollgate_alarm{kind=\"hub\"} 1") && text.contains("tollgate_alarm{kind=\"list\"} 0"));
    }
}
