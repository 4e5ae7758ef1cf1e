//! Hubs: where the pool connects to, and the one that lives in this process.

mod config;
mod dial;
mod embedded;

pub use config::{HubTlsConfig, MqttHubConfig, UpstreamConfig, UpstreamKind};
pub use dial::{Backoff, HubAddress, HubStream, TrustError, dial};
pub use embedded::{EmbeddedHub, HubEndpoint};
