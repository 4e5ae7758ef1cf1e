//! The gateway's clock, as an operator sees and resets it.

use std::time::Duration;

use axum::{Json, extract::State, http::StatusCode};
use serde::{Deserialize, Serialize};

use super::{
    Backend,
    api::{Failure, audited},
};
use crate::{
    audit::Action,
    clock::ClockStatus,
    time::{ClockFault, format_duration},
};

/// Answer of `GET /v1/clock`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockView {
    /// What decisions are made by, RFC 3339.
    pub now: String,
    /// What the machine says, RFC 3339.
    pub wall: String,
    /// Whether that is believed.
    pub believed: bool,
    /// Why not, in one sentence.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub fault: Option<String>,
}

/// Answer of `POST /v1/clock/reset`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockReset {
    /// What decisions were made by, RFC 3339.
    pub before: String,
    /// What they are made by from here on, RFC 3339.
    pub after: String,
}

impl ClockView {
    fn of(ClockStatus { now, wall, fault }: ClockStatus) -> Self {
        let sentence = fault.map(|fault| match fault {
            ClockFault::Ahead(by) => format!(
                "The machine's clock is {} ahead of what can be believed, and is followed slowly.",
                format_duration(whole_seconds(by))
            ),
            ClockFault::Behind(by) => format!(
                "The machine's clock is {} behind the highest time seen, which goes on.",
                format_duration(whole_seconds(by))
            ),
        });
        Self { now: now.to_string(), wall: wall.to_string(), believed: fault.is_none(), fault: sentence }
    }
}

fn whole_seconds(by: Duration) -> Duration {
    Duration::from_secs(by.as_secs())
}

/// `GET /v1/clock`.
pub(super) async fn clock(State(backend): State<Backend>) -> Json<ClockView> {
    Json(ClockView::of(backend.clock.status()))
}

/// `POST /v1/clock/reset`: the machine's clock is believed as it is.
pub(super) async fn reset(State(backend): State<Backend>) -> Result<Json<ClockReset>, Failure> {
    let clock = backend.clock.clone();
    let failed = |what: String| Failure::new(StatusCode::INTERNAL_SERVER_ERROR, what);
    let reset = tokio::task::spawn_blocking(move || clock.reset()).await;
    let reset = reset.map_err(|_| failed("the work was not done".into()))?;
    let detail = match &reset {
        Ok((before, after)) => format!("{before} became {after}"),
        Err(error) => format!("not kept on disk: {error}"),
    };
    audited(&backend, Action::ClockReset, "clock".into(), detail).await;
    let (before, after) = reset
        .map_err(|error| failed(format!("the clock is reset, but not kept: `state_dir` cannot be written: {error}")))?;
    Ok(Json(ClockReset { before: before.to_string(), after: after.to_string() }))
}
