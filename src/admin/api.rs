//! One function a request.

use axum::{
    Json,
    extract::{
        Path, Query, State,
        rejection::{JsonRejection, QueryRejection},
    },
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use metrics::gauge;
use serde::Deserialize;
use serde_json::json;

use super::{
    Backend, Explained, Ledger, LedgerError, ListState, NewRevocation, RefusalList, Revocation, RevocationAdded,
    RevocationListing, RevocationRemoved, SessionList, SessionView, UpstreamList, explain::Question, honest_refused,
};
use crate::{audit::Action, id::DeviceId, meter};

/// `GET /healthz`: the process answers.
pub(super) async fn healthz() -> Json<serde_json::Value> {
    Json(json!({ "status": "alive" }))
}

/// `GET /readyz`: 200 when devices can be served, else 503 and what is missing.
pub(super) async fn readyz(State(backend): State<Backend>) -> Response {
    let missing = backend.control.readiness().missing;
    let status = if missing.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(json!({ "ready": missing.is_empty(), "missing": missing }))).into_response()
}

/// `GET /metrics`: Prometheus' text format. What is a state and no event is read now.
pub(super) async fn metrics(State(backend): State<Backend>) -> Response {
    backend.control.set_gauges();
    gauge!(meter::SESSIONS).set(backend.registry.len() as f64);
    for hub in backend.control.upstreams() {
        gauge!(meter::UPSTREAM_CONNECTED, "upstream" => hub.name.clone()).set(hub.connected as f64);
        gauge!(meter::UPSTREAM_INFLIGHT, "upstream" => hub.name).set(hub.inflight as f64);
    }
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], backend.meters.render()).into_response()
}

/// `GET /v1/sessions?device=&last=`: live sessions, and those whose devices are away, by device.
pub(super) async fn sessions(
    State(backend): State<Backend>,
    asked: Result<Query<Which>, QueryRejection>,
) -> Result<Json<SessionList>, Failure> {
    let Query(which) = asked?;
    if let Some(device) = &which.device {
        let sessions: Vec<_> =
            backend.registry.within_device(device).iter().map(|live| SessionView::of(live)).collect();
        let away = backend.control.away(Some(device));
        return Ok(Json(SessionList { total: sessions.len(), sessions, away_total: away.len(), away }));
    }
    let mut sessions = Vec::new();
    backend.registry.for_each(|live| sessions.push(live.clone()));
    sessions.sort_by(|a, b| a.device().cmp(b.device()));
    let at_most = which.last.unwrap_or(SESSIONS_SHOWN);
    let shown = sessions.iter().take(at_most).map(|live| SessionView::of(live)).collect();
    let mut away = backend.control.away(None);
    away.sort_by(|a, b| a.device.cmp(&b.device));
    let away_total = away.len();
    away.truncate(at_most);
    Ok(Json(SessionList { sessions: shown, total: sessions.len(), away, away_total }))
}

/// `DELETE /v1/sessions/{device}`.
pub(super) async fn close_session(
    State(backend): State<Backend>,
    Path(device): Path<String>,
) -> Result<Json<serde_json::Value>, Failure> {
    let device =
        DeviceId::try_from(&*device).map_err(|error| Failure::new(StatusCode::BAD_REQUEST, error.to_string()))?;
    if !backend.control.close_session(&device) {
        return Err(Failure::new(StatusCode::NOT_FOUND, format!("{device} has no session")));
    }
    audited(&backend, Action::SessionClosed, format!("device:{device}"), "it may connect again".into()).await;
    Ok(Json(json!({ "device": device.as_str(), "closed": true })))
}

/// `GET /v1/refusals?device=&last=`: the last refusals and cuts, oldest first.
pub(super) async fn refusals(
    State(backend): State<Backend>,
    asked: Result<Query<Which>, QueryRejection>,
) -> Result<Json<RefusalList>, Failure> {
    let Query(which) = asked?;
    let refusals = backend.journal.last(which.device.as_deref(), which.last.unwrap_or(REFUSALS_SHOWN));
    Ok(Json(RefusalList { refusals }))
}

/// `GET /v1/revocations?last=`: entries of the file, each with its id.
pub(super) async fn revocations(
    State(backend): State<Backend>,
    asked: Result<Query<Which>, QueryRejection>,
) -> Result<Json<RevocationListing>, Failure> {
    let Query(which) = asked?;
    let last = which.last.unwrap_or(REVOCATIONS_SHOWN);
    let (ledger, local) = (Ledger::new(backend.revocations), Ledger::new(backend.local_revocations));
    Ok(Json(blocking(move || ledger.list(last)?.and_local(&local, last)).await?))
}

