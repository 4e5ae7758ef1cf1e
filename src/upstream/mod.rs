//! Hubs: where the pool connects to, and the one that lives in this process.

mod config;
mod dial;
mod embedded;
mod login;
mod pace;
mod trust;

pub use config::{HubIdentity, HubTlsConfig, MqttHubConfig, UpstreamConfig, UpstreamKind};
pub use dial::{Backoff, HubAddress, HubStream, dial};
pub use embedded::{EmbeddedHub, HubEndpoint};
pub use login::{HubCredentials, HubLogin, HubSasConfig};
pub use pace::Pace;
pub use trust::TrustError;
