//! Who may ask: the host that the request names, the bearer token, the content type.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header},
    middleware::Next,
    response::{IntoResponse, Response},
};

use super::{Backend, api::Failure};

/// Names under which the desk answers. A page of another site that has its name point here (DNS rebinding) sends its own
/// name as `Host`, and is refused.
#[derive(Clone, Debug)]
pub(super) struct Hosts {
    bind: IpAddr,
}

impl Hosts {
    /// Loopback names and the address of the listener.
    pub(super) fn of(bind: SocketAddr) -> Self {
        Self { bind: bind.ip() }
    }

    fn allow(&self, host: &str) -> bool {
        let name = without_port(host);
        if name.eq_ignore_ascii_case("localhost") {
            return true;
        }
        // An address cannot be rebound: where the listener is on all of them, any will do.
        let literal = name.strip_prefix('[').and_then(|n| n.strip_suffix(']')).unwrap_or(name);
        literal.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback() || ip == self.bind || self.bind.is_unspecified())
    }
}

/// Refuses a request that names another host, and says in every answer that it is not for a page or a cache.
pub(super) async fn require_host(State(hosts): State<Arc<Hosts>>, request: Request, next: Next) -> Response {
    let mut response = match named_host(request.headers(), request.uri()) {
        Some(host) if hosts.allow(host) => next.run(request).await,
        _ => Failure::new(StatusCode::MISDIRECTED_REQUEST, "this host name is not served: ask for 127.0.0.1")
            .into_response(),
    };
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    response
}

/// Refuses a request without the token, and a POST that is not JSON: a form of a foreign page cannot send that.
pub(super) async fn require_token(State(backend): State<Backend>, request: Request, next: Next) -> Response {
    let authorized = bearer(request.headers()).is_some_and(|sent| same(sent, backend.token.as_bytes()));
    if !authorized {
        let mut response =
            Failure::new(StatusCode::UNAUTHORIZED, "the bearer token of var/admin.token is missing or wrong")
                .into_response();
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        return response;
    }
    if request.method() == Method::POST && !is_json(request.headers()) {
        return Failure::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "send content-type: application/json").into_response();
    }
    next.run(request).await
}

/// Constant time in what the texts hold; their length is no secret. An empty secret is none.
fn same(sent: &[u8], secret: &[u8]) -> bool {
    let differ = sent.iter().zip(secret).fold(0, |differ, (a, b)| std::hint::black_box(differ | (a ^ b)));
    !secret.is_empty() && sent.len() == secret.len() && differ == 0
}

fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let value = headers.get(header::AUTHORIZATION)?.as_bytes();
    let (scheme, token) = value.split_at_checked(BEARER.len())?;
    scheme.eq_ignore_ascii_case(BEARER).then_some(token)
}

fn is_json(headers: &HeaderMap) -> bool {
    let value = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let kind = value.split(';').next().unwrap_or_default();
    kind.trim().eq_ignore_ascii_case("application/json")
}

/// The host that is asked for. Where the request line names one, it counts (RFC 9112 §3.2.2), and both must be one.
fn named_host<'r>(headers: &'r HeaderMap, uri: &'r Uri) -> Option<&'r str> {
    let mut all = headers.get_all(header::HOST).iter();
    let host = all.next()?.to_str().ok()?;
    let agrees = uri.authority().is_none_or(|authority| authority.as_str().eq_ignore_ascii_case(host));
    (agrees && all.next().is_none()).then_some(host)
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    }
}

const BEARER: &[u8] = b"Bearer ";

#[cfg(test)]
mod tests {
    use super::*;

    fn allow(bind: &str, host: &str) -> bool {
        Hosts::of(bind.parse().expect("an address")).allow(host)
    }

    #[test]
    fn only_loopback_names_and_the_address_itself_are_served() {
        for good in ["localhost", "LOCALHOST:9080", "127.0.0.1:9080", "127.0.0.1", "[::1]:9080", "[::1]"] {
            assert!(allow("127.0.0.1:9080", good), "{good}");
        }
        for bad in
            ["evil.example", "localhost.evil.example", "10.0.0.1:9080", "", ":9080", "127.0.0.1.evil.example:9080"]
        {
            assert!(!allow("127.0.0.1:9080", bad), "{bad}");
        }
        assert!(allow("10.0.0.1:9080", "10.0.0.1:9080") && !allow("10.0.0.1:9080", "10.0.0.2:9080"));
        assert!(allow("0.0.0.0:9080", "10.0.0.2:9080") && !allow("0.0.0.0:9080", "evil.example:9080"));
    }

    #[test]
    fn a_token_is_the_whole_token() {
        assert!(same(b"secret", b"secret"));
        for bad in ["", "secre", "secrets", "Secret"] {
            assert!(!same(bad.as_bytes(), b"secret"), "{bad}");
        }
        assert!(!same(b"", b""), "an empty secret lets nobody in");
    }
}
