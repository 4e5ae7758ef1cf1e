//! Keys as the desk shows them: fingerprints and times, never a key.

use axum::{
    Json,
    extract::{
        Path, Query, State,
        rejection::{JsonRejection, QueryRejection},
    },
    http::StatusCode,
};
use serde::{Deserialize, Serialize};

use super::{
    Backend, SessionView,
    api::{BY, Failure},
};

/// Answer of `GET /v1/keys`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyList {
    /// What signs for many comes first: policies, groups, issuers, devices.
    pub keys: Vec<KeyView>,
    /// How many there are, also where fewer are shown.
    pub total: usize,
    /// Since when uses are counted (RFC 3339): the start of the gateway. `None`: no gateway was asked.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub counted_since: Option<String>,
}

/// The keys of one owner.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyView {
    /// `device:ID`, `policy:NAME`, `group:PREFIX` or `issuer:NAME/KID`.
    pub name: String,
    /// `sas`, `jwt` (a shared secret) or `jwt, public` (which its issuer, or the device, rotates).
    pub kind: String,
    /// Of a device's public key: what stands behind the `/` in `device:ID/KID`, the name by which it is revoked.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub kid: Option<String>,
    /// From when on a public key of a device is good (RFC 3339).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub not_before: Option<String>,
    /// Until when.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub not_after: Option<String>,
    /// Signs new tokens.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub primary: Option<SlotView>,
    /// Still verifies old ones.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub secondary: Option<SlotView>,
    /// The longest life of their tokens, in seconds.
    pub token_lifetime_max_seconds: u64,
    /// For how long a token is admitted after its end, in seconds: `clock_skew`, the longest of all listeners.
    #[serde(default)]
    pub clock_skew_seconds: u64,
    /// `rotate_every`, in seconds.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub rotate_every_seconds: Option<u64>,
    /// When they were rotated last (RFC 3339), as far as this gateway knows.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub rotated_at: Option<String>,
    /// By whom.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub rotated_by: Option<String>,
    /// When they are rotated next (RFC 3339).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub next_rotation: Option<String>,
}

/// One key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotView {
    /// First 8 bytes of the SHA-256 of the key, in hexadecimal digits.
    pub fingerprint: String,
    /// Live sessions whose token it verified.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub sessions: Option<usize>,
    /// Of a secondary key: whose sessions these are, the first of them by name.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub devices: Vec<String>,
    /// When a token that it signed was admitted last (RFC 3339).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub last_used: Option<String>,
    /// When the last of the tokens that were admitted by it is dead: its end and the clock skew (RFC 3339).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub tokens_end: Option<String>,
}

impl SlotView {
    /// A key that nobody was seen to use.
    pub fn of(fingerprint: u64) -> Self {
        Self { fingerprint: format!("{fingerprint:016x}"), ..Self::default() }
    }
}

/// Body of `POST /v1/keys/{name}/rotate`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RotationAsked {
    /// Replace both keys, after a compromise.
    pub both: bool,
    /// Take out entries of the revocation list that name a slot, after both keys were replaced.
    pub lift: bool,
}

/// Answer of `POST /v1/keys/{name}/rotate`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RotationDone {
    /// Whose keys.
    pub name: String,
    /// Whether they were rotated: not where it was only asked what it would do.
    pub rotated: bool,
    /// Fingerprint of the new primary key.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub primary: Option<String>,
    /// Fingerprint of the secondary key now.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub secondary: Option<String>,
    /// Files that were written.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub files: Vec<String>,
    /// Live sessions that it cuts: those whose key it removes.
    pub cuts: Vec<SessionView>,
}

/// Whether something is done, or only asked what it would do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DryRun {
    /// Only asked.
    Yes,
    /// Done.
    No,
}

/// Why keys were not rotated, in a sentence that says what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RotationRefused {
    /// Nobody has that name.
    Unknown(String),
    /// It would do harm, or cannot be done to these keys. Nothing was changed.
    Refused(String),
    /// A file could not be read or written.
    Failed(String),
}

/// `GET /v1/keys?name=&last=`.
pub(super) async fn keys(
    State(backend): State<Backend>,
    asked: Result<Query<Which>, QueryRejection>,
) -> Result<Json<KeyList>, Failure> {
    let Query(which) = asked?;
    let control = backend.control.clone();
    let listed = tokio::task::spawn_blocking(move || control.keys()).await.map_err(|_| undone())?;
    let mut list = listed.map_err(|why| Failure::new(StatusCode::SERVICE_UNAVAILABLE, why))?;
    if let Some(name) = &which.name {
        list.keys.retain(|key| key.name == *name);
        list.total = list.keys.len();
    }
    list.keys.truncate(which.last.unwrap_or(KEYS_SHOWN));
    Ok(Json(list))
}

/// `POST /v1/keys/{name}/rotate?dry_run=`.
pub(super) async fn rotate(
    State(backend): State<Backend>,
    Path(name): Path<String>,
    how: Result<Query<HowToRotate>, QueryRejection>,
    asked: Result<Json<RotationAsked>, JsonRejection>,
) -> Result<Json<RotationDone>, Failure> {
    let (Query(how), Json(asked)) = (how?, asked?);
    let dry_run = if how.dry_run { DryRun::Yes } else { DryRun::No };
    let control = backend.control.clone();
    let rotated = tokio::task::spawn_blocking(move || control.rotate(&name, asked, dry_run, BY)).await;
    match rotated.map_err(|_| undone())? {
        Ok(done) => Ok(Json(done)),
        Err(RotationRefused::Unknown(why)) => Err(Failure::new(StatusCode::NOT_FOUND, why)),
        Err(RotationRefused::Refused(why)) => Err(Failure::new(StatusCode::CONFLICT, why)),
        Err(RotationRefused::Failed(why)) => Err(Failure::new(StatusCode::INTERNAL_SERVER_ERROR, why)),
    }
}

/// Of whom, and how many.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Which {
    name: Option<String>,
    last: Option<usize>,
}

/// Whether a rotation is only asked what it would do.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct HowToRotate {
    dry_run: bool,
}

fn undone() -> Failure {
    Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "the work was not done")
}

/// What signs for many comes first; more on demand.
const KEYS_SHOWN: usize = 1000;
