//! Routes: which hub a message goes to, and what its topic is called there.

mod config;

pub use config::{Ack, RouteConfig};
