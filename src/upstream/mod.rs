//! Hubs: where the pool connects to, and the one that lives in this process.

mod config;
pub mod dial;
pub mod embedded;

pub use config::{HubTlsConfig, MqttHubConfig, UpstreamConfig, UpstreamKind};
