//! Answers of the API, as they are written here and read by the command line.

use std::sync::atomic::Ordering::Relaxed;

use serde::{Deserialize, Serialize};

use super::UpstreamStatus;
use crate::{file::FileVersion, id::DeviceId, journal, packet::ProtocolVersion, registry::Live, roster::Away};

/// Answer of `GET /v1/sessions`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionList {
    /// By device.
    pub sessions: Vec<SessionView>,
    /// How many there are, also where fewer are shown.
    pub total: usize,
    /// Those whose devices are away, by device.
    #[serde(default)]
    pub away: Vec<AwayView>,
    /// How many there are, also where fewer are shown.
    #[serde(default)]
    pub away_total: usize,
}

/// One session whose device is away.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AwayView {
    /// Who.
    pub device: String,
    /// `away`.
    pub state: String,
    /// Since when, RFC 3339.
    pub away_since: String,
    /// When the session ends, unless the device comes back; RFC 3339.
    pub ends_at: String,
    /// Messages that wait for the device.
    pub queued: usize,
    /// Filters that it has subscribed to.
    pub subscriptions: usize,
    /// Its home shard.
    pub shard: usize,
}

impl AwayView {
    /// As the roster has it.
    pub fn of(device: &DeviceId, away: &Away) -> Self {
        Self {
            device: device.to_string(),
            state: "away".into(),
            away_since: away.since.to_string(),
            ends_at: away.expires_at.to_string(),
            queued: away.messages.load(Relaxed),
            subscriptions: away.subscriptions,
            shard: away.shard,
        }
    }
}

/// One live session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionView {
    /// Who.
    pub device: String,
    /// `connected`.
    #[serde(default)]
    pub state: String,
    /// Where from.
    pub peer: String,
    /// `3.1.1` or `5.0`.
    pub mqtt: String,
    /// RFC 3339.
    pub connected_at: String,
    /// `exp` or `se` of its token, RFC 3339.
    pub expires_at: String,
    /// When it is cut: `expires_at` + clock skew.
    pub closes_at: String,
    /// `sas` or `jwt`.
    pub kind: String,
    /// Which key verified its token.
    pub key: String,
    /// Fingerprint of its token, as `{"token": "sha256:…"}` of the revocation list names it.
    pub token_id: String,
    /// `jti` of a JWT.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub jti: Option<String>,
    /// Its home shard.
    pub shard: usize,
}

impl SessionView {
    /// As the registry has it.
    pub fn of(live: &Live) -> Self {
        let grant = live.grant();
        Self {
            device: grant.device.to_string(),
            state: "connected".into(),
            peer: live.peer.to_string(),
            mqtt: match live.version {
                ProtocolVersion::V3_1_1 => "3.1.1".into(),
                ProtocolVersion::V5_0 => "5.0".into(),
            },
            connected_at: live.connected_at.to_string(),
            expires_at: grant.expires_at.to_string(),
            closes_at: grant.closes_at.to_string(),
            kind: grant.kind.as_str().into(),
            key: grant.key.to_string(),
            token_id: grant.token_id.to_string(),
            jti: grant.jti.as_deref().map(Into::into),
            shard: live.shard,
        }
    }
}

/// Answer of `GET /v1/refusals`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusalList {
    /// Oldest first.
    pub refusals: Vec<journal::Entry>,
}

/// Answer of `GET /v1/upstreams`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpstreamList {
    /// In the order of the configuration.
    pub upstreams: Vec<UpstreamStatus>,
}

/// Answer of `GET /v1/revocations/state`: the list's file as the gateway read it last, and what came of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListState {
    /// `revocations` under [gateway].
    pub file: String,
    /// Which state of the file was read; absent: it was never read, or was not there.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub read: Option<FileVersion>,
    /// Why that did not come into force, and what to do; absent: it is in force.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub refused: Option<String>,
    /// How many lines of it are no entries: while there is one, nothing is lifted.
    pub bad_lines: usize,
}

/// Answer of `DELETE /v1/revocations/{id}`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevocationRemoved {
    /// Names the entry.
    pub id: String,
    /// How many lines said it.
    pub lines: usize,
}

/// Answer of `POST /v1/revocations`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevocationAdded {
    /// Names the entry.
    pub id: String,
    /// Whether it was written: not where it was only asked what it would do.
    pub written: bool,
    /// Live sessions that it cuts.
    pub cuts: Vec<SessionView>,
    /// What it does to honest tokens: until when they are refused by it.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub notes: Vec<String>,
}
