//! Hubs: where the pool connects to, and the one that lives in this process.

mod config;
mod dial;
mod embedded;
mod interpreted;
mod login;
mod muster;
#[cfg(feature = "nats")]
mod nats;
#[cfg(not(feature = "nats"))]
#[path = "nats_absent.rs"]
mod nats;
mod pace;
mod rumqttc;
mod trust;

pub use self::rumqttc::RumqttcHub;
pub use config::{
    HubClient, HubIdentity, HubTlsConfig, HubWire, MqttHubConfig, NatsHubConfig, NatsLogin, NatsLoginKind, ProxyConfig,
    UpstreamConfig, UpstreamKind,
};
pub use dial::{Backoff, HubAddress, HubStream, dial};
pub use embedded::{EmbeddedHub, HubEndpoint};
pub use interpreted::{Dropped, Interpreted, Tally};
pub use login::{HubCredentials, HubLogin, HubSasConfig};
pub use muster::Muster;
pub use nats::{NatsHub, check_credentials};
#[cfg(feature = "nats")]
pub use nats::{header_lines, subject_of, subjects_of, topic_of};
pub use pace::Pace;
pub use trust::TrustError;