/// `GET /v1/revocations/state`: the list's file as it was read last, and what came of it.
pub(super) async fn list_state(State(backend): State<Backend>) -> Json<ListState> {
    Json(backend.control.list_state())
}

/// `POST /v1/revocations?dry_run=`: appends an entry; answers its id and which live sessions it cuts. With
/// `dry_run=true` nothing is written.
pub(super) async fn revoke(
    State(backend): State<Backend>,
    asked: Result<Query<HowToRevoke>, QueryRejection>,
    entry: Result<Json<NewRevocation>, JsonRejection>,
) -> Result<Json<RevocationAdded>, Failure> {
    let (Query(how), Json(entry)) = (asked?, entry?);
    let (now, dry_run) = (backend.clock.now(), how.dry_run);
    let at = entry.at.clone().or_else(|| Some(now.to_string()));
    let revocation = Revocation::new(&NewRevocation { at, ..entry.clone() })
        .map_err(|what| Failure::new(StatusCode::UNPROCESSABLE_ENTITY, what))?;
    let identities = backend.gate.identities();
    let notes = honest_refused(&entry, backend.gate.config(), identities.as_deref(), now)
        .map_err(|why| Failure::new(StatusCode::CONFLICT, why))?;
    let cuts = revocation.cuts(&backend.registry, now);
    if !dry_run {
        let (ledger, line) = (writable(&backend)?, revocation.line.clone());
        blocking(move || ledger.append(&line)).await?;
        let detail = format!("{}, {} live sessions", revocation.line, cuts.len());
        audited(&backend, Action::RevocationAdded, format!("revocation:{}", revocation.id), detail).await;
    }
    Ok(Json(RevocationAdded { id: revocation.id, written: !dry_run, cuts, notes }))
}

/// `DELETE /v1/revocations/{id}`: takes an entry out of the list, by its id or, where two have the same, a longer
/// beginning of its hash.
pub(super) async fn unrevoke(
    State(backend): State<Backend>,
    Path(id): Path<String>,
) -> Result<Json<RevocationRemoved>, Failure> {
    if id.len() < ENTRY_ID_DIGITS || !id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(Failure::new(StatusCode::BAD_REQUEST, "an id has at least 8 hexadecimal digits"));
    }
    let (local, asked) = (Ledger::new(backend.local_revocations.clone()), id.clone());
    let looked_in = local.clone();
    let added = blocking(move || looked_in.named(&asked)).await?;
    let (ledger, found) = if added.is_empty() {
        let (ledger, asked) = (writable(&backend)?, id.clone());
        let looked_in = ledger.clone();
        (ledger, blocking(move || looked_in.named(&asked)).await?)
    } else {
        (local, added)
    };
    let [long_id] = <[String; 1]>::try_from(found).map_err(|found| match found.len() {
        0 => Failure::new(StatusCode::NOT_FOUND, format!("the list has no entry {id}")),
        _ => Failure::new(StatusCode::CONFLICT, format!("several entries begin with {id}: {}", found.join(", "))),
    })?;
    let lines = blocking(move || ledger.remove(&long_id, None)).await?;
    audited(&backend, Action::RevocationRemoved, format!("revocation:{id}"), format!("{lines} lines")).await;
    Ok(Json(RevocationRemoved { id, lines }))
}

