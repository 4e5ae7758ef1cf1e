//! What a caller is told when it gets no token (RFC 9457), and what the operator is told besides.

use std::{fmt, time::Duration};

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::json;

/// A request that is not answered with a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Problem {
    /// Which kind of trouble.
    pub(super) code: Code,
    /// One sentence for the caller. What it does not say is no oracle.
    pub(super) detail: String,
    /// One sentence for the operator's log, where it knows more.
    pub(super) why: Option<String>,
    /// When it may be tried again.
    pub(super) retry_after: Option<Duration>,
}

impl Problem {
    pub(super) fn new(code: Code, detail: impl Into<String>) -> Self {
        Self { code, detail: detail.into(), why: None, retry_after: None }
    }

    /// With what only the operator is told.
    pub(super) fn because(mut self, why: impl Into<String>) -> Self {
        self.why = Some(why.into());
        self
    }

    /// Too many requests.
    pub(super) fn rate(of: &str, retry_after: Duration) -> Self {
        let detail = format!("Too many requests {of}: wait before the next one.");
        Self { retry_after: Some(retry_after), ..Self::new(Code::RateLimited, detail) }
    }

    /// Nothing is issued for a device; the caller is not told whether it is unknown, switched off or revoked.
    pub(super) fn not_served(why: impl Into<String>) -> Self {
        Self::new(Code::DeviceNotServed, "No token is issued for this device; the gateway's operator knows why.")
            .because(why)
    }

    /// One sentence for all that can be wrong with a refresh token.
    pub(super) fn refresh_token(why: impl Into<String>) -> Self {
        let detail = "The refresh token is not good: it is damaged, was used before, has ended or was revoked. \
                      Authenticate in another way to begin anew.";
        Self::new(Code::RefreshTokenInvalid, detail).because(why)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.why.as_deref().unwrap_or(&self.detail))
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let (status, tag, title) = self.code.row();
        let body = json!({
            "type": format!("urn:tollgate:problem:{}", tag.replace('_', "-")),
            "title": title,
            "status": status.as_u16(),
            "code": tag,
            "detail": self.detail,
        });
        let kind = (header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        let mut response = (status, [kind], body.to_string()).into_response();
        if status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(after) = self.retry_after {
            // RFC 9110 §10.2.3: whole seconds; rounded up, so that who waits as told is not told again.
            let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
            response.headers_mut().insert(header::RETRY_AFTER, seconds.max(1).into());
        }
        response
    }
}

/// Kinds of trouble. The tag is stable: programs branch on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Code {
    RequestMalformed,
    CallerUnknown,
    RefreshTokenInvalid,
    DeviceNotAllowed,
    DeviceNotServed,
    RightsNotAllowed,
    KindNotAllowed,
    RefreshNotAllowed,
    NotFound,
    MethodNotAllowed,
    TooLarge,
    NotJson,
    LifetimeTooLong,
    CannotSign,
    RateLimited,
    Unavailable,
}

impl Code {
    /// Label of a metric and `code` of the answer.
    pub(super) fn tag(self) -> &'static str {
        self.row().1
    }

    fn row(self) -> (StatusCode, &'static str, &'static str) {
        use StatusCode as S;
        match self {
            Self::RequestMalformed => (S::BAD_REQUEST, "request_malformed", "The request cannot be read"),
            Self::CallerUnknown => (S::UNAUTHORIZED, "caller_unknown", "Nobody that is known here asks"),
            Self::RefreshTokenInvalid => (S::UNAUTHORIZED, "refresh_token_invalid", "The refresh token is not good"),
            Self::DeviceNotAllowed => (S::FORBIDDEN, "device_not_allowed", "The caller may not ask for this device"),
            Self::DeviceNotServed => (S::FORBIDDEN, "device_not_served", "Nothing is issued for this device"),
            Self::RightsNotAllowed => (S::FORBIDDEN, "rights_not_allowed", "The caller may not give these rights"),
            Self::KindNotAllowed => (S::FORBIDDEN, "kind_not_allowed", "The caller may not have this kind of token"),
            Self::RefreshNotAllowed => (S::FORBIDDEN, "refresh_not_allowed", "No refresh token is handed out here"),
            Self::NotFound => (S::NOT_FOUND, "not_found", "There is nothing here"),
            Self::MethodNotAllowed => (S::METHOD_NOT_ALLOWED, "method_not_allowed", "Another method is asked for"),
            Self::TooLarge => (S::PAYLOAD_TOO_LARGE, "too_large", "The request is too large"),
            Self::NotJson => (S::UNSUPPORTED_MEDIA_TYPE, "not_json", "The request is not JSON"),
            Self::LifetimeTooLong => (S::UNPROCESSABLE_ENTITY, "lifetime_too_long", "The token would live too long"),
            Self::CannotSign => (S::UNPROCESSABLE_ENTITY, "cannot_sign", "No key here signs such a token"),
            Self::RateLimited => (S::TOO_MANY_REQUESTS, "rate_limited", "Too many requests"),
            Self::Unavailable => (S::SERVICE_UNAVAILABLE, "unavailable", "The service cannot decide at the moment"),
        }
    }
}
