//! The token service: a TLS listener of its own, where devices and the programs that serve them get tokens, so that a
//! device need not hold a key. It has a thread of its own, and nothing here is on the way of a message.
//!
//! `POST /v1/tokens` issues and refreshes; `GET /.well-known/jwks.json` has the public keys of its JWTs. Who asks is a
//! program with a *service key*, a device with a *client certificate*, or whoever holds a *refresh token* ([`refresh`]).

mod api;
mod certificate;
mod config;
mod door;
mod limits;
mod mint;
mod problem;
mod refresh;
mod request;
mod service;
mod signing;
mod store;

pub use api::serve;
pub use config::{CallerConfig, Refresh, Terms, TokenServiceConfig};
pub use mint::{JwtOrder, NoSigner, SasSigner, random_jti, sign_jwt};
pub use refresh::TokenName;
pub use service::{Backend, Control, Revoked, Service, Settings, key_sha256};
pub use signing::{OWN_ISSUER, Signing};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
