//! What the desk speaks to. It sees the tables that are shared, and asks the shards through [`Control`].

use std::{fmt, path::PathBuf, sync::Arc};

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{
    AsideAsked, AsideDeed, AsideDone, AsideError, AsideList, AwayView, DryRun, KeyList, ListState, RotationAsked,
    RotationDone, RotationRefused,
};
use crate::{
    audit::Audit, clock::Clock, gate::Gate, id::DeviceId, journal::Journal, meter::Meters, registry::Registry,
};

/// All that the desk needs of a running gateway. Cheap to clone.
#[derive(Clone)]
pub struct Backend {
    /// `name` under [gateway].
    pub gateway: Arc<str>,
    /// The bearer token, from `var/admin.token`.
    pub token: Arc<Zeroizing<String>>,
    /// Identities, rules and list in force.
    pub gate: Arc<Gate>,
    /// Live sessions.
    pub registry: Arc<Registry>,
    /// The last refusals and cuts.
    pub journal: Arc<Journal>,
    /// What time it is.
    pub clock: Arc<Clock>,
    /// What is counted.
    pub meters: Meters,
    /// Where every write is recorded.
    pub audit: Audit,
    /// The revocation list, `revocations` under [gateway].
    pub revocations: PathBuf,
    /// What the gateway added to it by itself, in the state directory.
    pub local_revocations: PathBuf,
    /// What only the shards and the wiring can do.
    pub control: Arc<dyn Control>,
}

impl fmt::Debug for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Backend").field("gateway", &self.gateway).finish_non_exhaustive()
    }
}

/// What the desk cannot do itself. Called on the desk's own thread: no call may wait for longer than a blink.
pub trait Control: Send + Sync {
    /// Ends the session of a device, as [`Administrative`](crate::denial::CloseReason::Administrative) where the device is
    /// connected; says whether there was one.
    fn close_session(&self, device: &DeviceId) -> bool;

    /// Sessions whose devices are away: all, or that of one device.
    fn away(&self, device: Option<&str>) -> Vec<AwayView>;

    /// Sets the metrics of what is a state and no event, as it is now.
    fn set_gauges(&self);

    /// How each hub fares, in the order of the configuration.
    fn upstreams(&self) -> Vec<UpstreamStatus>;

    /// Messages that are set aside for a hub, oldest first. Waits for the disk: not for the desk's own thread.
    ///
    /// # Errors
    /// [`AsideError`].
    fn aside(&self, hub: &str, count_max: usize) -> Result<AsideList, AsideError>;

    /// Sends messages that are set aside again, or throws them away. Waits for the disk: not for the desk's own thread.
    ///
    /// # Errors
    /// [`AsideError`].
    fn decide_aside(&self, hub: &str, asked: &AsideAsked, deed: AsideDeed) -> Result<AsideDone, AsideError>;

    /// Whether devices can be served, and if not, why.
    fn readiness(&self) -> Readiness;

    /// The revocation list's file as it was read last, and what came of it.
    fn list_state(&self) -> ListState;

    /// Reads identities, list and certificates again.
    ///
    /// # Errors
    /// Every mistake that was found; what has mistakes is not applied.
    fn reload(&self) -> Result<Reloaded, Vec<String>>;

    /// Every key, with its use. Reads files: not for the desk's own thread.
    ///
    /// # Errors
    /// A sentence that says why they cannot be told.
    fn keys(&self) -> Result<KeyList, String>;

    /// Rotates the keys of an owner and puts them in force, or says what that would do. Writes files: not for the desk's
    /// own thread.
    ///
    /// # Errors
    /// [`RotationRefused`].
    fn rotate(
        &self,
        name: &str,
        asked: RotationAsked,
        dry_run: DryRun,
        by: &str,
    ) -> Result<RotationDone, RotationRefused>;
}

/// Answer of `/readyz`. It names no device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Readiness {
    /// A sentence for each thing that is missing; empty: ready.
    pub missing: Vec<String>,
}

/// What a reload applied.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reloaded {
    /// A sentence for each thing that was read and applied.
    pub applied: Vec<String>,
    /// What is worth knowing and stops nothing.
    pub warnings: Vec<String>,
}

/// How one hub fares.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpstreamStatus {
    /// `name` of the `[[upstream]]`.
    pub name: String,
    /// `embedded` or `mqtt`.
    pub kind: String,
    /// Where it is: `host:port`, or `in this process`.
    pub address: String,
    /// Whether the pool reaches it.
    pub state: UpstreamState,
    /// Connections of the pool that stand.
    pub connected: usize,
    /// Connections that should stand.
    pub connections: usize,
    /// Messages that may be in flight, on all connections.
    pub window: usize,
    /// Messages sent and not acknowledged.
    pub inflight: usize,
    /// Messages of QoS 1 that the hub acknowledged in the last second or so.
    #[serde(default)]
    pub messages_per_second: u64,
    /// Bytes of messages that are kept until the hub has acknowledged them.
    pub backlog: usize,
    /// Whether messages go to the disk first: the hub is away, or slower than `spill_after`.
    #[serde(default)]
    pub spooling: bool,
    /// Messages that wait on the disk.
    #[serde(default)]
    pub spooled: u64,
    /// Since the oldest of them was received.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub oldest_seconds: Option<u64>,
    /// Messages kept that the hub would not take, or that waited for longer than `age_max`.
    #[serde(default)]
    pub set_aside: u64,
    /// What the disk refuses, while it does.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub spool_error: Option<String>,
    /// The last error of a connection, and when (RFC 3339).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub last_error: Option<String>,
}

/// Whether the pool reaches a hub.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UpstreamState {
    /// Every connection stands.
    Up,
    /// Some connections stand.
    Partial,
    /// None stands.
    Down,
}

impl UpstreamState {
    /// By how many of the connections stand.
    pub fn of(connected: usize, connections: usize) -> Self {
        match connected {
            0 => Self::Down,
            n if n >= connections => Self::Up,
            _ => Self::Partial,
        }
    }

    /// `up`, `partial` or `down`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Partial => "partial",
            Self::Down => "down",
        }
    }
}
