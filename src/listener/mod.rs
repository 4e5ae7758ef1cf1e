//! Accepting: sockets, TLS, limits before authentication.

mod config;

pub use config::{LimitsConfig, ListenerConfig, Transport};
