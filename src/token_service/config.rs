//! What the token service is told by `[token_service]`.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use crate::{
    id::DeviceId,
    listener::TlsFiles,
    policy::{Rights, TokenKind},
};

/// `[token_service]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenServiceConfig {
    /// Where it listens, always with TLS.
    pub bind: SocketAddr,
    /// What it shows, and whom it asks for a certificate.
    pub tls: TlsFiles,
    /// Private keys that sign its JWTs, PEM, 0600: the first signs, the others are still published and believed.
    pub signing_key_file: PathBuf,
    /// `iss` of its JWTs. Default `https://{hostname}:{port}`.
    pub iss: String,
    /// Lives and rates.
    pub terms: Terms,
    /// Programs that have tokens made for devices.
    pub callers: Vec<CallerConfig>,
}

/// How long what is handed out lives, and how often it may be asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terms {
    /// The life of a token where the request names none. Default 1 h.
    pub token_lifetime: Duration,
    /// The longest life of a token that may be asked for. Default 24 h.
    pub token_lifetime_max: Duration,
    /// By how many percent of its life a token may expire earlier, so that a fleet does not renew in one second. Default
    /// 10.
    pub jitter_percent: u8,
    /// From the first refresh token of a line to the end of the last. Default 30 d; zero: none are handed out.
    pub refresh_lifetime: Duration,
    /// Requests a second from one address, ten times that at once. Default 50; 0: off.
    pub requests_per_second_per_ip: u32,
    /// Tokens a minute for one device. Default 120; 0: off.
    pub requests_per_minute_per_device: u32,
}

impl Default for Terms {
    fn default() -> Self {
        Self {
            token_lifetime: Duration::from_hours(1),
            token_lifetime_max: Duration::from_hours(24),
            jitter_percent: 10,
            refresh_lifetime: Duration::from_hours(30 * 24),
            requests_per_second_per_ip: 50,
            requests_per_minute_per_device: 120,
        }
    }
}

/// A `[[token_service.caller]]`: a program that holds a service key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallerConfig {
    /// What the operator calls it.
    pub name: String,
    /// SHA-256 of its key; the key itself is not kept.
    pub key_sha256: [u8; 32],
    /// Devices that it may have tokens for, by name; with each its modules.
    pub devices: Vec<DeviceId>,
    /// What the ids of further devices begin with.
    pub prefix: Option<String>,
    /// The most that its tokens may do.
    pub rights: Rights,
    /// Kinds of token that it may ask for; the first is what it gets without asking.
    pub kinds: Vec<TokenKind>,
    /// The longest life of its tokens, where it is shorter than that of the service.
    pub token_lifetime_max: Option<Duration>,
    /// Whether it may hand out refresh tokens.
    pub refresh: Refresh,
    /// Requests a second, ten times that at once. Default 100; 0: off.
    pub requests_per_second: u32,
}

impl CallerConfig {
    /// Whether it may have tokens for this device.
    pub fn covers(&self, device: &DeviceId) -> bool {
        let by_name = self.devices.iter().any(|named| device.is_within(named));
        by_name || self.prefix.as_ref().is_some_and(|prefix| device.as_str().starts_with(prefix))
    }
}

/// Whether a caller may hand out refresh tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Refresh {
    /// It may.
    #[default]
    Allowed,
    /// It may not.
    Denied,
}
