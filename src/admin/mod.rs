//! The desk: what an operator asks a running gateway over HTTP, and what it is told to do.
//!
//! Health and metrics are for everybody who can reach the port and show no device. All under `/v1` asks for the bearer
//! token of `var/admin.token`. The listener is loopback by default.

mod api;
mod aside;
mod backend;
mod clock;
mod door;
mod explain;
mod guard;
mod keys;
mod ledger;
mod revocations;
mod sas_limit;
mod views;

use std::{future::Future, io, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::DefaultBodyLimit,
    middleware,
    routing::{delete, get, post},
};
use tokio::net::TcpListener;

use door::Door;

pub use aside::{AsideAsked, AsideDeed, AsideDone, AsideError, AsideList, AsideView};
pub use backend::{Backend, Control, Readiness, Reloaded, UpstreamState, UpstreamStatus};
pub use clock::{ClockReset, ClockView};
pub use explain::{Explained, ExplainedStep};
pub use keys::{DryRun, KeyList, KeyView, RotationAsked, RotationDone, RotationRefused, SlotView};
pub use ledger::{Keep, Ledger, LedgerError, Signature};
pub use revocations::{NewRevocation, Revocation, RevocationListing};
pub use sas_limit::honest_refused;
pub use views::{
    AwayView, ListState, RefusalList, RevocationAdded, RevocationRemoved, SessionList, SessionView, UpstreamList,
};

/// Answers until `shutdown` ends; then lets the requests that it has come to their end.
///
/// # Errors
/// Where the listener's own address cannot be told.
pub async fn serve(
    listener: TcpListener,
    backend: Backend,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let hosts = guard::Hosts::of(listener.local_addr()?);
    let meters = backend.meters.clone();
    let app = router(backend, hosts);
    let (ended, end) = tokio::sync::oneshot::channel();
    let shutdown = async move {
        shutdown.await;
        // Nobody listens where serving has failed.
        let _ = ended.send(());
    };
    let door = Door::new(listener, CONNECTIONS_MAX, CONNECTION_LIFETIME);
    let serving = async { axum::serve(door, app).with_graceful_shutdown(shutdown).await };
    let drained = async {
        let _ = end.await;
        tokio::time::sleep(DRAIN_TIMEOUT).await;
    };
    let upkeep = async {
        loop {
            tokio::time::sleep(UPKEEP_EVERY).await;
            meters.upkeep();
        }
    };
    tokio::select! {
        served = serving => served,
        () = drained => Ok(()),
        () = upkeep => Ok(()),
    }
}

fn router(backend: Backend, hosts: guard::Hosts) -> Router {
    let guarded = Router::new()
        .route("/v1/sessions", get(api::sessions))
        .route("/v1/sessions/{device}", delete(api::close_session))
        .route("/v1/refusals", get(api::refusals))
        .route("/v1/revocations", get(api::revocations).post(api::revoke))
        .route("/v1/revocations/state", get(api::list_state))
        .route("/v1/keys", get(keys::keys))
        .route("/v1/keys/{name}/rotate", post(keys::rotate))
        .route("/v1/revocations/{id}", delete(api::unrevoke))
        .route("/v1/tokens/explain", post(api::explain))
        .route("/v1/clock", get(clock::clock))
        .route("/v1/clock/reset", post(clock::reset))
        .route("/v1/upstreams", get(api::upstreams))
        .route("/v1/upstreams/{name}/aside", get(aside::list))
        .route("/v1/upstreams/{name}/aside/retry", post(aside::retry))
        .route("/v1/upstreams/{name}/aside/discard", post(aside::discard))
        .route("/v1/reload", post(api::reload))
        .route_layer(middleware::from_fn_with_state(backend.clone(), guard::require_token));
    Router::new()
        .route("/healthz", get(api::healthz))
        .route("/readyz", get(api::readyz))
        .route("/metrics", get(api::metrics))
        .merge(guarded)
        .fallback(api::not_found)
        .layer(middleware::from_fn_with_state(Arc::new(hosts), guard::require_host))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(backend)
}

/// A token is at most some KiB; nothing else that is sent here is larger.
const BODY_BYTES_MAX: usize = 64 << 10;
/// Operators and a scraper or two.
const CONNECTIONS_MAX: usize = 64;
/// No answer takes that long; a scraper that keeps its connection opens another.
const CONNECTION_LIFETIME: Duration = Duration::from_secs(60);
/// For requests that run when the gateway ends; one that is never finished does not hold it up.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);
/// The recorder keeps every sample of a histogram until it is folded.
const UPKEEP_EVERY: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests;