/// `POST /v1/tokens/explain`: a token and a device in, every step of the decision out.
pub(super) async fn explain(
    State(backend): State<Backend>,
    asked: Result<Json<Question>, JsonRejection>,
) -> Result<Json<Explained>, Failure> {
    let Json(Question { token, device, profile }) = asked?;
    let device = device.as_deref().map(DeviceId::try_from).transpose();
    let device = device.map_err(|error| Failure::new(StatusCode::BAD_REQUEST, error.to_string()))?;
    let in_force = backend.gate.identities().zip(backend.gate.revocations());
    let (identities, list) = in_force.ok_or_else(|| {
        Failure::new(StatusCode::SERVICE_UNAVAILABLE, "identities or the revocation list are not loaded")
    })?;
    let profile = profile.map_or(Ok(backend.gate.profile()), |name| name.parse());
    let profile = profile.map_err(|what: String| Failure::new(StatusCode::BAD_REQUEST, what))?;
    let now = backend.clock.now();
    let rules = (identities.keyring(), backend.gate.rules(profile), &*list);
    let explained = Explained::of(&token, device.as_ref(), rules, now);
    let (audit, asked) = (backend.audit.clone(), identities.clone());
    // The log is a file: not on a thread that answers others.
    let with_rotations = move || explained.with_rotations(&token, asked.keyring(), &audit);
    tokio::task::spawn_blocking(with_rotations)
        .await
        .map(Json)
        .map_err(|error| Failure::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
}

/// `GET /v1/upstreams`.
pub(super) async fn upstreams(State(backend): State<Backend>) -> Json<UpstreamList> {
    Json(UpstreamList { upstreams: backend.control.upstreams() })
}

/// `POST /v1/reload`: files are read again; 422 and every mistake where there is one.
pub(super) async fn reload(State(backend): State<Backend>) -> Response {
    match backend.control.reload() {
        Ok(reloaded) => {
            audited(&backend, Action::Reloaded, "files".into(), reloaded.applied.join(", ")).await;
            Json(reloaded).into_response()
        }
        Err(mistakes) => {
            let detail = format!("{} mistakes: what has mistakes is not applied", mistakes.len());
            audited(&backend, Action::Reloaded, "files".into(), detail).await;
            let body = json!({ "error": "what has mistakes is not applied", "mistakes": mistakes });
            (StatusCode::UNPROCESSABLE_ENTITY, Json(body)).into_response()
        }
    }
}

/// Anything else.
pub(super) async fn not_found() -> Failure {
    Failure::new(StatusCode::NOT_FOUND, "no such path")
}

/// Of which device, and how many.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Which {
    device: Option<String>,
    last: Option<usize>,
}

/// Whether a revocation is only asked what it would do.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct HowToRevoke {
    dry_run: bool,
}

/// A request that is not answered as asked, and why: `{"error": …}`.
#[derive(Debug)]
pub(super) struct Failure {
    status: StatusCode,
    error: String,
}

impl Failure {
    pub(super) fn new(status: StatusCode, error: impl Into<String>) -> Self {
        Self { status, error: error.into() }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (self.status, Json(json!({ "error": self.error }))).into_response()
    }
}

impl From<QueryRejection> for Failure {
    fn from(rejection: QueryRejection) -> Self {
        Self::new(rejection.status(), rejection.body_text())
    }
}

impl From<LedgerError> for Failure {
    fn from(error: LedgerError) -> Self {
        tracing::warn!(%error, "revocation list");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
    }
}

impl From<JsonRejection> for Failure {
    fn from(rejection: JsonRejection) -> Self {
        Self::new(rejection.status(), rejection.body_text())
    }
}

/// The list, where it may be changed: the gateway has no key that could sign it again.
fn writable(backend: &Backend) -> Result<Ledger, Failure> {
    let ledger = Ledger::new(backend.revocations.clone());
    let in_force = backend.gate.revocations();
    if ledger.is_signed() || in_force.is_some_and(|list| list.stamp().is_some()) {
        let what = "the list is signed: change it where it is signed, or with `tollgate revoke … --key-file FILE`";
        return Err(Failure::new(StatusCode::CONFLICT, what));
    }
    Ok(ledger)
}

/// Records what was done by a request, beside the desk's thread.
pub(super) async fn audited(backend: &Backend, action: Action, object: String, detail: String) {
    let (audit, now) = (backend.audit.clone(), backend.clock.now());
    let noted = move || audit.note(action, BY, &object, &detail, now);
    // It logs its own failure, and does not panic.
    let _ = tokio::task::spawn_blocking(noted).await;
}

/// Files are read and synced beside the desk's thread, so that it answers meanwhile.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, LedgerError> + Send + 'static,
) -> Result<T, Failure> {
    let joined = tokio::task::spawn_blocking(work).await;
    Ok(joined.map_err(|_| Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "the work was not done"))??)
}

/// Who writes, as the audit log has it: the holder of the one bearer token.
pub(super) const BY: &str = "admin API";
/// A screen or two; more on demand.
const REFUSALS_SHOWN: usize = 20;
const SESSIONS_SHOWN: usize = 1000;
/// What an entry is named by.
const ENTRY_ID_DIGITS: usize = 8;
const REVOCATIONS_SHOWN: usize = 1000;
