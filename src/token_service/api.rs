//! HTTP: one function a path. Every answer says that it is not to be kept, and ends its connection: who comes next has a
//! place.

use std::{future::Future, io, sync::Arc, time::Instant};

use axum::{
    Json, Router,
    body::Bytes,
    extract::{ConnectInfo, DefaultBodyLimit, Request as HttpRequest, State, rejection::BytesRejection},
    http::{HeaderMap, HeaderValue, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use tokio::net::TcpListener;
use zeroize::Zeroizing;

use super::{
    door::{Door, Visit},
    problem::{Code, Problem},
    request::Request,
    service::{Answered, Proof, Service},
};
use crate::listener::Acceptor;

/// Answers until `shutdown` ends; then lets the requests that it has come to their end, which each does within seconds.
///
/// # Errors
/// Where the listener fails.
pub async fn serve(
    listener: TcpListener,
    tls: Acceptor,
    service: Arc<Service>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let app = router(service).into_make_service_with_connect_info::<Visit>();
    axum::serve(Door::new(listener, tls), app).with_graceful_shutdown(shutdown).await
}

fn router(service: Arc<Service>) -> Router {
    let elsewhere =
        |code| move || async move { Problem::new(code, "Ask POST /v1/tokens or GET /.well-known/jwks.json.") };
    Router::new()
        .route("/v1/tokens", post(tokens))
        .route("/.well-known/jwks.json", get(jwks))
        .fallback(elsewhere(Code::NotFound))
        .method_not_allowed_fallback(elsewhere(Code::MethodNotAllowed))
        .layer(middleware::from_fn_with_state(service.clone(), guard))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(service)
}

/// `POST /v1/tokens`: issue and refresh.
async fn tokens(
    State(service): State<Arc<Service>>,
    ConnectInfo(visit): ConnectInfo<Visit>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    // A form of a foreign page cannot send this, and no answer allows another origin to read it.
    if !is_json(&headers) {
        return Err(Problem::new(Code::NotJson, "Send content-type: application/json."));
    }
    let body =
        body.map_err(|_| Problem::new(Code::TooLarge, "The body is larger than 8 KiB, or did not come whole."))?;
    let request = Request::read(&body)?;
    let (certificate, peer) = (visit.certificate(), visit.address());
    let proof = Proof { bearer: bearer(&headers)?, certificate, attempt: attempt(&headers)? };
    // It waits for the disk. Once begun it comes to its end, also when the caller goes away: the receipt tells.
    let decided = tokio::task::spawn_blocking(move || service.answer(&request, &proof, peer)).await;
    let decided = decided.map_err(|error| {
        tracing::error!(%error, "a request for a token was not decided");
        Problem::new(Code::Unavailable, "The service cannot decide at the moment: try again.")
    })?;
    let Answered { issued, receipt, .. } = decided?;
    let response = Json(issued).into_response();
    if let Some(receipt) = receipt {
        visit.when_written(receipt);
    }
    Ok(response)
}

/// `GET /.well-known/jwks.json`: public keys, for whoever verifies the service's JWTs elsewhere.
async fn jwks(State(service): State<Arc<Service>>) -> Response {
    // RFC 7517 §8.5.1
    let kind = (header::CONTENT_TYPE, HeaderValue::from_static("application/jwk-set+json"));
    ([kind], service.jwk_set().to_owned()).into_response()
}

/// Before and after every request: how often its address asks, and that nothing is kept.
async fn guard(
    State(service): State<Arc<Service>>,
    ConnectInfo(visit): ConnectInfo<Visit>,
    request: HttpRequest,
    next: Next,
) -> Response {
    let mut response = match service.check_address(visit.address(), Instant::now()) {
        Ok(()) => next.run(request).await,
        Err(problem) => problem.into_response(),
    };
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

/// RFC 6750 §2.1; a header that is there and is none of these is not taken for absent.
fn bearer(headers: &HeaderMap) -> Result<Option<Zeroizing<Vec<u8>>>, Problem> {
    let mut all = headers.get_all(header::AUTHORIZATION).iter();
    let (Some(value), None) = (all.next(), all.next()) else {
        return match headers.contains_key(header::AUTHORIZATION) {
            true => Err(Problem::new(Code::RequestMalformed, "There is more than one Authorization header.")),
            false => Ok(None),
        };
    };
    let split = value.as_bytes().split_at_checked(BEARER.len());
    let (_, key) = split
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case(BEARER))
        .ok_or_else(|| Problem::new(Code::CallerUnknown, "Authorization is to be \"Bearer \" and the service key."))?;
    Ok(Some(Zeroizing::new(key.trim_ascii().to_vec())))
}

/// `Idempotency-Key`: by it a device that did not get the answer asks for the same once more.
fn attempt(headers: &HeaderMap) -> Result<Option<Zeroizing<String>>, Problem> {
    let Some(value) = headers.get("idempotency-key") else { return Ok(None) };
    match value.to_str() {
        Ok(text) if ATTEMPT_BYTES.contains(&text.len()) => Ok(Some(Zeroizing::new(text.to_owned()))),
        _ => {
            let what = "Idempotency-Key is to be 16 to 128 characters that nobody guesses, new for each refresh token.";
            Err(Problem::new(Code::RequestMalformed, what))
        }
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let value = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("application/json")
}

const BEARER: &[u8] = b"Bearer ";
/// Far above any request.
const BODY_BYTES_MAX: usize = 8 << 10;
const ATTEMPT_BYTES: std::ops::RangeInclusive<usize> = 16..=128;
